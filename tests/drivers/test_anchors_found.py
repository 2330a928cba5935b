# SPDX-License-Identifier: Apache-2.0
"""Anchors that a verifier finds by itself, at a real authority over HTTP: keys, their rotation, and what was revoked."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest

from agent_identity import AgentIdentity, RevokedError
from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.cli.authority.serve import listening, serving
from agent_identity.delegation.assertion import RequestBinding
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.http.world import World
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.values import b64url, unb64url
from agent_identity.verify import (
    Revocations,
    TrustAnchor,
    UnsafeNoReplayCheck,
    UnsafeNoRevocations,
    VerifiedCall,
    Verifier,
)
from agent_identity.verify.revocations import revocation_claims

FLIGHTS = "https://flights.example"
WELL_KNOWN = "/.well-known/oauth-authorization-server"


class Served:
    """A bot whose authority is served on loopback; `asked` are the paths that were asked for there."""

    def __init__(self, make: Callable[..., AgentIdentity], clock: Any) -> None:
        self.clock = clock
        self._socket = listening()
        url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.authority = Authority(issuer=url, clock=clock)
        self.asked: list[str] = []
        app = self.authority.asgi()

        async def counted(scope: Any, receive: Any, send: Any) -> None:
            self.asked.append(scope["path"])
            if self.down:
                await send({"type": "http.response.start", "status": 503, "headers": []})
                await send({"type": "http.response.body", "body": b""})
                return
            await app(scope, receive, send)

        self.down = False
        self._made: list[Verifier] = []
        self._serving = serving(counted, self._socket)
        self.bot = make(
            "bot", authority=self.authority, ledger=MemoryLedger(clock=clock), clock=clock
        )

    def __enter__(self) -> Self:
        self._serving.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for verifier in self._made:
            verifier.close()
        self._serving.__exit__(None, None, None)

    def verifier(self, **anchor: Any) -> Verifier:
        trust = TrustAnchor(self.authority.issuer, **({"evidence": "issuer"} | anchor))
        made = Verifier([trust], audience=FLIGHTS, replay=UnsafeNoReplayCheck(), clock=self.clock)
        self._made.append(made)
        return made


Call = tuple[str, list[str]]


def call_in(session: Any) -> Call:
    with session.call(Tool("book", resource=FLIGHTS, scopes=["book"]), {}) as call:
        clock = session._state.parts.clock
        assertion = call.reach.statement.for_call(call.facts, int(clock()))
        return assertion, [grant.compact for grant in call.reach.chain]


def verify(verifier: Verifier, call: Call) -> VerifiedCall:
    return verifier.verify_call(call[0], call[1], tool="book", args={}, scopes=["book"])


async def averify(verifier: Verifier, call: Call) -> VerifiedCall:
    try:
        return await verifier.averify_call(call[0], call[1], tool="book", args={}, scopes=["book"])
    finally:
        await verifier.aclose()


@pytest.fixture
def served(make_identity: Callable[..., AgentIdentity], clock: Any) -> Iterator[Served]:
    with Served(make_identity, clock) as found:
        yield found


@pytest.fixture(params=["sync", "async"])
def judge(request: pytest.FixtureRequest) -> Callable[[Verifier, Call], VerifiedCall]:
    """Both colours, one after the other."""
    if request.param == "sync":
        return verify

    def run(verifier: Verifier, call: Call) -> VerifiedCall:
        return asyncio.run(averify(verifier, call))

    return run


def test_an_anchor_is_found_once_and_kept(served: Served, judge: Any) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert judge(verifier, call_in(session)).principal.sub == "alice"
        assert judge(verifier, call_in(session)).principal.sub == "alice"
    assert sorted(served.asked) == [*(WELL_KNOWN, "/jwks", "/revocations")]


def test_B22_a_key_that_is_new_there_is_found(served: Served, judge: Any) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        judge(verifier, call_in(session))
    served.authority.rotate()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert judge(verifier, call_in(session)).principal.sub == "alice"


def test_B22_a_token_by_a_new_key_is_found_beside_a_chain_by_the_old_one(
    served: Served,
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assertion, chain = call_in(session)
        verify(verifier, (assertion, chain))
        served.authority.rotate()
        token, now = new_token(served), int(served.clock())
        with session.call(Tool("book", resource=FLIGHTS, scopes=["book"]), {}) as call:
            said = call.reach.statement.for_call(call.facts, now, ath=hash_of(token))
        assert verifier.verify_call(
            said, chain, tool="book", args={}, scopes=["book"], token=token
        ).token_verified


def test_B22_a_requests_token_by_a_new_key_is_found_beside_a_chain_by_the_old_one(
    served: Served,
) -> None:
    verifier, url = served.verifier(), f"{FLIGHTS}/bookings"
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assertion, chain = call_in(session)
        verify(verifier, (assertion, chain))
        served.authority.rotate()
        token, now = new_token(served), int(served.clock())
        with session.call(Tool("book", resource=FLIGHTS, scopes=["book"]), {}) as call:
            bound = RequestBinding("GET", url, None, hash_of(""), hash_of(token))
            said = call.reach.statement.for_request(call.facts, now, 1, bound)
        headers = {"Agent-Assertion": said, "Agent-Delegation": ", ".join(chain)}
        headers["Authorization"] = f"Bearer {token}"
        assert verifier.verify_request("GET", url, headers, b"", scopes=["book"]).token_verified


def new_token(served: Served) -> str:
    """An access token by the key that signs there now."""
    key, now = served.authority._keyring.signing, int(served.clock())
    claims = {"iss": served.authority.issuer, "sub": "alice", "aud": FLIGHTS, "scope": "book"}
    return key.compact(
        b64url(b'{"typ":"at+jwt","alg":"ES256","kid":"%b"}' % key.thumbprint.encode()),
        json.dumps(claims | {"iat": now, "exp": now + 60}).encode(),
    )


def test_B22_calls_that_come_while_a_new_key_is_looked_for_wait_for_it(served: Served) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        verify(verifier, call_in(session))
    served.clock.now += 1
    served.authority.rotate()
    served.asked.clear()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        calls = [call_in(session) for _ in range(8)]

    async def all_at_once() -> list[VerifiedCall]:
        judged = (
            verifier.averify_call(call[0], call[1], tool="book", args={}, scopes=["book"])
            for call in calls
        )
        try:
            return await asyncio.gather(*judged)
        finally:
            await verifier.aclose()

    assert {call.principal.sub for call in asyncio.run(all_at_once())} == {"alice"}
    assert served.asked == ["/jwks"]


@pytest.mark.parametrize("seconds", [30, 31, 299, 300, 400])
def test_B22_a_key_that_also_signs_the_next_revocation_list_is_found_at_once(
    served: Served, judge: Any, seconds: int
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        judge(verifier, call_in(session))
    served.clock.now += seconds
    served.authority.rotate()
    served.asked.clear()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert judge(verifier, call_in(session)).principal.sub == "alice"
    assert sorted(set(served.asked) - {WELL_KNOWN}) == ["/jwks", "/revocations"]
    assert len(served.asked) == len(set(served.asked))


def test_B15_what_was_revoked_after_a_rotation_is_refused_here_within_the_bound(
    served: Served, judge: Any
) -> None:
    """Nobody presents anything by the new key: only the list is signed with it."""
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        judge(verifier, call)
        served.authority.rotate()
        served.authority.revoke("user:alice")
        served.clock.now += 30
        with pytest.raises(RevokedError):
            judge(verifier, call)


def test_B15_a_stranger_who_names_unknown_keys_delays_no_revocation(
    served: Served, judge: Any
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        judge(verifier, call)
        served.clock.now += 29
        with pytest.raises(VerificationError):
            judge(verifier, (call[0], [forged_root(served, call)]))
        served.authority.rotate()
        served.authority.revoke("user:alice")
        served.clock.now += 1
        with pytest.raises(RevokedError):
            judge(verifier, call)


def test_a_list_by_a_key_that_nobody_has_is_looked_for_every_thirty_seconds(
    served: Served, judge: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = served.verifier()
    stranger = Authority(issuer=served.authority.issuer, clock=served.clock)
    with served.bot.on_behalf_of("user:alice", purpose="p", expires_in=3600) as session:
        judge(verifier, call_in(session))
        monkeypatch.setattr(served.authority._revocations, "_keyring", stranger._keyring)
        served.clock.now += 30
        served.asked.clear()
        for _ in range(10):
            assert judge(verifier, call_in(session)).principal.sub == "alice"
            served.clock.now += 2.9
        assert served.asked.count("/jwks") == 1
        served.clock.now += 2.9
        assert judge(verifier, call_in(session)).principal.sub == "alice"
        assert served.asked.count("/jwks") == 2


def forged_root(served: Served, call: Call) -> str:
    """The root of a call's chain as a stranger signs it."""
    key = Authority(issuer=served.authority.issuer, clock=served.clock)._keyring.signing
    return key.compact(
        b64url(b'{"typ":"agent-grant+jwt","alg":"ES256","kid":"%b"}' % key.thumbprint.encode()),
        unb64url(call[1][-1].split(".")[1]),
    )


