# SPDX-License-Identifier: Apache-2.0
"""Whom a service believes: the anchors that may sign a chain's first hop, how far each is believed, what it has revoked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from agent_identity.delegation.chain import EVIDENCE, Anchor
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from agent_identity.keys import JWK
    from agent_identity.values import JSON

__all__ = ["Anchors", "Revocations", "TrustAnchor", "UnsafeNoRevocations"]


class Revocations(Protocol):
    """What has been revoked, as far as this service knows."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """Whether any of the references (a principal, `txn`, `jti`, agent or instance) was revoked since `issued_at`."""
        ...


class UnsafeNoRevocations:
    """Knows of no revocation, ever: what an anchor issued is believed until it expires."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:  # noqa: ARG002 - the protocol's
        return False


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """Whose grants are believed here, and how far.

    `jwks` is a JWK set or a list of keys; `evidence` the most that this anchor may give; `subjects` the foreign `sub_iss` that
    it may speak for. `revocations` has no default that says nothing: leave it out by name, with `UnsafeNoRevocations()`.
    """

    issuer: str
    jwks: Mapping[str, JSON] | Sequence[JWK] | None = None
    revocations: Revocations | None = None
    evidence: str = "asserted"
    subjects: Collection[str] = ()


class Anchors:
    """The anchors of one verifier, checked once; `known` is what the rules of a chain are told of them.

    Raises:
        ConfigurationError: an anchor lacks its keys or its revocations, or says something that has no meaning.
    """

    def __init__(self, trust: Iterable[TrustAnchor]) -> None:
        anchors = tuple(trust)
        self.known: Final = tuple(_anchor(anchor) for anchor in anchors)
        self._by_issuer = {anchor.issuer: anchor for anchor in self.known}
        self._revocations = {anchor.issuer: _revocations(anchor) for anchor in anchors}
        if len(self._by_issuer) != len(anchors):
            raise ConfigurationError(
                "anchor_repeated",
                "two anchors have the same issuer",
                remedy="name each issuer once, with all of its keys",
            )

    def find(self, issuer: JSON) -> Anchor | None:
        """The anchor of that name; None where nobody of that name is believed here."""
        return self._by_issuer.get(issuer) if isinstance(issuer, str) else None

    def has_revoked(self, issuer: str, references: Collection[str], issued_at: float) -> bool:
        """Whether that anchor, where it is one, took back any of the references since `issued_at`."""
        revocations = self._revocations.get(issuer)
        return revocations is not None and revocations.is_revoked(references, issued_at)


def _anchor(anchor: TrustAnchor) -> Anchor:
    keys = () if anchor.jwks is None else _keys(anchor.jwks)
    if not keys:
        raise ConfigurationError(
            "anchor_keys", f"the anchor {anchor.issuer} has no keys", remedy="pass its jwks"
        )
    if anchor.evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence is one of {', '.join(EVIDENCE)}")
    if isinstance(anchor.subjects, str):
        raise ConfigurationError("subjects", "subjects are a list of issuers, not one string")
    return Anchor(anchor.issuer, keys, anchor.evidence, frozenset(anchor.subjects))


def _keys(jwks: Mapping[str, JSON] | Sequence[JWK]) -> tuple[JWK, ...]:
    if not isinstance(jwks, Mapping):
        return tuple(jwks)
    found = jwks.get("keys")
    return tuple(key for key in found if isinstance(key, dict)) if isinstance(found, list) else ()


def _revocations(anchor: TrustAnchor) -> Revocations:
    if anchor.revocations is None:
        raise ConfigurationError(
            "revocations_missing",
            f"nothing says what {anchor.issuer} has revoked",
            remedy="pass revocations=…, or UnsafeNoRevocations() to do without",
        )
    return anchor.revocations
