# SPDX-License-Identifier: Apache-2.0
"""What the kit says that every verifier refuses: one thing is wrong with each, and all else is good and rightly signed.

The code is what agent_identity answers; it is written here by hand and computed by nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .cases_accepted import (
    BODY,
    BOOKS,
    URL,
    Case,
    anchor,
    call,
    high_s,
    request,
    request_claims,
    revoked,
    with_token,
)
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
    Key,
    access_token,
    actor_of,
    agent,
    args_hash,
    asserted,
    b64,
    call_claims,
    chain,
    dumped,
    holder,
    key,
    proof,
    published,
    resigned,
    revocations,
    sha256,
    signed,
    thumbprint,
    unb64,
)

Change = tuple[int, Mapping[str, Any]]


def no(code: str, rule: str, case: Case) -> Case:
    """The same case, refused."""
    kept = {name: value for name, value in case.items() if name != "result"}
    return kept | {"rule": rule, "expect": {"refused": code}}


def bad_call(rule: str, identity: str, code: str, about: str, made: Chain, **other: Any) -> Case:
    return no(code, rule, call(identity, about, made, **other))


def bad_request(rule: str, identity: str, code: str, about: str, made: Chain, **other: Any) -> Case:
    return no(code, rule, request(identity, about, made, **other))


def refused() -> Iterator[Case]:
    yield from caps()
    yield from json_readings()
    yield from jose_forms()
    yield from keys()
    yield from claims()
    yield from anchors()
    yield from links()
    yield from constants_and_actors()
    yield from narrowing()
    yield from details()
    yield from times()
    yield from audiences_and_assertions()
    yield from doors()
    yield from calls()
    yield from requests()
    yield from tokens()
    yield from scopes()
    yield from revocations_()
    yield from replays()
    yield from handovers()


# -- before any signature ------------------------------------------------------------------------------------------------


def caps() -> Iterator[Case]:
    made = chain(1)
    repeated = {"repeat": "A", "times": 16384}
    yield bad_call("caps", "chain-empty", "chain_empty", "no grant at all", made, chain=[])
    nine = chain(9, (0, {"del_max_depth": 9}))
    yield bad_call("caps", "nine-hops", "chain_too_deep", "nine hops under a ceiling of nine", nine)
    yield bad_call(
        "caps",
        "chain-64-kib-and-1",
        "chain_too_large",
        "a chain of 64 KiB and a byte",
        made,
        chain=[*[repeated] * 4, "A"],
    )
    large = {"repeat": ",", "times": 65537}
    headers = [
        ["Agent-Assertion", asserted(made, request_claims(made))],
        ["Agent-Delegation", large],
    ]
    yield bad_request(
        "caps",
        "header-64-kib-and-1",
        "chain_too_large",
        "the same in one header",
        made,
        headers=headers,
    )
    yield bad_call(
        "caps",
        "grant-16-kib-and-1",
        "token_too_large",
        "a grant of 16 KiB and a byte",
        made,
        chain=[repeated | {"times": 16385}],
    )
    yield bad_call(
        "caps",
        "assertion-16-kib-and-1",
        "token_too_large",
        "an assertion of 16 KiB and a byte",
        made,
        assertion=repeated | {"times": 16385},
    )
    long = chain(1, header={0: {"kid": "k" * 1024}})
    yield bad_call(
        "caps", "header-1-kib", "header_too_large", "a JOSE header of more than 1 KiB", long
    )


def json_readings() -> Iterator[Case]:
    good = chain(1)
    body = dumped(good.leaf)
    deep = b'{"x":' + b"[" * 32 + b"]" * 32 + b","
    for identity, code, about, payload in (
        ("duplicate-claim", "json_duplicate_name", "a claim twice, with the same value", body[:-1] + b',"del_depth":0}'),
        ("duplicate-claim-nested", "json_duplicate_name", "a member of act twice", body.replace(b'"sub_profile":"ai_agent"', b'"sub_profile":"ai_agent","sub_profile":"ai_agent"')),
        ("nan", "json_number", "NaN for a time", body.replace(b'"del_max_depth":7', b'"del_max_depth":NaN')),
        ("infinity", "json_number", "-Infinity for a number", body.replace(b'"del_max_depth":7', b'"del_max_depth":-Infinity')),
        ("overflow", "json_number", "a number that no double holds", body.replace(b'"del_max_depth":7', b'"del_max_depth":1e999')),
        ("two-to-the-53", "json_number", "2^53 for a time", body.replace(b'"exp":1795518900', b'"exp":9007199254740992')),
        ("long-number", "json_number", "a number of 33 characters", body.replace(b'"del_max_depth":7', b'"del_max_depth":7.' + b"0" * 31)),
        ("byte-order-mark", "json_not_utf8", "a byte order mark before the claims", b"\xef\xbb\xbf" + body),
        ("latin-1", "json_not_utf8", "a byte that is no UTF-8", body.replace(b"October", b"Oct\xf6ber")),
        ("overlong-utf-8", "json_not_utf8", "an overlong slash", body.replace(b"October", b"Oct\xc0\xafber")),
        ("utf-16", "json_not_utf8", "claims in UTF-16", body.decode().encode("utf-16-le")),
        ("depth-33", "json_too_deep", "33 levels", body.replace(b"{", deep, 1)),
        ("lone-surrogate", "json_lone_surrogate", "an escape that is half a character", body.replace(b"October", b"\\ud800ctober")),
        ("trailing-comma", "json_malformed", "a comma before the last brace", body[:-1] + b",}"),
        ("trailing-text", "json_malformed", "something after the last brace", body + b"{}"),
        ("comment", "json_malformed", "a comment", body[:-1] + b"/**/}"),
        ("single-quotes", "json_malformed", "quotes that JSON doesn't have", body.replace(b'"scope"', b"'scope'")),
        ("raw-newline", "json_malformed", "a line break within a text", body.replace(b"October", b"Oct\nober")),
        ("leading-zero", "json_malformed", "a number that begins with a zero", body.replace(b'"del_max_depth":7', b'"del_max_depth":07')),
        ("claims-list", "json_not_object", "a list in place of the claims", b"[" + body + b"]"),
    ):  # fmt: skip
        assert payload != body, identity
        by = key("anchor")
        grant = signed(by, {"typ": "agent-grant+jwt", "alg": "ES256", "kid": by.jkt}, payload)
        yield bad_call("json", identity, code, about, good.remade(grant))
    said = dumped(call_claims(good))
    for identity, code, about, payload in (
        ("assertion-duplicate-claim", "json_duplicate_name", "a claim twice in an assertion", said[:-1] + b',"jti":"call_2"}'),
        ("assertion-escaped-duplicate", "json_duplicate_name", "a claim twice, once with an escape", said[:-1] + b',"j\\u0074i":"call_2"}'),
        ("assertion-byte-order-mark", "json_not_utf8", "a byte order mark in an assertion", b"\xef\xbb\xbf" + said),
    ):  # fmt: skip
        made = call(identity, about, good) | {"assertion": asserted(good, payload)}
        yield no(code, "json", made)
    head = (
        b'{"typ":"agent-grant+jwt","alg":"ES256","alg":"ES256","kid":"%b"}'
        % key("anchor").jkt.encode()
    )
    grant = signed(key("anchor"), head, good.leaf)
    yield bad_call(
        "json",
        "header-duplicate",
        "json_duplicate_name",
        "a member of the JOSE header twice",
        good.remade(grant),
    )


def jose_forms() -> Iterator[Case]:
    good = chain(1)
    (root,) = good.compacts
    head, body, signature = root.split(".")
    by = key("anchor")
    for identity, code, about, member in (
        ("typ-jwt", "wrong_typ", "another typ", {"typ": "JWT"}),
        ("typ-assertion", "wrong_typ", "the typ of an assertion", {"typ": "agent-assertion+jwt"}),
        ("typ-case", "wrong_typ", "the typ in another case", {"typ": "Agent-Grant+JWT"}),
        ("typ-long", "wrong_typ", "the typ with its media type's tree", {"typ": "application/agent-grant+jwt"}),
        ("typ-missing", "claim_missing", "no typ", {"typ": DROP}),
        ("alg-none", "alg_not_allowed", "alg none, with a signature", {"alg": "none"}),
        ("alg-es384", "alg_not_allowed", "an algorithm that isn't one of three", {"alg": "ES384"}),
        ("alg-rs256", "alg_not_allowed", "RSA", {"alg": "RS256"}),
        ("alg-missing", "alg_not_allowed", "no alg", {"alg": DROP}),
        ("alg-case", "alg_not_allowed", "the alg in lower case", {"alg": "es256"}),
        ("crit", "header_refused", "an extension that has to be understood", {"crit": ["exp"]}),
        ("crit-empty", "header_refused", "crit that names nothing", {"crit": []}),
        ("b64-false", "header_refused", "an unencoded payload (RFC 7797)", {"b64": False}),
        ("zip", "header_refused", "a compressed payload", {"zip": "DEF"}),
        ("jku", "claim_unknown", "where keys could be fetched", {"jku": "https://evil.example/jwks"}),
        ("x5u", "claim_unknown", "where a certificate could be fetched", {"x5u": "https://evil.example/cert"}),
        ("x5c", "claim_unknown", "a certificate", {"x5c": ["MIIB"]}),
        ("cty", "claim_unknown", "a header member without a rule", {"cty": "JWT"}),
        ("kid-number", "malformed_header", "a kid that is a number", {"kid": 1}),
    ):  # fmt: skip
        yield bad_call("jose", identity, code, about, chain(1, header={0: member}))
    for identity, code, about, jwk in (
        ("private-jwk", "key_private", "the signer's private key in the header", holder(0).jwk | {"d": b64(holder(0).secret)}),
        ("symmetric-jwk", "key_private", "a shared secret for a key", {"kty": "oct", "k": "AAAA"}),
        ("jwk-text", "claim_malformed", "a key that is a text", "key"),
        ("jwk-null", "claim_malformed", "null for a key", None),
    ):  # fmt: skip
        yield bad_call("jose", identity, code, about, chain(2, header={1: {"jwk": jwk}}))
    unsigned = dumped({"typ": "agent-grant+jwt", "alg": "none"})
    hs = dumped({"typ": "agent-grant+jwt", "alg": "HS256", "kid": by.jkt})
    for identity, code, about, compact in (
        ("alg-none-unsigned", "malformed_token", "alg none and an empty signature", f"{b64(unsigned)}.{body}."),
        ("alg-hs256", "alg_not_allowed", "the anchor's public key as a shared secret", hmac_signed(b64(hs), body, by)),
        ("padding", "malformed_base64", "padded base64url, and signed so", resigned(by, head, padded(body))),
        ("padding-signature", "malformed_base64", "a padded signature", f"{head}.{body}.{signature}=="),
        ("base64-plus-slash", "malformed_base64", "base64 with + and /", plus_slash(by, head)),
        ("base64-trailing-bits", "malformed_base64", "bits after the last byte of the signature", f"{head}.{body}.{trailing_bits(signature)}"),
        ("line-break", "malformed_base64", "a line break within base64", f"{head}.{body}.{signature[:40]}\n{signature[40:]}"),
        ("two-parts", "malformed_token", "no signature", f"{head}.{body}"),
        ("four-parts", "malformed_token", "a part too many", f"{root}.{signature}"),
        ("empty-payload", "malformed_token", "a detached payload", f"{head}..{signature}"),
        ("not-ascii", "malformed_token", "a letter that isn't ASCII", f"{head}.{body}.{signature[:-1]}ä"),
        ("json-serialization", "malformed_token", "the JSON serialization (RFC 7515 §7.2)", json_form(root)),
        ("empty-member", "malformed_token", "an empty text for a grant", ""),
    ):  # fmt: skip
        yield bad_call("jose", identity, code, about, good.remade(compact))
    yield bad_call(
        "jose",
        "assertion-typ",
        "wrong_typ",
        "an assertion whose typ is a grant's",
        good,
        header={"typ": "agent-grant+jwt"},
    )
    yield bad_call(
        "jose",
        "assertion-alg-none",
        "alg_not_allowed",
        "an assertion with alg none",
        good,
        header={"alg": "none"},
    )
    yield bad_call(
        "jose",
        "assertion-kid",
        "claim_unknown",
        "an assertion that names a key by kid",
        good,
        header={"kid": "k"},
    )
    yield bad_call(
        "jose",
        "assertion-jwk-missing",
        "claim_missing",
        "an assertion without its signer's key",
        good,
        header={"jwk": DROP},
    )
    grant = good.compacts[0]
    yield no(
        "wrong_typ",
        "jose",
        call("assertion-is-grant", "the leaf in place of the assertion", good)
        | {"assertion": grant},
    )


def hmac_signed(head: str, body: str, by: Key) -> str:
    secret = json.dumps(by.jwk, separators=(",", ":")).encode()
    return f"{head}.{body}.{b64(hmac.digest(secret, f'{head}.{body}'.encode(), hashlib.sha256))}"


def padded(text: str) -> str:
    """At least one sign of padding, whatever the length."""
    return text + ("=" * (-len(text) % 4) or "====")


def plus_slash(by: Key, head: str) -> str:
    """The claims with a purpose whose base64 has a plus sign."""
    body = dumped(chain(1, (0, {"purpose": "~~~ ~~~ ~~~ ???"})).leaf)
    text = b64(body).replace("-", "+").replace("_", "/")
    assert {"+", "/"} & set(text)
    return resigned(by, head, text)


def trailing_bits(text: str) -> str:
    """The same bytes, with a last character whose unused bits aren't zero."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    changed = text[:-1] + alphabet[alphabet.index(text[-1]) + 1]
    assert unb64(changed) == unb64(text)
    return changed


