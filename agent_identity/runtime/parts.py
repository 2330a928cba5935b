# SPDX-License-Identifier: Apache-2.0
"""What an identity's sessions share, and the gate that keeps calls out while the ledger can't be written."""

from __future__ import annotations

import contextlib
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

import orjson

from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.delegation.carriers import HEADER_LIMIT
from agent_identity.delegation.details import Details, about, details_from
from agent_identity.errors import DeniedError, LedgerError
from agent_identity.flow import Draft
from agent_identity.provenance.records import CALL_UNKNOWN, OUTCOMES
from agent_identity.values import LOCAL, Principal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.root_grants import Anchor
    from agent_identity.credentials.source import Revoker, Source
    from agent_identity.credentials.sources.transaction import TransactionTokens
    from agent_identity.delegation.limits import Limits
    from agent_identity.http.world import World
    from agent_identity.lifecycle import Revocations
    from agent_identity.policy import Policy, Request
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.values import JSON, Decision

__all__ = [
    "Gate",
    "Parts",
    "Resource",
    "Resources",
    "check_call",
    "check_credential",
    "grant_details",
]


_BEGINNING_SECONDS: Final = 1.0
"""How long a revocation waits for calls that are about to begin: they need microseconds, and longer where every core is busy."""
_LOOK_SECONDS: Final = 0.0005
_FIRST_LINE_SECONDS: Final = 0.002
"""The time between the last line of ours and the first line of a body, and some more."""


class Beginning(Protocol):
    """A call, as the gate sees it."""

    @property
    def call_id(self) -> str: ...

    @property
    def is_beginning(self) -> bool:
        """Whether its intent is on record, and its body is about to run."""
        ...


class Gate:
    """Shut while the ledger can't be written: an outcome is missing from it, and no further call begins. Closed with its identity.

    It knows the calls that run, so that one whose outcome was lost gets `call.unknown` as soon as the ledger can be written.
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
        """Pass, or try the ledger once more.

        Raises:
            DeniedError: `identity_closed`.
            LedgerError: it still can't be written.
        """
        if self._is_shut:
            self.check_open()
            self._reopen()

    def check_open(self) -> None:
        """Pass until the identity is closed.

        Raises:
            DeniedError: `identity_closed`.
        """
        if self.is_closed:
            raise DeniedError(
                "identity_closed",
                "the identity was closed with close(), and nothing happens by it any more",
                remedy="close it after its last session, or make another AgentIdentity",
            )

    def _reopen(self) -> None:
        self._ledger.probe()
        self._write_lost()
        self._is_shut = False

    def began(self, call: Beginning) -> None:
        """A call's intent is on record, and its body is about to run."""
        self._running[call.call_id] = weakref.ref(call)

    def wait_for_beginnings(self) -> None:
        """Wait until the calls that may have passed their last check have begun, so that none of them begins later."""
        give_up = time.monotonic() + _BEGINNING_SECONDS
        for reference in list(self._running.values()):
            while (call := reference()) is not None and call.is_beginning:
                del call
                if time.monotonic() >= give_up:
                    return
                time.sleep(_LOOK_SECONDS)
        time.sleep(_FIRST_LINE_SECONDS)

    def ended(self, call: Beginning) -> None:
        """A call's outcome is on record."""
        self._running.pop(call.call_id, None)

    def lost(self, call_id: str, unknown: Draft) -> None:
        """A call's outcome couldn't be recorded; `unknown` is, once that works."""
        self._running.pop(call_id, None)
        self._lost[call_id] = unknown

    @property
    def unknown(self) -> frozenset[str]:
        """The calls whose outcome was lost, and isn't on record as unknown yet."""
        return frozenset(self._lost)

    def settle(self, call_id: str) -> None:
        """See to the outcome of a call that an interrupt hit while it was recorded.

        Raises:
            LedgerError: it can't be recorded.
        """
        self._running.pop(call_id, None)
        records = self._ledger.find(call_id)
        if not any(record.kind in OUTCOMES for record in records):
            intent = records[0]
            self._ledger.append(draft_unknown(intent.pseudonym, intent.session_id, call_id))

    def close(self) -> None:
        """Let nothing begin any more, and record what can still be recorded of calls whose outcome was lost."""
        if not self.is_closed:
            self.is_closed = True
            self.sweep()
            if self._lost:
                with contextlib.suppress(LedgerError):
                    self._reopen()
        self._is_shut = True

    def start_over(self) -> None:
        """In a forked child: the parent reports how its own calls end."""
        self._running.clear()
        self._lost.clear()

    def sweep(self) -> None:
        """Record as unknown what nobody will report any more: an interrupt kept their outcome from being written."""
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


