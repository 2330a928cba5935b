# SPDX-License-Identifier: Apache-2.0
"""What the kit says that every verifier takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .minting import (
    ANCHOR,
    ARGS,
    BILLING,
    CALL_ID,
    DROP,
    LOCAL,
    MAIL,
    NOW,
    TOOL,
    TYPE,
    Chain,
    access_token,
    agent,
    asserted,
    b64,
    call_claims,
    chain,
    holder,
    key,
    proof,
    published,
    revocations,
    sha256,
    unb64,
)

Case = dict[str, Any]
URL = f"{BILLING}/journal?dry=1"
BODY = '{"total":1680.5}'
BOOKS = {
    "type": TYPE,
    "tools": [TOOL],
    "resources": [BILLING],
    "arguments": {"total": {"maximum": 2000}, "customer": {"enum": ["ACME", "Größe & Söhne"]}},
}


def result(made: Chain, **other: Any) -> Case:
    """What a verifier says of it."""
    root, leaf = made.hops[0], made.leaf
    return {
        "principal": f"{root['sub_profile']}:{root['sub_iss']}#{root['sub']}",
        "evidence": root.get("evidence"),
        "agents": [hop["act"]["sub"] for hop in reversed(made.hops)],
        "scopes": sorted(leaf.get("scope", "").split()),
        "token_verified": False,
    } | other


def call(identity: str, about: str, made: Chain, **other: Any) -> Case:
    """A call that is good, but for `other`; `claims` changes the assertion, `said` what the verifier shows."""
    args = other.pop("args", ARGS)
    claims = call_claims(made, args) | other.pop("claims", {})
    head, signer = other.pop("header", None), other.pop("signer", None)
    shown = result(made, **other.pop("said", {}))
    return {
        "id": identity,
        "about": about,
        "rule": "accepted",
        "door": "call",
        "chain": made.compacts,
        "assertion": asserted(made, claims, header=head, signer=signer),
        "tool": TOOL,
        "args": args,
        **other,
        "expect": "accepted",
        "result": shown,
    }


def request_claims(made: Chain, **other: Any) -> Case:
    bound = {
        "jti": f"{CALL_ID}.1",
        "htm": "POST",
        "htu": f"{BILLING}/journal",
        "htq": sha256("dry=1"),
        "content_digest": sha256(BODY),
    }
    return call_claims(made) | bound | other


def request(identity: str, about: str, made: Chain, **other: Any) -> Case:
    """A request that is good, but for `other`; `more` are further headers."""
    claims = request_claims(made, **other.pop("claims", {}))
    seen = {"method": "POST", "url": URL} | {
        name: other.pop(name) for name in ("method", "url") if name in other
    }
    headers = [
        ["Agent-Assertion", asserted(made, claims)],
        ["Agent-Delegation", ", ".join(made.compacts)],
        *other.pop("more", []),
    ]
    seen |= {"headers": other.pop("headers", headers), "body": other.pop("body", BODY)}
    shown = result(made, **other.pop("said", {}))
    return {
        "id": identity,
        "about": about,
        "rule": "accepted",
        "door": "request",
        "request": seen,
        **other,
        "expect": "accepted",
        "result": shown,
    }


def with_token(made: Chain, token: str, scheme: str = "DPoP", **other: Any) -> Case:
    """What a request with a token has besides: `ath`, and the headers that carry token and proof."""
    more = [["Authorization", f"{scheme} {token}"]]
    if scheme == "DPoP":
        more.append(["DPoP", proof(made, token, **other)])
    return {"claims": {"ath": sha256(token)}, "more": more}


def revoked(*entries: tuple[str, int], **other: Any) -> Case:
    """An anchor whose revocations are known by a list."""
    given = {
        "list": revocations(*entries, **other),
        "jwks": published(key("operator")),
        "max_age": 3600,
    }
    jwks = published(key("anchor"))
    anchor = {"issuer": ANCHOR, "jwks": jwks, "evidence": "issuer", "revocations": given}
    return {"anchors": [anchor]}


def anchor(**other: Any) -> Case:
    given = {"issuer": ANCHOR, "jwks": published(key("anchor")), "evidence": "issuer"}
    return {"anchors": [given | other]}


def accepted() -> Iterator[Case]:
    yield from chains()
    yield from statements()
    yield from details()
    yield from limits()
    yield from edges()
    yield from requests()
    yield from tokens()
    yield from lists_and_handovers()


def chains() -> Iterator[Case]:
    for hops in range(1, 9):
        yield call(f"hops-{hops}", f"a chain of {hops}, ES256 and Ed25519 mixed", chain(hops))
    all_ed = {depth: key(f"agent-{depth}-ed") for depth in range(2)}
    made = chain(2, anchor=key("anchor-ed"), holders=all_ed)
    trust = anchor(jwks=published(key("anchor-ed")))
    yield call("ed25519", "nothing but Ed25519, as RFC 9864 names it", made, **trust)
    made = chain(
        2,
        anchor=key("anchor-ed"),
        holders=all_ed,
        header={0: {"alg": "EdDSA"}, 1: {"alg": "EdDSA"}},
    )
    keys = {
        "keys": [{n: v for n, v in published(key("anchor-ed"))["keys"][0].items() if n != "alg"}]
    }
    yield call(
        "eddsa",
        "nothing but EdDSA, as RFC 8037 names it; the anchor's key says no alg",
        made,
        header={"alg": "EdDSA"},
        **anchor(jwks=keys),
    )
    several = published(key("anchor-ed"), key("partner"), key("anchor"))
    yield call(
        "several-keys",
        "the root's kid chooses among the anchor's keys",
        chain(1),
        **anchor(jwks=several),
    )
    same = published(key("partner"), key("anchor"), kid="k1")
    made = chain(1, header={0: {"kid": "k1"}})
    yield call("same-kid-twice", "two of the anchor's keys have one kid", made, **anchor(jwks=same))
    partner = {
        "issuer": "https://partner.example",
        "jwks": published(key("partner")),
        "evidence": "agent",
    }
    yield call(
        "two-anchors",
        "the root is of one of two anchors",
        chain(1),
        anchors=[partner, *anchor()["anchors"]],
    )
    yield {
        "id": "chain-alone",
        "about": "a chain without a call",
        "rule": "accepted",
        "door": "chain",
        "chain": chain(3).compacts,
        "expect": "accepted",
        "result": result(chain(3)),
    }
    foreign = chain(1, (0, {"sub_iss": "https://idp.example"}))
    yield call(
        "foreign-subject",
        "a principal of an issuer that the anchor may speak for",
        foreign,
        **anchor(subjects=["https://idp.example"]),
    )
    trigger = {"sub": "cron", "sub_profile": "trigger", "sub_iss": agent(0), "evidence": "agent"}
    yield call(
        "trigger", "a trigger that its own agent declares", chain(2, (0, trigger)), evidence="agent"
    )
    made = chain(1, (0, {"evidence": "asserted", "sub_token_hash": sha256("a token")}))
    yield call(
        "asserted", "a principal whose token was seen and not verified", made, evidence="asserted"
    )


def statements() -> Iterator[Case]:
    yield call(
        "task", "each hop has its own task", chain(2, (0, {"task": "all"}), (1, {"task": "print"}))
    )
    yield call(
        "purpose-not-ascii",
        "a purpose in Greek and one beyond U+FFFF",
        chain(2, (0, {"purpose": "λογαριασμός 🧾"})),
    )
    yield call(
        "no-scope",
        "no scope at all, and none needed",
        chain(2, (0, {"scope": DROP}), (1, {"scope": DROP})),
        scopes=[],
    )
    yield call("narrower", "less scope, audience, life and depth", chain(
        2,
        (1, {"scope": "journal:write", "aud": [BILLING], "exp": NOW + 60, "nbf": NOW - 5, "iat": NOW - 5, "del_max_depth": 1}),
    ))  # fmt: skip
    approval = {
        "id": "apr_1",
        "by": "user:lead",
        "method": "prompt",
        "at": NOW - 20,
        "digest": "sha-256:x",
        "evidence": "asserted",
    }
    yield call(
        "approval", "somebody said yes, as the agent says", chain(2), claims={"approval": approval}
    )
    yield call(
        "approval-proof",
        "an approval with a proof and its acr, which nobody has to check",
        chain(2),
        claims={"approval": approval | {"proof": "x.y.z", "acr": "phr"}},
    )
    yield call("no-trace", "an assertion without trace", chain(2), claims={"trace": DROP})
    yield call("resent", "the third round of a call", chain(2), claims={"jti": f"{CALL_ID}.r3"})
    yield call(
        "another-signature", "the parent was signed again; par_hash is of what it says", again()
    )
    yield call(
        "header-members", "a key that says what it is for, in the order of another library", chain(2),
        header={"jwk": {"use": "sig", "key_ops": ["verify"], "alg": "Ed25519", "kid": "k", **holder(1).jwk}},
    )  # fmt: skip


def again() -> Chain:
    """The root, signed again by another key of its anchor that has the same kid; its child stays as it is."""
    made = chain(2)
    text, _, signature = made.compacts[1].rpartition(".")
    return made.remade(f"{text}.{high_s(signature)}", place=1)


def high_s(signature: str) -> str:
    """The other ECDSA signature that the same signature is."""
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    raw = unb64(signature)
    return b64(raw[:32] + (order - int.from_bytes(raw[32:], "big")).to_bytes(32, "big"))


def details() -> Iterator[Case]:
    yield call(
        "details",
        "one object takes the whole call",
        chain(2, (0, {"authorization_details": [BOOKS]})),
    )
    narrower = BOOKS | {
        "arguments": BOOKS["arguments"] | {"total": {"maximum": 1800, "minimum": 1}}
    }
    made = chain(
        2,
        (0, {"authorization_details": [{"type": TYPE}, BOOKS]}),
        (1, {"authorization_details": [narrower]}),
    )
    yield call("details-narrower", "a child names less of what its parent allows", made)
    made = chain(2, (1, {"authorization_details": [BOOKS]}))
    yield call("details-below-none", "a child has details where its parent has none", made)
    two = [BOOKS | {"tools": ["cancel"]}, {"type": TYPE, "tools": [TOOL]}]
    yield call(
        "details-second",
        "the second of two objects takes the call",
        chain(1, (0, {"authorization_details": two})),
    )
    for identity, rule, value in (
        ("details-const-number", {"const": 5}, 5.0),
        (
            "details-const-object",
            {"const": {"b": [1, None], "a": "ä"}},
            {"a": "ä", "b": [1.0, None]},
        ),
        ("details-enum-null", {"enum": [None, "x"]}, None),
        ("details-prefix", {"prefix": "inv-"}, "inv-7"),
        ("details-minimum-edge", {"minimum": 0.1, "maximum": 0.1}, 0.1),
        ("details-words-together", {"enum": ["a1", "b1"], "prefix": "a"}, "a1"),
    ):
        detail = {"type": TYPE, "arguments": {"x": rule}}
        made = chain(1, (0, {"authorization_details": [detail]}))
        yield call(
            identity, "one constraint, and a value that it takes", made, args={"x": value, "y": 1}
        )
    for identity, above, below in (
        ("covers-const-by-enum", {"enum": [1, 2]}, {"const": 2.0}),
        ("covers-enum-by-range", {"minimum": 1, "maximum": 9}, {"enum": [2, 3]}),
        ("covers-prefix", {"prefix": "inv-"}, {"prefix": "inv-2"}),
        ("covers-impossible-value", {"maximum": 5}, {"enum": [2, 7], "maximum": 6}),
    ):
        changes = [
            (depth, {"authorization_details": [{"type": TYPE, "arguments": {"x": rule}}]})
            for depth, rule in enumerate((above, below))
        ]
        yield call(
            identity,
            "the parent's constraint covers the child's",
            chain(2, *changes),
            args={"x": 2} if "prefix" not in above else {"x": "inv-2"},
        )
    free = {"type": TYPE, "resources": [BILLING, MAIL]}
    made = chain(2, (0, {"authorization_details": [free]}))
    yield request("details-request", "details about resources alone, at the door of requests", made)
    made = chain(1, (0, {"authorization_details": [BOOKS]}))
    yield request(
        "details-unseen-allowed",
        "details about arguments, which the service checks itself",
        made,
        allow=["unseen_arguments"],
    )


def limits() -> Iterator[Case]:
    """As much as there may be of something."""
    edge = chain(2, (0, {"scope": "! #[]~ journal:write", "del_max_depth": 2**53 - 1}))
    yield call(
        "numbers-and-scopes-at-their-ends",
        "the largest ceiling, the first and last characters of a scope",
        edge,
    )
    many = {"type": TYPE, "arguments": {f"x{number}": {"maximum": 1} for number in range(64)}}
    words = {"const": 1, "enum": [1, 2], "minimum": 0, "maximum": 9, "prefix": "i"}
    every = {"type": TYPE, "tools": ["cancel"], "arguments": {"total": words}}
    objects = [{"type": TYPE, "tools": ["cancel"]}] * 61 + [many, every, BOOKS]
    yield call(
        "details-64",
        "64 objects, 64 arguments, and all five words",
        chain(1, (0, {"authorization_details": objects})),
    )
    alone = {"type": TYPE, "arguments": {"total": {"maximum": 1}}}
    made = chain(1, (0, {"authorization_details": [alone]}))
    yield request(
        "details-unseen-arguments-alone",
        "the same, about arguments of any tool",
        made,
        allow=["unseen_arguments"],
    )
    ranges = ({"minimum": 1, "maximum": 9000}, {"minimum": 2, "maximum": 8000})
    changes = [
        (depth, {"authorization_details": [{"type": TYPE, "arguments": {"total": rule}}]})
        for depth, rule in enumerate(ranges)
    ]
    yield call("covers-range", "a range within the parent's", chain(2, *changes))
    made = chain(2)
    longest = "A" * 16384
    yield call(
        "token-16-kib",
        "a token of 16 KiB",
        made,
        claims={"ath": sha256(longest)},
        token={"repeat": "A", "times": 16384},
    )
    unbound = access_token(made, cnf=DROP)
    shown = {"scopes": ["journal:write"], "token_verified": True}
    yield call(
        "token-unbound",
        "a token that is bound to nothing",
        made,
        claims={"ath": sha256(unbound)},
        token=unbound,
        said=shown,
    )
    made = chain(2, (1, {"authorization_details": [BOOKS]}))
    token = access_token(made)
    headers = [
        ["Agent-Delegation", ", ".join(made.compacts)],
        ["Authorization", f"DPoP {token}"],
        ["DPoP", proof(made, token)],
    ]
    yield request(
        "unasserted-unseen", "no assertion, and details that the service checks itself", made,
        headers=headers, allow=["unasserted", "unseen_arguments"], said=shown,
    )  # fmt: skip


def edges() -> Iterator[Case]:
    short = chain(2, (0, {"exp": NOW}))
    yield call(
        "chain-ends-within-skew",
        "the chain ended 29 s ago",
        short,
        now=NOW + 29,
        claims={"iat": NOW, "exp": NOW + 60},
    )
    late = chain(2, (0, {"iat": NOW, "nbf": NOW}))
    yield call(
        "chain-begins-within-skew",
        "the chain begins in 30 s",
        late,
        now=NOW - 30,
        claims={"iat": NOW - 30, "exp": NOW + 30},
    )
    yield call("assertion-ends-within-skew", "the assertion ended 29 s ago", chain(2), now=NOW + 84)
    yield call(
        "assertion-begins-within-skew",
        "the assertion begins in 30 s",
        chain(2),
        claims={"iat": NOW + 30, "exp": NOW + 90},
    )
    yield call(
        "assertion-older-within-skew",
        "the assertion is 30 s older than its grant",
        chain(2),
        claims={"iat": NOW - 40, "exp": NOW + 20},
    )
    yield call(
        "args-one",
        "1.0 is 1",
        chain(2),
        claims={},
        args={"n": 1.0, "z": -0.0, "e": 1e21, "big": 9007199254740991},
    )
    yield call(
        "args-order",
        "names sorted by UTF-16 code unit (RFC 8785 §3.2.3)",
        chain(2),
        args={"\ufb33": 1, "😀": 2, "ö": 3, "\r": 4, "1": 5, "€": 6},
    )
    yield call("args-empty", "no arguments", chain(2), args={})
    nested: Any = []
    for _ in range(30):
        nested = [nested]
    yield call("args-deep", "nested 32 levels", chain(1), args={"x": nested})


def requests() -> Iterator[Case]:
    yield request("request", "a request with query and body", chain(2))
    yield request(
        "request-get", "a request without query and with an empty body", chain(2),
        method="GET", url=f"{BILLING}/journal", body="",
        claims={"htm": "GET", "htq": DROP, "content_digest": sha256("")},
    )  # fmt: skip
    yield request(
        "request-normalised", "an URL that is normalised before it is compared", chain(2),
        url="HTTPS://Billing.Example:443/a/%6aournal/%c3%a4?b=2&a=%7e",
        claims={"htu": f"{BILLING}/a/journal/%C3%A4", "htq": sha256("b=2&a=%7e")},
    )  # fmt: skip
    yield request(
        "request-empty-path", "an empty path is a slash, an empty query none", chain(2),
        url=f"{BILLING}?", claims={"htu": f"{BILLING}/", "htq": DROP},
    )  # fmt: skip
    yield request(
        "request-second", "the twelfth request of a call", chain(2), claims={"jti": f"{CALL_ID}.12"}
    )
    yield request(
        "request-behind-a-proxy", "the service knows by which URL it is called", chain(2),
        url="http://10.0.0.7:8080/journal?dry=1", public_url=BILLING,
    )  # fmt: skip
    yield request(
        "request-unbound-body", "a streamed body that nothing binds, where that is allowed", chain(2),
        claims={"content_digest": DROP}, allow=["unbound_body"],
    )  # fmt: skip
    yield request(
        "request-body-unread", "the body was not read, where that is allowed", chain(2),
        body=None, allow=["unbound_body"],
    )  # fmt: skip
    made = chain(2)
    headers = [
        ["agent-delegation", f"{made.compacts[0]} ,\t{made.compacts[1]}"],
        ["AGENT-ASSERTION", asserted(made, request_claims(made))],
        ["accept", "a"],
        ["accept", "b"],
    ]
    yield request(
        "request-header-names",
        "header names in any case, white space around the comma, others twice",
        made,
        headers=headers,
    )


def tokens() -> Iterator[Case]:
    made = chain(2)
    opaque = "Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
    yield call(
        "token-opaque",
        "an opaque token, by its hash",
        made,
        claims={"ath": sha256(opaque)},
        token=opaque,
    )
    bound = access_token(made)
    verified_token = {"scopes": ["journal:write"], "token_verified": True}
    yield call(
        "token-bound",
        "an access token that is bound to the leaf's key",
        made,
        claims={"ath": sha256(bound)},
        token=bound,
        said=verified_token,
    )
    unknown = access_token(made, iss="https://elsewhere.example", sub="somebody")
    yield call(
        "token-unknown-issuer",
        "a token of an issuer that isn't known here",
        made,
        claims={"ath": sha256(unknown)},
        token=unknown,
    )
    other = access_token(made, sub="client-7")
    yield call(
        "token-unlinked", "a token of another subject, where that is allowed", made,
        claims={"ath": sha256(other)}, token=other, allow=["unlinked_token"], said=verified_token,
    )  # fmt: skip
    yield request(
        "token-dpop",
        "a bound token with its proof",
        made,
        **with_token(made, bound),
        said=verified_token,
    )
    plain = access_token(made, cnf=DROP, aud=[BILLING])
    for identity, iat in (("proof-oldest", NOW - 300), ("proof-soonest", NOW + 30)):
        yield request(
            identity,
            "a proof at the edge of its time",
            made,
            **with_token(made, bound, iat=iat),
            said=verified_token,
        )
    yield request(
        "token-bearer",
        "a token that is bound to nothing, as a bearer",
        made,
        **with_token(made, plain, "Bearer"),
        said=verified_token,
    )
    yield request(
        "token-opaque-bearer",
        "an opaque token as a bearer",
        made,
        **with_token(made, opaque, "bearer"),
    )
    headers = [
        ["Agent-Delegation", ", ".join(made.compacts)],
        ["Authorization", f"DPoP {bound}"],
        ["DPoP", proof(made, bound)],
    ]
    yield request(
        "unasserted",
        "a bound token without assertion, where that is allowed",
        made,
        headers=headers,
        allow=["unasserted"],
        said=verified_token,
    )


def lists_and_handovers() -> Iterator[Case]:
    made = chain(2)
    yield call("revocations-empty", "nothing was revoked", made, **revoked())
    yield call(
        "revocations-of-others",
        "others were revoked",
        made,
        **revoked(("user:bob", NOW), (agent(7), NOW)),
    )
    yield call(
        "revocations-before",
        "revoked before the oldest hop was issued",
        made,
        **revoked(("user:U019488227", NOW - 11)),
    )
    yield call(
        "same-call-anew",
        "the same call once more, which is another use",
        made,
        claims={"jti": f"{CALL_ID}.r1"},
        after=["hops-2"],
    )
    further = chain(3, (2, {"aud": [MAIL, LOCAL]}))
    yield call(
        "handover",
        "a hop below the caller, for another key and another service",
        made,
        handover=further.compacts,
    )
    more = [["Agent-Handover", ", ".join(further.compacts)]]
    yield request("handover-request", "the same over HTTP", made, more=more)
