# SPDX-License-Identifier: Apache-2.0
"""An agent's identity: puts the parts together, opens sessions, answers who triggered what."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeAlias

from agent_identity.config import configuration_file, state_directory
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.hop0 import IssuedGrants
from agent_identity.credentials.issuer import Issuer
from agent_identity.credentials.registration import InstanceRegistration
from agent_identity.credentials.subject import DirectorySubject
from agent_identity.credentials.token_exchange import TokenExchange
from agent_identity.credentials.token_types import JWT
from agent_identity.delegation.limits import Limits
from agent_identity.errors import ConfigurationError
from agent_identity.flow import Draft, append, pure
from agent_identity.forks import start_over_in_child
from agent_identity.parts import Gate, Parts, Resource, Resources
from agent_identity.policy.rules import as_policy, immediate
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import AGENT_REGISTERED
from agent_identity.provenance.trace import Trace, trace_of
from agent_identity.session import Session
from agent_identity.uris import checked_resource, origin, resource_set
from agent_identity.values import Principal, agent_uri, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path
    from types import TracebackType

    from agent_identity.authority import Authority
    from agent_identity.credentials.registration import Registered
    from agent_identity.flow import Flow
    from agent_identity.http.transport import Transport
    from agent_identity.policy.rules import PolicyLike
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.verify import Verifier

__all__ = ["AgentIdentity", "on_behalf_of"]

Described: TypeAlias = "Sequence[str] | AbstractSet[str] | Mapping[str, Iterable[str]]"

SESSION_LIFETIME: Final = 3600.0
PURPOSE_LIMIT: Final = 200
DEEPEST: Final = 7
"""A chain has eight hops at most, the root's among them."""


