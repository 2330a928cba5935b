# SPDX-License-Identifier: Apache-2.0
"""What no single key shows: names that nobody has, keys that contradict each other, secrets in the wrong place.

Every check goes over the whole configuration and gives all that it finds, so that one look at the errors is enough. A
message says which key and what it may be, never what stands there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.config.authority_checks import check_authority
from agent_identity.config.inference import uses_platform
from agent_identity.config.model import OAUTH_SOURCES, Kind, SharedTable, values_of
from agent_identity.config.problems import RESOURCE_RULE, SCOPE_RULE, Fault, nearest
from agent_identity.config.references import is_in_vault, is_reference, named, transit_key
from agent_identity.errors import AgentIdentityError, ConfigurationError
from agent_identity.uris import checked_resource, is_safe_link, origin
from agent_identity.values import TOOL_DETAILS, agent_uri, checked_phrase, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from agent_identity.config.model import Configuration, IssuerTable, ResourceTable

__all__ = ["check", "check_policy", "unsupported"]

_LEDGER: Final = re.compile(r"memory:|sqlite:|sqlite:///.*[^/].*|postgres(?:ql)?:.*", re.DOTALL)


def check(configuration: Configuration) -> Iterator[Fault]:
    """All that is wrong with a configuration in which everything that follows is written out."""
    for part in (
        _agent,
        _issuer_names,
        _issuers,
        _resources,
        _references,
        _addresses,
        _policy,
        _ledger,
        check_authority,
    ):
        yield from part(configuration)


def check_policy(configuration: Configuration) -> Iterator[Fault]:
    """That somebody decides: for callers who bring no policy of their own."""
    if configuration.policy is None:
        yield Fault(
            "policy_missing",
            ("policy",),
            "nothing says who decides",
            'add [policy] engine = "grants-only" to let pass whatever the grants allow, or pass a policy',
        )


# -- the agent --------------------------------------------------------------------------------------------------------


def _agent(configuration: Configuration) -> Iterator[Fault]:
    agent = configuration.agent
    is_said = "agent" in configuration.model_fields_set
    serves = configuration.authority is not None
    needs_name = is_said or configuration.resources or (configuration.issuers and not serves)
    if needs_name and agent.name is None and agent.id is None:
        yield _missing("agent", "name", remedy="give the agent a name or an id")
    if agent.name is not None and not _is_agent(agent.name):
        yield Fault("value_malformed", ("agent", "name"), "no name that an agent can have", _NAMES)
    if agent.id is not None and (":" not in agent.id or not _is_agent(agent.id)):
        yield Fault("value_malformed", ("agent", "id"), "must be a URI", _NAMES)
    if agent.owner is not None:
        try:
            checked_phrase("owner", agent.owner)
        except ConfigurationError as error:
            yield Fault("value_malformed", ("agent", "owner"), str(error))
    if agent.id in {table.issuer for table in configuration.issuers.values()}:
        yield Fault(
            "value_conflict",
            ("agent", "id"),
            "is an issuer's URL, so that what the agent says of itself would read as that issuer's word",
            "give the agent a URI of its own",
        )
    anchor = configuration.issuers.get(agent.grants or "")
    if anchor is not None and "grants" not in anchor.trust:
        yield _missing(
            "issuers",
            str(agent.grants),
            "trust",
            remedy='agent.grants names it, so say trust = ["grants"], beside what is trusted of it already',
        )
    if agent.grants is not None and agent.signer is not None:
        yield Fault(
            "value_conflict",
            ("agent", "signer"),
            "the first grant comes from an issuer or from a signer",
            "leave agent.grants or agent.signer out",
        )
    if agent.grants is not None and agent.signer_id is not None:
        yield _unused(("agent", "signer_id"), "an issuer signs the first grants")


_NAMES: Final = "letters, digits, dots, dashes and underscores, or a whole URI"


def _is_agent(name: str) -> bool:
    try:
        agent_uri(name)
    except ConfigurationError:
        return False
    return True


# -- issuers ----------------------------------------------------------------------------------------------------------


def _issuer_names(configuration: Configuration) -> Iterator[Fault]:
    for path, name in values_of(configuration, Kind.ISSUER):
        if name in configuration.issuers:
            continue
        meant = nearest(name, configuration.issuers)
        yield Fault(
            "unknown_issuer",
            path,
            "no table of [issuers] has that name" + (f", did you mean {meant}?" if meant else ""),
            "name a table of [issuers]",
        )


def _issuers(configuration: Configuration) -> Iterator[Fault]:
    asked = _asked(configuration)
    signing = _signing(configuration)
    believed: set[str] = set()
    for name, table in configuration.issuers.items():
        path = ("issuers", name)
        yield from _trust(table, path, believed, serves=configuration.authority is not None)
        yield from _people(table, path, configuration)
        yield from _registration(table, path)
        if table.registration == "dynamic":
            yield from _registering(table, path)
            continue
        has_svid = "spiffe" in configuration.model_fields_set
        yield from _client(table, path, has_svid=has_svid, signs=name in signing)
        yield from _key(table, path, signs=name in signing)
        if name in asked:
            yield from _known_client(table, path)


def _asked(configuration: Configuration) -> set[str]:
    """The issuers of which we are a client."""
    names = {configuration.agent.grants}
    for table in configuration.resources.values():
        names |= {table.issuer, table.via}
        names |= {table.transaction_token.issuer} if table.transaction_token else set()
    return {name for name in names if name is not None}


def _signing(configuration: Configuration) -> set[str | None]:
    """The issuers for which the client's key signs assertions about principals."""
    return {
        table.issuer
        for table in configuration.resources.values()
        if table.source == "jwt-bearer" and table.assertion_from == "client"
    }


