# SPDX-License-Identifier: Apache-2.0
"""Assembles the parts of an identity from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from agent_identity.assembly import Assembled
from agent_identity.assembly.embedded import Minted
from agent_identity.assembly.issuers import issuers_of, trusted_of
from agent_identity.assembly.secrets import Secrets
from agent_identity.assembly.sources import details_of, resources_of
from agent_identity.config import workload_api
from agent_identity.config.references import is_in_vault
from agent_identity.credentials.root_grants import IssuedGrants, SignedGrants
from agent_identity.credentials.vault.secrets import Vault
from agent_identity.credentials.workload import provider
from agent_identity.delegation.carriers import HEADER_LIMIT
from agent_identity.errors import ConfigurationError, CredentialUnavailableError
from agent_identity.runtime.options import MAX_DELEGATIONS
from agent_identity.runtime.parts import Resource, Resources
from agent_identity.signers import MemorySigner
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.assembly.discovered import Registrant
    from agent_identity.config import Configuration
    from agent_identity.config.model import AgentTable, VaultTable
    from agent_identity.flow import Flow
    from agent_identity.http.surroundings import Svids
    from agent_identity.http.transport import Transport
    from agent_identity.signers import Signer
    from agent_identity.values import Secret


def assemble(
    configuration: Configuration,
    secrets: Secrets,
    *,
    registrant: Registrant,
    signer: Signer | None,
    clock: Callable[[], float],
) -> Assembled:
    """Assemble the parts of a configuration. `signer` signs first grants if neither an issuer nor a vault does."""
    issuers = issuers_of(
        configuration,
        secrets,
        name=registrant.name,
        agent=registrant.agent,
        recorded=registrant.recorded,
        clock=clock,
    )
    granting = configuration.agent.grants
    signer = signer or vault_signer(configuration, secrets)
    if granting is not None:
        anchor: IssuedGrants | SignedGrants = IssuedGrants(issuers[granting])
    elif signer is not None:
        anchor = SignedGrants(signer, _signer_id(configuration.agent, signer), clock)
    else:
        raise ConfigurationError(
            "signer_missing",
            "no issuer and no signer is configured that signs the first grant of a chain",
            remedy="set agent.grants or agent.signer",
        )
    return Assembled(
        anchor,
        Resources(resources_of(configuration, issuers, secrets, registrant, clock)),
        issuers,
        trusted_of(configuration, issuers),
    )


def vault_signer(configuration: Configuration, secrets: Secrets) -> Signer | None:
    """The key in a vault that signs first grants; None if `agent.signer` isn't in a vault."""
    reference = configuration.agent.signer
    if reference is None or not is_in_vault(reference):
        return None
    return secrets.signer(reference)


def _signer_id(table: AgentTable, signer: Signer) -> str:
    if table.signer_id is not None:
        return table.signer_id
    if isinstance(signer, MemorySigner):
        return f"urn:agent-identity:signer:{signer.thumbprint}"
    raise ConfigurationError(
        "value_missing",
        "a signer whose key can be rotated needs a name of its own",
        remedy="set agent.signer_id, the name by which verifiers know it",
    )


def other_resources(
    configuration: Configuration,
    secrets: Secrets,
    registrant: Registrant,
    clock: Callable[[], float],
) -> dict[str, Resource]:
    """The resources whose credentials come from elsewhere than an issuer: keys, platform tokens, certificates."""
    return resources_of(configuration, {}, secrets, registrant, clock)


def minted_resources(configuration: Configuration) -> dict[str, Minted]:
    """The settings of the resources whose tokens the embedded authority mints."""
    return {
        uri: Minted(
            None if table.scopes is None else scope_set(table.scopes),
            table.assertion != "omit",
            details_of(uri, table),
        )
        for uri, table in configuration.resources.items()
        if table.source is None
    }


def secrets_of(configuration: Configuration, clock: Callable[[], float]) -> Secrets:
    """The secrets that a configuration names, including those in its vault."""
    table = configuration.vault
    return Secrets(None if table is None else _vault(table, clock), clock)


def _vault(table: VaultTable, clock: Callable[[], float]) -> Vault:
    platform = provider(table.provider or "ambient", path=table.path)
    audience = table.audience or table.address

    def login() -> Flow[Secret]:
        workload_token = yield from platform.fetch(audience, clock())
        if workload_token is None:
            raise CredentialUnavailableError(
                "no_workload_identity",
                f"the vault needs a token of the platform, and there is no {platform.kind} here",
                remedy=platform.setup,
            )
        return workload_token.token

    return Vault(
        table.address,
        login,
        clock=clock,
        role=table.role,
        auth_mount=table.auth_mount,
        kv_mount=table.kv_mount,
        namespace=table.namespace,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Times and limits. Times are in seconds. `session_lifetime` and `max_depth` are the maxima for a session."""

    session_lifetime: float = 3600.0
    grant_lifetime: float = 900.0
    max_depth: int = MAX_DELEGATIONS
    deadline: float = 10.0
    body_limit: int = 1024 * 1024
    header_limit: int = HEADER_LIMIT
    allow_private: frozenset[str] = frozenset()
    authorities: str | None = None

    @classmethod
    def of(cls, configuration: Configuration | None) -> Self:
        if configuration is None:
            return cls()
        return cls(
            session_lifetime=configuration.session.lifetime,
            grant_lifetime=configuration.session.grant_lifetime,
            max_depth=configuration.session.max_depth,
            deadline=configuration.http.deadline,
            body_limit=configuration.http.body_limit,
            header_limit=configuration.http.header_limit,
            allow_private=frozenset(configuration.http.allow_private),
            authorities=configuration.http.ca,
        )


def transport_of(settings: Settings) -> Transport:
    """The HTTP transport, with the limits of the settings."""
    from agent_identity.http.transport import Transport  # noqa: PLC0415 - httpx loads on first use

    return Transport(
        body_limit=settings.body_limit,
        allow_private=settings.allow_private,
        authorities=settings.authorities,
    )


def svids_of(configuration: Configuration | None) -> Svids | None:
    """The Workload API; None if neither the configuration nor the environment has its address."""
    table = None if configuration is None else configuration.spiffe
    socket = workload_api(None if table is None else table.socket)
    if socket is None:
        return None
    from agent_identity.http.svids import WorkloadApi  # noqa: PLC0415 - loads on first use

    return WorkloadApi(socket, trust_domain=None if table is None else table.trust_domain)
