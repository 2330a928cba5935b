# SPDX-License-Identifier: Apache-2.0
"""What the sessions of an identity share: its parts, its resources, and the gate that refuses calls while the ledger fails."""

from __future__ import annotations

import contextlib
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.delegation.carriers import HEADER_LIMIT
from agent_identity.delegation.details import Details, details_from, resource_detail
from agent_identity.errors import DeniedError, LedgerError
from agent_identity.flow import Draft
from agent_identity.lifecycle.pins import Pins
from agent_identity.provenance.records import CALL_UNKNOWN, OUTCOMES
from agent_identity.values import LOCAL, Principal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.discovery import Discovery
    from agent_identity.credentials.root_grants import Anchor
    from agent_identity.credentials.source import Demand, Revoker, Source
    from agent_identity.credentials.sources.transaction import TransactionTokens
    from agent_identity.delegation.limits import Limits
    from agent_identity.flow import Flow
    from agent_identity.http.world import World
    from agent_identity.lifecycle import Revocations
    from agent_identity.policy import Policy, Request
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import JSON, Decision

_BEGINNING_SECONDS: Final = 1.0
"""How long a revocation waits for calls that are about to begin: they need microseconds, or longer if all cores are busy."""
_LOOK_SECONDS: Final = 0.0005
_FIRST_LINE_SECONDS: Final = 0.002
"""More than the time between the library's last line and the first line of a tool's body."""


class Beginning(Protocol):
    """A call, as the gate sees it."""

    @property
    def call_id(self) -> str: ...

    @property
    def is_beginning(self) -> bool:
        """Whether its intent is recorded, and its body is about to run."""
        ...


