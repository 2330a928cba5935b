# SPDX-License-Identifier: Apache-2.0
"""What a short file means in full. Each rule fills one key that was left out and says why; none overrules what is written.

A rule that would have to choose says nothing, and `checks` asks for the key.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from agent_identity.config.model import (
    LEGACY_SOURCES,
    OAUTH_SOURCES,
    AgentTable,
    Configuration,
    Inferred,
    IssuerTable,
    PolicyTable,
    ResourceTable,
    Table,
    VaultTable,
)
from agent_identity.config.problems import key_text
from agent_identity.config.references import is_in_vault
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["infer", "uses_platform"]

T = TypeVar("T", bound=Table)


class _Rule(NamedTuple):
    """The value of one key, where it was left out."""

    key: str
    value: str
    reason: str


def infer(configuration: Configuration) -> Configuration:
    """The same configuration with all that follows from it written out."""
    found: list[Inferred] = []
    issuers = {
        name: _filled(table, ("issuers", name), _ISSUER_RULES, found)
        for name, table in configuration.issuers.items()
    }
    only = next(iter(issuers)) if len(issuers) == 1 else None
    resources = {
        uri: _resource(table, ("resources", uri), only, found)
        for uri, table in configuration.resources.items()
    }
    policy = configuration.policy and _filled(configuration.policy, ("policy",), (_engine,), found)
    update: dict[str, object] = {"issuers": issuers, "resources": resources, "policy": policy}
    if configuration.agent.signer is not None and configuration.vault is not None:
        update["agent"] = _agent(configuration.agent, configuration.vault, found)
    return configuration.model_copy(update=update).with_inferred(tuple(found))


def _agent(table: AgentTable, vault: VaultTable, found: list[Inferred]) -> AgentTable:
    def signer_id(table: AgentTable) -> _Rule | None:
        if table.signer is None or not is_in_vault(table.signer):
            return None
        place = f"{vault.address}\n{vault.namespace or ''}\n{table.signer}"
        name = b64url(hashlib.sha256(place.encode()).digest())
        why = "it is made of the key's place, so that it stays when the key is rotated"
        return _Rule("signer_id", f"urn:agent-identity:signer:{name}", why)

    return _filled(table, ("agent",), (signer_id,), found)


def _resource(
    table: ResourceTable, path: tuple[str, ...], only: str | None, found: list[Inferred]
) -> ResourceTable:
    def issuer(table: ResourceTable) -> _Rule | None:
        if only is None or not _wants_issuer(table):
            return None
        return _Rule("issuer", only, "it is the only issuer")

    return _filled(table, path, (issuer, *_RESOURCE_RULES), found)


def _filled(
    table: T,
    path: tuple[str, ...],
    rules: Sequence[Callable[[T], _Rule | None]],
    found: list[Inferred],
) -> T:
    """The table after its rules, one after the other: a later one sees what an earlier one filled."""
    for rule in rules:
        meant = rule(table)
        if meant is None or getattr(table, meant.key) is not None:
            continue
        table = table.model_copy(update={meant.key: meant.value})
        found.append(Inferred(key_text((*path, meant.key)), meant.value, meant.reason))
    return table


# -- issuers ----------------------------------------------------------------------------------------------------------


def _registration(table: IssuerTable) -> _Rule | None:
    if table.client_id is None:
        return None
    if table.client_id.startswith("https://"):
        return _Rule("registration", "cimd", "the client_id is an https URL")
    return _Rule("registration", "configured", "there is a client_id")


def _client_auth(table: IssuerTable) -> _Rule | None:
    if table.registration == "dynamic":
        return None
    if table.client_secret is not None:
        if table.client_key is not None or table.client_certificate is not None:
            return None
        return _Rule("client_auth", "client_secret_basic", "there is a client_secret")
    if table.client_certificate is not None:
        return _Rule("client_auth", "tls_client_auth", "there is a client_certificate")
    if table.client_key is not None:
        return _Rule("client_auth", "private_key_jwt", "there is a client_key")
    return None


def _audience(table: IssuerTable) -> _Rule | None:
    if "subjects" not in table.trust or table.client_id is None:
        return None
    return _Rule("audience", table.client_id, "it is the client_id")


_ISSUER_RULES = (_registration, _client_auth, _audience)


# -- resources --------------------------------------------------------------------------------------------------------

_OWN_MEANS = ("secret", "username", "password", "token", "certificate", "key", "provider")
"""Keys of sources that have no issuer."""


def _wants_issuer(table: ResourceTable) -> bool:
    if table.source is not None:
        return table.source in OAUTH_SOURCES
    return all(getattr(table, key) is None for key in _OWN_MEANS)


def _source(table: ResourceTable) -> _Rule | None:
    if table.issuer is None:
        return None
    return _Rule("source", "token-exchange", "there is an issuer")


def _binding(table: ResourceTable) -> _Rule:
    if table.source is None:
        return _Rule("binding", "dpop", "the embedded authority binds its tokens")
    if table.source in OAUTH_SOURCES:
        return _Rule("binding", "dpop", f"{table.source} gets a token from an issuer")
    return _Rule("binding", "none", f"{table.source} has nothing to bind")


def _assertion(table: ResourceTable) -> _Rule:
    if table.source in LEGACY_SOURCES:
        return _Rule("assertion", "omit", f"what takes {table.source} is a stranger")
    return _Rule("assertion", "send", "the resource can verify it")


def _actor(table: ResourceTable) -> _Rule | None:
    if table.source != "token-exchange":
        return None
    return _Rule("actor", "none", "not every issuer takes an actor")


def _assertion_from(table: ResourceTable) -> _Rule | None:
    if table.source != "jwt-bearer":
        return None
    return _Rule("assertion_from", "client", "the client signs for the principal")


def _login_hint_from(table: ResourceTable) -> _Rule | None:
    if table.source != "ciba":
        return None
    return _Rule("login_hint_from", "sub", "every principal has one")


def _provider(table: ResourceTable) -> _Rule | None:
    if not uses_platform(table):
        return None
    return _Rule("provider", "ambient", "whichever platform runs us says who we are")


def _header(table: ResourceTable) -> _Rule | None:
    if table.source != "api-key":
        return None
    return _Rule("header", "Authorization", "it is where keys go")


def _scheme(table: ResourceTable) -> _Rule | None:
    if table.header is None:
        return None
    if table.header.lower() == "authorization":
        return _Rule("scheme", "Bearer", "Authorization has a scheme")
    return _Rule("scheme", "", "a header of its own holds the key alone")


_RESOURCE_RULES = (
    *(_source, _binding, _assertion, _actor, _assertion_from, _login_hint_from),
    *(_provider, _header, _scheme),
)


def uses_platform(table: ResourceTable) -> bool:
    """Whether a token of the platform is part of getting this credential."""
    return (
        table.source == "workload-token"
        or (table.source == "token-exchange" and table.actor == "workload")
        or (table.source == "jwt-bearer" and table.assertion_from == "workload")
    )


# -- policy -----------------------------------------------------------------------------------------------------------


def _engine(table: PolicyTable) -> _Rule | None:
    if not table.files:
        return None
    return _Rule("engine", "cedar", "there are policy files")
