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
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.config.model import AuthorityClientTable, AuthorityTable, Configuration


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
