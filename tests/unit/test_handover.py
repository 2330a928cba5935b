# SPDX-License-Identifier: Apache-2.0
"""Work handed to another process: signed for a key that lives there, of no use to anybody else, never wider."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    DeniedError,
    RevokedError,
    current_credential,
    current_session,
    tool,
)
from agent_identity.authority import Authority
from agent_identity.errors import AgentIdentityError, InvalidAssertionError
from agent_identity.jose import loads_object, unverified
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.provenance.records import GRANT_MADE, SESSION_CLOSED, SESSION_OPENED
from agent_identity.runtime.lifetime import Life
from agent_identity.values import LOCAL, b64url, unb64url
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, VerifiedCall, Verifier

ALPHA = "https://alpha.example"
BETA = "https://beta.example"
ARCHIVE = "https://archive.example"
URL = f"{BETA}/tasks"

Request = tuple[str, str, dict[str, str], bytes]


class Two:
    """Two processes in miniature: alpha hands over, beta takes over; both have an authority and a ledger of their own."""

    def __init__(self, make: Callable[..., AgentIdentity], clock: Any) -> None:
        self.clock = clock
        self.alpha, self.beta = (
            make(
                name,
                authority=Authority(clock=clock),
                ledger=MemoryLedger(clock=clock),
                clock=clock,
            )
            for name in ("alpha", "beta")
        )

    def trusts_alpha(self, audience: str, **options: Any) -> Verifier:
        anchor = TrustAnchor(
            self.alpha.authority.issuer,
            jwks=self.alpha.authority.jwks(),
            revocations=self.alpha.authority,
            evidence="issuer",
        )
        return Verifier([anchor], audience=audience, clock=self.clock, **options)

    def ask(self, child: Any = None, **change: str) -> Request:
        """Alpha's request to beta, from inside a tool of alpha's, with a hand-over beside it."""

        @tool(resource=BETA, scopes=["ask"])
        def ask_beta() -> Request:
            headers: dict[str, Any] = dict(current_credential().headers("POST", URL, b"{}"))
            if child is not None:
                child.inject(headers)
            return "POST", URL, headers | change, b"{}"

        return ask_beta()

    def verified(self, request: Request) -> VerifiedCall:
        method, url, headers, body = request
        return self.trusts_alpha(BETA).verify_request(method, url, headers, body, scopes=["ask"])


@pytest.fixture
def two(make_identity: Callable[..., AgentIdentity], clock: Any) -> Two:
    return Two(make_identity, clock)


def hand_over(session: Any, to: AgentIdentity, **options: Any) -> Any:
    said = {"resources": [ARCHIVE], "scopes": ["archive"], "task": "archive ACME"} | options
    return session.delegate("beta", key=to.public_jwk, **said)


@tool(resource=ARCHIVE, scopes=["archive"])
def archive(customer: str) -> Request:
    url = f"{ARCHIVE}/{customer}"
    return "GET", url, current_credential().headers("GET", url, b""), b""


def code(error: type[AgentIdentityError], call: Callable[[], object]) -> str:
    with pytest.raises(error) as refused:
        call()
    return refused.value.code


# -- the whole way ----------------------------------------------------------------------------------------------------


def test_the_recipient_acts_for_the_same_principal_one_hop_deeper(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="close the books") as session:
        request = two.ask(hand_over(session, two.beta))
        call = two.verified(request)
        with two.beta.accept(call) as taken:
            assert (taken.txn, taken.purpose, taken.task) == (
                *(session.txn, "close the books"),
                "archive ACME",
            )
            assert [uri.rpartition(":")[2] for uri in taken.chain] == ["beta", "alpha"]
            assert (taken.depth, taken._state.evidence) == (1, "issuer")
            assert taken.id != session.id
            method, url, headers, body = archive("ACME")
        assert "Authorization" not in headers
        assert "DPoP" not in headers
        seen = two.trusts_alpha(ARCHIVE).verify_request(
            method, url, headers, body, scopes=["archive"]
        )
    assert (seen.principal.sub, seen.txn, seen.token_verified) == ("alice", session.txn, False)
    assert [actor.agent.rpartition(":")[2] for actor in seen.chain] == ["beta", "alpha"]


def test_either_ledger_says_who_triggered_it(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="close the books") as session:
        child = hand_over(session, two.beta)
        request = two.ask(child)
        with two.beta.accept(two.verified(request)) as taken:
            archive("ACME")
    there = two.beta.who_triggered(taken)
    here = two.alpha.who_triggered(child)
    assert there.verified
    assert here.verified
    assert (there.principal.sub, here.principal.sub) == ("alice", "alice")
    assert there.purpose == here.purpose == "close the books"
    assert [hop.agent for hop in there.chain] == [hop.agent for hop in here.chain]
    assert [(hop.depth, hop.evidence) for hop in there.chain] == [(0, "issuer"), (1, None)]
    assert [call.tool for call in there.calls] == ["archive"]
    assert [call.tool for call in two.alpha.who_triggered(session).calls] == ["ask_beta"]
    assert two.beta.who_triggered(session.txn).principal.sub == "alice"
    assert "alpha (in another process)" in str(there)
    assert "beta: archive ACME" in str(there)


async def test_a_hand_over_is_signed_and_taken_over_in_async_code_too(two: Two) -> None:
    async with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = await session.adelegate(
            "beta", key=two.beta.public_jwk, resources=[ARCHIVE], scopes=["archive"]
        )
        request = two.ask(child)
        async with two.beta.accept(two.verified(two.ask(hand_over(session, two.beta)))):
            archive("ACME")
    assert "Agent-Handover" in request[2]


def test_the_recipient_delegates_further_within_the_ceiling(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p", max_depth=2) as session:
        call = two.verified(two.ask(hand_over(session, two.beta)))
        with two.beta.accept(call) as taken:
            assert code(DeniedError, lambda: taken.delegate("alpha")) == "actor_repeated"
            with taken.delegate("gamma", task="look") as below:
                method, url, headers, body = archive("ACME")
                assert code(DeniedError, lambda: below.delegate("delta")) == "depth_exceeded"
        seen = two.trusts_alpha(ARCHIVE).verify_request(
            method, url, headers, body, scopes=["archive"]
        )
    assert [actor.depth for actor in seen.chain] == [2, 1, 0]
    trace = two.beta.who_triggered(below)
    assert [hop.agent.rpartition(":")[2] for hop in trace.chain] == ["alpha", "beta", "gamma"]


def test_a_hand_over_over_mcp_goes_into_meta(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta)

        @tool(resource=BETA, scopes=["ask"])
        def send(question: str) -> dict[str, Any]:
            meta: dict[str, Any] = {}
            session.inject(meta, form="meta")
            child.inject(meta)
            return meta | {"token": current_credential().reveal()}

        meta = send("what?")
        again = send("what?")
        meta = json.loads(json.dumps(meta))
        assert isinstance(meta["dev.agent-identity/handover"], list)
        verifier = two.trusts_alpha(BETA)
        said = {"tool": "send", "args": {"question": "what?"}, "scopes": ["ask"]}

        def verified(meta: dict[str, Any]) -> VerifiedCall:
            prefix = "dev.agent-identity/"
            return verifier.verify_call(
                meta[f"{prefix}assertion"],
                meta[f"{prefix}delegation"],
                handover=meta[f"{prefix}handover"],
                token=meta["token"],
                **said,
            )

        with two.beta.accept(verified(meta)) as taken:
            archive("ACME")
        assert taken.txn == session.txn
        assert verified(again)
        assert code(InvalidAssertionError, lambda: verified(meta)) == "replayed"


def test_a_call_that_is_sent_twice_as_a_message_is_asserted_anew(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:

        @tool(resource=BETA, scopes=["ask"])
        def send() -> list[dict[str, Any]]:
            metas: list[dict[str, Any]] = [{}, {}]
            for meta in metas:
                session.inject(meta, form="message")
            return metas

        first, second = send()
    verifier = two.trusts_alpha(BETA)
    for meta in (first, second):
        call = verifier.verify_call(
            meta["dev.agent-identity/assertion"],
            meta["dev.agent-identity/delegation"],
            tool="send",
            args={},
            scopes=["ask"],
        )
        assert call.txn == session.txn


def test_the_assertion_in_meta_names_the_token_that_goes_in_the_same_request(two: Two) -> None:
    """DESIGN section 5: a token without `ath` and an `ath` without a token are refused."""

    def sent(form: Any) -> tuple[dict[str, Any], str]:
        @tool(name="send", resource=BETA, scopes=["ask"])
        def send() -> tuple[dict[str, Any], str]:
            meta: dict[str, Any] = {}
            current_session().inject(meta, form=form)
            return meta, current_credential().reveal()

        return send()

    def verified(meta: dict[str, Any], token: str | None) -> VerifiedCall:
        return two.trusts_alpha(BETA).verify_call(
            meta["dev.agent-identity/assertion"],
            meta["dev.agent-identity/delegation"],
            tool="send",
            args={},
            scopes=["ask"],
            token=token,
        )

    with two.alpha.on_behalf_of("user:alice", purpose="p"):
        meta, token = sent("meta")
        message, _ = sent("message")
        call = verified(meta, token)
        assert call.token_verified
        assert call.call.tool == "send"
        assert code(InvalidAssertionError, lambda: verified(meta, None)) == "token_mismatch"
        assert not verified(message, None).token_verified
        assert code(InvalidAssertionError, lambda: verified(message, token)) == "token_mismatch"


def test_the_assertion_of_a_local_tools_message_names_no_token(two: Two) -> None:
    @tool()
    def send() -> dict[str, Any]:
        meta: dict[str, Any] = {}
        current_session().inject(meta, form="meta")
        return meta

    with two.alpha.on_behalf_of("user:alice", purpose="p"):
        meta = send()
    assert "ath" not in loads_object(unverified(meta["dev.agent-identity/assertion"]).payload)


# -- what is limited --------------------------------------------------------------------------------------------------


def test_the_recipient_gets_no_more_than_was_handed_over(two: Two) -> None:
    detail = {"type": "urn:agent-identity:tool", "tools": ["archive"], "resources": [ARCHIVE]}
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta, authorization_details=[detail], expires_in=60)
        with two.beta.accept(two.verified(two.ask(child))) as taken:

            @tool(resource=ARCHIVE, scopes=["delete"])
            def delete() -> None: ...

            @tool(resource=ALPHA, scopes=["archive"])
            def elsewhere() -> None: ...

            @tool(resource=ARCHIVE, scopes=["archive"])
            def other() -> None: ...

            assert code(DeniedError, delete) == "scope_not_granted"
            assert code(DeniedError, elsewhere) == "resource_not_granted"
            assert code(DeniedError, other) == "details_not_granted"
            archive("ACME")
            assert taken.expires_at <= two.clock() + 60
            two.clock.now += 61
            assert code(DeniedError, lambda: archive("ACME")) == "session_expired"


def test_B01_a_hand_over_is_never_wider(two: Two) -> None:
    with two.alpha.on_behalf_of(
        "user:alice", purpose="p", scopes=["archive", "ask"], resources=[ARCHIVE, BETA]
    ) as session:
        assert code(
            DeniedError, lambda: hand_over(session, two.beta, scopes=["archive", "delete"])
        ) == ("scope_widened")
        assert (
            code(DeniedError, lambda: hand_over(session, two.beta, resources=[ALPHA]))
            == "audience_widened"
        )
        hand_over(session, two.beta, scopes=None)


def test_B01_a_hand_over_has_no_more_scopes_than_its_resources_are_configured_with(
    two: Two, make_identity: Callable[..., AgentIdentity]
) -> None:
    bot = make_identity(
        "gamma",
        authority=Authority(clock=two.clock),
        clock=two.clock,
        resources={ARCHIVE: ["archive"], BETA: ["ask"]},
    )
    key = two.beta.public_jwk

    def handed(session: Any, scopes: list[str], *resources: str) -> set[str]:
        return (
            session.delegate("beta", key=key, scopes=scopes, resources=resources)
            ._state.handed[0]
            .scopes
        )

    with bot.on_behalf_of("user:alice", purpose="p") as session:
        for scopes in (["delete"], ["archive", "delete"], ["ask"]):
            assert (
                code(DeniedError, lambda s=scopes: handed(session, s, ARCHIVE))
                == "scope_not_configured"
            )
        assert handed(session, ["archive"], ARCHIVE) == {"archive"}
        assert handed(session, ["ask"], ARCHIVE, BETA) == {"ask"}
        assert handed(session, ["delete"], ARCHIVE, ALPHA) == {"delete"}  # ALPHA has no limit


@pytest.mark.parametrize("detailed", [False, True])
def test_local_tools_alone_are_nothing_to_hand_over(two: Two, detailed: bool) -> None:
    details = [{"type": "urn:agent-identity:tool", "resources": [ARCHIVE]}] if detailed else None
    with two.alpha.on_behalf_of(
        "user:alice", purpose="p", authorization_details=details
    ) as session:
        assert (
            code(ConfigurationError, lambda: hand_over(session, two.beta, resources=[LOCAL]))
            == "handover_resources"
        )


def test_what_is_handed_over_has_to_be_named(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        assert (
            code(ConfigurationError, lambda: hand_over(session, two.beta, resources=None))
            == "handover_resources"
        )
        assert (
            code(ConfigurationError, lambda: hand_over(session, two.beta, resources=()))
            == "handover_resources"
        )
        assert (
            code(ConfigurationError, lambda: hand_over(session, two.beta, scopes=None))
            == "handover_scopes"
        )


@pytest.mark.parametrize(
    "key",
    [
        {},
        {"kty": "oct", "k": "x"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        SigningKey.generate().public_jwk | {"d": "AA"},
        SigningKey.generate().public_jwk | {"use": "enc"},
        "key",
        None.__class__,
    ],
)
def test_a_key_that_signs_no_assertion_is_an_error(two: Two, key: Any) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        assert (
            code(
                ConfigurationError,
                lambda: session.delegate("beta", key=key, resources=[ARCHIVE], scopes=["archive"]),
            )
            == "handover_key"
        )


def test_nobody_acts_here_by_what_was_handed_over(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        fresh = hand_over(session, two.beta)
        assert code(DeniedError, lambda: fresh.credential(ARCHIVE, ["archive"])) == "handed_over"
        assert code(DeniedError, lambda: fresh.delegate("gamma")) == "handed_over"
        own = two.alpha.public_jwk
        assert (
            code(
                DeniedError,
                lambda: session.delegate("x", key=own, resources=[ARCHIVE], scopes=["archive"]),
            )
            == "actor_repeated"
        )


# -- what others make of it -------------------------------------------------------------------------------------------


def test_B24_a_hand_over_is_worth_nothing_to_another_key(
    two: Two, make_identity: Callable[..., AgentIdentity]
) -> None:
    gamma = make_identity("gamma", clock=two.clock)
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        call = two.verified(two.ask(hand_over(session, two.beta)))
        assert code(InvalidAssertionError, lambda: gamma.accept(call)) == "handover_key"
        assert code(InvalidAssertionError, lambda: two.alpha.accept(call)) == "handover_key"


def test_B24_a_stolen_hand_over_below_another_call_is_refused(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        stolen = two.ask(hand_over(session, two.beta))[2]["Agent-Handover"]
        with session.delegate("thief"):
            request = two.ask(**{"Agent-Handover": stolen})
            assert code(InvalidAssertionError, lambda: two.verified(request)) == "handover_mismatch"
    with two.alpha.on_behalf_of("user:alice", purpose="p"):
        other = two.ask(**{"Agent-Handover": stolen})
        assert code(InvalidAssertionError, lambda: two.verified(other)) == "handover_mismatch"
    with two.alpha.on_behalf_of("user:bob", purpose="p"):
        bobs = two.ask(**{"Agent-Handover": stolen})
        assert code(InvalidAssertionError, lambda: two.verified(bobs)) == "handover_mismatch"


@pytest.mark.parametrize("part", [0, 1])
def test_a_hand_over_that_was_tampered_with_is_refused(two: Two, part: int) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        request = two.ask(hand_over(session, two.beta))
        grants = request[2]["Agent-Handover"].split(", ")
        head, body, signature = grants[part].split(".")
        claims = json.loads(unb64url(body)) | {"scope": "archive delete"}
        grants[part] = f"{head}.{b64url(json.dumps(claims).encode())}.{signature}"
        request[2]["Agent-Handover"] = ", ".join(grants)
        with pytest.raises(InvalidAssertionError):
            two.verified(request)


def test_a_call_without_a_hand_over_opens_no_session(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p"):
        call = two.verified(two.ask())
    assert call.handover is None
    assert code(InvalidAssertionError, lambda: two.beta.accept(call)) == "handover_missing"
    for foreign in ("token", None, {"handover": 1}):
        wrong: Any = foreign
        assert code(ConfigurationError, lambda: two.beta.accept(wrong)) == "not_verified"  # noqa: B023 - called at once


def test_a_hand_over_whose_time_is_up_opens_no_session(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta, expires_in=30)
        call = two.verified(two.ask(child))
        two.clock.now += 30
        assert code(InvalidAssertionError, lambda: two.beta.accept(call)) == "expired"
        assert code(DeniedError, lambda: child.inject({})) == "session_expired"


def test_leaving_the_senders_session_takes_the_hand_over_back(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta)
        request = two.ask(child)
        call = two.verified(request)
        with two.beta.accept(call):
            before = archive("ACME")
    service = two.trusts_alpha(ARCHIVE)
    with pytest.raises(RevokedError):
        service.verify_request(*before[:3], before[3], scopes=["archive"])
    with pytest.raises(DeniedError):
        child.inject({})
    assert [r.kind for r in session.records() if r.session_id == session.id][-1] == SESSION_CLOSED


async def test_a_hand_over_is_not_entered(two: Two) -> None:
    """A tool in such a block would act as the parent."""
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta)
        with pytest.raises(ConfigurationError) as refusal, child:
            two.ask()
        with pytest.raises(ConfigurationError) as async_refusal:
            async with child:
                two.ask()
        assert refusal.value.code == async_refusal.value.code == "session_handed_over"
        assert not [record for record in child.records() if record.kind.startswith("call.")]
        two.verified(two.ask(child))


def test_revoking_a_hand_over_takes_it_back(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta)
        request = two.ask(child)
        child.revoke("no longer needed")
        with pytest.raises(RevokedError):
            two.verified(request)


def test_a_forked_recipient_has_another_key_and_nothing_of_it(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        call = two.verified(two.ask(hand_over(session, two.beta)))
        with two.beta.accept(call):
            archive("ACME")
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    archive("ACME")
                    answer = "acted"
                except DeniedError as error:
                    answer = error.code
                os.write(write, answer.encode())
                os._exit(0)
            os.close(write)
            with os.fdopen(read) as pipe:
                assert pipe.read() == "key_renewed"
            os.waitpid(pid, 0)


def test_the_public_door_wants_a_header_only_once(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        method, url, headers, body = two.ask(hand_over(session, two.beta))
    pairs = [*headers.items(), ("agent-handover", headers["Agent-Handover"])]
    with pytest.raises(AgentIdentityError) as refused:
        two.trusts_alpha(BETA).verify_request(method, url, pairs, body, scopes=["ask"])
    assert refused.value.code == "header_repeated"


def test_inject_says_what_it_cant_write(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        assert code(ConfigurationError, lambda: session.inject({})) == "no_call"

        @tool(resource=BETA, scopes=["ask"])
        def send() -> None:
            assert code(ConfigurationError, lambda: session.inject({})) == "carrier_unsuitable"

        send()


def test_what_doesnt_fit_a_header_is_an_error_when_it_is_handed_over(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        long = [f"{ARCHIVE}/{'x' * 200}/{n}" for n in range(40)]
        assert (
            code(ConfigurationError, lambda: hand_over(session, two.beta, resources=long))
            == "chain_too_long"
        )


def test_the_trust_of_a_recipient_is_its_verifiers(two: Two) -> None:
    anchor = TrustAnchor(
        two.alpha.authority.issuer,
        jwks=two.alpha.authority.jwks(),
        revocations=UnsafeNoRevocations(),
    )
    weak = Verifier([anchor], audience=BETA, evidence="asserted", clock=two.clock)
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        method, url, headers, body = two.ask(hand_over(session, two.beta))
        with pytest.raises(InvalidAssertionError) as refused:
            weak.verify_request(method, url, headers, body, scopes=["ask"])
    assert refused.value.code == "evidence_exceeded"


# -- how long they are held -------------------------------------------------------------------------------------------


def test_a_session_holds_no_hand_over_that_has_ended(two: Two) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p", expires_in=3600) as session:

        def held() -> int:
            gc.collect()
            return sum(
                isinstance(each, Life) and each.above is session._state.life
                for each in gc.get_objects()
            )

        for _ in range(5):
            hand_over(session, two.beta).revoke("no longer needed")
        assert held() == 0
        for _ in range(5):
            hand_over(session, two.beta, expires_in=10)
        assert held() == 5
        two.clock.now += 10 + 60
        hand_over(session, two.beta)
        assert held() == 1


@pytest.mark.parametrize("ends", ["left", "revoked"])
def test_B16_what_is_signed_while_its_session_ends_ends_with_it(
    make_identity: Callable[..., AgentIdentity], clock: Any, ends: str
) -> None:
    class Slow(MemoryLedger):
        """Something happens while the hand-over is put on record."""

        meanwhile: Callable[[], None] | None = None

        def append(self, draft: Any) -> Any:
            appended = super().append(draft)
            if draft.kind == SESSION_OPENED and self.meanwhile is not None:
                meanwhile, self.meanwhile = self.meanwhile, None
                meanwhile()
            return appended

    ledger = Slow(clock=clock)
    bot = make_identity("alpha", authority=Authority(clock=clock), ledger=ledger, clock=clock)
    with ExitStack() as stack:
        session = stack.enter_context(bot.on_behalf_of("user:alice", purpose="p"))

        ledger.meanwhile = stack.close if ends == "left" else lambda: session.revoke("stop")
        key = SigningKey.generate().public_jwk
        with pytest.raises(DeniedError):
            session.delegate("beta", key=key, resources=[ARCHIVE], scopes=["archive"])
    made = [record for record in ledger.records() if record.kind == GRANT_MADE]
    assert bot.authority.is_revoked({made[-1].ref}, clock.now)


# -- one history for a transaction --------------------------------------------------------------------------------------


def seen_by(make: Callable[..., AgentIdentity], name: str, clock: Any, seen: list[Any]) -> Any:
    """An identity whose policy refuses to send anything out once finance was read, and notes what it saw."""

    def policy(request: Any) -> bool:
        history = request.context["session"]
        seen.append((name, request.resource.id, history["whole"]))
        sends = "sends:external" in request.resource.properties.get("labels", ())
        return not (sends and "reads:finance" in history["labels"])

    return make(name, authority=Authority(clock=clock), clock=clock, policy=policy)


@tool(labels={"reads:finance"})
def read_books() -> None: ...


@tool(labels={"sends:external"})
def send_mail() -> None: ...


def test_a_toxic_combination_shows_across_a_hand_over_in_one_process(
    two: Two, make_identity: Callable[..., AgentIdentity]
) -> None:
    seen: list[Any] = []
    two.alpha = seen_by(make_identity, "alpha", two.clock, seen)
    two.beta = seen_by(make_identity, "beta", two.clock, seen)
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        read_books()
        call = two.verified(two.ask(hand_over(session, two.beta)))
        with two.beta.accept(call):
            assert code(DeniedError, send_mail) == "policy_denied"
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        call = two.verified(two.ask(hand_over(session, two.beta)))
        with two.beta.accept(call):
            read_books()
        assert code(DeniedError, send_mail) == "policy_denied"


def test_a_history_says_whether_part_of_it_is_elsewhere(
    two: Two, make_identity: Callable[..., AgentIdentity]
) -> None:
    seen: list[Any] = []
    two.alpha = seen_by(make_identity, "alpha", two.clock, seen)
    two.beta = seen_by(make_identity, "beta", two.clock, seen)

    def whole(act: Callable[[], object]) -> bool:
        act()
        return bool(seen[-1][2])

    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        assert whole(read_books)
        child = hand_over(session, two.beta)
        assert not whole(read_books)
        call = two.verified(two.ask(child))
        with two.beta.accept(call):
            assert whole(read_books)
        assert whole(read_books)
        hand_over(session, two.beta)
    del session, child
    gc.collect()
    with two.beta.accept(call):  # alpha's part is gone from here, as if it were another process's
        assert not whole(read_books)


# -- revoking what was handed over --------------------------------------------------------------------------------------


@pytest.mark.parametrize("named_by", ["session", "grant", "agent", "parent", "principal"])
def test_revoking_a_hand_over_by_any_reference_takes_it_back(two: Two, named_by: str) -> None:
    with two.alpha.on_behalf_of("user:alice", purpose="p") as session:
        child = hand_over(session, two.beta)
        request = two.ask(child)
        reference = {
            "session": child.id,
            "grant": child._state.handed[0].jti,
            "agent": "agent:beta",
            "parent": session.id,
            "principal": "user:alice",
        }[named_by]
        two.alpha.revoke(reference, reason="odd")
        with pytest.raises(RevokedError):
            two.verified(request)
        with pytest.raises(DeniedError):
            child.inject({})


def test_a_principal_of_the_own_authority_is_revoked_under_either_name(two: Two) -> None:
    issuer = two.alpha.authority.issuer
    with two.alpha.on_behalf_of("user:alice", purpose="p"):
        answer = two.alpha.revoke(f"user:{issuer}#alice", reason="odd")
        assert (answer.ref, answer.is_new, answer.sessions) == ("user:alice", False, 1)
        assert code(RevokedError, read_books) == "principal_revoked"


def test_a_revoked_principal_ends_what_was_accepted_in_this_process(
    make_identity: Callable[..., AgentIdentity], clock: Any
) -> None:
    authority = Authority(clock=clock)
    alpha, beta = (
        make_identity(name, authority=authority, clock=clock) for name in ("alpha", "beta")
    )
    two = Two.__new__(Two)
    two.clock, two.alpha, two.beta = clock, alpha, beta
    with alpha.on_behalf_of("user:alice", purpose="p") as session:
        call = two.verified(two.ask(hand_over(session, beta)))
        with beta.accept(call):
            read_books()
            alpha.revoke("user:alice", reason="odd")
            assert code(RevokedError, read_books) == "principal_revoked"
        with pytest.raises(RevokedError), beta.accept(call):
            read_books()


def test_a_fork_splits_a_history(bot: AgentIdentity) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        assert session._state.history.past.whole
        child = os.fork()
        if child == 0:
            os._exit(1 if session._state.history.past.whole else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not session._state.history.past.whole