def draft_unknown(pseudonym: str | None, session_id: str | None, call_id: str) -> Draft:
    """The outcome of a call of which nobody knows how it ended."""
    return Draft(
        CALL_UNKNOWN,
        {"error": None},
        pseudonym=pseudonym,
        session_id=session_id,
        call_id=call_id,
    )


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource as this identity reaches it: where its credential comes from, and what it may be shown.

    `scopes` is the most that may be asked for, None no limit of its own. `sends_assertion` False keeps delegation data from it.
    `issuer` takes its tokens back, None where nobody does. `details` are what may be done there at most, each about this resource.
    `handed` is the source for sessions that were handed over, which have no token of the principal; None is the same one.
    """

    uri: str
    source: Source
    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    issuer: Revoker | None = None
    transaction: TransactionTokens | None = None
    details: Details | None = None
    handed: Source | None = None

    def source_for(self, *, is_handed: bool) -> Source:
        """Where the credential comes from: for a session that was handed over, maybe from elsewhere than for others."""
        return self.handed if is_handed and self.handed is not None else self.source


class Resources:
    """All that an identity reaches: what is described one by one, and by `default` all the rest, where there is one."""

    __slots__ = ("_default", "_described")

    def __init__(
        self, described: Mapping[str, Resource], default: Callable[[str], Resource] | None = None
    ) -> None:
        self._described = dict(described)
        self._default = default

    def get(self, uri: str) -> Resource:
        """How a resource is reached.

        Raises:
            DeniedError: `resource_not_configured`.
        """
        found = self._described.get(uri)
        if found is not None:
            return found
        if self._default is None:
            raise DeniedError(
                "resource_not_configured",
                f"there is no way configured to get a credential for {uri}",
                remedy=f'add a table [resources."{uri}"] to the configuration; its URI counts letter by letter',
            )
        return self._default(uri)

    def details(self, uri: str) -> Details | None:
        """What may be done at a resource beyond scopes, None for no limit of its own."""
        found = self._described.get(uri)
        return None if found is None else found.details

    def scopes(self, uri: str) -> frozenset[str] | None:
        """The most that may be asked for at a resource, None for no limit of its own."""
        found = self._described.get(uri)
        return None if found is None else found.scopes


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one identity.

    `own_issuer` is the authority of this process, which is the directory of its own principals. `anchor` makes hop 0. `policy_now` is the policy as a plain function, None where it has to be asked of somebody. `nonces` are
    those of resources. `take_back` revokes a grant where the anchor is this identity's own.
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
    own_issuer: str | None = None

    def own_principal(self, principal: Principal) -> Principal:
        """A principal as the authority of this process names its own: without an issuer."""
        return own_principal(principal, self.own_issuer)


def own_principal(principal: Principal, own_issuer: str | None) -> Principal:
    """A principal of the directory `own_issuer` without its issuer, any other as it is."""
    if own_issuer is None or principal.iss != own_issuer:
        return principal
    return Principal(principal.sub, profile=principal.profile)


_REMEDY = (
    "call it within what was grant_details, or grant more when the session is opened or delegated"
)


def grant_details(
    limits: Limits, resources: Resources, audiences: frozenset[str]
) -> Details | None:
    """The details of a grant for these resources; None limits nothing.

    Raises:
        DeniedError: `details_not_granted` or `details_not_configured`.
    """
    configured = _configured_details(resources, audiences)
    if limits.details is None:
        return configured
    reached = audiences | {LOCAL}
    kept = limits.details.towards(reached)
    if kept is None:
        raise DeniedError(
            "details_not_granted",
            f"the authorization details of {limits.agent} say nothing of {min(audiences)}",
            remedy=_REMEDY,
        )
    if configured is None:
        return kept
    kept = kept.apart(reached)  # always, so that a child's objects are covered one by one as well
    if not configured.covers(kept):
        raise DeniedError(
            "details_not_configured",
            f"{min(audiences)} isn't configured for all that the session's authorization details allow",
            remedy="narrow the session's details, or widen those of the resource's configuration",
        )
    return kept


def check_call(
    limits: Limits, resources: Resources, tool: str, resource: str, arguments: bytes
) -> None:
    """Hold one call to the session's details and the resource's; `arguments` are its canonical bytes.

    Raises:
        DeniedError: `details_not_granted`; the message names the tool and no argument.
    """
    own, configured = limits.details, resources.details(resource)
    if own is None and configured is None:
        return
    seen: Mapping[str, JSON] = orjson.loads(arguments)
    in_force = [each for each in (own, configured) if each is not None]
    if not all(each.allows(tool, resource, seen) for each in in_force):
        raise DeniedError(
            "details_not_granted",
            f"{limits.agent} may not call {tool} with these arguments",
            remedy=_REMEDY,
        )


def check_credential(limits: Limits, resources: Resources, resource: str) -> None:
    """Hold a credential outside any tool to them: there is no call whose tool and arguments could be looked at.

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
                f"what may be done at {resource} depends on tool and arguments",
                remedy="use current_credential() inside a tool for that resource",
            )


def _configured_details(resources: Resources, audiences: frozenset[str]) -> Details | None:
    """The configured details of all these resources together; what has none of its own is named without a limit."""
    limited = {uri: found for uri in audiences if (found := resources.details(uri)) is not None}
    if not limited:
        return None
    free = sorted((audiences - limited.keys()) | {LOCAL})
    return details_from(_join_claims(limited.values(), free))


def _join_claims(limited: Iterable[Details], free: list[str]) -> Iterator[Mapping[str, JSON]]:
    for each in limited:
        yield from each.claim
    yield about([*free])
