# SPDX-License-Identifier: Apache-2.0
"""What pydantic can't check for one key: unknown names, keys that contradict each other, secrets in the file.

Each check reads a configuration with everything inferred and yields all its faults, so that one error shows them all.
A message says which key is wrong and what it may be; it never repeats a value.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from agent_identity.config.model import (
    NO_METADATA,
    Kind,
    PolicyTable,
    SharedTable,
    values_of,
)
from agent_identity.config.problems import Fault, conflict, malformed, missing, nearest, unused
from agent_identity.config.references import is_in_vault, is_reference, parse_reference, transit_key
from agent_identity.config.table_checks import ISSUERS_URL, check_authority, check_resources
from agent_identity.errors import ConfigurationError
from agent_identity.uris import is_loopback_redirect, is_safe_link, origin_or_none
from agent_identity.values import DISCOVERED, agent_uri, check_phrase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.config.model import AgentTable, Configuration, IssuerTable


def check(configuration: Configuration) -> Iterator[Fault]:
    """All faults of a configuration in which everything is inferred."""
    yield from _agent(configuration)
    yield from _issuer_names(configuration)
    yield from _issuers(configuration)
    yield from check_resources(configuration)
    yield from _discovered_client(configuration)
    yield from _references(configuration)
    yield from _addresses(configuration)
    yield from _policy(configuration)
    yield from _ledger(configuration)
    yield from check_authority(configuration)


def check_policy(configuration: Configuration) -> Iterator[Fault]:
    """Whether there is a policy, for callers that don't pass one."""
    if configuration.policy is None:
        yield Fault(
            "policy_missing",
            ("policy",),
            "no policy is configured",
            'add [policy] engine = "grants-only" to allow what the grants allow, or pass a policy',
        )


_NAMES: Final = "use letters, digits, dots, dashes and underscores, or a whole URI"


def _agent(configuration: Configuration) -> Iterator[Fault]:
    agent, issuers = configuration.agent, configuration.issuers
    acts = bool(configuration.resources or (issuers and configuration.authority is None))
    if (acts or "agent" in configuration.model_fields_set) and not (agent.name or agent.id):
        yield missing(("agent", "name"), "give the agent a name or an id")
    if agent.name is not None and not _is_agent(agent.name):
        yield malformed(("agent", "name"), "must be a name or a URI", _NAMES)
    if agent.id is not None and (":" not in agent.id or not _is_agent(agent.id)):
        yield malformed(("agent", "id"), "must be a URI", _NAMES)
    if agent.id in {table.issuer for table in issuers.values()}:
        yield conflict(("agent", "id"), ISSUERS_URL, "give the agent a URI of its own")
    if agent.owner is not None:
        try:
            check_phrase("owner", agent.owner)
        except ConfigurationError as error:
            yield malformed(("agent", "owner"), str(error))
    if agent.grants is not None:
        yield from _grants(agent, agent.grants, configuration)


def _grants(agent: AgentTable, issuer: str, configuration: Configuration) -> Iterator[Fault]:
    if issuer in configuration.issuers and "grants" not in configuration.issuers[issuer].trust:
        remedy = 'add "grants" to its trust: agent.grants names this issuer'
        yield missing(("issuers", issuer, "trust"), remedy)
    if agent.signer is not None:
        yield conflict(
            ("agent", "signer"),
            "either an issuer or a signer signs the first grant",
            "remove agent.grants or agent.signer",
        )
    if agent.signer_id is not None:
        yield unused(("agent", "signer_id"), "an issuer signs the first grants")


def _is_agent(name: str) -> bool:
    try:
        agent_uri(name)
    except ConfigurationError:
        return False
    return True


def _issuer_names(configuration: Configuration) -> Iterator[Fault]:
    for path, name in values_of(configuration, Kind.ISSUER):
        if name == DISCOVERED and path[0] == "resources" and path[-1] == "issuer":
            continue
        if name not in configuration.issuers:
            meant = nearest(name, configuration.issuers)
            hint = f", did you mean {meant}?" if meant else ""
            message = f"no table of [issuers] has that name{hint}"
            yield Fault("unknown_issuer", path, message, "name a table of [issuers]")