class Gate:
    """Refuses new calls while the ledger can't be written, and after the identity was closed.

    It knows the running calls. A call whose outcome was lost gets `call.unknown` as soon as the ledger can be written again.
    """

    __slots__ = ("_is_shut", "_ledger", "_lost", "_running", "is_closed")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._is_shut = False
        self.is_closed: bool = False
        self._running: dict[str, weakref.ReferenceType[Beginning]] = {}
        self._lost: dict[str, Draft] = {}

    def shut(self) -> None:
        self._is_shut = True

    def check(self) -> None:
        """Check that calls may begin; a shut gate tries the ledger again.

        Raises:
            DeniedError: `identity_closed`.
            LedgerError: the ledger still can't be written.
        """
        if self._is_shut:
            self.check_open()
            self._reopen()

    def check_open(self) -> None:
        """Check that the identity wasn't closed.

        Raises:
            DeniedError: `identity_closed`.
        """
        if self.is_closed:
            raise DeniedError(
                "identity_closed",
                "the identity was closed with close()",
                remedy="close it after its last session, or make another AgentIdentity",
            )

    def _reopen(self) -> None:
        self._ledger.probe()
        self._write_lost()
        self._is_shut = False

    def add(self, call: Beginning) -> None:
        """Add a call whose intent is recorded, and whose body is about to run."""
        self._running[call.call_id] = weakref.ref(call)

    def wait_for_beginnings(self) -> None:
        """Wait until the calls that have passed their last check have begun, so that none begins after a revocation."""
        give_up = time.monotonic() + _BEGINNING_SECONDS
        for reference in list(self._running.values()):
            while (call := reference()) is not None and call.is_beginning:
                del call
                if time.monotonic() >= give_up:
                    return
                time.sleep(_LOOK_SECONDS)
        time.sleep(_FIRST_LINE_SECONDS)

    def remove(self, call: Beginning) -> None:
        """Remove a call whose outcome is recorded."""
        self._running.pop(call.call_id, None)

    def lose(self, call_id: str, unknown: Draft) -> None:
        """Remove a call whose outcome could not be recorded; `unknown` is recorded as soon as possible."""
        self._running.pop(call_id, None)
        self._lost[call_id] = unknown

    @property
    def unknown(self) -> frozenset[str]:
        """The calls whose outcome was lost and isn't recorded as unknown yet."""
        return frozenset(self._lost)

    def settle(self, call_id: str) -> None:
        """Record the outcome of a call as unknown, if an interrupt has kept it from being recorded.

        Raises:
            LedgerError: it can't be recorded.
        """
        self._running.pop(call_id, None)
        records = self._ledger.find(call_id)
        if not any(record.kind in OUTCOMES for record in records):
            intent = records[0]
            self._ledger.append(
                Draft(
                    CALL_UNKNOWN,
                    {"error": None},
                    pseudonym=intent.pseudonym,
                    session_id=intent.session_id,
                    call_id=call_id,
                )
            )

    def close(self) -> None:
        """Refuse all calls from now on, and record lost outcomes if the ledger can be written."""
        if not self.is_closed:
            self.is_closed = True
            self.sweep()
            if self._lost:
                with contextlib.suppress(LedgerError):
                    self._reopen()
        self._is_shut = True

    def start_over(self) -> None:
        """Forget all calls in a forked child process: the parent process records their outcomes."""
        self._running.clear()
        self._lost.clear()

    def sweep(self) -> None:
        """Record the outcome of calls as unknown that were collected before they reported one, because of an interrupt."""
        for call_id, reference in list(self._running.items()):
            if reference() is None:
                try:
                    self.settle(call_id)
                except LedgerError:
                    self.shut()

    def _write_lost(self) -> None:
        for call_id, draft in list(self._lost.items()):
            self._ledger.append(draft)
            self._lost.pop(call_id, None)


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource: where its credential comes from, and what may be sent to it.

    `scopes` and `details` limit what may be requested and done there, None is no limit; each detail is about this resource.
    `sends_assertion` False sends it no delegation data. `issuer` revokes its tokens, None if they can't be revoked.
    `handed` is the source for sessions that were handed over, which have no token of the principal; None is `source`.
    `discovery` reads what the resource says of its issuer and scopes; None if that is never read.
    """

    uri: str
    source: Source
    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    issuer: Revoker | None = None
    transaction: TransactionTokens | None = None
    details: Details | None = None
    handed: Source | None = None
    discovery: Discovery | None = None

    def source_for(self, *, is_handed: bool) -> Source:
        """The source of the credential; a session that was handed over may have another one."""
        return self.handed if is_handed and self.handed is not None else self.source


class Resources:
    """The resources of an identity: the described ones, and all others by `default` if there is one.

    `discovered` makes one whose issuer is found at run time, for a resource that isn't described and doesn't accept the default.
    """

    __slots__ = ("_default", "_described", "_discovered")

    def __init__(
        self,
        described: Mapping[str, Resource],
        default: Callable[[str], Resource] | None = None,
        discovered: Callable[[str], Resource] | None = None,
    ) -> None:
        self._described = dict(described)
        self._default = default
        self._discovered = discovered

    def get(self, uri: str) -> Resource:
        """Find a resource by its URI.

        Raises:
            DeniedError: `resource_not_configured`.
        """
        described = self._described.get(uri)
        if described is not None:
            return described
        if self._default is None:
            raise DeniedError(
                "resource_not_configured",
                f"no credential is configured for {uri}",
                remedy=f'add a table [resources."{uri}"] to the configuration, with exactly this URI',
            )
        return self._default(uri)

    def learn(self, uri: str, demand: Demand, own_issuer: str | None) -> Flow[None]:
        """Learn what a resource demands: its issuer, from its metadata, and the scopes that it asks for.

        A resource that isn't described gets tokens of `own_issuer`, unless its metadata names another issuer.

        Raises:
            DeniedError: `resource_not_configured`.
            CredentialError: its metadata can't be read or used.
        """
        place = self.get(uri)
        if place.discovery is not None:
            yield from place.discovery.learn(demand)
        elif uri not in self._described and self._discovered is not None:
            place = self._discovered(uri)
            assert place.discovery is not None  # noqa: S101 - what makes it such a resource
            found = yield from place.discovery.learn(demand)
            if found is not None and own_issuer not in found.issuers:
                self._described.setdefault(uri, place)

    def asked(self, uri: str) -> frozenset[str] | None:
        """The scopes that a resource asked for when it demanded authorization; None if it didn't."""
        described = self._described.get(uri)
        if described is None or described.discovery is None:
            return None
        return described.discovery.asked

    def details(self, uri: str) -> Details | None:
        """The authorization details that a resource is limited to, None for no limit."""
        described = self._described.get(uri)
        return None if described is None else described.details

    def scopes(self, uri: str) -> frozenset[str] | None:
        """The scopes that a resource is limited to, None for no limit."""
        described = self._described.get(uri)
        return None if described is None else described.scopes


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one identity.

    `own_issuer` is the issuer of this process's authority, which has a directory of principals. `anchor` makes hop 0.
    `policy_now` is the policy as a plain function, None if it needs I/O. `nonces` are those of resources. `take_back` revokes a
    grant, if this process has the authority. `pins` are the accepted definitions of MCP servers' tools.
    """

    agent: Agent
    anchor: Anchor
    policy: Policy
    policy_now: Callable[[Request], Decision] | None
    world: World
    ledger: Ledger
    gate: Gate
    revocations: Revocations
    resources: Resources
    clock: Callable[[], float]
    nonces: Nonces = field(default_factory=Nonces)
    grant_lifetime: float = 900.0
    header_limit: int = HEADER_LIMIT
    take_back: Callable[[str, float], None] | None = None
    policy_epoch: int = 0
    pins: Pins = field(default_factory=lambda: Pins(None, clock=time.time))
    own_issuer: str | None = None

    def own_principal(self, principal: Principal) -> Principal:
        """A principal of this process's directory without its issuer, any other one unchanged."""
        if self.own_issuer is None or principal.iss != self.own_issuer:
            return principal
        return Principal(principal.sub, profile=principal.profile)


