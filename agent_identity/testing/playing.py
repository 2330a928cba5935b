# SPDX-License-Identifier: Apache-2.0
"""Flows without I/O: a test says what the world answers, and looks at what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from agent_identity.credentials.client import KnownClient
from agent_identity.credentials.issuer import Issuer
from agent_identity.flow import (
    Append,
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

    from agent_identity.credentials.client import Client
    from agent_identity.credentials.metadata import Endpoints
    from agent_identity.errors import AgentIdentityError
    from agent_identity.flow import Answer, Ask, Callback, Flow, HttpResponse
    from agent_identity.values import Certificate, Prompt, Secret

__all__ = ["KnownIssuer", "play"]

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

    What is shared is fetched by playing its own flow, records are taken and forgotten, pauses pass at once. `asks` collects
    all that was asked. `secrets` answers references, `svids` the Workload API by audience; `visitor` is given a redirect URI
    and what a person is shown, and says what comes back; `kept` collects what is to be kept, and answers references first.

    Raises:
        AssertionError: it asked for more than there are answers, or for less.
    """
    left = list(answers)
    stored: dict[str, Secret] = {} if kept is None else kept

    def world(ask: Ask) -> Answer:
        if asks is not None:
            asks.append(ask)
        if isinstance(ask, HttpRequest):
            return exchanged(ask)
        if isinstance(ask, Shared):
            return run(ask.start(), world)
        if isinstance(ask, Read):
            return stored.get(ask.reference) or (secrets or {}).get(ask.reference)
        if isinstance(ask, Svid):
            return (svids or {}).get(ask.audience)
        if isinstance(ask, Keep):
            if ask.secret is None:
                stored.pop(ask.reference, None)
            else:
                stored[ask.reference] = ask.secret
        if isinstance(ask, Visit):
            return visited(ask)
        assert isinstance(ask, Append | Keep | Pause | Show)  # noqa: S101 - all that is left
        return None

    def exchanged(ask: HttpRequest) -> HttpResponse:
        if not left:
            raise AssertionError(f"the flow asks for one more exchange: {ask}")
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def visited(ask: Visit) -> Callback:
        if visitor is None:
            raise AssertionError("the flow sends a person somewhere, and there is no visitor")
        redirect_uri = "http://127.0.0.1:1/callback"
        return visitor(redirect_uri, run(ask.prepare(redirect_uri), world))

    value = run(flow, world)
    if left:
        raise AssertionError(f"the flow left {len(left)} answers unasked for")
    return value


class KnownIssuer(Issuer):
    """An issuer whose metadata a test gives, so that a flow asks it for nothing but what the test is about."""

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
