# SPDX-License-Identifier: Apache-2.0
"""What an attacker does to a token, at the two doors of `agent_identity.jose`. Numbers are those of the case catalogue."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import socket
import zlib

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from agent_identity import jose
from agent_identity.canonical import args_digest
from agent_identity.errors import AgentIdentityError, DeniedError, VerificationError
from agent_identity.jose import public_keys, strict
from agent_identity.keys.algorithms import KEY_TYPES
from agent_identity.keys.signing import SigningKey
from agent_identity.values import b64url, unb64url

ALGORITHMS = frozenset(
    {
        *("ES256", "ES384", "ES512", "Ed25519", "EdDSA"),
        *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    }
)
KINDS = (
    "agent-grant+jwt",
    "agent-assertion+jwt",
    "agent-approval+jwt",
    "agent-revocations+jwt",
    "dpop+jwt",
    "at+jwt",
    "JWT",
)
GRANT = KINDS[0]
N = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # the order of P-256

P256 = SigningKey.generate()
ED25519 = SigningKey.generate("Ed25519")
P384_KEY = ec.generate_private_key(ec.SECP384R1())
P521_KEY = ec.generate_private_key(ec.SECP521R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)


def number(value, size=None):
    return b64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def rsa_jwk(modulus, exponent=65537):
    return {"kty": "RSA", "n": number(modulus), "e": number(exponent)}


def ec_jwk(crv, key, size):
    numbers = key.public_key().public_numbers()
    return {"kty": "EC", "crv": crv, "x": number(numbers.x, size), "y": number(numbers.y, size)}


JWKS = {
    "ES256": P256.public_jwk,
    "ES384": ec_jwk("P-384", P384_KEY, 48),
    "ES512": ec_jwk("P-521", P521_KEY, 66),
    "Ed25519": ED25519.public_jwk,
    "EdDSA": ED25519.public_jwk,
    **dict.fromkeys(
        ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
        rsa_jwk(RSA_KEY.public_key().public_numbers().n),
    ),
}
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}


def signature_of(alg, data):
    if alg in {"Ed25519", "EdDSA"}:
        return ED25519.sign(data)
    if alg == "ES256":
        return P256.sign(data)
    digest = HASHES[alg[2:]]
    if alg.startswith("ES"):
        key, size = (P384_KEY, 48) if alg == "ES384" else (P521_KEY, 66)
        r, s = decode_dss_signature(key.sign(data, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if alg.startswith("RS"):
        return RSA_KEY.sign(data, padding.PKCS1v15(), digest)
    pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)
    return RSA_KEY.sign(data, pss, digest)


def signed(header, payload=b'{"sub":"canary"}', alg="ES256"):
    """A token over these very bytes: a header of text is taken as it stands, one of members gets an `alg`."""
    if isinstance(header, dict):
        header = orjson.dumps({"alg": alg, **header})
    signing_input = f"{b64url(header)}.{b64url(payload)}"
    return f"{signing_input}.{b64url(signature_of(alg, signing_input.encode()))}"


def verify(token, keys=(P256.public_jwk,), *, algorithms=ALGORITHMS, **options):
    return jose.verify(token, keys, algorithms=algorithms, **options)


def refused(call, *arguments, **options):
    """The code of the refusal, which is the one thing that may come out and holds nothing of what came in."""
    with pytest.raises(VerificationError) as caught:
        call(*arguments, **options)
    assert "canary" not in f"{caught.value!r} {vars(caught.value)}"
    return caught.value.code


class Spies:
    """Counts what reaches base64, JSON and keys."""

    def __init__(self, monkeypatch):
        self.seen = {"base64": 0, "json": 0, "crypto": 0}
        for owner, name, what in (
            (jose, "unb64url", "base64"),
            (strict, "read", "json"),
            (public_keys, "is_valid", "crypto"),
        ):
            monkeypatch.setattr(owner, name, self._spied(getattr(owner, name), what))

    def _spied(self, function, what):
        def spied(*arguments):
            self.seen[what] += 1
            return function(*arguments)

        return spied

    def none(self):
        return not any(self.seen.values())


@pytest.fixture
def spies(monkeypatch):
    return Spies(monkeypatch)


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_a_token_of_each_algorithm_is_accepted_so_that_a_refusal_means_something(alg):
    payload = b'{"sub":"alice"}'
    token = signed({"typ": GRANT, "kid": "k"}, payload, alg)
    header, verified = verify(
        token, [{**JWKS[alg], "kid": "k", "alg": alg, "use": "sig"}], typ=GRANT
    )
    assert header == {"alg": alg, "typ": GRANT, "kid": "k"}
    assert verified == payload


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", "", None, 1, ["ES256"], {}])
@pytest.mark.parametrize("signature", ["", "AA", "valid"])
def test_A01_an_unsigned_token_is_refused(alg, signature):
    token = signed({"alg": alg})
    if signature != "valid":
        token = f"{token.rpartition('.')[0]}.{signature}"
    code = refused(verify, token, algorithms={*ALGORITHMS, "none", "None", "NONE", "nOnE", ""})
    assert code == ("malformed_token" if signature == "" else "alg_not_allowed")


def test_A01_a_token_without_alg_is_refused():
    assert refused(verify, signed(b"{}")) == "alg_not_allowed"


def public_forms():
    for private in (P256._private, RSA_KEY, P384_KEY, P521_KEY):
        public = private.public_key()
        pem, der, ssh = (
            public.public_bytes(encoding, form)
            for encoding, form in (
                (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
                (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo),
                (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH),
            )
        )
        yield from (pem, der, ssh, b" \n" + pem, pem.strip())
    yield from (json.dumps(jwk).encode() for jwk in (JWKS["ES256"], JWKS["RS256"]))


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_A03_a_signature_of_another_algorithm_or_key_is_refused(alg):
    """A signature is made under each other algorithm, also where the key fits both: RSA's six share one key here."""
    head = signed({}, alg=alg).rpartition(".")[0]
    others = [other for other in sorted(ALGORITHMS) if {alg, other} != {"EdDSA", "Ed25519"}]
    for other in set(others) - {alg}:
        forged = f"{head}.{b64url(signature_of(other, head.encode()))}"
        assert refused(verify, forged, [JWKS[alg]]) == "bad_signature"
    kind = JWKS[alg]["kty"]
    stranger = joserfc_key(kind, JWKS[alg].get("crv", 2048)).as_dict(private=False)
    assert refused(verify, signed({}, alg=alg), [stranger]) == "bad_signature"


