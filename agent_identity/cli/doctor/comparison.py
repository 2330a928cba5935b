# SPDX-License-Identifier: Apache-2.0
"""Compares what an issuer's metadata offers with what the file wants of it: each difference is one line with what to do.

What the library itself would refuse is a failure. What only the issuer could refuse is a warning, since many issuers list less
than they support. A list that the metadata doesn't have is no difference (RFC 8414 §2), except for PKCE.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.assembly.issuers import GRANT_TYPES
from agent_identity.cli.doctor.local import failure, ok, warning
from agent_identity.credentials.oauth.token_types import TOKEN_EXCHANGE
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import run
from agent_identity.keys.algorithms import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from agent_identity.cli.doctor.local import Finding, Setup
    from agent_identity.config import Configuration
    from agent_identity.config.model import IssuerTable, ResourceTable
    from agent_identity.credentials.oauth.metadata import Endpoints

_PLACES: Final = {
    "authorization-code": ("authorization", "authorization_endpoint"),
    "device": ("device_authorization", "device_authorization_endpoint"),
    "ciba": ("backchannel_authentication", "backchannel_authentication_endpoint"),
}
"""The endpoint that a source needs besides the token endpoint: its field of `Endpoints`, and its name in the metadata."""

_UNREGISTERED: Final = frozenset({"anonymous", "spiffe_jwt", "workload_token"})
"""Methods of client authentication that no metadata lists."""

_AGENT_ALG: Final = "ES256"
"""What an agent's key signs proofs with unless the file names a key."""


class _Use(NamedTuple):
    """What the file wants of one issuer: a grant type, and the key that says so."""

    key: str
    grant_type: str
    table: ResourceTable | None = None


def compare(label: str, table: IssuerTable, offered: Endpoints, setup: Setup) -> Iterator[Finding]:
    """The differences between one issuer's metadata and the file; one line that says so where there are none."""
    uses = [*_uses(label, setup.configuration)]
    found = [
        *_compare_grants(label, uses, offered),
        *_compare_places(label, table, uses, offered),
        *_compare_pkce(label, table, uses, offered),
        *_compare_client(label, table, uses, offered, setup),
        *_compare_proofs(label, uses, offered, setup),
        *_compare_tokens(label, table, offered),
        *_compare_scopes(label, uses, offered),
    ]
    yield from found
    if not found:
        yield ok(f"issuer {label}", "its metadata offers what the file wants")


def _uses(label: str, configuration: Configuration) -> Iterator[_Use]:
    if configuration.agent.grants == label:
        yield _Use("agent.grants", TOKEN_EXCHANGE)
    for uri, table in configuration.resources.items():
        key = f'resources."{uri}"'
        if table.issuer == label and table.source in GRANT_TYPES:
            yield _Use(key, GRANT_TYPES[table.source or ""][0], table)
            if table.refresh_token is not None and table.source != "refresh-token":
                yield _Use(f"{key}.refresh_token", "refresh_token", table)
        if table.issuer == label and table.actor == "client":
            yield _Use(f"{key}.actor", "client_credentials")
        if table.via == label:
            yield _Use(f"{key}.via", TOKEN_EXCHANGE)
        if table.transaction_token is not None and table.transaction_token.issuer == label:
            yield _Use(f"{key}.transaction_token", TOKEN_EXCHANGE)


def _compare_grants(label: str, uses: list[_Use], offered: Endpoints) -> Iterator[Finding]:
    if offered.grant_types is None:
        return
    for use in uses:
        if use.grant_type not in offered.grant_types:
            yield warning(
                f"issuer {label}",
                f"it offers the grant types {_listed(offered.grant_types)}; {use.key} wants {use.grant_type}",
                "switch that grant type on at the issuer, or set another source for the resource",
            )


def _compare_places(
    label: str, table: IssuerTable, uses: list[_Use], offered: Endpoints
) -> Iterator[Finding]:
    name, sources = f"issuer {label}", {use.table.source for use in uses if use.table is not None}
    for source, (field, member) in _PLACES.items():
        if source in sources and getattr(offered, field) is None:
            yield failure(
                name,
                f'its metadata has no {member}, which the source "{source}" wants',
                f"set {member} in issuers.{label}.endpoints if there is one, or set another source",
            )
    if (
        offered.requires_pushed
        and offered.pushed_authorization is None
        and "authorization-code" in sources
    ):
        yield failure(
            name,
            "it requires pushed authorization requests, and its metadata has no pushed_authorization_request_endpoint",
            f"set pushed_authorization_request_endpoint in issuers.{label}.endpoints",
        )
    if table.registration == "dynamic" and offered.registration is None:
        yield failure(
            name,
            'its metadata has no registration_endpoint, which registration = "dynamic" wants',
            "register a client there, and set its client_id",
        )
    if uses and offered.revocation is None and table.revoke != "none":
        yield warning(
            name,
            "its metadata has no revocation_endpoint; the file wants tokens revoked when a session ends",
            f'set revoke = "none" in issuers.{label} if it is right that they stay valid until they expire',
        )
    for use in uses:
        signs_in = use.table is not None and use.table.source in _PLACES
        if (
            signs_in
            and use.table is not None
            and offered.introspection is None
            and "openid" not in (use.table.scopes or ())
        ):
            yield warning(
                name,
                f"its metadata has no introspection_endpoint, and {use.key} has no scope openid; an opaque token would not show who signed in",
                "add openid to the resource's scopes, or let the issuer issue JWTs",
            )


