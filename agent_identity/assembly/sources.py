# SPDX-License-Identifier: Apache-2.0
"""Makes sources from the tables of [resources]: each gets a credential in one way, with the issuers and secrets that it needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from agent_identity.assembly.discovered import discovery_of
from agent_identity.credentials.oauth.discovery import Discovery
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    JWT,
    REFRESH_TOKEN,
    named_type,
)
from agent_identity.credentials.sources.authorization_code import AuthorizationCode
from agent_identity.credentials.sources.chain_alone import ChainAlone
from agent_identity.credentials.sources.ciba import Ciba
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.credentials.sources.cross_domain import CrossDomain
from agent_identity.credentials.sources.device import DeviceAuthorization
from agent_identity.credentials.sources.discovered import Discovered
from agent_identity.credentials.sources.entra_obo import EntraObo
from agent_identity.credentials.sources.jwt_bearer import JwtBearer
from agent_identity.credentials.sources.legacy import ApiKey, Basic, ClientCertificate, Static
from agent_identity.credentials.sources.platform import (
    SpiffeJwtSource,
    SpiffeX509Source,
    WorkloadTokenSource,
)
from agent_identity.credentials.sources.refresh_token import RefreshToken, RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.credentials.sources.transaction import TransactionTokens
from agent_identity.credentials.workload import Provider, provider
from agent_identity.delegation.details import pin_details
from agent_identity.errors import CredentialUnavailableError
from agent_identity.runtime.parts import Resource
from agent_identity.values import DISCOVERED, TOOL_DETAILS, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.assembly.discovered import Registrant
    from agent_identity.assembly.secrets import Secrets
    from agent_identity.config.model import Configuration, ResourceTable
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.source import Parameters, Source
    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.delegation.details import Details
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON


@dataclass(frozen=True, slots=True)
class _Means:
    """The ingredients of sources."""

    configuration: Configuration
    issuers: Mapping[str, Issuer]
    secrets: Secrets
    registrant: Registrant
    clock: Callable[[], float]


def resources_of(
    configuration: Configuration,
    issuers: Mapping[str, Issuer],
    secrets: Secrets,
    registrant: Registrant,
    clock: Callable[[], float],
) -> dict[str, Resource]:
    """The resources of a configuration that have a source, by URI."""
    means = _Means(configuration, issuers, secrets, registrant, clock)
    return {
        uri: _resource(uri, table, means)
        for uri, table in configuration.resources.items()
        if table.source is not None
    }


def discovered_resource(
    uri: str, secrets: Secrets, registrant: Registrant, clock: Callable[[], float]
) -> Resource:
    """A resource that no configuration describes: a person signs in at the issuer that its metadata names."""
    from agent_identity.config.inference import infer  # noqa: PLC0415 - loads pydantic
    from agent_identity.config.model import Configuration, ResourceTable  # noqa: PLC0415 - loads pydantic

    described = {uri: ResourceTable(issuer=DISCOVERED)}
    configuration = infer(Configuration(resources=described))
    return resources_of(configuration, {}, secrets, registrant, clock)[uri]


def _resource(uri: str, table: ResourceTable, means: _Means) -> Resource:
    transaction = table.transaction_token
    issuer = None if table.issuer is None else means.issuers.get(table.issuer)
    discovery = _discovery(uri, table, issuer, means)
    if table.issuer == DISCOVERED and discovery is not None:
        source: Source = _discovered(table, discovery, means)
    else:
        source = _SOURCES[table.source or ""](table, means)
    return Resource(
        uri,
        source,
        None if table.scopes is None else scope_set(table.scopes),
        sends_assertion=table.assertion != "omit",
        issuer=discovery if table.issuer == DISCOVERED else issuer,
        discovery=discovery,
        transaction=None
        if transaction is None
        else TransactionTokens(means.issuers[transaction.issuer], transaction.audience),
        details=details_of(uri, table),
        handed=ChainAlone(means.clock) if _needs_principal_token(table) else None,
    )


def _discovery(
    uri: str, table: ResourceTable, issuer: Issuer | None, means: _Means
) -> Discovery | None:
    """What reads the resource's metadata: for its issuer, or to check that it names the configured one."""
    if table.issuer == DISCOVERED:
        client = means.configuration.mcp
        return discovery_of(uri, table, client, means.registrant, means.secrets, means.clock)
    if issuer is None or not uri.startswith(("https://", "http://")):
        return None
    return Discovery(uri, means.clock, issuer=issuer)