@pytest.mark.filterwarnings("ignore:EdDSA is deprecated")
@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_a_token_that_another_library_signed_is_accepted(alg):
    key = joserfc_key(JWKS[alg]["kty"], JWKS[alg].get("crv", 2048))
    token = jws.serialize_compact({"alg": alg, "typ": GRANT}, b"{}", key, algorithms=[alg])
    _, payload = verify(token, [key.as_dict(private=False)], typ=GRANT)
    assert payload == b"{}"


def test_what_the_process_registers_with_pyjwt_changes_no_check():
    class Anything(jwt.algorithms.RSAAlgorithm):
        def verify(self, *_):
            return True

    token = signed({}, alg="RS384")
    jwt.unregister_algorithm("RS384")
    try:
        jwt.register_algorithm("RS384", Anything(Anything.SHA384))
        public_keys._algorithms.cache_clear()
        assert refused(verify, token[:-8] + "AAAAAAAA", [JWKS["RS384"]]) == "bad_signature"
        verify(token, [JWKS["RS384"]])
    finally:
        jwt.unregister_algorithm("RS384")
        jwt.register_algorithm("RS384", jwt.algorithms.RSAAlgorithm(hashes.SHA384))


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_A02_a_public_key_is_no_shared_secret(alg):
    head = f"{b64url(orjson.dumps({'alg': alg}))}.{b64url(b'{}')}"
    for secret in public_forms():
        mac = hmac.new(secret, head.encode(), f"sha{alg[2:]}").digest()
        for key in (P256.public_jwk, JWKS["RS256"], {"kty": "oct", "k": b64url(secret)}):
            code = refused(verify, f"{head}.{b64url(mac)}", [key], algorithms={*ALGORITHMS, alg})
            assert code == "alg_not_allowed"


@pytest.mark.parametrize(
    ("alg", "says"),
    [
        ("ES256", "ES384"),
        ("RS256", "PS256"),
        ("PS256", "RS256"),
        ("RS384", "RS256"),
        ("PS512", "PS384"),
        ("ES512", "ES384"),
        ("EdDSA", "Ed25519"),
        ("Ed25519", "EdDSA"),
        ("ES256", None),
        ("ES256", ["ES256"]),
    ],
)
def test_A03_a_key_is_used_with_the_algorithm_that_it_names(alg, says):
    token = signed({}, alg=alg)
    verify(token, [JWKS[alg]])
    assert refused(verify, token, [{**JWKS[alg], "alg": says}]) == "key_mismatch"


def test_A03_an_algorithm_is_used_with_its_kind_of_key():
    for alg in sorted(ALGORITHMS):
        for other in sorted(ALGORITHMS):
            if KEY_TYPES[alg] != KEY_TYPES[other]:
                assert refused(verify, signed({}, alg=alg), [JWKS[other]]) == "key_mismatch"


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_A03_an_algorithm_that_the_caller_does_not_allow_is_refused(alg):
    assert refused(verify, signed({}, alg=alg), [JWKS[alg]], algorithms=ALGORITHMS - {alg}) == (
        "alg_not_allowed"
    )


@pytest.mark.parametrize(
    "purpose",
    [
        {"use": "enc"},
        {"use": ""},
        {"use": None},
        {"use": ["sig"]},
        {"key_ops": ["sign"]},
        {"key_ops": []},
        {"key_ops": "verify"},
        {"key_ops": None},
        {"use": "sig", "key_ops": ["encrypt"]},
    ],
)
def test_A03_a_key_for_another_purpose_checks_no_signature(purpose):
    assert refused(verify, signed({}), [{**P256.public_jwk, **purpose}]) == "key_mismatch"
    verify(signed({}), [{**P256.public_jwk, "use": "sig", "key_ops": ["verify"]}])


