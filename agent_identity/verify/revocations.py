# SPDX-License-Identifier: Apache-2.0
"""Revocation lists, which are signed, numbered and expire quickly (DESIGN section 5).

    header  {typ: "agent-revocations+jwt", alg, kid: <of the operator's or the authority's key>}
    claims  iss: the anchor · iat, exp · seq: grows with every list · revoked: [{ref, at}], at in Unix seconds

A reference is a principal (`user:alice`, `user:<iss>#<sub>`), a transaction, a `jti`, an agent's URI, an instance (a key's
thumbprint) or `*`. It ends what was issued until `at`. An older list never replaces a newer one; with an expired list every call
is refused.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError
from agent_identity.forks import start_over_in_child
from agent_identity.keys.algorithms import DELEGATION_ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON

REVOCATIONS_TYPE: Final = "agent-revocations+jwt"
LIST_LIMIT: Final = 1024 * 1024
"""The maximum size of a list, in characters."""

ALL: Final = "*"
"""The reference that revokes everything."""

_HEADER: Final = frozenset({"typ", "alg", "kid"})
_CLAIMS: Final = frozenset({"iss", "iat", "exp", "seq", "revoked"})
_ENTRY: Final = frozenset({"ref", "at"})


class RevocationCheck(Protocol):
    """A service's source of revocations."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """Whether any of the references was revoked at or after `issued_at`.

        Raises:
            VerificationError: that isn't known; the call is refused.
        """
        ...


class UnsafeNoRevocations:
    """Ignores revocations: everything that an anchor issued is accepted until it expires."""

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:  # noqa: ARG002 - the protocol's
        return False


class _List(NamedTuple):
    seq: int
    issued_at: int
    ends: int
    revoked: Mapping[str, int]


class Revocations:
    """The newest signed list of one anchor. Pass it lists by `update`; without one, or with an expired one, all calls are refused.

    `issuer` is the anchor, `jwks` the keys that may sign its lists (an operator's or the authority's, never an agent's), `max_age`
    the seconds after `iat` for which a list is used; `clock` returns Unix seconds.
    """

    def __init__(
        self,
        issuer: str,
        jwks: Mapping[str, JSON] | Sequence[JWK] | Callable[[], Sequence[JWK]],
        *,
        max_age: float = 3600.0,
        skew: float = 30.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._issuer = issuer
        fixed = () if callable(jwks) else keys_in(jwks)
        self._keys = jwks if callable(jwks) else lambda: fixed
        self._max_age = max_age
        self._skew = skew
        self._clock = clock
        self._list: _List | None = None
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: the list stays, but a thread of the parent may hold the lock."""
        self._lock = threading.Lock()

    def update(self, compact: str) -> bool:
        """Use a list. Returns False, and keeps the known list, if the new one isn't newer.

        Raises:
            VerificationError: it isn't the anchor's, is malformed or has expired.
        """
        new = self._verify(compact)
        with self._lock:
            known = self._list
            if known is not None and new.seq <= known.seq:
                return False
            self._list = new
            return True

    def is_revoked(self, references: Collection[str], issued_at: float, /) -> bool:
        """See `RevocationCheck`.

        Raises:
            VerificationError: `revocations_missing` or `revocations_stale`.
        """
        known = self._list
        if known is None:
            raise VerificationError(
                "revocations_missing",
                f"there is no revocation list of {self._issuer} yet",
                remedy="pass its signed list to Revocations.update",
            )
        now = self._clock()
        end = min(known.ends, known.issued_at + self._max_age)
        # `now` is before `issued_at` if the clock was set back.
        if not known.issued_at - self._skew <= now < end + self._skew:
            raise VerificationError(
                "revocations_stale",
                f"the newest revocation list of {self._issuer} is too old",
                remedy="fetch a fresh one, or allow an older one with max_age",
            )
        latest = max(known.revoked.get(each, -1) for each in (*references, ALL))
        return issued_at <= latest

    def _verify(self, compact: str) -> _List:
        keys = self._keys()
        token = jose.unverified(compact, max_token=LIST_LIMIT)
        _, payload = jose.verify(
            token, keys, algorithms=DELEGATION_ALGORITHMS, typ=REVOCATIONS_TYPE
        )
        header = Claims(token.header, VerificationError)
        header.check_names(_HEADER)
        header.text("kid")
        body = jose.loads_object(payload)
        claims = Claims(body, VerificationError)
        claims.check_names(_CLAIMS)
        if claims.text("iss") != self._issuer:
            raise VerificationError("issuer_mismatch", "the revocation list is another anchor's")
        seq, issued, ends = (claims.integer(name) for name in ("seq", "iat", "exp"))
        jose.check_lifetime(body, now=self._clock(), skew=self._skew, max_lifetime=None)
        return _List(seq, issued, ends, _entries(body.get("revoked")))


def revocation_claims(
    issuer: str, revoked: Mapping[str, int], *, seq: int, now: int, lifetime: int
) -> bytes:
    """Encode the claims of a list. `revoked` maps references to Unix seconds."""
    return orjson.dumps(
        {
            "iss": issuer,
            "iat": now,
            "exp": now + lifetime,
            "seq": seq,
            "revoked": [{"ref": ref, "at": at} for ref, at in sorted(revoked.items())],
        }
    )


def _entries(value: JSON) -> dict[str, int]:
    if not isinstance(value, list):
        raise VerificationError("claim_malformed", "the claim revoked isn't a list")
    entries: dict[str, int] = {}
    for entry in value:
        if not isinstance(entry, dict):
            raise VerificationError("claim_malformed", "an entry of revoked isn't an object")
        claims = Claims(entry, VerificationError)
        claims.check_names(_ENTRY)
        ref, at = claims.text("ref"), claims.integer("at")
        entries[ref] = max(at, entries.get(ref, at))
    return entries


def keys_in(jwks: Mapping[str, JSON] | Sequence[JWK]) -> tuple[JWK, ...]:
    """The keys of a JWK set or a list of keys."""
    if not isinstance(jwks, Mapping):
        return tuple(jwks)
    keys = jwks.get("keys")
    return tuple(key for key in keys if isinstance(key, dict)) if isinstance(keys, list) else ()
