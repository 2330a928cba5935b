# SPDX-License-Identifier: Apache-2.0
"""What a service believes of a request, rule by rule. Each request is a real one, signed in a session, with one thing wrong.

Whatever is refused is checked for what must not happen: nothing of it is remembered as used.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest

from agent_identity import AgentIdentity, current_credential, tool
from agent_identity.authority import Authority
from agent_identity.credentials.oauth.dpop import ProofKey
from agent_identity.delegation.grant import hash_of, mint_root
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    RevokedError,
    VerificationError,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.records import CALL_INTENDED
from agent_identity.session import Session
from agent_identity.values import b64url, unb64url
from agent_identity.verify import (
    MemoryReplay,
    TrustAnchor,
    UnsafeNoReplayCheck,
    UnsafeNoRevocations,
    Verifier,
)

BILLING = "https://billing.example"
MAIL = "https://mail.example"
URL = f"{BILLING}/invoices?customer=ACME"
READ = ("invoices:read",)
OTHER = SigningKey.generate()


@dataclass(frozen=True)
class Sent:
    """A request on its way, as an attacker may change it."""

    method: str
    url: str
    headers: dict[str, str]
    body: bytes | None

    def but(self, **headers: str | None) -> Sent:
        """With other headers, `Agent_Assertion=None` for none."""
        changed = self.headers | {name.replace("_", "-"): v for name, v in headers.items()}
        return replace(self, headers={n: v for n, v in changed.items() if v is not None})


class SpiedReplay:
    """A replay store that tells what it was asked to remember."""

    def __init__(self, not_before: int = 0) -> None:
        self.not_before = not_before
        self.remembered: list[object] = []

    def remember(self, key: object, until: float, /) -> bool:
        self.remembered.append((key, until))
        return True


class Revoked:
    """Revocations of the given references, at one time."""

    def __init__(self, *references: str, at: float) -> None:
        self._references = frozenset(references)
        self._at = at

    def is_revoked(self, references, issued_at: float, /) -> bool:
        return issued_at <= self._at and not self._references.isdisjoint(references)


class Rig:
    """Alice's session at a bot, and the service that it calls."""

    def __init__(self, identity: AgentIdentity, session: Session, clock: Any) -> None:
        self.identity = identity
        self.session = session
        self.clock = clock
        self.anchor = TrustAnchor(
            identity.authority.issuer,
            jwks=identity.authority.jwks(),
            revocations=UnsafeNoRevocations(),
            evidence="issuer",
        )

    def request(
        self,
        method: str = "GET",
        url: str = URL,
        body: bytes | None = b"",
        *,
        count: int = 1,
        scopes: tuple[str, ...] = READ,
    ) -> Sent:
        return self.requests(method, url, body, count=count, scopes=scopes)[-1]

    def requests(
        self,
        method: str = "GET",
        url: str = URL,
        body: bytes | None = b"",
        *,
        count: int = 2,
        scopes: tuple[str, ...] = READ,
    ) -> list[Sent]:
        """Several requests of one call."""
        from agent_identity.adapters import Tool

        with self.session.call(Tool("sign", resource=BILLING, scopes=scopes), {}) as call:
            credential = call.credential()
            return [
                Sent(method, url, credential.headers(method, url, body), body) for _ in range(count)
            ]

    def verifier(self, **options: Any) -> Verifier:
        trust = options.pop("trust", [self.anchor])
        defaults = {"audience": BILLING, "clock": self.clock, "replay": SpiedReplay()}
        return Verifier(trust, **(defaults | options))

    def accepted(self, sent: Sent, *, scopes: Any = READ, **options: Any):
        verifier = self.verifier(**options)
        return verifier.verify_request(
            sent.method, sent.url, sent.headers, sent.body, scopes=scopes
        )

    def refused(
        self,
        sent: Sent,
        *,
        error: type[AgentIdentityError] = VerificationError,
        scopes: Any = READ,
        **options: Any,
    ) -> str:
        replay = options.setdefault("replay", SpiedReplay())
        with pytest.raises(error) as caught:
            self.accepted(sent, scopes=scopes, **options)
        assert [*replay.remembered] == []
        return caught.value.code

    def asserting(
        self,
        sent: Sent,
        *,
        key: SigningKey | None = None,
        header: dict[str, Any] | None = None,
        **claims: Any,
    ) -> Sent:
        """The same request with other claims in its assertion, signed by the agent itself; None leaves one out."""
        key = key or self.session._state.agent.key
        jwk = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
        compact = resigned(sent.headers["Agent-Assertion"], key, jwk | (header or {}), claims)
        return sent.but(Agent_Assertion=compact)

    def with_token(
        self,
        sent: Sent,
        token: str,
        *,
        scheme: str = "DPoP",
        proof_key: SigningKey | None = None,
        url: str | None = None,
    ) -> Sent:
        """The same request with another token, to which assertion and proof agree."""
        proof = ProofKey(proof_key or self.session._state.agent.key).proof(
            sent.method, url or sent.url, self.clock(), ath=hash_of(token)
        )
        asserting = self.asserting(sent, ath=hash_of(token))
        return asserting.but(Authorization=f"{scheme} {token}", DPoP=proof)

    def token(self, sent: Sent, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
        """The request's token with other claims, signed by the authority itself."""
        token = sent.headers["Authorization"].partition(" ")[2]
        key = self.identity.authority._keyring.signing
        good = {"typ": "at+jwt", "alg": key.alg, "kid": key.thumbprint}
        return resigned(token, key, good | (header or {}), claims)


def claims_of(compact: str) -> dict[str, Any]:
    return json.loads(unb64url(compact.split(".")[1]))


def resigned(compact: str, key: SigningKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
    body = {n: v for n, v in (claims_of(compact) | claims).items() if v is not None}
    head = {n: v for n, v in header.items() if v is not None}
    return key.compact(b64url(json.dumps(head).encode()), json.dumps(body).encode())


@pytest.fixture
def open_rig(make_identity, clock) -> Callable[..., Any]:
    identity = make_identity(clock=clock, authority=Authority(clock=clock))

    @contextmanager
    def opened(subject: str = "user:alice", **options: Any) -> Iterator[Rig]:
        with identity.on_behalf_of(subject, purpose="close the books", **options) as session:
            yield Rig(identity, session, clock)

    return opened


@pytest.fixture
def rig(open_rig) -> Iterator[Rig]:
    with open_rig() as made:
        yield made


# -- what is good --------------------------------------------------------------------------------------------------------


def test_a_verified_request_says_who_through_whom_for_what(rig: Rig) -> None:
    sent = rig.request()
    call = rig.accepted(sent)
    assert (call.principal.sub, call.principal.profile) == ("alice", "user")
    assert call.principal.iss == rig.identity.authority.issuer
    assert (call.evidence, call.purpose, call.txn) == ("issuer", "close the books", rig.session.id)
    assert call.agent == "urn:agent-identity:agent:invoice-bot"
    assert (call.call.tool, call.scopes, call.token_verified) == ("sign", {"invoices:read"}, True)
    intent = next(r for r in rig.session.records() if r.kind == CALL_INTENDED)
    assert (call.call.id, call.call.trace_id) == (intent.call_id, intent.trace_id)
    assert call.call.args_hash == claims_of(sent.headers["Agent-Assertion"])["call"]["args_hash"]


def test_a_decorated_tools_own_request_is_verified(rig: Rig) -> None:
    @tool(resource=BILLING, scopes=READ)
    def read(customer: str) -> Sent:
        url = f"{BILLING}/invoices?customer={customer}"
        return Sent("GET", url, current_credential().headers("GET", url, b""), b"")

    assert rig.accepted(read("ACME")).call.tool == "read"


def test_B25_only_the_first_agent_is_vouched_for_by_an_anchor(rig: Rig) -> None:
    with rig.session.delegate("sub") as child:
        sent = Rig(rig.identity, child, rig.clock).request()
        call = rig.accepted(sent)
    assert [(actor.agent.rpartition(":")[2], actor.vouched) for actor in call.chain] == [
        ("sub", False),
        ("invoice-bot", True),
    ]
    assert call.chain[0].instance == child._state.agent.key.thumbprint


@pytest.mark.parametrize("method", ["POST", "DELETE", "get"])
def test_B05_another_method_is_refused(rig: Rig, method: str) -> None:
    assert rig.refused(replace(rig.request(), method=method)) == "method_mismatch"


@pytest.mark.parametrize(
    ("signed_url", "seen"),
    [
        (f"{BILLING}/a", "https://billing.example:443/a"),
        (f"{BILLING}/a", "HTTPS://Billing.EXAMPLE/a"),
        (f"{BILLING}", f"{BILLING}/"),
        (f"{BILLING}/", f"{BILLING}"),
        (f"{BILLING}/%c3%a9", f"{BILLING}/%C3%A9"),
        (f"{BILLING}/~a", f"{BILLING}/%7Ea"),
    ],
)
def test_a_url_written_in_another_way_is_the_same(rig: Rig, signed_url: str, seen: str) -> None:
    assert rig.accepted(replace(rig.request(url=signed_url), url=seen))


@pytest.mark.parametrize(
    "seen", ["/a#part", "/a?to=A#&to=B", "/x/../a", "/./a", "/x/%2e%2e/a", "/x/.%2E/a", "/a/.."]
)
def test_B05_a_url_that_two_would_read_differently_is_refused(rig: Rig, seen: str) -> None:
    sent = rig.request(url=f"{BILLING}/a")
    assert rig.refused(replace(sent, url=BILLING + seen)) == "url_malformed"


@pytest.mark.parametrize(
    "url",
    [
        f"{BILLING}/invoice?customer=ACME",
        f"{BILLING}/invoices/?customer=ACME",
        f"{BILLING}/Invoices?customer=ACME",
        f"{BILLING}:8443/invoices?customer=ACME",
        "http://billing.example/invoices?customer=ACME",
        "https://mail.example/invoices?customer=ACME",
    ],
)
def test_B05_another_url_is_refused(rig: Rig, url: str) -> None:
    assert rig.refused(replace(rig.request(), url=url)) == "url_mismatch"


@pytest.mark.parametrize("url", ["/invoices", "", "https://a@billing.example/", f"{BILLING}/ö"])
def test_a_url_that_has_no_one_reading_is_refused_as_what_it_is(rig: Rig, url: str) -> None:
    sent = replace(rig.request(), url=url)
    assert rig.refused(sent, error=InvalidAssertionError) == "url_malformed"


@pytest.mark.parametrize(
    "query", ["", "?", "?customer=Globex", "?customer=ACME&all=1", "?customer=AC%4DE"]
)
def test_B05_another_query_is_refused(rig: Rig, query: str) -> None:
    sent = replace(rig.request(), url=f"{BILLING}/invoices{query}")
    assert rig.refused(sent) == "query_mismatch"


def test_B05_a_query_where_none_was_signed_is_refused(rig: Rig) -> None:
    sent = rig.request(url=f"{BILLING}/invoices")
    assert rig.refused(replace(sent, url=f"{BILLING}/invoices?all=1")) == "query_mismatch"


def test_B05_another_body_is_refused(rig: Rig) -> None:
    sent = rig.request("POST", URL, b'{"total":1}')
    assert rig.accepted(sent)
    assert rig.refused(replace(sent, body=b'{"total":9}')) == "body_mismatch"
    assert rig.refused(replace(sent, body=b"")) == "body_mismatch"


def test_a_body_that_the_assertion_does_not_bind_is_refused_unless_relaxed_by_name(
    rig: Rig,
) -> None:
    streamed = replace(rig.request("POST", URL, None), body=b"whatever")
    assert rig.refused(streamed) == "body_unbound"
    assert rig.accepted(streamed, allow={"unbound_body"})


def test_a_body_that_the_service_does_not_show_is_refused_unless_relaxed_by_name(rig: Rig) -> None:
    sent = rig.request("POST", URL, b"body")
    assert rig.refused(replace(sent, body=None)) == "body_unbound"
    assert rig.accepted(replace(sent, body=None), allow={"unbound_body"})


def test_a_body_that_is_bound_is_compared_even_where_unbound_ones_may_pass(rig: Rig) -> None:
    sent = replace(rig.request("POST", URL, b"body"), body=b"other")
    assert rig.refused(sent, allow={"unbound_body"}) == "body_mismatch"


# -- headers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Agent-Assertion", "Agent-Delegation", "Authorization", "DPoP"])
def test_B05_a_header_that_comes_twice_is_refused(rig: Rig, name: str) -> None:
    sent = rig.request()
    twice = [*sent.headers.items(), (name.lower(), sent.headers[name])]
    assert rig.refused(replace(sent, headers=twice)) == "header_repeated"
    spelled = sent.headers | {name.upper(): sent.headers[name]} | {name.lower(): "x"}
    assert rig.refused(replace(sent, headers=spelled)) == "header_repeated"


def test_other_headers_may_repeat_and_names_have_no_case(rig: Rig) -> None:
    sent = rig.request()
    pairs = [(name.lower(), value) for name, value in sent.headers.items()]
    assert rig.accepted(replace(sent, headers=[*pairs, ("cookie", "a"), ("cookie", "b")]))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Agent_Assertion", "assertion_missing"), ("Agent_Delegation", "chain_missing")],
)
def test_a_request_without_its_statements_is_refused(rig: Rig, name: str, expected: str) -> None:
    assert rig.refused(rig.request().but(**{name: None})) == expected


def test_a_credential_outside_a_tool_asserts_no_call_and_is_refused(rig: Rig) -> None:
    headers = rig.session.credential(BILLING, READ).headers("GET", URL, b"")
    assert rig.refused(Sent("GET", URL, headers, b"")) == "assertion_missing"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Agent_Delegation", "x" * 65_537, "chain_too_large"),
        ("Agent_Delegation", "x" * 16_385, "token_too_large"),
        ("Agent_Assertion", "x" * 16_385, "token_too_large"),
        ("Agent_Assertion", f"{'x' * 2000}.x.x", "header_too_large"),
        ("Authorization", f"DPoP {'x' * 16_385}", "token_too_large"),
        ("DPoP", "x" * 16_385, "token_too_large"),
        ("DPoP", f"{'x' * 2000}.x.x", "header_too_large"),
    ],
)
def test_B20_a_header_that_is_too_large_is_refused(rig, name, value, expected) -> None:
    assert rig.refused(rig.request().but(**{name: value})) == expected


