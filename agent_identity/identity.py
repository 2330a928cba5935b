# SPDX-License-Identifier: Apache-2.0
"""An agent's identity: it assembles the parts, opens sessions, revokes, and traces who triggered what."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias

from agent_identity.assembly.configured import Settings, svids_of, transport_of
from agent_identity.assembly.embedded import Minted, assemble_embedded
from agent_identity.authority.store import open_store
from agent_identity.config import configuration_file, state_directory
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.principal_tokens import (
    SubjectTokens,
    TokenSource,
    tokens_of,
    verify_subject,
)
from agent_identity.delegation.details import pin_details
from agent_identity.delegation.limits import Limits
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import Draft, append, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.keys.private_files import make_private_directory
from agent_identity.keys.signing import SigningKey
from agent_identity.lifecycle import Revocations, read_reference
from agent_identity.lifecycle.pins import PINS, Pins
from agent_identity.policy.rules import as_policy, decide_now_of
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import AGENT_REGISTERED
from agent_identity.provenance.trace import Trace, trace_of
from agent_identity.runtime.handover import read_handover
from agent_identity.runtime.options import Options
from agent_identity.runtime.parts import Gate, Parts
from agent_identity.runtime.state import SessionState
from agent_identity.session import Session
from agent_identity.signers import MemorySigner
from agent_identity.uris import check_resource
from agent_identity.values import (
    LOCAL,
    Principal,
    agent_uri,
    check_phrase,
    scope_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path
    from types import TracebackType

    from agent_identity.assembly import Assembled
    from agent_identity.assembly.discovered import Registrant
    from agent_identity.authority import Authority
    from agent_identity.authority.store import Store
    from agent_identity.config import Configuration
    from agent_identity.credentials.source import Verified
    from agent_identity.flow import Flow
    from agent_identity.lifecycle import Revocation, RevocationStore
    from agent_identity.policy.rules import PolicyLike
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.runtime.parts import Resource
    from agent_identity.signers import Signer
    from agent_identity.values import JSON, Prompt
    from agent_identity.verify import VerifiedCall, Verifier

__all__ = ["AgentIdentity", "on_behalf_of"]

Described: TypeAlias = "Sequence[str] | AbstractSet[str] | Mapping[str, Any] | None"

_PROFILES: Final = ("user:", "service:", "trigger:")
_MADE_WITH: Final = (
    *("approver", "authority", "clock", "configuration", "key", "ledger", "name", "on_interaction"),
    *(
        "operator",
        "owner",
        "pins",
        "policy",
        "resources",
        "revocations",
        "shared",
        "signer",
        "state_dir",
    ),
)
_OPENED_WITH: Final = (
    *("authorization_details", "budget", "expires_in", "max_depth", "purpose"),
    *("scopes", "task", "trigger"),
)
_SETTLED: Final = {
    "public_jwk": "pass key= when the identity is made",
    **{name: f"pass {name}= when the identity is made" for name in _MADE_WITH},
    **{name: f"pass {name}= when a session is opened, on_behalf_of(…)" for name in _OPENED_WITH},
}
"""Attributes that users might try to set, and the remedy for each."""


class AgentIdentity:
    """The identity of one agent in this process: its key, issuers, resources, policy and ledger.

    Thread-safe, fork-safe, usable from several event loops. A context manager; `close()` flushes and releases.
    """

    def __init__(
        self,
        name: str,
        *,
        ledger: Ledger,
        authority: Authority | None = None,
        configuration: Configuration | None = None,
        signer: Signer | SigningKey | None = None,
        key: SigningKey | None = None,
        policy: PolicyLike | None = None,
        resources: Mapping[str, Described] | None = None,
        owner: str | None = None,
        operator: SigningKey | None = None,
        revocations: RevocationStore | None = None,
        pins: Pins | None = None,
        on_interaction: Callable[[Prompt], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Make an identity from its parts; `embedded` and `from_config` use the usual ones.

        `authority` is an authority in this process; without it, `configuration` names the issuers, and `signer` signs the first
        grants if no issuer does. `key` is the agent's key, by default a new one. `resources` maps a resource's URI to the
        scopes that it is limited to; None is no limit. `operator` is the key that lets this process revoke more than the
        agent's own sessions and grants; with an `authority`, it isn't needed. `revocations` stores the revocations, by default
        the authority's store, or memory. `pins` are the accepted definitions of MCP servers' tools, by default in memory.

        Raises:
            ConfigurationError: there is neither an authority nor a configuration, or `owner` is too long.
        """
        from agent_identity.http.surroundings import Surroundings  # noqa: PLC0415 - httpx loads on first use
        from agent_identity.http.world import World  # noqa: PLC0415 - see above

        decider = as_policy(policy)
        self._name = name
        self._ledger = ledger
        self._authority = authority
        self._configuration = configuration
        uri = configuration.agent.id if configuration and configuration.agent.id else name
        self._agent = Agent(agent_uri(uri), key)
        owner = owner or (configuration.agent.owner if configuration else None)
        self._owner = None if owner is None else check_phrase("owner", owner)
        self._clock = clock
        self._settings = Settings.of(configuration)
        if isinstance(signer, SigningKey):
            signer = MemorySigner(signer)
        self._assembled = self._assemble(signer, resources or {})
        self._is_operator = authority is not None or operator is not None
        self._own_store: Store | None = None
        if revocations is None and authority is not None:
            revocations = authority.store
        elif revocations is None:
            revocations = self._own_store = open_store(None)
        gate = Gate(ledger)
        self._parts = Parts(
            agent=self._agent,
            anchor=self._assembled.anchor,
            policy=decider,
            policy_now=decide_now_of(decider),
            world=World(
                lambda: transport_of(self._settings),
                ledger,
                surroundings=Surroundings(
                    on_interaction=on_interaction, svids=svids_of(configuration)
                ),
                clock=clock,
                deadline=self._settings.deadline,
            ),
            ledger=ledger,
            gate=gate,
            revocations=Revocations(
                revocations,
                ledger,
                own_issuer=None if authority is None else authority.issuer,
                wait_for_beginnings=gate.wait_for_beginnings,
                clock=clock,
            ),
            own_issuer=None if authority is None else authority.issuer,
            resources=self._assembled.resources,
            clock=clock,
            grant_lifetime=self._settings.grant_lifetime,
            header_limit=self._settings.header_limit,
            take_back=None
            if authority is None
            else lambda jti, ends: authority.revoke(jti, ends=ends),
            pins=pins or Pins(None, clock=clock),
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
        on_interaction: Callable[[Prompt], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Make an identity with its own authority in this process, and a SQLite ledger: no account, no network.

        Keys and ledger are stored in `state_dir` (default: the user's state directory), files 0600 in a folder 0700. `ledger`
        is a URL (`memory:`, `sqlite:…`) or an object. `resources` maps a resource's URI to the scopes that it is limited to, as
        a list or as `{"scopes": […]}`. `on_interaction` shows a person what to do. This version has no approvers, and no
        `shared` store but `memory:`.

        Raises:
            ConfigurationError: the state directory can't be used or isn't private, or an argument isn't supported.
        """
        _check_supported(approver, shared)
        decider = as_policy(policy)  # raises before a folder, a key or a file is made
        from agent_identity.authority import Authority  # noqa: PLC0415 - loads on first use

        directory = state_directory(state_dir)
        return cls(
            name,
            authority=Authority(directory / "authority", clock=clock),
            ledger=_open_ledger(ledger or "sqlite:", directory, clock),
            policy=decider,
            resources=resources,
            pins=Pins(directory / PINS, clock=clock),
            on_interaction=on_interaction,
            clock=clock,
        )

    @classmethod
    def from_config(
        cls,
        path: str | Path | None = None,
        *,
        state_dir: str | Path | None = None,
        policy: PolicyLike | None = None,
        approver: object = None,
        ledger: str | Ledger | None = None,
        shared: str | None = None,
        signer: Signer | None = None,
        on_interaction: Callable[[Prompt], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Make the identity that `agent-identity.toml` describes; by default, the file that `AGENT_IDENTITY_CONFIG` names.

        `state_dir` is the folder for keys and ledger, by default the user's state directory. The keywords are those of
        `embedded`, and override the file. `signer` holds the key of first grants, if the file can't name it. No issuer is
        contacted yet.

        Raises:
            ConfigurationError: no file is named, or the file has problems, which are all listed.
        """
        from agent_identity.assembly.keys import first_signer, referenced_key, uses_authority  # noqa: PLC0415 - loads only for a file
        from agent_identity.config import References, read_configuration  # noqa: PLC0415 - loads pydantic

        _check_supported(approver, shared)
        decider = None if policy is None else as_policy(policy)
        configuration = read_configuration(path, needs_policy=policy is None)
        directory = state_directory(state_dir)
        table = configuration.agent
        authority = None
        if signer is None and uses_authority(configuration):
            from agent_identity.authority import Authority  # noqa: PLC0415 - see `embedded`

            authority = Authority(directory / "authority", clock=clock)
        if signer is not None and table.grants is not None:
            raise ConfigurationError(
                "value_conflict",
                "both agent.grants and signer say where the first grant comes from",
                remedy="leave agent.grants out, or pass no signer",
            )
        operator = configuration.operator.key
        store = None if authority else open_store(make_private_directory(directory / "authority"))
        identity = cls(
            table.name or table.id or "agent",
            authority=authority,
            configuration=configuration,
            operator=None
            if operator is None
            else referenced_key(References(), operator, "operator.key"),
            revocations=store,
            signer=signer or first_signer(configuration, directory),
            key=None if table.key is None else referenced_key(References(), table.key, "agent.key"),
            ledger=_open_ledger(
                ledger or configuration.ledger.url,
                directory,
                clock,
                configuration.ledger.durability,
            ),
            policy=decider,
            pins=Pins(directory / PINS, required=configuration.mcp.pins == "required", clock=clock),
            on_interaction=on_interaction,
            clock=clock,
        )
        identity._own_store = store  # closed with the identity
        return identity

    @property
    def name(self) -> str:
        """The name that was passed when the identity was made."""
        return self._name

    @property
    def ledger(self) -> Ledger:
        """The ledger that records everything."""
        return self._ledger

    @property
    def authority(self) -> Authority:
        """The authority of this process.

        Raises:
            ConfigurationError: `no_authority`, this identity uses the configured issuers.
        """
        if self._authority is None:
            raise ConfigurationError(
                "no_authority",
                "this identity has no authority of its own; it uses the configured issuers",
                remedy="use AgentIdentity.embedded(…) for one with an authority",
            )
        return self._authority

    @property
    def public_jwk(self) -> dict[str, str]:
        """The public half of the agent's key in this process."""
        return dict(self._agent.key.public_jwk)

    def on_behalf_of(
        self,
        subject: str | Principal | SubjectTokens | TokenSource,
        *,
        purpose: str,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        authorization_details: Iterable[Mapping[str, JSON]] | None = None,
        expires_in: float | None = None,
        max_depth: int = 3,
        budget: object = None,
    ) -> Session:
        """Open a session for a principal. Enter it with `with` or `async with`, which verifies the principal's token first.

        `subject` is the token, `SubjectTokens`, or a `TokenSource` that supplies fresh tokens. With the embedded authority,
        which has its own directory of principals, it is their name (`user:alice`). `purpose` is a short sentence that each
        resource in the chain can read, so put no personal data in it. `task` describes the task of the first agent. Each is one
        line of at most 200 characters. `scopes` and `resources` limit the session (None is no limit, `()` is nothing),
        `expires_in` is in seconds, and `max_depth` is how many delegations may follow. `authorization_details` (RFC 9396, type
        `urn:agent-identity:tool`) limit which tools may be called with which arguments.

        Raises:
            ConfigurationError: an argument can't be used.
            DeniedError: `identity_closed`.
        """
        options = Options.read(
            task=task,
            scopes=scopes,
            resources=resources,
            authorization_details=authorization_details,
            expires_in=expires_in,
            max_depth=max_depth,
            budget=budget,
        )
        if self._authority is not None:
            return Session(
                self._make_state(self._read_principal(subject), purpose, options, "issuer")
            )
        if isinstance(subject, Principal) or (
            isinstance(subject, str) and subject.startswith(_PROFILES)
        ):
            raise ConfigurationError(
                "principal_unproven",
                "on_behalf_of was given the principal's name, and the configured issuers need their token",
                remedy="pass the principal's token to on_behalf_of, or SubjectTokens(…)",
            )
        tokens = tokens_of(_check_subject(subject))

        def verify() -> Flow[Verified]:
            return verify_subject(tokens, self._assembled.trusted, agent=self._agent.uri)

        return Session(self._make_state(None, purpose, options, "issuer", verify=verify))

    def autonomous(
        self,
        *,
        trigger: str,
        purpose: str,
        task: str | None = None,
        scopes: Iterable[str] | None = None,
        resources: Iterable[str] | None = None,
        authorization_details: Iterable[Mapping[str, JSON]] | None = None,
        expires_in: float | None = None,
        max_depth: int = 3,
        budget: object = None,
    ) -> Session:
        """Open a session for an unattended run: `trigger` (`cron:nightly-close`, a webhook's id) is the root of its chain.

        No principal is verified, so the evidence is `agent`, which a service has to accept explicitly.

        Raises:
            ConfigurationError: an argument can't be used; a trigger is one line of at most 200 characters.
            DeniedError: `identity_closed`.
        """
        options = Options.read(
            task=task,
            scopes=scopes,
            resources=resources,
            authorization_details=authorization_details,
            expires_in=expires_in,
            max_depth=max_depth,
            budget=budget,
        )
        check_phrase(
            "trigger", trigger, remedy="name what started the run, for example cron:nightly-close"
        )
        principal = Principal(trigger, iss=self._agent.uri, profile="trigger")
        return Session(self._make_state(principal, purpose, options, "agent", trigger=trigger))

    def accept(self, call: VerifiedCall) -> Session:
        """Open the session that another process handed over to this agent's key. Enter it with `with` or `async with`.

        It has the sender's principal, purpose and transaction, one hop deeper, with the limits and the expiry of the hand-over.
        `call` is the result of a `Verifier` for the request with the hand-over.

        Raises:
            ConfigurationError: `call` isn't a verified call.
            InvalidAssertionError: the call has no hand-over, or one for another key (`handover_key`) or an expired one.
            DeniedError: `identity_closed`.
        """
        self._parts.gate.check_open()
        jkt, now = self._agent.key.thumbprint, self._clock()
        handover = read_handover(call, jkt=jkt, now=now)
        leaf, root = handover.grants[0], handover.grants[-1]
        agent = self._agent if leaf.agent == self._agent.uri else Agent(leaf.agent, self._agent.key)
        state = SessionState(
            self._parts,
            Principal(leaf.sub, iss=leaf.sub_iss, profile=leaf.sub_profile),
            agent=agent,
            parent=None,
            purpose=leaf.purpose,
            task=leaf.task,
            limits=Limits(leaf.agent, leaf.scopes, leaf.aud - {LOCAL}, leaf.details),
            expires_at=min(leaf.exp, now + self._settings.session_lifetime),
            max_depth=leaf.max_depth,
            evidence=root.evidence or "asserted",
            trigger=leaf.sub if leaf.sub_profile == "trigger" else None,
            accepted=handover,
        )
        return Session(state)

    def _read_principal(self, subject: str | Principal | SubjectTokens | TokenSource) -> Principal:
        """Read the name of a principal of the embedded authority's own directory."""
        if not isinstance(subject, str | Principal):
            _check_subject(subject)
            raise ConfigurationError(
                "no_issuer_trusted",
                "no configured issuer is trusted to name principals, so their tokens can't be verified",
                remedy='add an issuer with trust = ["subjects"], or pass the principal\'s name, for example "user:alice"',
            )
        principal = Principal.parse(subject) if isinstance(subject, str) else subject
        if principal.iss not in (None, self.authority.issuer):
            raise ConfigurationError(
                "foreign_principal",
                "the principal belongs to another issuer, not to the embedded authority's directory",
                remedy='name the principal without an issuer, for example "user:alice"',
            )
        if principal.profile == "trigger":
            raise ConfigurationError(
                "trigger_principal",
                "on_behalf_of was given a trigger, which isn't a user or service",
                remedy="use autonomous(trigger=…)",
            )
        # Policy and ledger have one spelling for each principal: those of the own directory have no issuer.
        return Principal(principal.sub, profile=principal.profile)

    def _make_state(
        self,
        principal: Principal | None,
        purpose: str,
        options: Options,
        evidence: str,
        *,
        trigger: str | None = None,
        verify: Callable[[], Flow[Verified]] | None = None,
    ) -> SessionState:
        self._parts.gate.check_open()
        check_phrase("purpose", purpose)
        return SessionState(
            self._parts,
            principal,
            agent=self._agent,
            parent=None,
            purpose=purpose,
            task=options.task,
            limits=Limits(self._agent.uri, options.scopes, options.resources, options.details),
            expires_at=self._clock() + options.lifetime(self._settings.session_lifetime),
            max_depth=min(options.max_depth, self._settings.max_depth),
            evidence=evidence,
            trigger=trigger,
            verify=verify,
        )

    def revoke(self, ref: str | Session | Principal, *, reason: str) -> Revocation:
        """Revoke a principal, session, grant, agent or everything (`"*"`), with all sessions and grants below it.

        It takes effect in this process at once: after this returns, no call under it starts, and its cached credentials are
        dropped. Other processes that share the state directory follow within a second. Everything issued until now stays
        revoked; after `reinstate`, new work may begin. `ref` is `user:alice`, `user:<iss>#<sub>`, a session or its id, a
        grant's `jti`, `agent:NAME` or an agent's URI. `reason` is one line of at most 200 characters, and is recorded.

        Raises:
            ConfigurationError: `reference_malformed`; `reference_unknown`, the ledger doesn't know the session or grant.
            DeniedError: `operator_required`, the reference isn't the agent's own, and this process has no operator's key.
        """
        self._parts.gate.check_open()
        text = ref.id if isinstance(ref, Session) else str(ref)
        self._check_operator(text)
        return self._parts.revocations.revoke(text, reason=reason, by=self._agent.uri)

    async def arevoke(self, ref: str | Session | Principal, *, reason: str) -> Revocation:
        """The async twin of `revoke`."""
        return await asyncio.shield(asyncio.to_thread(self.revoke, ref, reason=reason))

    def reinstate(self, ref: str | Principal, *, reason: str | None = None) -> Revocation:
        """Allow new work under a revoked reference from the next second on. Everything issued before stays revoked.

        Raises:
            ConfigurationError: `reference_malformed`; `not_revoked`.
            DeniedError: `operator_required`, this process has no operator's key.
        """
        self._parts.gate.check_open()
        if not self._is_operator:
            raise _operator_required("reinstating")
        return self._parts.revocations.reinstate(str(ref), reason=reason, by=self._agent.uri)

    async def areinstate(self, ref: str | Principal, *, reason: str | None = None) -> Revocation:
        """The async twin of `reinstate`."""
        return await asyncio.shield(asyncio.to_thread(self.reinstate, ref, reason=reason))

    def _check_operator(self, ref: str) -> None:
        """Check that this process has an operator's key, or that the reference is the agent or one of its sessions and grants."""
        reference = read_reference(ref)
        if self._is_operator or reference == ("agent", self._agent.uri):
            return
        own = reference.kind in ("session", "grant", "token")
        if not (own and self._parts.revocations.is_known(reference)):
            raise _operator_required("revoking more than this agent's own sessions and grants")

    def who_triggered(self, ref: str | Session) -> Trace:
        """Trace who asked for something, through which agents, for which purpose, by which policy, and how it ended.

        `ref` is a session, or the id of a call, session, trace or span, the model's tool call id, or any `jti` or `txn`.

        Raises:
            LedgerError: `unknown_reference`.
        """
        reference = ref.id if isinstance(ref, Session) else ref
        from agent_identity.provenance.signatures import SignatureCheck  # noqa: PLC0415 - loads on first use

        unknown = self._parts.gate.unknown
        return trace_of(self.ledger, reference, check=SignatureCheck(self.ledger), unknown=unknown)

    async def awho_triggered(self, ref: str | Session) -> Trace:
        """The async twin of `who_triggered`."""
        return await asyncio.to_thread(self.who_triggered, ref)

    def verifier(self, audience: str) -> Verifier:
        """Make a verifier for the service `audience` that trusts the signer of this identity's first grants.

        If that is this identity's own authority, the verifier sees new keys and revocations at once. If it is a `signer`, the
        verifier has its current keys and no revocations: a signer doesn't publish any, so its grants are accepted until they
        expire.

        Raises:
            ConfigurationError: `anchor_keys`, another issuer signs them; make a `Verifier` with that issuer's keys.
            CredentialError: see `jwks`.
        """
        return self._make_verifier(audience, None if self._authority else self.jwks())

    async def averifier(self, audience: str) -> Verifier:
        """The async twin of `verifier`."""
        return self._make_verifier(audience, None if self._authority else await self.ajwks())

    def _make_verifier(self, audience: str, keys: dict[str, JSON] | None) -> Verifier:
        from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier  # noqa: PLC0415 - loads on first use

        own = self._authority
        anchor = TrustAnchor(
            self._assembled.anchor.name,
            jwks=keys if own is None else own.jwks,
            revocations=UnsafeNoRevocations() if own is None else own,
            evidence="issuer",
            subjects=[*self._assembled.trusted],
        )
        return Verifier([anchor], audience=audience, clock=self._clock)

    def jwks(self) -> dict[str, JSON]:
        """The public keys that verify this identity's first grants, as a JWK set. A remote signer is asked for its keys.

        Raises:
            ConfigurationError: `anchor_keys`, another issuer signs them, and publishes its own keys.
            CredentialError: the signer refused, or could not be reached.
        """
        if self._authority is not None:
            return self._authority.jwks()
        keys = run(self._assembled.anchor.keys(), self._parts.world.answer)
        return {"keys": [*keys]}

    async def ajwks(self) -> dict[str, JSON]:
        """The async twin of `jwks`."""
        if self._authority is not None:
            return self._authority.jwks()
        keys = await arun(self._assembled.anchor.keys(), self._parts.world.aanswer)
        return {"keys": [*keys]}

    def close(self) -> None:
        """Flush the ledger, and close connections and files.

        From now on calls, credentials and sessions are refused (`identity_closed`), also in sessions that are still open.
        """
        self._parts.revocations.stop()
        self._parts.gate.close()
        self._parts.world.close()
        self.ledger.close()
        if self._authority is not None:
            self._authority.close()
        if self._own_store is not None:
            self._own_store.close()

    async def aclose(self) -> None:
        """The async twin of `close`."""
        closing = asyncio.get_running_loop().run_in_executor(None, self.close)
        await asyncio.shield(closing)  # its thread goes on even if this task is cancelled
        await self._parts.world.aclose()

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

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse to set an argument after the identity was made, which would have no effect on its sessions.

        Raises:
            ConfigurationError: `attribute_settled`.
        """
        if name in _SETTLED:
            raise ConfigurationError(
                "attribute_settled",
                f"{name} of an identity can't be set after it was made",
                remedy=_SETTLED[name],
            )
        super().__setattr__(name, value)

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("an AgentIdentity can't be pickled or copied")

    def __repr__(self) -> str:
        return f"<AgentIdentity {self._agent.uri}>"

    def _assemble(self, signer: Signer | None, described: Mapping[str, Described]) -> Assembled:
        configuration = self._configuration
        minted = {
            check_resource(uri): _read_description(uri, value) for uri, value in described.items()
        }
        if configuration is None:
            return self._with_authority(minted, {})
        from agent_identity.assembly import configured  # noqa: PLC0415 - loads only for a file

        secrets = configured.secrets_of(configuration, self._clock)
        registrant = self._registrant()
        if self._authority is not None:
            return self._with_authority(
                minted | configured.minted_resources(configuration),
                configured.other_resources(configuration, secrets, registrant, self._clock),
            )
        return configured.assemble(
            configuration,
            secrets,
            registrant=registrant,
            signer=signer,
            clock=self._clock,
        )

    def _with_authority(
        self, minted: Mapping[str, Minted], elsewhere: Mapping[str, Resource]
    ) -> Assembled:
        if self._authority is None:
            raise ConfigurationError(
                "no_issuer",
                "the identity has neither an authority of its own nor a configuration that names issuers",
                remedy="use AgentIdentity.embedded(…) or AgentIdentity.from_config(…)",
            )
        from agent_identity.authority.own_client import OwnClient  # noqa: PLC0415 - see `embedded`

        client = OwnClient(
            self._authority,
            name=self.name,
            agent=self._agent,
            owner=self._owner,
            record=self._record_registration,
        )
        return assemble_embedded(
            client,
            minted=minted,
            described=elsewhere,
            discovered=self._discover,
            clock=self._clock,
        )

    def _discover(self, uri: str) -> Resource:
        """Make a resource whose metadata names its issuer."""
        from agent_identity.assembly.secrets import Secrets  # noqa: PLC0415 - see `_assemble`
        from agent_identity.assembly.sources import discovered_resource  # noqa: PLC0415 - see `_assemble`

        secrets = Secrets(None, self._clock)
        return discovered_resource(uri, secrets, self._registrant(), self._clock)

    def _registrant(self) -> Registrant:
        from agent_identity.assembly.discovered import Registrant  # noqa: PLC0415 - see `_assemble`

        return Registrant(self.name, self._agent, self._owner, self._record_registration)

    def _record_registration(self) -> Flow[None]:
        yield from append(
            Draft(
                AGENT_REGISTERED,
                {
                    "agent": self._agent.uri,
                    "instance": self._agent.key.thumbprint,
                    "owner": self._owner,
                },
            )
        )

    def start_over(self) -> None:
        """In a forked child process, make new keys now, and new grants and credentials at first use."""
        self._agent.renew()
        self._parts.nonces.forget()
        self._parts.gate.start_over()
        for issuer in self._assembled.issuers.values():
            issuer.start_over()


def parts_of(identity: AgentIdentity) -> Parts:
    """The parts of an identity; for adapters."""
    return identity._parts  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - users have no use for them


def _operator_required(what: str) -> DeniedError:
    return DeniedError(
        "operator_required",
        f"{what} needs the operator's key",
        remedy='configure [operator] key = "file:…", or run `agent-identity revoke` where that key is',
    )


def _check_subject(subject: object) -> str | SubjectTokens | TokenSource:
    """Check that `subject` is a token of the principal, or a source of tokens.

    Raises:
        ConfigurationError: `subject_empty` or `subject_malformed`.
    """
    if isinstance(subject, str) and not subject:
        raise ConfigurationError(
            "subject_empty",
            "the principal's token is empty",
            remedy="pass the principal's token to on_behalf_of",
        )
    if isinstance(subject, str | SubjectTokens):
        return subject
    if isinstance(subject, TokenSource) and callable(subject.token):
        return subject
    if subject is None:
        raise ConfigurationError(
            "subject_malformed",
            "on_behalf_of was given None instead of the principal's token",
            remedy="pass the token of the user or service; for an unattended run, use autonomous(trigger=…)",
        )
    raise ConfigurationError(
        "subject_malformed",
        f"on_behalf_of was given a {type(subject).__qualname__}, not a principal or their token",
        remedy="pass a token as str, SubjectTokens(…), or an object with a method token(token_type); "
        'with the embedded authority, pass a name, for example "user:alice"',
    )


def _check_supported(approver: object, shared: str | None) -> None:
    if approver is not None or shared not in (None, "memory:"):
        raise ConfigurationError(
            "not_supported",
            "this version has no approvers and no shared stores",
            remedy="leave out approver and shared",
        )


def _open_ledger(
    ledger: str | Ledger,
    directory: Path,
    clock: Callable[[], float],
    durability: str = "process",
) -> Ledger:
    if not isinstance(ledger, str):
        return ledger
    return open_ledger(ledger, state_dir=directory, clock=clock, durability=durability)


def _read_description(uri: str, described: Described) -> Minted:
    """Read the description of a resource: its scopes and authorization details."""
    if not isinstance(described, Mapping):
        return Minted(None if described is None else scope_set(described))
    unknown = described.keys() - {"scopes", "authorization_details"}
    if unknown:
        raise ConfigurationError(
            "unknown_key",
            f"the description of {uri} has an unknown key {min(unknown)}",
            remedy="use scopes and authorization_details",
        )
    scopes = described.get("scopes")
    details = described.get("authorization_details")
    return Minted(
        scopes=None if scopes is None else scope_set(scopes),
        details=None if details is None else pin_details(details, uri),
    )


_identities: Final[dict[Path, AgentIdentity]] = {}
_lock = threading.Lock()


def on_behalf_of(
    subject: str | Principal | SubjectTokens | TokenSource,
    *,
    purpose: str,
    task: str | None = None,
    scopes: Iterable[str] | None = None,
    resources: Iterable[str] | None = None,
    authorization_details: Iterable[Mapping[str, JSON]] | None = None,
    expires_in: float | None = None,
    max_depth: int = 3,
    budget: object = None,
) -> Session:
    """Open a session of the identity that `AGENT_IDENTITY_CONFIG` configures. It never falls back to an embedded identity.

    Raises:
        ConfigurationError: `AGENT_IDENTITY_CONFIG` isn't set, or its configuration can't be used.
    """
    path = configuration_file()
    if path is None:
        raise ConfigurationError(
            "not_configured",
            "AGENT_IDENTITY_CONFIG doesn't name a configuration",
            remedy='use AgentIdentity.embedded("…").on_behalf_of(…), or set AGENT_IDENTITY_CONFIG',
        )
    return _find_identity(path).on_behalf_of(
        subject,
        purpose=purpose,
        task=task,
        scopes=scopes,
        resources=resources,
        authorization_details=authorization_details,
        expires_in=expires_in,
        max_depth=max_depth,
        budget=budget,
    )


def _find_identity(path: Path) -> AgentIdentity:
    """The identity of a file; it is made on first use, and closed when the program ends."""
    with _lock:
        identity = _identities.get(path)
        if identity is None:
            identity = _identities[path] = AgentIdentity.from_config(path)
            atexit.register(identity.close)
        return identity