_REMEDY: Final = "stay within the authorization details, or open the session with wider ones"


def grant_details(
    limits: Limits, resources: Resources, audiences: frozenset[str]
) -> Details | None:
    """Combine the session's and the resources' details for a grant; None is no limit.

    Raises:
        DeniedError: `details_not_granted` or `details_not_configured`.
    """
    configured = _configured_details(resources, audiences)
    if limits.details is None:
        return configured
    reached = audiences | {LOCAL}
    details = limits.details.for_resources(reached)
    if details is None:
        raise DeniedError(
            "details_not_granted",
            f"the authorization details of {limits.agent} don't include {min(audiences)}",
            remedy=_REMEDY,
        )
    if configured is None:
        return details
    details = details.split_by_resource(
        reached
    )  # always, so that each object of a child is covered by itself
    if not configured.covers(details):
        raise DeniedError(
            "details_not_configured",
            f"the session's authorization details allow more than the configuration of {min(audiences)}",
            remedy="narrow the session's details, or widen those of the resource's configuration",
        )
    return details


def check_call(
    limits: Limits, resources: Resources, tool: str, resource: str, arguments: bytes
) -> None:
    """Check one call against the details of the session and the resource; `arguments` are its canonical bytes.

    Raises:
        DeniedError: `details_not_granted`; the message names the tool and no argument.
    """
    own, configured = limits.details, resources.details(resource)
    if own is None and configured is None:
        return
    parsed: Mapping[str, JSON] = orjson.loads(arguments)
    limiting = [each for each in (own, configured) if each is not None]
    if not all(each.allows(tool, resource, parsed) for each in limiting):
        raise DeniedError(
            "details_not_granted",
            f"{limits.agent} may not call {tool} with these arguments",
            remedy=_REMEDY,
        )


def check_credential(limits: Limits, resources: Resources, resource: str) -> None:
    """Check a credential outside any tool against the details. Without a call there are no tool and arguments to check.

    Raises:
        DeniedError: `details_need_call` or `details_not_granted`.
    """
    for details in (limits.details, resources.details(resource)):
        if details is None:
            continue
        if not details.reaches(resource):
            raise DeniedError(
                "details_not_granted", f"{limits.agent} may not reach {resource}", remedy=_REMEDY
            )
        if details.sees_arguments:
            raise DeniedError(
                "details_need_call",
                f"the authorization details for {resource} depend on the tool and its arguments",
                remedy="use current_credential() inside a tool for that resource",
            )


def _configured_details(resources: Resources, audiences: frozenset[str]) -> Details | None:
    """Join the configured details of these resources; None if none has any. One without details gets an unlimited object."""
    limited = {uri: own for uri in audiences if (own := resources.details(uri)) is not None}
    if not limited:
        return None
    free = sorted((audiences - limited.keys()) | {LOCAL})
    return details_from(_join_claims(limited.values(), free))


def _join_claims(limited: Iterable[Details], free: list[str]) -> Iterator[Mapping[str, JSON]]:
    for each in limited:
        yield from each.claim
    yield resource_detail([*free])