@pytest.mark.parametrize("name", ["Agent-Assertion", "Agent-Delegation", "Authorization", "DPoP"])
@pytest.mark.parametrize("value", ["", " ", ",", "é", "\udcff", "a.b.c", "DPoP ", "DPoP é", "DPoP"])
def test_a_header_of_nonsense_is_refused_with_a_typed_error(rig: Rig, name, value) -> None:
    sent = rig.request()
    rig.refused(replace(sent, headers=sent.headers | {name: value}))


# -- the assertion -------------------------------------------------------------------------------------------------------


def test_B28_a_recorded_assertion_that_is_sent_is_refused(rig: Rig) -> None:
    sent = rig.request()
    intent = next(r for r in rig.session.records() if r.kind == CALL_INTENDED)
    recorded = sent.but(Agent_Assertion=intent.to_dict()["assertion"])
    assert rig.refused(recorded) == "not_for_sending"


def test_B28_any_use_at_all_is_refused(rig: Rig) -> None:
    sent = rig.asserting(rig.request(), use="send")
    assert rig.refused(sent) == "not_for_sending"


def test_B28_what_was_asserted_of_a_local_tool_is_refused_everywhere(rig: Rig) -> None:
    local = "urn:agent-identity:local"
    sent = rig.asserting(rig.request(), aud=local)
    assert rig.refused(sent) == "not_for_sending"
    assert rig.refused(sent, audience=local) == "not_for_sending"


