# SPDX-License-Identifier: Apache-2.0
"""Shows a person what to do, once it is certain that following it can do no harm."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    is_interrupt,
)
from agent_identity.uris import is_safe_link

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_identity.values import Prompt

__all__ = ["awaited", "on_terminal", "shown"]


def shown(prompt: Prompt, on_interaction: Callable[[Prompt], object]) -> object:
    """Hand a prompt to whoever shows it.

    No link but https, or http on this machine, reaches a person or a program that opens links, whatever an issuer said.

    Raises:
        CredentialRejectedError: `unsafe_link`.
        CredentialUnavailableError: `interaction_failed`, whoever shows it failed.
    """
    links = (prompt.authorization_url, prompt.verification_uri, prompt.verification_uri_complete)
    if not all(link is None or is_safe_link(link) for link in links) or not _plain(prompt):
        raise CredentialRejectedError(
            "unsafe_link", f"{prompt.issuer} would send a person to something that is no web page"
        )
    failure: CredentialUnavailableError
    try:
        return on_interaction(prompt)
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _failed(prompt, error)
    raise failure


async def awaited(prompt: Prompt, shown_later: Awaitable[object]) -> None:
    """Wait for a callback that shows a prompt in its own time.

    Raises:
        CredentialUnavailableError: `interaction_failed`, it failed.
    """
    failure: CredentialUnavailableError
    try:
        await shown_later
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _failed(prompt, error)
    else:
        return
    raise failure


def _failed(prompt: Prompt, error: Exception) -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_failed",
        f"nobody could be shown where to sign in at {prompt.issuer}: {type(error).__name__}",
        remedy="look at the function that was given as on_interaction",
    )


def _plain(prompt: Prompt) -> bool:
    """Whether a code is text that a terminal shows as it is."""
    code = prompt.user_code
    return code is None or (code.isascii() and code.isprintable())


def on_terminal(prompt: Prompt) -> None:
    """Say it on the terminal, with Rich where that is there.

    Raises:
        ConfigurationError: `no_terminal`, nobody would see it.
    """
    if not sys.stderr.isatty():
        raise ConfigurationError(
            "no_terminal",
            f"somebody has to sign in at {prompt.issuer}, and there is no terminal to say so",
            remedy="give on_interaction a function that shows the prompt, or choose a source that needs nobody",
        )
    lines = _lines(prompt)
    try:
        from rich.console import Console  # noqa: PLC0415 - an extra
        from rich.panel import Panel  # noqa: PLC0415 - an extra
        from rich.text import Text  # noqa: PLC0415 - an extra
    except ImportError:
        sys.stderr.write("\n".join(("", *lines, "")))
        return
    panel = Panel(Text("\n".join(lines)), title="agent-identity", expand=False)
    Console(stderr=True, soft_wrap=True).print(panel)


def _lines(prompt: Prompt) -> list[str]:
    until = datetime.fromtimestamp(prompt.expires_at, UTC).astimezone().strftime("%H:%M:%S")
    lines = [f"Sign in at {prompt.issuer}, until {until}."]
    if prompt.authorization_url is not None:
        lines.append(f"Open: {prompt.authorization_url}")
    if prompt.verification_uri is not None:
        lines.append(f"Open: {prompt.verification_uri_complete or prompt.verification_uri}")
    if prompt.user_code is not None:
        lines.append(f"Code: {prompt.user_code}")
    if prompt.kind == "ciba":
        lines.append("Look at your device, and answer there.")
    return lines
