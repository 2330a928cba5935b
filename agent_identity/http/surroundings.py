# SPDX-License-Identifier: Apache-2.0
"""What flows ask of this machine and of the person before it: secrets by reference, prompts, a visitor who comes back, SVIDs."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent_identity.errors import CredentialUnavailableError, DeniedError
from agent_identity.flow import Keep, Read, Show, Svid, Visit, arun, run
from agent_identity.http.listener import Listener
from agent_identity.http.prompts import awaited, on_terminal, shown
from agent_identity.values import keep

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from agent_identity.flow import Answer, Ask, Callback
    from agent_identity.redaction import Revealing
    from agent_identity.values import Certificate, Prompt, Secret

__all__ = ["Secrets", "Surroundings", "Svids"]

T = TypeVar("T")


class Secrets(Protocol):
    """Where references lead. Both may wait for a disk or a desktop's keyring."""

    def read(self, reference: str, /) -> Secret | None: ...

    def keep(self, reference: str, secret: Secret | None, /) -> None: ...


class Svids(Protocol):
    """A SPIFFE Workload API. Both may wait for it; None where there is none."""

    def jwt(self, audience: str, /) -> Secret | None: ...

    def certificate(self) -> Certificate | None: ...

    def close(self) -> None: ...


class Surroundings:
    """This machine and the person before it, as flows find them.

    `on_interaction` is given each prompt, and may be a coroutine function; by default prompts go to the terminal. `svids` is
    None where no Workload API is to be asked.
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
        self._found: dict[int, Revealing] = {}

    def answer(self, ask: Read | Keep | Show | Svid, deadline: float) -> Answer:
        """Answer in sync code, by a moment on the monotonic clock.

        Raises:
            CredentialUnavailableError: `deadline_exceeded`, a disk, keyring, socket or callback took too long.
        """
        if isinstance(ask, Show):
            self._show(ask.prompt, deadline)
            return None
        if deadline == float("inf"):
            return self._looked_up(ask)
        return _within(deadline, lambda: self._looked_up(ask))

    async def aanswer(self, ask: Read | Keep | Show | Svid) -> Answer:
        """Answer in async code; disks, keyrings, sockets and callbacks are waited for in a thread."""
        if isinstance(ask, Show):
            await self._ashow(ask.prompt)
            return None
        return await asyncio.to_thread(self._looked_up, ask)

    def visit(self, ask: Visit, world: Callable[[Ask], Answer], deadline: float) -> Callback:
        """Send a person to an authorization server and wait for them.

        Raises:
            CredentialUnavailableError: `interaction_timeout`.
        """
        with Listener(ask.accepts) as listener:
            self._show(run(ask.prepare(listener.redirect_uri), world), deadline)
            try:
                return listener.callback.result(ask.seconds)
            except FutureTimeout:
                raise _nobody_came() from None

    async def avisit(self, ask: Visit, world: Callable[[Ask], Awaitable[Answer]]) -> Callback:
        """The async twin of `visit`."""
        listener = Listener(ask.accepts)
        listener.open()
        try:
            await self._ashow(await arun(ask.prepare(listener.redirect_uri), world))
            waiting = asyncio.shield(asyncio.wrap_future(listener.callback))
            return await asyncio.wait_for(waiting, ask.seconds)
        except TimeoutError:
            raise _nobody_came() from None
        finally:
            await asyncio.shield(asyncio.to_thread(listener.close))

    def close(self) -> None:
        if self._svids is not None:
            self._svids.close()

    def _looked_up(self, ask: Read | Keep | Svid) -> Answer:
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
                "ask_unknown", f"a flow asked for {type(ask).__name__}, which is no ask"
            )
        found = self._secrets.read(ask.reference)
        if found is not None:
            keep(self._found, found)
        return found

    def _svid(self, audience: str | None) -> Secret | Certificate | None:
        if self._svids is None:
            return None
        return self._svids.certificate() if audience is None else self._svids.jwt(audience)

    def _show(self, prompt: Prompt, deadline: float) -> None:
        _within(deadline, lambda: asyncio.run(self._ashow(prompt)))

    async def _ashow(self, prompt: Prompt) -> None:
        if inspect.iscoroutinefunction(self._on_interaction):
            found: object = shown(prompt, self._on_interaction)
        else:  # it may wait for a person, or for a window
            found = await asyncio.to_thread(shown, prompt, self._on_interaction)
        if inspect.isawaitable(found):
            await awaited(prompt, found)


def _within(deadline: float, look: Callable[[], T]) -> T:
    """Do in a thread of its own what may wait as long as it likes, and wait for it no longer than there is time."""
    left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
    done: Future[T] = Future()
    context = contextvars.copy_context()

    def target() -> None:
        try:
            done.set_result(context.run(look))
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            done.set_exception(error)

    threading.Thread(target=target, name="agent-identity-waiting", daemon=True).start()
    try:
        return done.result(left)
    except FutureTimeout:
        if done.done():
            raise
        raise CredentialUnavailableError(
            "deadline_exceeded", "a secret, an SVID or a prompt took longer than the deadline"
        ) from None


def _nobody_came() -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_timeout", "nobody came back from signing in in time", remedy="try again"
    )
