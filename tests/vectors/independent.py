# SPDX-License-Identifier: Apache-2.0
"""A second verifier, written from docs/reference/delegation.md with joserfc, rfc8785 and the standard library alone.

It shares no line with agent_identity, so that both can't be wrong in the same way; `judge` takes one case of the kit in
`delegation/` and gives what was verified, or raises `RefusedError` with the rule that was broken. It is slow, and it is no
library: revocation lists are read anew for each case, and it remembers what was used only in the set that it is given.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import warnings
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import rfc8785
from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import JWKRegistry

LOCAL = "urn:agent-identity:local"
EVIDENCE = ["asserted", "agent", "issuer"]
OURS = {"ES256", "Ed25519", "EdDSA"}
KEY_KINDS = {
    "ES256": ("EC", "P-256"),
    "ES384": ("EC", "P-384"),
    "ES512": ("EC", "P-521"),
    "Ed25519": ("OKP", "Ed25519"),
    "EdDSA": ("OKP", "Ed25519"),
    **dict.fromkeys(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], ("RSA", None)),
}
TOKENS = KEY_KINDS.keys()
MEMBERS = {"EC": ["crv", "kty", "x", "y"], "OKP": ["crv", "kty", "x"], "RSA": ["e", "kty", "n"]}


class RefusedError(Exception):
    """`rule` is the heading under which the kit sorts the case."""

    def __init__(self, rule: str, why: str) -> None:
        super().__init__(f"{rule}: {why}")
        self.rule = rule


def refuse(rule: str, why: str) -> NoReturn:
    raise RefusedError(rule, why)


def require(holds: object, rule: str, why: str) -> None:
    if not holds:
        refuse(rule, why)


@contextmanager
def as_rule(rule: str) -> Iterator[None]:
    """Whatever is wrong with something that came along is wrong with that."""
    try:
        yield
    except RefusedError as error:
        refuse(rule, str(error))


# -- bytes ---------------------------------------------------------------------------------------------------------------


def b64(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def unb64(text: str, rule: str = "jose") -> bytes:
    require(re.fullmatch(r"[A-Za-z0-9_-]+", text), rule, "no base64url")
    require(len(text) % 4 != 1, rule, "no base64url")
    data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    require(b64(data) == text, rule, "another spelling of the same bytes")
    return data


def sha256(data: bytes | str) -> str:
    return b64(hashlib.sha256(data.encode() if isinstance(data, str) else data).digest())


# -- JSON with one reading -----------------------------------------------------------------------------------------------

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]|[-+.0-9eE]+', re.DOTALL)


def strict_json(data: bytes) -> Any:
    require(not data.startswith(b"\xef\xbb\xbf"), "json", "a byte order mark")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        refuse("json", "no UTF-8")
    depth = 0
    for found in TOKEN.findall(text):
        depth += (found in "[{") - (found in "]}")
        require(depth <= 32, "json", "nested too deep")
        require(found.startswith('"') or len(found) <= 32, "json", "a number of many characters")
    try:
        value = json.loads(
            text,
            object_pairs_hook=once,
            parse_int=whole,
            parse_float=real,
            parse_constant=lambda name: refuse("json", name),
        )
    except ValueError:
        refuse("json", "no JSON")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        refuse("json", "a lone surrogate")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    require(len({name for name, _ in pairs}) == len(pairs), "json", "a name twice")
    return dict(pairs)


def whole(literal: str) -> int:
    require(abs(int(literal)) < 2**53, "json", "an integer that not everybody can hold")
    return int(literal)


def real(literal: str) -> float:
    require(math.isfinite(float(literal)), "json", "a number beyond all floats")
    return float(literal)


def canonical(value: Any, rule: str) -> bytes:
    """RFC 8785, for values that have one reading."""
    check_plain(value, 0, rule)
    return rfc8785.dumps(value)


def check_plain(value: Any, depth: int, rule: str) -> None:
    if isinstance(value, dict | list):
        require(depth < 32, rule, "nested too deep")
        for item in value.values() if isinstance(value, dict) else value:
            check_plain(item, depth + 1, rule)
        for name in value if isinstance(value, dict) else ():
            check_plain(name, depth + 1, rule)
    elif isinstance(value, float):
        require(math.isfinite(value), rule, "no number")
        is_whole = value.is_integer() and abs(value) < 1e21
        require(not is_whole or abs(value) < 2**53, rule, "an integer that not everybody can hold")
    elif isinstance(value, str):
        require(not re.search("[\ud800-\udfff]", value), rule, "a lone surrogate")
    elif value is not None and not isinstance(value, bool):
        require(abs(value) < 2**53, rule, "an integer that not everybody can hold")


# -- JOSE ----------------------------------------------------------------------------------------------------------------


class Jws(NamedTuple):
    compact: str
    header: dict[str, Any]
    payload: bytes

    @property
    def signing_input(self) -> str:
        return self.compact.rpartition(".")[0]

    def claims(self) -> dict[str, Any]:
        found = strict_json(self.payload)
        require(isinstance(found, dict), "json", "no object")
        return found


def take_apart(compact: str, *, header_limit: int | None = 1024, limit: int = 16 * 1024) -> Jws:
    require(isinstance(compact, str) and compact.isascii(), "jose", "no compact JWS")
    require(len(compact) <= limit, "caps", "a token that is too large")
    parts = compact.split(".")
    require(len(parts) == 3 and all(parts), "jose", "no compact JWS")
    if header_limit is not None:
        require(len(parts[0]) * 3 // 4 <= header_limit, "caps", "a header that is too large")
    header = strict_json(unb64(parts[0]))
    require(isinstance(header, dict), "jose", "a header that is no object")
    require(not {"crit", "b64", "zip", "enc"} & set(header), "jose", "an extension")
    require(isinstance(header.get("kid", ""), str), "jose", "a kid that is no string")
    if isinstance(header.get("jwk"), dict):
        refuse_private(header["jwk"])
    unb64(parts[2])
    return Jws(compact, header, unb64(parts[1]))


def refuse_private(jwk: dict[str, Any]) -> None:
    private = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
    require(not private & set(jwk), "jose", "a key that is no public one")


def thumbprint(jwk: dict[str, Any]) -> str:
    """RFC 7638."""
    names = MEMBERS.get(str(jwk.get("kty")), [])
    require(names and all(isinstance(jwk.get(name), str) for name in names), "key", "no key")
    text = json.dumps({name: jwk[name] for name in names}, separators=(",", ":"))
    return sha256(text)


def check_signature(token: Jws, keys: list[dict[str, Any]], allowed: set[str], typ: str) -> None:
    alg = token.header.get("alg")
    require(isinstance(alg, str) and alg in allowed, "jose", "an algorithm that isn't allowed")
    require(token.header.get("typ") == typ, "jose", "another kind of token")
    kid = token.header.get("kid")
    named = [key for key in keys if kid is None or key.get("kid") == kid]
    require(named, "key", "a key that nobody knows")
    fitting = [key for key in named if fits(key, str(alg))]
    require(fitting, "key", "a key for something else")
    require(len(fitting) <= 4, "key", "too many keys of one name")
    loaded = [import_key(key) for key in fitting]
    require(any(is_signed(token, key, str(alg)) for key in loaded), "key", "a wrong signature")


def fits(key: dict[str, Any], alg: str) -> bool:
    operations = key.get("key_ops", ["verify"])
    return (
        (key.get("kty"), key.get("crv")) == KEY_KINDS[alg]
        and key.get("alg", alg) == alg
        and key.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
    )


def import_key(key: dict[str, Any]) -> Any:
    refuse_private(key)
    require(
        all(isinstance(key.get(name), str) for name in MEMBERS[key["kty"]]), "key", "a broken key"
    )
    if key["kty"] == "OKP":
        point = unb64(key["x"], "key")
        require(len(point) == 32, "key", "a key of another length")
        require(not is_weak(point), "key", "a key that anybody can sign for")
    if key["kty"] == "EC":
        size = {"P-256": 32, "P-384": 48}[key["crv"]]
        lengths = {len(unb64(key[name], "key")) for name in "xy"}
        require(lengths == {size}, "key", "a key of another length")
    try:
        return JWKRegistry.import_key({name: key[name] for name in MEMBERS[key["kty"]]})
    except (JoseError, ValueError):
        refuse("key", "no point of its curve")


def is_weak(point: bytes) -> bool:
    """Whether an Ed25519 point has a small order, or a y that isn't below the field's prime."""
    p = 2**255 - 19
    y = int.from_bytes(point, "little") % 2**255
    if y >= p:
        return True
    # 8·A is the neutral element exactly for the points of order 1, 2, 4 and 8: y of 8·A by doubling three times.
    d = -121665 * pow(121666, -1, p) % p
    xx = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
    for _ in range(3):
        # On -x²+y² = 1+dx²y²: y' = (y²+x²)/(1-dx²y²), x'² = 4x²y²/(1+dx²y²)²
        yy, t = y * y % p, d * xx * y * y % p
        xx_next = 4 * xx * yy * pow(1 + t, -2, p) % p
        y = (yy + xx) * pow(1 - t, -1, p) % p
        xx = xx_next
    return y == 1


def is_signed(token: Jws, key: Any, alg: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SecurityWarning)  # of EdDSA, which older peers write
        try:
            found = jws.deserialize_compact(token.compact, key, algorithms=[alg])
        except (JoseError, ValueError):
            return False
    return found.payload == token.payload


# -- shapes --------------------------------------------------------------------------------------------------------------


def is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value)) and len(set(value)) == len(value)


def is_scope(value: Any) -> bool:
    token = r"[!#-\[\]-~]+"
    return isinstance(value, str) and re.fullmatch(rf"{token}(?: {token})*", value) is not None


def is_any(_: Any) -> bool:
    return True


def is_evidence(value: Any) -> bool:
    return value in EVIDENCE


def shape(claims: Any, required: dict[str, Any], optional: dict[str, Any], rule: str) -> None:
    """Closed: every name has a rule, and every rule its type."""
    require(isinstance(claims, dict), rule, "no object")
    for name in required:
        require(name in claims, rule, f"no {name}")
    for name, value in claims.items():
        check = (required | optional).get(name)
        require(check is not None, rule, f"{name} has no rule")
        require(check(value), rule, f"{name} is malformed")


GRANT = {
    **dict.fromkeys(("iss", "sub", "sub_iss", "sub_profile", "purpose", "txn", "jti"), is_text),
    **dict.fromkeys(("iat", "nbf", "exp", "del_depth", "del_max_depth"), is_count),
    "act": is_object,
    "cnf": is_object,
    "aud": is_texts,
}
GRANT_MAY = {
    **dict.fromkeys(("task", "par_hash", "sub_token_hash"), is_text),
    "scope": is_scope,
    "evidence": is_evidence,
    "authorization_details": is_any,
}
ACTOR = dict.fromkeys(("iss", "sub", "sub_profile", "instance"), is_text)
ASSERTION = {
    **dict.fromkeys(("iss", "sub", "txn", "aud", "jti", "grant_hash"), is_text),
    "iat": is_count,
    "exp": is_count,
    "call": is_object,
}
ASSERTION_MAY = {
    **dict.fromkeys(("use", "ath", "htm", "htu", "htq", "content_digest"), is_text),
    "trace": is_object,
    "approval": is_object,
}
CALL = dict.fromkeys(("id", "tool", "args_hash", "canon"), is_text)
TRACE = dict.fromkeys(("trace_id", "span_id"), is_text)
APPROVAL = {
    **dict.fromkeys(("id", "by", "method", "digest", "evidence"), is_text),
    "at": is_count,
}
APPROVAL_MAY = dict.fromkeys(("proof", "acr"), is_text)


class Hop(NamedTuple):
    token: Jws
    claims: dict[str, Any]
    header: dict[str, Any]

    @property
    def agent(self) -> str:
        return self.claims["act"]["sub"]

    @property
    def jkt(self) -> str:
        return self.claims["cnf"]["jkt"]

    @property
    def scopes(self) -> set[str]:
        return {*self.claims.get("scope", "").split()}


def read_hop(compact: str) -> Hop:
    token = take_apart(compact)
    header, claims = token.header, token.claims()
    check_header(header, "agent-grant+jwt", {}, {"kid": is_text, "jwk": is_object})
    shape(claims, GRANT, GRANT_MAY, "claims")
    shape(claims["act"], ACTOR, {"act": is_any}, "claims")
    shape(claims["cnf"], {"jkt": is_text}, {}, "claims")
    require(claims["act"]["sub_profile"] == "ai_agent", "actor", "an actor that is no agent")
    require(claims["act"]["instance"] == claims["cnf"]["jkt"], "actor", "another instance")
    if "authorization_details" in claims:
        check_details(claims["authorization_details"])
    return Hop(token, claims, header)


def check_header(
    header: dict[str, Any], typ: str, required: dict[str, Any], optional: dict[str, Any]
) -> None:
    require(header.get("typ") == typ, "jose", "another kind of token")
    shape(header, {"typ": is_text} | required, {"alg": is_any} | optional, "jose")


# -- authorization details -----------------------------------------------------------------------------------------------

WORDS = {"const", "enum", "minimum", "maximum", "prefix"}


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_details(value: Any) -> None:
    require(isinstance(value, list) and 1 <= len(value) <= 64, "details", "no list of objects")
    for each in value:
        some = {name: lambda v: is_texts(v) and v for name in ("tools", "resources")}
        require(isinstance(each, dict) and is_text(each.get("type")), "details", "no type")
        require(each["type"] == "urn:agent-identity:tool", "details", "another type")
        shape(each, {"type": is_text}, some | {"arguments": is_object}, "details")
        if "arguments" in each:
            require(1 <= len(each["arguments"]) <= 64, "details", "no rule, or too many")
            for rule in each["arguments"].values():
                check_constraint(rule)


def check_constraint(rule: Any) -> None:
    require(isinstance(rule, dict) and rule, "details", "an argument limited by nothing")
    require(set(rule) <= WORDS, "details", "a word that nobody knows")
    enum = rule.get("enum", [None])
    require(isinstance(enum, list) and enum, "details", "enum is no list")
    require(is_text(rule.get("prefix", "x")), "details", "prefix is no text")
    for name in ("minimum", "maximum"):
        require(is_number(rule.get(name, 0)), "details", f"{name} is no number")
    for value in [*enum, rule.get("const")]:
        canonical(value, "details")


def takes(rule: dict[str, Any], value: Any) -> bool:
    """Whether a rule allows a value."""
    text = canonical(value, "call")
    if "const" in rule and text != canonical(rule["const"], "details"):
        return False
    if "enum" in rule and text not in [canonical(each, "details") for each in rule["enum"]]:
        return False
    if {"minimum", "maximum"} & set(rule):
        if not is_number(value):
            return False
        if not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf):
            return False
    return "prefix" not in rule or (isinstance(value, str) and value.startswith(rule["prefix"]))


def rule_covers(parent: dict[str, Any], child: dict[str, Any]) -> bool:
    if "const" in child or "enum" in child:
        named = [child["const"]] if "const" in child else child["enum"]
        return all(takes(parent, value) for value in named if takes(child, value))
    if "const" in parent or "enum" in parent:
        return False
    if "minimum" in parent and child.get("minimum", -math.inf) < parent["minimum"]:
        return False
    if "maximum" in parent and child.get("maximum", math.inf) > parent["maximum"]:
        return False
    return "prefix" not in parent or child.get("prefix", "").startswith(parent["prefix"])


def detail_covers(parent: dict[str, Any], child: dict[str, Any]) -> bool:
    for name in ("tools", "resources"):
        if name in parent and not (name in child and {*child[name]} <= {*parent[name]}):
            return False
    below = child.get("arguments", {})
    return all(
        name in below and rule_covers(rule, below[name])
        for name, rule in parent.get("arguments", {}).items()
    )


def reaches(detail: dict[str, Any], resource: str) -> bool:
    return resource in detail.get("resources", [resource])


def allows(detail: dict[str, Any], tool: str, resource: str, args: dict[str, Any]) -> bool:
    return (
        tool in detail.get("tools", [tool])
        and reaches(detail, resource)
        and all(
            name in args and takes(rule, args[name])
            for name, rule in detail.get("arguments", {}).items()
        )
    )


# -- the chain -----------------------------------------------------------------------------------------------------------


def read_chain(compacts: list[str], case: dict[str, Any]) -> list[Hop]:
    """The hops, root first."""
    require(compacts, "caps", "no grant")
    require(len(compacts) <= 8, "caps", "more than eight hops")
    require(sum(map(len, compacts)) <= 64 * 1024, "caps", "more than 64 KiB")
    hops = [read_hop(compact) for compact in reversed(compacts)]
    for depth, hop in enumerate(hops):
        require(hop.claims["del_depth"] == depth, "link", "a hop at another depth")
        require(depth <= hop.claims["del_max_depth"], "link", "below the ceiling")
        require(("par_hash" in hop.claims) == (depth > 0), "link", "a parent, or none")
        require(("evidence" in hop.claims) == (depth == 0), "link", "evidence, or none")
        require(depth == 0 or "sub_token_hash" not in hop.claims, "link", "a token's hash")
    check_root(hops[0], case)
    for parent, child in pairwise(hops):
        check_link(parent, child)
        check_narrower(parent, child)
    require(len({hop.agent for hop in hops}) == len(hops), "actor", "an agent twice")
    require(len({hop.jkt for hop in hops}) == len(hops), "actor", "a key twice")
    check_times(hops, case["now"], case.get("skew", 30))
    return hops


def check_root(root: Hop, case: dict[str, Any]) -> None:
    claims, act = root.claims, root.claims["act"]
    anchor = anchor_of(claims["iss"], case)
    require(anchor is not None, "anchor", "nobody who is trusted")
    claimed, most = EVIDENCE.index(claims["evidence"]), EVIDENCE.index(anchor["evidence"])
    require(claimed <= most, "anchor", "more evidence than it may give")
    require(claimed >= EVIDENCE.index(case["evidence"]), "anchor", "less evidence than is asked")
    is_trigger = claims["sub_profile"] == "trigger" and claims["sub_iss"] == act["sub"]
    speaks_for = [anchor["issuer"], *anchor.get("subjects", [])]
    require(is_trigger or claims["sub_iss"] in speaks_for, "anchor", "somebody else's principal")
    if claims["sub_profile"] == "trigger":
        issuers = [each["issuer"] for each in case["anchors"]]
        issuers += [name for each in case["anchors"] for name in each.get("subjects", [])]
        require(claims["evidence"] != "issuer", "anchor", "a trigger that an issuer verified")
        require(act["sub"] not in issuers, "anchor", "a trigger of an agent named as an issuer")
    require("act" not in act and act["iss"] == claims["iss"], "actor", "another actor")
    require("kid" in root.header and "jwk" not in root.header, "key", "a key by kid, and none else")
    named = [key for key in anchor["jwks"]["keys"] if key.get("kid") == root.header["kid"]]
    check_signature(root.token, named, OURS, "agent-grant+jwt")


def anchor_of(issuer: Any, case: dict[str, Any]) -> dict[str, Any] | None:
    return next((each for each in case["anchors"] if each["issuer"] == issuer), None)


def check_link(parent: Hop, child: Hop) -> None:
    above, below = parent.claims, child.claims
    check_holder(child.token, parent.jkt, "agent-grant+jwt")
    require("kid" not in child.header, "key", "a kid where a key has to be")
    require(below["par_hash"] == sha256(parent.token.signing_input), "link", "another parent")
    require(below["iss"] == parent.agent, "link", "issued by somebody else")
    require(below["del_max_depth"] <= above["del_max_depth"], "link", "a higher ceiling")
    for name in ("sub", "sub_iss", "sub_profile", "purpose", "txn"):
        require(below[name] == above[name], "constant", f"{name} changed")
    act = below["act"]
    require(act.get("act") == above["act"], "actor", "act doesn't nest")
    require(act["iss"] == parent.agent, "actor", "vouched for by somebody else")


def check_holder(token: Jws, jkt: str, typ: str) -> None:
    """Signed by the key in the header, which is the very one that the grant above names."""
    require("jwk" in token.header, "key", "no key")
    require(thumbprint(token.header["jwk"]) == jkt, "key", "another key")
    check_signature(token, [token.header["jwk"]], OURS, typ)


def check_narrower(parent: Hop, child: Hop) -> None:
    above, below = parent.claims, child.claims
    require(child.scopes <= parent.scopes, "narrow", "a wider scope")
    require({*below["aud"]} <= {*above["aud"]}, "narrow", "a wider audience")
    require(below["exp"] <= above["exp"], "narrow", "a longer life")
    require(min(below["nbf"], below["iat"]) >= above["nbf"], "narrow", "an earlier life")
    if "authorization_details" in above:
        for detail in below.get("authorization_details", [{}]):
            covered = any(detail_covers(each, detail) for each in above["authorization_details"])
            require(covered and detail, "narrow", "wider details")


def check_times(hops: list[Hop], now: float, skew: float) -> None:
    leaf = hops[-1].claims
    require(now < leaf["exp"] + skew, "time", "expired")
    require(now >= leaf["nbf"] - skew, "time", "not yet")
    for hop in hops:
        require(hop.claims["exp"] > hop.claims["nbf"], "time", "no life at all")
        require(now >= hop.claims["iat"] - skew, "time", "from the future")


# -- the assertion -------------------------------------------------------------------------------------------------------


def read_assertion(compact: str) -> tuple[Jws, dict[str, Any]]:
    token = take_apart(compact)
    claims = token.claims()
    check_header(token.header, "agent-assertion+jwt", {"jwk": is_object}, {})
    shape(claims, ASSERTION, ASSERTION_MAY, "claims")
    shape(claims["call"], CALL, {}, "claims")
    require(claims["call"]["canon"] == "jcs", "claims", "digested otherwise")
    require(claims["call"]["args_hash"].startswith("sha-256:"), "claims", "digested otherwise")
    if "trace" in claims:
        shape(claims["trace"], TRACE, {}, "claims")
    if "approval" in claims:
        shape(claims["approval"], APPROVAL, APPROVAL_MAY, "claims")
    return token, claims


def check_assertion(
    token: Jws, said: dict[str, Any], hops: list[Hop], case: dict[str, Any]
) -> None:
    leaf, now, skew = hops[-1], case["now"], case.get("skew", 30)
    require("use" not in said and said["aud"] != LOCAL, "door", "not for sending")
    require(said["aud"] == case["audience"], "audience", "asserted for another service")
    for name, value in (("iss", leaf.agent), ("sub", leaf.claims["sub"])):
        require(said[name] == value, "assertion", f"{name} isn't the leaf's")
    require(said["txn"] == leaf.claims["txn"], "assertion", "txn isn't the leaf's")
    require(said["grant_hash"] == sha256(leaf.token.compact), "assertion", "another grant")
    require(0 < said["exp"] - said["iat"] <= 60, "time", "no life of a minute")
    require(said["iat"] - skew <= now < said["exp"] + skew, "time", "not at this time")
    require(said["iat"] >= leaf.claims["iat"] - skew, "time", "older than its grant")
    check_holder(token, leaf.jkt, "agent-assertion+jwt")
    if "approval" in said:
        actors = {hop.agent for hop in hops}
        require(said["approval"]["by"] not in actors, "assertion", "approved by who acts")


# -- the doors -----------------------------------------------------------------------------------------------------------


def check_call(said: dict[str, Any], leaf: Hop, case: dict[str, Any]) -> None:
    is_resent = re.fullmatch(r"(?s:(.+))\.r[1-9][0-9]*", said["jti"])
    call_id = is_resent[1] if is_resent else said["jti"]
    require(call_id == said["call"]["id"], "door", "no assertion of a call")
    bound = {"htm", "htu", "htq", "content_digest"} & set(said)
    require(not bound, "door", "an assertion of a request")
    digest = "sha-256:" + sha256(canonical(case["args"], "call"))
    require(said["call"]["tool"] == case["tool"], "call", "another tool")
    require(said["call"]["args_hash"] == digest, "call", "other arguments")
    if "authorization_details" in leaf.claims:
        details = leaf.claims["authorization_details"]
        good = any(allows(each, case["tool"], case["audience"], case["args"]) for each in details)
        require(good, "details", "not allowed by the details")


class Request(NamedTuple):
    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None


SINGLE = ("authorization", "dpop", "agent-assertion", "agent-delegation", "agent-handover")


def read_request(case: dict[str, Any]) -> Request:
    given = case["request"]
    names = [name.lower() for name, _ in given["headers"]]
    require(all(names.count(name) <= 1 for name in SINGLE), "request", "a header twice")
    url = given["url"]
    if "public_url" in case:
        behind = re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*(.*)", url, re.DOTALL)
        require(behind, "request", "no whole URL")
        below = behind[1]
        url = case["public_url"].rstrip("/") + (below if below.startswith("/") else "/" + below)
    normalised(url)
    require("#" not in url, "request", "a fragment")
    path = re.sub("%(2[eE])", ".", re.split(r"[?]", url.partition("://")[2])[0].partition("/")[2])
    require(not {".", ".."} & set(re.split("[/;]", path)), "request", "a dot segment")
    headers = {name.lower(): value for name, value in given["headers"]}
    body = given.get("body")
    return Request(given["method"], url, headers, None if body is None else body.encode())


def normalised(url: str) -> str:
    """`htu`: RFC 3986 §6.2.2 and §6.2.3, without query and fragment."""
    host = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]"
    found = re.fullmatch(rf"(?i:(https?))://({host})(?::([0-9]{{0,5}}))?([/?#].*)?", url)
    require(found and re.fullmatch(r"[!-~]+", url), "request", "no http URL")
    scheme, name = found[1].lower(), found[2].lower()
    usual = {"http": 80, "https": 443}[scheme]
    port = int(found[3] or usual)
    require(port < 65536, "request", "no port")
    place = name if port == usual else f"{name}:{port}"
    path = re.split(r"[?#]", found[4] or "")[0] or "/"
    require("\\" not in path, "request", "a backslash")
    require(not re.search(r"%(?![0-9A-Fa-f]{2})", path), "request", "a percent sign alone")
    path = re.sub("%(..)", unescaped, path)
    return f"{scheme}://{place}{without_dots(path)}"


def unescaped(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if re.fullmatch(r"[A-Za-z0-9._~-]", character) else found[0].upper()


def without_dots(path: str) -> str:
    kept: list[str] = []
    *folders, last = path.split("/")[1:]
    for each in [*folders, last]:
        if each == "..":
            del kept[-1:]
        elif each != ".":
            kept.append(each)
    return "/" + "/".join(kept) + ("/" if last in {".", ".."} and kept else "")


def check_request(said: dict[str, Any], seen: Request, allow: list[str]) -> None:
    numbered = re.fullmatch(r"(?s:(.+))\.[1-9][0-9]*", said["jti"])
    require(numbered and numbered[1] == said["call"]["id"], "door", "no assertion of a request")
    digest = re.fullmatch(
        r"sha-256:([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])", said["call"]["args_hash"]
    )
    require(digest, "request", "no digest of arguments")
    require(said.get("htm") == seen.method, "request", "another method")
    require(said.get("htu") == normalised(seen.url), "request", "another URL")
    query = seen.url.partition("#")[0].partition("?")[2]
    require(said.get("htq") == (sha256(query) if query else None), "request", "another query")
    if "content_digest" in said and seen.body is not None:
        require(said["content_digest"] == sha256(seen.body), "request", "another body")
    else:
        require("unbound_body" in allow, "request", "a body that nothing binds")


def check_unseen(leaf: Hop, tool: str | None, case: dict[str, Any]) -> None:
    """Details where neither tool nor arguments are seen."""
    if "authorization_details" not in leaf.claims:
        return
    details = [d for d in leaf.claims["authorization_details"] if reaches(d, case["audience"])]
    require(details, "details", "for other resources")
    free = [d for d in details if "tools" not in d and "arguments" not in d]
    if "unseen_arguments" in case["allow"]:
        free = [d for d in details if tool is None or tool in d.get("tools", [tool])]
    require(free, "details", "about tools or arguments, which nobody sees")


# -- the access token ----------------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    claims: dict[str, Any] | None = None
    proof: dict[str, Any] | None = None


def check_call_token(ath: str | None, hops: list[Hop], case: dict[str, Any]) -> Shown:
    token = case.get("token")
    require((token is None) == (ath is None), "token", "a token or its hash alone")
    if token is None:
        return Shown()
    check_ath(token, ath)
    said = readable(token)
    is_bound = said is not None and "cnf" in said
    return Shown(check_token(token, said, hops, case, is_bound=is_bound))


def check_request_token(
    ath: str | None, hops: list[Hop], seen: Request, case: dict[str, Any], *, asserted: bool
) -> Shown:
    authorization = seen.headers.get("authorization")
    if asserted:
        require((authorization is None) == (ath is None), "token", "a token or its hash alone")
    if authorization is None and asserted:
        return Shown()
    scheme, _, token = (authorization or "").partition(" ")
    require(scheme.lower() in {"dpop", "bearer"}, "token", "an unknown scheme")
    is_bound = scheme.lower() == "dpop"
    require(is_bound or asserted, "token", "a token that is bound to no key")
    check_ath(token, ath)
    proof = check_proof(token, hops[-1], seen, case) if is_bound else None
    claims = check_token(token, readable(token), hops, case, is_bound=is_bound)
    require(claims is not None or asserted, "token", "a token that nobody can verify")
    return Shown(claims, proof)


def check_ath(token: str, ath: str | None) -> None:
    require(token.isascii() and len(token) <= 16 * 1024, "token", "no token")
    require(ath is None or ath == sha256(token), "token", "another token")


def readable(token: str) -> dict[str, Any] | None:
    try:
        return take_apart(token, header_limit=None).claims()
    except RefusedError:
        return None


def check_token(
    token: str,
    said: dict[str, Any] | None,
    hops: list[Hop],
    case: dict[str, Any],
    *,
    is_bound: bool,
) -> dict[str, Any] | None:
    """Its claims where it could be verified, None where it is opaque or of an unknown issuer."""
    if said is None:
        return None
    leaf = hops[-1]
    if "cnf" in said:
        require(is_bound, "token", "a bound token as a plain bearer")
        confirmation = said["cnf"]
        bound = confirmation.get("jkt") if isinstance(confirmation, dict) else None
        require(bound == leaf.jkt, "token", "bound to another key")
    issuers = [hops[0].claims["iss"], leaf.claims["sub_iss"]]
    anchor = anchor_of(said.get("iss"), case)
    if anchor is not None:
        check_issued(token, said, anchor, case)
        require("cnf" in said or not is_bound, "token", "bound to no key")
    concerned = anchor is not None or said.get("iss") in issuers
    if concerned and "unlinked_token" not in case["allow"]:
        linked = said.get("sub") == leaf.claims["sub"] and said.get("iss") in issuers
        require(linked, "token", "another principal's")
    return said if anchor is not None else None


def check_issued(
    token: str, said: dict[str, Any], anchor: dict[str, Any], case: dict[str, Any]
) -> None:
    parsed = take_apart(token, header_limit=None)
    typ = parsed.header.get("typ")
    require(typ in {"at+jwt", "application/at+jwt"}, "token", "no access token")
    with as_rule("token"):
        check_signature(parsed, anchor["jwks"]["keys"], TOKENS, str(typ))
    now, skew = case["now"], case.get("skew", 30)
    times = [said.get(name, 0) for name in ("exp", "iat", "nbf")]
    require(all(is_number(each) and 0 <= each < 253402300800 for each in times), "token", "a time")
    exp, iat, nbf = times
    require("exp" in said and "iat" in said, "token", "no lifetime")
    require(now - skew < exp and max(iat, nbf) <= now + skew, "token", "not at this time")
    require(0 < exp - iat <= 24 * 3600, "token", "too long a life")
    require(said.get("aud") in (case["audience"], [case["audience"]]), "token", "for another")


def check_proof(token: str, leaf: Hop, seen: Request, case: dict[str, Any]) -> dict[str, Any]:
    """RFC 9449 §4.3."""
    require("dpop" in seen.headers, "token", "a bound token without proof")
    with as_rule("token"):
        proof = take_apart(seen.headers["dpop"])
        key = proof.header.get("jwk")
        require(isinstance(key, dict) and thumbprint(key) == leaf.jkt, "token", "another key")
        check_signature(proof, [{**key, "kid": proof.header.get("kid")}], TOKENS, "dpop+jwt")
        claims = proof.claims()
        htu, iat = claims.get("htu"), claims.get("iat")
        require(claims.get("htm") == seen.method, "token", "a proof for another method")
        same = is_text(htu) and normalised(htu) == normalised(seen.url)
        require(same, "token", "a proof for another URL")
        good = is_number(iat) and case["now"] - 300 <= iat <= case["now"] + case.get("skew", 30)
        require(good, "token", "a proof of another time")
        require(claims.get("ath") == sha256(token), "token", "a proof for another token")
        require(is_text(claims.get("jti")), "token", "a proof without jti")
        require(is_text(claims.get("nonce", "x")), "token", "a malformed nonce")
    return claims


# -- revocation, hand-over, replay ---------------------------------------------------------------------------------------


def check_revocations(hops: list[Hop], token: dict[str, Any] | None, case: dict[str, Any]) -> None:
    root = hops[0].claims
    profile = root["sub_profile"]
    references = {
        "*",
        root["txn"],
        f"{profile}:{root['sub']}",
        f"{profile}:{root['sub_iss']}#{root['sub']}",
    }
    references |= {value for hop in hops for value in (hop.claims["jti"], hop.agent, hop.jkt)}
    if token is not None and isinstance(token.get("jti"), str):
        references.add(token["jti"])
    oldest = min(hop.claims["iat"] for hop in hops)
    for issuer in {root["iss"], root["sub_iss"]}:
        anchor = anchor_of(issuer, case)
        if anchor is None or anchor.get("revocations") is None:
            continue
        with as_rule("revocation"):
            revoked = read_revocations(anchor, case)
        known = any(each["ref"] in references and each["at"] >= oldest for each in revoked)
        require(not known, "revocation", "taken back")


def read_revocations(anchor: dict[str, Any], case: dict[str, Any]) -> list[dict[str, Any]]:
    given, now, skew = anchor["revocations"], case["now"], case.get("skew", 30)
    require(given["list"] is not None, "revocation", "no list")
    token = take_apart(given["list"], header_limit=None, limit=1024 * 1024)
    check_signature(token, given["jwks"]["keys"], OURS, "agent-revocations+jwt")
    require({*token.header} == {"typ", "alg", "kid"}, "revocation", "another header")
    claims = token.claims()
    whole = {"iat": is_count, "exp": is_count, "seq": is_count}
    others = {"iss": is_text, "revoked": lambda value: isinstance(value, list)}
    shape(claims, whole | others, {}, "revocation")
    for entry in claims["revoked"]:
        shape(entry, {"ref": is_text, "at": is_count}, {}, "revocation")
    year_9999 = 253402300799
    require(max(claims["iat"], claims["exp"]) <= year_9999, "revocation", "no date")
    require(claims["iss"] == anchor["issuer"], "revocation", "another anchor's list")
    require(claims["iat"] < claims["exp"], "revocation", "a list without life")
    require(claims["iat"] <= now + skew, "revocation", "a list from the future")
    ends = min(claims["exp"], claims["iat"] + given["max_age"])
    require(now < ends + skew, "revocation", "a stale list")
    return claims["revoked"]


def check_handover(compacts: list[str], hops: list[Hop], case: dict[str, Any]) -> list[Hop]:
    handed = read_chain(compacts, case)
    for name in ("sub", "sub_iss", "sub_profile", "purpose", "txn"):
        same = handed[-1].claims[name] == hops[-1].claims[name]
        require(same, "handover", "of other work")
    above = [(hop.agent, hop.jkt) for hop in handed[:-1]]
    require(above == [(hop.agent, hop.jkt) for hop in hops], "handover", "not the caller's")
    return handed


def remember(used: set[tuple[str, ...]], key: tuple[str, ...]) -> None:
    require(key not in used, "replay", "used before")
    used.add(key)


# -- all of it -----------------------------------------------------------------------------------------------------------


def judge(case: dict[str, Any], used: set[tuple[str, ...]] | None = None) -> dict[str, Any]:
    """What a case shows, or `RefusedError`. `used` holds what was used before, and is added to."""
    if case["door"] == "chain":
        hops = read_chain(case["chain"], case)
        return result(hops, hops[-1].scopes, None)
    request = read_request(case) if case["door"] == "request" else None
    if request is None:
        chain, assertion, handed = case["chain"], case["assertion"], case.get("handover")
    else:
        chain, assertion, handed = carried(request)
    token_said = None if assertion is None else read_assertion(assertion)
    hops = read_chain(chain, case)
    leaf, said = hops[-1], {} if token_said is None else token_said[1]
    if token_said is not None:
        check_assertion(*token_said, hops, case)
    is_reached = case["audience"] != LOCAL and case["audience"] in leaf.claims["aud"]
    require(is_reached, "audience", "a chain for another service")
    if request is None:
        require(token_said is not None, "door", "nobody asserts it")
        check_call(said, leaf, case)
        shown = check_call_token(said.get("ath"), hops, case)
    else:
        shown = check_request_door(said, hops, request, case)
    require({*case["scopes"]} <= leaf.scopes, "scope", "not enough")
    scopes = leaf.scopes
    if shown.claims is not None:
        granted = shown.claims.get("scope", "")
        scopes &= {*granted.split(" ")} if isinstance(granted, str) else set()
    require({*case["scopes"]} <= scopes, "scope", "not enough in the token")
    if handed is not None:
        with as_rule("handover"):
            check_revocations(check_handover(handed, hops, case), None, case)
    check_revocations(hops, shown.claims, case)
    use(set() if used is None else used, case["audience"], leaf, said, shown)
    return result(hops, scopes, shown.claims)


def carried(request: Request) -> tuple[list[str], str | None, list[str] | None]:
    require("agent-delegation" in request.headers, "request", "no chain")
    handed = request.headers.get("agent-handover")
    return (
        split(request.headers["agent-delegation"]),
        request.headers.get("agent-assertion"),
        None if handed is None else split(handed),
    )


def split(value: str) -> list[str]:
    require(len(value) <= 64 * 1024, "caps", "more than 64 KiB")
    members = [each.strip(" \t") for each in value.split(",")]
    require(all(members), "request", "an empty member")
    return members


def check_request_door(
    said: dict[str, Any], hops: list[Hop], request: Request, case: dict[str, Any]
) -> Shown:
    if said:
        check_request(said, request, case["allow"])
    else:
        require("unasserted" in case["allow"], "door", "nobody asserts it")
    check_unseen(hops[-1], said["call"]["tool"] if said else None, case)
    return check_request_token(said.get("ath"), hops, request, case, asserted=bool(said))


def use(
    used: set[tuple[str, ...]], audience: str, leaf: Hop, said: dict[str, Any], shown: Shown
) -> None:
    if said:
        remember(used, (audience, leaf.jkt, "assertion", said["jti"]))
    if shown.proof is not None:
        remember(used, (audience, leaf.jkt, "proof", shown.proof["jti"]))


def result(hops: list[Hop], scopes: set[str], token: dict[str, Any] | None) -> dict[str, Any]:
    root = hops[0].claims
    return {
        "principal": f"{root['sub_profile']}:{root['sub_iss']}#{root['sub']}",
        "evidence": root["evidence"],
        "agents": [hop.agent for hop in reversed(hops)],
        "scopes": sorted(scopes),
        "token_verified": token is not None,
    }