@pytest.mark.parametrize("jti", ["{}", "{}.", "{}.0", "{}.01", "{}.r1", "{}.-1", "{}.²", "x.1"])
def test_B27_an_assertion_of_another_door_is_refused(rig: Rig, jti: str) -> None:
    sent = rig.request()
    call_id = claims_of(sent.headers["Agent-Assertion"])["call"]["id"]
    assert rig.refused(rig.asserting(sent, jti=jti.format(call_id))) == "wrong_door"


def test_an_assertion_without_method_or_url_is_for_no_request(rig: Rig) -> None:
    assert rig.refused(rig.asserting(rig.request(), htm=None)) == "method_mismatch"
    assert rig.refused(rig.asserting(rig.request(), htu=None)) == "url_mismatch"


def test_B05_a_request_to_one_service_is_worth_nothing_at_another(rig: Rig) -> None:
    for other in (MAIL, f"{BILLING}/", f"{BILLING}/v1"):
        assert rig.refused(rig.request(), audience=other) == "audience_mismatch"


def test_B23_a_service_that_names_itself_in_a_replayed_assertion_has_no_grant(rig: Rig) -> None:
    """The agent signs for mail, below a chain that reaches billing alone."""
    sent = rig.asserting(rig.request(), aud=MAIL)
    assert rig.refused(sent, audience=MAIL) == "audience_mismatch"


def test_B23_nobody_but_the_leaf_asserts_below_its_chain(rig: Rig) -> None:
    assert rig.refused(rig.asserting(rig.request(), key=OTHER)) == "key_mismatch"
    stolen = {"jwk": rig.session._state.agent.key.public_jwk}
    forged = rig.asserting(rig.request(), key=OTHER, header=stolen)
    assert rig.refused(forged) == "bad_signature"


def test_another_type_is_refused_before_any_key_is_looked_at(rig: Rig) -> None:
    sent = rig.asserting(rig.request(), key=OTHER, header={"typ": "agent-grant+jwt"})
    assert rig.refused(sent) == "wrong_typ"


def test_B05_an_assertion_for_another_service_is_refused_although_the_chain_reaches_this_one(
    rig: Rig,
) -> None:
    assert rig.refused(rig.asserting(rig.request(), aud=MAIL)) == "audience_mismatch"


def test_an_assertion_of_another_principals_session_is_refused(rig: Rig, open_rig) -> None:
    with open_rig("user:bob") as bob:
        theirs = bob.request().headers["Agent-Assertion"]
    assert rig.refused(rig.request().but(Agent_Assertion=theirs)) == "leaf_mismatch"


@pytest.mark.parametrize("claim", ["iss", "sub", "txn"])
def test_an_assertion_is_its_leaf_agents(rig: Rig, claim: str) -> None:
    sent = rig.asserting(rig.request(), **{claim: "another"})
    assert rig.refused(sent) == "leaf_mismatch"


def test_an_assertion_below_another_grant_of_the_same_session_is_refused(rig: Rig) -> None:
    narrow, wide = rig.request(), rig.request(scopes=(*READ, "journal:write"))
    spliced = narrow.but(Agent_Delegation=wide.headers["Agent-Delegation"])
    assert rig.refused(spliced) == "grant_mismatch"


def test_B04_a_sub_agents_assertion_is_refused_beside_its_parents_chain(rig: Rig) -> None:
    with rig.session.delegate("sub") as child:
        theirs = Rig(rig.identity, child, rig.clock).request()
        ours = rig.request()
        assert rig.accepted(theirs)
        spliced = theirs.but(Agent_Delegation=ours.headers["Agent-Delegation"])
        assert rig.refused(spliced) == "leaf_mismatch"


def test_B17_an_assertion_expires_after_a_minute_and_the_skew(rig: Rig) -> None:
    sent = rig.request()
    rig.clock.now += 89.9
    assert rig.accepted(sent)
    rig.clock.now += 0.1
    assert rig.refused(sent) == "expired"


