# SPDX-License-Identifier: Apache-2.0
"""Checks of `[authority]`: how its clients prove themselves, whose principals they bring, what they may ask for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_identity.config.problems import Fault, conflict, malformed, missing
from agent_identity.config.resource_checks import (
    Keys,
    check_keys,
    check_resource_uri,
    check_scopes,
)
from agent_identity.errors import ConfigurationError
from agent_identity.keys.certificates import is_subject
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.config.model import AuthorityClientTable, AuthorityTable, Configuration

__all__ = ["ISSUERS_URL", "check_authority"]

_CERTIFICATE_NAMES: Final = ("san_uri", "san_dns", "subject_dn")
_BY_AUTH: Final = {
    "private_key_jwt": Keys("jwks"),
    "spiffe_jwt": Keys("jwks subject"),
    "tls_client_auth": Keys("", " ".join(_CERTIFICATE_NAMES)),
    "workload_token": Keys("issuer", "subject claims"),
}
ISSUERS_URL: Final = (
    "is an issuer's URL: a token of the issuer and a statement of the agent would look alike"
)
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
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
        if client.auth == "tls_client_auth":
            yield from _certificate(client, path, has_tls=table.tls is not None)
        elif client.auth == "workload_token":
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
    if table.tls is not None and (table.issuer or "").startswith("http://"):
        yield conflict(
            ("authority", "issuer"),
            "is http, but [authority.tls] makes the port speak TLS",
            "write https://",
        )
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


def _certificate(
    client: AuthorityClientTable, path: tuple[str, ...], *, has_tls: bool
) -> Iterator[Fault]:
    names = [key for key in _CERTIFICATE_NAMES if getattr(client, key) is not None]
    if not has_tls:
        remedy = f"add [authority.tls] with certificate, key and client_ca: {path[2]} authenticates with TLS"
        yield missing(("authority", "tls"), remedy)
    if not names:
        remedy = "give the name in the client's certificate: san_uri, san_dns or subject_dn"
        yield missing((*path, "san_uri"), remedy)
    for key in names[1:]:
        why = f"{names[0]} identifies the client's certificate already"
        yield conflict((*path, key), why, "keep one of them")
    uri = client.san_uri
    if uri is not None and not _is_uri(uri):
        yield malformed((*path, "san_uri"), "must be a URI; a SPIFFE ID needs a path")
    if client.san_dns is not None and not _HOST.fullmatch(client.san_dns):
        yield malformed((*path, "san_dns"), "must be one DNS name, without *")
    if client.subject_dn is not None and not is_subject(client.subject_dn):
        yield malformed(
            (*path, "subject_dn"),
            "must be a distinguished name",
            "write it like CN=bot,O=Acme (RFC 4514), and use the OID of an attribute without a name there",
        )


def _is_uri(text: str) -> bool:
    is_spiffe = text.lower().startswith("spiffe:")
    return bool(_URI.fullmatch(text) and (not is_spiffe or _is_spiffe_id(text)))


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
