# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import copy
import datetime as dt
import json
import math
import subprocess
import sys

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_identity import jose
from agent_identity.errors import InvalidAssertionError, InvalidSubjectError, VerificationError
from agent_identity.jose import public_keys, strict
from agent_identity.keys.signing import SigningKey
from agent_identity.values import b64url, unb64url

TYP = "agent-grant+jwt"
KEY = SigningKey.generate()
OTHER = SigningKey.generate()

utf8 = st.text(st.characters(codec="utf-8"), max_size=8)
integers = st.integers(-(2**53 - 1), 2**53 - 1)
atoms = (
    st.none() | st.booleans() | integers | st.floats(allow_nan=False, allow_infinity=False) | utf8
)
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(utf8, inner, max_size=4),
    max_leaves=12,
)


def token(payload=b"{}", *, key=KEY, **header):
    members = {"alg": key.alg, "typ": TYP} | header
    return key.compact(b64url(orjson.dumps(members)), payload)


def accepts(compact, keys=(KEY.public_jwk,), **options):
    return jose.verify(compact, keys, algorithms={"ES256", "Ed25519", "EdDSA"}, **options)


def code_of(call, *arguments, **options):
    with pytest.raises(VerificationError) as caught:
        call(*arguments, **options)
    return caught.value.code


# JSON


@given(values, st.booleans(), st.sampled_from([None, 1]))
def test_what_a_writer_of_json_wrote_is_read_as_it_was(value, ascii_only, indent):
    data = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    read = jose.loads(data)
    assert read == value
    assert json.dumps(read) == json.dumps(value)  # True is no 1, and 1.0 no 1


@given(
    st.binary(max_size=30) | st.text('[]{}",:0123456789eE+-.\\u null', max_size=30).map(str.encode)
)
@settings(max_examples=400)
def test_the_short_way_answers_as_the_strict_one_does(data):
    def answer(read):
        try:
            return json.dumps(read(data))
        except VerificationError as error:
            return error.code

    assert answer(strict.read) == answer(strict._read_strictly)


@given(values.map(orjson.dumps), st.data())
def test_bytes_of_any_kind_raise_nothing_but_verification_errors(data, draw):
    at = draw.draw(st.integers(0, len(data)))
    damaged = data[:at] + draw.draw(st.binary(max_size=3)) + data[at + 1 :]
    try:
        value = jose.loads(damaged)
    except VerificationError:
        return
    assert json.loads(damaged) == value


@pytest.mark.parametrize(
    "data",
    [
        b'{"a":"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["}',
        b'{"a":"\\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\\\\"}',
        b'{"a":"1234567890123456789012345678901234567890"}',
        b'["' + b"\\\\" * 20 + b'","' + b"[" * 40 + b'"]',
        b"[" + b"[]," * 50 + b"[]]",
        b"[" * 32 + b"]" * 32,
        b'{"a":' * 31 + b"[]" + b"}" * 31,
        b'{"a":-1234567890123456,"b":0.1234567890123456,"c":' + b"1." + b"0" * 30 + b"}",
        b' \n\t{"a" : 1}\r\n',
        b'"\\ud83d\\ude00\\u0000\\/"',
        b'"\\\\ud800"',
        b"-0",
        b"1E5",
    ],
)
def test_limits_do_not_count_what_stands_in_strings_or_side_by_side(data):
    assert jose.loads(data) == json.loads(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b'{"a":1,}',
        b"[1,]",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"'a'",
        b"nul",
        b"1 2",
        b'"\n"',
        b'"\\x"',
        b'"\\u12"',
        b'"a',
        b"[1}",
        b"{1:2}",
        b"\x0b1",
        b"]",
        b"[" * 32,
        b'"\\',
    ],
)
def test_what_is_no_json_is_refused(data):
    assert code_of(jose.loads, data) == "json_malformed"


@pytest.mark.parametrize(
    "data",
    [
        *(b"9007199254740992", b"-9007199254740992", b"18446744073709551616", b'{"a":[1e400]}'),
        *(b"-1e999", b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"0." + b"1" * 31, b"1" * 4000),
        *(b"1e" + b"0" * 31, b"-" + b"1" * 32),
    ],
)
def test_a_number_that_parsers_read_differently_is_refused(data):
    assert code_of(jose.loads, data) == "json_number"


@pytest.mark.parametrize(
    "data",
    [b"9007199254740991", b"[-9007199254740991]", b"0." + b"1" * 30, b"1e300", b"1e" + b"0" * 30],
)
def test_a_number_at_the_limit_is_read(data):
    assert jose.loads(data) == json.loads(data)