def test_B17_an_assertion_from_the_future_is_refused_beyond_the_skew(rig: Rig) -> None:
    now = int(rig.clock())
    early = rig.asserting(rig.request(), iat=now + 30, exp=now + 90)
    assert rig.accepted(early)
    assert rig.refused(rig.asserting(early, iat=now + 31)) == "not_yet_valid"


def test_B17_an_assertion_is_not_older_than_its_grant_by_more_than_the_skew(rig: Rig) -> None:
    """An agent's clock may be behind its authority's; a grant's hash can't be known before the grant."""
    now = int(rig.clock())
    sent = rig.asserting(rig.request(), iat=now - 30, exp=now + 30)
    assert rig.accepted(sent)
    assert rig.refused(rig.asserting(sent, iat=now - 31, exp=now + 29)) == "not_yet_valid"


@pytest.mark.parametrize("lifetime", [61, 0, -1, 3600])
def test_an_assertion_lives_a_minute_at_most(rig: Rig, lifetime: int) -> None:
    sent = rig.asserting(rig.request(), exp=int(rig.clock()) + lifetime)
    assert rig.refused(sent) == "lifetime_exceeded"


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        *(({name: None}, "claim_missing") for name in ("iss", "sub", "txn", "aud", "iat", "exp")),
        *(({name: None}, "claim_missing") for name in ("jti", "grant_hash", "call")),
        *(({name: 1}, "claim_malformed") for name in ("htm", "htu", "htq", "content_digest")),
        *(({name: 1}, "claim_malformed") for name in ("ath", "use", "trace", "approval", "call")),
        ({"aud": [BILLING]}, "claim_malformed"),
        ({"exp": 1.5}, "claim_malformed"),
        ({"admin": True}, "claim_unknown"),
        ({"trace": {"trace_id": "a", "span_id": "b", "more": 1}}, "claim_unknown"),
        ({"trace": {"trace_id": "a"}}, "claim_missing"),
        ({"approval": {"by": "role:boss", "sure": True}}, "claim_unknown"),
        ({"call": {"id": "c", "tool": "t", "args_hash": "sha-256:x"}}, "claim_missing"),
        (
            {"call": {"id": "c", "tool": "t", "args_hash": "sha-256:x", "canon": "jcs", "x": 1}},
            "claim_unknown",
        ),
        (
            {"call": {"id": "c", "tool": "t", "args_hash": "md5:x", "canon": "jcs"}},
            "digest_unknown",
        ),
        (
            {"call": {"id": "c", "tool": "t", "args_hash": "sha-256:x", "canon": "xml"}},
            "digest_unknown",
        ),
    ],
)
def test_an_assertion_with_a_claim_of_no_known_form_is_refused(rig, claims, expected) -> None:
    assert rig.refused(rig.asserting(rig.request(), **claims)) == expected


@pytest.mark.parametrize(
    "digest",
    [
        "sha-256:",
        "sha-256:" + "A" * 42,
        "sha-256:" + "A" * 44,
        "sha-256:" + "A" * 43 + "=",
        "sha-256:" + "A" * 42 + "B",
        "sha-256:" + "+" * 43,
        "sha-256:" + "ab" * 32,
        "sha-256:sha-256:" + "A" * 43,
        "sha-256:" + "A" * 43 + "\n",
        "sha-256:" + "\u00e9" * 43,
    ],
)
def test_a_digest_of_no_arguments_at_all_is_refused_where_they_are_not_seen(
    rig: Rig, digest: str
) -> None:
    sent = rig.request()
    said = claims_of(sent.headers["Agent-Assertion"])["call"]
    assert rig.refused(rig.asserting(sent, call=said | {"args_hash": digest})) == "digest_malformed"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"typ": "JWT"}, "wrong_typ"),
        ({"typ": "agent-grant+jwt"}, "wrong_typ"),
        ({"kid": "k1"}, "claim_unknown"),
        ({"jwk": None}, "claim_missing"),
        ({"alg": "none"}, "alg_not_allowed"),
        ({"alg": "HS256"}, "alg_not_allowed"),
    ],
)
def test_an_assertions_header_is_held_to_its_few_members(rig: Rig, header, expected) -> None:
    assert rig.refused(rig.asserting(rig.request(), header=header)) == expected


# -- used once -----------------------------------------------------------------------------------------------------------


def test_B10_a_request_is_taken_once(rig: Rig) -> None:
    replay = MemoryReplay(clock=rig.clock)
    sent = rig.request()
    assert rig.accepted(sent, replay=replay)
    for _ in range(2):
        with pytest.raises(InvalidAssertionError, match="assertion was used") as refused:
            rig.accepted(sent, replay=replay)
        assert refused.value.code == "replayed"


def test_each_request_of_a_call_is_taken(rig: Rig) -> None:
    replay = MemoryReplay(clock=rig.clock)
    calls = {rig.accepted(sent, replay=replay).call.id for sent in rig.requests(count=3)}
    assert len(calls) == 1


def test_B10_the_same_request_50_ways_at_once_is_taken_exactly_once(rig: Rig) -> None:
    verifier = rig.verifier(replay=None)
    sent = rig.request()
    barrier = threading.Barrier(50)

    def send() -> str:
        barrier.wait(10)
        try:
            verifier.verify_request(sent.method, sent.url, sent.headers, sent.body, scopes=READ)
        except VerificationError as error:
            return error.code
        return "accepted"

    with ThreadPoolExecutor(50) as pool:
        outcomes = [future.result() for future in [pool.submit(send) for _ in range(50)]]
    assert sorted(outcomes) == ["accepted"] + ["replayed"] * 49


def test_a_verifier_of_its_own_remembers_as_well(rig: Rig) -> None:
    verifier = rig.identity.verifier(audience=BILLING)
    sent = rig.request()
    verifier.verify_request(sent.method, sent.url, sent.headers, sent.body, scopes=READ)
    with pytest.raises(InvalidAssertionError) as refused:
        verifier.verify_request(sent.method, sent.url, sent.headers, sent.body, scopes=READ)
    assert refused.value.code == "replayed"


def test_B10_assertion_and_proof_are_remembered_per_audience_and_leaf_until_they_have_expired(
    rig: Rig,
) -> None:
    replay = SpiedReplay()
    sent = rig.request()
    rig.accepted(sent, replay=replay)
    now = int(rig.clock())
    key = (BILLING, rig.session._state.agent.key.thumbprint)
    assertion = claims_of(sent.headers["Agent-Assertion"])
    proof = claims_of(sent.headers["DPoP"])
    assert replay.remembered == [
        ((*key, "assertion", assertion["jti"]), now + 60 + 30),
        ((*key, "proof", proof["jti"]), now + 300 + 30),
    ]


