# SPDX-License-Identifier: Apache-2.0
"""Checks of `[resources]` and `[authority]`: the keys that each source needs and takes, and how the authority's clients prove themselves."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.inference import OWN_MEANS, uses_platform
from agent_identity.config.model import OAUTH_SOURCES, ResourceTable
from agent_identity.config.problems import Fault, conflict, malformed, missing, unused
from agent_identity.errors import ConfigurationError
from agent_identity.uris import check_resource
from agent_identity.values import DISCOVERED, TOOL_DETAILS, agent_uri, scope_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_identity.config.model import (
        AuthorityClientTable,
        AuthorityTable,
        Configuration,
        Table,
    )


class Keys(NamedTuple):
    """The keys of a table by one of its values, for instance by `source`; names are separated by blanks."""

    needed: str = ""
    taken: str = ""


def check_keys(
    rows: Mapping[str, Keys], value: str, table: Table, path: tuple[str, ...]
) -> Iterator[Fault]:
    """Hold a table to its row: all needed keys are there, and no key that only other rows have."""
    needed, taken = (names.split() for names in rows.get(value, Keys()))
    for key in needed:
        if not _is_given(table, key):
            yield missing((*path, key), f"{value} needs {key}")
    for key in _keys_in(rows):
        if _is_given(table, key) and key not in needed and key not in taken:
            yield unused((*path, key), f"{value} doesn't use it")


def _keys_in(rows: Mapping[str, Keys]) -> list[str]:
    return list(dict.fromkeys(key for row in rows.values() for key in " ".join(row).split()))


def _is_given(table: Table, key: str) -> bool:
    if key == "authorization_details" and isinstance(table, ResourceTable):
        # Those of our own type go into grants, whatever the source.
        return any(each.get("type") != TOOL_DETAILS for each in table.authorization_details)
    return getattr(table, key) is not None


_SIGN_IN: Final = "audience authorization_details refresh_token parameters"
_BY_SOURCE: Final = {
    "token-exchange": Keys(
        "issuer", "audience authorization_details actor parameters subject_token_type"
    ),
    "client-credentials": Keys("issuer", "audience authorization_details parameters"),
    "jwt-bearer": Keys("issuer", "audience assertion_from parameters"),
    "id-jag": Keys("issuer via", "audience authorization_details parameters"),
    "identity-chaining": Keys("issuer via", "audience authorization_details parameters"),
    "authorization-code": Keys("issuer", _SIGN_IN),
    "device": Keys("issuer", _SIGN_IN),
    "ciba": Keys("issuer", f"{_SIGN_IN} login_hint_from"),
    "refresh-token": Keys("issuer refresh_token", "audience parameters"),
    "entra-obo": Keys("issuer", "audience parameters"),
    "auth0-token-vault": Keys("issuer", "audience parameters subject_token_type"),
    "spiffe-jwt": Keys(),
    "spiffe-x509": Keys(),
    "workload-token": Keys("", "audience"),
    "api-key": Keys("secret", "header scheme"),
    "basic": Keys("username password"),
    "static": Keys("token"),
    "client-certificate": Keys("certificate", "key"),
    "chain": Keys(),
}
_BY_PROVIDER: Final = {
    "ambient": Keys("", "token_host"),
    "file": Keys("path"),
    "github": Keys("", "token_host"),
    "gitlab": Keys("", "path"),
    "kubernetes": Keys("", "path"),
}
_PLATFORM: Final = ("provider", "path", "expect", "token_host")
_MEANS: Final = frozenset({*OWN_MEANS, *_PLATFORM, "header", "scheme"})
"""Keys that only sources without an issuer have."""

_EMBEDDED: Final = "the resource uses the embedded authority"


def check_resources(configuration: Configuration) -> Iterator[Fault]:
    """All faults of `[resources]`."""
    for uri, table in configuration.resources.items():
        path = ("resources", uri)
        yield from check_resource_uri(uri, path)
        yield from check_scopes(table.scopes or (), path)
        if table.source is None:
            yield from _embedded(table, path, has_issuers=bool(configuration.issuers))
            continue
        yield from check_keys(_BY_SOURCE, table.source, table, path)
        yield from _platform(table, path)
        yield from _issuer(table, path, configuration)
        yield from _parameters(table, path)
        yield from _token_type(table, path)
        if (table.refresh_token or "").startswith("env:"):
            yield Fault(
                "reference_read_only",
                (*path, "refresh_token"),
                "an environment variable can't keep a refresh token, which the issuer replaces at each use",
                "keep it in file:, keyring: or vault:",
            )


def check_resource_uri(uri: str, path: tuple[str, ...]) -> Iterator[Fault]:
    """Whether a resource's URI has the one spelling that is allowed; the fault doesn't repeat it."""
    rule = "a resource is an absolute URI without fragment, its scheme and host in lower case, without default port"
    try:
        check_resource(uri)
    except ConfigurationError as error:
        yield Fault(error.code, path, rule, "write the resource as its server spells it")


def check_scopes(scopes: tuple[str, ...], path: tuple[str, ...]) -> Iterator[Fault]:
    """Whether each scope is one (RFC 6749 §3.3); the fault doesn't repeat them."""
    try:
        scope_set(scopes)
    except ConfigurationError:
        rule = "a scope contains characters that RFC 6749 §3.3 doesn't allow"
        yield malformed((*path, "scopes"), rule, "write each scope as a string of its own")