@pytest.mark.parametrize("data", ["{}", None, bytearray(b"{}"), 1])
def test_json_is_read_from_bytes_alone(data):
    assert code_of(jose.loads, data) == "json_malformed"


@pytest.mark.parametrize("data", [b"[]", b"1", b'"a"', b"null"])
def test_an_object_is_not_another_value(data):
    assert code_of(jose.loads_object, data) == "json_not_object"
    assert jose.loads_object(b'{"a":[]}') == {"a": []}


@pytest.mark.parametrize("read", [jose.loads, jose.loads_object])
@pytest.mark.parametrize("error", [VerificationError, InvalidSubjectError, InvalidAssertionError])
def test_a_reader_names_the_error_it_wants(read, error):
    with pytest.raises(error) as caught:
        read(b"{", error=error)
    assert type(caught.value) is error
    assert caught.value.code == "json_malformed"


@pytest.mark.parametrize(
    "data", [b'{"canary": 1', b'{"canary": 1, "canary": 2}', b"canary\xff", b'"\\ud800canary"']
)
def test_an_error_of_the_reader_holds_nothing_of_what_was_read(data):
    with pytest.raises(VerificationError) as caught:
        jose.loads(data)
    error = caught.value
    while error is not None:
        assert "canary" not in f"{error!r} {vars(error)} {getattr(error, 'doc', '')}"
        error = error.__cause__ or error.__context__


# tokens


@given(st.binary(min_size=1, max_size=80), st.sampled_from(["ES256", "Ed25519"]))
@settings(max_examples=40)
def test_what_was_signed_comes_back_byte_for_byte(payload, alg):
    key = SIGNERS[alg]
    compact = key.compact(jose.encode_header(alg, typ=TYP, jwk=key.public_jwk), payload)
    members, verified = accepts(compact, [key.public_jwk], typ=TYP)
    assert verified == payload
    assert members == {"typ": TYP, "alg": alg, "jwk": key.public_jwk}


SIGNERS = {"ES256": KEY, "Ed25519": SigningKey.generate("Ed25519")}


def test_a_token_taken_apart_can_be_verified_in_place_of_its_text():
    parsed = jose.unverified(token(b'{"a":1}'))
    assert accepts(parsed) == (parsed.header, b'{"a":1}')
    assert code_of(accepts, parsed, [OTHER.public_jwk]) == "bad_signature"
    assert code_of(accepts, parsed._replace(payload=b"{}", signing_input=b"x")) == "bad_signature"


def test_a_token_taken_apart_shows_nothing_of_itself():
    parsed = jose.unverified(token(b'{"canary":1}'))
    assert f"{parsed}{parsed!r}" == "<Parsed token>" * 2


def test_taking_apart_checks_no_signature_but_every_limit():
    forged = token(b"{}")[:-4] + "AAAA"
    parsed = jose.unverified(forged)
    assert (parsed.header["typ"], parsed.payload) == (TYP, b"{}")
    assert parsed.signing_input == forged.rpartition(".")[0].encode()
    assert parsed.signature == unb64url(forged.rpartition(".")[2])
    assert code_of(jose.unverified, "a" * 16385) == "token_too_large"
    assert code_of(jose.unverified, token(note="n" * 1000), max_header=1024) == "header_too_large"


@pytest.mark.parametrize("error", [VerificationError, InvalidSubjectError, InvalidAssertionError])
def test_a_caller_names_the_error_it_wants(error):
    for call in (
        lambda: accepts(token(), [OTHER.public_jwk], error=error),
        lambda: accepts("a.b", error=error),
        lambda: accepts("!.b.c", error=error),
        lambda: jose.unverified("a.b", error=error),
        lambda: jose.numeric_date({}, "exp", error=error),
        lambda: jose.check_lifetime({}, now=0, skew=0, max_lifetime=None, error=error),
        *(
            lambda claims=claims: jose.check_lifetime(
                {"exp": 60, **claims}, now=0, skew=0, max_lifetime=60, error=error
            )
            for claims in ({}, {"nbf": "0"}, {"iat": "0"}, {"iat": 1}, {"iat": 0, "exp": 61})
        ),
    ):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert caught.value.__cause__ is None


def test_a_named_key_is_found_among_many_and_no_other_is_tried(monkeypatch):
    tried = []
    load_checker = public_keys.load_checker
    monkeypatch.setattr(
        public_keys,
        "load_checker",
        lambda *given: tried.append(given[-1]["kid"]) or load_checker(*given),
    )
    keys = [{**SigningKey.generate().public_jwk, "kid": f"k{n}"} for n in range(20)]
    keys.insert(11, {**KEY.public_jwk, "kid": "mine"})
    accepts(token(kid="mine"), keys)
    assert tried == ["mine"]


