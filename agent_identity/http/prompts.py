# SPDX-License-Identifier: Apache-2.0
"""Shows a sign-in prompt to a person, after checking that its links and its code are safe."""

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


def show_prompt(prompt: Prompt, on_interaction: Callable[[Prompt], object]) -> object:
    """Call `on_interaction` with a prompt. Only https links, and http links to loopback, are passed on.

    Raises:
        CredentialRejectedError: `unsafe_link`.
        CredentialUnavailableError: `interaction_failed`, the callback failed.
    """
    links = (prompt.authorization_url, prompt.verification_uri, prompt.verification_uri_complete)
    if not all(link is None or is_safe_link(link) for link in links) or not _plain(prompt):
        raise CredentialRejectedError(
            "unsafe_link", f"{prompt.issuer} sent a link or a code that isn't safe to show"
        )
    failure: CredentialUnavailableError
    try:
        return on_interaction(prompt)
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _interaction_failed(prompt, error)
    raise failure


async def await_prompt(prompt: Prompt, result: Awaitable[object]) -> None:
    """Wait for an async callback.

    Raises:
        CredentialUnavailableError: `interaction_failed`, the callback failed.
    """
    failure: CredentialUnavailableError
    try:
        await result
    except AgentIdentityError:
        raise
    except Exception as error:
        if is_interrupt(error):
            raise
        failure = _interaction_failed(prompt, error)
    else:
        return
    raise failure


def _interaction_failed(prompt: Prompt, error: Exception) -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_failed",
        f"on_interaction failed for a sign-in at {prompt.issuer}: {type(error).__name__}",
        remedy="check the function that was passed as on_interaction",
    )


def _plain(prompt: Prompt) -> bool:
    """Whether the code is printable ASCII."""
    code = prompt.user_code
    return code is None or (code.isascii() and code.isprintable())


def on_terminal(prompt: Prompt) -> None:
    """Print a prompt on the terminal, with Rich if that is installed.

    Raises:
        ConfigurationError: `no_terminal`, stderr isn't a terminal.
    """
    if not sys.stderr.isatty():
        raise ConfigurationError(
            "no_terminal",
            f"a person has to sign in at {prompt.issuer}, and there is no terminal to show the prompt",
            remedy="pass on_interaction, or choose a source that needs no person",
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