def test_B10_a_request_that_fails_burns_nothing_so_that_its_sender_can_send_it_again(
    rig: Rig,
) -> None:
    replay = MemoryReplay(clock=rig.clock)
    sent = rig.request()
    for wrong in (
        {"scopes": ("invoices:pay",)},
        {"audience": MAIL},
        {"trust": [replace(rig.anchor, revocations=Revoked("user:alice", at=rig.clock()))]},
    ):
        with pytest.raises(AgentIdentityError):
            rig.accepted(sent, replay=replay, **wrong)
    assert len(replay) == 0
    assert rig.accepted(sent, replay=replay)


def test_B29_a_proof_is_used_once_although_its_assertion_is_fresh(rig: Rig) -> None:
    replay = MemoryReplay(clock=rig.clock)
    first, second = rig.requests()
    assert rig.accepted(first, replay=replay)
    with pytest.raises(VerificationError, match="proof was used") as refused:
        rig.accepted(second.but(DPoP=first.headers["DPoP"]), replay=replay)
    assert refused.value.code == "replayed"


def test_B11_what_is_older_than_the_memory_of_what_was_used_is_refused(rig: Rig) -> None:
    sent = rig.request()
    started = int(rig.clock()) + 30
    assert rig.accepted(sent, replay=SpiedReplay(started))
    assert rig.refused(sent, replay=SpiedReplay(started + 1)) == "before_start"


def test_B11_a_proof_older_than_that_memory_is_refused_too(rig: Rig) -> None:
    first = rig.request()
    rig.clock.now += 100
    second = rig.request().but(DPoP=first.headers["DPoP"])
    assert rig.accepted(second)
    assert rig.refused(second, replay=SpiedReplay(int(rig.clock()))) == "before_start"


def test_B11_a_replay_store_that_is_away_refuses(rig: Rig) -> None:
    class Away(SpiedReplay):
        def remember(self, key: object, until: float, /) -> bool:
            raise DeniedError("replay_store_away", "it is away")

    with pytest.raises(DeniedError) as refused:
        rig.accepted(rig.request(), replay=Away())
    assert refused.value.code == "replay_store_away"


class AsyncStore:
    not_before = 0
    remembered: tuple[object, ...] = ()

    async def remember(self, key: object, until: float, /) -> bool:
        raise AssertionError


class Answering:
    """A plug-in of any kind that answers with anything."""

    def __init__(self, answer: Any, not_before: Any = 0) -> None:
        self.answer = answer
        self.not_before = not_before
        self.remembered: list[object] = []

    def _answered(self, *_: object) -> Any:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer

    remember = is_revoked = __call__ = _answered


NEITHER = [None, 1, 0, "True", "", b"", [True], object(), (True,), float("nan"), NotImplemented]


@pytest.mark.parametrize("answer", NEITHER, ids=lambda answer: type(answer).__name__)
def test_a_replay_store_says_yes_by_true_alone(rig: Rig, answer: Any) -> None:
    store = Answering(answer)
    assert rig.refused(rig.request(), error=DeniedError, replay=store) == "replay_store_failed"


async def test_an_async_replay_store_is_refused_at_both_doors(rig: Rig) -> None:
    sent, store = rig.request(), AsyncStore()
    assert rig.refused(sent, error=DeniedError, replay=store) == "replay_store_failed"
    with pytest.raises(DeniedError, match="coroutine") as refused:
        await rig.verifier(replay=store).averify_request(
            sent.method, sent.url, sent.headers, sent.body, scopes=READ
        )
    assert refused.value.code == "replay_store_failed"


@pytest.mark.parametrize("answer", NEITHER, ids=lambda answer: type(answer).__name__)
def test_a_source_of_revocations_says_no_by_false_alone(rig: Rig, answer: Any) -> None:
    anchor = replace(rig.anchor, revocations=Answering(answer))
    assert rig.refused(rig.request(), trust=[anchor]) == "revocations_failed"


def test_an_async_source_of_revocations_is_refused(rig: Rig) -> None:
    class Async:
        async def is_revoked(self, references: Any, issued_at: float, /) -> bool:
            raise AssertionError

    anchor = replace(rig.anchor, revocations=Async())
    assert rig.refused(rig.request(), trust=[anchor]) == "revocations_failed"


@pytest.mark.parametrize(
    "error", [RuntimeError("secret"), KeyError("x"), TimeoutError(), OSError()]
)
def test_a_plug_in_that_raises_is_a_refusal_that_quotes_nothing_of_it(rig: Rig, error: Any) -> None:
    sent, broken = rig.request(), Answering(error)
    failed = {
        "replay_store_failed": {"replay": broken},
        "revocations_failed": {"trust": [replace(rig.anchor, revocations=broken)]},
        "anchor_unavailable": {"trust": [replace(rig.anchor, jwks=broken)]},
    }
    for code, options in failed.items():
        with pytest.raises((DeniedError, VerificationError)) as refused:
            rig.accepted(sent, **options)
        assert (refused.value.code, "secret" in str(refused.value)) == (code, False)
    clock = Answering(rig.clock())
    verifier = Verifier([rig.anchor], audience=BILLING, clock=clock)
    clock.answer = error
    with pytest.raises(VerificationError) as refused:
        verifier.verify_request(sent.method, sent.url, sent.headers, sent.body, scopes=READ)
    assert refused.value.code == "clock_failed"


@pytest.mark.parametrize("now", [float("nan"), float("inf"), None, "1", True, b"", [], 1j])
def test_a_clock_that_gives_no_time_lets_nothing_pass(rig: Rig, now: Any) -> None:
    """NaN is neither before nor after anything: by it nothing would ever have expired."""
    assert rig.refused(rig.request(), clock=Answering(now)) == "clock_failed"


@pytest.mark.parametrize("start", [float("nan"), float("-inf"), None, "0", False])
def test_a_replay_store_that_began_at_no_time_is_refused(rig: Rig, start: Any) -> None:
    store = Answering(True, not_before=start)
    assert rig.refused(rig.request(), error=DeniedError, replay=store) == "replay_store_failed"


def test_a_replay_store_without_a_start_is_refused(rig: Rig) -> None:
    class Short:
        def remember(self, key: object, until: float, /) -> bool:
            raise AssertionError

    with pytest.raises(DeniedError) as refused:
        rig.accepted(rig.request(), replay=Short())
    assert refused.value.code == "replay_store_failed"


@pytest.mark.parametrize("jwks", [None, "keys", 7, [None], ["key"], {"keys": "all"}, {}, [[]]])
def test_a_function_that_gives_no_keys_is_a_refusal(rig: Rig, jwks: Any) -> None:
    anchor = replace(rig.anchor, jwks=lambda: jwks)
    assert rig.refused(rig.request(), trust=[anchor]) in {"anchor_unavailable", "unknown_key"}