_OF_SUBJECTS: Final = ("audience", "algorithms", "token_type")
"""Keys about principals' tokens."""


def _trust(
    table: IssuerTable, path: tuple[str, ...], believed: set[str], *, serves: bool
) -> Iterator[Fault]:
    if "subjects" not in table.trust:
        for key in _OF_SUBJECTS:
            if getattr(table, key) is not None:
                yield _unused((*path, key), "its tokens about principals aren't believed")
        return
    if table.audience is None and not serves:  # an authority's audiences are its own
        yield _missing(
            *path,
            "audience",
            remedy="say which audience a principal's token must name, or give the client_id",
        )
    if table.issuer in believed:
        yield Fault(
            "value_conflict",
            (*path, "trust"),
            "another table of this issuer says already which of its tokens are believed",
            'trust "subjects" in one table of an issuer',
        )
    believed.add(table.issuer)


def _people(
    table: IssuerTable, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    for name in table.subjects_of:
        named = configuration.issuers.get(name)
        if named is not None and "subjects" not in named.trust:
            yield _unused((*path, "subjects_of"), f"{name} isn't trusted for subjects")


_MATERIAL: Final = {
    "private_key_jwt": "client_key",
    "client_secret_basic": "client_secret",
    "client_secret_post": "client_secret",
    "tls_client_auth": "client_certificate",
    "self_signed_tls_client_auth": "client_certificate",
}


def _client(
    table: IssuerTable, path: tuple[str, ...], *, has_svid: bool, signs: bool
) -> Iterator[Fault]:
    if table.client_auth is None:
        if table.client_secret is not None:  # what was left out could mean either
            yield _several_proofs(path)
        return
    needed = _MATERIAL.get(table.client_auth)
    elsewhere = needed == "client_certificate" and has_svid
    if needed is not None and getattr(table, needed) is None and not elsewhere:
        yield _missing(*path, needed, remedy=f"{table.client_auth} needs {needed}")
    if table.client_secret is not None and needed != "client_secret":
        yield Fault(
            "value_conflict",
            (*path, "client_secret"),
            f"{table.client_auth} uses no secret",
            "leave client_secret or client_auth out",
        )
    if (
        needed == "client_secret"
        and table.client_key is not None
        and table.client_certificate is None
        and not signs
    ):
        yield Fault(
            "value_conflict",
            (*path, "client_key"),
            f"{table.client_auth} uses no key",
            "leave client_key or client_auth out",
        )


def _several_proofs(path: tuple[str, ...]) -> Fault:
    return Fault(
        "value_conflict",
        (*path, "client_secret"),
        "there are several proofs of the client",
        "say client_auth, and leave out what it doesn't use",
    )


def _key(table: IssuerTable, path: tuple[str, ...], *, signs: bool) -> Iterator[Fault]:
    method = table.client_auth
    signs = signs or method in {None, "private_key_jwt"}
    is_shown = signs or table.client_certificate is not None
    if table.client_key is not None and method in _KEYLESS and not is_shown:
        yield _unused((*path, "client_key"), f"{method} uses no key")
    if table.client_key_id is not None and (table.client_key is None or not signs):
        yield _unused((*path, "client_key_id"), "no key signs under it")
    if _says_audience(table) and method not in {None, "private_key_jwt"}:
        yield _unused((*path, "client_assertion_audience"), f"{method} makes no assertion")


_KEYLESS: Final = frozenset({"none", "spiffe_jwt", "workload_token"})


def _says_audience(table: IssuerTable) -> bool:
    return "client_assertion_audience" in table.model_fields_set


_OF_KNOWN_CLIENTS: Final = (
    *("client_auth", "client_key", "client_key_id", "client_secret", "client_certificate"),
)


def _registering(table: IssuerTable, path: tuple[str, ...]) -> Iterator[Fault]:
    """Who registers at start does so with the agent's own key."""
    why = "a client that registers at start has the agent's own key"
    for key in _OF_KNOWN_CLIENTS:
        if getattr(table, key) is not None:
            yield _unused((*path, key), why)
    if _says_audience(table):
        yield _unused((*path, "client_assertion_audience"), why)


def _registration(table: IssuerTable, path: tuple[str, ...]) -> Iterator[Fault]:
    document = (table.client_id or "").startswith("https://")
    if table.registration == "cimd" and not document:
        yield _missing(*path, "client_id", remedy="give the https URL of the client's document")
    if table.registration == "configured" and table.client_id is None:
        yield _missing(*path, "client_id", remedy="give the client_id that the issuer registered")
    if table.registration == "cimd" and table.client_secret is not None:
        yield Fault(
            "value_conflict",
            (*path, "client_secret"),
            "a client with a public document shares no secret",
            "use client_key",
        )
    if table.registration == "dynamic" and table.client_id is not None:
        yield _unused((*path, "client_id"), "the issuer gives a client that registers its id")
    if table.registration != "dynamic" and table.registration_token is not None:
        yield _unused((*path, "registration_token"), 'registration is not "dynamic"')


def _known_client(table: IssuerTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if table.client_id is None and table.registration is None:
        yield _missing(*path, "client_id", remedy="say which client we are there")
    if table.client_auth is None and table.client_secret is None:
        yield _missing(
            *path,
            "client_auth",
            remedy='give client_key, client_secret or client_certificate, or say client_auth = "none"',
        )


# -- resources --------------------------------------------------------------------------------------------------------

_NEEDS: Final = {
    "api-key": ("secret",),
    "basic": ("username", "password"),
    "static": ("token",),
    "client-certificate": ("certificate",),
    "refresh-token": ("refresh_token",),
    "id-jag": ("via",),
    "identity-chaining": ("via",),
}
_PLATFORM: Final = frozenset({"workload-token", "token-exchange", "jwt-bearer"})
_DETAILED: Final = OAUTH_SOURCES - {"jwt-bearer", "refresh-token"}
"""Sources that ask for authorization details."""

_USED_BY: Final = {
    "secret": frozenset({"api-key"}),
    "header": frozenset({"api-key"}),
    "scheme": frozenset({"api-key"}),
    "username": frozenset({"basic"}),
    "password": frozenset({"basic"}),
    "token": frozenset({"static"}),
    "certificate": frozenset({"client-certificate"}),
    "key": frozenset({"client-certificate"}),
    "issuer": OAUTH_SOURCES,
    "via": frozenset({"id-jag", "identity-chaining"}),
    "refresh_token": frozenset({"refresh-token", "authorization-code", "device", "ciba"}),
    "actor": frozenset({"token-exchange"}),
    "assertion_from": frozenset({"jwt-bearer"}),
    "login_hint_from": frozenset({"ciba"}),
    "audience": OAUTH_SOURCES | {"workload-token"},
    "provider": _PLATFORM,
    "path": _PLATFORM,
    "expect": _PLATFORM,
    "token_host": _PLATFORM,
}


def _resources(configuration: Configuration) -> Iterator[Fault]:
    for uri, table in configuration.resources.items():
        path = ("resources", uri)
        yield from _resource_uri(uri, path)
        yield from _scopes(table, path)
        yield from _source(table, path, has_issuers=bool(configuration.issuers))
        if table.source is None:
            yield from _embedded(table, path)
            continue
        yield from _platform(table, path)
        yield from _binding(table, path, configuration)
        yield from _named_there(table, path, configuration)
        yield from _kept(table, path)


def _resource_uri(uri: str, path: tuple[str, ...]) -> Iterator[Fault]:
    try:
        checked_resource(uri)
    except ConfigurationError as error:
        yield Fault(error.code, path, RESOURCE_RULE, "write the resource as its server spells it")


def _scopes(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    try:
        scope_set(table.scopes or ())
    except ConfigurationError:
        yield Fault("value_malformed", (*path, "scopes"), SCOPE_RULE, "write one scope a text")


def _source(table: ResourceTable, path: tuple[str, ...], *, has_issuers: bool) -> Iterator[Fault]:
    used = [key for key in _USED_BY if getattr(table, key) is not None]
    if table.source is None:
        if has_issuers or not _MEANS.isdisjoint(used):
            yield _missing(*path, "source", remedy="say source, or issuer for token exchange")
            return
        for key in used:
            yield _unused((*path, key), _OF_THE_EMBEDDED)
        return
    if table.source in OAUTH_SOURCES and table.issuer is None:
        yield _missing(*path, "issuer", remedy=f"{table.source} needs a table of [issuers]")
    for key in _NEEDS.get(table.source, ()):
        if getattr(table, key) is None:
            yield _missing(*path, key, remedy=f"{table.source} needs {key}")
    for key in used:
        if table.source not in _USED_BY[key]:
            yield _unused((*path, key), f"{table.source} doesn't use it")
    if _for_issuer(table) and table.source not in _DETAILED:
        yield _unused((*path, "authorization_details"), f"{table.source} doesn't use it")


_MEANS: Final = frozenset(
    {
        *("secret", "header", "scheme", "username", "password", "token", "certificate", "key"),
        *("provider", "path", "expect", "token_host"),
    }
)
"""Keys that show what a table without a source was meant to be."""

_OF_THE_EMBEDDED: Final = "the embedded authority's tokens have nothing of it"


def _for_issuer(table: ResourceTable) -> bool:
    """Whether there are authorization details that an issuer is asked for; those of our own type go into grants."""
    return any(each.get("type") != TOOL_DETAILS for each in table.authorization_details)


def _embedded(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if _for_issuer(table):
        yield _unused((*path, "authorization_details"), _OF_THE_EMBEDDED)
    if table.transaction_token is not None:
        yield _unused((*path, "transaction_token"), _OF_THE_EMBEDDED)
    if table.binding != "dpop":
        yield _unused((*path, "binding"), "the embedded authority binds its tokens by DPoP")


def _named_there(
    table: ResourceTable, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    """What an issuer isn't told by the resource, it is told by the audience."""
    issuer = configuration.issuers.get(table.issuer or "")
    if issuer is None or issuer.resource_indicators or table.audience is not None:
        return
    if table.source in OAUTH_SOURCES:
        yield _missing(
            *path,
            "audience",
            remedy="resource_indicators = false keeps the resource from the issuer, so say its audience",
        )


def _kept(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if (table.refresh_token or "").startswith("env:"):
        yield Fault(
            "reference_read_only",
            (*path, "refresh_token"),
            "a variable can't keep a token that the issuer replaces at each use",
            "keep it by file:, keyring: or vault:",
        )


def _platform(table: ResourceTable, path: tuple[str, ...]) -> Iterator[Fault]:
    if table.source not in _PLATFORM:
        return
    if uses_platform(table):
        if table.provider == "file" and table.path is None:
            yield _missing(*path, "path", remedy="the provider file needs the path of its token")
        if table.path is not None and table.provider not in _WITH_PATH:
            yield _unused((*path, "path"), f"the provider {table.provider} doesn't use it")
        if table.token_host is not None and table.provider not in _WITH_HOST:
            yield _unused((*path, "token_host"), f"the provider {table.provider} doesn't use it")
        return
    for key in ("provider", "path", "expect", "token_host"):
        if getattr(table, key) is not None:
            yield _unused((*path, key), f"this {table.source} uses no token of the platform")


_WITH_PATH: Final = frozenset({"file", "gitlab", "kubernetes"})
_WITH_HOST: Final = frozenset({"ambient", "github"})


def _binding(
    table: ResourceTable, path: tuple[str, ...], configuration: Configuration
) -> Iterator[Fault]:
    if table.binding in {None, "none"}:
        return
    if table.source not in OAUTH_SOURCES:
        yield Fault(
            "value_conflict",
            (*path, "binding"),
            f"{table.source} has nothing to bind",
            'leave binding out, or say "none"',
        )
        return
    issuer = configuration.issuers.get(table.issuer or "")
    if (
        table.binding == "mtls"
        and issuer is not None
        and not _has_certificate(issuer, configuration)
    ):
        yield Fault(
            "value_missing",
            ("issuers", str(table.issuer), "client_certificate"),
            "missing",
            'binding = "mtls" needs a client_certificate, or a [spiffe] table',
        )


def _has_certificate(issuer: IssuerTable, configuration: Configuration) -> bool:
    return issuer.client_certificate is not None or "spiffe" in configuration.model_fields_set


# -- secrets and addresses --------------------------------------------------------------------------------------------


def _references(configuration: Configuration) -> Iterator[Fault]:
    for path, text in values_of(configuration, Kind.REFERENCE):
        if not is_reference(text):
            yield Fault(
                "secret_in_clear",
                path,
                "this file holds the places of secrets, never a secret",
                "write env:NAME, file:PATH, keyring:NAME or vault:PATH, and change a secret that stood here",
            )
            continue
        yield from _place(text, path, has_vault=configuration.vault is not None)


_SIGNER: Final = ("agent", "signer")


def _place(text: str, path: tuple[str, ...], *, has_vault: bool) -> Iterator[Fault]:
    try:
        place = named(text)
        if path == _SIGNER and is_in_vault(text):
            transit_key(text)
    except ConfigurationError as error:
        yield Fault(error.code, path, str(error), error.remedy)
        return
    if place.scheme == "vault" and not has_vault:
        yield Fault(
            "vault_unconfigured",
            path,
            "there is no [vault]",
            "add a [vault] table with its address",
        )


def _addresses(configuration: Configuration) -> Iterator[Fault]:
    for path, url in values_of(configuration, Kind.URL):
        yield from _url(url, path, is_plain=path[-1] == "issuer")
    for path, url in values_of(configuration, Kind.ORIGIN):
        if not _is_origin(url):
            yield Fault(
                "value_malformed", path, "must be origins, as https://host", "leave the path out"
            )
        else:
            yield from _url(url, path, is_plain=True)
    for path, url in values_of(configuration, Kind.KEYS):
        if url.startswith("file:"):
            yield from _place(url, path, has_vault=True)
        else:
            yield from _url(url, path, is_plain=False)


def _url(url: str, path: tuple[str, ...], *, is_plain: bool) -> Iterator[Fault]:
    if url.lower().startswith("http://") and not is_safe_link(url):
        yield Fault("url_insecure", path, "http is for this very machine alone", "write https://")
    elif not is_safe_link(url) or (is_plain and ("?" in url or "#" in url)):
        what = "an https URL without query and fragment" if is_plain else "an https URL"
        yield Fault(
            "value_malformed", path, f"must be {what}", "write the whole URL in plain ASCII"
        )


def _is_origin(url: str) -> bool:
    try:
        return origin(url) == url
    except AgentIdentityError:
        return False


# -- what else --------------------------------------------------------------------------------------------------------


def _policy(configuration: Configuration) -> Iterator[Fault]:
    policy = configuration.policy
    if policy is None:
        return
    if policy.engine is None:
        yield _missing("policy", "engine", remedy='say who decides, for instance "grants-only"')
    if policy.engine == "grants-only":
        for key in ("files", "url", "path", "mapping"):
            if getattr(policy, key):
                yield _unused(("policy", key), "grants-only reads no policy")


def _ledger(configuration: Configuration) -> Iterator[Fault]:
    if not _LEDGER.fullmatch(configuration.ledger.url):
        yield Fault(
            "value_malformed",
            ("ledger", "url"),
            "must be memory:, sqlite:, sqlite:///relative or sqlite:////absolute",
        )


def _missing(*path: str, remedy: str) -> Fault:
    return Fault("value_missing", path, "missing", remedy)


def _unused(path: tuple[str, ...], why: str) -> Fault:
    return Fault("key_unused", path, f"has no use here: {why}", f"leave {path[-1]} out")


EACH: Final = "*"
"""In a path: whatever tables stand there."""


class _Row(NamedTuple):
    path: tuple[str, ...]
    is_refused: Callable[[object], bool]
    remedy: str
    why: str = "this version can't do that yet"


def _is_elsewhere(url: object) -> bool:
    return url != "memory:"


def _is_other_than_usual(seconds: object) -> bool:
    return seconds != SharedTable().max_staleness


def _is_in_vault(reference: object) -> bool:
    return str(reference).startswith("vault:")


def _is_postgresql(url: object) -> bool:
    return str(url).startswith(("postgresql:", "postgres:"))


_ROWS: Final = (
    _Row(
        ("policy", "engine"),
        frozenset({"cedar", "authzen", "opa"}).__contains__,
        'say engine = "grants-only", or pass from_config(policy=…) a callable',
    ),
    _Row(("policy", "observe"), bool, "leave policy.observe out"),
    _Row(("approval",), bool, "pass from_config(approver=…) instead of [approval]"),
    _Row(("shared", "url"), _is_elsewhere, 'say url = "memory:"'),
    _Row(("shared", "max_staleness"), _is_other_than_usual, "leave shared.max_staleness out"),
    _Row(("signals",), bool, "leave [signals] out"),
    _Row(("session", "budget"), bool, "leave [session.budget] out"),
    _Row(
        ("ledger", "url"),
        _is_postgresql,
        "keep the ledger in sqlite:",
    ),
    _Row(
        ("agent", "key"),
        _is_in_vault,
        "leave agent.key out, or name it by file:, env: or keyring:; what a vault can hold is agent.signer",
        "the agent's key signs every call and every proof, so it has to be in memory",
    ),
    _Row(
        ("issuers", EACH, "evidence"),
        bool,
        "leave evidence out; a service says in its TrustAnchor what an anchor's word is worth",
    ),
)


def unsupported(configuration: Configuration) -> Iterator[Fault]:
    """What is asked for and can't be done."""
    for row in _ROWS:
        for path, value in _values(configuration, row.path):
            if row.is_refused(value):
                yield Fault("not_supported", path, row.why, row.remedy)


def _values(value: object, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    if not path:
        yield (), value
        return
    name, rest = path[0], path[1:]
    names = _names_below(value) if name == EACH else {name: getattr(value, name, None)}
    for key, below in names.items():
        for where, last in _values(below, rest):
            yield (key, *where), last


def _names_below(tables: object) -> dict[str, object]:
    return {str(key): table for key, table in tables.items()} if isinstance(tables, dict) else {}  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