@pytest.mark.parametrize(
    "member",
    [
        {"jwk": P256.public_jwk},
        {"jku": "https://127.0.0.1:1/jwks"},
        {"x5u": "https://127.0.0.1:1/cert"},
        {"x5c": ["AAAA"]},
        {"x5t#S256": "AAAA"},
    ],
)
def test_A04_a_key_in_the_header_is_neither_used_nor_fetched(member, monkeypatch):
    connections = []
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, lambda *given: connections.append(given))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **_: connections.append(given))
    stranger = SigningKey.generate()
    token = signed(member)
    assert refused(verify, token, [stranger.public_jwk]) == "bad_signature"
    assert refused(verify, token, []) == "unknown_key"
    verify(token)
    assert connections == []


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "cty", "typ"])
@pytest.mark.parametrize("value", [None, True, 1, 1.0])
def test_A04_a_member_of_another_type_is_refused_although_it_is_never_used(name, value):
    """Other readers refuse such a header, and what one of us takes all should take; found by fuzzing."""
    assert refused(verify, signed({name: value})) == "malformed_header"


@pytest.mark.parametrize(
    "member",
    [{"jwk": "key"}, {"jwk": []}, {"x5c": "AAAA"}, {"x5c": {}}, {"jku": {}}, {"typ": ["JWT"]}],
    ids=str,
)
def test_A04_neither_is_one_that_looks_like_it(member):
    assert refused(verify, signed(member)) == "malformed_header"


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_A04_a_private_key_where_a_public_one_belongs_is_refused(member):
    leaked = {**P256.public_jwk, member: "AAAA"}
    assert refused(verify, signed({"jwk": leaked})) == "key_private"
    assert refused(jose.unverified, signed({"jwk": leaked})) == "key_private"
    assert refused(verify, signed({}), [leaked]) == "key_private"


@pytest.mark.parametrize(
    "crit",
    [[], ["exp"], ["b64"], ["alg"], ["alg", "alg"], ["absent"], "alg", None, {}, 1, ["x"] * 9],
)
def test_A05_a_critical_extension_is_refused(crit):
    token = signed({"crit": crit, "exp": 1, "x": 1})
    assert refused(verify, token) == refused(jose.unverified, token) == "header_refused"


@pytest.mark.parametrize(
    "header",
    [
        b'{"alg":"none","alg":"ES256"}',
        b'{"alg":"ES256","alg":"ES256"}',
        b'{"alg":"ES256","\\u0061lg":"none"}',
        b'{"alg":"ES256","jwk":{"kty":"EC","kty":"EC"}}',
        b'{"alg":"ES256","x":[{"y":{"a":1,"a":1}}]}',
    ],
)
def test_A06_a_duplicate_name_in_the_header_is_refused(header):
    assert refused(verify, signed(header)) == "json_duplicate_name"


@pytest.mark.parametrize(
    "claims",
    [
        b'{"sub":"canary","sub":"canary"}',
        b'{"a":1,"\\u0061":1}',
        b'{"act":{"sub":"a","act":{"sub":"canary","sub":"b"}}}',
        b'[[[{"":0,"":0}]]]',
        b'{"a":1, "b":2, "a":1}',
        '{"\u00e9":1,"\\u00e9":2}'.encode(),
    ],
)
def test_A06_duplicate_claim_is_refused(claims):
    _, payload = verify(signed({}, claims))
    assert refused(jose.loads, payload) == "json_duplicate_name"


@pytest.mark.parametrize("actual", KINDS)
@pytest.mark.parametrize("expected", KINDS)
def test_A07_one_kind_of_token_does_not_pass_for_another(actual, expected):
    token = signed({"typ": actual})
    if actual == expected:
        verify(token, typ=expected)
    else:
        assert refused(verify, token, typ=expected) == "wrong_typ"


@pytest.mark.parametrize(
    "typ",
    [
        *(
            GRANT.upper(),
            GRANT.title(),
            f"application/{GRANT}",
            f" {GRANT}",
            f"{GRANT} ",
            f"{GRANT}\n",
        ),
        *("", None, 1, [GRANT], {GRANT: 1}, GRANT.removesuffix("+jwt"), "agent\u2010grant+jwt"),
    ],
)
def test_A07_a_typ_in_another_spelling_is_refused(typ):
    assert refused(verify, signed({"typ": typ}), typ=GRANT) == "wrong_typ"
    assert refused(verify, signed({}), typ=GRANT) == "wrong_typ"