def test_an_async_function_for_keys_is_a_refusal(rig: Rig) -> None:
    async def fetch() -> Any:
        raise AssertionError

    assert rig.refused(rig.request(), trust=[replace(rig.anchor, jwks=fetch)]) == (
        "anchor_unavailable"
    )


def test_only_a_service_that_says_so_takes_a_request_twice(rig: Rig) -> None:
    sent = rig.request()
    verifier = rig.verifier(replay=UnsafeNoReplayCheck())
    for _ in range(2):
        verifier.verify_request(sent.method, sent.url, sent.headers, sent.body, scopes=READ)


# -- scopes and evidence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["invoices:pay", "invoices", "*", "INVOICES:READ"])
def test_B01_a_scope_that_the_chain_lacks_is_refused(rig: Rig, scope: str) -> None:
    code = rig.refused(rig.request(), scopes=(*READ, scope), error=InvalidAssertionError)
    assert code == "insufficient_scope"


def test_B01_a_scope_that_the_token_lacks_is_refused(rig: Rig) -> None:
    sent = rig.request()
    for scope in (None, "invoices:list", 5):
        narrow = rig.with_token(sent, rig.token(sent, scope=scope))
        assert rig.refused(narrow) == "insufficient_scope"
        assert scope == 5 or rig.accepted(narrow, scopes=()).token_verified


@pytest.mark.parametrize("scopes", ["invoices:read", "", ["a b"]])
def test_B01_scopes_written_as_one_text_are_an_error_and_never_none(rig: Rig, scopes) -> None:
    code = rig.refused(rig.request(), scopes=scopes, error=ConfigurationError)
    assert code == "scope_malformed"


def test_B26_an_anchor_of_which_nothing_is_said_gives_no_evidence(rig: Rig) -> None:
    plain = replace(rig.anchor, evidence="asserted")
    assert rig.refused(rig.request(), trust=[plain]) == "evidence_exceeded"


def test_B06_a_triggered_run_is_taken_only_where_evidence_agent_is_enough(rig: Rig) -> None:
    run = rig.identity.autonomous(trigger="cron:nightly", purpose="close the day")
    with run as session:
        sent = Rig(rig.identity, session, rig.clock).request()
        assert rig.refused(sent) == "evidence_too_low"
        call = rig.accepted(sent, evidence="agent")
    assert (call.principal.sub, call.principal.profile) == ("cron:nightly", "trigger")
    assert (call.principal.iss, call.evidence) == (session.agent, "agent")


def test_a_chain_of_another_anchor_is_refused(rig: Rig) -> None:
    stranger = replace(rig.anchor, issuer="https://other.example")
    assert rig.refused(rig.request(), trust=[stranger]) == "unknown_anchor"
    assert rig.refused(rig.request(), trust=[]) == "unknown_anchor"


def test_keys_are_given_as_a_set_or_as_a_list(rig: Rig) -> None:
    listed = replace(rig.anchor, jwks=rig.identity.authority.jwks()["keys"])
    assert rig.accepted(rig.request(), trust=[listed])


# -- the token -----------------------------------------------------------------------------------------------------------


def test_a_token_without_ath_and_an_ath_without_token_are_refused(rig: Rig) -> None:
    sent = rig.request()
    assert rig.refused(rig.asserting(sent, ath=None)) == "token_mismatch"
    assert rig.refused(sent.but(Authorization=None)) == "token_mismatch"
    assert rig.refused(rig.asserting(sent, ath=hash_of("another"))) == "token_mismatch"


@pytest.mark.parametrize("value", ["DPoP", "", "eyJhbGciOiJub25lIn0.e30.x", "DPoP "])
def test_an_authorization_that_holds_no_token_is_not_the_same_as_none(rig: Rig, value) -> None:
    sent = rig.asserting(rig.request(), ath=None)
    assert rig.refused(sent.but(Authorization=value)) == "token_mismatch"


def test_without_any_token_nothing_is_said_to_be_verified(rig: Rig) -> None:
    sent = rig.asserting(rig.request(), ath=None).but(Authorization=None, DPoP=None)
    assert not rig.accepted(sent).token_verified


def test_B29_bobs_token_beside_alices_chain_is_refused(rig: Rig, open_rig) -> None:
    with open_rig("user:bob") as bob:
        theirs = bob.request().headers["Authorization"].partition(" ")[2]
    assert claims_of(theirs)["sub"] == "bob"
    assert rig.refused(rig.with_token(rig.request(), theirs)) == "subject_mismatch"


def test_B29_a_known_issuer_that_the_chain_does_not_name_is_refused(rig: Rig) -> None:
    partner = TrustAnchor(
        "https://partner.example",
        jwks=[{**OTHER.public_jwk, "kid": "p"}],
        revocations=UnsafeNoRevocations(),
    )
    sent = rig.request()
    header = {"typ": "at+jwt", "alg": "ES256", "kid": "p"}
    token = resigned(rig.token(sent), OTHER, header, {"iss": "https://partner.example"})
    beside = rig.with_token(sent, token)
    assert rig.refused(beside, trust=[rig.anchor, partner]) == "subject_mismatch"
    assert not rig.accepted(beside).token_verified  # to whom nobody of that name is known


def test_B29_a_bound_token_that_comes_as_a_plain_bearer_is_refused(rig: Rig) -> None:
    sent = rig.request()
    for token in (rig.token(sent), rig.token(sent, iss="https://unknown.example")):
        plain = rig.with_token(sent, token, scheme="Bearer").but(DPoP=None)
        assert rig.refused(plain) == "binding_ignored"


def test_B29_a_token_of_another_key_is_refused(rig: Rig) -> None:
    sent = rig.request()
    for cnf in ({"jkt": OTHER.thumbprint}, {"jkt": 5}, {"x5t#S256": "x"}, {}, "x"):
        for issuer in (rig.identity.authority.issuer, "https://unknown.example"):
            token = rig.token(sent, cnf=cnf, iss=issuer)
            assert rig.refused(rig.with_token(sent, token)) == "binding_mismatch"


def test_a_null_binding_is_no_unbound_token(rig: Rig) -> None:
    sent = rig.request()
    token = rig.token(sent)
    key = rig.identity.authority._keyring.signing
    head, _, _ = token.split(".")
    null = key.compact(head, json.dumps(claims_of(token) | {"cnf": None}).encode())
    assert rig.refused(rig.with_token(sent, null, scheme="Bearer")) == "binding_ignored"


