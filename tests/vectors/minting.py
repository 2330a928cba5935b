# SPDX-License-Identifier: Apache-2.0
"""Chains, assertions, tokens and lists for the kit in `delegation/`: well made, or with one thing wrong with them.

Nothing of agent_identity is used, so that what the kit expects isn't computed by the code that it tests. Keys are worked out
from published seeds and ECDSA signs deterministically (RFC 6979), so that making the kit again gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, NamedTuple

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

NOW = 1_795_518_010
ANCHOR = "https://authority.example"
BILLING = "https://billing.example"
MAIL = "https://mail.example"
LOCAL = "urn:agent-identity:local"
TOOL = "book_total"
ARGS: dict[str, Any] = {"customer": "ACME", "lines": [1, True, None], "total": 1680.5}
CALL_ID = "call_00000000000000000000000000000001"
TYPE = "urn:agent-identity:tool"
DROP = object()
"""In place of a claim: it is left out."""


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


def sha256(data: bytes | str) -> str:
    return b64(hashlib.sha256(data.encode() if isinstance(data, str) else data).digest())


def args_hash(args: Any) -> str:
    return "sha-256:" + sha256(rfc8785.dumps(args))


# -- keys ----------------------------------------------------------------------------------------------------------------


class Key(NamedTuple):
    name: str
    secret: bytes
    jwk: dict[str, str]
    jkt: str

    @property
    def alg(self) -> str:
        return "Ed25519" if self.jwk["kty"] == "OKP" else "ES256"

    def sign(self, data: bytes) -> bytes:
        if self.jwk["kty"] == "OKP":
            return ed25519.Ed25519PrivateKey.from_private_bytes(self.secret).sign(data)
        scheme = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(_p256(self.secret).sign(data, scheme))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def key(name: str) -> Key:
    """The key that everybody can work out; those whose names end in `-ed` and `agent-1` are Ed25519 keys."""
    secret = hashlib.sha256(f"agent_identity test key: {name}".encode()).digest()
    jwk: dict[str, str]
    if name == "agent-1" or name.endswith("-ed"):
        public = ed25519.Ed25519PrivateKey.from_private_bytes(secret).public_key()
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64(public.public_bytes_raw())}
    else:
        point = _p256(secret).public_key().public_numbers()
        x, y = (b64(number.to_bytes(32, "big")) for number in (point.x, point.y))
        jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    return Key(name, secret, jwk, thumbprint(jwk))


def _p256(secret: bytes) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(secret, "big"), ec.SECP256R1())


def thumbprint(jwk: Mapping[str, str]) -> str:
    required = {name: jwk[name] for name in ("crv", "kty", "x", "y") if name in jwk}
    return sha256(json.dumps(required, separators=(",", ":")))


def published(*keys: Key, **other: str) -> dict[str, Any]:
    """A JWK Set (RFC 7517 §5)."""
    return {"keys": [k.jwk | {"kid": k.jkt, "alg": k.alg, "use": "sig"} | other for k in keys]}


# -- signing -------------------------------------------------------------------------------------------------------------


def dumped(value: Mapping[str, Any]) -> bytes:
    kept = {name: each for name, each in value.items() if each is not DROP}
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False).encode()


def signed(
    signer: Key, header: Mapping[str, Any] | bytes, claims: Mapping[str, Any] | bytes
) -> str:
    parts = [part if isinstance(part, bytes) else dumped(part) for part in (header, claims)]
    text = ".".join(map(b64, parts))
    return f"{text}.{b64(signer.sign(text.encode()))}"


def resigned(signer: Key, head: str, body: str) -> str:
    """Signed as it is spelled."""
    return f"{head}.{body}.{b64(signer.sign(f'{head}.{body}'.encode()))}"


# -- chains --------------------------------------------------------------------------------------------------------------


def agent(depth: int) -> str:
    return f"https://agents.example/a{depth}"


def holder(depth: int) -> Key:
    return key(f"agent-{depth}")


class Chain(NamedTuple):
    """`hops` are the claims, root first; `compacts` what was signed, newest first; `holders` the keys, root first."""

    hops: list[dict[str, Any]]
    compacts: list[str]
    holders: list[Key]

    @property
    def leaf(self) -> dict[str, Any]:
        return self.hops[-1]

    def remade(self, compact: str, *, place: int = 0) -> Chain:
        """With another member, newest counted from 0."""
        compacts = [*self.compacts]
        compacts[place] = compact
        return self._replace(compacts=compacts)


def root_claims(held: Key, anchor: str = ANCHOR) -> dict[str, Any]:
    return {
        "iss": anchor,
        "sub": "U019488227",
        "sub_iss": anchor,
        "sub_profile": "user",
        "act": {"iss": anchor, "sub": agent(0), "sub_profile": "ai_agent", "instance": held.jkt},
        "cnf": {"jkt": held.jkt},
        "aud": [BILLING, MAIL, LOCAL],
        "scope": "invoices:read journal:write",
        "purpose": "close the October books",
        "txn": "ses_00000000000000000000000000000001",
        "iat": NOW - 10,
        "nbf": NOW - 10,
        "exp": NOW + 890,
        "jti": "grant_00000000000000000000000000000000",
        "del_depth": 0,
        "del_max_depth": 7,
        "evidence": "issuer",
    }


def child_claims(parent: dict[str, Any], compact: str, held: Key, depth: int) -> dict[str, Any]:
    nested = parent.get("act")
    above = nested["sub"] if isinstance(nested, dict) and "sub" in nested else agent(depth - 1)
    actor = {"iss": above, "sub": agent(depth), "sub_profile": "ai_agent", "instance": held.jkt}
    child = {
        **parent,
        "iss": above,
        "act": actor | {"act": nested},
        "cnf": {"jkt": held.jkt},
        "jti": f"grant_{depth:032}",
        "del_depth": depth,
        "par_hash": sha256(compact.rpartition(".")[0]),
    }
    return {name: value for name, value in child.items() if name not in {"evidence", "task"}}


def chain(
    hops: int = 2,
    *change: tuple[int, Mapping[str, Any]],
    header: Mapping[int, Mapping[str, Any]] | None = None,
    signer: Mapping[int, Key] | None = None,
    holders: Mapping[int, Key] | None = None,
    anchor: Key | None = None,
) -> Chain:
    """A chain in which hop `depth` has other claims, header or signer; what is below follows it as an honest agent would."""
    claims: list[dict[str, Any]] = []
    compacts: list[str] = []
    held = [(holders or {}).get(depth, holder(depth)) for depth in range(hops)]
    first = anchor or key("anchor")
    for depth in range(hops):
        by = (signer or {}).get(depth, held[depth - 1] if depth else first)
        if depth:
            body = child_claims(claims[-1], compacts[-1], held[depth], depth)
        else:
            body = root_claims(held[0])
        for _, changed in (each for each in change if each[0] == depth):
            body = body | changed
        name = {"jwk": by.jwk} if depth else {"kid": by.jkt}
        head = {"typ": "agent-grant+jwt", "alg": by.alg} | name | (header or {}).get(depth, {})
        compacts.append(signed(by, head, body))
        claims.append({each: value for each, value in body.items() if value is not DROP})
    return Chain(claims, compacts[::-1], held)


def actor_of(made: Chain, depth: int = -1, **other: Any) -> dict[str, Any]:
    """The `act` of a hop, but for `other`."""
    act = made.hops[depth]["act"] | other
    return {name: value for name, value in act.items() if value is not DROP}


# -- assertions, tokens, lists -------------------------------------------------------------------------------------------


def call_claims(made: Chain, args: Any = ARGS) -> dict[str, Any]:
    leaf = made.leaf
    call = {"id": CALL_ID, "tool": TOOL, "args_hash": args_hash(args), "canon": "jcs"}
    return {
        "iss": leaf["act"]["sub"],
        "sub": leaf["sub"],
        "txn": leaf["txn"],
        "aud": BILLING,
        "grant_hash": sha256(made.compacts[0]),
        "iat": NOW - 5,
        "exp": NOW + 55,
        "jti": CALL_ID,
        "call": call,
        "trace": {"trace_id": "0af7651916cd43dd8448eb211c80319c", "span_id": "b7ad6b7169203331"},
    }


def asserted(
    made: Chain,
    claims: Mapping[str, Any] | bytes,
    *,
    header: Mapping[str, Any] | None = None,
    signer: Key | None = None,
) -> str:
    by = signer or made.holders[-1]
    head = {"typ": "agent-assertion+jwt", "alg": by.alg, "jwk": by.jwk} | dict(header or {})
    return signed(by, head, claims)


def access_token(made: Chain, **other: Any) -> str:
    claims = {
        "iss": ANCHOR,
        "sub": made.leaf["sub"],
        "aud": BILLING,
        "iat": NOW - 5,
        "exp": NOW + 295,
        "jti": "token_1",
        "client_id": made.leaf["act"]["sub"],
        "scope": "journal:write",
        "cnf": {"jkt": made.holders[-1].jkt},
    }
    by = key("anchor")
    return signed(by, {"typ": "at+jwt", "alg": by.alg, "kid": by.jkt}, claims | other)


def proof(made: Chain, token: str, *, signer: Key | None = None, **other: Any) -> str:
    by = signer or made.holders[-1]
    claims = {
        "htm": "POST",
        "htu": f"{BILLING}/journal",
        "iat": NOW - 5,
        "jti": "proof_1",
        "ath": sha256(token),
    }
    return signed(by, {"typ": "dpop+jwt", "alg": by.alg, "jwk": by.jwk}, claims | other)


def revocations(*entries: tuple[str, int], signer: Key | None = None, **other: Any) -> str:
    """A list; each entry is a reference and its time."""
    by = signer or key("operator")
    claims = {
        "iss": ANCHOR,
        "iat": NOW - 60,
        "exp": NOW + 3540,
        "seq": 7,
        "revoked": [{"ref": ref, "at": at} for ref, at in entries],
    }
    header = {"typ": other.pop("typ", "agent-revocations+jwt"), "alg": by.alg, "kid": by.jkt}
    return signed(by, header | other.pop("header", {}), claims | other)
