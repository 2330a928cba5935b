# SPDX-License-Identifier: Apache-2.0
"""A session's credentials outside any tool: decided by policy and recorded, with no call to assert.

And the clients that sign by themselves: with the running call's credential where there is one, else with such a one.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from agent_identity.errors import AgentIdentityError
from agent_identity.policy.request import Entity, Facts, Request
from agent_identity.policy.rules import asked
from agent_identity.provenance import spans
from agent_identity.reach import Reach, reach
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx

    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential, LateCredential
    from agent_identity.session import Session

__all__ = ["aclient", "client", "credential"]


def credential(session: Session, resource: str, scopes: Iterable[str] | None) -> Flow[Credential]:
    """Decide on it, get it, and leave a span.

    Raises:
        DeniedError: policy or the session's limits refuse it.
        CredentialError: the issuer refused or could not be reached.
    """
    span = spans.open_span(f"acquire_credential {resource}", {})
    error: str | None = None
    try:
        ready = yield from _reached(session, resource, scopes)
    except AgentIdentityError as failure:
        error = failure.code
        raise
    finally:
        attributes = {
            spans.SESSION_ID: session.id,
            spans.TXN: session.txn,
            spans.AGENT_ID: session.agent.uri,
            spans.RESOURCE: resource,
            spans.DECISION: "permit" if error is None else "deny",
        }
        span.end(attributes, error)
    return ready.credential(session, None)


def _reached(session: Session, resource: str, scopes: Iterable[str] | None) -> Flow[Reach]:
    parts = session.parts
    now = parts.clock()
    session.check(now)
    parts.gate.check()
    wanted = session.needed(resource, None if scopes is None else scope_set(scopes))
    facts = Facts(
        "credential",
        Entity(
            "Resource",
            resource,
            MappingProxyType({"resource": resource, "scopes": wanted, "labels": frozenset[str]()}),
        ),
        session.principal,
        session.evidence,
        session.agent.uri,
        session.chain,
        session.purpose,
        session.task,
        now,
        b"{}",
        session.history.past,
    )
    yield from asked(parts.policy, Request(facts))
    ready = yield from reach(session, resource, wanted)
    session.check(parts.clock())
    return ready


def client(session: Session, resource: str) -> httpx.Client:
    """A client that can't leave `resource`."""
    from agent_identity.http.credential import confined_client  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.network()
    return confined_client(_late(session, resource), resource, transport)


def aclient(session: Session, resource: str) -> httpx.AsyncClient:
    """The async twin of `client`."""
    from agent_identity.http.credential import confined_aclient  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.anetwork()
    return confined_aclient(_late(session, resource), resource, transport)


def _late(session: Session, resource: str) -> LateCredential:
    from agent_identity.http.credential import LateCredential  # noqa: PLC0415 - httpx loads on first use

    def of_running_call() -> Credential | None:
        call = session.running
        if call is None or call.tool.resource != resource:
            return None
        return call.reach.credential(session, call)

    def find() -> Credential:
        return of_running_call() or session.credential(resource)

    async def afind() -> Credential:
        return of_running_call() or await session.acredential(resource)

    return LateCredential(find, afind)
