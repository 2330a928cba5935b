# SPDX-License-Identifier: Apache-2.0
"""The door where tool and arguments are seen: MCP, queues, in process. What is refused is remembered by nobody."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from agent_identity import AgentIdentity
from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import (
    AgentIdentityError,
    InvalidAssertionError,
    RevokedError,
    VerificationError,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.pipeline import Call
from agent_identity.values import LOCAL, b64url, unb64url
from agent_identity.verify import MemoryReplay, TrustAnchor, UnsafeNoRevocations, Verifier

FLIGHTS = "https://flights.example"
ARGS = {"from": "LHR", "amount": 400}
BOOK = ("book",)
TYPE = "urn:agent-identity:tool"


class SpiedReplay:
    def __init__(self) -> None:
        self.not_before = 0
        self.remembered: list[object] = []

    def remember(self, key: object, until: float, /) -> bool:
        self.remembered.append((key, until))
        return True


class Revoked:
    def __init__(self, *references: str) -> None:
        self._references = frozenset(references)

    def is_revoked(self, references, issued_at: float, /) -> bool:
        return not self._references.isdisjoint(references)


class Sent:
    """One call as its receiver sees it."""

    def __init__(self, call: Call, chain: list[str], assertion: str, token: str | None) -> None:
        self.call, self.chain, self.assertion, self.token = call, chain, assertion, token
        self.key = call.session.agent.key

    def asserting(
        self, *, key: SigningKey | None = None, header: dict[str, Any] | None = None, **claims: Any
    ) -> str:
        """The assertion with other claims; None leaves one out."""
        key = key or self.key
        body = json.loads(unb64url(self.assertion.split(".")[1])) | claims
        head = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
        return key.compact(
            b64url(json.dumps(head | (header or {})).encode()),
            json.dumps({n: v for n, v in body.items() if v is not None}).encode(),
        )


class Rig:
    def __init__(self, identity: AgentIdentity, clock: Any) -> None:
        self.identity, self.clock = identity, clock
        self.anchor = TrustAnchor(
            identity.authority.issuer,
            jwks=identity.authority.jwks(),
            revocations=UnsafeNoRevocations(),
            evidence="issuer",
        )

    def sent(
        self,
        *,
        resend: int = 0,
        with_token: bool = False,
        depth: int = 0,
        resource: str | None = FLIGHTS,
        **options: Any,
    ) -> Sent:
        from contextlib import ExitStack

        with ExitStack() as stack:
            session = stack.enter_context(
                self.identity.on_behalf_of("user:alice", purpose="book a trip", **options)
            )
            for level in range(depth):
                session = stack.enter_context(session.delegate(f"sub-{level}"))
            scopes = () if resource is None else BOOK
            tool = Tool("book_flight", resource=resource, scopes=scopes)
            call = stack.enter_context(session.call(tool, ARGS))
            issued = call.reach.issued
            token = issued.token.reveal() if with_token and issued else None
            assertion = call.reach.statement.for_call(
                call.facts,
                int(self.clock()),
                resend=resend,
                ath=None if token is None else hash_of(token),
            )
            return Sent(call, [each.compact for each in call.reach.chain], assertion, token)

    def verifier(self, **options: Any) -> Verifier:
        trust = options.pop("trust", [self.anchor])
        return Verifier(
            trust, **({"audience": FLIGHTS, "clock": self.clock, "replay": SpiedReplay()} | options)
        )

    def accepted(self, sent: Sent, *, verifier: Verifier | None = None, **seen: Any):
        options = seen.pop("options", {})
        verifier = verifier or self.verifier(**options)
        said = {"tool": "book_flight", "args": ARGS, "scopes": BOOK, "token": sent.token} | seen
        assertion = said.pop("assertion", sent.assertion)
        return verifier.verify_call(assertion, said.pop("chain", sent.chain), **said)

    def refused(
        self, sent: Sent, error: type[AgentIdentityError] = VerificationError, **seen: Any
    ) -> str:
        replay = SpiedReplay()
        seen["options"] = {"replay": replay} | seen.get("options", {})
        with pytest.raises(error) as caught:
            self.accepted(sent, **seen)
        assert replay.remembered == []
        return caught.value.code


@pytest.fixture
def rig(make_identity: Callable[..., AgentIdentity], clock: Any) -> Iterator[Rig]:
    return Rig(make_identity(authority=Authority(clock=clock), clock=clock), clock)


# -- what is good -----------------------------------------------------------------------------------------------------


def test_a_verified_call_says_who_through_whom_and_what_ran(rig: Rig) -> None:
    sent = rig.sent(depth=2)
    call = rig.accepted(sent)
    assert call.principal.sub == "alice"
    assert [actor.agent.rpartition(":")[2] for actor in call.chain] == [
        *("sub-1", "sub-0", "invoice-bot")
    ]
    assert [actor.vouched for actor in call.chain] == [False, False, True]
    assert call.call is not None
    assert (call.call.tool, call.call.id) == ("book_flight", sent.call.call_id)
    assert (call.scopes, call.details, call.approval, call.handover) == ({"book"}, None, None, None)
    assert (call.purpose, call.txn) == ("book a trip", sent.call.session.txn)
    assert not call.token_verified


async def test_the_async_door_is_the_same(rig: Rig) -> None:
    sent, verifier = rig.sent(), rig.verifier(replay=MemoryReplay(clock=rig.clock))
    call = await verifier.averify_call(
        sent.assertion, sent.chain, tool="book_flight", args=ARGS, scopes=BOOK
    )
    assert call.agent.endswith("invoice-bot")
    with pytest.raises(InvalidAssertionError, match="used before"):
        await verifier.averify_call(
            sent.assertion, sent.chain, tool="book_flight", args=ARGS, scopes=BOOK
        )


def test_a_further_round_of_a_call_is_taken_beside_the_first(rig: Rig) -> None:
    verifier = rig.verifier(replay=MemoryReplay(clock=rig.clock))
    sent = rig.sent()
    again = sent.asserting(jti=f"{sent.call.call_id}.r1")
    assert rig.accepted(sent, verifier=verifier)
    assert rig.accepted(sent, verifier=verifier, assertion=again)
    with pytest.raises(InvalidAssertionError):
        rig.accepted(sent, verifier=verifier, assertion=again)


def test_numbers_that_json_holds_equal_are_the_same_arguments(rig: Rig) -> None:
    assert rig.accepted(rig.sent(), args={"amount": 400.0, "from": "LHR"})


def test_a_token_that_came_along_is_verified(rig: Rig) -> None:
    assert rig.accepted(rig.sent(with_token=True)).token_verified


# -- the call ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"from": "LHR"},
        {"from": "LHR", "amount": 401},
        {"from": "LHR", "amount": "400"},
        {"from": "LHR", "amount": True},
        {"from": "lhr", "amount": 400},
        {"from": "LHR", "amount": 400, "more": None},
        {"From": "LHR", "amount": 400},
    ],
)
def test_other_arguments_than_those_signed_are_refused(rig: Rig, args: dict[str, Any]) -> None:
    assert rig.refused(rig.sent(), args=args) == "args_mismatch"


@pytest.mark.parametrize("args", [None, [], "x", 5])
def test_arguments_that_are_no_object_are_refused(rig: Rig, args: Any) -> None:
    assert rig.refused(rig.sent(), args=args) == "args_malformed"


@pytest.mark.parametrize("value", [float("nan"), 2**53, object(), "\ud800"])
def test_B18_arguments_without_a_canonical_form_are_refused(rig: Rig, value: Any) -> None:
    assert rig.refused(rig.sent(), args=ARGS | {"x": value}) == "undigestible_argument"


@pytest.mark.parametrize("tool", ["", "Book_flight", "book_flight ", "cancel_flight"])
def test_another_tool_than_the_one_signed_is_refused(rig: Rig, tool: str) -> None:
    assert rig.refused(rig.sent(), tool=tool) == "tool_mismatch"


def test_a_call_that_nobody_asserts_is_refused(rig: Rig) -> None:
    assert rig.refused(rig.sent(), assertion=None) == "assertion_missing"


def test_all_scopes_that_chain_and_token_carry_are_the_calls(rig: Rig) -> None:
    tool = Tool("book_flight", resource=FLIGHTS, scopes=["book", "pay"])
    with (
        rig.identity.on_behalf_of("user:alice", purpose="book a trip") as session,
        session.call(tool, ARGS) as call,
    ):
        token = call.reach.issued.token.reveal()
        said = call.reach.statement.for_call(call.facts, int(rig.clock()), ath=hash_of(token))
        sent = Sent(call, [each.compact for each in call.reach.chain], said, token)
    assert rig.accepted(sent).scopes == {"book", "pay"}


@pytest.mark.parametrize(("skew", "expected"), [(60.0, None), (30.0, "expired")])
def test_B17_the_skew_of_the_verifier_is_that_of_the_chain_too(
    rig: Rig, skew: float, expected: str | None
) -> None:
    sent = rig.sent()
    ends = json.loads(unb64url(sent.chain[0].split(".")[1]))["exp"]
    rig.clock.now = ends + 45
    late = sent.asserting(iat=ends + 45, exp=ends + 105)
    if expected is None:
        assert rig.accepted(sent, assertion=late, options={"skew": skew})
    else:
        assert rig.refused(sent, assertion=late, options={"skew": skew}) == expected


def test_B05_a_call_for_another_service_is_refused(rig: Rig) -> None:
    options = {"audience": "https://hotels.example"}
    assert rig.refused(rig.sent(), options=options) == "audience_mismatch"


def test_a_scope_that_the_service_needs_and_the_chain_lacks_is_refused(rig: Rig) -> None:
    assert rig.refused(rig.sent(), scopes=("book", "cancel")) == "insufficient_scope"
    assert rig.accepted(rig.sent(), scopes=())


@pytest.mark.parametrize(
    "claims",
    [
        {"htm": "POST"},
        {"htu": f"{FLIGHTS}/mcp"},
        {"htq": "x"},
        {"content_digest": "x"},
        {"jti": "{0}.1"},
        {"jti": "{0}.r0"},
        {"jti": "{0}.r01"},
        {"jti": "{0}.r"},
        {"jti": "{0}x"},
        {"jti": "call_other"},
    ],
)
def test_B27_an_assertion_of_an_http_request_is_refused_at_this_door(
    rig: Rig, claims: dict[str, str]
) -> None:
    sent = rig.sent()
    changed = {name: value.format(sent.call.call_id) for name, value in claims.items()}
    assert rig.refused(sent, assertion=sent.asserting(**changed)) == "wrong_door"


def test_B27_the_assertion_of_a_call_is_refused_at_the_door_of_requests(rig: Rig) -> None:
    sent, replay = rig.sent(), SpiedReplay()
    headers = {"Agent-Assertion": sent.assertion, "Agent-Delegation": ", ".join(sent.chain)}
    with pytest.raises(InvalidAssertionError) as refused:
        rig.verifier(replay=replay).verify_request("POST", FLIGHTS, headers, b"", scopes=BOOK)
    assert refused.value.code == "wrong_door"
    assert replay.remembered == []


def test_B28_a_recorded_assertion_is_refused(rig: Rig) -> None:
    sent = rig.sent()
    assert rig.refused(sent, assertion=sent.asserting(use="record")) == "not_for_sending"
    local = rig.sent(resource=None)
    assert rig.refused(local, scopes=()) == "not_for_sending"
    assert rig.refused(local, scopes=(), options={"audience": LOCAL}) == "not_for_sending"


def test_B23_whoever_saw_a_call_cant_sign_another_below_its_chain(rig: Rig) -> None:
    sent, thief = rig.sent(), SigningKey.generate()
    assert rig.refused(sent, assertion=sent.asserting(key=thief)) == "key_mismatch"
    borrowed = {"jwk": sent.key.public_jwk}
    assert (
        rig.refused(sent, assertion=sent.asserting(key=thief, header=borrowed)) == "bad_signature"
    )


@pytest.mark.parametrize(
    ("chain", "code"),
    [
        ([], "chain_empty"),
        ("a.b.c", "chain_malformed"),
        ([b"x"], "chain_malformed"),
        *((value, "chain_malformed") for value in ([None], None, 5, True, 0.5, {}, {"x": 1})),
        (["x"] * 9, "chain_too_deep"),
        (["x" * 16_384] * 4 + ["x"], "chain_too_large"),
    ],
)
def test_B20_a_chain_of_another_form_is_refused_before_any_signature(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, chain: Any, code: str
) -> None:
    sent = rig.sent()
    monkeypatch.setattr("agent_identity.jose.public_keys.is_valid", pytest.fail)
    assert rig.refused(sent, chain=chain) == code


@pytest.mark.parametrize("value", [5, True, 0.5, {"x": 1}, [None], b"x"])
def test_whatever_json_comes_in_the_place_of_a_text_is_refused(rig: Rig, value: Any) -> None:
    sent = rig.sent(with_token=True)
    assert rig.refused(sent, token=value) == "token_malformed"
    assert rig.refused(sent, handover=value) == "chain_malformed"
    assert rig.refused(sent, assertion=value) == "malformed_token"
    assert rig.refused(sent, tool=value) == "tool_mismatch"


def test_B10_one_of_fifty_replays_at_once_is_taken(rig: Rig) -> None:
    sent, verifier = rig.sent(), rig.verifier(replay=MemoryReplay(clock=rig.clock))
    barrier = threading.Barrier(50)

    def play() -> str:
        barrier.wait()
        try:
            rig.accepted(sent, verifier=verifier)
        except InvalidAssertionError as error:
            return error.code
        return "taken"

    with ThreadPoolExecutor(50) as pool:
        outcomes = [each.result() for each in [pool.submit(play) for _ in range(50)]]
    assert sorted(outcomes) == ["replayed"] * 49 + ["taken"]


# -- details ----------------------------------------------------------------------------------------------------------


def test_B19_details_that_dont_allow_the_call_are_refused_here(rig: Rig) -> None:
    limits = [{"type": TYPE, "tools": ["book_flight"], "arguments": {"amount": {"maximum": 400}}}]
    sent = rig.sent(authorization_details=limits)
    found = rig.accepted(sent)
    assert found.details is not None
    assert [*found.details.claim] == limits
    other = {"id": sent.call.call_id, "tool": "cancel", "args_hash": sent.call.args_hash}
    assertion = sent.asserting(call=other | {"canon": "jcs"})
    assert rig.refused(sent, assertion=assertion, tool="cancel") == "details_exceeded"
    from agent_identity import canonical

    more = ARGS | {"amount": 401}
    digest = canonical.args_digest(more)
    assertion = sent.asserting(
        call={"id": sent.call.call_id, "tool": "book_flight", "args_hash": digest, "canon": "jcs"}
    )
    assert rig.refused(sent, assertion=assertion, args=more) == "details_exceeded"


# -- the token --------------------------------------------------------------------------------------------------------


def test_B06_a_token_and_its_hash_come_together_or_not_at_all(rig: Rig) -> None:
    sent = rig.sent(with_token=True)
    assert rig.refused(sent, token=None) == "token_mismatch"
    assert rig.refused(sent, token="other") == "token_mismatch"
    assert rig.refused(rig.sent(), token="other") == "token_mismatch"


def test_B29_bobs_token_or_one_of_another_key_is_refused_beside_alices_chain(rig: Rig) -> None:
    sent = rig.sent(with_token=True)
    key = rig.identity.authority._keyring.signing
    head = {"typ": "at+jwt", "alg": key.alg, "kid": key.thumbprint}
    body = json.loads(unb64url((sent.token or "").split(".")[1]))

    def token(**claims: Any) -> str:
        said = {n: v for n, v in (body | claims).items() if v is not None}
        return key.compact(b64url(json.dumps(head).encode()), json.dumps(said).encode())

    def refused(token: str, **options: Any) -> str:
        assertion = sent.asserting(ath=hash_of(token))
        return rig.refused(sent, token=token, assertion=assertion, options=options)

    other = {"jkt": SigningKey.generate().thumbprint}
    assert refused(token(sub="bob")) == "subject_mismatch"
    assert refused(token(cnf=other)) == "binding_mismatch"
    assert refused(token(aud="https://hotels.example")) == "token_audience"
    assert refused(token(iat=body["iat"] - 100, exp=body["iat"] - 31)) == "expired"
    unlinked = token(sub="invoice-bot", cnf=None)
    assertion = sent.asserting(ath=hash_of(unlinked))
    assert refused(unlinked) == "subject_mismatch"
    assert rig.accepted(
        sent, token=unlinked, assertion=assertion, options={"allow": {"unlinked_token"}}
    ).token_verified
    assert refused(token(sub="x", cnf=other), allow={"unlinked_token"}) == "binding_mismatch"


# -- approval, revocation ---------------------------------------------------------------------------------------------

APPROVAL = {
    "id": "apr_1",
    "by": "user:bob",
    "method": "callback",
    "at": 1_795_518_000,
    "digest": "sha-256:x",
    "evidence": "key",
}


def test_an_approval_is_asserted_whatever_the_agent_says_of_it(rig: Rig) -> None:
    sent = rig.sent()
    found = rig.accepted(sent, assertion=sent.asserting(approval=APPROVAL)).approval
    assert found is not None
    assert (found.by, found.evidence) == ("user:bob", "asserted")
    more = APPROVAL | {"proof": "a.b.c", "acr": "urn:x:strong"}
    proven = rig.accepted(sent, assertion=sent.asserting(approval=more)).approval
    assert proven is not None
    assert (proven.proof, proven.acr, proven.evidence) == ("a.b.c", "urn:x:strong", "asserted")


def test_an_agent_of_the_chain_approves_nothing(rig: Rig) -> None:
    sent = rig.sent(depth=1)
    by = "urn:agent-identity:agent:invoice-bot"
    assertion = sent.asserting(approval=APPROVAL | {"by": by})
    assert rig.refused(sent, assertion=assertion) == "approval_by_actor"


def test_an_approvals_claims_have_their_types_whether_they_count_or_not(rig: Rig) -> None:
    for name in APPROVAL.keys() | {"proof", "acr"}:
        sent = rig.sent()
        assertion = sent.asserting(approval=APPROVAL | {name: ["x"]})
        assert rig.refused(sent, assertion=assertion) == "claim_malformed"
    for name in APPROVAL:
        less = {each: value for each, value in APPROVAL.items() if each != name}
        sent = rig.sent()
        assert rig.refused(sent, assertion=sent.asserting(approval=less)) == "claim_missing"


def test_B15_what_was_revoked_anywhere_up_the_chain_is_refused(rig: Rig) -> None:
    sent = rig.sent(depth=3)
    root, issuer = sent.call.reach.chain[-1], rig.identity.authority.issuer
    references = [
        *(root.txn, root.jti, root.agent, root.jkt),
        *("user:alice", f"user:{issuer}#alice"),
        *(grant.jti for grant in sent.call.reach.chain),
    ]
    for reference in references:
        from dataclasses import replace

        trust = [replace(rig.anchor, revocations=Revoked(reference))]
        assert rig.refused(sent, RevokedError, options={"trust": trust}) == "revoked"
    assert rig.accepted(sent, options={"trust": [replace(rig.anchor, revocations=Revoked("x"))]})


class Since:
    """What was revoked, and when."""

    def __init__(self, reference: str, at: float) -> None:
        self._reference, self._at = reference, at

    def is_revoked(self, references, issued_at: float, /) -> bool:
        return self._reference in references and issued_at <= self._at


def _signed(key: SigningKey, claims: dict[str, Any]) -> str:
    head = {"typ": "at+jwt", "alg": key.alg, "kid": key.thumbprint}
    return key.compact(b64url(json.dumps(head).encode()), json.dumps(claims).encode())


def test_B15_a_revoked_token_stays_revoked_beside_a_chain_that_was_made_later(rig: Rig) -> None:
    from dataclasses import replace

    old = rig.sent(with_token=True).token
    assert old is not None
    revoked_at = rig.clock() + 10
    rig.clock.now += 60
    sent = rig.sent()
    said = {"token": old, "assertion": sent.asserting(ath=hash_of(old))}
    assert rig.accepted(sent, **said).token_verified
    jti = json.loads(unb64url(old.split(".")[1]))["jti"]
    trust = [replace(rig.anchor, revocations=Since(jti, revoked_at))]
    assert rig.refused(sent, RevokedError, options={"trust": trust}, **said) == "revoked"


def test_B15_a_token_of_another_issuer_is_revoked_by_that_one(rig: Rig) -> None:
    key, issuer, now = SigningKey.generate(), "https://tokens.example", int(rig.clock())
    token = _signed(
        key,
        {"iss": issuer, "sub": "svc", "aud": FLIGHTS, "iat": now, "exp": now + 60, "jti": "t1"}
        | {"scope": "book"},
    )
    sent = rig.sent()

    def seen(revoked: str) -> dict[str, Any]:
        other = TrustAnchor(
            issuer,
            jwks=[{**key.public_jwk, "kid": key.thumbprint}],
            revocations=Since(revoked, rig.clock()),
        )
        options = {"trust": [rig.anchor, other], "allow": {"unlinked_token"}}
        return {
            "token": token,
            "assertion": sent.asserting(ath=hash_of(token)),
            "options": options,
        }

    assert rig.accepted(sent, **seen("another")).token_verified
    assert rig.refused(sent, RevokedError, **seen("t1")) == "revoked"
