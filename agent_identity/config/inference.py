# SPDX-License-Identifier: Apache-2.0
"""Infers missing values from other keys. Each rule fills one missing key and says why; no rule replaces a written value.

Where a rule would have to choose between several values, the key stays empty and `checks` asks for it.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Generic, NamedTuple, TypeVar

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
)
from agent_identity.config.problems import key_text
from agent_identity.config.references import is_in_vault
from agent_identity.values import DISCOVERED, b64url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T", bound=Table)


class _Rule(NamedTuple, Generic[T]):
    """`key` has this value where it is missing and `applies` holds."""

    key: str
    value: str
    reason: str
    applies: Callable[[T], bool]


def infer(configuration: Configuration) -> Configuration:
    """The same configuration with every inferred value written out."""
    inferred: list[Inferred] = []
    issuers = {
        name: _fill(table, ("issuers", name), _issuer_rules(table), inferred)
        for name, table in configuration.issuers.items()
    }
    only = [] if len(issuers) != 1 else [_only_issuer(name) for name in issuers]
    resources = {
        uri: _fill(table, ("resources", uri), (*only, *_RESOURCE_RULES), inferred)
        for uri, table in configuration.resources.items()
    }
    policy = configuration.policy and _fill(
        configuration.policy, ("policy",), _POLICY_RULES, inferred
    )
    update: dict[str, object] = {"issuers": issuers, "resources": resources, "policy": policy}
    if rules := _agent_rules(configuration):  # without any, [agent] stays unset
        update["agent"] = _fill(configuration.agent, ("agent",), rules, inferred)
    return configuration.model_copy(update=update).with_inferred(tuple(inferred))


def _fill(
    table: T, path: tuple[str, ...], rules: Iterable[_Rule[T]], inferred: list[Inferred]
) -> T:
    """Apply the rules one after the other: a later one sees what an earlier one filled."""
    for rule in rules:
        if getattr(table, rule.key) is None and rule.applies(table):
            table = table.model_copy(update={rule.key: rule.value})
            inferred.append(Inferred(key_text((*path, rule.key)), rule.value, rule.reason))
    return table


def _always(_: Table) -> bool:
    return True


def _has(key: str) -> Callable[[Table], bool]:
    """The table has a value for this key, and not an empty one."""
    return lambda table: bool(getattr(table, key))


def _agent_rules(configuration: Configuration) -> list[_Rule[AgentTable]]:
    signer, vault = configuration.agent.signer, configuration.vault
    if signer is None or vault is None or not is_in_vault(signer):
        return []
    place = f"{vault.address}\n{vault.namespace or ''}\n{signer}"
    name = b64url(hashlib.sha256(place.encode()).digest())
    why = "it is a digest of the key's place, so it stays the same when the key is rotated"
    return [_Rule("signer_id", f"urn:agent-identity:signer:{name}", why, _always)]


def _issuer_rules(table: IssuerTable) -> Iterable[_Rule[IssuerTable]]:
    yield from _ISSUER_RULES
    if table.client_id is not None and "subjects" in table.trust:
        yield _Rule("audience", table.client_id, "it is the client_id", _always)


def _has_document(table: IssuerTable) -> bool:
    return (table.client_id or "").startswith("https://")


def _proves(key: str, *others: str) -> Callable[[IssuerTable], bool]:
    """A client that is known to the issuer has this proof, and no other than those named."""
    proofs = ("client_secret", "client_certificate", "client_key")

    def applies(table: IssuerTable) -> bool:
        given = {proof for proof in proofs if getattr(table, proof) is not None}
        return table.registration != "dynamic" and key in given and given <= {key, *others}

    return applies


_has_secret = _proves("client_secret")
_has_certificate = _proves("client_certificate", "client_key")
_has_key = _proves("client_key")

_ISSUER_RULES: Final[tuple[_Rule[IssuerTable], ...]] = (
    _Rule("registration", "cimd", "the client_id is an https URL", _has_document),
    _Rule("registration", "configured", "there is a client_id", _has("client_id")),
    _Rule("client_auth", "client_secret_basic", "there is a client_secret", _has_secret),
    _Rule("client_auth", "tls_client_auth", "there is a client_certificate", _has_certificate),
    _Rule("client_auth", "private_key_jwt", "there is a client_key", _has_key),
)

OWN_MEANS: Final = ("secret", "username", "password", "token", "certificate", "key", "provider")
"""Keys that only sources without an issuer have, and that show what a table without `source` means."""


def uses_platform(table: ResourceTable) -> bool:
    """Whether getting the credential takes a token of the platform."""
    return (
        table.source == "workload-token"
        or (table.source == "token-exchange" and table.actor == "workload")
        or (table.source == "jwt-bearer" and table.assertion_from == "workload")
    )


def _only_issuer(name: str) -> _Rule[ResourceTable]:
    def wants_issuer(table: ResourceTable) -> bool:
        if table.source is not None:
            return table.source in OAUTH_SOURCES
        return all(getattr(table, key) is None for key in OWN_MEANS)

    return _Rule("issuer", name, "it is the only issuer", wants_issuer)


def _is(*sources: str | None) -> Callable[[ResourceTable], bool]:
    return lambda table: table.source in sources


def _is_authorization(table: ResourceTable) -> bool:
    return (table.header or "").lower() == "authorization"


def _is_discovered(table: ResourceTable) -> bool:
    return table.issuer == DISCOVERED


_RESOURCE_RULES: Final[tuple[_Rule[ResourceTable], ...]] = (
    _Rule("source", "authorization-code", "a person signs in at its issuer", _is_discovered),
    _Rule("source", "token-exchange", "there is an issuer", _has("issuer")),
    _Rule("binding", "offered", "the issuer's metadata says what it binds", _is_discovered),
    _Rule("binding", "dpop", "the embedded authority binds its tokens", _is(None)),
    _Rule("binding", "none", "Entra binds no tokens", _is("entra-obo")),
    _Rule("binding", "none", "the token is of another provider", _is("auth0-token-vault")),
    _Rule("binding", "dpop", "an issuer's tokens can be bound", _is(*OAUTH_SOURCES)),
    _Rule("binding", "none", "the source has no token that can be bound", _always),
    _Rule("assertion", "omit", "a legacy service doesn't verify it", _is(*LEGACY_SOURCES)),
    _Rule("assertion", "send", "the resource can verify it", _always),
    _Rule("actor", "none", "not every issuer accepts an actor", _is("token-exchange")),
    _Rule("assertion_from", "client", "the client signs for the principal", _is("jwt-bearer")),
    _Rule("login_hint_from", "sub", "every principal has one", _is("ciba")),
    _Rule("provider", "ambient", "the platform is detected", uses_platform),
    _Rule("header", "Authorization", "it is the usual header for keys", _is("api-key")),
    _Rule("scheme", "Bearer", "Authorization needs a scheme", _is_authorization),
    _Rule("scheme", "", "any other header holds the key alone", _has("header")),
)
_POLICY_RULES: Final[tuple[_Rule[PolicyTable], ...]] = (
    _Rule("engine", "cedar", "there are policy files", _has("files")),
)
