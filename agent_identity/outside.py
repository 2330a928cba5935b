# SPDX-License-Identifier: Apache-2.0
"""A session's credentials outside any tool: decided by policy and recorded, with no call to assert.

And the clients that sign by themselves: with the running call's credential where there is one, else with such a one.
"""

from __future__ import annotations

import contextlib
from types import MappingProxyType
from typing import TYPE_CHECKING

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.source import Renewal
from agent_identity.detailed import check_credential
from agent_identity.errors import AgentIdentityError, DeniedError
from agent_identity.flow import Draft, append
from agent_identity.policy.request import Entity, Facts, Request
from agent_identity.policy.rules import asked
from agent_identity.provenance import spans
from agent_identity.provenance.records import CREDENTIAL_DECIDED, CREDENTIAL_STEPPED_UP
from agent_identity.runtime.acquire import reach
from agent_identity.runtime.reports import Reporting, refused_draft
from agent_identity.uris import checked_resource
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import httpx

    from agent_identity.flow import Flow
    from agent_identity.http.credential import Credential, LateCredential
    from agent_identity.pipeline import Call
    from agent_identity.runtime.acquire import Reach
    from agent_identity.session import Session
    from agent_identity.values import Decision

__all__ = ["aclient", "client", "credential", "renewed", "traced"]


@contextlib.contextmanager
def traced(session: Session, resource: str) -> Generator[None]:
    """The span of one acquisition; it belongs to who drives the flow, not to the flow."""
    span = spans.open_span(f"acquire_credential {resource}", {})
    error: str | None = None
    try:
        yield
    except BaseException as failure:
        error = failure.code if isinstance(failure, AgentIdentityError) else type(failure).__name__
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


def credential(session: Session, resource: str, scopes: Iterable[str] | None) -> Flow[Credential]:
    """Decide on it, put the decision on record, get it.

    Raises:
        DeniedError: policy or the session's limits refuse it.
        CredentialError: the issuer refused or could not be reached.
    """
    parts = session.parts
    now = parts.clock()
    parts.gate.check()
    session.check(now)
    checked_resource(resource)
    asked_for = None if scopes is None else scope_set(scopes)
    wanted = yield from _permitted(session, resource, asked_for, now)
    ready = yield from reach(session, resource, wanted)
    session.check(parts.clock())
    return ready.credential(session, None)


def renewed(session: Session, reached: Reach, renewal: Renewal, call: Call | None) -> Flow[Reach]:
    """The credential anew, since its resource refused this one; `call` is the one that uses it, None outside of any.

    More scopes are decided on like any other credential. What its resource wants of it, a step-up, is on record, and so is
    the refusal of one.

    Raises:
        DeniedError: policy, the configuration or the session's limits don't allow that much.
        CredentialError: the issuer refused or could not be reached.
    """
    parts = session.parts
    call_id = None if call is None else call.call_id
    try:
        now = parts.clock()
        session.check(now)
        scopes = reached.scopes
        if renewal.scopes is not None:
            scopes = yield from _permitted(
                session, reached.resource, renewal.scopes, now, own=reached.scopes, call_id=call_id
            )
        if renewal == Renewal():
            _forget(session, reached)
        found = yield from reach(session, reached.resource, scopes, renewal.step_up)
        session.check(parts.clock())
    except AgentIdentityError as error:
        error.call_id = call_id
        yield from append(
            refused_draft(session, reached.resource, error, reached.resource, call_id)
        )
        raise
    if renewal != Renewal():
        yield from append(_stepped_up(session, reached.resource, scopes, renewal, call_id))
    return found


def _stepped_up(
    session: Session,
    resource: str,
    scopes: frozenset[str],
    renewal: Renewal,
    call_id: str | None,
) -> Draft:
    sign_in = renewal.step_up
    return Draft(
        CREDENTIAL_STEPPED_UP,
        session.known_as,
        session.id,
        call_id,
        None,
        None,
        None,
        {
            "resource": resource,
            "scope": [*sorted(scopes)],
            "acr_values": None if sign_in is None else [*sign_in.acr_values],
            "max_age": None if sign_in is None else sign_in.max_age,
        },
        None,
    )


def _forget(session: Session, reached: Reach) -> None:
    """Let go of a credential that was refused, unless another has taken its place: many may hold the same one."""
    if reached.key is None or reached.issued is None:
        return
    entry = session.parts.world.cache.get(reached.key)
    held = None if entry is None else entry.value
    if isinstance(held, Issued) and held.token.equals(reached.issued.token):
        session.parts.world.drop(reached.key)
        session.reaches.pop((reached.resource, reached.scopes), None)


def _permitted(
    session: Session,
    resource: str,
    scopes: frozenset[str] | None,
    now: float,
    *,
    own: frozenset[str] | None = None,
    call_id: str | None = None,
) -> Flow[frozenset[str]]:
    """Decide on a credential apart from a call's own decision, and put that on record.

    `own` are the scopes of the credential in hand, where a resource asks for more: what was permitted once.
    """
    wanted = scopes or frozenset[str]()
    try:
        wanted = session.needed(resource, scopes)
        if own is None:
            check_credential(session.limits, session.parts.resources, resource)
        else:
            _check_cap(session, resource, wanted, own)
        decision = yield from _decided(session, resource, wanted, now)
    except AgentIdentityError as error:
        yield from append(_draft(session, resource, wanted, None, error, call_id))
        raise
    yield from append(_draft(session, resource, wanted, decision, None, call_id))
    return wanted


def _check_cap(
    session: Session, resource: str, wanted: frozenset[str], own: frozenset[str]
) -> None:
    """Hold a resource's wish for more scopes to the tool's own, where neither configuration nor session say what is allowed."""
    is_limited = session.limits.scopes is not None
    if is_limited or session.parts.resources.scopes(resource) is not None or wanted <= own:
        return
    raise DeniedError(
        "scope_not_granted",
        f"{resource} asks for {min(wanted - own)}, which nothing allows {session.agent.uri}",
        remedy="name the scope at the tool, for the resource, or when the session is opened",
    )


def _decided(session: Session, resource: str, wanted: frozenset[str], now: float) -> Flow[Decision]:
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
    decision = yield from asked(session.parts.policy, Request(facts))
    session.history.reached(resource)
    return decision


def _draft(
    session: Session,
    resource: str,
    wanted: frozenset[str],
    decision: Decision | None,
    error: AgentIdentityError | None,
    call_id: str | None,
) -> Draft:
    policy_id = decision.policy_id if decision is not None else getattr(error, "policy_id", None)
    return Draft(
        CREDENTIAL_DECIDED,
        session.pseudonym,
        session.id,
        call_id,
        None,
        None,
        None,
        {
            "resource": resource,
            "scope": [*sorted(wanted)],
            "agent": session.agent.uri,
            "depth": session.depth,
            "decision": "permit" if error is None else "deny",
            "policy_id": policy_id,
            "code": None if error is None else error.code,
        },
        None,
    )


def client(session: Session, resource: str) -> httpx.Client:
    """A client that can't leave `resource`."""
    from agent_identity.http.credential import confined_client  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.network()
    reporter = Reporting(session, resource, session.running)
    return confined_client(_late(session, resource), resource, transport, reporter)


def aclient(session: Session, resource: str) -> httpx.AsyncClient:
    """The async twin of `client`."""
    from agent_identity.http.credential import confined_aclient  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.anetwork()
    reporter = Reporting(session, resource, session.running)
    return confined_aclient(_late(session, resource), resource, transport, reporter)


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