def test_D17_a_key_that_nobody_has_is_looked_for_every_thirty_seconds(
    served: Served, judge: Any
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        judge(verifier, call)
    forged = forged_root(served, call)
    served.asked.clear()
    served.clock.now += 1
    for _ in range(5):
        with pytest.raises(VerificationError):
            judge(verifier, (call[0], [forged]))
    assert served.asked.count("/jwks") == 1
    served.clock.now += 31
    with pytest.raises(VerificationError):
        judge(verifier, (call[0], [forged]))
    assert served.asked.count("/jwks") == 2


def test_B15_what_was_revoked_there_is_refused_here_within_the_bound(
    served: Served, judge: Any
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        judge(verifier, call)
        served.authority.revoke("user:alice")
        served.clock.now += 30
        with pytest.raises(RevokedError):
            judge(verifier, call)
    served.authority.reinstate("user:alice")
    served.clock.now += 31
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert judge(verifier, call_in(session))
        with pytest.raises(RevokedError):
            judge(verifier, call)


def test_an_anchor_that_is_away_serves_until_its_list_is_too_old(
    served: Served, judge: Any
) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p", expires_in=3600) as session:
        judge(verifier, call_in(session))
        served.down = True
        served.clock.now += 200
        call = call_in(session)
        assert judge(verifier, call)
        served.clock.now += 140
        call = call_in(session)
        with pytest.raises(VerificationError) as refused:
            judge(verifier, call)
        assert refused.value.code == "revocations_stale"


def test_an_anchor_that_was_never_reached_is_believed_in_nothing(
    served: Served, judge: Any
) -> None:
    served.down = True
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        with pytest.raises(VerificationError) as refused:
            judge(served.verifier(), call)
    assert refused.value.code == "anchor_unavailable"


def test_keys_that_were_found_serve_an_hour_beyond_their_time_and_no_longer(
    served: Served, judge: Any
) -> None:
    verifier = served.verifier(revocations=UnsafeNoRevocations())

    def call() -> Call:
        with served.bot.on_behalf_of("user:alice", purpose="p") as session:
            return call_in(session)

    judge(verifier, call())
    served.down = True
    served.clock.now += 300 + 3599
    assert judge(verifier, call())
    served.clock.now += 1
    with pytest.raises(VerificationError) as refused:
        judge(verifier, call())
    assert refused.value.code == "anchor_unavailable"


def test_an_anchor_that_is_away_isnt_asked_with_every_call(served: Served) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p", expires_in=3600) as session:
        call = call_in(session)
        verify(verifier, call)
        served.down = True
        served.clock.now += 30
        served.asked.clear()
        for _ in range(5):
            assert verify(verifier, call)
        assert served.asked == ["/revocations"]
        served.clock.now += 5
        assert verify(verifier, call)
    assert served.asked == ["/revocations"] * 2


def test_strangers_dont_make_a_verifier_ask_an_anchor_that_is_away(served: Served) -> None:
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        chain = call_in(session)[1]
    served.down = True
    verifier = served.verifier()
    codes = set[str]()
    for _ in range(5):
        with pytest.raises(VerificationError) as refused:
            verifier.verify_call("x", chain, tool="t", args={}, scopes=())
        codes.add(refused.value.code)
    assert codes == {"anchor_unavailable"}
    assert len(served.asked) == 3  # one question, asked three times


def test_C01_many_threads_ask_for_one_list(served: Served) -> None:
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p", expires_in=3600) as session:
        call = call_in(session)
        verify(verifier, call)
        served.clock.now += 30
        served.asked.clear()
        with ThreadPoolExecutor(20) as pool:
            assert all(pool.map(lambda _: verify(verifier, call), range(40)))
    assert served.asked == ["/revocations"]


def test_C01_many_threads_find_an_anchor_by_asking_once(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(World):
        """Takes so long to be made that all threads come to it."""

        def __init__(self, *parts: Any, **options: Any) -> None:
            threading.Event().wait(0.05)
            super().__init__(*parts, **options)

    monkeypatch.setattr("agent_identity.http.world.World", Slow)
    verifier = served.verifier()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda _: verify(verifier, call), range(8)))
    assert sorted(served.asked) == [*(WELL_KNOWN, "/jwks", "/revocations")]


def test_no_list_is_asked_for_where_revocations_are_given(served: Served, judge: Any) -> None:
    verifier = served.verifier(revocations=UnsafeNoRevocations())
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        judge(verifier, call)
        served.clock.now += 30
        judge(verifier, call)
    assert "/revocations" not in served.asked


class Counted(dict[str, int]):
    """A check of revocations that is empty, and so false in a condition."""

    def is_revoked(self, references: Any, issued_at: float, /) -> bool:
        self["asked"] = 1
        return issued_at < 0 or not references


def test_a_check_of_revocations_is_asked_even_if_it_is_false_in_a_condition(
    served: Served,
) -> None:
    counted = Counted()
    verifier = served.verifier(jwks=served.authority.jwks(), revocations=counted)
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert verify(verifier, call_in(session))
    assert counted == {"asked": 1}


def test_an_anchor_that_is_away_keeps_nobody_elses_callers_out(served: Served, judge: Any) -> None:
    away = TrustAnchor("http://127.0.0.1:9", evidence="issuer")
    here = TrustAnchor(served.authority.issuer, evidence="issuer")
    verifier = Verifier(
        [away, here], audience=FLIGHTS, replay=UnsafeNoReplayCheck(), clock=served.clock
    )
    served._made.append(verifier)
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert judge(verifier, call_in(session)).principal.sub == "alice"


def test_what_names_no_anchor_asks_nobody(served: Served, judge: Any) -> None:
    for chain in (["y"], ["a.b.c"], []):
        with pytest.raises(VerificationError):
            judge(served.verifier(), ("x.y.z", chain))
    assert served.asked == []


def test_keys_may_be_given_and_revocations_found(served: Served, judge: Any) -> None:
    verifier = served.verifier(jwks=served.authority.jwks())
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        assert judge(verifier, call)
        served.authority.revoke(session.txn)
        served.clock.now += 30
        with pytest.raises(RevokedError):
            judge(verifier, call)


# -- the list itself --------------------------------------------------------------------------------------------------


def a_list(
    key: SigningKey, revoked: dict[str, int], *, issuer: str = "urn:x:anchor", **said: Any
) -> str:
    values = {"seq": 1, "now": 1_795_518_000, "lifetime": 300} | said
    header = b'{"typ":"%b","alg":"%b","kid":"%b"}' % (
        str(values.pop("typ", "agent-revocations+jwt")).encode(),
        key.alg.encode(),
        key.thumbprint.encode(),
    )
    return key.compact(b64url(header), revocation_claims(issuer, revoked, **values))


OPERATOR = SigningKey.generate()


def revocations(clock: Any, **options: Any) -> Revocations:
    keys = [{**OPERATOR.public_jwk, "kid": OPERATOR.thumbprint}]
    return Revocations("urn:x:anchor", keys, clock=clock, **options)


def test_a_list_ends_what_was_issued_until_then_and_no_more(clock: Any) -> None:
    known = revocations(clock)
    at = 1_795_518_000 - 100
    assert known.update(a_list(OPERATOR, {"user:alice": at}))
    assert known.is_revoked({"user:alice", "x"}, at)
    assert known.is_revoked({"user:alice"}, at - 1)
    assert not known.is_revoked({"user:alice"}, at + 1)
    assert not known.is_revoked({"user:bob"}, at)


def test_everything_is_a_reference_too(clock: Any) -> None:
    known = revocations(clock)
    known.update(a_list(OPERATOR, {"*": 1_795_518_000}))
    assert known.is_revoked({"anything"}, 1_795_517_000)


def test_G09_an_older_list_never_replaces_a_newer_one(clock: Any) -> None:
    known = revocations(clock)
    assert known.update(a_list(OPERATOR, {"user:alice": 1_795_518_000}, seq=7))
    assert not known.update(a_list(OPERATOR, {}, seq=6))
    assert not known.update(a_list(OPERATOR, {}, seq=7))
    assert known.is_revoked({"user:alice"}, 0)
    assert known.update(a_list(OPERATOR, {}, seq=8))
    assert not known.is_revoked({"user:alice"}, 0)


@pytest.mark.parametrize(
    ("compact", "code"),
    [
        (lambda: a_list(SigningKey.generate(), {}), "unknown_key"),
        (lambda: a_list(OPERATOR, {}, issuer="urn:x:other"), "issuer_mismatch"),
        (lambda: a_list(OPERATOR, {}, typ="agent-grant+jwt"), "wrong_typ"),
        (lambda: a_list(OPERATOR, {}, now=1_795_518_000 - 400), "expired"),
        (lambda: a_list(OPERATOR, {}, now=1_795_518_000 + 31), "not_yet_valid"),
        (lambda: a_list(OPERATOR, {})[:-4] + "AAAA", "bad_signature"),
        (lambda: "x", "malformed_token"),
        (lambda: "x." * (1024 * 1024), "token_too_large"),
    ],
)
def test_G09_a_list_that_isnt_the_operators_is_none(clock: Any, compact: Any, code: str) -> None:
    known = revocations(clock)
    assert known.update(a_list(OPERATOR, {"user:alice": 1_795_518_000}))
    with pytest.raises(VerificationError) as refused:
        known.update(compact())
    assert refused.value.code == code
    assert known.is_revoked({"user:alice"}, 0)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"kid": OPERATOR.thumbprint, "other": 1}, "claim_unknown"),
        ({"kid": OPERATOR.thumbprint, "jwk": OPERATOR.public_jwk}, "claim_unknown"),
        ({}, "claim_missing"),
        ({"kid": ""}, "unknown_key"),
    ],
)
def test_G09_the_header_of_a_list_is_closed(clock: Any, members: Any, code: str) -> None:
    header = {"typ": "agent-revocations+jwt", "alg": OPERATOR.alg} | members
    claims = revocation_claims("urn:x:anchor", {}, seq=1, now=1_795_518_000, lifetime=300)
    with pytest.raises(VerificationError) as refused:
        revocations(clock).update(OPERATOR.compact(b64url(json.dumps(header).encode()), claims))
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("options", "seconds"), [({}, 330), ({"max_age": 60}, 90), ({"max_age": 0, "skew": 0}, 0)]
)
def test_G09_a_list_past_its_age_denies(clock: Any, options: Any, seconds: int) -> None:
    known = revocations(clock, **options)
    known.update(a_list(OPERATOR, {}))
    clock.now += seconds - 1
    if seconds:
        assert not known.is_revoked({"x"}, 0)
    clock.now += 1
    with pytest.raises(VerificationError) as refused:
        known.is_revoked({"x"}, 0)
    assert refused.value.code == "revocations_stale"