def test_A07_an_access_token_has_the_two_spellings_of_rfc_9068_and_no_third():
    for typ in ("at+jwt", "application/at+jwt"):
        verify(signed({"typ": typ}), typ="at+jwt")
    for typ in ("AT+JWT", "application/AT+jwt", "application/application/at+jwt"):
        assert refused(verify, signed({"typ": typ}), typ="at+jwt") == "wrong_typ"
    assert refused(verify, signed({"typ": "at+jwt"}), typ="application/at+jwt") == "wrong_typ"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize(
    "literal",
    [
        *(
            '"1700000000"',
            "true",
            "null",
            "[1]",
            "{}",
            "-1",
            "-1e9",
            "253402300800",
            "9007199254740991.5",
            "1e300",
        ),
        *("9007199254740992", "18446744073709551616", "NaN", "Infinity", "-Infinity", "1e400"),
        pytest.param("1" * 4000, id="4000 digits"),
        pytest.param("1" * 32 + "e-20", id="36 characters"),
    ],
)
def test_A10_a_time_that_is_none_is_refused(claim, literal):
    claims = {"exp": "200", "iat": "100", "nbf": "100", claim: literal}
    text = ",".join(f'"{name}":{value}' for name, value in claims.items())

    def read():
        read_claims = jose.loads_object(f"{{{text}}}".encode())
        jose.check_lifetime(read_claims, now=150, skew=0, max_lifetime=None)

    assert refused(read) in {"malformed_claim", "json_number"}


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, False, 10**400, "1", None, 2**53]
)
def test_A10_claims_that_came_another_way_are_held_to_the_same(value):
    assert refused(jose.numeric_date, {"exp": value}, "exp") == "malformed_claim"


def test_A11_a_token_without_end_is_refused():
    def check(claims):
        jose.check_lifetime(claims, now=100, skew=30, max_lifetime=60)

    check({"iat": 100, "exp": 160})
    assert refused(check, {"iat": 100}) == "missing_claim"
    assert refused(check, {"iat": 100, "exp": 161}) == "lifetime_too_long"
    assert refused(check, {"iat": 70, "exp": 131}) == "lifetime_too_long"
    assert refused(check, {"exp": 160}) == "missing_claim"


@pytest.mark.parametrize("door", [verify, jose.unverified])
def test_A12_a_token_of_more_than_16_kib_is_refused_unread(door, spies):
    def padded(size):
        token = signed({}, b"{}")
        return token.replace(".", "." + "A" * (size - len(token)), 1)

    assert len(padded(16385)) == 16385
    assert refused(door, padded(16385)) == "token_too_large"
    assert spies.none()
    if door is verify:
        assert refused(door, padded(16384)) != "token_too_large"
    else:
        door(padded(16384))


@pytest.mark.parametrize("door", [verify, jose.unverified])
def test_A12_a_header_of_more_than_1_kib_is_refused_unread(door, spies):
    def header(size):
        text = b'{"alg":"ES256","x":""}'
        return text.replace(b'""', b'"' + b"x" * (size - len(text)) + b'"')

    assert refused(door, signed(header(1025)), max_header=jose.MAX_HEADER) == "header_too_large"
    assert spies.none()
    door(signed(header(1024)), max_header=jose.MAX_HEADER)
    door(signed(header(1025)))


def test_A12_an_unencoded_payload_is_refused_before_it_is_looked_at(spies):
    for b64 in (False, True, None):
        assert refused(verify, signed({"b64": b64})) == "header_refused"
    assert refused(verify, signed({"b64": False, "crit": ["b64"]})) == "header_refused"
    assert spies.seen == {
        "base64": 4,
        "json": 4,
        "crypto": 0,
    }  # the headers, and nothing after them


def test_A13_an_encrypted_or_compressed_token_is_refused(monkeypatch, spies):
    inflated, derived = [], []
    monkeypatch.setattr(zlib, "decompress", lambda *_, **__: inflated.append(1))
    monkeypatch.setattr(zlib, "decompressobj", lambda *_, **__: inflated.append(1))
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", lambda *_, **__: derived.append(1))
    bomb = zlib.compress(b"0" * 10_000)
    assert refused(verify, signed({"zip": "DEF"}, bomb)) == "header_refused"
    assert refused(verify, signed({"enc": "A256GCM"})) == "header_refused"
    stretched = {"alg": "PBES2-HS256+A128KW", "p2c": 2**31 - 1, "p2s": "AAAA"}
    assert refused(verify, signed(stretched)) == "alg_not_allowed"
    head = b64url(orjson.dumps(stretched | {"enc": "A256GCM"}))
    assert refused(verify, f"{head}.AAAA.AAAA.AAAA.AAAA") == "malformed_token"
    assert not inflated
    assert not derived
    assert spies.seen["crypto"] == 0


