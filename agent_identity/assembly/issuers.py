# SPDX-License-Identifier: Apache-2.0
"""Tables of [issuers] as issuers: where they are, which client we are there, and whose word about principals is taken."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from agent_identity.assembly.secrets import workload_certificate
from agent_identity.credentials.oauth.client import (
    Client,
    NoProof,
    PlatformJwt,
    PrivateKeyJwt,
    SecretBasic,
    SecretPost,
    SpiffeJwt,
    TlsCertificate,
)
from agent_identity.credentials.oauth.issuer import Issuer, KnownClient
from agent_identity.credentials.oauth.registration import (
    DocumentedClient,
    InstanceRegistration,
    metadata_document,
)
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN, JWT
from agent_identity.credentials.principal_tokens import Trusted
from agent_identity.credentials.workload import provider
from agent_identity.errors import ConfigurationError, CredentialUnavailableError
from agent_identity.keys.algorithms import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.assembly.secrets import Secrets
    from agent_identity.config import Configuration
    from agent_identity.config.model import IssuerTable
    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.client import Authentication
    from agent_identity.credentials.oauth.issuer import Clients
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Certificate, Secret

__all__ = ["client_document", "issuers_of", "trusted_of"]

_SUBJECT_TYPES = {"access_token": ACCESS_TOKEN, "id_token": ID_TOKEN, "jwt": JWT}


def issuers_of(
    configuration: Configuration,
    secrets: Secrets,
    *,
    name: str,
    agent: Agent,
    recorded: Callable[[], Flow[None]],
    clock: Callable[[], float],
) -> dict[str, Issuer]:
    """Every issuer of a configuration, by the name that it has there."""
    grants = _grant_types(configuration)
    shown = {table.issuer for table in configuration.resources.values() if table.binding == "mtls"}

    def issuer(label: str, table: IssuerTable) -> Issuer:
        return Issuer(
            table.issuer,
            clients=_clients(
                label,
                table,
                secrets,
                name=name,
                agent=agent,
                owner=configuration.agent.owner,
                grant_types=grants.get(label, ()),
                recorded=recorded,
            ),
            clock=clock,
            origins=frozenset(table.endpoint_origins),
            jwks=table.jwks,
            certificate=_certificate(table, secrets, is_shown=label in shown),
            resource_indicators=table.resource_indicators,
            subjects_of=frozenset(configuration.issuers[name].issuer for name in table.subjects_of),
        )

    return {label: issuer(label, table) for label, table in configuration.issuers.items()}


def trusted_of(configuration: Configuration, issuers: Mapping[str, Issuer]) -> dict[str, Trusted]:
    """The issuers whose tokens about principals are believed, by URL."""
    found: dict[str, Trusted] = {}
    for label, table in configuration.issuers.items():
        if "subjects" not in table.trust or table.audience is None:
            continue
        found[table.issuer] = Trusted(
            issuers[label],
            table.audience,
            client_id=table.client_id,
            algorithms=frozenset(table.algorithms or ALGORITHMS),
            token_type=_SUBJECT_TYPES.get(table.token_type or "", table.token_type),
        )
    return found


def _clients(
    label: str,
    table: IssuerTable,
    secrets: Secrets,
    *,
    name: str,
    agent: Agent,
    owner: str | None,
    grant_types: tuple[str, ...],
    recorded: Callable[[], Flow[None]],
) -> Clients | None:
    if table.registration == "dynamic":
        token = table.registration_token
        return InstanceRegistration(
            name,
            agent,
            owner=owner,
            initial_token=None
            if token is None
            else secrets.required(token, f"registration token of {label}"),
            recorded=recorded,
            grant_types=grant_types,
        )
    if table.client_id is None:
        return None
    client = Client(table.client_id, _authentication(label, table, secrets))
    return DocumentedClient(client) if table.registration == "cimd" else KnownClient(client)


def client_document(
    configuration: Configuration, label: str, key: SigningKey | None
) -> dict[str, JSON]:
    """What has to be published at the `client_id` of an issuer's table; `key` is the client's.

    Raises:
        ConfigurationError: no table has that name, or its client has no document.
    """
    table = configuration.issuers.get(label)
    if table is None or table.registration != "cimd" or table.client_id is None:
        raise ConfigurationError(
            "no_client_document",
            "no client of that name is known by a metadata document",
            remedy="name a table of [issuers] whose client_id is an https URL",
        )
    return metadata_document(
        table.client_id,
        name=configuration.agent.name or configuration.agent.id or label,
        method=table.client_auth or "none",
        key=key,
        kid=table.client_key_id,
        grant_types=_grant_types(configuration).get(label, ()),
    )


def _authentication(label: str, table: IssuerTable, secrets: Secrets) -> Authentication:
    method = table.client_auth or "none"
    if method == "private_key_jwt" and table.client_key is not None:
        if table.client_assertion_audience == "token-endpoint":
            warnings.warn(
                f"client assertions for {label} name the token endpoint: an issuer that takes them takes those meant for another",
                stacklevel=2,
            )
        return PrivateKeyJwt(
            secrets.key(table.client_key, f"client key of {label}"),
            audience=table.client_assertion_audience,
            kid=table.client_key_id,
        )
    if method in ("client_secret_basic", "client_secret_post") and table.client_secret is not None:
        secret = secrets.required(table.client_secret, f"client secret of {label}")
        return SecretBasic(secret) if method == "client_secret_basic" else SecretPost(secret)
    if method in ("tls_client_auth", "self_signed_tls_client_auth"):
        shown = _certificate(table, secrets, is_shown=True)
        return TlsCertificate(shown or workload_certificate, method=method)
    if method == "spiffe_jwt":
        return SpiffeJwt()
    if method == "workload_token":
        return PlatformJwt(_platform_token)
    return NoProof()


def _platform_token(audience: str, now: float) -> Flow[Secret]:
    """What the platform that runs us says, whichever it is."""
    given = yield from provider("ambient").fetch(audience, now)
    if given is None:
        raise CredentialUnavailableError(
            "no_workload_identity", "no platform here says who this workload is"
        )
    return given.token


def _certificate(
    table: IssuerTable, secrets: Secrets, *, is_shown: bool
) -> Callable[[], Flow[Certificate]] | None:
    """What the client shows in TLS: the configured certificate, else the workload's SVID, where it has to show one.

    It has to (`is_shown`) where tokens are bound to it, and where it is how the client proves itself. A token stays with the
    SVID that it is bound to, when the next one comes.
    """
    if table.client_certificate is not None:
        return secrets.certificate(
            table.client_certificate, table.client_key, f"client certificate for {table.issuer}"
        )
    proves = table.client_auth in ("tls_client_auth", "self_signed_tls_client_auth")
    return workload_certificate if is_shown or proves else None


_GRANT_TYPES = {
    "token-exchange": ("urn:ietf:params:oauth:grant-type:token-exchange",),
    "client-credentials": ("client_credentials",),
    "jwt-bearer": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "id-jag": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "identity-chaining": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "authorization-code": ("authorization_code", "refresh_token"),
    "device": ("urn:ietf:params:oauth:grant-type:device_code", "refresh_token"),
    "ciba": ("urn:openid:params:grant-type:ciba", "refresh_token"),
    "refresh-token": ("refresh_token",),
}


def _grant_types(configuration: Configuration) -> dict[str, tuple[str, ...]]:
    """What a client that registers itself asks to be allowed, by issuer: what the resources need, and no more."""
    found: dict[str, set[str]] = {}
    for table in configuration.resources.values():
        if table.issuer is not None:
            found.setdefault(table.issuer, set()).update(_GRANT_TYPES.get(table.source or "", ()))
        if table.via is not None:
            found.setdefault(table.via, set()).update(_GRANT_TYPES["token-exchange"])
    return {label: tuple(sorted(types)) for label, types in found.items()}