def test_a_token_bound_to_no_key_does_not_come_as_dpop(rig: Rig) -> None:
    """RFC 9449 §7.1: the key that the token is bound to has to be the proof's."""
    sent = rig.request()
    unbound = rig.token(sent, cnf=None)
    assert rig.refused(rig.with_token(sent, unbound)) == "binding_mismatch"
    plain = rig.with_token(sent, unbound, scheme="bearer").but(DPoP=None)
    assert rig.accepted(plain).token_verified


@pytest.mark.parametrize(
    ("header", "claims", "expected"),
    [
        ({}, {"sub": "bob"}, "subject_mismatch"),
        ({}, {"sub": None}, "subject_mismatch"),
        ({}, {"aud": MAIL}, "token_audience"),
        ({}, {"aud": [BILLING, MAIL]}, "token_audience"),
        ({}, {"aud": None}, "token_audience"),
        ({}, {"exp": 1_795_518_000 - 30}, "expired"),
        ({}, {"exp": None}, "missing_claim"),
        ({}, {"iat": None}, "missing_claim"),
        ({}, {"nbf": 1_795_518_000 + 31}, "not_yet_valid"),
        ({}, {"exp": 1_795_518_000 + 86_401}, "lifetime_too_long"),
        ({"typ": "JWT"}, {}, "wrong_typ"),
        ({"typ": "agent-grant+jwt"}, {}, "wrong_typ"),
        ({"kid": "other"}, {}, "unknown_key"),
        ({"alg": "HS256"}, {}, "alg_not_allowed"),
    ],
)
def test_B29_a_token_of_a_known_issuer_that_fails_is_refused(rig, header, claims, expected) -> None:
    sent = rig.request()
    token = rig.token(sent, header=header, **claims)
    assert rig.refused(rig.with_token(sent, token)) == expected


def test_B29_a_token_that_another_key_signed_is_refused(rig: Rig) -> None:
    sent = rig.request()
    head = {
        "typ": "at+jwt",
        "alg": "ES256",
        "kid": rig.identity.authority._keyring.signing.thumbprint,
    }
    forged = resigned(rig.token(sent), OTHER, head, {})
    assert rig.refused(rig.with_token(sent, forged)) == "bad_signature"


def test_a_token_with_its_audience_as_a_list_of_one_is_taken(rig: Rig) -> None:
    sent = rig.request()
    assert rig.accepted(rig.with_token(sent, rig.token(sent, aud=[BILLING]))).token_verified


@pytest.mark.parametrize("scheme", ["DPoP", "Bearer"])
def test_B29_a_token_that_cannot_be_verified_here_is_said_not_to_be(rig: Rig, scheme: str) -> None:
    sent = rig.request()
    binding = {} if scheme == "DPoP" else {"cnf": None}
    for token in (
        "opaque",
        "a.b.c",
        "a.b.c.d.e",
        "x" * 16_384,
        rig.token(sent, iss="https://unknown.example", **binding),
        rig.token(sent, iss=["x"], **binding),
    ):
        assert not rig.accepted(rig.with_token(sent, token, scheme=scheme)).token_verified


def test_a_token_under_an_unknown_scheme_is_refused(rig: Rig) -> None:
    sent = rig.request()
    assert rig.refused(rig.with_token(sent, "dXNlcg", scheme="Basic")) == "scheme_unknown"


def test_B29_a_bound_token_without_its_proof_is_refused(rig: Rig) -> None:
    assert rig.refused(rig.request().but(DPoP=None)) == "proof_missing"


def test_B29_a_proof_of_another_key_is_refused(rig: Rig) -> None:
    sent = rig.request()
    proven = rig.with_token(sent, rig.token(sent), proof_key=OTHER)
    assert rig.refused(proven) == "proof_mismatch"
    opaque = rig.with_token(sent, "opaque", proof_key=OTHER)
    assert rig.refused(opaque) == "proof_mismatch"


def test_B29_a_proof_of_another_request_is_refused(rig: Rig) -> None:
    sent = rig.request()
    elsewhere = rig.with_token(sent, rig.token(sent), url=f"{BILLING}/payments")
    assert rig.refused(elsewhere) == "dpop_url"
    posted = rig.request("POST", URL, b"").headers["DPoP"]
    assert rig.refused(sent.but(DPoP=posted)) == "dpop_method"
    other_token = rig.with_token(sent, "opaque").headers["DPoP"]
    assert rig.refused(sent.but(DPoP=other_token)) == "dpop_token"


def test_a_stale_proof_is_refused(rig: Rig) -> None:
    stale = rig.request().headers["DPoP"]
    rig.clock.now += 300.1
    assert rig.refused(rig.request().but(DPoP=stale)) == "dpop_stale"


# -- revoked -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("kind", ["jti", "agent", "jkt"])
def test_B15_what_is_revoked_at_any_level_ends_all_below_it(open_rig, depth, kind) -> None:
    with ExitStack() as stack:
        rig = stack.enter_context(open_rig())
        for number in range(3):
            child = stack.enter_context(rig.session.delegate(f"sub{number}"))
            rig = Rig(rig.identity, child, rig.clock)
        sent = rig.request()
        assert rig.accepted(sent)
        hop = claims_of(sent.headers["Agent-Delegation"].split(", ")[depth])
        reference = {"jti": hop["jti"], "agent": hop["act"]["sub"], "jkt": hop["cnf"]["jkt"]}[kind]
        revoked = replace(rig.anchor, revocations=Revoked(reference, at=rig.clock()))
        assert rig.refused(sent, trust=[revoked], error=RevokedError) == "revoked"


@pytest.mark.parametrize("reference", ["txn", "user:alice", "user:{}#alice", "token"])
def test_B15_a_revoked_session_principal_or_token_is_refused(rig: Rig, reference: str) -> None:
    sent = rig.request()
    token = claims_of(sent.headers["Authorization"].partition(" ")[2])
    known = {"txn": rig.session.id, "token": token["jti"]}
    name = known.get(reference) or reference.format(rig.anchor.issuer)
    revoked = replace(rig.anchor, revocations=Revoked(name, at=rig.clock()))
    assert rig.refused(sent, trust=[revoked], error=RevokedError) == "revoked"


def test_B15_a_child_made_after_its_parent_was_revoked_is_revoked_too(rig: Rig) -> None:
    """A child's `iat` is its parent's own word."""
    rig.request()
    at = rig.clock()
    rig.clock.now += 5
    with rig.session.delegate("sub") as child:
        sent = Rig(rig.identity, child, rig.clock).request()
        revoked = replace(rig.anchor, revocations=Revoked(child.agent, at=at))
        assert rig.refused(sent, trust=[revoked], error=RevokedError) == "revoked"


