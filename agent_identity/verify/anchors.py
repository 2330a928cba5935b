# SPDX-License-Identifier: Apache-2.0
"""Whom a service believes: the anchors that may sign a chain's first hop, how far each is believed, what it has revoked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

from agent_identity.delegation.chain import EVIDENCE, Anchor
from agent_identity.errors import ConfigurationError
from agent_identity.uris import is_safe_link
from agent_identity.verify.plugins import is_revoked, keys_from
from agent_identity.verify.revocations import RevocationCheck, keys_in

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON
    from agent_identity.verify.discovery import Found

__all__ = ["Anchors", "Keys", "TrustAnchor"]

Keys: TypeAlias = "Mapping[str, JSON] | Sequence[JWK]"


@dataclass(frozen=True, slots=True)
class TrustAnchor:
    """Whose grants are believed here, and how far.

    `jwks` is a JWK set or a list of keys, or a function that gives either, for keys that rotate; `evidence` the most that this
    anchor may give; `subjects` the foreign `sub_iss` that it may speak for. Keys and revocations that aren't given are found at the
    issuer and kept fresh; to do without revocations, say so by `UnsafeNoRevocations()`.
    """

    issuer: str
    jwks: Keys | Callable[[], Keys] | None = None
    revocations: RevocationCheck | None = None
    evidence: str = "asserted"
    subjects: Collection[str] = ()


class Find(Protocol):
    """Makes what finds an anchor at its issuer."""

    def __call__(self, issuer: str, /, *, lists: bool) -> Found: ...


class _Known(NamedTuple):
    """An anchor as the rules need it, its keys and revocations wherever they come from."""

    issuer: str
    keys: Callable[[], Sequence[JWK]]
    revocations: RevocationCheck
    evidence: str
    subjects: frozenset[str]
    found: Found | None

    def anchor(self) -> Anchor:
        return Anchor(self.issuer, self.keys(), self.evidence, self.subjects)


class Anchors:
    """The anchors of one verifier, checked once; `now()` is what the rules of a chain are told of them.

    Raises:
        ConfigurationError: an anchor has no keys, or says something that has no meaning.
    """

    def __init__(self, trust: Iterable[TrustAnchor], find: Find) -> None:
        anchors = tuple(trust)
        self._known = {anchor.issuer: _known(anchor, find) for anchor in anchors}
        if len(self._known) != len(anchors):
            raise ConfigurationError(
                "anchor_repeated",
                "two anchors have the same issuer",
                remedy="name each issuer once, with all of its keys",
            )
        self.found: Final = tuple(
            known.found for known in self._known.values() if known.found is not None
        )
        self._fixed = (
            None
            if any(known.found is not None for known in self._known.values())
            or any(callable(anchor.jwks) for anchor in anchors)
            else tuple(known.anchor() for known in self._known.values())
        )

    def now(self) -> tuple[Anchor, ...]:
        """The anchors with the keys that they have at this moment."""
        if self._fixed is not None:
            return self._fixed
        return tuple(known.anchor() for known in self._known.values())

    def find(self, issuer: JSON) -> Anchor | None:
        """The anchor of that name; None where nobody of that name is believed here."""
        known = self._known.get(issuer) if isinstance(issuer, str) else None
        return None if known is None else known.anchor()

    def has_revoked(self, issuer: str, references: Collection[str], issued_at: float) -> bool:
        """Whether that anchor, where it is one, took back any of the references since `issued_at`.

        Raises:
            VerificationError: that isn't known, so nothing of it is believed.
        """
        known = self._known.get(issuer)
        return known is not None and is_revoked(known.revocations, references, issued_at)


def _known(anchor: TrustAnchor, find: Find) -> _Known:
    if anchor.evidence not in EVIDENCE:
        raise ConfigurationError("evidence", f"evidence is one of {', '.join(EVIDENCE)}")
    if isinstance(anchor.subjects, str):
        raise ConfigurationError("subjects", "subjects are a list of issuers, not one string")
    found = None
    if anchor.jwks is None or anchor.revocations is None:
        _check_findable(anchor)
        found = find(anchor.issuer, lists=anchor.revocations is None)
    return _Known(
        anchor.issuer,
        _keys(anchor, found),
        _in_place(found) if anchor.revocations is None else anchor.revocations,
        anchor.evidence,
        frozenset(anchor.subjects),
        found,
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
        f"nothing says what {anchor.issuer} has revoked",
        remedy="pass revocations=Revocations(…), or UnsafeNoRevocations() to do without",
    )


def _keys(anchor: TrustAnchor, found: Found | None) -> Callable[[], Sequence[JWK]]:
    jwks = anchor.jwks
    if jwks is None:
        return _in_place(found).keys
    if callable(jwks):
        return lambda: keys_from(anchor.issuer, jwks)
    keys = keys_in(jwks)
    if not keys:
        raise ConfigurationError(
            "anchor_keys", f"the anchor {anchor.issuer} has no keys", remedy="pass its jwks"
        )
    return lambda: keys


def _in_place(found: Found | None) -> Found:
    assert found is not None  # noqa: S101 - whatever isn't given is found
    return found