def _discovered(table: ResourceTable, discovery: Discovery, means: _Means) -> Source:
    def make(issuer: Issuer, is_bound: bool) -> Source:  # noqa: FBT001 - called by position, as `Discovered` declares it
        offered = "dpop" if is_bound else "none"
        binding = offered if table.binding == "offered" else table.binding
        found = replace(means, issuers={**means.issuers, DISCOVERED: issuer})
        own = table.model_copy(update={"binding": binding})
        return _SOURCES[table.source or ""](own, found)

    signs_in = table.source in ("authorization-code", "device")
    patience = means.configuration.http.interaction_timeout if signs_in else None
    otherwise = ChainAlone(means.clock)
    return Discovered(table.source or "", discovery, make, otherwise, patience)


_EXCHANGES: Final = frozenset(
    {"token-exchange", "id-jag", "identity-chaining", "entra-obo", "auth0-token-vault"}
)


def _needs_principal_token(table: ResourceTable) -> bool:
    """Whether getting the credential needs the principal's token, which a handed-over session doesn't have."""
    if table.source == "jwt-bearer":
        return table.assertion_from == "subject"
    return table.source in _EXCHANGES


def details_of(uri: str, table: ResourceTable) -> Details | None:
    """The authorization details of our own type, which grants carry and calls are checked against; None if there are none."""
    own = [each for each in table.authorization_details if each.get("type") == TOOL_DETAILS]
    return pin_details(own, uri) if own else None


def _for_issuer(table: ResourceTable) -> list[JSON]:
    """All other authorization details, which are requested from the issuer."""
    return [each for each in table.authorization_details if each.get("type") != TOOL_DETAILS]


def _issuer(table: ResourceTable, means: _Means) -> Issuer:
    return means.issuers[table.issuer or ""]


def _parameters(table: ResourceTable) -> Parameters:
    return tuple((table.parameters or {}).items())


def _binding(table: ResourceTable) -> Literal["dpop", "mtls", "none"]:
    binding = table.binding
    return "dpop" if binding is None or binding == "offered" else binding


def _client_name(table: ResourceTable, means: _Means) -> str:
    """Distinguishes two clients of one issuer in a cache key."""
    label = table.issuer or ""
    named = means.configuration.issuers.get(label)
    client_id = means.configuration.mcp.client_id if named is None else named.client_id
    return f"{label} {client_id or ''}"


_ANY_SUBJECT: Final = (ACCESS_TOKEN, JWT, ID_TOKEN)
_SUBJECTS: Final = {
    ACCESS_TOKEN: (ACCESS_TOKEN, JWT),
    ID_TOKEN: (ID_TOKEN,),
    REFRESH_TOKEN: (REFRESH_TOKEN,),
}
"""The principal's tokens that may be sent as a type; any may be sent as a JWT, or as a type of the issuer's own."""


def _sent_as(table: ResourceTable) -> str | None:
    return None if table.subject_token_type is None else named_type(table.subject_token_type)


def _token_exchange(table: ResourceTable, means: _Means) -> Source:
    issuer = _issuer(table, means)
    by_workload = table.actor == "workload"
    sent_as = _sent_as(table)
    return TokenExchange(
        issuer,
        binding=_binding(table),
        audience=table.audience,
        actor=table.actor or "none",
        names_principal=True,
        details=_for_issuer(table),
        parameters=_parameters(table),
        subject_types=_SUBJECTS.get(sent_as or "", _ANY_SUBJECT),
        sent_as=sent_as,
        workload=workload_token(table, issuer.url, means.clock) if by_workload else None,
        client_name=_client_name(table, means),
    )


def _token_vault(table: ResourceTable, means: _Means) -> Source:
    sent_as = _sent_as(table)
    return TokenExchange(
        _issuer(table, means),
        "auth0-token-vault",
        binding=_binding(table),
        audience=table.audience,
        parameters=_parameters(table),
        subject_types=_SUBJECTS.get(sent_as or "", (ACCESS_TOKEN, REFRESH_TOKEN)),
        sent_as=sent_as,
        client_name=_client_name(table, means),
    )


def _entra_obo(table: ResourceTable, means: _Means) -> Source:
    return EntraObo(
        _issuer(table, means),
        binding=_binding(table),
        audience=table.audience,
        parameters=_parameters(table),
        client_name=_client_name(table, means),
    )


def _client_credentials(table: ResourceTable, means: _Means) -> Source:
    return ClientCredentials(
        _issuer(table, means),
        binding=_binding(table),
        audience=table.audience,
        details=_for_issuer(table),
        parameters=_parameters(table),
        client_name=_client_name(table, means),
    )


def _jwt_bearer(table: ResourceTable, means: _Means) -> Source:
    issuer = _issuer(table, means)
    named = means.configuration.issuers.get(table.issuer or "")
    by_workload = table.assertion_from == "workload"
    return JwtBearer(
        issuer,
        assertion_from=table.assertion_from or "client",
        binding=_binding(table),
        audience=table.audience,
        parameters=_parameters(table),
        key=_client_key(table, means),
        kid=None if named is None else named.client_key_id,
        workload=workload_token(table, issuer.url, means.clock) if by_workload else None,
        client_name=_client_name(table, means),
    )


