# SPDX-License-Identifier: Apache-2.0
"""Access tokens (RFC 9068): the authority signs them, and reads its own access tokens and hop-0 grants."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.delegation.grant import GRANT_TYPE
from agent_identity.errors import VerificationError
from agent_identity.values import Principal, new_id

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_identity.authority.keyring import Keyring
    from agent_identity.values import JSON

ACCESS_TOKEN_TYPE: Final = "at+jwt"  # noqa: S105 - a type name
LIFETIME: Final = 300
"""Seconds that an access token lasts, at most."""


@dataclass(frozen=True, slots=True)
class TokenDraft:
    """The claims of an access token: for one resource, bound to a key if the request had a proof."""

    sub: str
    sub_profile: str
    resource: str
    client_id: str
    scopes: frozenset[str]
    txn: str | None = None
    act: Mapping[str, JSON] | None = None
    jkt: str | None = None
    jti: str = field(default_factory=lambda: new_id("tok_"))


@dataclass(frozen=True, slots=True)
class OwnToken:
    """A verified and unexpired token of this authority."""

    typ: str
    claims: dict[str, JSON] = field(repr=False)
    jti: str
    iat: int
    exp: int

    @property
    def is_grant(self) -> bool:
        return self.typ == GRANT_TYPE

    def refs(self) -> Iterator[str]:
        """What it may be revoked by: the token, its transaction, principal, client, and actors with their keys."""
        yield self.jti
        for name in ("txn", "client_id"):
            value = self.claims.get(name)
            if isinstance(value, str):
                yield value
        profile, sub = str(self.claims.get("sub_profile")), str(self.claims.get("sub"))
        yield principal_ref(profile, sub, self._directory(profile))
        confirmation = self.claims.get("cnf")
        if isinstance(confirmation, dict):
            yield str(confirmation.get("jkt"))
        actor = self.claims.get("act")
        while isinstance(actor, dict):
            yield from (str(actor[name]) for name in ("sub", "instance") if name in actor)
            actor = actor.get("act")

    def _directory(self, profile: str) -> str | None:
        """The issuer that knows the principal; None for this authority's directory, and for a trigger."""
        sub_iss = self.claims.get("sub_iss")
        is_own = sub_iss is None or sub_iss == self.claims.get("iss") or profile == "trigger"
        return None if is_own else str(sub_iss)


def principal_ref(profile: str, sub: str, iss: str | None = None) -> str:
    """How a principal is named in a revocation: `user:<sub>` in this authority's own directory, else `user:<iss>#<sub>`."""
    return str(Principal(sub, iss=iss, profile=profile))


def new_grant_id(client_id: str) -> str:
    """Make the `jti` of a hop-0 grant. Its second half is derived from the id of the client that gets it."""
    nonce = new_id("")[:16]
    return f"grant_{nonce}{_mark(nonce, client_id)}"


def is_issued_to(jti: str, client_id: str) -> bool:
    """Whether the verified hop-0 grant with this `jti` was issued to this client. Several clients may have the same agent."""
    nonce, mark = jti.removeprefix("grant_")[:16], jti[-16:]
    return hmac.compare_digest(mark.encode(), _mark(nonce, client_id).encode())


def _mark(nonce: str, client_id: str) -> str:
    return hashlib.sha256(f"{nonce}{client_id}".encode()).hexdigest()[:16]


class Tokens:
    """Signs with the newest key, and verifies with every key that is in use."""

    def __init__(self, issuer: str, keyring: Keyring) -> None:
        self.issuer = issuer
        self._keyring = keyring

    def mint(self, draft: TokenDraft, *, now: int, expires_at: int) -> str:
        """Sign an access token that expires at `expires_at` (Unix seconds), or after `LIFETIME` if that is earlier."""
        claims: dict[str, JSON] = {
            "iss": self.issuer,
            "sub": draft.sub,
            "sub_profile": draft.sub_profile,
            "aud": draft.resource,
            "client_id": draft.client_id,
            "iat": now,
            "exp": min(now + LIFETIME, expires_at),
            "jti": draft.jti,
        }
        if draft.scopes:
            claims["scope"] = " ".join(sorted(draft.scopes))
        if draft.txn is not None:
            claims["txn"] = draft.txn
        if draft.act is not None:
            claims["act"] = dict(draft.act)
        if draft.jkt is not None:
            claims["cnf"] = {"jkt": draft.jkt}
        key = self._keyring.signing
        header = jose.encode_header(key.alg, typ=ACCESS_TOKEN_TYPE, kid=key.thumbprint)
        return key.compact(header, orjson.dumps(claims))

    def read(self, compact: str, now: float) -> OwnToken:
        """Verify an access token or hop-0 grant of this authority.

        Raises:
            VerificationError: the token is invalid, expired or another issuer's.
        """
        parsed = jose.unverified(compact)
        typ = parsed.header.get("typ")
        if typ not in {ACCESS_TOKEN_TYPE, GRANT_TYPE}:
            raise VerificationError("wrong_typ", "the token isn't an access token or grant")
        _, payload = jose.verify(parsed, self._keyring.jwks, algorithms={"ES256"}, typ=str(typ))
        body = jose.loads_object(payload)
        claims = Claims(body, VerificationError)
        if claims.text("iss") != self.issuer:
            raise VerificationError("issuer_mismatch", "the token comes from another issuer")
        exp = claims.integer("exp")
        if exp <= now:
            raise VerificationError("expired", "the token has expired")
        return OwnToken(str(typ), body, claims.text("jti"), claims.integer("iat"), exp)