def _embedded(table: ResourceTable, path: tuple[str, ...], *, has_issuers: bool) -> Iterator[Fault]:
    keys = [key for key in (*_keys_in(_BY_SOURCE), *_PLATFORM) if _is_given(table, key)]
    details = "authorization_details"
    if has_issuers or not _MEANS.isdisjoint(keys):
        yield missing((*path, "source"), "give the source, or an issuer for token exchange")
        keys = [key for key in keys if key == details]
    for key in keys:
        yield unused((*path, key), _EMBEDDED)
    if table.transaction_token is not None:
        yield unused((*path, "transaction_token"), _EMBEDDED)
    if table.binding != "dpop":
        yield unused((*path, "binding"), "the embedded authority binds its tokens with DPoP")


def _platform(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if uses_platform(table):
        yield from check_keys(_BY_PROVIDER, table.provider or "", table, path)
        return
    for key in _PLATFORM:
        if _is_given(table, key):
            yield unused((*path, key), f"this {table.source} uses no platform token")


def _issuer(
    table: ResourceTable, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    if table.source not in OAUTH_SOURCES:
        if table.binding not in {None, "none"}:
            yield conflict(
                (*path, "binding"),
                f"{table.source} has no token that can be bound",
                'remove binding, or set it to "none"',
            )
        return
    if table.issuer == DISCOVERED:
        yield from _discovered(table, path)
        return
    if table.binding == "offered":
        yield conflict(
            (*path, "binding"), "is only for discovered issuers", 'set it to "dpop" or "none"'
        )
    issuer = configuration.issuers.get(table.issuer or "")
    if issuer is None:
        return
    names_resource = table.source not in {"entra-obo", "auth0-token-vault"}
    if names_resource and not issuer.resource_indicators and table.audience is None:
        yield missing(
            (*path, "audience"),
            "with resource_indicators = false the issuer needs the audience instead of the resource",
        )
    has_certificate = issuer.client_certificate or "spiffe" in configuration.model_fields_set
    if table.binding == "mtls" and not has_certificate:
        yield missing(
            ("issuers", str(table.issuer), "client_certificate"),
            'binding = "mtls" needs a client_certificate, or a [spiffe] table',
        )


_FOR_DISCOVERED: Final = frozenset(
    {"authorization-code", "client-credentials", "device", "jwt-bearer"}
)


def _discovered(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    """What may go to an issuer that a resource names: nothing that the issuer could use elsewhere."""
    is_own = table.source == "jwt-bearer" and table.assertion_from != "workload"
    if table.source not in _FOR_DISCOVERED or is_own:
        yield conflict(
            (*path, "issuer"),
            f"{table.source} needs an issuer that is configured",
            "add the issuer to [issuers], and name it here",
        )
    if not path[1].startswith(("https://", "http://")):
        yield conflict(
            (*path, "issuer"), "only the URL of a resource leads to its metadata", "name an issuer"
        )
    if table.binding == "mtls":
        yield conflict(
            (*path, "binding"), "a discovered issuer gets no certificate", "name an issuer"
        )


_RESERVED: Final = {
    "choose another source": "grant_type requested_token_use response_type response_mode",
    "set it in the table of [issuers]": "client_id client_secret client_assertion* redirect_uri",
    "set subject_token_type": "subject_token_type",
    "set actor": "actor_token*",
    "set audience": "audience",
    "use the resource's URI, and resource_indicators at the issuer": "resource",
    "set scopes": "scope",
    "set authorization_details": "authorization_details",
    "set refresh_token": "refresh_token",
    "set login_hint_from": "login_hint* id_token_hint",
    "open the session for that principal": "assertion subject_token requested_subject username",
    "let the resource require a step-up": "acr_values max_age",
    "leave it out: the source sends it where it is needed": (
        "requested_token_type code code_* state nonce request request_uri dpop_jkt device_code"
        " auth_req_id binding_message requested_expiry"
    ),
    "leave it out: no secret belongs in this file": (
        "*secret* *passw* *api_key* *apikey* user_code client_notification_token"
    ),
}
"""Patterns of names that `parameters` may not have, by what to do instead. They are compared without case."""


def _parameters(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if table.source == "auth0-token-vault" and "connection" not in (table.parameters or ()):
        where = (*path, "parameters", "connection")
        yield missing(where, "name the connection whose token is wanted")
    for name in table.parameters or ():
        where = (*path, "parameters", name)
        remedy = _instead_of(name.lower())
        if remedy is not None:
            message = "is reserved: the library sends it, or it changes who or what is asked for"
            yield Fault("parameter_reserved", where, message, remedy)
        elif not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            yield malformed(where, "must be letters, digits, dots, dashes and underscores")


def _instead_of(name: str) -> str | None:
    """What to do instead of sending a reserved parameter; None for one that isn't reserved."""
    return next(
        (
            remedy
            for remedy, patterns in _RESERVED.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns.split())
        ),
        None,
    )


_TOKEN_TYPE: Final = re.compile(
    r"access_token|id_token|jwt|refresh_token|[A-Za-z][A-Za-z0-9+.-]*:[!-~]+"
)


def _token_type(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    name = table.subject_token_type
    if name is not None and not _TOKEN_TYPE.fullmatch(name):
        what = "must be access_token, id_token, jwt, refresh_token or a URI"
        yield malformed((*path, "subject_token_type"), what)


_BY_AUTH: Final = {
    "private_key_jwt": Keys("jwks"),
    "spiffe_jwt": Keys("jwks subject"),
    "workload_token": Keys("issuer", "subject claims"),
}
ISSUERS_URL: Final = (
    "is an issuer's URL: a token of the issuer and a statement of the agent would look alike"
)
_CHECKED_ANYWAY: Final = frozenset({"iss", "aud", "exp", "nbf", "iat"})


def check_authority(configuration: Configuration) -> Iterator[Fault]:
    """All faults of `[authority]` and its clients."""
    table = configuration.authority
    if table is None:
        return
    trusted = {name for name, issuer in configuration.issuers.items() if "subjects" in issuer.trust}
    yield from _authority(table, configuration, trusted)
    for name, client in table.clients.items():
        path = ("authority", "clients", name)
        yield from check_keys(_BY_AUTH, client.auth, client, path)
        if client.auth == "workload_token":
            yield from _platform_token(client, path)
        elif client.auth == "spiffe_jwt" and client.subject and not _is_spiffe_id(client.subject):
            yield malformed((*path, "subject"), "must be a SPIFFE ID with a path")
        yield from _principals(client, path, trusted, configuration)
        for uri in client.resources:
            yield from check_resource_uri(uri, (*path, "resources"))
        yield from check_scopes(client.scopes, path)
        yield from _agent(client, path, configuration)


def _authority(
    table: AuthorityTable, configuration: Configuration, trusted: set[str]
) -> Iterator[Fault]:
    if not table.clients:
        yield missing(("authority", "clients"), "add [authority.clients.NAME] for each agent")
    for name in trusted:
        if configuration.issuers[name].issuer == table.issuer:
            yield conflict(
                ("issuers", name, "trust"),
                "is this authority, whose tokens must not lead to new first grants",
                "trust the identity provider for subjects instead of the authority",
            )


def _platform_token(client: AuthorityClientTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if client.subject is None and not client.claims:
        yield missing((*path, "subject"), "give the subject or the claims of this workload")
    if _CHECKED_ANYWAY & set(client.claims or ()):
        yield conflict(
            (*path, "claims"),
            "issuer, audience and times are always checked",
            "remove iss, aud, exp, nbf and iat",
        )


def _is_spiffe_id(text: str) -> bool:
    return re.fullmatch(r"spiffe://[^/]+/.+", text, re.DOTALL) is not None


def _principals(
    client: AuthorityClientTable,
    path: tuple[str, ...],
    trusted: set[str],
    configuration: Configuration,
) -> Iterator[Fault]:
    if not trusted and client.subject_issuers is None:
        yield missing(
            (*path, "subject_issuers"),
            'no issuer is trusted for principals: add the identity provider with trust = ["subjects"]',
        )
    for name in client.subject_issuers or ():
        if name in configuration.issuers and name not in trusted:
            yield missing(
                ("issuers", name, "trust"),
                f'set trust = ["subjects"]: {path[2]} brings principals of this issuer',
            )


def _agent(
    client: AuthorityClientTable, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    where = path if client.agent is None else (*path, "agent")
    try:
        uri = agent_uri(client.agent or path[2])
    except ConfigurationError as error:
        yield malformed(where, str(error), "give the agent a name or a URI")
        return
    issuers = {table.issuer for table in configuration.issuers.values()}
    if uri in issuers or (configuration.authority and uri == configuration.authority.issuer):
        yield conflict(where, ISSUERS_URL, "give the agent a URI of its own")