class AgentIdentity:
    """The identity of one agent in this process: its key, its authority, its policy, its ledger.

    Thread-safe, fork-safe, usable from several event loops. A context manager; `close()` flushes and releases.
    """

    def __init__(
        self,
        name: str,
        *,
        authority: Authority,
        ledger: Ledger,
        policy: PolicyLike | None = None,
        resources: Mapping[str, Described] | None = None,
        owner: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Put an identity together from parts; `AgentIdentity.embedded` does it with the usual ones.

        `resources` maps a resource's URI to the most scopes that may be asked for there; None is no limit of its own.
        """
        from agent_identity.http.world import World  # noqa: PLC0415 - httpx stays out of the import

        self.name = name
        self.authority = authority
        self.ledger = ledger
        self._agent = Agent(agent_uri(name))
        self._owner = owner
        self._issuer = Issuer(
            authority.issuer,
            clients=InstanceRegistration(
                name,
                self._agent,
                owner=owner,
                initial_token=lambda: pure(authority.registration_token()),
                recorded=self._registered,
            ),
            clock=clock,
        )
        decider = as_policy(policy)
        self._parts = Parts(
            agent=self._agent,
            anchor=IssuedGrants(self._issuer),
            policy=decider,
            policy_now=immediate(decider),
            world=World(self._transport, ledger, clock=clock),
            ledger=ledger,
            gate=Gate(ledger),
            resources=_minted_here(self._issuer, resources or {}),
            clock=clock,
        )
        start_over_in_child(self)

    @classmethod
    def embedded(
        cls,
        name: str,
        *,
        state_dir: str | Path | None = None,
        policy: PolicyLike | None = None,
        approver: object = None,
        ledger: str | Ledger | None = None,
        shared: str | None = None,
        resources: Mapping[str, Described] | None = None,
        on_interaction: object = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """An identity with an authority of its own in this process, and a SQLite ledger: no account, no network.

        Keys and ledger are kept under `state_dir` (default: the user's state directory), files 0600 in a folder 0700.
        `ledger` is a URL (`memory:`, `sqlite:…`) or an object. `resources` describes resources by their URI: the most scopes
        that may be asked for there, as a list or as `{"scopes": […]}`.
        Approvers, interactions and a `shared` store other than `memory:` aren't part of this version.

        Raises:
            ConfigurationError: the state directory can't be used, or isn't private; or one of those was asked for.
        """
        if approver is not None or on_interaction is not None or shared not in (None, "memory:"):
            raise ConfigurationError(
                "not_supported",
                "approvers, interactions and shared stores aren't part of this version",
                remedy="leave out approver, on_interaction and shared",
            )
        from agent_identity.authority import Authority  # noqa: PLC0415 - loads what serves, only where it is used

        directory = state_directory(state_dir)
        kept = ledger if ledger is not None and not isinstance(ledger, str) else None
        return cls(
            name,
            authority=Authority(directory / "authority", clock=clock),
            ledger=kept or open_ledger(str(ledger or "sqlite:"), state_dir=directory, clock=clock),
            policy=policy,
            resources=resources,
            clock=clock,
        )

    @property
    def public_jwk(self) -> dict[str, str]:
        """The public half of the agent's key in this process."""
        return dict(self._agent.key.public_jwk)

    def on_behalf_of(
        self,
        subject: str | Principal,
        *,
        purpose: str,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        expires_in: float | None = None,
        max_depth: int = 3,
        budget: object = None,
    ) -> Session:
        """A session for a principal: enter it with `with` or `async with`.

        `purpose` is one short sentence (at most 200 characters) that every resource on the way can read, so no personal data.
        `scopes` and `resources` limit the session (None = no limit of its own, `()` = nothing), `expires_in` is seconds,
        `max_depth` how many delegations may follow.

        Raises:
            ConfigurationError: an argument can't be used.
        """
        _check_budget(budget)
        principal = self._principal(subject)
        return self._session(
            principal, purpose, task, scopes, resources, expires_in, max_depth, "issuer", None
        )

    def autonomous(
        self,
        *,
        trigger: str,
        purpose: str,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        expires_in: float | None = None,
        max_depth: int = 3,
        budget: object = None,
    ) -> Session:
        """A session for an unattended run: `trigger` (`cron:nightly-close`, a webhook's id) is the root of its chain.

        No principal was verified, so its evidence is `agent`, which a service accepts only if it says so.
        """
        _check_budget(budget)
        principal = Principal(trigger, iss=self._agent.uri, profile="trigger")
        return self._session(
            principal, purpose, task, scopes, resources, expires_in, max_depth, "agent", trigger
        )

    def _principal(self, subject: str | Principal) -> Principal:
        principal = Principal.parse(subject) if isinstance(subject, str) else subject
        if principal.iss not in (None, self.authority.issuer):
            raise ConfigurationError(
                "foreign_principal",
                "the embedded authority is the directory of its own principals alone",
                remedy='name the principal without an issuer, for instance "user:alice"',
            )
        if principal.profile == "trigger":
            raise ConfigurationError(
                "trigger_principal",
                "a trigger is nobody to act for",
                remedy="use autonomous(trigger=…)",
            )
        # One spelling for each principal, in policy and ledger: its own directory's have no issuer.
        return Principal(principal.sub, profile=principal.profile)

    def _session(
        self,
        principal: Principal,
        purpose: str,
        task: str | None,
        scopes: Iterable[str] | None,
        resources: Iterable[str] | None,
        expires_in: float | None,
        max_depth: int,
        evidence: str,
        trigger: str | None,
    ) -> Session:
        if not purpose or len(purpose) > PURPOSE_LIMIT:
            raise ConfigurationError(
                "purpose", f"a purpose is one sentence of 1 to {PURPOSE_LIMIT} characters"
            )
        if not 0 <= max_depth <= DEEPEST:
            raise ConfigurationError("max_depth", f"max_depth is between 0 and {DEEPEST}")
        lifetime = SESSION_LIFETIME if expires_in is None else expires_in
        if not lifetime >= 1:
            raise ConfigurationError("expires_in", "expires_in is seconds, at least one")
        session = Session(
            self._parts,
            principal,
            agent=self._agent,
            parent=None,
            purpose=purpose,
            task=task,
            limits=Limits(
                self._agent.uri,
                None if scopes is None else scope_set(scopes),
                None if resources is None else resource_set(resources),
            ),
            expires_at=self._parts.clock() + min(lifetime, SESSION_LIFETIME),
            max_depth=max_depth,
            evidence=evidence,
            trigger=trigger,
        )
        session.subject = DirectorySubject(
            principal, self._agent, txn=session.txn, expires_at=session.expires_at
        )
        return session

    def who_triggered(self, ref: str | Session) -> Trace:
        """Who asked for it, through which agents, for what, allowed by which rule, and how it ended.

        `ref` is a session, or the id of a call, session, trace or span, the model's tool call id, or any `jti` or `txn`.

        Raises:
            LedgerError: `unknown_reference`.
        """
        reference = ref.id if isinstance(ref, Session) else ref
        from agent_identity.verify.records import SignatureCheck  # noqa: PLC0415 - for those who ask

        return trace_of(self.ledger, reference, check=SignatureCheck(self.ledger))

    async def awho_triggered(self, ref: str | Session) -> Trace:
        """The async twin of `who_triggered`."""
        return await asyncio.to_thread(self.who_triggered, ref)

    def verifier(self, audience: str) -> Verifier:
        """A verifier for the service `audience` that trusts what this identity trusts: its own authority."""
        from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier  # noqa: PLC0415 - serves elsewhere

        anchor = TrustAnchor(
            self.authority.issuer,
            jwks=self.authority.jwks(),
            revocations=UnsafeNoRevocations(),
            evidence="issuer",
        )
        return Verifier([anchor], audience=audience, clock=self._parts.clock)

    def close(self) -> None:
        """Flush and release what the identity holds. Calls of sessions that are still open are refused from here on."""
        self._parts.world.close()
        self.ledger.close()
        self.authority.close()

    async def aclose(self) -> None:
        """The async twin of `close`."""
        await self._parts.world.aclose()
        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("an AgentIdentity can't be pickled or copied")

    def __repr__(self) -> str:
        return f"<AgentIdentity {self._agent.uri}>"

    def _transport(self) -> Transport:
        from agent_identity.http.transport import Transport  # noqa: PLC0415 - httpx loads on first use

        return Transport({origin(self.authority.issuer): self.authority.handle})

    def _registered(self, found: Registered) -> Flow[None]:
        yield from append(
            Draft(
                AGENT_REGISTERED,
                None,
                None,
                None,
                None,
                None,
                None,
                {
                    "agent": self._agent.uri,
                    "instance": self._agent.key.thumbprint,
                    "owner": self._owner,
                },
                None,
            )
        )

    def start_over(self) -> None:
        """In a forked child: keys are made anew, and grants and credentials at their first use, under the same sessions."""
        self._agent.renew()
        self._parts.nonces.forget()
        self._issuer.start_over()


def _check_budget(budget: object) -> None:
    if budget is not None:
        raise ConfigurationError(
            "not_supported", "budgets aren't part of this version", remedy="leave out budget"
        )


def _minted_here(issuer: Issuer, described: Mapping[str, Described]) -> Resources:
    """Every resource gets its token from the embedded authority, those that are described too."""
    source = TokenExchange(issuer, actor="grant", names_principal=True, subject_types=(JWT,))

    def reached(uri: str, scopes: frozenset[str] | None = None) -> Resource:
        return Resource(uri, source, scopes, issuer=issuer)

    most = {checked_resource(uri): _most_scopes(value) for uri, value in described.items()}
    return Resources({uri: reached(uri, scopes) for uri, scopes in most.items()}, reached)


def _most_scopes(described: Described) -> frozenset[str] | None:
    """The most scopes that a resource's description allows."""
    scopes: Iterable[str] | None
    if isinstance(described, Mapping):
        foreign = described.keys() - {"scopes"}
        if foreign:
            raise ConfigurationError(
                "unknown_key", f"a resource has no {min(foreign)}", remedy="describe it by scopes"
            )
        scopes = described.get("scopes")
    else:
        scopes = described
    return None if scopes is None else scope_set(scopes)


def on_behalf_of(subject: str | Principal, *, purpose: str) -> NoReturn:  # noqa: ARG001 - the contract's names
    """A session of the identity that `AGENT_IDENTITY_CONFIG` configures. It never falls back to an embedded one.

    Raises:
        ConfigurationError: nothing is configured.
    """
    if configuration_file() is None:
        raise ConfigurationError(
            "not_configured",
            "AGENT_IDENTITY_CONFIG names no configuration",
            remedy='use AgentIdentity.embedded("…").on_behalf_of(…), or set AGENT_IDENTITY_CONFIG',
        )
    raise ConfigurationError(
        "config_unsupported",
        "this version reads no configuration file yet",
        remedy='use AgentIdentity.embedded("…").on_behalf_of(…)',
    )