def _issuers(configuration: Configuration) -> Iterator[Fault]:
    asked = configuration.asked_issuers
    has_svid = "spiffe" in configuration.model_fields_set
    signing = {
        table.issuer
        for table in configuration.resources.values()
        if table.source == "jwt-bearer" and table.assertion_from == "client"
    }
    trusted: set[str] = set()
    for name, table in configuration.issuers.items():
        path = ("issuers", name)
        yield from _trust(table, path, trusted, configuration)
        yield from _registration(table, path)
        yield from _metadata(table, path, is_asked=name in asked)
        if table.registration == "dynamic":
            continue
        yield from _proof(table, path, has_svid=has_svid, signs=name in signing)
        if name not in asked:
            continue
        is_named = table.client_id is not None or table.registration is not None
        if not is_named and table.client_auth != "anonymous":
            yield missing((*path, "client_id"), "give the client_id that the issuer registered")
        if table.client_auth is None and table.client_secret is None:
            yield missing(
                (*path, "client_auth"),
                'give client_key, client_secret or client_certificate, or set client_auth = "none"',
            )


def _trust(
    table: IssuerTable, path: tuple[str, ...], trusted: set[str], configuration: Configuration
) -> Iterator[Fault]:
    for name in table.subjects_of:
        other = configuration.issuers.get(name)
        if other is not None and "subjects" not in other.trust:
            yield unused((*path, "subjects_of"), f"{name} isn't trusted for subjects")
    if "subjects" not in table.trust:
        for key in ("audience", "algorithms", "token_type"):
            if getattr(table, key) is not None:
                yield unused((*path, key), "the issuer isn't trusted for subjects")
        return
    if table.audience is None and configuration.authority is None:
        remedy = "give the audience that a principal's token must name, or the client_id"
        yield missing((*path, "audience"), remedy)
    if table.issuer in trusted:
        yield conflict(
            (*path, "trust"),
            "another table of the same issuer is trusted for subjects already",
            'set trust = ["subjects"] in one of them',
        )
    trusted.add(table.issuer)


def _metadata(table: IssuerTable, path: tuple[str, ...], *, is_asked: bool) -> Iterator[Fault]:
    if table.metadata != NO_METADATA:
        return
    why = 'with metadata = "none" nothing else says where it is'
    if is_asked and (table.endpoints is None or table.endpoints.token_endpoint is None):
        yield missing((*path, "endpoints", "token_endpoint"), why)
    if "subjects" in table.trust and table.jwks is None:
        yield missing((*path, "jwks"), why)


def _discovered_client(configuration: Configuration) -> Iterator[Fault]:
    """Our client at discovered issuers."""
    table, tables = configuration.mcp, configuration.resources.values()
    is_used = any(each.issuer == DISCOVERED for each in tables)
    for key in ("client_id", "client_key", "client_key_id", "redirect_uri"):
        if getattr(table, key) is not None and not is_used:
            yield unused(("mcp", key), 'no resource has issuer = "discovered"')
    if table.client_key is not None and table.client_id is None:
        yield missing(("mcp", "client_id"), "client_key is the key of this client")
    if table.client_key_id is not None and table.client_key is None:
        yield unused(("mcp", "client_key_id"), "there is no client_key")
    if DISCOVERED in configuration.issuers:
        yield conflict(
            ("issuers", DISCOVERED),
            "is the name of issuers that are found at run time",
            "give the table another name",
        )


_CLIENT_KEYS: Final = (
    *("client_id", "client_auth", "client_key", "client_key_id", "client_secret"),
    "client_certificate",
)


