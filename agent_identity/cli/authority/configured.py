# SPDX-License-Identifier: Apache-2.0
"""`[authority]` as an authority: its clients, the identity providers whose principals they bring, the way to everybody's keys."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from agent_identity.assembly.configured import Settings, secrets_of, transport_of
from agent_identity.assembly.issuers import issuers_of
from agent_identity.authority import (
    Authority,
    ClientRecord,
    IdentityProvider,
    Organisation,
    configured_client,
)
from agent_identity.authority.client_proofs import (
    Certified,
    OwnAssertion,
    PlatformToken,
    SanDns,
    SanUri,
    SpiffeSvid,
    SubjectDn,
)
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.issuer_keys import IssuerKeys
from agent_identity.errors import ConfigurationError
from agent_identity.flow import pure, run
from agent_identity.http.world import World
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent_identity.authority.client_proofs import CertificateName, ClientProof
    from agent_identity.config import Configuration
    from agent_identity.config.model import AuthorityClientTable, AuthorityTable
    from agent_identity.flow import Flow

__all__ = ["organisations_authority", "world_of"]

T = TypeVar("T")


def organisations_authority(
    configuration: Configuration,
    state_dir: Path | None,
    url: str,
    clock: Callable[[], float] = time.time,
) -> Authority:
    """The authority that `[authority]` describes; `url` is where it listens. Nothing is asked of anybody yet.

    Raises:
        ConfigurationError: there is no such table, or the state directory can't be used.
    """
    table = configuration.authority
    if table is None:
        raise ConfigurationError("value_missing", "the configuration has no [authority]")
    world = world_of(configuration, clock)

    def drive(flow: Flow[T], /) -> T:
        return run(flow, world.answer)

    issuers = issuers_of(
        configuration,
        secrets_of(configuration, clock),
        name="authority",
        agent=Agent(agent_uri("authority")),
        recorded=lambda _: pure(None),
        clock=clock,
    )
    issuer = table.issuer or url
    return Authority(
        state_dir,
        issuer=issuer,
        clock=clock,
        organisation=Organisation(
            clients=_clients(table, configuration, issuers, clock),
            providers=_providers(configuration, issuers),
            audiences=table.audiences or (issuer,),
            drive=drive,
            registers=table.registration,
            requests_per_minute=table.rate,
        ),
    )


def world_of(configuration: Configuration, clock: Callable[[], float]) -> World:
    """What answers an authority's questions: keys and secrets, over HTTP and from their places."""
    settings = Settings.of(configuration)
    return World(
        lambda: transport_of(settings, {}),
        MemoryLedger(),  # nothing that an authority asks is recorded; the protocol wants one
        clock=clock,
        deadline=settings.deadline,
    )


def _providers(
    configuration: Configuration, issuers: Mapping[str, IssuerKeys]
) -> dict[str, IdentityProvider]:
    return {
        table.issuer: IdentityProvider(issuers[name], frozenset(table.algorithms or ALGORITHMS))
        for name, table in configuration.issuers.items()
        if "subjects" in table.trust
    }


def _clients(
    table: AuthorityTable,
    configuration: Configuration,
    issuers: Mapping[str, IssuerKeys],
    clock: Callable[[], float],
) -> dict[str, ClientRecord]:
    trusted = [name for name, one in configuration.issuers.items() if "subjects" in one.trust]

    def client(name: str, said: AuthorityClientTable) -> ClientRecord:
        named = trusted if said.subject_issuers is None else said.subject_issuers
        return configured_client(
            name,
            agent_uri(said.agent or name),
            _proof(name, said, configuration, issuers, clock),
            resources=said.resources,
            scopes=said.scopes,
            max_depth=said.max_depth,
            subject_clients=said.subject_clients,
            subject_issuers=[configuration.issuers[each].issuer for each in named],
        )

    return {name: client(name, said) for name, said in table.clients.items()}


def _proof(
    name: str,
    said: AuthorityClientTable,
    configuration: Configuration,
    issuers: Mapping[str, IssuerKeys],
    clock: Callable[[], float],
) -> ClientProof:
    if said.auth == "workload_token" and said.issuer is not None:
        platform = configuration.issuers[said.issuer]
        subject = {} if said.subject is None else {"sub": said.subject}
        return PlatformToken(
            platform.issuer,
            subject | (said.claims or {}),
            issuers[said.issuer],
            frozenset(platform.algorithms or ALGORITHMS),
        )
    if said.auth == "spiffe_jwt" and said.subject is not None:
        domain = said.subject.partition("/")[0] + "//" + said.subject.split("/")[2]
        return SpiffeSvid(said.subject, _published(domain, said.jwks, clock, use="jwt-svid"))
    certified = _certificate_name(said)
    if said.auth == "tls_client_auth" and certified is not None:
        return Certified(certified)
    return OwnAssertion(_published(f"the client {name}", said.jwks, clock))


def _certificate_name(said: AuthorityClientTable) -> CertificateName | None:
    if said.san_uri is not None:
        return SanUri(said.san_uri)
    if said.san_dns is not None:
        return SanDns(said.san_dns)
    return None if said.subject_dn is None else SubjectDn(said.subject_dn)


def _published(
    whose: str, jwks: str | None, clock: Callable[[], float], *, use: str = "sig"
) -> IssuerKeys:
    """Keys in one place, read again when they are five minutes old or one is missed."""
    return IssuerKeys(whose, clock=clock, jwks=jwks, key_use=use)