def test_a_token_that_names_no_key_is_tried_with_those_that_fit():
    fitting = [OTHER.public_jwk, {**KEY.public_jwk, "kid": "k"}]
    unfit = [SIGNERS["Ed25519"].public_jwk, {**KEY.public_jwk, "use": "enc"}]
    accepts(token(), [*unfit, *fitting])
    assert code_of(accepts, token(), unfit) == "key_mismatch"
    assert code_of(accepts, token(), []) == "unknown_key"


def test_a_token_that_names_no_key_is_not_tried_with_any_number():
    others = [SigningKey.generate().public_jwk for _ in range(4)]
    assert code_of(accepts, token(), [*others, KEY.public_jwk]) == "key_ambiguous"
    accepts(token(), [*others[:3], KEY.public_jwk])


def test_two_keys_of_one_kid_are_told_apart_by_what_fits():
    keys = [{**key.public_jwk, "kid": "k"} for key in (SIGNERS["Ed25519"], OTHER, KEY)]
    accepts(token(kid="k"), keys)
    accepts(token(kid="k", key=SIGNERS["Ed25519"]), keys)


def test_a_token_that_names_a_key_is_not_checked_with_one_that_has_no_name():
    assert code_of(accepts, token(kid="k")) == "unknown_key"


def test_keys_are_kept_but_not_without_bound():
    assert public_keys._ecdsa.cache_info().maxsize == 1024
    before = public_keys._ecdsa.cache_info()
    for _ in range(5):
        accepts(token())
    after = public_keys._ecdsa.cache_info()
    assert after.misses - before.misses <= 1
    assert after.hits - before.hits >= 4


def test_pyjwt_is_imported_when_the_first_foreign_signature_comes():
    code = """
import sys
from joserfc import jws
from joserfc.jwk import RSAKey
from agent_identity import jose
from agent_identity.credentials.oauth.metadata import usable_keys
from agent_identity.credentials.oauth.responses import Fields
from agent_identity.keys.signing import SigningKey

ours = SigningKey.generate()
jose.verify(ours.compact(jose.encode_header("ES256", typ="t"), b"{}"), [ours.public_jwk], algorithms={"ES256"})
foreign = RSAKey.generate_key(2048, {"kid": "k"})
keys = usable_keys(Fields({"keys": [foreign.as_dict(private=False)]}))
before = "jwt" in sys.modules
token = jws.serialize_compact({"alg": "RS256", "kid": "k"}, b"{}", foreign)
jose.verify(token, keys, algorithms={"RS256"})
print(before, "jwt" in sys.modules)
"""
    found = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert found.split() == ["False", "True"]


