# SPDX-License-Identifier: Apache-2.0
"""Checks of `[resources]`: the keys that each source needs and takes, and what issuers have to have for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.inference import OWN_MEANS, uses_platform
from agent_identity.config.model import OAUTH_SOURCES, ResourceTable
from agent_identity.config.problems import Fault, conflict, malformed, missing, unused
from agent_identity.errors import ConfigurationError
from agent_identity.uris import check_resource
from agent_identity.values import TOOL_DETAILS, scope_set

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_identity.config.model import Configuration, Table


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


_SIGN_IN: Final = "audience authorization_details refresh_token"
_BY_SOURCE: Final = {
    "token-exchange": Keys("issuer", "audience authorization_details actor"),
    "client-credentials": Keys("issuer", "audience authorization_details"),
    "jwt-bearer": Keys("issuer", "audience assertion_from"),
    "id-jag": Keys("issuer via", "audience authorization_details"),
    "identity-chaining": Keys("issuer via", "audience authorization_details"),
    "authorization-code": Keys("issuer", _SIGN_IN),
    "device": Keys("issuer", _SIGN_IN),
    "ciba": Keys("issuer", f"{_SIGN_IN} login_hint_from"),
    "refresh-token": Keys("issuer refresh_token", "audience"),
    "spiffe-jwt": Keys(),
    "spiffe-x509": Keys(),
    "workload-token": Keys("", "audience"),
    "api-key": Keys("secret", "header scheme"),
    "basic": Keys("username password"),
    "static": Keys("token"),
    "client-certificate": Keys("certificate", "key"),
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
    issuer = configuration.issuers.get(table.issuer or "")
    if issuer is None:
        return
    if not issuer.resource_indicators and table.audience is None:
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
