# SPDX-License-Identifier: Apache-2.0
"""Gets the credential of a session for a resource, and renews it.

A credential is fetched when a resource is first reached, for the grants of the session's chain (`grants.py`). Equal requests
share one fetch, and the request that fetches also records it.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.source import Renewal, Wanted
from agent_identity.credentials.sources.checks import check_step_up
from agent_identity.errors import AgentIdentityError, DeniedError
from agent_identity.flow import Shared, append, arun, run, shared
from agent_identity.policy.request import Entity
from agent_identity.policy.rules import ask_policy
from agent_identity.provenance import spans
from agent_identity.provenance.records import (
    CREDENTIAL_ACQUIRED,
    CREDENTIAL_DECIDED,
    CREDENTIAL_STEPPED_UP,
)
from agent_identity.runtime.current import running_call
from agent_identity.runtime.grants import make_chain, share_key
from agent_identity.runtime.parts import check_credential
from agent_identity.runtime.reach import Reach
from agent_identity.runtime.reports import Reporting, draft_refused
from agent_identity.uris import check_resource
from agent_identity.values import LOCAL, keep, scope_set

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    import httpx

    from agent_identity.credentials.source import Demand, Source, StepUp
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Draft, Flow
    from agent_identity.http.credential import Credential, LateCredential, Ready
    from agent_identity.runtime.current import RunningCall
    from agent_identity.runtime.parts import Resource
    from agent_identity.runtime.state import SessionState
    from agent_identity.values import Decision


_NEW: Final = 60.0
"""Seconds in which a resource that refuses a token leads to no other one, and to no other sign-in."""


def acquire(session: SessionState, resource: str, scopes: Iterable[str] | None) -> Credential:
    """Get a credential outside any tool: policy decides on it, and the decision is recorded.

    Raises:
        DeniedError: policy or the session's limits refuse it.
        CredentialError: the issuer refused or could not be reached.
    """
    with trace_acquisition(session, resource):
        return run(_acquire(session, resource, scopes), session.parts.world.answer)


async def aacquire(
    session: SessionState, resource: str, scopes: Iterable[str] | None
) -> Credential:
    """The async twin of `acquire`."""
    with trace_acquisition(session, resource):
        return await arun(_acquire(session, resource, scopes), session.parts.world.aanswer)


def make_credential(session: SessionState, reached: Reach, call: RunningCall | None) -> Credential:
    """Make the credential that users get; with a call, each request asserts that call.

    Raises:
        ConfigurationError: a local tool has no credential.
    """
    from agent_identity.http.credential import Credential  # noqa: PLC0415 - httpx loads on first use

    parts = session.parts
    return Credential(
        reached.ready(with_call=call is not None),
        proof_key=reached.proof_key,
        nonces=parts.nonces,
        facts=None if call is None else call.facts,
        numbers=None if call is None else call.numbers,
        check=lambda: _check_use(session, reached, call),
        reporter=Reporting(session, reached.resource, call),
        renewer=Renewing(session, reached, call),
        context=parts.world.context,
        clock=parts.clock,
        may_learn=_may_learn(reached.place),
    )


def _may_learn(place: Resource | None) -> bool:
    return place is not None and place.discovery is not None and place.discovery.may_learn


def _check_use(session: SessionState, reached: Reach, call: RunningCall | None) -> None:
    now = session.parts.clock()
    session.parts.gate.check_open()
    session.check(now)
    session.proof.check(now)
    if call is not None:
        call.check_running()
    if session.agent.proof_key is not reached.proof_key:
        raise DeniedError(
            "key_renewed", "this process has forked, and the agent has another key here"
        )


def reach_for_call(
    session: SessionState, reached: Reach, call: RunningCall, trace_id: str
) -> Flow[Reach]:
    """Add a transaction token for one call, if the resource is configured to get one."""
    place, issued = reached.place, reached.issued
    if place is None or place.transaction is None or issued is None:
        return reached
    wanted = _make_wanted(session, reached.chain, place, reached.scopes, None)
    token = yield from place.transaction.fetch(wanted, tool=call.tool.name, trace_id=trace_id)
    yield from append(
        session.draft(
            CREDENTIAL_ACQUIRED,
            {
                "resource": place.uri,
                "source": "transaction-token",
                "issuer": place.transaction.issuer.url,
                "token_type": "N_A",
            },
            call_id=call.call_id,
            ref=token.txn,
        )
    )
    with_token = replace(issued, txn_token=token.token)
    return _make_reach(
        session, reached.resource, reached.scopes, reached.chain, place, with_token, reached.key
    )


def _make_reach(
    session: SessionState,
    resource: str,
    scopes: frozenset[str],
    chain: tuple[Grant, ...],
    place: Resource | None,
    issued: Issued | None,
    key: bytes | None,
) -> Reach:
    if issued is not None:
        keep(session.life.secrets, *issued.secrets)
    return Reach(
        session.agent,
        resource,
        scopes,
        chain,
        place,
        issued,
        key,
        proven_until=session.proof.until,
        now=session.parts.clock(),
        header_limit=session.parts.header_limit,
    )


class Renewing:
    """Renews the credential of a session after its resource refused it."""

    __slots__ = ("_call", "_reached", "_session")

    def __init__(self, session: SessionState, reached: Reach, call: RunningCall | None) -> None:
        self._session = session
        self._reached = reached
        self._call = call

    def renew(self, renewal: Renewal, /) -> Ready:
        flow = renew(self._session, self._reached, renewal, self._call)
        self._reached = run(flow, self._session.parts.world.answer)
        return self._ready()

    async def arenew(self, renewal: Renewal, /) -> Ready:
        flow = renew(self._session, self._reached, renewal, self._call)
        self._reached = await arun(flow, self._session.parts.world.aanswer)
        return self._ready()

    def _ready(self) -> Ready:
        if self._call is not None:
            self._call.renewed(self._reached)
        return self._reached.ready(with_call=self._call is not None)


def reach(
    session: SessionState, resource: str, scopes: frozenset[str], step_up: StepUp | None = None
) -> Flow[Reach]:
    """Get the grants and the credential that a call to `resource` needs; a local resource needs no credential.

    If the principal's tokens have ended, fresh ones are verified first.

    Raises:
        DeniedError: the configuration has no credential for this resource.
        InvalidSubjectError: there are no fresh tokens of the principal, or they name another principal.
        CredentialError: an issuer refused or could not be reached.
        LedgerError: the credential could not be recorded, so it isn't used.
    """
    yield from session.proof.renew_if_due()
    place = None if resource == LOCAL else session.parts.resources.get(resource)
    audiences = session.limits.resources or frozenset({resource} - {LOCAL})
    chain = yield from make_chain(session, audiences, scopes)
    if place is None:
        return _make_reach(session, resource, scopes, chain, None, None, None)
    source = place.source_for(is_handed=session.is_accepted)
    described = source.described
    if step_up is not None:
        sign_in = f" {step_up.acr_values} {step_up.max_age}"
        described = described._replace(audience=described.audience + sign_in)
    key = share_key(session, described, chain[0].hash(), place.uri, scopes)
    wanted = _make_wanted(session, chain, place, scopes, step_up)
    fetch = lambda: _fetch_credential(session, place, source, described.kind, wanted)  # noqa: E731 - only the leader makes the flow
    issued = yield from shared(Shared(key, fetch, source.patience))
    return _make_reach(session, resource, scopes, chain, place, issued, key)


def _fetch_credential(
    session: SessionState, place: Resource, source: Source, kind: str, wanted: Wanted
) -> Flow[Issued]:
    session.check(session.parts.clock())
    issued = yield from source.fetch(wanted)
    if not issued.opens_something:
        return issued
    if not session.hold_token(place, issued):
        yield from session.revoke_tokens([(place.issuer, issued)])
        session.check(session.parts.clock())
        raise DeniedError("session_ended", "the session ended while a credential was acquired")
    check_step_up(issued, wanted.step_up)
    yield from append(
        session.draft(
            CREDENTIAL_ACQUIRED,
            {
                "resource": place.uri,
                "grant_hash": wanted.chain[0].hash(),
                "source": kind,
                "issuer": issued.issuer,
                "scope": [*sorted(issued.scopes)],
                "token_type": issued.token_type,
                "expires_at": int(issued.expires_at),
                "bound": issued.is_bound,
                "opaque": issued.is_opaque,
            },
            None if issued.details is None else {"authorization_details": issued.details},
            ref=issued.jti,
        )
    )
    return issued


def _make_wanted(
    session: SessionState,
    chain: tuple[Grant, ...],
    place: Resource,
    scopes: frozenset[str],
    step_up: StepUp | None,
) -> Wanted:
    return Wanted(
        resource=place.uri,
        scopes=scopes,
        principal=session.principal,
        subject=session.subject,
        chain=chain,
        agent=session.agent.uri,
        proof_key=session.agent.proof_key,
        txn=session.txn,
        purpose=session.purpose,
        step_up=step_up,
    )


@contextlib.contextmanager
def trace_acquisition(session: SessionState, resource: str) -> Generator[None]:
    """Trace one acquisition. The span belongs to the driver of the flow, not to the flow (rule F1)."""
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


def acquire_demanded(
    session: SessionState, resource: str, demand: Demand | None
) -> Flow[Credential]:
    """Get the credential of a session that a resource demands, for requests that belong to no tool.

    `demand` is the resource's answer to a request without credential, None for a later request.

    Raises:
        DeniedError: policy, the configuration or the session's limits refuse it.
        CredentialError: the resource's metadata can't be used, or the issuer refused or could not be reached.
    """
    parts = session.parts
    if demand is not None:
        yield from parts.resources.learn(resource, demand, parts.own_issuer)
    return (yield from _acquire(session, resource, None))


def _acquire(
    session: SessionState, resource: str, scopes: Iterable[str] | None
) -> Flow[Credential]:
    parts = session.parts
    now = parts.clock()
    parts.gate.check()
    session.check(now)
    check_resource(resource)
    requested = None if scopes is None else scope_set(scopes)
    allowed = yield from _decide_and_record(session, resource, requested, now)
    reached = yield from reach(session, resource, allowed)
    session.check(parts.clock())
    return make_credential(session, reached, None)


def renew(
    session: SessionState, reached: Reach, renewal: Renewal, call: RunningCall | None
) -> Flow[Reach]:
    """Renew a credential that its resource refused. `call` is the call that uses it, None outside a tool.

    Policy decides on more scopes as on any other credential. A step-up is recorded, and so is a refused renewal.

    Raises:
        DeniedError: policy, the configuration or the session's limits refuse the renewal.
        CredentialError: the issuer refused or could not be reached.
    """
    parts = session.parts
    call_id = None if call is None else call.call_id
    try:
        now = parts.clock()
        session.check(now)
        scopes = reached.scopes
        wanted = renewal.scopes
        if renewal.demand is not None:
            wanted, has_moved = yield from _learn(session, reached, renewal.demand, call)
            if wanted is None and not has_moved and _is_new(reached, now):
                return reached
        if wanted is not None:
            scopes = yield from _decide_and_record(
                session, reached.resource, wanted, now, own=reached.scopes, call_id=call_id
            )
        if renewal.scopes is None and renewal.step_up is None:
            _forget(session, reached)
        renewed = yield from reach(session, reached.resource, scopes, renewal.step_up)
        session.check(parts.clock())
    except AgentIdentityError as error:
        error.call_id = call_id
        yield from append(
            draft_refused(session, reached.resource, error, reached.resource, call_id)
        )
        raise
    if wanted is not None or renewal.step_up is not None:
        yield from append(_draft_stepped_up(session, reached.resource, scopes, renewal, call_id))
    return renewed


def _learn(
    session: SessionState, reached: Reach, demand: Demand, call: RunningCall | None
) -> Flow[tuple[frozenset[str] | None, bool]]:
    """Learn what a resource demands. Return other scopes to request, None to keep them, and whether its issuer is another one.

    A tool's own scopes are kept.
    """
    parts, resource = session.parts, reached.resource
    before = _version(reached.place), session.needed(resource, None)
    yield from parts.resources.learn(resource, demand, parts.own_issuer)
    after = _version(reached.place), session.needed(resource, None)
    is_default = reached.scopes == before[1] and (call is None or call.tool.scopes is None)
    return after[1] if is_default and after[1] != before[1] else None, after[0] != before[0]


def _version(place: Resource | None) -> int:
    return 0 if place is None or place.discovery is None else place.discovery.version


def _is_new(reached: Reach, now: float) -> bool:
    """Whether a token was issued a moment ago. A resource that refuses it would refuse another one, too."""
    issued = reached.issued
    return issued is not None and issued.opens_something and now < issued.issued_at + _NEW


def _draft_stepped_up(
    session: SessionState,
    resource: str,
    scopes: frozenset[str],
    renewal: Renewal,
    call_id: str | None,
) -> Draft:
    sign_in = renewal.step_up
    return session.draft(
        CREDENTIAL_STEPPED_UP,
        {
            "resource": resource,
            "scope": [*sorted(scopes)],
            "acr_values": None if sign_in is None else [*sign_in.acr_values],
            "max_age": None if sign_in is None else sign_in.max_age,
        },
        call_id=call_id,
    )


def _forget(session: SessionState, reached: Reach) -> None:
    """Drop a refused credential from the cache, unless another one has replaced it there already."""
    if reached.key is None or reached.issued is None:
        return
    entry = session.parts.world.cache.get(reached.key)
    cached = None if entry is None else entry.value
    if isinstance(cached, Issued) and cached.token.equals(reached.issued.token):
        session.parts.world.drop(reached.key)
        session.reaches.pop((reached.resource, reached.scopes), None)


def _decide_and_record(
    session: SessionState,
    resource: str,
    scopes: frozenset[str] | None,
    now: float,
    *,
    own: frozenset[str] | None = None,
    call_id: str | None = None,
) -> Flow[frozenset[str]]:
    """Decide on a credential apart from a call's own decision, and record the decision; return the scopes.

    `own` are the scopes of the current credential, if its resource asks for more.
    """
    wanted = scopes or frozenset[str]()
    try:
        wanted = session.needed(resource, scopes)
        if own is None:
            check_credential(session.limits, session.parts.resources, resource)
        else:
            _check_more_scopes(session, resource, wanted, own)
        decision = yield from _decide(session, resource, wanted, now)
    except AgentIdentityError as error:
        yield from append(_draft_decided(session, resource, wanted, None, error, call_id))
        raise
    yield from append(_draft_decided(session, resource, wanted, decision, None, call_id))
    return wanted


def _check_more_scopes(
    session: SessionState, resource: str, wanted: frozenset[str], own: frozenset[str]
) -> None:
    """Refuse more scopes than the current credential has, unless the session or the configuration limits them.

    What a resource asked for when it demanded authorization is allowed, if the configuration leaves its issuer and scopes to it.
    """
    resources = session.parts.resources
    is_limited = session.limits.scopes is not None or resources.scopes(resource) is not None
    if is_limited or wanted <= own | (resources.asked(resource) or frozenset()):
        return
    raise DeniedError(
        "scope_not_granted",
        f"{resource} asks for {min(wanted - own)}, and {session.agent.uri} isn't allowed that scope",
        remedy="add the scope to the tool, to the resource's configuration, or to the session",
    )


def _decide(
    session: SessionState, resource: str, wanted: frozenset[str], now: float
) -> Flow[Decision]:
    attributes = {"resource": resource, "scopes": wanted, "labels": frozenset[str]()}
    target = Entity("Resource", resource, MappingProxyType(attributes))
    request = session.policy_request("credential", target, now, b"{}", session.history.past)
    decision = yield from ask_policy(session.parts.policy, request)
    session.history.add_resource(resource)
    return decision


def _draft_decided(
    session: SessionState,
    resource: str,
    wanted: frozenset[str],
    decision: Decision | None,
    error: AgentIdentityError | None,
    call_id: str | None,
) -> Draft:
    policy_id = decision.policy_id if decision is not None else getattr(error, "policy_id", None)
    return session.draft(
        CREDENTIAL_DECIDED,
        {
            "resource": resource,
            "scope": [*sorted(wanted)],
            "agent": session.agent.uri,
            "depth": session.depth,
            "decision": "permit" if error is None else "deny",
            "policy_id": policy_id,
            "code": None if error is None else error.code,
        },
        call_id=call_id,
    )


def client(session: SessionState, resource: str) -> httpx.Client:
    """Make a client that can't leave `resource`."""
    from agent_identity.http.credential import confined_client  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.network()
    reporter = Reporting(session, resource, running_call(session))
    return confined_client(_make_late_credential(session, resource), resource, transport, reporter)


def aclient(session: SessionState, resource: str) -> httpx.AsyncClient:
    """The async twin of `client`."""
    from agent_identity.http.credential import confined_aclient  # noqa: PLC0415 - httpx loads on first use

    transport = session.parts.world.transport.anetwork()
    reporter = Reporting(session, resource, running_call(session))
    return confined_aclient(_make_late_credential(session, resource), resource, transport, reporter)


def _make_late_credential(session: SessionState, resource: str) -> LateCredential:
    from agent_identity.http.credential import LateCredential  # noqa: PLC0415 - httpx loads on first use

    def of_running_call() -> Credential | None:
        call = running_call(session)
        if call is None or call.tool.resource != resource:
            return None
        return call.credential()

    def find() -> Credential:
        return of_running_call() or acquire(session, resource, None)

    async def afind() -> Credential:
        return of_running_call() or await aacquire(session, resource, None)

    return LateCredential(find, afind)