def test_an_anchor_revokes_what_it_issued_and_nothing_of_anothers(rig: Rig) -> None:
    partner = TrustAnchor(
        "https://partner.example",
        jwks=[{**OTHER.public_jwk, "kid": "p"}],
        revocations=Revoked("user:alice", rig.session.id, at=rig.clock()),
    )
    assert rig.accepted(rig.request(), trust=[partner, rig.anchor])


def test_B15_whoever_vouches_for_the_principal_can_revoke_it_too(rig: Rig) -> None:
    """The chain's anchor speaks for another issuer, which is known here and took its user back."""
    idp = "https://idp.example"
    leaf = SigningKey.generate()
    root = mint_root(
        OTHER,
        "k",
        iss="https://partner.example",
        principal_sub="alice",
        sub_iss=idp,
        sub_profile="user",
        agent="urn:agent-identity:agent:a",
        jkt=leaf.thumbprint,
        aud=[BILLING],
        scopes=READ,
        purpose="p",
        task=None,
        txn="ses_1",
        now=int(rig.clock()),
        expires_at=int(rig.clock()) + 60,
        max_depth=0,
        evidence="issuer",
    )
    said = {"iss": root.agent, "txn": root.txn, "grant_hash": root.hash(), "ath": None}
    sent = rig.asserting(rig.request(), key=leaf, **said)
    sent = sent.but(Agent_Delegation=root.compact, Authorization=None, DPoP=None)
    partner = TrustAnchor(
        root.iss,
        jwks=[{**OTHER.public_jwk, "kid": "k"}],
        revocations=UnsafeNoRevocations(),
        evidence="issuer",
        subjects=[idp],
    )
    known = replace(rig.anchor, issuer=idp)
    assert rig.accepted(sent, trust=[partner]).principal.iss == idp
    assert rig.accepted(sent, trust=[partner, known])
    revoked = replace(known, revocations=Revoked(f"user:{idp}#alice", at=rig.clock()))
    assert rig.refused(sent, trust=[partner, revoked], error=RevokedError) == "revoked"


# -- behind a proxy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("signed_url", "inside", "public"),
    [
        (URL, "http://10.0.0.7:8000/invoices?customer=ACME", BILLING),
        (URL, "http://10.0.0.7:8000/invoices?customer=ACME", f"{BILLING}/"),
        (f"{BILLING}/v1/invoices", "http://10.0.0.7/invoices", f"{BILLING}/v1"),
        (f"{BILLING}/?to=/admin", "http://10.0.0.7?to=/admin", BILLING),
        (f"{BILLING}/", "http://10.0.0.7", BILLING),
        (f"{BILLING}/a?to=https://x/y", "http://10.0.0.7/a?to=https://x/y", BILLING),
    ],
)
def test_behind_a_proxy_it_is_the_public_url_that_counts(rig, signed_url, inside, public) -> None:
    sent = replace(rig.request(url=signed_url), url=inside)
    assert rig.accepted(sent, public_url=public)
    if "?customer" in signed_url:
        assert rig.refused(sent) == "url_mismatch"


@pytest.mark.parametrize(
    ("signed_url", "inside", "expected"),
    [
        (f"{BILLING}/admin", "http://10.0.0.7?to=/admin", "url_mismatch"),
        (f"{BILLING}/admin", "/?to=https://x/admin", "url_malformed"),
        (f"{BILLING}/invoices", "http://10.0.0.7/admin", "url_mismatch"),
        (f"{BILLING}/invoices", "http://10.0.0.7/invoices?all=1", "query_mismatch"),
    ],
)
def test_B05_behind_a_proxy_a_query_is_never_read_as_a_path(
    rig, signed_url, inside, expected
) -> None:
    sent = replace(rig.request(url=signed_url), url=inside)
    assert rig.refused(sent, public_url=BILLING) == expected


# -- what a service has to say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"issuer": "urn:x:signer", "jwks": None}, "anchor_keys"),
        ({"jwks": []}, "anchor_keys"),
        ({"jwks": {"keys": []}}, "anchor_keys"),
        ({"jwks": {"kty": "EC"}}, "anchor_keys"),
        ({"issuer": "urn:x:signer", "revocations": None}, "revocations_missing"),
        ({"evidence": "certain"}, "evidence"),
        ({"subjects": "https://idp.example"}, "subjects"),
    ],
)
def test_an_anchor_that_leaves_out_what_decides_is_an_error(rig: Rig, changed, code) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Verifier([replace(rig.anchor, **changed)], audience=BILLING)
    assert refused.value.code == code


def test_an_anchor_named_twice_is_an_error_and_not_half_forgotten(rig: Rig) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Verifier([rig.anchor, rig.anchor], audience=BILLING)
    assert refused.value.code == "anchor_repeated"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"allow": {"anything"}}, "relaxation_unknown"),
        ({"allow": {"unbound_body", "untested"}}, "relaxation_unknown"),
        ({"allow": "unbound_body"}, "relaxation_unknown"),
        ({"approvers": [{"kty": "EC"}]}, "not_supported"),
        ({"skew": 60.1}, "skew"),
        ({"skew": -1}, "skew"),
        ({"skew": float("nan")}, "skew"),
        ({"evidence": "certain"}, "evidence"),
        ({"evidence": ""}, "evidence"),
        ({"public_url": "billing.example"}, "public_url"),
        ({"public_url": f"{BILLING}/?a=1"}, "public_url"),
        ({"public_url": f"{BILLING}/#a"}, "public_url"),
    ],
)
def test_B19_a_setting_that_has_no_meaning_is_an_error(rig: Rig, options, code) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Verifier([rig.anchor], audience=BILLING, **options)
    assert refused.value.code == code


def test_a_skew_of_a_minute_is_the_most(rig: Rig) -> None:
    sent = rig.request()
    rig.clock.now += 119.9
    assert rig.accepted(sent, skew=60)
    rig.clock.now += 0.1
    assert rig.refused(sent, skew=60) == "expired"


def test_a_refusal_quotes_no_token_of_the_request(rig: Rig) -> None:
    from agent_identity.testing import assert_no_leak

    sent = rig.request()
    token = sent.headers["Authorization"].partition(" ")[2]
    with pytest.raises(VerificationError) as refused:
        rig.accepted(sent, scopes=("invoices:pay",))
    assert_no_leak([token], str(refused.value), repr(refused.value), str(refused.value.remedy))


@pytest.mark.parametrize(
    "name", ["Authorization", "DPoP", "Agent-Assertion", "Agent-Delegation", "Agent-Handover"]
)
@pytest.mark.parametrize("value", [b"x", None, ["x"], 5])
def test_a_header_that_is_no_text_is_refused(rig: Rig, name: str, value: Any) -> None:
    sent = rig.request()
    assert rig.refused(replace(sent, headers=sent.headers | {name: value})) == "header_malformed"
