# SPDX-License-Identifier: Apache-2.0
"""DPoP proofs of a client (RFC 9449 §4.2), and the nonces that servers require in them (§8)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.uris import htu_of, origin
from agent_identity.values import JSON, new_id

if TYPE_CHECKING:
    from agent_identity.keys.signing import SigningKey

_NONCE_LIMIT: Final = 512
_NONCE_ORIGINS: Final = 100


class Nonces:
    """The last DPoP nonce of each origin, for the hundred most recently used origins (RFC 9449 §8.2)."""

    __slots__ = ("_lock", "_nonces")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._nonces: OrderedDict[str, str] = OrderedDict()

    def get(self, url: str) -> str | None:
        place = origin(url)
        with self._lock:
            if place in self._nonces:
                self._nonces.move_to_end(place)
            return self._nonces.get(place)

    def learn(self, url: str, nonce: str | None) -> None:
        if not nonce or len(nonce) > _NONCE_LIMIT or not nonce.isascii() or not nonce.isprintable():
            return
        with self._lock:
            place = origin(url)
            self._nonces[place] = nonce
            self._nonces.move_to_end(place)
            if len(self._nonces) > _NONCE_ORIGINS:
                self._nonces.popitem(last=False)


class ProofKey:
    """Makes DPoP proofs with an agent's key (RFC 9449 §4.2). The header is encoded once."""

    __slots__ = ("_header", "_key", "thumbprint")

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._header = jose.encode_header(key.alg, typ="dpop+jwt", jwk=key.public_jwk)
        self.thumbprint: str = key.thumbprint

    def proof(
        self, method: str, url: str, now: float, *, ath: str | None = None, nonce: str | None = None
    ) -> str:
        """Make a proof for one request. `ath` is for requests with an access token, `nonce` is the server's."""
        claims: dict[str, JSON] = {
            "jti": new_id("dpop_"),
            "htm": method,
            "htu": htu_of(url),
            "iat": int(now),
        }
        if ath is not None:
            claims["ath"] = ath
        if nonce is not None:
            claims["nonce"] = nonce
        return self._key.compact(self._header, orjson.dumps(claims))
