# SPDX-License-Identifier: Apache-2.0
"""What can't be of an organisation's authority: clients that can't prove themselves, and principals of nobody."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_identity.config.problems import RESOURCE_RULE, SCOPE_RULE, Fault
from agent_identity.errors import ConfigurationError
from agent_identity.keys.certificates import is_subject
from agent_identity.uris import checked_resource
from agent_identity.values import agent_uri, scope_set

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.config.model import AuthorityClientTable, AuthorityTable, Configuration

__all__ = ["check_authority"]

_NEEDS: Final = {
    "private_key_jwt": ("jwks",),
    "spiffe_jwt": ("jwks", "subject"),
    "tls_client_auth": (),
    "workload_token": ("issuer",),
}
_NAMES: Final = ("san_uri", "san_dns", "subject_dn")
"""By which name in its certificate a client is known."""

_USES: Final = {
    "private_key_jwt": frozenset({"jwks"}),
    "spiffe_jwt": frozenset({"jwks", "subject"}),
    "tls_client_auth": frozenset(_NAMES),
    "workload_token": frozenset({"issuer", "subject", "claims"}),
}
_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_LABEL: Final = "[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_CHECKED_ANYWAY: Final = frozenset({"iss", "aud", "exp", "nbf", "iat"})


def check_authority(configuration: Configuration) -> Iterator[Fault]:
    """All that is wrong with `[authority]` and its clients."""
    table = configuration.authority
    if table is None:
        return
    trusted = {name for name, issuer in configuration.issuers.items() if "subjects" in issuer.trust}
    if not table.clients:
        yield _missing(("authority", "clients"), "add [authority.clients.NAME] for each agent")
    yield from _itself(table, configuration, trusted)
    for name, client in table.clients.items():
        path = ("authority", "clients", name)
        yield from _proof(client, path)
        if client.auth == "tls_client_auth":
            yield from _certified(client, path, has_tls=table.tls is not None)
        yield from _principals(client, path, trusted, configuration)
        yield from _terms(client, path)
        yield from _agent(client, name, path, configuration)


def _itself(
    table: AuthorityTable, configuration: Configuration, trusted: set[str]
) -> Iterator[Fault]:
    if table.tls is not None and (table.issuer or "").startswith("http://"):
        yield Fault(
            "value_conflict",
            ("authority", "issuer"),
            "is http, where [authority.tls] has the port speak TLS",
            "write https://",
        )
    for name in trusted:
        if configuration.issuers[name].issuer == table.issuer:
            yield Fault(
                "value_conflict",
                ("issuers", name, "trust"),
                "is this authority itself, whose tokens would make further first grants",
                "trust the identity provider for subjects, and not the authority",
            )


def _proof(client: AuthorityClientTable, path: tuple[str, ...]) -> Iterator[Fault]:
    for key in _NEEDS[client.auth]:
        if getattr(client, key) is None:
            yield _missing((*path, key), f"{client.auth} needs {key}")
    for key in ("jwks", "subject", "issuer", "claims", *_NAMES):
        if getattr(client, key) is not None and key not in _USES[client.auth]:
            why = f"has no use here: {client.auth} doesn't use it"
            yield Fault("key_unused", (*path, key), why, f"leave {key} out")
    is_spiffe = client.auth == "spiffe_jwt" and client.subject is not None
    if is_spiffe and not _is_spiffe_id(client.subject or ""):
        yield Fault("value_malformed", (*path, "subject"), "must be a SPIFFE ID with a path")
    if client.auth != "workload_token":
        return
    if client.subject is None and not client.claims:
        yield _missing((*path, "subject"), "say the subject or the claims of this very workload")
    if _CHECKED_ANYWAY & set(client.claims or ()):
        yield Fault(
            "value_conflict",
            (*path, "claims"),
            "issuer, audience and times are checked by themselves",
            "leave iss, aud, exp, nbf and iat out",
        )


def _certified(
    client: AuthorityClientTable, path: tuple[str, ...], *, has_tls: bool
) -> Iterator[Fault]:
    said = [key for key in _NAMES if getattr(client, key) is not None]
    if not has_tls:
        why = f"{path[2]} proves itself in TLS: add [authority.tls] with certificate, key and client_ca"
        yield _missing(("authority", "tls"), why)
    if not said:
        remedy = "say which name of its certificate is the client: san_uri, san_dns or subject_dn"
        yield _missing((*path, "san_uri"), remedy)
    for key in said[1:]:
        yield Fault(
            "value_conflict",
            (*path, key),
            f"{said[0]} says already which certificate is the client's",
            "leave one of them out",
        )
    yield from _names(client, path)


def _names(client: AuthorityClientTable, path: tuple[str, ...]) -> Iterator[Fault]:
    uri = client.san_uri
    if uri is not None and not _is_uri(uri):
        yield Fault("value_malformed", (*path, "san_uri"), "must be a URI, a SPIFFE ID with a path")
    if client.san_dns is not None and not _HOST.fullmatch(client.san_dns):
        yield Fault("value_malformed", (*path, "san_dns"), "must be one DNS name, without *")
    if client.subject_dn is not None and not is_subject(client.subject_dn):
        yield Fault(
            "value_malformed",
            (*path, "subject_dn"),
            "must be a subject's name",
            "write it like CN=bot,O=Acme (RFC 4514), and what has no name there by its number",
        )


def _is_uri(text: str) -> bool:
    is_spiffe = text.lower().startswith("spiffe:")
    return _URI.fullmatch(text) is not None and (not is_spiffe or _is_spiffe_id(text))


def _is_spiffe_id(text: str) -> bool:
    domain, _, rest = text.removeprefix("spiffe://").partition("/")
    return text.startswith("spiffe://") and bool(domain and rest)


def _principals(
    client: AuthorityClientTable,
    path: tuple[str, ...],
    trusted: set[str],
    configuration: Configuration,
) -> Iterator[Fault]:
    if not trusted and client.subject_issuers is None:
        yield _missing(
            (*path, "subject_issuers"),
            'its principals are nobody\'s: add the identity provider with trust = ["subjects"]',
        )
    for name in client.subject_issuers or ():
        if name in configuration.issuers and name not in trusted:
            yield _missing(
                ("issuers", name, "trust"),
                f'{path[2]} brings its principals, so say trust = ["subjects"]',
            )


def _terms(client: AuthorityClientTable, path: tuple[str, ...]) -> Iterator[Fault]:
    for uri in client.resources:
        try:
            checked_resource(uri)
        except ConfigurationError as error:
            remedy = "write each resource as its server spells it"
            yield Fault(error.code, (*path, "resources"), RESOURCE_RULE, remedy)
    try:
        scope_set(client.scopes)
    except ConfigurationError:
        yield Fault("value_malformed", (*path, "scopes"), SCOPE_RULE, "write one scope a text")


def _agent(
    client: AuthorityClientTable, name: str, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    where = path if client.agent is None else (*path, "agent")
    try:
        uri = agent_uri(client.agent or name)
    except ConfigurationError as error:
        yield Fault("value_malformed", where, str(error), "give the agent a name or a URI")
        return
    issuers = {table.issuer for table in configuration.issuers.values()}
    if uri in issuers or (configuration.authority and uri == configuration.authority.issuer):
        yield Fault(
            "value_conflict",
            where,
            "is an issuer's URL, so that what the agent says of itself would read as that issuer's word",
            "give the agent a URI of its own",
        )


def _missing(path: tuple[str, ...], remedy: str) -> Fault:
    return Fault("value_missing", path, "missing", remedy)