@pytest.mark.parametrize("depth", [33, 900, 20_000, 1_000_000])
@pytest.mark.parametrize("shape", ["[", '{"a":', '[{"a":'])
def test_A14_json_nested_without_end_is_refused(depth, shape):
    closing = shape.replace('"a":', "").translate(str.maketrans("[{", "]}"))[::-1]
    repeats = -(-depth // len(closing))
    opened = (shape * repeats).encode()
    for data in (opened, opened + b"1" + closing.encode() * repeats):
        assert refused(jose.loads, data) == "json_too_deep"
    if depth <= 900:
        nested = b'{"alg":"ES256","x":' + opened + b"1" + closing.encode() * repeats + b"}"
        assert refused(verify, signed(nested)) == "json_too_deep"


def test_A14_the_parser_never_sees_json_that_is_too_deep(monkeypatch):
    parsed = []
    monkeypatch.setattr(strict, "_decode", parsed.append)
    monkeypatch.setattr(strict.orjson, "loads", parsed.append)
    assert refused(jose.loads, b"[" * 33 + b"]" * 33) == "json_too_deep"
    assert parsed == []


@pytest.mark.parametrize(
    "data",
    [
        b'\xef\xbb\xbf{"a":1}',
        *(json.dumps({"a": 1}).encode(codec) for codec in ("utf-16", "utf-32")),
        *(
            '{"a":1}'.encode(codec)
            for codec in ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
        ),
        b'{"a":"\xc0\xaf"}',
        b'{"a":"\xe0\x80\xaf"}',
        b'{"a":"\xff"}',
        b'{"a":"\xc3"}',
        b'{"a":"\xf4\x90\x80\x80"}',
        b'{"a":"\x00"}',
        b'{"a":1}\x00',
        b"\x00",
    ],
)
def test_A15_text_that_is_not_utf_8_is_refused(data):
    assert refused(jose.loads, data) == "json_not_utf8"
    assert refused(verify, signed(data)) == "json_not_utf8"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (rb'"\ud800"', "json_lone_surrogate"),
        (rb'"\uDFFF canary"', "json_lone_surrogate"),
        (rb'"\ude00\ud83d"', "json_lone_surrogate"),
        (rb'"\ud83d\ud83d\ude00"', "json_lone_surrogate"),
        (rb'"\\\ud800"', "json_lone_surrogate"),
        (b'"\xed\xa0\x80"', "json_not_utf8"),
        (b'"\xed\xa0\xbd\xed\xb8\x80"', "json_not_utf8"),
    ],
)
def test_A16_a_lone_surrogate_is_refused_in_names_and_in_values(text, code):
    for data in (text, b"[" + text + b"]", b"{" + text + b":1}", b'{"a":[{"b":' + text + b"}]}"):
        assert refused(jose.loads, data) == code
    assert refused(verify, signed(b'{"alg":"ES256","kid":' + text + b"}")) == code


def test_A16_a_lone_surrogate_in_an_argument_is_refused_even_in_its_name():
    for arguments in ({"a": "\ud800"}, {"\ud800": 1}, {"a": [{"\udfff": 1}]}):
        with pytest.raises(DeniedError) as caught:
            args_digest(arguments)
        str(caught.value).encode()


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text + "=",
        lambda text: text + "==",
        lambda text: text + " ",
        lambda text: " " + text,
        lambda text: text + "\n",
        lambda text: text[:4] + "\n" + text[4:],
        lambda text: text[:-1] + "+",
        lambda text: text[:-1] + "/",
        lambda text: text + "A" * (-(len(text) + 3) % 4),
        lambda text: text[:-1] + chr(ord(text[-1]) + 1),
        lambda text: text[:-1] + "\u00e9",
    ],
)
def test_A17_a_second_spelling_of_base64url_is_refused(part, spoil):
    # of a length that leaves unused bits in the last character of each part
    parts = signed(b'{"alg":"ES256" }', b"{ }x").split(".")
    assert [len(text) % 4 for text in parts] == [2, 2, 2]
    verify(".".join(parts))
    parts[part] = spoil(parts[part])
    assert refused(verify, ".".join(parts)) in {"malformed_base64", "malformed_token"}


@pytest.mark.parametrize(
    "kid",
    [
        *("../../../../dev/null", "' OR '1'='1", "https://127.0.0.1:1/key", "k\x00", "K", "k ", ""),
        pytest.param("k" * 10_000, id="10 KB"),
    ],
)
def test_A18_a_kid_is_looked_up_exactly(kid, monkeypatch):
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(socket, "socket", None)
    keys = [{**P256.public_jwk, "kid": "k"}, P256.public_jwk]
    assert refused(verify, signed({"kid": kid}), keys) == "unknown_key"
    verify(signed({"kid": "k"}), keys)


@pytest.mark.parametrize("kid", [{"k": 1}, ["k"], 1, True, None])
def test_A18_a_kid_is_text(kid):
    keys = [{**P256.public_jwk, "kid": kid}]
    assert refused(verify, signed({"kid": kid}), keys) == "malformed_header"
    assert refused(jose.unverified, signed({"kid": kid})) == "malformed_header"