def test_C12_a_list_from_the_future_of_a_clock_set_back_denies(clock: Any) -> None:
    known = revocations(clock)
    known.update(a_list(OPERATOR, {}))
    clock.now -= 30
    assert not known.is_revoked({"x"}, 0)
    clock.now -= 1
    with pytest.raises(VerificationError) as refused:
        known.is_revoked({"x"}, 0)
    assert refused.value.code == "revocations_stale"


def test_without_any_list_nothing_is_believed(clock: Any, served: Served) -> None:
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        call = call_in(session)
        verifier = served.verifier(jwks=served.authority.jwks(), revocations=revocations(clock))
        with pytest.raises(VerificationError) as refused:
            verify(verifier, call)
        assert refused.value.code == "revocations_missing"
        given = Revocations(served.authority.issuer, served.authority.jwks(), clock=clock)
        given.update(served.authority.revocations())
        assert verify(served.verifier(jwks=served.authority.jwks(), revocations=given), call)


def test_keys_that_rotate_may_be_given_as_a_function(served: Served) -> None:
    verifier = served.verifier(jwks=served.authority.jwks, revocations=UnsafeNoRevocations())
    served.authority.rotate()
    with served.bot.on_behalf_of("user:alice", purpose="p") as session:
        assert verify(verifier, call_in(session))
    empty = served.verifier(jwks=list, revocations=UnsafeNoRevocations())
    with (
        served.bot.on_behalf_of("user:alice", purpose="p") as session,
        pytest.raises(InvalidAssertionError) as refused,
    ):
        verify(empty, call_in(session))
    assert refused.value.code == "unknown_key"
