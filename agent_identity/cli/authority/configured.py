# SPDX-License-Identifier: Apache-2.0
"""The authority of `[authority]`: its clients, the identity providers of its principals, and the keys of both."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from agent_identity.assembly.configured import secrets_of
from agent_identity.assembly.issuers import issuers_of
from agent_identity.authority import (
    Authority,
    ClientRecord,
    IdentityProvider,
    Organisation,
    configured_client,
)
from agent_identity.authority.client_proofs import OwnAssertion, PlatformToken, SpiffeSvid
from agent_identity.cli.finding import world_of
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.issuer_keys import IssuerKeys
from agent_identity.errors import ConfigurationError
from agent_identity.flow import pure, run
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from agent_identity.authority.client_proofs import ClientProof
    from agent_identity.config import Configuration
    from agent_identity.config.model import AuthorityClientTable, AuthorityTable
    from agent_identity.flow import Flow

T = TypeVar("T")


def organisations_authority(
    configuration: Configuration,
    state_dir: Path | None,
    url: str,
    clock: Callable[[], float] = time.time,
) -> Authority:
    """The authority of `[authority]`; `url` is where it listens. No request is sent yet.

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
        recorded=lambda: pure(None),
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

    def record(name: str, client: AuthorityClientTable) -> ClientRecord:
        named = trusted if client.subject_issuers is None else client.subject_issuers
        return configured_client(
            name,
            agent_uri(client.agent or name),
            _proof(name, client, configuration, issuers, clock),
            resources=client.resources,
            scopes=client.scopes,
            max_depth=client.max_depth,
            subject_clients=client.subject_clients,
            subject_issuers=[configuration.issuers[each].issuer for each in named],
        )

    return {name: record(name, client) for name, client in table.clients.items()}


def _proof(
    name: str,
    client: AuthorityClientTable,
    configuration: Configuration,
    issuers: Mapping[str, IssuerKeys],
    clock: Callable[[], float],
) -> ClientProof:
    if client.auth == "workload_token" and client.issuer is not None:
        platform = configuration.issuers[client.issuer]
        subject = {} if client.subject is None else {"sub": client.subject}
        return PlatformToken(
            platform.issuer,
            subject | (client.claims or {}),
            issuers[client.issuer],
            frozenset(platform.algorithms or ALGORITHMS),
        )
    if client.auth == "spiffe_jwt" and client.subject is not None:
        domain = client.subject.partition("/")[0] + "//" + client.subject.split("/")[2]
        bundle = IssuerKeys(domain, clock=clock, jwks=client.jwks, key_use="jwt-svid")
        return SpiffeSvid(client.subject, bundle)
    return OwnAssertion(IssuerKeys(f"the client {name}", clock=clock, jwks=client.jwks))