def _registration(table: IssuerTable, path: tuple[str, ...]) -> Iterator[Fault]:
    client_id, secret = (*path, "client_id"), (*path, "client_secret")
    match table.registration:
        case "dynamic":
            why = "the issuer gives a registered client its id, and the agent's own key authenticates it"
            for key in _CLIENT_KEYS:
                if getattr(table, key) is not None:
                    yield unused((*path, key), why)
            return
        case "cimd":
            if not (table.client_id or "").startswith("https://"):
                yield missing(client_id, "give the https URL of the client's document")
            if table.client_secret is not None:
                why = "a client with a public document can't have a shared secret"
                yield conflict(secret, why, "use client_key")
        case "configured" if table.client_id is None:
            yield missing(client_id, "give the client_id that the issuer registered")
        case _:
            pass
    if table.registration_token is not None:
        yield unused((*path, "registration_token"), 'registration is not "dynamic"')


_MATERIAL: Final = {
    "private_key_jwt": "client_key",
    "client_secret_basic": "client_secret",
    "client_secret_post": "client_secret",
    "tls_client_auth": "client_certificate",
    "self_signed_tls_client_auth": "client_certificate",
}
_KEYLESS: Final = frozenset({"none", "anonymous", "spiffe_jwt", "workload_token"})


def _proof(
    table: IssuerTable, path: tuple[str, ...], *, has_svid: bool, signs: bool
) -> Iterator[Fault]:
    """`signs` says whether the client's key signs assertions about principals."""
    method = table.client_auth
    needed = _MATERIAL.get(method or "")
    key, secret = (*path, "client_key"), (*path, "client_secret")
    is_in_use = signs or table.client_certificate is not None
    if method is None and table.client_secret is not None:
        why = "the client has several ways to authenticate"
        yield conflict(secret, why, "set client_auth, and remove what it doesn't use")
    if needed and not (getattr(table, needed) or (needed == "client_certificate" and has_svid)):
        yield missing((*path, needed), f"{method} needs {needed}")
    if method and table.client_secret is not None and needed != "client_secret":
        yield conflict(secret, f"{method} uses no secret", "remove client_secret or client_auth")
    if table.client_key is not None and not is_in_use:
        if needed == "client_secret":
            yield conflict(key, f"{method} uses no key", "remove client_key or client_auth")
        elif method in _KEYLESS:
            yield unused(key, f"{method} uses no key")
    if method == "anonymous" and table.client_id is not None:
        yield conflict((*path, "client_id"), "anonymous sends none", 'set client_auth = "none"')
    makes_assertion = method in {None, "private_key_jwt"}
    if table.client_key_id is not None and not (table.client_key and (signs or makes_assertion)):
        yield unused((*path, "client_key_id"), "no key signs with this id")
    if "client_assertion_audience" in table.model_fields_set and not makes_assertion:
        yield unused((*path, "client_assertion_audience"), f"{method} makes no assertion")


def _references(configuration: Configuration) -> Iterator[Fault]:
    for path, text in values_of(configuration, Kind.REFERENCE):
        if is_reference(text):
            yield from _place(text, path, has_vault=configuration.vault is not None)
        else:
            yield Fault(
                "secret_in_clear",
                path,
                "must be a reference, never the secret itself",
                "write env:NAME, file:PATH, keyring:NAME or vault:PATH, and replace a secret that was here",
            )


def _place(text: str, path: tuple[str, ...], *, has_vault: bool) -> Iterator[Fault]:
    try:
        place = parse_reference(text)
        if path == ("agent", "signer") and is_in_vault(text):
            transit_key(text)
    except ConfigurationError as error:
        yield Fault(error.code, path, str(error), error.remedy)
        return
    if place.scheme == "vault" and not has_vault:
        remedy = "add a [vault] table with its address"
        yield Fault("vault_unconfigured", path, "there is no [vault]", remedy)


