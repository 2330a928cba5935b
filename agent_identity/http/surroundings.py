# SPDX-License-Identifier: Apache-2.0
"""Answers what flows ask of this machine and its user: secrets by reference, prompts, sign-in redirects, SVIDs."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Protocol

from agent_identity.errors import CredentialUnavailableError, DeniedError
from agent_identity.flow import Keep, Read, Show, Svid, Visit, arun, run
from agent_identity.http.interaction import Listener, await_prompt, on_terminal, show_prompt
from agent_identity.http.waiting import wait_in_thread, wait_within
from agent_identity.values import Secret, keep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_identity.flow import Answer, Ask, Callback
    from agent_identity.redaction import Revealing
    from agent_identity.values import Certificate, Prompt


class Secrets(Protocol):
    """Reads and writes secrets by reference. Both may wait for a disk or a desktop's keyring."""

    def read(self, reference: str, /) -> Secret | None: ...

    def keep(self, reference: str, secret: Secret | None, /) -> None: ...


class Svids(Protocol):
    """A SPIFFE Workload API. Both may wait for it; None where there is none."""

    def jwt(self, audience: str, /) -> Secret | None: ...

    def certificate(self) -> Certificate | None: ...

    def close(self) -> None: ...


class Surroundings:
    """This machine and its user.

    `on_interaction` is called with each prompt, and may be a coroutine function; by default prompts go to the terminal.
    `svids` is None where no Workload API is configured.
    """

    def __init__(
        self,
        *,
        secrets: Secrets | None = None,
        on_interaction: Callable[[Prompt], object] | None = None,
        svids: Svids | None = None,
    ) -> None:
        self._secrets = secrets
        self._on_interaction = on_interaction or on_terminal
        self._svids = svids
        self._read: dict[int, Revealing] = {}

    def answer(self, ask: Read | Keep | Show | Svid, deadline: float) -> Answer:
        """Answer in sync code, until `deadline` on the monotonic clock.

        Raises:
            CredentialUnavailableError: `deadline_exceeded`, a disk, keyring, socket or callback took too long.
        """
        if isinstance(ask, Show):
            self._show(ask.prompt, deadline)
            return None
        if deadline == float("inf") or _is_at_hand(ask) or _is_in_file(ask):
            return self._look_up(ask)
        return wait_within(deadline, lambda: self._look_up(ask))

    async def aanswer(self, ask: Read | Keep | Show | Svid) -> Answer:
        """Answer in async code. A thread waits for disks, keyrings, sockets and sync callbacks."""
        if isinstance(ask, Show):
            await self._ashow(ask.prompt)
            return None
        if _is_at_hand(ask):
            return self._look_up(ask)
        return await wait_in_thread(lambda: self._look_up(ask))

    def visit(self, ask: Visit, world: Callable[[Ask], Answer], deadline: float) -> Callback:
        """Send a person to an authorization server and wait for the redirect.

        Raises:
            CredentialUnavailableError: `interaction_timeout`.
        """
        with contextlib.closing(Listener(ask.accepts, ask.redirect_uri)) as listener:
            self._show(run(ask.prepare(listener.redirect_uri), world), deadline)
            try:
                return listener.callback.result(ask.seconds)
            except FutureTimeout:
                raise _timed_out(listener) from None

    async def avisit(self, ask: Visit, world: Callable[[Ask], Awaitable[Answer]]) -> Callback:
        """The async twin of `visit`."""
        listener = Listener(ask.accepts, ask.redirect_uri)
        try:
            await self._ashow(await arun(ask.prepare(listener.redirect_uri), world))
            waiting = asyncio.shield(asyncio.wrap_future(listener.callback))
            return await asyncio.wait_for(waiting, ask.seconds)
        except TimeoutError:
            raise _timed_out(listener) from None
        finally:
            await asyncio.shield(asyncio.to_thread(listener.close))

    def close(self) -> None:
        if self._svids is not None:
            self._svids.close()

    def _look_up(self, ask: Read | Keep | Svid) -> Answer:
        if isinstance(ask, Svid):
            return self._svid(ask.audience)
        if self._secrets is None:
            from agent_identity.config import References  # noqa: PLC0415 - for those who keep secrets

            self._secrets = References()
        if isinstance(ask, Keep):
            self._secrets.keep(ask.reference, ask.secret)
            return None
        if not isinstance(ask, Read):  # pyright: ignore[reportUnnecessaryIsInstance] - a plug-in's flow may ask for anything
            raise DeniedError(
                "ask_unknown", f"a flow yielded a {type(ask).__name__}, which isn't an ask"
            )
        secret = self._secrets.read(ask.reference)
        if secret is None:
            return None
        keep(self._read, secret)
        return secret

    def _svid(self, audience: str | None) -> Secret | Certificate | None:
        if self._svids is None:
            return None
        return self._svids.certificate() if audience is None else self._svids.jwt(audience)

    def _show(self, prompt: Prompt, deadline: float) -> None:
        wait_within(deadline, lambda: asyncio.run(self._ashow(prompt)))

    async def _ashow(self, prompt: Prompt) -> None:
        if inspect.iscoroutinefunction(self._on_interaction):
            result: object = show_prompt(prompt, self._on_interaction)
        else:  # it may wait for a person, or for a window
            result = await asyncio.to_thread(show_prompt, prompt, self._on_interaction)
        if inspect.isawaitable(result):
            await await_prompt(prompt, result)


def _is_at_hand(ask: Read | Keep | Svid) -> bool:
    """Whether the answer is in this process, in an environment variable, so that there is nothing to wait for."""
    return isinstance(ask, Read) and ask.reference.startswith("env:")


def _is_in_file(ask: Read | Keep | Svid) -> bool:
    """Whether a file is to be read. It is opened so that nothing waits for a writer, as a pipe's reader would."""
    return isinstance(ask, Read) and ask.reference.startswith("file:")


def _timed_out(listener: Listener) -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_timeout",
        f"the sign-in in the browser timed out; nothing came back to {listener.redirect_uri}",
        remedy="try again; if the browser showed an error, register exactly this redirect URI for the client, "
        "and set redirect_uri for the issuer if it needs a fixed port",
    )