def test_two_algorithms_of_one_rsa_key_are_not_mixed_up():
    key = rsa.generate_private_key(65537, 2048).public_key().public_numbers()
    n, e = (b64url(x.to_bytes((x.bit_length() + 7) // 8, "big")) for x in (key.n, key.e))
    assert public_keys._rsa("RS256", n, e) is not public_keys._rsa("PS256", n, e)


def test_verification_changes_neither_keys_nor_header():
    jwk = {**KEY.public_jwk, "kid": "k"}
    before = copy.deepcopy(jwk)
    members, _ = accepts(token(kid="k"), [jwk])
    with pytest.raises(TypeError):
        members["alg"] = "none"
    assert jwk == before
    assert accepts(token(kid="k"), [jwk])[0]["alg"] == "ES256"


@settings(max_examples=300)
@given(st.text("AQgw048_-+/=\n Zé\ud800", max_size=12))
def test_base64url_has_one_spelling_that_of_its_encoder(text):
    with contextlib.suppress(VerificationError):
        assert b64url(unb64url(text)) == text


@given(st.binary(max_size=40))
def test_what_is_encoded_as_base64url_is_read_again(data):
    assert unb64url(b64url(data)) == data


def test_only_headers_of_the_usual_size_are_kept():
    jose._read_header_cached.cache_clear()
    frame = len(json.dumps({"alg": "ES256", "x": ""}))
    usual, large = (
        b64url(json.dumps({"alg": "ES256", "x": "y" * (size - frame)}).encode())
        for size in (jose.MAX_HEADER, jose.MAX_HEADER + 1)
    )
    for head in (usual, large, usual, large, usual):
        assert jose.read_header(head)["alg"] == "ES256"
    kept = jose._read_header_cached.cache_info()
    assert (kept.hits, kept.currsize) == (2, 1)


def test_a_token_shows_nothing_of_itself_on_the_way_to_its_check():
    taken = jose.unverified(token())
    fitting = jose.fit_keys(taken.head, [KEY.public_jwk], algorithms=["ES256"])
    prepared = fitting.prepare(taken)
    prepared.check()
    assert (repr(taken), repr(prepared)) == ("<Parsed token>", "<PreparedCheck>")


def test_a_header_names_its_key_or_carries_it_but_never_a_private_one():
    assert json.loads(unb64url(jose.encode_header("ES256", typ=TYP, kid="k"))) == {
        "typ": TYP,
        "alg": "ES256",
        "kid": "k",
    }
    assert json.loads(unb64url(jose.encode_header("ES256", typ=TYP))) == {
        "typ": TYP,
        "alg": "ES256",
    }
    assert (
        code_of(jose.encode_header, "ES256", typ=TYP, jwk={**KEY.public_jwk, "d": "AA"})
        == "key_private"
    )


# times


@pytest.mark.parametrize("value", [0, 1700000000, 1700000000.25, 253402300799])
def test_a_time_is_any_number_of_seconds_that_a_datetime_can_hold(value):
    found = jose.numeric_date({"exp": value}, "exp")
    assert found == value
    assert type(found) is type(value)
    dt.datetime.fromtimestamp(found, dt.UTC)


def test_a_missing_time_is_an_error_and_so_is_null():
    assert code_of(jose.numeric_date, {}, "nbf") == "missing_claim"
    assert code_of(jose.numeric_date, {"nbf": None}, "nbf") == "malformed_claim"


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"exp": 160, "iat": 100}, None),
        ({"exp": 160, "iat": 100, "nbf": 100}, None),
        ({"exp": 71, "iat": 60}, None),
        ({"exp": 70, "iat": 60}, "expired"),
        ({"exp": 160, "iat": 130}, None),
        ({"exp": 160, "iat": 131}, "not_yet_valid"),
        ({"exp": 160, "iat": 100, "nbf": 130}, None),
        ({"exp": 160, "iat": 100, "nbf": 131}, "not_yet_valid"),
        ({"exp": 161, "iat": 100}, "lifetime_too_long"),
        ({"exp": 160.5, "iat": 100}, "lifetime_too_long"),
        ({"exp": 110, "iat": 110}, "malformed_claim"),
        ({"exp": 110, "iat": 111}, "malformed_claim"),
        ({"exp": 160}, "missing_claim"),
        ({"iat": 100}, "missing_claim"),
        ({"exp": 160, "iat": 100, "nbf": "100"}, "malformed_claim"),
    ],
)
def test_a_lifetime_holds_now_give_or_take_the_skew_once(claims, code):
    def check():
        return jose.check_lifetime(claims, now=100, skew=30, max_lifetime=60)

    if code is None:
        assert check() == claims["exp"]
    else:
        assert code_of(check) == code


def test_without_a_longest_lifetime_iat_may_be_absent_and_life_long():
    def check(claims):
        return jose.check_lifetime(claims, now=100, skew=30, max_lifetime=None)

    assert check({"exp": 10**9}) == 10**9
    assert check({"exp": 10**9, "iat": 1}) == 10**9
    assert code_of(check, {"exp": 10**9, "iat": 131}) == "not_yet_valid"


@given(st.floats() | st.integers() | st.text(max_size=3) | st.booleans() | st.none())
def test_whatever_passes_for_a_time_can_be_computed_with(value):
    try:
        found = jose.numeric_date({"iat": value}, "iat")
    except VerificationError:
        return
    assert math.isfinite(found + 60)
    dt.datetime.fromtimestamp(found, dt.UTC)


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x, y", "b": 'c": d', "e": ["f, g", {"h": ', "'}]},
        {"a": ", ", "b": '": '},
        {"a": {"b": {"c": [1, 2.5, True, None]}}},
        {"": " ", " ": ""},
    ],
)
def test_json_with_spaces_after_colons_and_commas_reads_as_without(
    value: dict[str, object],
) -> None:
    """Many servers write it so; spaces inside of strings stay."""
    assert jose.loads(json.dumps(value).encode()) == value
    assert jose.loads(orjson.dumps(value)) == value


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 1}',
        '{"a": 1, "a": 2}',
        '{"x": {"a": "b, c", "a": "b, c"}}',
        '{"a": NaN, "b": 1}',
        '{"a": 12345678901234567890, "b": 1}',
        '{"a": 1, }',
    ],
)
def test_spaces_let_nothing_through_that_is_refused_without(text: str) -> None:
    for spelling in (text, text.replace(" ", "")):
        with pytest.raises(VerificationError):
            jose.loads(spelling.encode())
