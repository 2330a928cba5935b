# SPDX-License-Identifier: Apache-2.0
"""What an attacker makes of chains and assertions, each named after what they want. What is refused has no effect at all."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_identity import (
    AgentIdentity,
    DeniedError,
    canonical,
    current_credential,
    tool,
)
from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN
from agent_identity.credentials.source import SubjectToken, Wanted
from agent_identity.credentials.sources.token_exchange import check_may_act, check_same_context
from agent_identity.errors import AgentIdentityError, InvalidAssertionError, VerificationError
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.records import CALL_INTENDED
from agent_identity.values import Principal, Secret, b64url, unb64url
from agent_identity.verify import TrustAnchor, UnsafeNoReplayCheck, UnsafeNoRevocations, Verifier

FLIGHTS = "https://flights.example"
URL = f"{FLIGHTS}/book"


def claims_of(compact: str) -> dict[str, Any]:
    return json.loads(unb64url(compact.split(".")[1]))


def token_of(key: SigningKey, claims: dict[str, Any], typ: str = "at+jwt") -> str:
    header = {"typ": typ, "alg": key.alg, "kid": key.thumbprint}
    return key.compact(b64url(json.dumps(header).encode()), json.dumps(claims).encode())


def verifier_of(identity: AgentIdentity, **options: Any) -> Verifier:
    anchor = TrustAnchor(
        identity.authority.issuer,
        jwks=identity.authority.jwks(),
        revocations=UnsafeNoRevocations(),
        evidence="issuer",
        **options.pop("anchor", {}),
    )
    return Verifier([anchor], **({"audience": FLIGHTS, "replay": UnsafeNoReplayCheck()} | options))


Request = tuple[str, str, dict[str, str], bytes]


def request_of(identity: AgentIdentity) -> Request:
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        return request_in(session)


def request_in(session: Any) -> Request:
    with session.call(Tool("book", resource=FLIGHTS, scopes=["book"]), {}) as call:
        credential = call.credential()
        return "POST", URL, credential.headers("POST", URL, b"{}"), b"{}"


# -- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda iss: iss + "/",
        lambda iss: iss[:-1],
        lambda iss: iss.upper(),
        lambda iss: iss + ".evil.example",
        lambda iss: "https://evil.example/" + iss,
        lambda iss: iss.replace("https", "http"),
        lambda iss: iss.replace("a", "\u0430", 1),
    ],
)
def test_A08_an_issuer_of_a_similar_name_is_no_anchor(
    bot: AgentIdentity, change: Callable[[str], str]
) -> None:
    method, url, headers, body = request_of(bot)
    issuer = bot.authority.issuer
    other = TrustAnchor(
        change(issuer),
        jwks=bot.authority.jwks(),
        revocations=UnsafeNoRevocations(),
        evidence="issuer",
    )
    verifier = Verifier([other], audience=FLIGHTS)
    with pytest.raises(InvalidAssertionError) as refused:
        verifier.verify_request(method, url, headers, body, scopes=["book"])
    assert refused.value.code == "unknown_anchor"


@pytest.mark.parametrize("iss", [["x"], {"x": 1}, 5, None, True])
def test_A08_an_issuer_is_one_text(bot: AgentIdentity, iss: Any) -> None:
    method, url, headers, body = request_of(bot)
    root = headers["Agent-Delegation"].split(", ")[-1]
    key = bot.authority._keyring.signing
    forged = token_of(key, claims_of(root) | {"iss": iss}, "agent-grant+jwt")
    with pytest.raises(InvalidAssertionError) as refused:
        verifier_of(bot).verify_request(
            method, url, headers | {"Agent-Delegation": forged}, body, scopes=["book"]
        )
    assert refused.value.code == "claim_malformed"


@pytest.mark.parametrize(
    "audience",
    [
        *(FLIGHTS + "/", FLIGHTS.upper(), FLIGHTS[:-1], FLIGHTS + ":443", FLIGHTS + "/book"),
        *("http://flights.example", "https://flights.example.evil.example", "*", ""),
    ],
)
def test_A09_a_service_of_a_similar_name_takes_nothing(bot: AgentIdentity, audience: str) -> None:
    method, url, headers, body = request_of(bot)
    with pytest.raises(VerificationError) as refused:
        verifier_of(bot, audience=audience).verify_request(
            method, url, headers, body, scopes=["book"]
        )
    assert refused.value.code == "audience_mismatch"


@pytest.mark.parametrize("aud", [None, "", [], [FLIGHTS], 5, {"x": 1}, True])
def test_A09_an_assertion_names_one_audience_as_text(bot: AgentIdentity, aud: Any) -> None:
    tool_ = Tool("book", resource=FLIGHTS, scopes=["book"])
    with (
        bot.on_behalf_of("user:alice", purpose="p") as session,
        session.call(tool_, {}) as call,
    ):
        chain = [grant.compact for grant in call.reach.chain]
        good = claims_of(call.reach.statement.for_call(call.facts, int(call._now)))
        key = session._state.agent.key
    said = {name: value for name, value in (good | {"aud": aud}).items() if value is not None}
    header = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
    compact = key.compact(b64url(json.dumps(header).encode()), json.dumps(said).encode())
    with pytest.raises(InvalidAssertionError) as refused:
        verifier_of(bot).verify_call(compact, chain, tool="book", args={}, scopes=["book"])
    assert refused.value.code in {"claim_malformed", "claim_missing"}


@pytest.mark.parametrize(
    "scope",
    [
        *(
            "book\u00a0pay",
            "book\u200b",
            "\uff42\uff4f\uff4f\uff4b",
            "b\u043e\u043ek",
            "bo\u0301ok",
            "book\tpay",
        ),
        *("book  pay", " book", "book ", 'bo"ok', "bo\\ok", "book\x7f", "book\n"),
    ],
)
def test_A19_a_scope_of_other_characters_is_refused(bot: AgentIdentity, scope: str) -> None:
    method, url, headers, body = request_of(bot)
    root = headers["Agent-Delegation"].split(", ")[-1]
    key = bot.authority._keyring.signing
    forged = token_of(key, claims_of(root) | {"scope": scope}, "agent-grant+jwt")
    with pytest.raises(InvalidAssertionError) as refused:
        verifier_of(bot).verify_request(
            method, url, headers | {"Agent-Delegation": forged}, body, scopes=[]
        )
    assert refused.value.code == "claim_malformed"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        ({"args_hash": "sha-512:x"}, "digest_unknown"),
        ({"args_hash": "SHA-256:x"}, "digest_unknown"),
        ({"args_hash": "x"}, "digest_unknown"),
        ({"args_hash": "md5:x"}, "digest_unknown"),
        ({"canon": "c14n"}, "digest_unknown"),
        ({"canon": "JCS"}, "digest_unknown"),
    ],
)
def test_A20_a_digest_by_another_algorithm_is_refused(
    bot: AgentIdentity, call: dict[str, str], code: str
) -> None:
    method, url, headers, body = request_of(bot)
    key = SigningKey.generate()
    good = claims_of(headers["Agent-Assertion"])
    header = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
    said = good | {"call": good["call"] | call}
    compact = key.compact(b64url(json.dumps(header).encode()), json.dumps(said).encode())
    with pytest.raises(InvalidAssertionError) as refused:
        verifier_of(bot).verify_request(
            method, url, headers | {"Agent-Assertion": compact}, body, scopes=[]
        )
    assert refused.value.code == code


# -- splicing ---------------------------------------------------------------------------------------------------------


def wanted(bot: AgentIdentity, name: str, **changes: Any) -> Wanted:
    with bot.on_behalf_of(f"user:{name}", purpose="p") as session:
        with session.call(Tool("book", resource=FLIGHTS, scopes=["book"]), {}) as call:
            chain = call.reach.chain
        said = {
            "resource": FLIGHTS,
            "scopes": frozenset({"book"}),
            "principal": Principal(name),
            "subject": None,
            "chain": chain,
            "agent": session.agent,
            "proof_key": session._state.agent.proof_key,
            "txn": session.txn,
            "purpose": "p",
        }
        return Wanted(**(said | changes))


def subject_token(**claims: Any) -> SubjectToken:
    return SubjectToken(Secret(token_of(SigningKey.generate(), claims)), ACCESS_TOKEN)


def test_B08_alices_token_isnt_shown_beside_bobs_chain(bot: AgentIdentity) -> None:
    bobs = wanted(bot, "bob")
    check_same_context(subject_token(sub="bob"), bobs)
    check_same_context(subject_token(sub="bob", txn=bobs.txn), bobs)
    check_same_context(SubjectToken(Secret("opaque"), ACCESS_TOKEN), bobs)
    for spliced, asked in (
        (subject_token(sub="alice"), bobs),
        (subject_token(sub="bob", txn="ses_other"), bobs),
        (SubjectToken(Secret("opaque"), ACCESS_TOKEN), wanted(bot, "bob", txn="ses_other")),
        (
            SubjectToken(Secret("opaque"), ACCESS_TOKEN),
            wanted(bot, "bob", principal=Principal("alice")),
        ),
        (SubjectToken(Secret("opaque"), ACCESS_TOKEN), wanted(bot, "bob", agent="urn:x:other")),
    ):
        with pytest.raises(DeniedError) as refused:
            check_same_context(spliced, asked)
        assert refused.value.code == "spliced"


@pytest.mark.parametrize(
    "may_act", [{"sub": "urn:x:other"}, {}, {"sub": ["urn:x:bot"]}, "urn:x:bot", None, []]
)
def test_B09_a_token_that_lets_another_act_is_shown_to_nobody(may_act: Any) -> None:
    with pytest.raises(AgentIdentityError) as refused:
        check_may_act(subject_token(sub="alice", may_act=may_act), "urn:x:bot", "client")
    assert refused.value.code != ""
    check_may_act(subject_token(sub="alice"), "urn:x:bot", "client")
    check_may_act(subject_token(sub="alice", may_act={"sub": "urn:x:bot"}), "urn:x:bot", "c")


# -- keys and time ----------------------------------------------------------------------------------------------------


def test_B22_a_key_that_was_rotated_verifies_in_its_grace_and_signs_no_more(
    make_identity: Callable[..., AgentIdentity], clock: Any
) -> None:
    authority = Authority(clock=clock)
    bot = make_identity(authority=authority, clock=clock)
    live = bot.verifier(FLIGHTS)
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        old = request_in(session)
        kids = [authority._keyring.signing.thumbprint]
        authority.rotate()
        kids.append(authority._keyring.signing.thumbprint)
        assert live.verify_request(*old[:3], old[3], scopes=["book"]).principal.sub == "alice"
    first = claims_of(old[2]["Agent-Delegation"].split(", ")[-1])
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        fresh = request_in(session)
        assert live.verify_request(*fresh[:3], fresh[3], scopes=["book"])
    head = json.loads(unb64url(fresh[2]["Agent-Delegation"].split(", ")[-1].split(".")[0]))
    assert head["kid"] == kids[1] != kids[0]
    clock.now += 3601
    assert [key["kid"] for key in authority.jwks()["keys"]] == [kids[1]]
    retired = SigningKey.generate()
    forged = first | {"iat": int(clock.now), "nbf": int(clock.now), "exp": int(clock.now) + 900}
    header = {"typ": "agent-grant+jwt", "alg": retired.alg, "kid": kids[0]}
    compact = retired.compact(b64url(json.dumps(header).encode()), json.dumps(forged).encode())
    with pytest.raises(InvalidAssertionError) as refused:
        live.verify_request(
            old[0], old[1], fresh[2] | {"Agent-Delegation": compact}, old[3], scopes=["book"]
        )
    assert refused.value.code == "unknown_key"


# -- what ran is what was digested ------------------------------------------------------------------------------------

ran: list[Any] = []


class Sly(dict):  # type: ignore[type-arg]
    """A subclass that shows the digest one thing and the tool another."""

    def __getitem__(self, key: Any) -> Any:
        return "evil"


class SlyText(str):
    __slots__ = ()


class SlyNumber(int):
    pass


@tool(resource=FLIGHTS, scopes=["book"])
def book(trip: Any, note: Any = "window") -> None:
    ran.append((trip, note))
    current_credential()


def digests(session: Any) -> list[str]:
    intents = [record for record in session.records() if record.kind == CALL_INTENDED]
    return [
        claims_of(str(record.to_dict()["assertion"]))["call"]["args_hash"] for record in intents
    ]


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


def test_B18_changing_an_argument_in_place_after_signing_has_no_effect(
    bot: AgentIdentity,
) -> None:
    trip = {"to": "LHR", "seats": [1, 2]}

    def policy(request: Any) -> bool:
        trip["to"] = "SYD"  # whoever holds the caller's object changes it while policy decides
        trip["seats"].append(99)
        return True

    bot._parts = dataclasses.replace(
        bot._parts, policy_now=lambda request: _permit(policy(request))
    )
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        book(trip)
        found = digests(session)
    assert ran == [({"to": "LHR", "seats": [1, 2]}, "window")]
    assert found == [canonical.args_digest({"trip": ran[0][0], "note": "window"})]


def _permit(answer: bool) -> Any:
    from agent_identity import Decision

    return Decision.permit() if answer else Decision.deny("no")


@pytest.mark.parametrize(
    "value", [Sly(to="LHR"), SlyText("LHR"), SlyNumber(1), [Sly()], {"x": Sly()}]
)
def test_B18_a_subclass_that_could_say_two_things_is_no_argument(
    bot: AgentIdentity, value: Any
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as refused:
        book(value)
    assert refused.value.code == "undigestible_argument"
    assert ran == []


def test_B18_a_default_is_part_of_what_is_signed(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        book("LHR")
        book("LHR", "window")
        book("LHR", note="aisle")
        first, second, third = digests(session)
    assert first == second == canonical.args_digest({"trip": "LHR", "note": "window"})
    assert third != first


class Seat(enum.Enum):
    WINDOW = "window"


@dataclasses.dataclass
class Trip:
    to: str


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (dt.date(2026, 11, 26), "2026-11-26"),
        (decimal.Decimal("1.50"), "1.50"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        (pathlib.PurePosixPath("/a"), "/a"),
        (b"\xff", "_w"),
        (Seat.WINDOW, "window"),
        (Trip("LHR"), {"to": "LHR"}),
        ({2, 1}, [1, 2]),
        ((1, 2), [1, 2]),
    ],
)
def test_B18_what_is_coerced_for_the_digest_reaches_the_tool_as_it_was(
    bot: AgentIdentity, value: Any, form: Any
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        book(value)
        found = digests(session)
    assert ran == [(value, "window")]
    assert type(ran[0][0]) is type(value)
    assert found == [canonical.args_digest({"trip": form, "note": "window"})]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15, allow_nan=False)
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


def same(left: Any, right: Any) -> bool:
    """Equality as JSON has it: 1 is 1.0 and isn't true, a text is its code points."""
    if isinstance(left, bool) or isinstance(right, bool) or left is None or right is None:
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right
    return type(left) is type(right) and bool(left == right)


@settings(max_examples=400)
@given(st.dictionaries(st.text(max_size=3), JSON, max_size=3), JSON, st.text(max_size=3))
def test_B18_two_different_calls_never_share_a_digest(
    arguments: dict[str, Any], value: Any, name: str
) -> None:
    other = arguments | {name: value}
    shared = canonical.args_digest(arguments) == canonical.args_digest(other)
    assert shared == same(arguments, other)
    shuffled = dict(reversed(other.items()))
    assert canonical.args_digest(shuffled) == canonical.args_digest(other)
