# SPDX-License-Identifier: Apache-2.0
"""A second reader of chains, from DESIGN section 5 alone: it shares no line with the library, and is as plain as can be."""

from __future__ import annotations

import functools
import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

from joserfc import jws
from joserfc.jwk import JWKRegistry

CONSTANT = ("sub", "sub_iss", "sub_profile", "purpose", "txn")
EVIDENCE = ("asserted", "agent", "issuer")
PUBLIC = ("kty", "crv", "x", "y")


def part(compact: str, place: int) -> Any:
    text = compact.split(".")[place]
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def sha256(text: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@functools.lru_cache(100)
def _key(jwk: str) -> Any:
    return JWKRegistry.import_key(json.loads(jwk))


def is_signed(compact: str, jwk: dict[str, Any], jkt: str | None = None) -> bool:
    key = _key(json.dumps({name: jwk[name] for name in PUBLIC if name in jwk}))
    assert jkt is None or key.thumbprint() == jkt
    registry = jws.JWSRegistry(algorithms=["ES256", "EdDSA", "Ed25519"], strict_check_header=False)
    jws.deserialize_compact(compact, key, registry=registry)  # raises what is no signature
    return True


def check(
    members: list[str],
    jwks: list[dict[str, Any]],
    *,
    now: float,
    issuer: str,
    most: str,
    least: str,
) -> None:
    """Fail with AssertionError, or an error of joserfc, for what is no chain under that anchor."""
    hops = [part(member, 1) for member in reversed(members)]
    heads = [part(member, 0) for member in reversed(members)]
    root, leaf = hops[0], hops[-1]
    assert len(hops) <= 8
    assert all(head["typ"] == "agent-grant+jwt" for head in heads)
    assert root["iss"] == root["act"]["iss"] == issuer
    assert EVIDENCE.index(least) <= EVIDENCE.index(root["evidence"]) <= EVIDENCE.index(most)
    is_trigger = (root["sub_profile"], root["sub_iss"]) == ("trigger", root["act"]["sub"])
    assert root["sub_iss"] == issuer or is_trigger
    assert "par_hash" not in root
    assert "act" not in root["act"]
    (named,) = [jwk for jwk in jwks if jwk["kid"] == heads[0]["kid"]]
    assert is_signed(members[-1], named)
    for depth, hop in enumerate(hops):
        assert hop["act"]["instance"] == hop["cnf"]["jkt"]
        assert hop["act"]["sub_profile"] == "ai_agent"
        assert hop["del_depth"] == depth <= hop["del_max_depth"]
        assert hop["nbf"] < hop["exp"]
        assert hop["iat"] <= now + 30
    for depth in range(1, len(hops)):
        above, below = hops[depth - 1], hops[depth]
        assert below["par_hash"] == sha256(members[-depth].rpartition(".")[0])
        assert below["iss"] == below["act"]["iss"] == above["act"]["sub"]
        assert below["act"]["act"] == above["act"]
        assert all(below[name] == above[name] for name in CONSTANT)
        assert {*below.get("scope", "").split()} <= {*above.get("scope", "").split()}
        assert {*below["aud"]} <= {*above["aud"]}
        assert below["exp"] <= above["exp"]
        assert below["nbf"] >= above["nbf"]
        assert below["iat"] >= above["nbf"]
        assert below["del_max_depth"] <= above["del_max_depth"]
        assert "evidence" not in below
        assert "sub_token_hash" not in below
        assert is_signed(members[-depth - 1], heads[depth]["jwk"], above["cnf"]["jkt"])
    assert len({hop["act"]["sub"] for hop in hops}) == len(hops)
    assert len({hop["cnf"]["jkt"] for hop in hops}) == len(hops)
    assert leaf["nbf"] - 30 <= now < leaf["exp"] + 30
