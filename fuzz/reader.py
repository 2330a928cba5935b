# SPDX-License-Identifier: Apache-2.0
"""A second reader of chains, from DESIGN section 5 alone: it shares no line with the library, and is as plain as can be."""

from __future__ import annotations

import functools
import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import rfc8785
from joserfc import jws
from joserfc.jwk import JWKRegistry

CONSTANT = ("sub", "sub_iss", "sub_profile", "purpose", "txn")
EVIDENCE = ("asserted", "agent", "issuer")
PUBLIC = ("kty", "crv", "x", "y")
DETAILS = "authorization_details"
TOOL = "urn:agent-identity:tool"
WORDS = {"const", "enum", "minimum", "maximum", "prefix"}
CLAIMS = {*CONSTANT, *("iss", "act", "cnf", "aud", "scope", "task", "iat", "nbf", "exp", "jti")}
CLAIMS |= {"del_depth", "del_max_depth", "par_hash", "evidence", "sub_token_hash", DETAILS}
LIST = {"iss", "iat", "exp", "seq", "revoked"}


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


def form(value: Any) -> bytes:
    """RFC 8785; numbers that it would write as integers too large to be one are refused."""
    text: bytes = rfc8785.dumps(value)
    for number in _numbers(value):
        assert abs(number) < 2**53 or "e" in rfc8785.dumps(number).decode()
    return text


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        items = value.values() if isinstance(value, dict) else value
        return [number for item in items for number in _numbers(item)]
    return [value] if is_number(value) else []


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def is_details(details: Any) -> bool:
    """Whether that is a list of objects as the specification has them."""
    return isinstance(details, list) and 1 <= len(details) <= 64 and all(map(_is_object, details))


def _is_object(said: Any) -> bool:
    if not isinstance(said, dict) or said.get("type") != TOOL:
        return False
    if not {*said} <= {"type", "tools", "resources", "arguments"}:
        return False
    for name in ("tools", "resources"):
        names = said.get(name, ["any"])
        if not isinstance(names, list) or not names:
            return False
        if not all(isinstance(each, str) and each for each in names):
            return False
        if len({*names}) < len(names):
            return False
    rules = said.get("arguments", {"any": {"const": 1}})
    return isinstance(rules, dict) and 1 <= len(rules) <= 64 and all(map(_is_rule, rules.values()))


def _is_rule(rule: Any) -> bool:
    if not isinstance(rule, dict) or not rule or not {*rule} <= WORDS:
        return False
    if not all(is_number(rule[word]) for word in ("minimum", "maximum") if word in rule):
        return False
    if "prefix" in rule and (not isinstance(rule["prefix"], str) or rule["prefix"] == ""):
        return False
    if "enum" in rule and (not isinstance(rule["enum"], list) or rule["enum"] == []):
        return False
    try:
        form([rule.get("const"), rule.get("enum")])
    except (AssertionError, rfc8785.CanonicalizationError):
        return False
    return True


def takes(rule: dict[str, Any], value: Any) -> bool:
    """Whether a constraint takes an argument's value."""
    for word, said in rule.items():
        if word == "const" and form(value) != form(said):
            return False
        if word == "enum" and form(value) not in [form(each) for each in said]:
            return False
        if word == "minimum" and not (is_number(value) and value >= said):
            return False
        if word == "maximum" and not (is_number(value) and value <= said):
            return False
        if word == "prefix" and not (isinstance(value, str) and value[: len(said)] == said):
            return False
    return True


def _rule_covers(above: dict[str, Any], below: dict[str, Any]) -> bool:
    if "const" in below or "enum" in below:
        named = [below["const"]] if "const" in below else below["enum"]
        return not [value for value in named if takes(below, value) and not takes(above, value)]
    return not {"const", "enum"} & {*above} and all(
        word in below
        and (
            (word == "minimum" and below[word] >= said)
            or (word == "maximum" and below[word] <= said)
            or (word == "prefix" and below[word][: len(said)] == said)
        )
        for word, said in above.items()
    )


def _object_covers(above: dict[str, Any], below: dict[str, Any]) -> bool:
    for name in ("tools", "resources"):
        if name in above and (name not in below or {*below[name]} - {*above[name]}):
            return False
    rules = below.get("arguments", {})
    return all(
        name in rules and _rule_covers(rule, rules[name])
        for name, rule in above.get("arguments", {}).items()
    )


def is_covered(above: dict[str, Any], below: dict[str, Any]) -> bool:
    """Whether the details of one hop's claims are no wider than those of the hop above."""
    if DETAILS not in above:
        return True
    return DETAILS in below and all(
        any(_object_covers(wider, narrower) for wider in above[DETAILS])
        for narrower in below[DETAILS]
    )


def allows(claims: dict[str, Any], tool: str, resource: str, arguments: dict[str, Any]) -> bool:
    """Whether the details of a hop's claims allow a call."""
    return DETAILS not in claims or any(
        tool in said.get("tools", [tool])
        and resource in said.get("resources", [resource])
        and all(
            name in arguments and takes(rule, arguments[name])
            for name, rule in said.get("arguments", {}).items()
        )
        for said in claims[DETAILS]
    )


def revoked(
    compact: str, jwks: list[dict[str, Any]], *, now: float, issuer: str
) -> tuple[int, dict[str, int], range]:
    """Sequence number, times by reference and the seconds that a revocation list counts, or a failure like that of `check`."""
    head, claims = part(compact, 0), part(compact, 1)
    assert head["typ"] == "agent-revocations+jwt"
    assert {*head} == {"typ", "alg", "kid"}
    assert {*claims} == LIST
    assert claims["iss"] == issuer
    assert claims["iat"] < claims["exp"]
    assert claims["iat"] - 30 <= now < claims["exp"] + 30
    assert max(claims["iat"], claims["exp"]) < 253402300800
    assert isinstance(claims["revoked"], list)
    whole = [claims["seq"], claims["iat"], claims["exp"]]
    whole += [entry["at"] for entry in claims["revoked"]]
    assert all(type(number) is int and 0 <= number < 2**53 for number in whole)
    assert all({*entry} == {"ref", "at"} for entry in claims["revoked"])
    assert all(isinstance(entry["ref"], str) and entry["ref"] for entry in claims["revoked"])
    (named,) = [jwk for jwk in jwks if head["kid"] == jwk["kid"]]
    assert is_signed(compact, named)
    found: dict[str, int] = {}
    for entry in sorted(claims["revoked"], key=lambda entry: entry["at"]):
        found[entry["ref"]] = entry["at"]
    ends = min(claims["exp"], claims["iat"] + 3600)
    return claims["seq"], found, range(claims["iat"] - 30, ends + 30)


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
    assert {*heads[0]} == {"typ", "alg", "kid"}
    assert all({*head} == {"typ", "alg", "jwk"} for head in heads[1:])
    assert all({*hop} <= CLAIMS for hop in hops)
    assert all(is_details(hop[DETAILS]) for hop in hops if DETAILS in hop)
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
        assert is_covered(above, below)
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
