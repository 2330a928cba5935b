# SPDX-License-Identifier: Apache-2.0
"""`jose.unverified` and `jose.verify`: what they take, PyJWT and joserfc take with the same payload.

The first byte says how the rest is read: as a whole token; as header, NUL and payload, to be signed by the right key; or as
the JWK that a good token is checked with.
"""

from __future__ import annotations

import json

import jwt
import runner
from joserfc import jws
from joserfc.jwk import JWKRegistry
from joserfc.registry import HeaderParameter

with runner.instrumented():
    from agent_identity import jose
    from agent_identity.values import b64url, unb64url

import world

ALGORITHMS = tuple(world.JWKS)
KEYS = [*world.JWKS.values(), *world.PUBLISHED["jwks"]["keys"]]
KEYS += [key["public_jwk"] for key in world.PUBLISHED["keys"].values()]
PYJWT = jwt.PyJWS()
PYJWT.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())
# Where keys could be fetched counts for nothing here, so that no form is asked of it but its type.
LINKS = {name: HeaderParameter("link", "str") for name in ("jku", "x5u")}
LINKS["x5c"] = HeaderParameter("certificates", lambda _: None)
PUBLIC = frozenset({"kty", "crv", "x", "y", "n", "e"})


def taken_by_others(compact: str, keys: list[dict[str, str]], payload: bytes) -> None:
    """The token under one of these keys, as two other libraries read it."""
    alg = json.loads(unb64url(compact.partition(".")[0]))["alg"]
    assert any(pyjwt_takes(compact, alg, key, payload) for key in keys), "PyJWT refuses it"
    assert any(joserfc_takes(compact, alg, key, payload) for key in keys), "joserfc refuses it"


def pyjwt_takes(compact: str, alg: str, jwk: dict[str, str], payload: bytes) -> bool:
    try:
        key = jwt.PyJWK.from_dict(jwk, algorithm="EdDSA" if alg == "Ed25519" else alg).key
        found = PYJWT.decode_complete(compact, key, algorithms=[alg])
    except (jwt.PyJWTError, TypeError, ValueError):
        return False
    return found["payload"] == payload


def joserfc_takes(compact: str, alg: str, jwk: dict[str, str], payload: bytes) -> bool:
    registry = jws.JWSRegistry(LINKS, algorithms=[alg], strict_check_header=False)
    registry.max_header_length = jose.MAX_TOKEN
    try:
        key = JWKRegistry.import_key({name: jwk[name] for name in jwk.keys() & PUBLIC})
        found = jws.deserialize_compact(compact, key, registry=registry)
    except Exception:  # a refusal, however it is spelled: the caller wants a library that takes it
        return False
    return found.payload == payload


def verified(compact: str, keys: list[dict[str, str]]) -> bool:
    parsed = jose.unverified(compact)
    header, payload = jose.verify(compact, keys, algorithms=ALGORITHMS)
    assert jose.verify(parsed, keys, algorithms=ALGORITHMS) == (header, payload)
    taken_by_others(compact, keys, payload)
    return True


def signed(alg: str, header: bytes, payload: bytes) -> str:
    start = f"{b64url(header)}.{b64url(payload)}"
    return f"{start}.{b64url(world.signature_of(alg, start.encode()))}"


def one(data: bytes) -> bool:
    kind, alg = data[:1], ALGORITHMS[data[1] % len(ALGORITHMS)] if len(data) > 1 else "ES256"
    if kind == b"t":
        return verified(data[1:].decode("utf-8", "surrogateescape"), KEYS)
    if kind == b"s":
        header, _, payload = data[2:].partition(b"\0")
        return verified(signed(alg, header, payload), KEYS)
    jwk = jose.loads_object(data[2:])
    return verified(GOOD[alg], [jwk])


GOOD = {alg: signed(alg, json.dumps({"alg": alg}).encode(), b"{}") for alg in ALGORITHMS}


def seeds() -> list[bytes]:
    texts = [f"t{compact}".encode() for compact in (*world.compacts(), *GOOD.values())]
    for place, alg in enumerate(ALGORITHMS):
        header = json.dumps({"typ": "JWT", "alg": alg}).encode()
        texts.append(b"s" + bytes([place]) + header + b'\0{"sub":"alice"}')
        texts.append(b"k" + bytes([place]) + json.dumps(world.JWKS[alg]).encode())
    return texts


if __name__ == "__main__":
    members = ["kid", "jwk", "jku", "x5c", "crit", "b64", "zip", "typ", "alg", "use", "key_ops"]
    runner.fuzz("token", one, seeds(), [*(f'"{name}":' for name in members), "none", *ALGORITHMS])
