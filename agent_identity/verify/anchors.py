# SPDX-License-Identifier: Apache-2.0
"""The trust anchors of a service: who may sign a chain's first hop, with which evidence, and what they have revoked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from agent_identity.delegation.chain import Anchor
from agent_identity.delegation.grant import EVIDENCE
from agent_identity.errors import ConfigurationError
from agent_identity.uris import is_safe_link
from agent_identity.verify.plugins import is_revoked, keys_from
from agent_identity.verify.revocations import RevocationCheck, keys_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON
    from agent_identity.verify.discovery import DiscoveredAnchor

Keys: TypeAlias = "Mapping[str, JSON] | Sequence[JWK]"


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """An issuer whose grants are trusted, and how far.

    `jwks` is a JWK set, a list of keys, or a function that returns either (for keys that rotate). `evidence` is the maximum that
    this anchor may give, `subjects` the foreign `sub_iss` that it may vouch for. Keys and revocations that aren't passed are
    discovered at the issuer and kept fresh. Pass `UnsafeNoRevocations()` to do without revocations.
    """

    issuer: str
    jwks: Keys | Callable[[], Keys] | None = None
    revocations: RevocationCheck | None = None
    evidence: str = "asserted"
    subjects: Collection[str] = ()


class Find(Protocol):
    """Makes the anchor of an issuer whose keys are discovered."""

    def __call__(self, issuer: str, /, *, lists: bool) -> DiscoveredAnchor: ...


class _AnchorSource(NamedTuple):
    """An anchor with its current keys and revocations, passed or discovered."""

    issuer: str
    keys: Callable[[], Sequence[JWK]]
    revocations: RevocationCheck
    evidence: str
    subjects: frozenset[str]
    discovered: DiscoveredAnchor | None

    def anchor(self) -> Anchor:
        return Anchor(self.issuer, self.keys(), self.evidence, self.subjects)


class Anchors:
    """The anchors of one verifier, checked once. `now()` returns them with their current keys.

    Raises:
        ConfigurationError: an anchor has no keys, or an invalid setting.
    """

    def __init__(self, trust: Iterable[TrustAnchor], find: Find) -> None:
        anchors = tuple(trust)
        self._known = {anchor.issuer: _source_of(anchor, find) for anchor in anchors}
        if len(self._known) != len(anchors):
            raise ConfigurationError(
                "anchor_repeated",
                "two anchors have the same issuer",
                remedy="list each issuer once, with all of its keys",
            )
        self.discovered: Final = tuple(
            known.discovered for known in self._known.values() if known.discovered is not None
        )
        self._fixed = (
            None
            if any(known.discovered is not None for known in self._known.values())
            or any(callable(anchor.jwks) for anchor in anchors)
            else tuple(known.anchor() for known in self._known.values())
        )

    def now(self) -> tuple[Anchor, ...]:
        """The anchors with their current keys."""
        if self._fixed is not None:
            return self._fixed
        return tuple(known.anchor() for known in self._known.values())

    def find(self, issuer: JSON) -> Anchor | None:
        """The anchor with this issuer; None where it isn't trusted."""
        known = self._known.get(issuer) if isinstance(issuer, str) else None
        return None if known is None else known.anchor()

    def has_revoked(self, issuer: str, references: Collection[str], issued_at: float) -> bool:
        """Whether this issuer is an anchor and has revoked any of the references at or after `issued_at`.

        Raises:
            VerificationError: its revocations aren't known.
        """
        known = self._known.get(issuer)
        return known is not None and is_revoked(known.revocations, references, issued_at)


def _source_of(anchor: TrustAnchor, find: Find) -> _AnchorSource:
    if anchor.evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence must be one of {', '.join(EVIDENCE)}")
    if isinstance(anchor.subjects, str):
        raise ConfigurationError("subjects", "subjects must be a list of issuers, not a string")
    discovered = None
    if anchor.jwks is None or anchor.revocations is None:
        _check_findable(anchor)
        discovered = find(anchor.issuer, lists=anchor.revocations is None)
    return _AnchorSource(
        anchor.issuer,
        _keys(anchor, discovered),
        _required(discovered) if anchor.revocations is None else anchor.revocations,
        anchor.evidence,
        frozenset(anchor.subjects),
        discovered,
    )


def _check_findable(anchor: TrustAnchor) -> None:
    if is_safe_link(anchor.issuer):
        return
    if anchor.jwks is None:
        raise ConfigurationError(
            "anchor_keys", f"the anchor {anchor.issuer} has no keys", remedy="pass its jwks"
        )
    raise ConfigurationError(
        "revocations_missing",
        f"the revocations of {anchor.issuer} aren't known",
        remedy="pass revocations=Revocations(…), or UnsafeNoRevocations() to do without",
    )


def _keys(anchor: TrustAnchor, discovered: DiscoveredAnchor | None) -> Callable[[], Sequence[JWK]]:
    jwks = anchor.jwks
    if jwks is None:
        return _required(discovered).keys
    if callable(jwks):
        return lambda: keys_from(anchor.issuer, jwks)
    keys = keys_in(jwks)
    if not keys:
        raise ConfigurationError(
            "anchor_keys", f"the anchor {anchor.issuer} has no keys", remedy="pass its jwks"
        )
    return lambda: keys


def _required(discovered: DiscoveredAnchor | None) -> DiscoveredAnchor:
    assert discovered is not None  # noqa: S101 - keys or revocations that aren't passed are discovered
    return discovered