def _addresses(configuration: Configuration) -> Iterator[Fault]:
    for path, url in values_of(configuration, Kind.URL):
        yield from _url(url, path, is_plain=path[-1] == "issuer")
    for path, url in values_of(configuration, Kind.ORIGIN):
        if origin_or_none(url) == url:
            yield from _url(url, path, is_plain=True)
        else:
            yield malformed(path, "must be origins, like https://host", "remove the path")
    for path, url in values_of(configuration, Kind.METADATA):
        if url != NO_METADATA:
            yield from _url(url, path, is_plain=False)
    for path, uri in values_of(configuration, Kind.REDIRECT):
        if not is_loopback_redirect(uri):
            what = (
                "must be an http URI on loopback with a path, like http://127.0.0.1:8400/callback"
            )
            yield malformed(path, what, "register such a URI at the issuer, and write it here")
    for path, url in values_of(configuration, Kind.KEYS):
        if url.startswith("file:"):
            yield from _place(url, path, has_vault=True)
        else:
            yield from _url(url, path, is_plain=False)


def _url(url: str, path: tuple[str, ...], *, is_plain: bool) -> Iterator[Fault]:
    if url.lower().startswith("http://") and not is_safe_link(url):
        message = "plain http is allowed on loopback only"
        yield Fault("url_insecure", path, message, "write https://")
    elif not is_safe_link(url) or (is_plain and ("?" in url or "#" in url)):
        what = "an https URL without query and fragment" if is_plain else "an https URL"
        yield malformed(path, f"must be {what}", "write the whole URL in ASCII")


_LEDGER: Final = re.compile(r"memory:|sqlite:|sqlite:///.*[^/].*|postgres(?:ql)?:.*", re.DOTALL)


def _policy(configuration: Configuration) -> Iterator[Fault]:
    policy = configuration.policy
    if policy is None:
        return
    if policy.engine is None:
        yield missing(("policy", "engine"), 'name the engine, for instance "grants-only"')
    if policy.engine == "grants-only":
        for key in ("files", "url", "path", "mapping"):
            if getattr(policy, key):
                yield unused(("policy", key), "grants-only reads no policy")


def _ledger(configuration: Configuration) -> Iterator[Fault]:
    if not _LEDGER.fullmatch(configuration.ledger.url):
        what = "must be memory:, sqlite:, sqlite:///relative or sqlite:////absolute"
        yield malformed(("ledger", "url"), what)


def check_supported(configuration: Configuration) -> Iterator[Fault]:
    """What the configuration asks for and this version can't do."""
    policy, shared = configuration.policy or PolicyTable(), configuration.shared
    is_elsewhere = configuration.ledger.url.startswith(("postgresql:", "postgres:"))
    evidence = "remove evidence; a service sets the evidence that it accepts in its TrustAnchor"
    rows: list[tuple[object, tuple[str, ...], str]] = [
        (
            policy.engine in {"cedar", "authzen", "opa"},
            ("policy", "engine"),
            'set engine = "grants-only", or pass from_config(policy=…) a callable',
        ),
        (policy.observe, ("policy", "observe"), "remove policy.observe"),
        (
            configuration.approval,
            ("approval",),
            "pass from_config(approver=…) instead of [approval]",
        ),
        (shared.url != "memory:", ("shared", "url"), 'set url = "memory:"'),
        (
            shared.max_staleness != SharedTable().max_staleness,
            ("shared", "max_staleness"),
            "remove shared.max_staleness",
        ),
        (configuration.signals, ("signals",), "remove [signals]"),
        (configuration.session.budget, ("session", "budget"), "remove [session.budget]"),
        (is_elsewhere, ("ledger", "url"), "keep the ledger in sqlite:"),
        *(
            (table.evidence, ("issuers", name, "evidence"), evidence)
            for name, table in configuration.issuers.items()
        ),
    ]
    for is_requested, path, remedy in rows:
        if is_requested:
            yield Fault("not_supported", path, "this version doesn't support that yet", remedy)
    if is_in_vault(configuration.agent.key or ""):
        yield Fault(
            "not_supported",
            ("agent", "key"),
            "the agent's key signs every call and every proof, so it must be in memory",
            "remove agent.key, or keep it in file:, env: or keyring:; only agent.signer can stay in a vault",
        )
