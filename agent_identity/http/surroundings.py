# SPDX-License-Identifier: Apache-2.0
"""What flows ask of this machine and of the person before it: secrets by reference, prompts, a visitor who comes back, SVIDs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING, Protocol, TypeVar

from agent_identity.errors import CredentialUnavailableError
from agent_identity.flow import Keep, Read, Show, Svid, Visit, arun, run
from agent_identity.http.listener import Listener
from agent_identity.http.prompts import on_terminal, shown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from agent_identity.flow import Answer, Ask, Callback
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

    def answer(self, ask: Read | Keep | Show | Svid) -> Answer:
        """Answer in sync code."""
        if isinstance(ask, Show):
            self._show(ask.prompt)
            return None
        return self._looked_up(ask)

    async def aanswer(self, ask: Read | Keep | Show | Svid) -> Answer:
        """Answer in async code; disks, keyrings and sockets are waited for in a thread."""
        if isinstance(ask, Show):
            await self._ashow(ask.prompt)
            return None
        return await asyncio.to_thread(self._looked_up, ask)

    def visit(self, ask: Visit, world: Callable[[Ask], Answer]) -> Callback:
        """Send a person to an authorization server and wait for them.

        Raises:
            CredentialUnavailableError: `interaction_timeout`.
        """
        with Listener() as listener:
            self._show(run(ask.prepare(listener.redirect_uri), world))
            try:
                return listener.callback.result(ask.seconds)
            except FutureTimeout:
                raise _nobody_came() from None

    async def avisit(self, ask: Visit, world: Callable[[Ask], Awaitable[Answer]]) -> Callback:
        """The async twin of `visit`."""
        with Listener() as listener:
            await self._ashow(await arun(ask.prepare(listener.redirect_uri), world))
            waiting = asyncio.shield(asyncio.wrap_future(listener.callback))
            try:
                return await asyncio.wait_for(waiting, ask.seconds)
            except TimeoutError:
                raise _nobody_came() from None

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
        return self._secrets.read(ask.reference)

    def _svid(self, audience: str | None) -> Secret | Certificate | None:
        if self._svids is None:
            return None
        return self._svids.certificate() if audience is None else self._svids.jwt(audience)

    def _show(self, prompt: Prompt) -> None:
        found = shown(prompt, self._on_interaction)
        if inspect.iscoroutine(found):
            _run_elsewhere(found)

    async def _ashow(self, prompt: Prompt) -> None:
        found = shown(prompt, self._on_interaction)
        if inspect.isawaitable(found):
            await found


def _run_elsewhere(coroutine: Coroutine[object, object, object]) -> None:
    """Run an async callback for sync code, whose own thread may be a running loop's."""
    done: Future[None] = Future()

    def target() -> None:
        try:
            asyncio.run(coroutine)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=target, name="agent-identity-prompt", daemon=True).start()
    done.result()


def _nobody_came() -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "interaction_timeout", "nobody came back from signing in in time", remedy="try again"
    )