def _client_key(table: ResourceTable, means: _Means) -> Callable[[], Flow[SigningKey]] | None:
    label = table.issuer or ""
    named = means.configuration.issuers.get(label)
    reference = None if named is None else named.client_key
    return None if reference is None else means.secrets.key(reference, f"client key of {label}")


def _cross_domain(table: ResourceTable, means: _Means) -> Source:
    return CrossDomain(
        "id-jag" if table.source == "id-jag" else "identity-chaining",
        _issuer(table, means),
        via=means.issuers[table.via or ""],
        binding=_binding(table),
        audience=table.audience,
        details=_for_issuer(table),
        parameters=_parameters(table),
        client_name=_client_name(table, means),
    )


def _sign_in(table: ResourceTable, means: _Means) -> SignIn:
    issuer = _issuer(table, means)
    return SignIn(
        issuer,
        binding=_binding(table),
        audience=table.audience,
        details=_for_issuer(table),
        parameters=_parameters(table),
        names_principal=True,
        tokens=RefreshTokens(
            table.refresh_token,
            scope=f"{issuer.url} {_client_name(table, means)}",
            store=means.secrets,
        ),
        client_name=_client_name(table, means),
        patience=means.configuration.http.interaction_timeout,
    )


def _refresh_token(table: ResourceTable, means: _Means) -> Source:
    return RefreshToken(
        _issuer(table, means),
        RefreshTokens(table.refresh_token, fixed=True, store=means.secrets),
        binding=_binding(table),
        audience=table.audience,
        parameters=_parameters(table),
        client_name=_client_name(table, means),
    )


def workload_token(
    table: ResourceTable, audience: str, clock: Callable[[], float]
) -> Callable[[], Flow[WorkloadToken]]:
    """A function that makes a flow to get the platform's token for an audience."""
    platform = _provider(table)

    def fetch() -> Flow[WorkloadToken]:
        token = yield from platform.fetch(audience, clock())
        if token is None:
            raise CredentialUnavailableError(
                "no_workload_identity",
                f"there is no {platform.kind} here to identify this workload (looked for {platform.looks_for})",
                remedy=platform.setup,
            )
        return token

    return fetch


def _provider(table: ResourceTable) -> Provider:
    return provider(
        table.provider or "ambient",
        path=table.path,
        expect=table.expect,
        token_host=table.token_host,
    )


def _api_key(table: ResourceTable, means: _Means) -> Source:
    reference = table.secret or ""
    return ApiKey(
        means.secrets.optional(reference),
        table.header or "Authorization",
        table.scheme or "",
        clock=means.clock,
        reference=reference,
    )


def _basic(table: ResourceTable, means: _Means) -> Source:
    reference = table.password or ""
    return Basic(
        table.username or "",
        means.secrets.optional(reference),
        clock=means.clock,
        reference=reference,
    )


def _static(table: ResourceTable, means: _Means) -> Source:
    reference = table.token or ""
    return Static(means.secrets.optional(reference), clock=means.clock, reference=reference)


def _client_certificate(table: ResourceTable, means: _Means) -> Source:
    reference = table.certificate or ""
    return ClientCertificate(
        means.secrets.certificate(reference, table.key, "client certificate"),
        clock=means.clock,
        reference=reference,
    )


_SOURCES: dict[str, Callable[[ResourceTable, _Means], Source]] = {
    "token-exchange": _token_exchange,
    "client-credentials": _client_credentials,
    "jwt-bearer": _jwt_bearer,
    "id-jag": _cross_domain,
    "identity-chaining": _cross_domain,
    "authorization-code": lambda table, means: AuthorizationCode(_sign_in(table, means)),
    "device": lambda table, means: DeviceAuthorization(_sign_in(table, means)),
    "ciba": lambda table, means: Ciba(
        _sign_in(table, means), login_hint_from=table.login_hint_from or "sub"
    ),
    "refresh-token": _refresh_token,
    "entra-obo": _entra_obo,
    "auth0-token-vault": _token_vault,
    "workload-token": lambda table, means: WorkloadTokenSource(
        _provider(table), table.audience, clock=means.clock
    ),
    "spiffe-jwt": lambda _, means: SpiffeJwtSource(
        means.configuration.spiffe.trust_domain, clock=means.clock
    ),
    "spiffe-x509": lambda _, means: SpiffeX509Source(
        means.configuration.spiffe.trust_domain, clock=means.clock
    ),
    "api-key": _api_key,
    "basic": _basic,
    "static": _static,
    "client-certificate": _client_certificate,
    "chain": lambda _, means: ChainAlone(means.clock),
}
