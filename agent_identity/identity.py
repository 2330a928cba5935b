# SPDX-License-Identifier: Apache-2.0
"""An agent's identity: puts the parts together, opens sessions, answers who triggered what."""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeAlias

from agent_identity.assembly.configured import Settings, svids_of, transport_of
from agent_identity.assembly.embedded import Minted, embedded
from agent_identity.authority.store import open_store
from agent_identity.config import configuration_file, state_directory
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.principal_tokens import (
    SubjectTokens,
    TokenSource,
    tokens_of,
    verify_subject,
)
from agent_identity.delegation.details import pinned
from agent_identity.delegation.limits import Limits
from agent_identity.errors import ConfigurationError, DeniedError
from agent_identity.flow import Draft, append, arun, run
from agent_identity.forks import start_over_in_child
from agent_identity.keys.private_files import private_directory
from agent_identity.keys.signing import SigningKey
from agent_identity.lifecycle import Revocations, read_reference
from agent_identity.policy.rules import as_policy, immediate
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.records import AGENT_REGISTERED
from agent_identity.provenance.trace import Trace, trace_of
from agent_identity.runtime.handover import read_handover
from agent_identity.runtime.options import Options
from agent_identity.runtime.parts import Gate, Parts
from agent_identity.runtime.state import SessionState
from agent_identity.session import Session
from agent_identity.signers import MemorySigner
from agent_identity.uris import checked_resource
from agent_identity.values import (
    LOCAL,
    Principal,
    agent_uri,
    checked_phrase,
    scope_set,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path
    from types import TracebackType

    from agent_identity.assembly import Assembled
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
    *("operator", "owner", "policy", "resources", "revocations", "shared", "signer", "state_dir"),
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
"""What looks as if it could be set at an identity, and where it is given instead."""


class AgentIdentity:
    """The identity of one agent in this process: its key, what it may ask of whom, its policy, its ledger.

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
        on_interaction: Callable[[Prompt], object] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Put an identity together from parts; `embedded` and `from_config` do it with the usual ones.

        `authority` is the one of this process; without it `configuration` says which issuers there are, and `signer` is what
        signs first grants where none of them does. `key` is the agent's own, by default made here. `resources` maps a
        resource's URI to the most scopes that may be asked for there; None is no limit of its own. `operator` is the key by which
        this process may revoke what isn't the agent's own; with an authority of its own it needs none. `revocations` is where those
        are kept, by default with the authority, else in memory.

        Raises:
            ConfigurationError: there is neither an authority nor a configuration; or `owner` isn't one line of 200 characters.
        """
        from agent_identity.http.surroundings import Surroundings  # noqa: PLC0415 - httpx stays out of the import
        from agent_identity.http.world import World  # noqa: PLC0415 - see above

        decider = as_policy(policy)
        self._name = name
        self._ledger = ledger
        self._authority = authority
        self._configuration = configuration
        uri = configuration.agent.id if configuration and configuration.agent.id else name
        self._agent = Agent(agent_uri(uri), key)
        named = owner or (configuration.agent.owner if configuration else None)
        self._owner = None if named is None else checked_phrase("owner", named)
        self._clock = clock
        self._settings = Settings.of(configuration)
        held = MemorySigner(signer) if isinstance(signer, SigningKey) else signer
        self._assembled = self._assemble(held, resources or {})
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
            policy_now=immediate(decider),
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
        """An identity with an authority of its own in this process, and a SQLite ledger: no account, no network.

        Keys and ledger are kept under `state_dir` (default: the user's state directory), files 0600 in a folder 0700.
        `ledger` is a URL (`memory:`, `sqlite:…`) or an object. `resources` describes resources by their URI: the most scopes
        that may be asked for there, as a list or as `{"scopes": […]}`. `on_interaction` shows a person what to do.
        Approvers and a `shared` store other than `memory:` aren't part of this version.

        Raises:
            ConfigurationError: the state directory can't be used, or isn't private; or one of those was asked for.
        """
        _check_supported(approver, shared)
        decider = as_policy(policy)  # before a folder, a key or a file is made
        from agent_identity.authority import Authority  # noqa: PLC0415 - loads what serves, only where it is used

        directory = state_directory(state_dir)
        return cls(
            name,
            authority=Authority(directory / "authority", clock=clock),
            ledger=_open_ledger(ledger or "sqlite:", directory, clock),
            policy=decider,
            resources=resources,
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
        """The identity that `agent-identity.toml` describes; without a path, the file that `AGENT_IDENTITY_CONFIG` names.

        `state_dir` is where keys and ledger are kept, by default the user's state directory.
        The keywords go before what the file says, and are those of `embedded`; `signer` holds the key of first grants where the
        file can't name its place. Nothing is asked of any issuer yet.

        Raises:
            ConfigurationError: no file is named, or what is wrong with it, all at once.
        """
        from agent_identity.assembly.keys import first_signer, referenced_key, uses_authority  # noqa: PLC0415 - for those who have a file
        from agent_identity.config import References, read_configuration  # noqa: PLC0415 - pydantic, likewise

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
                "the first grant comes from an issuer or from a signer",
                remedy="leave agent.grants out, or pass no signer",
            )
        operator = configuration.operator.key
        kept = None if authority else open_store(private_directory(directory / "authority"))
        identity = cls(
            table.name or table.id or "agent",
            authority=authority,
            configuration=configuration,
            operator=None
            if operator is None
            else referenced_key(References(), operator, "operator.key"),
            revocations=kept,
            signer=signer or first_signer(configuration, directory),
            key=None if table.key is None else referenced_key(References(), table.key, "agent.key"),
            ledger=_open_ledger(
                ledger or configuration.ledger.url,
                directory,
                clock,
                configuration.ledger.durability,
            ),
            policy=decider,
            on_interaction=on_interaction,
            clock=clock,
        )
        identity._own_store = kept  # closed with the identity
        return identity

    @property
    def name(self) -> str:
        """What the agent was named when its identity was made."""
        return self._name

    @property
    def ledger(self) -> Ledger:
        """Where everything is recorded."""
        return self._ledger

    @property
    def authority(self) -> Authority:
        """The authority of this process.

        Raises:
            ConfigurationError: `no_authority`, other issuers are configured.
        """
        if self._authority is None:
            raise ConfigurationError(
                "no_authority",
                "this identity has no authority of its own, its configuration names issuers",
                remedy="ask those, or use AgentIdentity.embedded(…)",
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
        """A session for a principal: enter it with `with` or `async with`, which verifies their token first.

        `subject` is their token, `SubjectTokens`, or a `TokenSource` that keeps fresh ones; with the embedded authority, which
        is a directory of its own principals, their name (`user:alice`).
        `purpose` is one short sentence that every resource on the way can read, so no personal data; `task` says what the first
        agent is to do. Each is one line of at most 200 characters.
        `scopes` and `resources` limit the session (None = no limit of its own, `()` = nothing), `expires_in` is seconds,
        `max_depth` how many delegations may follow. `authorization_details` (RFC 9396, type `urn:agent-identity:tool`) say which tools
        may be called with which arguments.

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
                "a name proves nothing where other issuers are configured",
                remedy="give on_behalf_of their token, or SubjectTokens(…)",
            )
        given = tokens_of(_check_subject(subject))

        def verify() -> Flow[Verified]:
            return verify_subject(given, self._assembled.trusted, agent=self._agent.uri)

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
        """A session for an unattended run: `trigger` (`cron:nightly-close`, a webhook's id) is the root of its chain.

        No principal was verified, so its evidence is `agent`, which a service accepts only if it says so.

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
        checked_phrase(
            "trigger", trigger, remedy="name what set the run off, for instance cron:nightly-close"
        )
        principal = Principal(trigger, iss=self._agent.uri, profile="trigger")
        return Session(self._make_state(principal, purpose, options, "agent", trigger=trigger))

    def accept(self, call: VerifiedCall) -> Session:
        """The session that a verified call hands over to this agent's key: enter it with `with` or `async with`.

        Principal, purpose and transaction are those of the sender, one hop deeper; what it may do and until when is what was handed
        over. `call` is what a `Verifier` returned for the request that brought it.

        Raises:
            ConfigurationError: that is no verified call.
            InvalidAssertionError: it hands nothing over, or to another key (`handover_key`), or its time is over.
            DeniedError: `identity_closed`.
        """
        self._parts.gate.check_open()
        jkt, now = self._agent.key.thumbprint, self._clock()
        handover = read_handover(call, jkt=jkt, now=now)
        leaf, root = handover.grants[0], handover.grants[-1]
        named = self._agent if leaf.agent == self._agent.uri else Agent(leaf.agent, self._agent.key)
        state = SessionState(
            self._parts,
            Principal(leaf.sub, iss=leaf.sub_iss, profile=leaf.sub_profile),
            agent=named,
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
        """A principal of the embedded authority's own directory."""
        if not isinstance(subject, str | Principal):
            _check_subject(subject)
            raise ConfigurationError(
                "no_issuer_trusted",
                "no issuer is configured whose tokens about principals could be verified",
                remedy='add one with trust = ["subjects"], or name the principal, for instance "user:alice"',
            )
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
        checked_phrase("purpose", purpose)
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
        """End a principal, session, grant, agent or everything (`"*"`), and all below it, for good.

        In this process it takes effect at once: when this returns, nothing of it starts any more, and cached credentials serve nobody.
        Other processes that share the state directory follow within a second. What was issued until now stays ended; `reinstate`
        lets later work begin. `ref` is `user:alice`, `user:<iss>#<sub>`, a session or its id, a grant's `jti`, `agent:NAME` or an
        agent's URI. `reason` is one line of at most 200 characters, and goes into the record.

        Raises:
            ConfigurationError: `reference_malformed`; `reference_unknown`, a session or grant that the ledger doesn't know.
            DeniedError: `operator_required`, it isn't the agent's own, and this process holds no operator's key.
        """
        self._parts.gate.check_open()
        text = ref.id if isinstance(ref, Session) else str(ref)
        self._check_operator(text)
        return self._parts.revocations.revoke(text, reason=reason, by=self._agent.uri)

    async def arevoke(self, ref: str | Session | Principal, *, reason: str) -> Revocation:
        """The async twin of `revoke`."""
        return await asyncio.shield(asyncio.to_thread(self.revoke, ref, reason=reason))

    def reinstate(self, ref: str | Principal, *, reason: str | None = None) -> Revocation:
        """Let what is issued from the next second on begin again, for a reference that was revoked. What was issued before stays ended.

        Raises:
            ConfigurationError: `reference_malformed`; `not_revoked`.
            DeniedError: `operator_required`, this process holds no operator's key.
        """
        self._parts.gate.check_open()
        if not self._is_operator:
            raise _operator_required("reinstating")
        return self._parts.revocations.reinstate(str(ref), reason=reason, by=self._agent.uri)

    async def areinstate(self, ref: str | Principal, *, reason: str | None = None) -> Revocation:
        """The async twin of `reinstate`."""
        return await asyncio.shield(asyncio.to_thread(self.reinstate, ref, reason=reason))

    def _check_operator(self, ref: str) -> None:
        """An agent may revoke itself and what is below it."""
        reference = read_reference(ref)
        if self._is_operator or reference == ("agent", self._agent.uri):
            return
        own = reference.kind in ("session", "grant", "token")
        if not (own and self._parts.revocations.is_known(reference)):
            raise _operator_required("revoking what isn't this agent's own")

    def who_triggered(self, ref: str | Session) -> Trace:
        """Who asked for it, through which agents, for what, allowed by which rule, and how it ended.

        `ref` is a session, or the id of a call, session, trace or span, the model's tool call id, or any `jti` or `txn`.

        Raises:
            LedgerError: `unknown_reference`.
        """
        reference = ref.id if isinstance(ref, Session) else ref
        from agent_identity.provenance.signatures import SignatureCheck  # noqa: PLC0415 - for those who ask

        unknown = self._parts.gate.unknown
        return trace_of(self.ledger, reference, check=SignatureCheck(self.ledger), unknown=unknown)

    async def awho_triggered(self, ref: str | Session) -> Trace:
        """The async twin of `who_triggered`."""
        return await asyncio.to_thread(self.who_triggered, ref)

    def verifier(self, audience: str) -> Verifier:
        """A verifier for the service `audience` that trusts what this identity trusts: whoever signs its first grants.

        With an authority of its own it knows of each new key and each revocation at once. Of a signer it has the keys that there
        are now, and no revocations: nobody keeps any of a signer, whose grants are believed until they expire.

        Raises:
            ConfigurationError: `anchor_keys`, an issuer elsewhere signs them, whose keys a verifier has to be given.
            CredentialError: see `jwks`.
        """
        return self._make_verifier(audience, None if self._authority else self.jwks())

    async def averifier(self, audience: str) -> Verifier:
        """The async twin of `verifier`."""
        return self._make_verifier(audience, None if self._authority else await self.ajwks())

    def _make_verifier(self, audience: str, keys: dict[str, JSON] | None) -> Verifier:
        from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier  # noqa: PLC0415 - serves elsewhere

        # What this process's own authority has revoked or rotated is known here at once.
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
        """The public keys by which services check this identity's first grants, as a JWK set; a signer elsewhere is asked.

        Raises:
            ConfigurationError: `anchor_keys`, an issuer elsewhere signs them, and publishes its keys itself.
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
        """Flush and release what the identity holds.

        Calls, credentials and sessions are refused from here on (`identity_closed`), also those of sessions that are still open.
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
        await asyncio.shield(closing)  # it goes on in its thread, whoever is cancelled
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
        """Refuse what was settled when the identity was made: its sessions share it, and would not see another value.

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
            checked_resource(uri): _read_description(uri, value) for uri, value in described.items()
        }
        if configuration is None:
            return self._with_authority(minted, {})
        from agent_identity.assembly import configured  # noqa: PLC0415 - for those who have a file

        secrets = configured.secrets_of(configuration, self._clock)
        if self._authority is not None:
            return self._with_authority(
                minted | configured.minted_by(configuration),
                configured.described_by(configuration, secrets, self._clock),
            )
        return configured.configured(
            configuration,
            secrets,
            name=self.name,
            agent=self._agent,
            signer=signer,
            recorded=self._record_registration,
            clock=self._clock,
        )

    def _with_authority(
        self, minted: Mapping[str, Minted], elsewhere: Mapping[str, Resource]
    ) -> Assembled:
        if self._authority is None:
            raise ConfigurationError(
                "no_issuer",
                "an identity needs an authority of its own, or a configuration that names issuers",
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
        return embedded(client, minted=minted, described=elsewhere, clock=self._clock)

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
        """In a forked child: keys are made anew, and grants and credentials at their first use, under the same sessions."""
        self._agent.renew()
        self._parts.nonces.forget()
        self._parts.gate.start_over()
        for issuer in self._assembled.issuers.values():
            issuer.start_over()


def _operator_required(what: str) -> DeniedError:
    return DeniedError(
        "operator_required",
        f"{what} takes the operator's key",
        remedy='configure [operator] key = "file:…", or use `agent-identity revoke` where that key is',
    )


def _check_subject(given: object) -> str | SubjectTokens | TokenSource:
    """What a caller says about the principal, if it is anything that can hold their token.

    Raises:
        ConfigurationError: it isn't.
    """
    if isinstance(given, str) and not given:
        raise ConfigurationError(
            "subject_empty",
            "the principal's token is empty",
            remedy="give on_behalf_of their token",
        )
    if isinstance(given, str | SubjectTokens):
        return given
    if isinstance(given, TokenSource) and callable(given.token):
        return given
    if given is None:
        raise ConfigurationError(
            "subject_malformed",
            "on_behalf_of was given None, which names nobody to act for",
            remedy="give the token of the person who asked; where nobody asked, use autonomous(trigger=…)",
        )
    raise ConfigurationError(
        "subject_malformed",
        f"a {type(given).__qualname__} is no principal and no principal's token",
        remedy="give a token as text, SubjectTokens(…), or an object with a method token(token_type); "
        'with the embedded authority a name, for instance "user:alice"',
    )


def _check_supported(approver: object, shared: str | None) -> None:
    if approver is not None or shared not in (None, "memory:"):
        raise ConfigurationError(
            "not_supported",
            "approvers and shared stores aren't part of this version",
            remedy="leave out approver and shared",
        )


def _open_ledger(
    given: str | Ledger,
    directory: Path,
    clock: Callable[[], float],
    durability: str = "process",
) -> Ledger:
    if not isinstance(given, str):
        return given
    return open_ledger(given, state_dir=directory, clock=clock, durability=durability)


def _read_description(uri: str, described: Described) -> Minted:
    """A resource's description: the most scopes there, and what may be done beyond them."""
    if not isinstance(described, Mapping):
        return Minted(None if described is None else scope_set(described))
    foreign = described.keys() - {"scopes", "authorization_details"}
    if foreign:
        raise ConfigurationError(
            "unknown_key", f"a resource has no {min(foreign)}", remedy="describe it by scopes"
        )
    scopes = described.get("scopes")
    details = described.get("authorization_details")
    return Minted(
        scopes=None if scopes is None else scope_set(scopes),
        details=None if details is None else pinned(details, uri),
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
    """A session of the identity that `AGENT_IDENTITY_CONFIG` configures. It never falls back to an embedded one.

    Raises:
        ConfigurationError: nothing is configured, or what is can't be used.
    """
    path = configuration_file()
    if path is None:
        raise ConfigurationError(
            "not_configured",
            "AGENT_IDENTITY_CONFIG names no configuration",
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
    """One identity a file, made when it is first needed and closed when the program ends."""
    with _lock:
        found = _identities.get(path)
        if found is None:
            found = _identities[path] = AgentIdentity.from_config(path)
            atexit.register(found.close)
        return found