def json_form(compact: str) -> str:
    head, body, signature = compact.split(".")
    return json.dumps({"protected": head, "payload": body, "signature": signature})


# -- keys and signatures -------------------------------------------------------------------------------------------------


def keys() -> Iterator[Case]:
    rule = "key"
    one, two = chain(1), chain(2)
    for identity, code, about, member in (
        ("root-kid-unknown", "unknown_key", "a kid that the anchor doesn't have", {"kid": "k2"}),
        ("root-kid-missing", "key_missing", "hop 0 names no key", {"kid": DROP}),
        ("root-jwk", "key_missing", "hop 0 brings the anchor's key instead", {"kid": DROP, "jwk": key("anchor").jwk}),
        ("root-kid-and-jwk", "key_missing", "hop 0 names its key and brings it too", {"jwk": key("anchor").jwk}),
        ("root-alg-of-another-key", "key_mismatch", "an alg that the anchor's key can't have", {"alg": "Ed25519"}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, chain(1, header={0: member}))
    stranger = key("stranger")
    forged = chain(1, signer={0: stranger}, header={0: {"kid": key("anchor").jkt}})
    yield bad_call(
        rule,
        "root-signed-by-a-stranger",
        "bad_signature",
        "another key under the anchor's kid",
        forged,
    )
    yield bad_call(
        rule,
        "root-key-brought",
        "key_missing",
        "a stranger's hop 0 with the stranger's key",
        chain(1, signer={0: stranger}, header={0: {"kid": DROP, "jwk": stranger.jwk}}),
    )
    for identity, code, about, other in (
        (
            "anchor-key-for-encryption",
            "key_mismatch",
            "the anchor's key is for encryption",
            {"use": "enc"},
        ),
        (
            "anchor-key-of-another-alg",
            "key_mismatch",
            "the anchor's key is for another alg",
            {"alg": "ES384"},
        ),
    ):
        yield bad_call(
            rule, identity, code, about, one, **anchor(jwks=published(key("anchor"), **other))
        )
    broken = {"keys": [{n: v for n, v in published(key("anchor"))["keys"][0].items() if n != "y"}]}
    yield bad_call(
        rule,
        "anchor-key-broken",
        "key_malformed",
        "the anchor's key lacks a coordinate",
        one,
        **anchor(jwks=broken),
    )
    five = {"keys": published(key("anchor"))["keys"] * 5}
    yield bad_call(
        rule,
        "anchor-keys-of-one-kid",
        "key_ambiguous",
        "five of the anchor's keys have one kid",
        one,
        **anchor(jwks=five),
    )
    nameless = {"keys": [key("anchor").jwk]}
    yield bad_call(
        rule,
        "anchor-key-without-kid",
        "unknown_key",
        "the anchor's key has no kid, so that it is never tried",
        one,
        **anchor(jwks=nameless),
    )
    only = published(key("anchor-ed"))
    ed = chain(1, anchor=key("anchor-ed"), header={0: {"alg": "EdDSA"}})
    yield bad_call(
        rule,
        "anchor-key-ed25519-alone",
        "key_mismatch",
        "EdDSA under a key whose alg is Ed25519",
        ed,
        **anchor(jwks=only),
    )
    partner = {
        "issuer": "https://partner.example",
        "jwks": published(key("partner")),
        "evidence": "issuer",
    }
    made = chain(1, anchor=key("partner"))
    yield bad_call(
        rule,
        "key-of-another-anchor",
        "unknown_key",
        "signed by another anchor that is trusted too",
        made,
        anchors=[*anchor()["anchors"], partner],
    )
    for identity, code, about, member in (
        ("hop-jwk-missing", "key_missing", "a hop without its signer's key", {"jwk": DROP}),
        ("hop-jwk-empty", "key_malformed", "a key without members", {"jwk": {}}),
        ("hop-jwk-number", "key_malformed", "a coordinate that is a number", {"jwk": {"kty": "EC", "crv": "P-256", "x": 1, "y": "y"}}),
        ("hop-jwk-kty-unknown", "key_malformed", "a kind of key without a thumbprint", {"jwk": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"}}),
        ("hop-jwk-for-encryption", "key_mismatch", "the signer's key says use enc", {"jwk": holder(0).jwk | {"use": "enc"}}),
        ("hop-jwk-for-signing", "key_mismatch", "the signer's key says key_ops sign alone", {"jwk": holder(0).jwk | {"key_ops": ["sign"]}}),
        ("hop-jwk-of-another-alg", "key_mismatch", "the signer's key says another alg", {"jwk": holder(0).jwk | {"alg": "ES384"}}),
        ("hop-alg-of-another-key", "key_mismatch", "an alg that the signer's key can't have", {"alg": "Ed25519"}),
        ("hop-kid", "unknown_key", "a kid beside the signer's key", {"kid": key("anchor").jkt}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, chain(2, header={1: member}))
    yield bad_call(
        rule,
        "hop-kid-of-its-own-key",
        "unknown_key",
        "a kid beside a key that has the same",
        chain(2, header={1: {"kid": "k", "jwk": holder(0).jwk | {"kid": "k"}}}),
    )
    by_anchor = chain(
        2, signer={1: key("anchor")}, header={1: {"kid": key("anchor").jkt, "jwk": DROP}}
    )
    yield bad_call(
        rule,
        "hop-by-anchors-kid",
        "key_missing",
        "hop 1 is signed by the anchor, by its kid",
        by_anchor,
    )
    yield bad_call(
        rule,
        "hop-by-anchors-jwk",
        "key_mismatch",
        "hop 1 is signed by the anchor, with its key",
        chain(2, signer={1: key("anchor")}),
    )
    yield bad_call(
        rule,
        "hop-by-stranger",
        "key_mismatch",
        "hop 1 is signed by a key that hop 0 doesn't name",
        chain(2, signer={1: stranger}),
    )
    yield bad_call(
        rule,
        "hop-by-its-own-holder",
        "key_mismatch",
        "hop 1 is signed by the key that it names",
        chain(2, signer={1: holder(1)}),
    )
    stolen = chain(2, signer={1: stranger}, header={1: {"jwk": holder(0).jwk}})
    yield bad_call(
        rule,
        "hop-right-key-wrong-signature",
        "bad_signature",
        "the right key in the header, another that signed",
        stolen,
    )
    root = two.compacts[1]
    text, _, signature = root.rpartition(".")
    raw = bytearray(unb64(signature))
    raw[7] ^= 1
    yield bad_call(
        rule,
        "signature-flipped",
        "bad_signature",
        "a bit of a signature",
        two.remade(f"{text}.{b64(bytes(raw))}", place=1),
    )
    yield bad_call(
        rule,
        "signature-der",
        "bad_signature",
        "an ECDSA signature in DER",
        two.remade(f"{text}.{b64(der(unb64(signature)))}", place=1),
    )
    yield bad_call(
        rule,
        "signature-short",
        "bad_signature",
        "a signature without its last byte",
        two.remade(f"{text}.{b64(unb64(signature)[:-1])}", place=1),
    )
    longer = b64(unb64(signature)[:32] + b"\0" + unb64(signature)[32:])
    yield bad_call(
        rule,
        "signature-long",
        "bad_signature",
        "an s of 33 bytes, the first of them zero",
        two.remade(f"{text}.{longer}", place=1),
    )
    yield bad_call(
        rule,
        "signature-zero",
        "bad_signature",
        "r and s are zero (CVE-2022-21449)",
        two.remade(f"{text}.{b64(bytes(64))}", place=1),
    )
    yield bad_call(
        rule,
        "signature-of-another-hop",
        "bad_signature",
        "a signature of the same key over something else",
        two.remade(f"{text}.{chain(1, (0, {'jti': 'x'})).compacts[0].rpartition('.')[2]}", place=1),
    )
    yield from odd_keys()
    yield shifted()
    yield bad_call(
        rule,
        "assertion-by-stranger",
        "key_mismatch",
        "an assertion by a stranger, with the stranger's key",
        two,
        signer=stranger,
    )
    yield bad_call(
        rule,
        "assertion-by-parent",
        "key_mismatch",
        "an assertion by the agent above",
        two,
        signer=holder(0),
    )
    yield bad_call(
        rule,
        "assertion-right-key-wrong-signature",
        "bad_signature",
        "the leaf's key in the header, another that signed",
        one,
        signer=stranger,
        header={"jwk": holder(0).jwk, "alg": "ES256"},
    )


def odd_keys() -> Iterator[Case]:
    """Keys that a grant names, so that only the key itself is wrong."""
    zero = b64(bytes(32))
    for identity, code, about, jwk in (
        ("key-off-the-curve", "key_malformed", "a point that isn't on the curve", {"kty": "EC", "crv": "P-256", "x": b64(bytes(31) + b"\1"), "y": b64(bytes(31) + b"\1")}),
        ("key-short-coordinate", "key_malformed", "a coordinate of 31 bytes", {"kty": "EC", "crv": "P-256", "x": b64(bytes(31)), "y": zero}),
        ("key-padded", "malformed_base64", "a padded coordinate", {"kty": "EC", "crv": "P-256", "x": zero + "=", "y": zero}),
        ("key-weak", "key_weak", "an Ed25519 point that anybody can sign for, and somebody did", {"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" + bytes(31))}),
        ("key-short-ed25519", "key_malformed", "an Ed25519 key of 31 bytes", {"kty": "OKP", "crv": "Ed25519", "x": b64(bytes(31))}),
        ("key-x25519", "key_mismatch", "a key for key agreement", {"kty": "OKP", "crv": "X25519", "x": zero}),
        ("key-p-384", "key_mismatch", "a P-384 key under ES256", {"kty": "EC", "crv": "P-384", "x": b64(bytes(48)), "y": b64(bytes(48))}),
    ):  # fmt: skip
        alg = "Ed25519" if jwk["kty"] == "OKP" else "ES256"
        odd = Key("odd", b"", jwk, thumbprint(jwk))
        first = chain(1, holders={0: odd})
        claims = call_claims(first)
        # R is the neutral element and s is zero: it holds under every key of small order.
        forged = b"\1" + bytes(63)
        head = {"typ": "agent-assertion+jwt", "alg": alg, "jwk": jwk}
        text = f"{b64(dumped(head))}.{b64(dumped(claims))}"
        case = call(identity, about, chain(1))
        yield no(
            code, "key", case | {"chain": first.compacts, "assertion": f"{text}.{b64(forged)}"}
        )


def shifted() -> Case:
    """A good key and a good signature by it, but its coordinates are cut a byte early."""
    good = holder(0)
    both = unb64(good.jwk["x"]) + unb64(good.jwk["y"])
    jwk = {"kty": "EC", "crv": "P-256", "x": b64(both[:31]), "y": b64(both[31:])}
    odd = Key("odd", good.secret, jwk, thumbprint(jwk))
    about = "coordinates of 31 and 33 bytes"
    return bad_call(
        "key", "key-shifted-coordinates", "key_malformed", about, chain(1, holders={0: odd})
    )


def der(raw: bytes) -> bytes:
    numbers = (int.from_bytes(part, "big") for part in (raw[:32], raw[32:]))
    encoded = [number.to_bytes(number.bit_length() // 8 + 1, "big") for number in numbers]
    body = b"".join(bytes([2, len(each)]) + each for each in encoded)
    return bytes([0x30, len(body)]) + body


# -- claims --------------------------------------------------------------------------------------------------------------

NEEDED = (
    *("iss", "sub", "sub_iss", "sub_profile", "act", "cnf", "aud", "purpose", "txn", "iat", "nbf"),
    *("exp", "jti", "del_depth", "del_max_depth"),
)


def claims() -> Iterator[Case]:
    rule = "claims"
    good = chain(2)

    def leaf(identity: str, code: str, about: str, change: Mapping[str, Any]) -> Case:
        made = chain(2, (1, change))
        return no(code, rule, call(identity, about, good) | {"chain": made.compacts})

    for name in NEEDED:
        yield leaf(
            f"grant-{name}-missing", "claim_missing", f"a grant without {name}", {name: DROP}
        )
        yield leaf(
            f"grant-{name}-list",
            "claim_malformed",
            f"a list for {name}" if name != "aud" else "a text for aud",
            {name: ["x"] if name != "aud" else BILLING},
        )
    act = good.leaf["act"]
    for identity, code, about, change in (
        ("grant-scope-list", "claim_malformed", "scope is a list", {"scope": ["journal:write"]}),
        ("grant-scope-empty", "claim_malformed", "scope is an empty text, where absent is none", {"scope": ""}),
        ("grant-scope-two-spaces", "claim_malformed", "two spaces between scope tokens", {"scope": "invoices:read  journal:write"}),
        ("grant-scope-tab", "claim_malformed", "a tab between scope tokens", {"scope": "invoices:read\tjournal:write"}),
        ("grant-scope-quote", "claim_malformed", "a character that scope tokens don't have", {"scope": 'journal:write "'}),
        ("grant-scope-not-ascii", "claim_malformed", "a scope token that isn't ASCII", {"scope": "journal:wríte"}),
        ("grant-task-empty", "claim_malformed", "an empty task", {"task": ""}),
        ("grant-task-null", "claim_malformed", "null for a task", {"task": None}),
        ("grant-purpose-empty", "claim_malformed", "an empty purpose", {"purpose": ""}),
        ("grant-aud-empty-text", "claim_malformed", "an audience that is an empty text", {"aud": [BILLING, ""]}),
        ("grant-aud-letter", "claim_malformed", "a text of one letter for aud", {"aud": "x"}),
        ("grant-aud-repeated", "claim_malformed", "an audience twice", {"aud": [BILLING, BILLING]}),
        ("grant-aud-number", "claim_malformed", "an audience that is a number", {"aud": [BILLING, 1]}),
        ("grant-exp-fraction", "claim_malformed", "a time with a fraction", {"exp": NOW + 60.5}),
        ("grant-exp-text", "claim_malformed", "a time that is a text", {"exp": str(NOW + 60)}),
        ("grant-exp-bool", "claim_malformed", "true for a time", {"exp": True}),
        ("grant-nbf-negative", "claim_malformed", "a time before 1970", {"nbf": -1}),
        ("grant-unknown-claim", "claim_unknown", "a claim that has no rule", {"may_act": {"sub": "x"}}),
        ("grant-cnf-more", "claim_unknown", "a second confirmation", {"cnf": good.leaf["cnf"] | {"x5t#S256": "x"}}),
        ("grant-cnf-empty", "claim_missing", "a confirmation of nothing", {"cnf": {}}),
        ("grant-act-more", "claim_unknown", "an actor with a role", {"act": act | {"role": "admin"}}),
        ("grant-act-sub-missing", "claim_missing", "an actor without sub", {"act": {n: v for n, v in act.items() if n != "sub"}}),
        ("grant-act-iss-missing", "claim_missing", "an actor without iss", {"act": {n: v for n, v in act.items() if n != "iss"}}),
        ("grant-act-instance-missing", "claim_missing", "an actor without instance", {"act": {n: v for n, v in act.items() if n != "instance"}}),
        ("grant-par_hash-null", "claim_malformed", "null for par_hash", {"par_hash": None}),
    ):  # fmt: skip
        yield leaf(identity, code, about, change)
    certain = chain(1, (0, {"evidence": "certain"}))
    yield bad_call(
        rule, "grant-evidence-unknown", "evidence_unknown", "evidence of no known kind", certain
    )
    said = call_claims(good)
    for name in ("iss", "sub", "txn", "aud", "iat", "exp", "jti", "grant_hash", "call"):
        yield bad_call(
            rule,
            f"assertion-{name}-missing",
            "claim_missing",
            f"an assertion without {name}",
            good,
            claims={name: DROP},
        )
        yield bad_call(
            rule,
            f"assertion-{name}-list",
            "claim_malformed",
            f"a list for {name}",
            good,
            claims={name: [said[name]]},
        )
    for name in ("id", "tool", "args_hash", "canon"):
        less = {n: v for n, v in said["call"].items() if n != name}
        yield bad_call(
            rule,
            f"assertion-call-{name}-missing",
            "claim_missing",
            f"a call without {name}",
            good,
            claims={"call": less},
        )
    approval = {
        "id": "apr_1",
        "by": "user:lead",
        "method": "prompt",
        "at": NOW - 20,
        "digest": "sha-256:x",
        "evidence": "asserted",
    }
    for identity, code, about, change in (
        ("assertion-unknown-claim", "claim_unknown", "a claim that has no rule", {"nonce": "x"}),
        ("assertion-arguments", "claim_unknown", "the arguments themselves", {"call": said["call"] | {"arguments": ARGS}}),
        ("assertion-canon-unknown", "digest_unknown", "another canonical form", {"call": said["call"] | {"canon": "cbor"}}),
        ("assertion-digest-unknown", "digest_unknown", "another digest", {"call": said["call"] | {"args_hash": "sha-512:x"}}),
        ("assertion-trace-text", "claim_malformed", "trace is a text", {"trace": "00-0af7-b7ad-01"}),
        ("assertion-trace-more", "claim_unknown", "trace has a third member", {"trace": said["trace"] | {"flags": "01"}}),
        ("assertion-trace-half", "claim_missing", "trace without span_id", {"trace": {"trace_id": said["trace"]["trace_id"]}}),
        ("assertion-ath-null", "claim_malformed", "null for ath", {"ath": None}),
        ("assertion-exp-fraction", "claim_malformed", "a time with a fraction", {"exp": NOW + 55.5}),
        ("assertion-approval-list", "claim_malformed", "a list of approvals", {"approval": [approval]}),
        ("assertion-approval-by-missing", "claim_missing", "an approval by nobody", {"approval": {n: v for n, v in approval.items() if n != "by"}}),
        ("assertion-approval-evidence-missing", "claim_missing", "an approval that doesn't say how it is known", {"approval": {n: v for n, v in approval.items() if n != "evidence"}}),
        ("assertion-approval-at-text", "claim_malformed", "an approval at no time", {"approval": approval | {"at": "now"}}),
        ("assertion-approval-more", "claim_unknown", "an approval with a comment", {"approval": approval | {"note": "ok"}}),
        ("assertion-approval-evidence-number", "claim_malformed", "evidence of an approval that is a number", {"approval": approval | {"evidence": 1}}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, good, claims=change)


# -- hop 0 and what hangs below it ---------------------------------------------------------------------------------------


def anchors() -> Iterator[Case]:
    rule = "anchor"
    one = chain(1)
    yield bad_call(
        rule,
        "unknown-anchor",
        "unknown_anchor",
        "an anchor that isn't trusted",
        one,
        **anchor(issuer="https://other.example"),
    )
    yield bad_call(
        rule,
        "anchor-with-a-slash",
        "unknown_anchor",
        "an anchor's name with a slash more",
        one,
        **anchor(issuer=f"{ANCHOR}/"),
    )
    yield bad_call(rule, "no-anchors", "unknown_anchor", "no anchor at all", one, anchors=[])
    agent_known = chain(1, (0, {"evidence": "agent"}))
    asserted_ = chain(1, (0, {"evidence": "asserted"}))
    yield bad_call(
        rule,
        "evidence-exceeds-agent",
        "evidence_exceeded",
        "issuer, from an anchor that may say agent",
        one,
        evidence="asserted",
        **anchor(evidence="agent"),
    )
    yield bad_call(
        rule,
        "evidence-exceeds-asserted",
        "evidence_exceeded",
        "agent, from an anchor that may say asserted",
        agent_known,
        evidence="asserted",
        **anchor(evidence="asserted"),
    )
    yield bad_call(
        rule,
        "evidence-agent-too-low",
        "evidence_too_low",
        "agent, where issuer is asked for",
        agent_known,
    )
    yield bad_call(
        rule,
        "evidence-asserted-too-low",
        "evidence_too_low",
        "asserted, where agent is asked for",
        asserted_,
        evidence="agent",
    )
    foreign = chain(1, (0, {"sub_iss": "https://idp.example"}))
    yield bad_call(
        rule,
        "subject-not-vouched",
        "subject_not_vouched",
        "a principal of somebody else's",
        foreign,
    )
    yield bad_call(
        rule,
        "subject-of-another",
        "subject_not_vouched",
        "a principal of an issuer that isn't the one named",
        foreign,
        **anchor(subjects=["https://idp.example/"]),
    )
    trigger = {"sub": "cron", "sub_profile": "trigger", "evidence": "agent"}
    yield bad_call(
        rule,
        "trigger-of-another",
        "subject_not_vouched",
        "a trigger that another agent declares",
        chain(1, (0, trigger | {"sub_iss": agent(1)})),
        evidence="agent",
    )
    claimed = trigger | {"evidence": "issuer"}
    for identity, sub_iss in (("by-the-agent", agent(0)), ("by-the-anchor", ANCHOR)):
        yield bad_call(
            rule,
            f"trigger-verified-{identity}",
            "evidence_exceeded",
            "a trigger that claims evidence issuer",
            chain(2, (0, claimed | {"sub_iss": sub_iss})),
        )
    idp, partner = "https://idp.example", "https://partner.example"
    trusted = [
        *anchor(subjects=[idp])["anchors"],
        *anchor(issuer=partner, jwks=published(key("partner")))["anchors"],
    ]
    for identity, name in (("anchor", ANCHOR), ("other-anchor", partner), ("subject", idp)):
        actor = {"iss": ANCHOR, "sub": name, "sub_profile": "ai_agent", "instance": holder(0).jkt}
        yield bad_call(
            rule,
            f"trigger-of-an-{identity}",
            "agent_is_issuer",
            "a trigger of an agent that has an issuer's name",
            chain(2, (0, trigger | {"sub_iss": name, "act": actor})),
            evidence="agent",
            anchors=trusted,
        )
    yield bad_call(
        rule,
        "user-of-an-agent",
        "subject_not_vouched",
        "a user whose issuer is the agent",
        chain(1, (0, {"sub_iss": agent(0)})),
    )


def links() -> Iterator[Case]:
    rule = "link"
    three = chain(3)
    leaf, middle, root = three.compacts
    for identity, code, about, compacts in (
        ("hop-removed", "depth_mismatch", "the middle hop is left out", [leaf, root]),
        ("root-removed", "depth_mismatch", "hop 0 is left out", [leaf, middle]),
        ("hops-reordered", "depth_mismatch", "two hops changed places", [middle, leaf, root]),
        ("hops-oldest-first", "depth_mismatch", "the chain is oldest first", [root, middle, leaf]),
        ("hop-duplicated", "depth_mismatch", "a hop comes twice", [leaf, middle, middle, root]),
    ):  # fmt: skip
        yield no(code, rule, call(identity, about, three) | {"chain": compacts})
    other = chain(1, (0, {"jti": "grant_other"})).compacts[0]
    yield bad_call(
        rule,
        "root-spliced",
        "parent_mismatch",
        "hop 0 of another chain, alike but for its jti",
        three.remade(other, place=2),
    )
    twin = chain(2, (1, {"jti": "grant_other"})).compacts[0]
    yield bad_call(
        rule,
        "hop-spliced",
        "parent_mismatch",
        "the middle hop of another chain, alike but for its jti",
        three.remade(twin, place=1),
    )
    parent = chain(1).compacts[0]
    for identity, code, about, change in (
        ("par_hash-of-payload", "parent_mismatch", "par_hash of the parent's payload", {"par_hash": sha256(parent.split(".")[1])}),
        ("par_hash-of-claims", "parent_mismatch", "par_hash of the parent's claims", {"par_hash": sha256(unb64(parent.split(".")[1]))}),
        ("par_hash-of-compact", "parent_mismatch", "par_hash of the parent with its signature", {"par_hash": sha256(parent)}),
        ("par_hash-padded", "parent_mismatch", "par_hash with padding", {"par_hash": sha256(parent.rpartition(".")[0]) + "="}),
        ("par_hash-missing", "hop_malformed", "a hop that hangs below nothing", {"par_hash": DROP}),
        ("evidence-below", "hop_malformed", "evidence at hop 1", {"evidence": "issuer"}),
        ("sub_token_hash-below", "hop_malformed", "the hash of a token at hop 1", {"sub_token_hash": "x"}),
        ("iss-anchor", "issuer_mismatch", "hop 1 says that the anchor issued it", {"iss": ANCHOR}),
        ("iss-itself", "issuer_mismatch", "hop 1 says that it issued itself", {"iss": agent(1)}),
        ("depth-too-small", "depth_mismatch", "hop 1 says that it is hop 0", {"del_depth": 0}),
        ("depth-too-large", "depth_mismatch", "hop 1 says that it is hop 2", {"del_depth": 2}),
        ("ceiling-raised", "depth_exceeded", "hop 1 raises the ceiling", {"del_max_depth": 8}),
        ("ceiling-passed", "depth_exceeded", "hop 1 under a ceiling of none", {"del_max_depth": 0}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, chain(2, (1, change)))
    yield bad_call(
        rule,
        "ceiling-of-one",
        "depth_exceeded",
        "hop 2 where one delegation is allowed",
        chain(3, (0, {"del_max_depth": 1})),
    )
    grown = chain(
        3, (0, {"del_max_depth": 5}), (1, {"del_max_depth": 3}), (2, {"del_max_depth": 4})
    )
    yield bad_call(
        rule,
        "ceiling-raised-again",
        "depth_exceeded",
        "a ceiling that was lowered is raised",
        grown,
    )
    for identity, about, change in (
        ("root-par_hash", "hop 0 with a parent", {"par_hash": sha256("x")}),
        ("root-evidence-missing", "hop 0 without evidence", {"evidence": DROP}),
    ):
        yield bad_call(rule, identity, "hop_malformed", about, chain(1, (0, change)))


def constants_and_actors() -> Iterator[Case]:
    for name, value in (
        ("sub", "U019488228"),
        ("sub_iss", "https://idp.example"),
        ("sub_profile", "service"),
        ("purpose", "close the October Books"),
        ("txn", "ses_00000000000000000000000000000002"),
    ):
        yield bad_call(
            "constant",
            f"{name}-changed",
            "constant_changed",
            f"{name} changes at hop 1",
            chain(2, (1, {name: value})),
        )
    yield bad_call(
        "constant",
        "purpose-changed-at-the-leaf",
        "constant_changed",
        "purpose changes at hop 2",
        chain(3, (2, {"purpose": "x"})),
    )
    rule = "actor"
    two, three = chain(2), chain(3)
    above = two.leaf["act"]["act"]
    for identity, about, act in (
        ("act-not-nested", "act names the last agent alone", actor_of(two, act=DROP)),
        ("act-nests-another", "act nests another agent", actor_of(two, act=above | {"sub": agent(7)})),
        ("act-nests-another-key", "act nests another key of the same agent", actor_of(two, act=above | {"instance": holder(7).jkt})),
        ("act-nests-too-much", "act nests an agent that signed nothing", actor_of(two, act=above | {"act": above})),
        ("act-nests-a-text", "act nests a text", actor_of(two, act=agent(0))),
        ("act-nests-null", "act nests null", actor_of(two, act=None)),
        ("act-iss-anchor", "hop 1 says that the anchor vouches for its agent", actor_of(two, iss=ANCHOR)),
    ):  # fmt: skip
        yield bad_call(rule, identity, "actor_mismatch", about, chain(2, (1, {"act": act})))
    leaf = actor_of(three)
    swapped = {
        **leaf,
        "act": {**leaf["act"]["act"], "act": {n: v for n, v in leaf["act"].items() if n != "act"}},
    }
    yield bad_call(
        rule,
        "act-nests-in-another-order",
        "actor_mismatch",
        "act nests the right agents in the wrong order",
        chain(3, (2, {"act": swapped})),
    )
    root = chain(1)
    for identity, about, other in (
        (
            "root-act-nested",
            "hop 0 brings an actor of its own",
            {"act": actor_of(root, sub=agent(7))},
        ),
        ("root-act-nested-null", "hop 0 nests null", {"act": None}),
        (
            "root-act-iss",
            "somebody else vouches for the first agent",
            {"iss": "https://partner.example"},
        ),
    ):
        yield bad_call(
            rule, identity, "actor_mismatch", about, chain(1, (0, {"act": actor_of(root, **other)}))
        )
    yield bad_call(
        rule,
        "actor-is-user",
        "actor_profile",
        "a person holds a grant",
        chain(1, (0, {"act": actor_of(root, sub_profile="user")})),
    )
    yield bad_call(
        rule,
        "instance-of-another",
        "instance_mismatch",
        "act.instance isn't cnf.jkt",
        chain(1, (0, {"act": actor_of(root, instance=holder(7).jkt)})),
    )
    yield bad_call(
        rule,
        "agent-twice",
        "actor_repeated",
        "an agent acts twice, with another key",
        chain(3, (2, {"act": actor_of(three, sub=agent(0))})),
    )
    yield bad_call(
        rule,
        "key-twice",
        "actor_repeated",
        "a key acts twice, as another agent",
        chain(3, holders={2: holder(0)}),
    )


def narrowing() -> Iterator[Case]:
    rule = "narrow"
    for identity, code, about, change in (
        ("scope-widened", "scope_widened", "a scope that the parent lacks", {"scope": "invoices:read journal:write invoices:pay"}),
        ("scope-star", "scope_widened", "a star is a scope like another", {"scope": "journal:write *"}),
        ("scope-prefix", "scope_widened", "the first part of a scope is another scope", {"scope": "journal:write invoices"}),
        ("scope-case", "scope_widened", "a scope in another case is another scope", {"scope": "journal:write Invoices:read"}),
        ("aud-widened", "audience_widened", "a service that the parent doesn't reach", {"aud": [BILLING, "https://files.example"]}),
        ("aud-slash", "audience_widened", "an audience with a slash more is another", {"aud": [BILLING, f"{MAIL}/"]}),
        ("aud-below", "audience_widened", "an audience below the parent's is another", {"aud": [BILLING, f"{BILLING}/v1"]}),
        ("exp-widened", "lifetime_widened", "the child outlives its parent by a second", {"exp": NOW + 891}),
        ("nbf-widened", "lifetime_widened", "the child begins a second before its parent", {"nbf": NOW - 11}),
        ("iat-widened", "lifetime_widened", "the child is a second older than its parent", {"iat": NOW - 11}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, chain(2, (1, change)))
    bare = chain(2, (0, {"scope": DROP}), (1, {"scope": "journal:write"}))
    yield bad_call(rule, "scope-below-none", "scope_widened", "no scope is none, and not all", bare)
    nowhere = chain(3, (1, {"aud": []}), (2, {"aud": [BILLING]}))
    yield bad_call(rule, "aud-below-none", "audience_widened", "no audience is nowhere", nowhere)
    yield bad_call(
        rule,
        "scope-regained",
        "scope_widened",
        "a scope that hop 1 gave up comes back",
        chain(3, (1, {"scope": "journal:write"}), (2, {"scope": "invoices:read journal:write"})),
    )

    def wider(identity: str, about: str, above: Any, below: Any) -> Case:
        changes = [
            (depth, {"authorization_details": each} if each else {"authorization_details": DROP})
            for depth, each in enumerate((above, below))
        ]
        return bad_call(rule, identity, "details_widened", about, chain(2, *changes))

    limited = BOOKS["arguments"]
    yield wider("details-dropped", "the child has no details", [BOOKS], None)
    yield wider("details-any", "the child's one object allows anything", [BOOKS], [{"type": TYPE}])
    yield wider(
        "details-object-added",
        "an object of the child's is covered by none",
        [BOOKS],
        [BOOKS, {"type": TYPE, "tools": ["cancel"]}],
    )
    yield wider(
        "details-tool-added", "another tool", [BOOKS], [BOOKS | {"tools": [TOOL, "cancel"]}]
    )
    yield wider(
        "details-resource-added",
        "another resource",
        [BOOKS],
        [BOOKS | {"resources": [BILLING, MAIL]}],
    )
    yield wider(
        "details-resources-dropped",
        "any resource",
        [BOOKS],
        [{n: v for n, v in BOOKS.items() if n != "resources"}],
    )
    yield wider(
        "details-argument-dropped",
        "an argument without its rule",
        [BOOKS],
        [BOOKS | {"arguments": {"total": limited["total"]}}],
    )
    two = [
        BOOKS | {"arguments": {"total": {"maximum": 5}}},
        BOOKS | {"arguments": {"total": {"minimum": 4000}}},
    ]
    across = [BOOKS | {"arguments": {"total": {"enum": [5, 4000]}}}]
    yield wider(
        "details-covered-by-two",
        "an object that only two of the parent's cover together",
        two,
        across,
    )
    for identity, about, above, below in (
        ("maximum-raised", "a higher maximum", {"maximum": 5}, {"maximum": 6}),
        ("minimum-lost", "a maximum in place of a minimum", {"minimum": 5}, {"maximum": 9}),
        ("maximum-lost", "a minimum in place of a maximum", {"maximum": 5}, {"minimum": 1}),
        ("minimum-lowered", "a lower minimum", {"minimum": 5}, {"minimum": 4.999}),
        ("enum-added", "a value more", {"enum": [1, 2]}, {"enum": [1, 3]}),
        (
            "enum-to-range",
            "a range in place of a list",
            {"enum": [1, 2]},
            {"minimum": 1, "maximum": 2},
        ),
        ("const-true-for-1", "true is not 1", {"enum": [1, 2]}, {"const": True}),
        ("const-text-for-1", "a text is not a number", {"const": 1}, {"const": "1"}),
        (
            "const-to-prefix",
            "a prefix in place of a value",
            {"const": "inv-1"},
            {"prefix": "inv-1"},
        ),
        ("prefix-shortened", "a shorter prefix", {"prefix": "inv-"}, {"prefix": "inv"}),
        (
            "prefix-to-enum",
            "a value without the prefix",
            {"prefix": "inv-"},
            {"enum": ["inv-1", "in"]},
        ),
        ("range-to-text", "a text where a number has to be", {"maximum": 5}, {"const": "4"}),
    ):
        objects = [[{"type": TYPE, "arguments": {"total": each}}] for each in (above, below)]
        yield wider(f"constraint-{identity}", about, *objects)


# -- details -------------------------------------------------------------------------------------------------------------


def details() -> Iterator[Case]:
    rule = "details"

    def stated(identity: str, code: str, about: str, value: Any) -> Case:
        return bad_call(
            rule, identity, code, about, chain(1, (0, {"authorization_details": value}))
        )

    def constrained(identity: str, code: str, about: str, constraint: Any) -> Case:
        return stated(identity, code, about, [{"type": TYPE, "arguments": {"total": constraint}}])

    yield stated("details-empty", "claim_malformed", "an empty list of details", [])
    yield stated(
        "details-object", "claim_malformed", "an object in place of a list", {"type": TYPE}
    )
    yield stated("details-text", "claim_malformed", "a text among the details", [TYPE])
    yield stated(
        "details-65", "claim_malformed", "65 objects", [{"type": TYPE, "tools": [TOOL]}] * 65
    )
    yield stated(
        "details-type-unknown",
        "detail_type_unknown",
        "another type",
        [{"type": "payment_initiation"}],
    )
    yield stated(
        "details-type-unknown-second",
        "detail_type_unknown",
        "another type, beside one that takes the call",
        [BOOKS, {"type": "payment_initiation"}],
    )
    yield stated("details-type-missing", "claim_missing", "no type", [{"tools": [TOOL]}])
    yield stated(
        "details-actions",
        "claim_unknown",
        "a field of RFC 9396 that has no rule here",
        [{"type": TYPE, "actions": ["read"]}],
    )
    yield stated(
        "details-tools-empty",
        "claim_malformed",
        "an empty list of tools",
        [{"type": TYPE, "tools": []}],
    )
    yield stated(
        "details-tools-text", "claim_malformed", "a text for tools", [{"type": TYPE, "tools": TOOL}]
    )
    yield stated(
        "details-arguments-empty",
        "claim_malformed",
        "arguments without a rule",
        [{"type": TYPE, "arguments": {}}],
    )
    yield constrained(
        "constraint-unknown", "constraint_unknown", "a word that has no rule", {"pattern": "^a"}
    )
    yield constrained(
        "constraint-unknown-beside",
        "constraint_unknown",
        "a word that has no rule, beside one that has",
        {"maximum": 2000, "exclusiveMaximum": 2000},
    )
    yield constrained(
        "constraint-empty", "constraint_unknown", "an argument limited by nothing", {}
    )
    yield constrained(
        "constraint-value", "claim_malformed", "a value in place of a constraint", 1680.5
    )
    yield constrained(
        "constraint-enum-empty", "claim_malformed", "a list of no values", {"enum": []}
    )
    yield constrained(
        "constraint-enum-text", "claim_malformed", "a text for a list of values", {"enum": "1680.5"}
    )
    yield constrained(
        "constraint-prefix-empty", "claim_malformed", "an empty prefix", {"prefix": ""}
    )
    yield constrained(
        "constraint-prefix-number", "claim_malformed", "a prefix that is a number", {"prefix": 1}
    )
    yield constrained(
        "constraint-maximum-text",
        "claim_malformed",
        "a maximum that is a text",
        {"maximum": "2000"},
    )
    yield constrained(
        "constraint-maximum-bool", "claim_malformed", "a maximum that is true", {"maximum": True}
    )
    yield constrained(
        "constraint-no-canonical-form",
        "claim_malformed",
        "a value that RFC 8785 would write as an integer beyond 2^53",
        {"const": 1e17},
    )

    def exceeded(identity: str, about: str, detail: Case, args: Any = ARGS) -> Case:
        made = chain(2, (0, {"authorization_details": [detail]}))
        return bad_call(rule, identity, "details_exceeded", about, made, args=args)

    yield exceeded(
        "tool-not-allowed", "another tool than the details name", BOOKS | {"tools": ["cancel"]}
    )
    yield exceeded(
        "resource-not-allowed",
        "another resource than the details name",
        BOOKS | {"resources": [MAIL]},
    )
    yield exceeded("argument-too-large", "beyond the maximum", BOOKS, ARGS | {"total": 2000.01})
    yield exceeded(
        "argument-not-listed", "none of the listed values", BOOKS, ARGS | {"customer": "Globex"}
    )
    yield exceeded(
        "argument-missing", "an argument that has a rule isn't there", BOOKS, {"total": 5}
    )
    for identity, about, constraint, value in (
        ("argument-true-for-1", "true is not 1", {"const": 1}, True),
        ("argument-text-for-number", "a text is no number", {"maximum": 9}, "5"),
        ("argument-true-in-range", "true is no number", {"maximum": 9}, True),
        ("argument-number-for-prefix", "a number has no prefix", {"prefix": "1"}, 10),
        ("argument-prefix-case", "a prefix in another case", {"prefix": "inv-"}, "INV-1"),
        ("argument-nfd", "the same letter, composed otherwise", {"const": "\u00e4"}, "a\u0308"),
        (
            "argument-second-word",
            "one of two words doesn't hold",
            {"enum": ["a1", "b1"], "prefix": "a"},
            "b1",
        ),
    ):
        detail = {"type": TYPE, "arguments": {"total": constraint}}
        yield exceeded(identity, about, detail, {"total": value})
    split_ = [
        {"type": TYPE, "tools": ["cancel"]},
        {"type": TYPE, "tools": [TOOL], "resources": [MAIL]},
    ]
    made = chain(1, (0, {"authorization_details": split_}))
    yield bad_call(
        rule, "details-taken-together", "details_exceeded", "no object takes the whole call", made
    )
    yield from unseen_details()


def unseen_details() -> Iterator[Case]:
    rule = "details"
    made = chain(2, (1, {"authorization_details": [BOOKS]}))
    yield bad_request(
        rule,
        "details-unseen",
        "details_unseen",
        "an HTTP request under details about arguments",
        made,
    )
    tools = chain(2, (1, {"authorization_details": [{"type": TYPE, "tools": [TOOL]}]}))
    yield bad_request(
        rule,
        "details-unseen-tools",
        "details_unseen",
        "an HTTP request under details about tools",
        tools,
    )
    alone = {"type": TYPE, "arguments": {"total": {"maximum": 2000}}}
    limited = chain(2, (1, {"authorization_details": [alone]}))
    yield bad_request(
        rule,
        "details-unseen-arguments",
        "details_unseen",
        "an HTTP request under details about arguments of any tool",
        limited,
    )
    crossed = [
        {"type": TYPE, "resources": [MAIL], "tools": [TOOL]},
        {"type": TYPE, "resources": [BILLING], "tools": ["cancel"]},
    ]
    made = chain(2, (1, {"authorization_details": crossed}))
    yield bad_request(
        rule,
        "details-unseen-taken-together",
        "details_exceeded",
        "the tool at another service, another tool at this one",
        made,
        allow=["unseen_arguments"],
    )
    far = chain(2, (1, {"authorization_details": [{"type": TYPE, "resources": [MAIL]}]}))
    yield bad_request(
        rule,
        "details-of-another-resource",
        "details_exceeded",
        "an HTTP request under details for another service",
        far,
    )
    cancel = chain(2, (1, {"authorization_details": [{"type": TYPE, "tools": ["cancel"]}]}))
    yield bad_request(
        rule,
        "details-of-another-tool",
        "details_exceeded",
        "unseen arguments are allowed, another tool isn't",
        cancel,
        allow=["unseen_arguments"],
    )


# -- time, audience, the assertion ---------------------------------------------------------------------------------------


def times() -> Iterator[Case]:
    rule = "time"
    two = chain(2)
    short = chain(2, (0, {"exp": NOW}))
    anew = {"iat": NOW, "exp": NOW + 60}
    yield bad_call(
        rule,
        "chain-expired",
        "expired",
        "the chain ended 30 s ago",
        short,
        now=NOW + 30,
        claims=anew,
    )
    leaf = chain(2, (1, {"exp": NOW}))
    yield bad_call(
        rule,
        "leaf-expired",
        "expired",
        "the leaf ended 30 s ago, its parent didn't",
        leaf,
        now=NOW + 30,
        claims=anew,
    )
    late = chain(2, (0, {"iat": NOW, "nbf": NOW}))
    yield bad_call(
        rule,
        "chain-not-yet",
        "not_yet_valid",
        "the chain begins in 31 s",
        late,
        now=NOW - 31,
        claims={"iat": NOW - 31, "exp": NOW + 29},
    )
    yield bad_call(
        rule,
        "leaf-not-yet",
        "not_yet_valid",
        "the leaf begins in 31 s",
        chain(2, (1, {"nbf": NOW + 31})),
    )
    future = chain(2, (0, {"iat": NOW + 31}), (1, {"iat": NOW}))
    yield bad_call(
        rule, "root-from-the-future", "not_yet_valid", "hop 0 was issued in 31 s, hop 1 now", future
    )
    for identity, exp in (("no-life", NOW - 10), ("ends-before-it-begins", NOW - 11)):
        made = chain(1, (0, {"exp": exp}))
        yield bad_call(
            rule,
            identity,
            "lifetime_empty",
            "a hop that ends before it begins, within the skew",
            made,
            now=NOW - 10,
            claims={"iat": NOW - 10, "exp": NOW + 50},
        )
    for identity, code, about, claims_ in (
        ("assertion-expired", "expired", "the assertion ended 30 s ago", {"iat": NOW - 40, "exp": NOW - 30}),
        ("assertion-from-the-future", "not_yet_valid", "the assertion begins in 31 s", {"iat": NOW + 31, "exp": NOW + 91}),
        ("assertion-61", "lifetime_exceeded", "an assertion of 61 s", {"exp": NOW + 56}),
        ("assertion-without-life", "lifetime_exceeded", "an assertion of no second", {"exp": NOW - 5}),
        ("assertion-ends-before-it-begins", "lifetime_exceeded", "an assertion that ends before it begins", {"iat": NOW + 5, "exp": NOW + 4}),
        ("assertion-older-than-grant", "not_yet_valid", "an assertion 31 s older than its grant", {"iat": NOW - 41, "exp": NOW + 19}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, two, claims=claims_)
    yield bad_call(
        rule,
        "no-skew",
        "expired",
        "the assertion ended this second, where no skew is allowed",
        two,
        skew=0,
        now=NOW + 55,
    )


def audiences_and_assertions() -> Iterator[Case]:
    two = chain(2)
    elsewhere = chain(2, (1, {"aud": [MAIL, LOCAL]}))
    yield bad_call(
        "audience",
        "chain-for-another",
        "audience_mismatch",
        "the leaf doesn't reach this service",
        elsewhere,
    )
    yield bad_call(
        "audience",
        "assertion-for-another",
        "audience_mismatch",
        "the assertion is for another service of the chain",
        two,
        claims={"aud": MAIL},
    )
    yield bad_call(
        "audience",
        "assertion-with-a-slash",
        "audience_mismatch",
        "an audience with a slash more",
        two,
        claims={"aud": f"{BILLING}/"},
    )
    yield bad_call(
        "audience",
        "assertion-case",
        "audience_mismatch",
        "an audience in another case",
        two,
        claims={"aud": "https://Billing.example"},
    )
    yield bad_call(
        "audience",
        "service-below",
        "audience_mismatch",
        "a service below the one that the chain reaches",
        two,
        audience=f"{BILLING}/v1",
        claims={"aud": f"{BILLING}/v1"},
    )
    for identity, code, about, change in (
        ("assertion-of-the-parent", "leaf_mismatch", "iss is the agent above", {"iss": agent(0)}),
        ("assertion-of-another-principal", "leaf_mismatch", "sub is another principal", {"sub": "U019488228"}),
        ("assertion-of-another-session", "leaf_mismatch", "txn is another transaction", {"txn": "ses_2"}),
        ("grant_hash-of-parent", "grant_mismatch", "grant_hash of the parent", {"grant_hash": sha256(two.compacts[1])}),
        ("grant_hash-of-signing-input", "grant_mismatch", "grant_hash of the leaf without its signature", {"grant_hash": sha256(two.compacts[0].rpartition(".")[0])}),
        ("grant_hash-of-another-leaf", "grant_mismatch", "grant_hash of another leaf of the same agent", {"grant_hash": sha256(chain(2, (1, {"jti": "x"})).compacts[0])}),
    ):  # fmt: skip
        yield bad_call("assertion", identity, code, about, two, claims=change)
    one = chain(1)
    text, _, signature = one.compacts[0].rpartition(".")
    resealed = one.remade(f"{text}.{high_s(signature)}")
    yield bad_call(
        "assertion",
        "leaf-signed-again",
        "grant_mismatch",
        "the leaf with another signature, which grant_hash covers",
        resealed,
        claims={"grant_hash": sha256(one.compacts[0])},
    )
    yield bad_call(
        "assertion",
        "leaf-removed",
        "leaf_mismatch",
        "the leaf is left out, its parent stays",
        two,
        chain=[two.compacts[1]],
    )
    approval = {
        "id": "apr_1",
        "by": agent(0),
        "method": "prompt",
        "at": NOW - 20,
        "digest": "sha-256:x",
        "evidence": "asserted",
    }
    yield bad_call(
        "assertion",
        "approved-by-an-actor",
        "approval_by_actor",
        "an agent of the chain approved its own call",
        two,
        claims={"approval": approval},
    )


# -- the doors -----------------------------------------------------------------------------------------------------------


def doors() -> Iterator[Case]:
    rule = "door"
    two = chain(2)
    for identity, code, about, change in (
        ("use-record", "not_for_sending", "an assertion for the ledger", {"use": "record"}),
        ("use-other", "not_for_sending", "an assertion for another use", {"use": "call"}),
        ("aud-local", "not_for_sending", "an assertion of a local tool", {"aud": LOCAL}),
        ("call-jti-of-a-request", "wrong_door", "the jti of a request", {"jti": f"{CALL_ID}.1"}),
        ("call-jti-other", "wrong_door", "a jti that isn't the call's", {"jti": "call_2"}),
        ("call-jti-r0", "wrong_door", "a round that begins with a zero", {"jti": f"{CALL_ID}.r0"}),
        ("call-jti-r01", "wrong_door", "a round with a leading zero", {"jti": f"{CALL_ID}.r01"}),
        ("call-jti-twice", "wrong_door", "a round of a round", {"jti": f"{CALL_ID}.r1.r2"}),
        ("call-jti-r-foreign-digit", "wrong_door", "a round in digits of another script", {"jti": f"{CALL_ID}.r\uff11"}),
        ("call-with-htm", "wrong_door", "a call that names a method", {"htm": "POST"}),
        ("call-with-htu", "wrong_door", "a call that names an URL", {"htu": f"{BILLING}/journal"}),
        ("call-with-htq", "wrong_door", "a call that names a query", {"htq": sha256("x")}),
        ("call-with-content_digest", "wrong_door", "a call that names a body", {"content_digest": sha256(BODY)}),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, two, claims=change)
    everything = {
        n: v
        for n, v in request_claims(two).items()
        if n in {"jti", "htm", "htu", "htq", "content_digest"}
    }
    yield bad_call(
        rule,
        "request-at-the-door-of-calls",
        "wrong_door",
        "an assertion of a request where a call is seen",
        two,
        claims=everything,
    )
    local = chain(2)
    yield no(
        "not_for_sending",
        rule,
        call("service-local", "a service that calls itself local", local, claims={"aud": LOCAL})
        | {"audience": LOCAL},
    )
    for identity, about, change in (
        ("request-jti-of-a-call", "the jti of a call", {"jti": CALL_ID}),
        ("request-jti-0", "the request before the first", {"jti": f"{CALL_ID}.0"}),
        ("request-jti-01", "a number with a leading zero", {"jti": f"{CALL_ID}.01"}),
        ("request-jti-resent", "the jti of a call that is sent again", {"jti": f"{CALL_ID}.r1"}),
        ("request-jti-other", "the jti of another call", {"jti": "call_2.1"}),
        ("request-jti-negative", "a negative number", {"jti": f"{CALL_ID}.-1"}),
    ):
        yield bad_request(rule, identity, "wrong_door", about, two, claims=change)
    unbound = dict.fromkeys(("htm", "htu", "htq", "content_digest"), DROP) | {"jti": CALL_ID}
    yield bad_request(
        rule,
        "call-at-the-door-of-requests",
        "wrong_door",
        "an assertion of a call where a request is seen",
        two,
        claims=unbound,
    )
    yield bad_request(
        rule,
        "request-use-record",
        "not_for_sending",
        "an assertion for the ledger, in a header",
        two,
        claims={"use": "record"},
    )
    headers = [["Agent-Delegation", ", ".join(two.compacts)]]
    yield bad_request(
        rule,
        "assertion-missing",
        "assertion_missing",
        "a chain without assertion",
        two,
        headers=headers,
    )


def calls() -> Iterator[Case]:
    rule = "call"
    two = chain(2)
    good = call_claims(two)["call"]
    yield bad_call(rule, "other-tool", "tool_mismatch", "another tool", two, tool="book_totals")
    yield bad_call(
        rule, "other-tool-case", "tool_mismatch", "the tool in another case", two, tool="Book_total"
    )
    for identity, about, args in (
        ("other-args", "another value", ARGS | {"total": 1680.51}),
        ("argument-added", "an argument more", ARGS | {"note": None}),
        ("argument-left-out", "an argument less", {n: v for n, v in ARGS.items() if n != "lines"}),
        ("argument-type", "a text in place of a number", ARGS | {"total": "1680.5"}),
        ("argument-bool", "1 in place of true", ARGS | {"lines": [1, 1, None]}),
        ("argument-list-order", "a list in another order", ARGS | {"lines": [True, 1, None]}),
    ):
        yield no("args_mismatch", rule, call(identity, about, two) | {"args": args})
    composed = call(
        "argument-composed", "the same letter, composed otherwise", two, args={"x": "\u00e4"}
    )
    yield no("args_mismatch", rule, composed | {"args": {"x": "a\u0308"}})
    huge = call("argument-2-to-the-53", "2^53, which not everybody reads alike", two)
    yield no("undigestible_argument", rule, huge | {"args": {"n": 9007199254740992}})
    deep: Any = []
    for _ in range(31):
        deep = [deep]
    nested = call("argument-33-levels", "nested 33 levels", two)
    yield no("undigestible_argument", rule, nested | {"args": {"x": deep}})
    for identity, about, value in (
        (
            "args_hash-of-plain-json",
            "a digest of JSON with spaces",
            "sha-256:" + sha256(json.dumps(ARGS)),
        ),
        ("args_hash-hex", "a digest in hex", "sha-256:" + unb64(args_hash(ARGS)[8:]).hex()),
        ("args_hash-padded", "a digest with padding", args_hash(ARGS) + "="),
    ):
        yield bad_call(
            rule,
            identity,
            "args_mismatch",
            about,
            two,
            claims={"call": good | {"args_hash": value}},
        )


def requests() -> Iterator[Case]:
    rule = "request"
    two = chain(2)
    said = call_claims(two)["call"]
    digest = args_hash(ARGS)
    for identity, about, value in (
        ("args_hash-cut", "a digest of arguments that is cut", digest[:-1]),
        ("args_hash-empty", "a digest of arguments without any digits", "sha-256:"),
        ("args_hash-in-hex", "a digest of arguments in hex", "sha-256:" + unb64(digest[8:]).hex()),
        ("args_hash-with-padding", "a digest of arguments with padding", digest + "="),
        ("args_hash-plus", "a digest of arguments in another alphabet", "sha-256:" + "+" * 43),
        ("args_hash-loose-bits", "a digest with bits over", "sha-256:" + "A" * 42 + "B"),
        ("args_hash-long", "a digest of arguments that is too long", digest + "AAAA"),
        ("args_hash-prefix-twice", "a prefix that comes twice", "sha-256:" + digest),
    ):
        claims = {"call": said | {"args_hash": value}}
        yield bad_request(rule, identity, "digest_malformed", about, two, claims=claims)
    for identity, code, about, seen in (
        ("other-method", "method_mismatch", "another method", {"method": "PUT"}),
        ("other-method-case", "method_mismatch", "the method in lower case", {"method": "post"}),
        ("other-path", "url_mismatch", "another path", {"url": f"{BILLING}/ledger?dry=1"}),
        ("other-path-slash", "url_mismatch", "a slash more", {"url": f"{BILLING}/journal/?dry=1"}),
        ("other-path-case", "url_mismatch", "a path in another case", {"url": f"{BILLING}/Journal?dry=1"}),
        ("other-path-escaped-slash", "url_mismatch", "an escaped slash is none", {"url": f"{BILLING}/%2fjournal?dry=1"}),
        ("other-host", "url_mismatch", "another host", {"url": "https://billing.example.net/journal?dry=1"}),
        ("other-port", "url_mismatch", "another port", {"url": f"{BILLING}:8443/journal?dry=1"}),
        ("other-scheme", "url_mismatch", "http in place of https", {"url": "http://billing.example/journal?dry=1"}),
        ("other-query", "query_mismatch", "another query", {"url": f"{BILLING}/journal?dry=0"}),
        ("query-dropped", "query_mismatch", "a query that is gone", {"url": f"{BILLING}/journal"}),
        ("query-added", "query_mismatch", "a query with more", {"url": f"{URL}&x"}),
        ("query-escaped", "query_mismatch", "the same query, escaped otherwise", {"url": f"{BILLING}/journal?dr%79=1"}),
        ("url-relative", "url_malformed", "a path alone", {"url": "/journal?dry=1"}),
        ("url-userinfo", "url_malformed", "a user within the URL", {"url": "https://x@billing.example/journal?dry=1"}),
        ("url-not-ascii", "url_malformed", "a letter that isn't ASCII", {"url": f"{BILLING}/jöurnal?dry=1"}),
        ("url-backslash", "url_malformed", "a backslash", {"url": f"{BILLING}\\journal?dry=1"}),
        ("url-percent", "url_malformed", "a percent sign that begins no escape", {"url": f"{BILLING}/journal%?dry=1"}),
        ("url-port", "url_malformed", "a port that there isn't", {"url": f"{BILLING}:65536/journal?dry=1"}),
        ("other-body", "body_mismatch", "another body", {"body": '{"total":1680.6}'}),
        ("url-with-fragment", "url_malformed", "the same URL with a fragment", {"url": f"{URL}#top"}),
        ("url-with-dot-segment", "url_malformed", "a way there through a dot segment", {"url": f"{BILLING}/x/../journal?dry=1"}),
        ("url-with-escaped-dots", "url_malformed", "the dots of that as escapes", {"url": f"{BILLING}/x/%2e%2E/journal?dry=1"}),
        ("body-spelled-otherwise", "body_mismatch", "the same JSON with a space", {"body": '{"total": 1680.5}'}),
        ("body-gone", "body_mismatch", "an empty body", {"body": ""}),
        ("body-unread", "body_unbound", "a body that wasn't read", {"body": None}),
    ):  # fmt: skip
        yield bad_request(rule, identity, code, about, two, **seen)
    for identity, code, about, change in (
        ("htm-missing", "method_mismatch", "an assertion without method", {"htm": DROP}),
        ("htu-missing", "url_mismatch", "an assertion without URL", {"htu": DROP}),
        ("htu-with-query", "url_mismatch", "htu with the query", {"htu": URL}),
        ("htu-not-normalised", "url_mismatch", "htu with the default port", {"htu": f"{BILLING}:443/journal"}),
        ("htq-missing", "query_mismatch", "an assertion without the query's hash", {"htq": DROP}),
        ("htq-with-question-mark", "query_mismatch", "htq of the query and its question mark", {"htq": sha256("?dry=1")}),
        ("content_digest-missing", "body_unbound", "an assertion that binds no body", {"content_digest": DROP}),
        ("content_digest-of-rfc-9530", "body_mismatch", "content_digest as RFC 9530 writes it", {"content_digest": f"sha-256=:{sha256(BODY)}=:"}),
    ):  # fmt: skip
        yield bad_request(rule, identity, code, about, two, claims=change)
    empty = {"url": f"{BILLING}/journal", "claims": {"htq": sha256("")}}
    yield bad_request(
        rule, "htq-of-nothing", "query_mismatch", "htq where there is no query", two, **empty
    )
    assertion = asserted(two, request_claims(two))
    delegation = ", ".join(two.compacts)
    good = [["Agent-Assertion", assertion], ["Agent-Delegation", delegation]]
    for identity, about, more in (
        ("assertion-twice", "two assertions", ["agent-assertion", assertion]),
        ("delegation-twice", "the chain twice", ["agent-delegation", delegation]),
    ):
        yield bad_request(
            rule, f"header-{identity}", "header_repeated", about, two, headers=[*good, more]
        )
    spread = [
        ["Agent-Assertion", assertion],
        *(["Agent-Delegation", each] for each in two.compacts),
    ]
    yield bad_request(
        rule,
        "header-delegation-spread",
        "header_repeated",
        "the chain over two headers",
        two,
        headers=spread,
    )
    yield bad_request(
        rule,
        "chain-missing",
        "chain_missing",
        "an assertion without a chain",
        two,
        headers=good[:1],
    )
    holed = [good[0], ["Agent-Delegation", f"{two.compacts[0]},, {two.compacts[1]}"]]
    yield bad_request(
        rule, "chain-with-a-hole", "chain_malformed", "an empty member", two, headers=holed
    )
    yield bad_request(
        rule,
        "behind-a-proxy-relative",
        "url_malformed",
        "a path alone, behind a proxy",
        two,
        url="/journal?dry=1",
        public_url=BILLING,
    )
    yield bad_request(
        rule,
        "behind-another-proxy",
        "url_mismatch",
        "public_url isn't what the caller signed",
        two,
        public_url="https://billing.example/v1",
    )


# -- what comes along ----------------------------------------------------------------------------------------------------


def tokens() -> Iterator[Case]:
    rule = "token"
    two = chain(2)
    opaque, bound = "opaque-token", access_token(two)
    yield bad_call(
        rule,
        "ath-without-token",
        "token_mismatch",
        "the hash of a token that isn't there",
        two,
        claims={"ath": sha256(opaque)},
    )
    yield bad_call(
        rule,
        "token-without-ath",
        "token_mismatch",
        "a token that nobody asserted",
        two,
        token=opaque,
    )
    yield bad_call(
        rule,
        "other-token",
        "token_mismatch",
        "another token than was asserted",
        two,
        claims={"ath": sha256(opaque)},
        token=opaque + "x",
    )
    yield bad_call(
        rule,
        "token-16-kib-and-1",
        "token_too_large",
        "a token of 16 KiB and a byte",
        two,
        claims={"ath": sha256("A" * 16385)},
        token={"repeat": "A", "times": 16385},
    )
    anonymous = access_token(two, sub=DROP)
    text, _, signature = bound.rpartition(".")
    broken = f"{text}.{high_s(signature)[:-4]}AAAA"
    for identity, code, about, token in (
        ("token-of-another-principal", "subject_mismatch", "a token of another principal", access_token(two, sub="U019488228")),
        ("token-of-nobody", "subject_mismatch", "a token without a principal", anonymous),
        ("token-for-another", "token_audience", "a token for another service", access_token(two, aud=MAIL)),
        ("token-for-several", "token_audience", "a token for this service and another", access_token(two, aud=[BILLING, MAIL])),
        ("token-expired", "expired", "a token that ended 30 s ago", access_token(two, exp=NOW - 30, iat=NOW - 90)),
        ("token-not-yet", "not_yet_valid", "a token that begins in 31 s", access_token(two, nbf=NOW + 31)),
        ("token-long-lived", "lifetime_too_long", "a token for more than a day", access_token(two, exp=NOW + 24 * 3600)),
        ("token-without-life", "malformed_claim", "a token that ends before it begins, within the skew", access_token(two, iat=NOW + 10, exp=NOW + 5)),
        ("token-exp-text", "malformed_claim", "a token whose end is a text", access_token(two, exp="tomorrow")),
        ("token-without-exp", "missing_claim", "a token without end", access_token(two, exp=DROP)),
        ("token-signature", "bad_signature", "a token of a known issuer with another signature", broken),
        ("token-bound-to-another", "binding_mismatch", "a token that is bound to another key", access_token(two, cnf={"jkt": holder(0).jkt})),
        ("token-bound-to-a-number", "binding_mismatch", "a token that is bound to a number", access_token(two, cnf={"jkt": 5})),
        ("token-bound-by-certificate", "binding_mismatch", "a token that is bound to a certificate", access_token(two, cnf={"x5t#S256": "x"})),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, two, claims={"ath": sha256(token)}, token=token)
    partner = key("partner")
    claims_ = {
        "iss": "https://partner.example",
        "sub": two.leaf["sub"],
        "aud": BILLING,
        "iat": NOW,
        "exp": NOW + 60,
    }
    theirs = signed(partner, {"typ": "at+jwt", "alg": partner.alg, "kid": partner.jkt}, claims_)
    trusted = [
        *anchor()["anchors"],
        {"issuer": "https://partner.example", "jwks": published(partner), "evidence": "issuer"},
    ]
    yield bad_call(
        rule,
        "token-of-another-anchor",
        "subject_mismatch",
        "a token of an anchor that is neither the chain's nor the principal's",
        two,
        claims={"ath": sha256(theirs)},
        token=theirs,
        anchors=trusted,
    )
    idp = "https://idp.example"
    employed = chain(2, (0, {"sub_iss": idp}))
    issued = access_token(employed, iss=idp, sub="U019488228")
    yield bad_call(
        rule,
        "token-of-the-principals-issuer",
        "subject_mismatch",
        "another principal's token of an issuer that is no anchor, but the principal's",
        employed,
        claims={"ath": sha256(issued)},
        token=issued,
        **anchor(subjects=[idp]),
    )
    yield bad_call(
        rule,
        "token-not-ascii",
        "token_mismatch",
        "a token with a letter that isn't ASCII",
        two,
        claims={"ath": sha256("tök")},
        token="tök",
    )
    foreign = access_token(
        two, iss="https://elsewhere.example", sub="x", cnf={"jkt": holder(7).jkt}
    )
    yield bad_call(
        rule,
        "token-of-unknown-issuer-bound-to-another",
        "binding_mismatch",
        "the token's issuer isn't known, its binding can be read",
        two,
        claims={"ath": sha256(foreign)},
        token=foreign,
    )
    plain = access_token(two, cnf=DROP)
    for identity, code, about, other in (
        ("bound-token-as-bearer", "binding_ignored", "a bound token as a plain bearer", with_token(two, bound, "Bearer")),
        ("unbound-token-as-dpop", "binding_mismatch", "a token that is bound to nothing, with a proof", with_token(two, plain)),
        ("scheme-unknown", "scheme_unknown", "a token under Basic", with_token(two, bound, "Basic")),
        ("proof-of-another-key", "proof_mismatch", "a proof of another key", with_token(two, bound, signer=holder(0))),
        ("proof-of-another-method", "dpop_method", "a proof for another method", with_token(two, bound, htm="GET")),
        ("proof-of-another-url", "dpop_url", "a proof for another URL", with_token(two, bound, htu=f"{BILLING}/ledger")),
        ("proof-url-relative", "dpop_url", "a proof for a path alone", with_token(two, bound, htu="/journal")),
        ("proof-of-another-token", "dpop_token", "a proof for another token", with_token(two, bound, ath=sha256(plain))),
        ("proof-old", "dpop_stale", "a proof of 301 s ago", with_token(two, bound, iat=NOW - 301)),
        ("proof-from-the-future", "dpop_stale", "a proof from in 31 s", with_token(two, bound, iat=NOW + 31)),
        ("proof-without-jti", "claim_missing", "a proof without jti", with_token(two, bound, jti=DROP)),
    ):  # fmt: skip
        yield bad_request(rule, identity, code, about, two, **other)
    no_proof = with_token(two, bound)
    keyless = signed(holder(1), {"typ": "dpop+jwt", "alg": "Ed25519"}, {"htm": "POST"})
    odd = signed(
        holder(1), {"typ": "dpop+jwt", "alg": "Ed25519", "jwk": {"kty": "AKP"}}, {"htm": "POST"}
    )
    more = [no_proof["more"][0], ["DPoP", odd]]
    yield bad_request(
        rule,
        "proof-key-unknown",
        "dpop_key",
        "a proof whose key is of no known kind",
        two,
        **no_proof | {"more": more},
    )
    more = [no_proof["more"][0], ["DPoP", keyless]]
    yield bad_request(
        rule,
        "proof-without-key",
        "dpop_key",
        "a proof that carries no key",
        two,
        **no_proof | {"more": more},
    )
    yield bad_request(
        rule,
        "proof-missing",
        "proof_missing",
        "a bound token without proof",
        two,
        **no_proof | {"more": no_proof["more"][:1]},
    )
    yield bad_request(
        rule,
        "authorization-twice",
        "header_repeated",
        "two tokens",
        two,
        **no_proof | {"more": [*no_proof["more"], no_proof["more"][0]]},
    ) | {"rule": "request"}
    chain_ = ["Agent-Delegation", ", ".join(two.compacts)]
    loose = proof(two, opaque)
    for identity, code, about, headers in (
        ("unasserted-without-token", "token_unbound", "neither assertion nor token", []),
        ("unasserted-bearer", "token_unbound", "a bearer without assertion", [["Authorization", f"Bearer {plain}"]]),
        ("unasserted-opaque", "token_unverified", "an opaque token without assertion", [["Authorization", f"DPoP {opaque}"], ["DPoP", loose]]),
        ("unasserted-unbound", "binding_mismatch", "a token that is bound to nothing, without assertion", [["Authorization", f"DPoP {plain}"], ["DPoP", proof(two, plain)]]),
    ):  # fmt: skip
        yield bad_request(
            rule, identity, code, about, two, headers=[chain_, *headers], allow=["unasserted"]
        )
    here = access_token(two, aud=LOCAL)
    headers = [chain_, ["Authorization", f"DPoP {here}"], ["DPoP", proof(two, here)]]
    local = request(
        "service-local-unasserted",
        "a service that calls itself local, without assertion",
        two,
        headers=headers,
        allow=["unasserted"],
        audience=LOCAL,
    )
    yield no("audience_mismatch", "audience", local)


def scopes() -> Iterator[Case]:
    two = chain(2)
    yield bad_call(
        "scope",
        "scope-needed",
        "insufficient_scope",
        "a scope that nobody in the chain has",
        two,
        scopes=["invoices:pay"],
    )
    given_up = chain(2, (1, {"scope": "invoices:read"}))
    yield bad_call(
        "scope",
        "scope-given-up",
        "insufficient_scope",
        "a scope that hop 0 has and the leaf doesn't",
        given_up,
    )
    narrow = access_token(two, scope="invoices:read")
    yield bad_call(
        "scope",
        "scope-not-in-token",
        "insufficient_scope",
        "a scope that the chain has and the token doesn't",
        two,
        claims={"ath": sha256(narrow)},
        token=narrow,
    )


def revocations_() -> Iterator[Case]:
    rule = "revocation"
    two = chain(2)
    for identity, about, ref in (
        ("revoked-principal", "the principal by its name", "user:U019488227"),
        (
            "revoked-principal-of-issuer",
            "the principal by issuer and name",
            f"user:{ANCHOR}#U019488227",
        ),
        ("revoked-session", "the transaction", "ses_00000000000000000000000000000001"),
        ("revoked-root", "the grant of hop 0", "grant_00000000000000000000000000000000"),
        ("revoked-leaf", "the grant of hop 1", f"grant_{1:032}"),
        ("revoked-agent", "the agent of hop 0", agent(0)),
        ("revoked-leaf-agent", "the agent of hop 1", agent(1)),
        ("revoked-instance", "the key of hop 0", holder(0).jkt),
        ("revoked-all", "everything", "*"),
    ):
        yield bad_call(
            rule, identity, "revoked", about, two, **revoked(("user:bob", NOW), (ref, NOW - 10))
        )
    token = access_token(two)
    yield bad_call(
        rule,
        "revoked-token",
        "revoked",
        "the access token",
        two,
        claims={"ath": sha256(token)},
        token=token,
        **revoked(("token_1", NOW)),
    )
    late = chain(2, (1, {"iat": NOW}))
    yield bad_call(
        rule,
        "revoked-between-hops",
        "revoked",
        "the leaf says that it is younger than the revocation, the root is older",
        late,
        **revoked((agent(1), NOW - 5)),
    )
    trust = revoked()["anchors"][0]

    def listed(identity: str, code: str, about: str, given: Any) -> Case:
        anchors_ = [trust | {"revocations": trust["revocations"] | given}]
        return bad_call(rule, identity, code, about, two, anchors=anchors_)

    yield listed(
        "list-missing", "revocations_missing", "no list, where one is asked for", {"list": None}
    )
    yield listed(
        "list-stale",
        "revocations_stale",
        "a list older than an hour",
        {"list": revocations(iat=NOW - 3630, exp=NOW + 60)},
    )
    yield listed(
        "list-expired",
        "expired",
        "a list that ended",
        {"list": revocations(iat=NOW - 90, exp=NOW - 30)},
    )
    yield listed(
        "list-from-the-future",
        "not_yet_valid",
        "a list from the future",
        {"list": revocations(iat=NOW + 31)},
    )
    yield listed(
        "list-of-another-anchor",
        "issuer_mismatch",
        "the list of another anchor",
        {"list": revocations(iss="https://partner.example")},
    )
    yield listed(
        "list-by-stranger",
        "unknown_key",
        "a list that a stranger signed",
        {"list": revocations(signer=key("stranger"))},
    )
    yield listed(
        "list-by-agent",
        "unknown_key",
        "a list that an agent signed",
        {"list": revocations(signer=holder(0))},
    )
    yield listed(
        "list-typ",
        "wrong_typ",
        "a list of another typ",
        {"list": revocations(typ="agent-grant+jwt")},
    )
    for identity, code, about, header in (
        ("list-header-unknown", "claim_unknown", "a list whose header says more", {"x": "y"}),
        (
            "list-header-jwk",
            "claim_unknown",
            "a list that brings its key beside the kid",
            {"jwk": key("operator").jwk},
        ),
        ("list-kid-missing", "claim_missing", "a list that names no key", {"kid": DROP}),
    ):
        yield listed(identity, code, about, {"list": revocations(header=header)})
    yield listed(
        "list-unknown-claim",
        "claim_unknown",
        "a list with a claim that has no rule",
        {"list": revocations(sub="x")},
    )
    yield listed(
        "list-entry-unknown",
        "claim_unknown",
        "an entry with a member that has no rule",
        {"list": revocations(revoked=[{"ref": "x", "at": 1, "why": "y"}])},
    )
    yield listed(
        "list-entry-malformed",
        "claim_malformed",
        "an entry that is a text",
        {"list": revocations(revoked=["user:bob"])},
    )
    yield listed(
        "list-of-no-list",
        "claim_malformed",
        "an object for what was revoked",
        {"list": revocations(revoked={"user:bob": NOW})},
    )
    for identity, about, claims in (
        ("list-iat-fraction", "a list made within a second", {"iat": NOW - 59.5}),
        ("list-exp-fraction", "a list that ends within a second", {"exp": NOW + 3539.5}),
        (
            "list-entry-at-fraction",
            "an entry of within a second",
            {"revoked": [{"ref": "user:bob", "at": NOW - 0.5}]},
        ),
    ):
        yield listed(identity, "claim_malformed", about, {"list": revocations(**claims)})
    yield listed(
        "list-without-life",
        "malformed_claim",
        "a list that ends before it begins, within the skew",
        {"list": revocations(iat=NOW + 10, exp=NOW + 5)},
    )
    yield listed(
        "list-seq-missing",
        "claim_missing",
        "a list without its number",
        {"list": revocations(seq=DROP)},
    )


def replays() -> Iterator[Case]:
    two = chain(2)
    yield bad_call("replay", "call-twice", "replayed", "the very same call", two, after=["hops-2"])
    yield bad_request(
        "replay", "request-twice", "replayed", "the very same request", two, after=["request"]
    )
    token = access_token(two)
    again = with_token(two, token)
    again["claims"] |= {"jti": f"{CALL_ID}.2"}
    yield bad_request(
        "replay",
        "proof-twice",
        "replayed",
        "another request of the call with the same proof",
        two,
        **again,
        after=["token-dpop"],
    )
    other = chain(2, (1, {"jti": "grant_other"}))
    yield bad_call(
        "replay",
        "call-under-another-grant",
        "replayed",
        "the same call below another grant of the same key",
        other,
        after=["hops-2"],
    )


def handovers() -> Iterator[Case]:
    rule = "handover"
    caller = chain(2)
    further = chain(3)
    for identity, code, about, handed in (
        ("handover-is-the-callers-own", "handover_mismatch", "the caller's own chain", caller.compacts),
        ("handover-two-below", "handover_mismatch", "two hops below the caller", chain(4).compacts),
        ("handover-beside", "handover_mismatch", "below another agent than the caller", chain(3, holders={1: holder(7)}).compacts),
        ("handover-above", "handover_mismatch", "below the agent above the caller", chain(2, holders={1: holder(7)}).compacts),
        ("handover-of-another-session", "handover_mismatch", "of another transaction", chain(3, (0, {"txn": "ses_2"})).compacts),
        ("handover-of-another-purpose", "handover_mismatch", "of another purpose", chain(3, (0, {"purpose": "x"})).compacts),
        ("handover-by-stranger", "key_mismatch", "signed by a stranger", chain(3, signer={2: key("stranger")}).compacts),
        ("handover-widened", "scope_widened", "with a scope that the caller lacks", chain(3, (2, {"scope": "invoices:pay"})).compacts),
        ("handover-back", "actor_repeated", "to a key that acts in the chain", chain(3, holders={2: holder(0)}).compacts),
    ):  # fmt: skip
        yield bad_call(rule, identity, code, about, caller, handover=handed)
    ended = chain(
        3,
        (2, {"exp": NOW - 30, "nbf": NOW - 40, "iat": NOW - 10}),
        (0, {"nbf": NOW - 40}),
        (1, {"nbf": NOW - 40}),
    )
    started = chain(2, (0, {"nbf": NOW - 40}), (1, {"nbf": NOW - 40}))
    yield bad_call(
        rule, "handover-expired", "expired", "whose time is over", started, handover=ended.compacts
    )
    revoked_ = revoked((agent(2), NOW))
    yield bad_call(
        rule,
        "handover-revoked",
        "revoked",
        "whose recipient was revoked",
        caller,
        handover=further.compacts,
        **revoked_,
    )
