# SPDX-License-Identifier: Apache-2.0
"""`jose.unverified` and `jose.verify`: what they take, PyJWT and joserfc take with the same payload.

The first byte says how the rest is read: as a whole token; as header, NUL and payload, to be signed by the right key; as the
JWK that a good token is checked with; or as choices of members that are put into a good header or JWK.
"""

from __future__ import annotations

import json
from typing import Any

import atheris
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
MEMBERS = ["kid", "jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "crit", "b64", "zip", "enc", "typ"]
MEMBERS += [
    "cty",
    "alg",
    "use",
    "key_ops",
    "kty",
    "crv",
    "x",
    "y",
    "n",
    "e",
    "d",
    "k",
    "exp",
    "other",
]
VALUES = [
    None,
    True,
    False,
    0,
    1,
    1.5,
    "",
    [],
    {},
    ["verify"],
    ["sign"],
    ["exp"],
    ["b64"],
    ["other"],
]
VALUES += ["sig", "enc", "verify", "EC", "OKP", "RSA", "P-256", "Ed25519", "none", "HS256", "DEF"]
VALUES += [*ALGORITHMS, *world.JWKS.values(), world.KEYS[2].public_jwk["x"], "AQAB", "AAAA"]
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
    if kind == b"k":
        return verified(GOOD[alg], [jose.loads_object(data[2:])])
    said = atheris.FuzzedDataProvider(data[2:])
    if said.ConsumeBool():
        return verified(GOOD[alg], [changed(world.JWKS[alg], said)])
    header = changed({"alg": alg, "typ": "JWT"}, said)
    return verified(signed(alg, json.dumps(header).encode(), b"{}"), KEYS)


def changed(good: dict[str, str], said: atheris.FuzzedDataProvider) -> dict[str, Any]:
    members: dict[str, Any] = dict(good)
    for _ in range(said.ConsumeIntInRange(1, 3)):
        name = said.PickValueInList(MEMBERS)
        value = said.PickValueInList(VALUES)
        members[name] = said.ConsumeUnicode(9) if value == "" else value
    return members


GOOD = {alg: signed(alg, json.dumps({"alg": alg}).encode(), b"{}") for alg in ALGORITHMS}


def seeds() -> list[bytes]:
    texts = [f"t{compact}".encode() for compact in (*world.compacts(), *GOOD.values())]
    for place, alg in enumerate(ALGORITHMS):
        header = json.dumps({"typ": "JWT", "alg": alg}).encode()
        texts.append(b"s" + bytes([place]) + header + b'\0{"sub":"alice"}')
        texts.append(b"m" + bytes([place, *range(40)]))
        texts.append(b"k" + bytes([place]) + json.dumps(world.JWKS[alg]).encode())
    return texts


if __name__ == "__main__":
    words = [f'"{name}":' for name in MEMBERS]
    runner.fuzz("token", one, seeds(), [*words, "none", *ALGORITHMS])
