# SPDX-License-Identifier: Apache-2.0
"""Runs flows without I/O: a test provides the answers, and inspects what was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from agent_identity.credentials.oauth.issuer import Issuer, KnownClient
from agent_identity.flow import (
    Append,
    Blocking,
    HttpRequest,
    Keep,
    Pause,
    Read,
    Shared,
    Show,
    Svid,
    Visit,
    pure,
    run,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.credentials.oauth.client import Client
    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.errors import AgentIdentityError
    from agent_identity.flow import Answer, Ask, Callback, Flow, HttpResponse
    from agent_identity.values import Certificate, Prompt, Secret

T = TypeVar("T")


def play(
    flow: Flow[T],
    *answers: HttpResponse | AgentIdentityError,
    asks: list[Ask] | None = None,
    secrets: Mapping[str, Secret] | None = None,
    svids: Mapping[str | None, Secret | Certificate] | None = None,
    visitor: Callable[[str, Prompt], Callback] | None = None,
    kept: dict[str, Secret] | None = None,
) -> T:
    """Drive a flow with these answers to its HTTP requests, in order; an error among them is raised into the flow.

    Shared values are fetched by playing their flows, records are dropped, pauses end at once. `asks` collects everything that
    the flow asks. `secrets` answers references, `svids` the Workload API by audience. `visitor` gets a redirect URI and the
    prompt for a person, and returns the callback. `kept` collects written secrets, and answers references first.

    Raises:
        AssertionError: the flow asked for more or less than the answers.
    """
    player = _Player(
        list(answers),
        [] if asks is None else asks,
        secrets or {},
        svids or {},
        visitor,
        {} if kept is None else kept,
    )
    value = run(flow, player.answer)
    if player.left:
        raise AssertionError(f"the flow left {len(player.left)} answers unused")
    return value


@dataclass(slots=True)
class _Player:
    """Answers what one played flow asks."""

    left: list[HttpResponse | AgentIdentityError]
    asks: list[Ask]
    secrets: Mapping[str, Secret]
    svids: Mapping[str | None, Secret | Certificate]
    visitor: Callable[[str, Prompt], Callback] | None
    kept: dict[str, Secret]

    def answer(self, ask: Ask) -> Answer:
        self.asks.append(ask)
        if isinstance(ask, HttpRequest):
            return self._exchange(ask)
        if isinstance(ask, Shared):
            return run(ask.start(), self.answer)
        if isinstance(ask, Visit):
            return self._visit(ask)
        if isinstance(ask, Blocking):
            ask.work()
            return None
        return self._look_up(ask)

    def _look_up(self, ask: Append | Keep | Pause | Read | Show | Svid) -> Answer:
        if isinstance(ask, Read):
            return self.kept.get(ask.reference) or self.secrets.get(ask.reference)
        if isinstance(ask, Svid):
            return self.svids.get(ask.audience)
        if isinstance(ask, Keep) and ask.secret is None:
            self.kept.pop(ask.reference, None)
        elif isinstance(ask, Keep) and ask.secret is not None:
            self.kept[ask.reference] = ask.secret
        return None

    def _exchange(self, ask: HttpRequest) -> HttpResponse:
        if not self.left:
            raise AssertionError(f"there is no answer left for {ask}")
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _visit(self, ask: Visit) -> Callback:
        if self.visitor is None:
            raise AssertionError("the flow sends a person somewhere, and there is no visitor")
        redirect_uri = ask.redirect_uri or "http://127.0.0.1:1/callback"
        return self.visitor(redirect_uri, run(ask.prepare(redirect_uri), self.answer))


class KnownIssuer(Issuer):
    """An issuer with the given metadata, so that a played flow doesn't ask for it."""

    def __init__(
        self,
        endpoints: Endpoints,
        client: Client,
        *,
        clock: Callable[[], float],
        certificate: Callable[[], Flow[Certificate]] | None = None,
    ) -> None:
        super().__init__(
            endpoints.issuer, clients=KnownClient(client), clock=clock, certificate=certificate
        )
        self._known = endpoints

    def endpoints(self) -> Flow[Endpoints]:
        return pure(self._known)