def test_A21_only_the_compact_serialisation_is_a_token():
    head, body, signature = signed({}).split(".")
    flat = {"protected": head, "payload": body, "signature": signature}
    several = {"payload": body, "signatures": [{"protected": head, "signature": signature}] * 2}
    for text in (
        *(json.dumps(form) for form in (flat, several, {"payload": body, "signatures": []})),
        *(f"{head}.{body}", f"{head}.{body}.", f"{head}..{signature}", f".{body}.{signature}"),
        *(f"{head}.{body}.{signature}.", f"{head}.{body}.{signature}.{signature}", "", "..", "."),
        *(f".{head}.{body}.{signature}", "a.b.c.d.e"),
    ):
        assert refused(verify, text) == "malformed_token"
    for thing in (None, 1, b"a.b.c", [head, body, signature], flat):
        assert refused(verify, thing) == "malformed_token"


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
def test_A22_a_signature_wrong_anywhere_is_one_error(alg):
    head, _, signature = signed({}, alg=alg).rpartition(".")
    raw = unb64url(signature)
    wrong = [bytes([raw[0] ^ 1]) + raw[1:], raw[:-1] + bytes([raw[-1] ^ 1])]
    half = len(raw) // 2
    wrong += [raw[1:], raw[:-1], raw + b"\0", b"\0" + raw, bytes(len(raw)), b"\0"]
    wrong += [raw[:half] + b"\0" + raw[half:]]
    for forged in wrong:
        assert refused(verify, f"{head}.{b64url(forged)}", [JWKS[alg]]) == "bad_signature"


@pytest.mark.parametrize("alg", sorted(ALGORITHMS))
@given(data=st.data())
@settings(max_examples=25)
def test_A22_any_byte_flipped_is_refused(alg, data):
    token = signed({"typ": GRANT}, b'{"sub":"canary","n":[1,2]}', alg)
    at = data.draw(st.integers(0, len(token) - 1))
    bit = data.draw(st.integers(0, 6))
    flipped = token[:at] + chr(ord(token[at]) ^ (1 << bit)) + token[at + 1 :]
    refused(verify, flipped, [JWKS[alg]], typ=GRANT)


@pytest.mark.parametrize("r", [0, 1, "r", N, N + 1, 2**256 - 1])
@pytest.mark.parametrize("s", [0, 1, N, N + 1, 2**256 - 1])
def test_A23_an_ecdsa_signature_out_of_range_is_refused(r, s):
    head, _, signature = signed({}).rpartition(".")
    r = unb64url(signature)[:32] if r == "r" else r.to_bytes(32, "big")
    assert refused(verify, f"{head}.{b64url(r + s.to_bytes(32, 'big'))}") == "bad_signature"


def test_A23_an_ecdsa_signature_is_raw_and_of_full_length():
    data = signed({}).rpartition(".")[0]
    der = P256._private.sign(data.encode(), ec.ECDSA(hashes.SHA256()))
    assert refused(verify, f"{data}.{b64url(der)}") == "bad_signature"


def test_A23_a_high_s_is_accepted_as_rfc_7518_has_no_rule_against_it():
    head, _, signature = signed({}).rpartition(".")
    r, s = unb64url(signature)[:32], int.from_bytes(unb64url(signature)[32:], "big")
    verify(f"{head}.{b64url(r + (N - s).to_bytes(32, 'big'))}")


@pytest.mark.parametrize("alg", ["PS256", "PS384", "PS512"])
def test_A23_a_pss_salt_has_the_length_of_the_hash(alg):
    head, _, _ = signed({}, alg=alg).rpartition(".")
    digest = HASHES[alg[2:]]
    for length in {0, 20, 32, 48, 64} - {digest.digest_size}:
        pss = padding.PSS(mgf=padding.MGF1(digest), salt_length=length)
        forged = RSA_KEY.sign(head.encode(), pss, digest)
        assert refused(verify, f"{head}.{b64url(forged)}", [JWKS[alg]]) == "bad_signature"


@pytest.mark.parametrize("alg", ["RS256", "PS256", "PS384", "PS512"])
def test_A23_an_rsa_signature_keeps_its_leading_zeros(alg):
    for count in range(20_000):
        signing_input = f"{b64url(orjson.dumps({'alg': alg, 'n': count}))}.{b64url(b'{}')}"
        raw = signature_of(alg, signing_input.encode())
        if raw[0] == 0:
            break
    verify(f"{signing_input}.{b64url(raw)}", [JWKS[alg]])
    assert refused(verify, f"{signing_input}.{b64url(raw[1:])}", [JWKS[alg]]) == "bad_signature"


def test_A23_an_ed25519_key_is_read_with_either_sign():
    signs = set()
    for seed in range(8):
        key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32))
        signs.add(unb64url(key.public_jwk["x"])[31] >> 7)
        verify(key.compact(jose.encode_header("Ed25519", typ=GRANT), b"{}"), [key.public_jwk])
    assert signs == {0, 1}


