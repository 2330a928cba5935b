# SPDX-License-Identifier: Apache-2.0
"""Makes issuers from the tables of [issuers]: their endpoints, our client there, and whether their subject tokens are trusted."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Final, Literal

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
from agent_identity.credentials.oauth.responses import Allowances
from agent_identity.credentials.oauth.token_types import AUTH0_VAULT, named_type
from agent_identity.credentials.principal_tokens import Trusted
from agent_identity.credentials.workload import provider
from agent_identity.errors import ConfigurationError, CredentialUnavailableError
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.values import scope_set

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


def issuers_of(
    configuration: Configuration,
    secrets: Secrets,
    *,
    name: str,
    agent: Agent,
    recorded: Callable[[], Flow[None]],
    clock: Callable[[], float],
) -> dict[str, Issuer]:
    """Every issuer of a configuration, by its name there."""
    grants, scopes = _grant_types(configuration), _scopes(configuration)
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
                scopes=scopes.get(label, frozenset()),
                recorded=recorded,
            ),
            clock=clock,
            origins=frozenset(table.endpoint_origins),
            jwks=table.jwks,
            metadata=table.metadata,
            has_metadata=table.has_metadata,
            endpoints=given_endpoints(table),
            allows=Allowances(
                several_audiences=table.allow_several_audiences,
                missing_audience=table.allow_missing_audience,
                extra_scopes=table.allow_extra_scopes,
                other_subject=table.allow_other_subject,
                client_audience=table.allow_client_audience,
                bearer_grants=table.allow_bearer_grants,
                longest_life=table.longest_life,
            ),
            redirect_uri=table.redirect_uri,
            assumes_pkce=table.pkce == "assume",
            revokes=table.revoke != "none",
            certificate=_certificate(table, secrets, is_shown=label in shown),
            resource_indicators=table.resource_indicators,
            subjects_of=frozenset(configuration.issuers[name].issuer for name in table.subjects_of),
        )

    return {label: issuer(label, table) for label, table in configuration.issuers.items()}


def given_endpoints(table: IssuerTable) -> dict[str, str]:
    """The endpoints that a table names, by their names in RFC 8414."""
    if table.endpoints is None:
        return {}
    names = type(table.endpoints).model_fields
    given = {name: getattr(table.endpoints, name) for name in names}
    return {name: url for name, url in given.items() if url is not None}


def trusted_of(configuration: Configuration, issuers: Mapping[str, Issuer]) -> dict[str, Trusted]:
    """The issuers whose tokens about principals are accepted, by URL."""
    trusted: dict[str, Trusted] = {}
    for label, table in configuration.issuers.items():
        if "subjects" not in table.trust or table.audience is None:
            continue
        trusted[table.issuer] = Trusted(
            issuers[label],
            table.audience,
            client_id=table.client_id,
            algorithms=frozenset(table.algorithms or ALGORITHMS),
            token_type=None if table.token_type is None else named_type(table.token_type),
        )
    return trusted


def _clients(
    label: str,
    table: IssuerTable,
    secrets: Secrets,
    *,
    name: str,
    agent: Agent,
    owner: str | None,
    grant_types: tuple[str, ...],
    scopes: frozenset[str],
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
            scopes=scopes,
            assertion_audience=_assertion_audience(label, table),
        )
    if table.client_auth == "anonymous":
        return KnownClient(Client("", NoProof()))
    if table.client_id is None:
        return None
    client = Client(table.client_id, _authentication(label, table, secrets))
    return DocumentedClient(client) if table.registration == "cimd" else KnownClient(client)


def client_document(
    configuration: Configuration, label: str, key: SigningKey | None
) -> dict[str, JSON]:
    """The metadata document to publish at the `client_id` of an issuer's table. `key` is the client's key.

    Raises:
        ConfigurationError: no table has that name, or its client has no metadata document.
    """
    table = configuration.issuers.get(label)
    if table is None or table.registration != "cimd" or table.client_id is None:
        raise ConfigurationError(
            "no_client_document",
            f"the issuer {ascii(label)[:80]} has no client with a metadata document",
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
        return PrivateKeyJwt(
            secrets.key(table.client_key, f"client key of {label}"),
            audience=_assertion_audience(label, table),
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


def _assertion_audience(label: str, table: IssuerTable) -> Literal["issuer", "token-endpoint"]:
    """The audience of client assertions; the older one warns."""
    if table.client_assertion_audience == "token-endpoint":
        warnings.warn(
            f"client assertions for {label} have the token endpoint as audience, so another issuer can replay them there",
            stacklevel=2,
        )
    return table.client_assertion_audience


def _platform_token(audience: str, now: float) -> Flow[Secret]:
    """The token of the platform that runs this process, whichever it is."""
    workload_token = yield from provider("ambient").fetch(audience, now)
    if workload_token is None:
        raise CredentialUnavailableError(
            "no_workload_identity", "no platform here gives this workload a token"
        )
    return workload_token.token


def _certificate(
    table: IssuerTable, secrets: Secrets, *, is_shown: bool
) -> Callable[[], Flow[Certificate]] | None:
    """The client's TLS certificate: the configured one, else the workload's SVID if a certificate is needed.

    It is needed if tokens are bound to it (`is_shown`), or if the client authenticates by it. A token stays with the SVID that
    it is bound to, also after the SVID was rotated.
    """
    if table.client_certificate is not None:
        return secrets.certificate(
            table.client_certificate, table.client_key, f"client certificate for {table.issuer}"
        )
    proves = table.client_auth in ("tls_client_auth", "self_signed_tls_client_auth")
    return workload_certificate if is_shown or proves else None


GRANT_TYPES: Final[Mapping[str, tuple[str, ...]]] = {
    "token-exchange": ("urn:ietf:params:oauth:grant-type:token-exchange",),
    "client-credentials": ("client_credentials",),
    "jwt-bearer": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "id-jag": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "identity-chaining": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "authorization-code": ("authorization_code", "refresh_token"),
    "device": ("urn:ietf:params:oauth:grant-type:device_code", "refresh_token"),
    "ciba": ("urn:openid:params:grant-type:ciba", "refresh_token"),
    "refresh-token": ("refresh_token",),
    "entra-obo": ("urn:ietf:params:oauth:grant-type:jwt-bearer",),
    "auth0-token-vault": (AUTH0_VAULT,),
}
"""The grant types of a source; the first is the one that it can't do without."""


def _grant_types(configuration: Configuration) -> dict[str, tuple[str, ...]]:
    """The grant types that a client registers for, by issuer: only those that the resources need."""
    needed: dict[str, set[str]] = {}
    for table in configuration.resources.values():
        if table.issuer is not None:
            types = needed.setdefault(table.issuer, set())
            types.update(GRANT_TYPES.get(table.source or "", ()))
            if table.actor == "client":
                types.update(GRANT_TYPES["client-credentials"])
        if table.via is not None:
            needed.setdefault(table.via, set()).update(GRANT_TYPES["token-exchange"])
    return {label: tuple(sorted(types)) for label, types in needed.items()}


def _scopes(configuration: Configuration) -> dict[str, frozenset[str]]:
    """The scopes that a client registers for, by issuer: those of its resources, if each of them has a list."""
    needed: dict[str, frozenset[str]] = {}
    unknown: set[str] = set()
    for table in configuration.resources.values():
        for label in filter(None, (table.issuer, table.via)):
            needed[label] = needed.get(label, frozenset()) | scope_set(table.scopes or ())
            if table.scopes is None:
                unknown.add(label)
    return {label: scopes for label, scopes in needed.items() if label not in unknown}