def _compare_pkce(
    label: str, table: IssuerTable, uses: list[_Use], offered: Endpoints
) -> Iterator[Finding]:
    methods = offered.challenge_methods
    signs_in = any(use.grant_type == "authorization_code" for use in uses)
    if signs_in and table.pkce != "assume" and "S256" not in (methods or ()):
        listed = "no PKCE methods" if not methods else f"the PKCE methods {_listed(methods)}"
        yield failure(
            f"issuer {label}",
            f'its metadata lists {listed}; the source "authorization-code" wants S256',
            f'set pkce = "assume" in issuers.{label} if it supports PKCE without saying so',
        )


def _compare_client(
    label: str, table: IssuerTable, uses: list[_Use], offered: Endpoints, setup: Setup
) -> Iterator[Finding]:
    method = table.client_auth
    if not uses or method is None or method in _UNREGISTERED:
        return
    if offered.auth_methods is not None and method not in offered.auth_methods:
        yield warning(
            f"issuer {label}",
            f"it offers the client authentication methods {_listed(offered.auth_methods)}; the file wants {method}",
            f"set client_auth in issuers.{label} to a method that the client is registered with",
        )
    algorithm = _algorithm_of(table.client_key, setup) if method == "private_key_jwt" else None
    if algorithm is not None and _lacks(offered.assertion_algorithms, algorithm):
        yield warning(
            f"issuer {label}",
            f"it takes client assertions signed with {_listed(offered.assertion_algorithms or ())}; client_key signs with {algorithm}",
            f"make a key for one of these algorithms, and register it: issuers.{label}.client_key",
        )


def _compare_proofs(
    label: str, uses: list[_Use], offered: Endpoints, setup: Setup
) -> Iterator[Finding]:
    if not any(use.table is not None and use.table.binding == "dpop" for use in uses):
        return
    algorithm = _algorithm_of(setup.configuration.agent.key, setup) or _AGENT_ALG
    if _lacks(offered.proof_algorithms, algorithm):
        yield warning(
            f"issuer {label}",
            f"it takes DPoP proofs signed with {_listed(offered.proof_algorithms or ())}; the agent's key signs with {algorithm}",
            'set agent.key to a key for one of these algorithms, or binding = "none" for its resources',
        )


def _compare_tokens(label: str, table: IssuerTable, offered: Endpoints) -> Iterator[Finding]:
    accepted = frozenset(table.algorithms or ALGORITHMS)
    signed = offered.id_token_algorithms
    if "subjects" in table.trust and signed and not signed & accepted:
        yield warning(
            f"issuer {label}",
            f"it signs ID tokens with {_listed(signed)}; the file accepts {_listed(accepted)}",
            f"add one of them to issuers.{label}.algorithms",
        )


def _compare_scopes(label: str, uses: list[_Use], offered: Endpoints) -> Iterator[Finding]:
    if offered.scopes is None:
        return
    for use in uses:
        scopes = () if use.table is None or use.key.endswith(".refresh_token") else use.table.scopes
        unknown = set(scopes or ()) - offered.scopes
        if unknown:
            yield warning(
                f"issuer {label}",
                f"it lists the scopes {_listed(offered.scopes)}; {use.key} wants {_listed(unknown)}",
                "check the resource's scopes, or add them to the client at the issuer",
            )


def _algorithm_of(reference: str | None, setup: Setup) -> str | None:
    """What a key of the file signs with; None where there is none, or where it can't be read, which its own check reports."""
    if reference is None:
        return None
    try:
        return run(setup.secrets.key(reference, "key")(), setup.world.answer).alg
    except AgentIdentityError:
        return None


def _lacks(offered: frozenset[str] | None, algorithm: str) -> bool:
    """Whether a list doesn't have an algorithm, by either of its names (RFC 9864)."""
    names = {"Ed25519", "EdDSA"} if algorithm == "Ed25519" else {algorithm}
    return offered is not None and not offered & names


_MANY: Final = 12


def _listed(names: Collection[str]) -> str:
    """Names in their order, the first dozen of them; an issuer wrote them, so only printable ones are shown."""
    shown = sorted(name for name in names if name.isprintable() and len(name) <= 100)  # noqa: PLR2004 - a line's length
    more = ", …" if len(shown) > _MANY else ""
    return (", ".join(shown[:_MANY]) + more) or "none"