def edwards_points_of_small_order():
    """Their encodings, worked out from the curve: 8P is the neutral element."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p

    def add(left, right):
        (x1, y1), (x2, y2) = left, right
        t = d * x1 * x2 * y1 * y2
        return (
            (x1 * y2 + x2 * y1) * pow(1 + t, -1, p) % p,
            (y1 * y2 + x1 * x2) * pow(1 - t, -1, p) % p,
        )

    def x_of(y):
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        root = pow(square, (p + 3) // 8, p)
        if root * root % p != square:
            root = root * pow(2, (p - 1) // 4, p) % p
        return root if root * root % p == square else None

    order = 2**252 + 27742317777372353535851937790883648493
    found = set()
    y = 2
    while len(found) < 8:
        y += 1
        if (x := x_of(y)) is None:
            continue
        point, scaled, scalar = (x, y), (0, 1), order
        while scalar:
            if scalar & 1:
                scaled = add(scaled, point)
            point, scalar = add(point, point), scalar >> 1
        multiple = (0, 1)
        for _ in range(8):
            found.add(multiple)
            multiple = add(multiple, scaled)
    return [(y | (x & 1) << 255).to_bytes(32, "little") for x, y in found]


def test_A23_an_ed25519_key_of_small_order_is_refused():
    field = 2**255 - 19
    points = edwards_points_of_small_order()
    assert len(points) == 8
    signs = [point[:31] + bytes([point[31] ^ 0x80]) for point in points]
    beyond = [
        (field + y | sign << 255).to_bytes(32, "little") for y in range(19) for sign in (0, 1)
    ]
    token = signed({}, alg="Ed25519")
    for point in {*points, *signs, *beyond}:
        jwk = {"kty": "OKP", "crv": "Ed25519", "x": b64url(point)}
        assert refused(verify, token, [jwk]) == "key_weak"


def test_A23_a_weak_rsa_key_is_refused():
    modulus = RSA_KEY.public_key().public_numbers().n
    tokens = [signed({}, alg=alg) for alg in ("RS256", "RS384", "RS512", "PS384", "PS512")]
    primes = [p for p in range(3, 168, 2) if all(p % q for q in range(3, p, 2))]
    product = math.prod(primes)
    roca = product * (2**2047 // product + 5) + pow(65537, 99, product)
    roca += product * (roca % 2 == 0)
    assert roca.bit_length() == 2048
    for weak in (
        rsa_jwk(2**2047 - 1),
        rsa_jwk(2**1023 + 2**500 + 1),
        rsa_jwk(modulus + 1),
        rsa_jwk(2**8192 + 2**4000 + 1),
        rsa_jwk(roca),
        *(
            rsa_jwk(modulus, exponent)
            for exponent in (1, 2, 3, 17, 65535, 65536, 65538, 2**256 + 1)
        ),
    ):
        for token in tokens:
            assert refused(verify, token, [weak]) == "key_weak"


@pytest.mark.parametrize(
    ("alg", "change"),
    [
        ("ES256", {"x": None}),
        ("ES256", {"x": 1}),
        ("ES256", {"y": P256.public_jwk["x"]}),
        ("ES256", {"x": "AA"}),
        ("ES256", {"x": b64url(bytes(32)), "y": b64url(bytes(32))}),
        ("ES256", {"x": b64url(b"\0" + unb64url(P256.public_jwk["x"]))}),
        ("ES256", {"x": P256.public_jwk["x"] + "="}),
        (
            "ES256",  # the same point, cut elsewhere: another thumbprint for one key
            {
                "x": b64url(unb64url(P256.public_jwk["x"]) + unb64url(P256.public_jwk["y"])[:1]),
                "y": b64url(unb64url(P256.public_jwk["y"])[1:]),
            },
        ),
        ("Ed25519", {"x": b64url(b"\x02" * 31)}),
        ("Ed25519", {"x": b64url(b"\x02" * 33)}),
        ("ES384", {"x": JWKS["ES512"]["x"], "y": JWKS["ES512"]["y"]}),
        ("ES512", {"x": b64url(bytes(66)), "y": b64url(bytes(66))}),
        ("ES512", {"x": b64url(unb64url(JWKS["ES512"]["x"])[1:])}),
        ("RS256", {"n": b64url(b"\0" + unb64url(JWKS["RS256"]["n"]))}),
        ("RS256", {"e": "AAEAAQ"}),
        ("RS256", {"e": ""}),
    ],
)
def test_A23_a_key_that_is_none_is_refused(alg, change):
    code = refused(verify, signed({}, alg=alg), [{**JWKS[alg], **change}])
    assert code in {"key_malformed", "malformed_base64"}


def test_A23_an_rsa_key_of_8192_bits_is_still_read():
    jwk = rsa_jwk(2**8191 + 2**4000 + 1)
    assert refused(verify, signed({}, alg="RS256"), [jwk]) == "bad_signature"


@given(data=st.data())
@settings(max_examples=300)
def test_A24_no_error_holds_a_piece_of_a_bad_token(data):
    token = signed({"kid": "canary-kid", "typ": "canary-typ"})
    cut = data.draw(st.integers(0, len(token)))
    bad = token[:cut] + data.draw(st.text(max_size=5)) + token[cut + data.draw(st.integers(0, 5)) :]
    assume(bad != token)
    with pytest.raises(VerificationError) as caught:
        verify(bad, [{**P256.public_jwk, "kid": "canary-kid"}], typ="agent-grant+jwt")
    seen: BaseException | None = caught.value
    while seen is not None:
        assert isinstance(seen, AgentIdentityError)
        shown = f"{seen} {seen.args} {vars(seen)}"
        for secret in ("canary", P256.public_jwk["x"], *filter(None, bad.split("."))):
            assert len(secret) < 8 or secret not in shown
        seen = seen.__cause__ or seen.__context__


utf8 = st.text(st.characters(codec="utf-8"), max_size=6)
extras = st.dictionaries(
    utf8.filter(lambda name: name not in {"alg", "crit", "b64", "zip", "enc", "jwk", "kid", "typ"}),
    utf8 | st.integers(-(2**53 - 1), 2**53 - 1) | st.booleans() | st.lists(utf8, max_size=2),
    max_size=3,
)


@pytest.mark.filterwarnings(
    "ignore:EdDSA is deprecated"
)  # joserfc's word on a name that older peers use
@given(
    alg=st.sampled_from(sorted(ALGORITHMS)),
    claims=st.dictionaries(utf8, utf8 | st.integers(0, 99) | st.none(), max_size=4),
    header=extras,
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    damage=st.none() | st.tuples(st.integers(0, 400), st.characters(codec="ascii")),
)
@settings(max_examples=150)
def test_whatever_is_accepted_two_other_libraries_accept_with_the_same_payload(
    *, alg, claims, header, indent, ascii_only, damage
):
    def written(value):
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode()

    token = signed(written({"alg": alg, **header}), written(claims), alg)
    if damage is not None:
        at, character = damage
        token = token[:at] + character + token[at + 1 :]
    try:
        _, payload = verify(token, [JWKS[alg]])
    except VerificationError:
        assert damage is not None
        return
    assert by_pyjwt(token, alg) == payload
    assert by_joserfc(token, alg) == payload


def by_pyjwt(token, alg):
    reader = jwt.PyJWS()
    if alg == "Ed25519":
        reader.register_algorithm("Ed25519", jwt.algorithms.OKPAlgorithm())
    key = jwt.PyJWK.from_dict(JWKS[alg], algorithm="EdDSA" if alg == "Ed25519" else alg).key
    return reader.decode(token, key, algorithms=[alg])


def joserfc_key(kind, crv_or_size):
    return {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}[kind].generate_key(crv_or_size)


def by_joserfc(token, alg):
    kind = {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}[JWKS[alg]["kty"]]
    registry = jws.JWSRegistry(algorithms=[alg], strict_check_header=False)
    return jws.deserialize_compact(
        token, kind.import_key(dict(JWKS[alg])), registry=registry
    ).payload


# The primes of which ROCA's moduli are powers of 65537, as the paper's detector has them, and a modulus by what it leaves.
ROCA = (11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157)


def modulus_that_leaves(rests):
    product = 2 * math.prod(rests)
    found = sum(
        rest * (product // p) * pow(product // p, -1, p) for p, rest in (rests | {2: 1}).items()
    )
    start = 2**2047 // product * product + product
    return start + found % product


def powers_of_65537(p):
    return {pow(65537, k, p) for k in range(p)}


@pytest.mark.parametrize("power", range(5))
def test_A23_a_modulus_with_the_fingerprint_of_roca_is_weak(power):
    weak = modulus_that_leaves({p: pow(65537, power * p + 1, p) for p in ROCA})
    assert weak.bit_length() == 2048
    assert refused(verify, signed({}, alg="RS256"), [rsa_jwk(weak)]) == "key_weak"


@pytest.mark.parametrize("prime", ROCA)
def test_A23_one_prime_without_it_is_enough_not_to_be(prime):
    rests = {p: pow(65537, p // 2, p) for p in ROCA}
    for other in range(1, prime):
        if other not in powers_of_65537(prime):
            good = modulus_that_leaves(rests | {prime: other})
            assert refused(verify, signed({}, alg="RS256"), [rsa_jwk(good)]) == "bad_signature"


def test_A23_an_rsa_exponent_has_up_to_256_bits():
    modulus = RSA_KEY.public_key().public_numbers().n
    token = signed({}, alg="RS256")
    assert not public_keys._is_strong(modulus, 2**256 + 1)
    for exponent in (2**256 - 1, 2**255 + 1, 65537):
        assert public_keys._is_strong(modulus, exponent)
    assert refused(verify, token, [rsa_jwk(modulus, 65535)]) == "key_weak"


def test_a_signature_is_somebodys_or_it_is_not():
    signing_input = b"a.b"
    for alg, jwk in JWKS.items():
        signature = signature_of(alg, signing_input)
        assert public_keys.is_signed(signature, signing_input, alg, jwk) is True
        assert public_keys.is_signed(signature, b"a.c", alg, jwk) is False


def test_A14_lists_beside_one_another_are_not_deep():
    for inner in ("1", "[1, 2]", '{"a": "]"}', "[[ ],{ }]"):
        text = "[" + ", ".join([f"[{inner}]"] * 40) + "]"
        assert jose.loads(text.encode()) == json.loads(text)
