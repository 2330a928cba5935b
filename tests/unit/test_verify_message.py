# SPDX-License-Identifier: Apache-2.0
"""A call that came as a message is verified twice: the statements in its `_meta`, and the request that carried it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from agent_identity import AgentIdentity, ConfigurationError, RevokedError, VerificationError
from agent_identity.adapters import Tool
from agent_identity.authority import Authority
from agent_identity.delegation.grant import hash_of
from agent_identity.verify import Carrier, TrustAnchor, Verifier, problem

SERVER = "https://billing.example/mcp"
META = "dev.agent-identity/"
ARGS = {"customer": "ACME", "amount": 400}
PAY = ("invoices:pay",)
TYPE = "urn:agent-identity:tool"


class SpiedReplay:
    not_before = 0

    def __init__(self) -> None:
        self.remembered: list[Any] = []

    def remember(self, key: object, until: float, /) -> bool:
        self.remembered.append(key)
        return True


class Sent:
    """A message and the request that carries it."""

    def __init__(self, meta: dict[str, Any], headers: dict[str, str], body: bytes) -> None:
        self.meta, self.headers, self.body = meta, headers, body

    @property
    def carrier(self) -> Carrier:
        return Carrier("POST", SERVER, self.headers, self.body)


class Rig:
    def __init__(self, identity: AgentIdentity, clock: Any) -> None:
        self.identity, self.clock = identity, clock
        self.stack = ExitStack()
        self.session: Any = None
        self.call: Any = None

    def sent(
        self,
        *,
        user: str = "alice",
        is_streamed: bool = False,
        with_token: bool = True,
        **options: Any,
    ) -> Sent:
        """A message of a running call, as the MCP guard sends it."""
        session = self.stack.enter_context(
            self.identity.on_behalf_of(f"user:{user}", purpose="pay a bill", **options)
        )
        self.session = session
        call = self.call = self.stack.enter_context(
            session.call(Tool("pay", resource=SERVER, scopes=PAY), ARGS)
        )
        assertion, chain = call.sign_assertion(with_token=with_token)
        meta = {f"{META}assertion": assertion, f"{META}delegation": list(chain)}
        body = json.dumps({"params": {"name": "pay", "arguments": ARGS, "_meta": meta}}).encode()
        headers = call.credential().headers("POST", SERVER, None if is_streamed else body)
        return Sent(meta, dict(headers), body)

    def verifier(self, *allow: str, **options: Any) -> Verifier:
        authority = self.identity.authority
        anchor = TrustAnchor(
            authority.issuer, jwks=authority.jwks(), revocations=authority, evidence="issuer"
        )
        own = {"audience": SERVER, "clock": self.clock, "replay": SpiedReplay(), "allow": allow}
        return Verifier([anchor], **(own | options))

    def accepted(self, sent: Sent, *allow: str, **seen: Any):
        verifier = self.verifier(*allow, **seen.pop("options", {}))
        said = {"tool": "pay", "args": ARGS, "scopes": PAY, "carrier": sent.carrier} | seen
        return verifier.verify_message(said.pop("meta", sent.meta), **said)

    def refused(self, sent: Sent, *allow: str, **seen: Any) -> str:
        replay = SpiedReplay()
        with pytest.raises(VerificationError) as caught:
            self.accepted(sent, *allow, options={"replay": replay}, **seen)
        assert replay.remembered == []
        return caught.value.code


@pytest.fixture
def rig(make_identity: Callable[..., AgentIdentity], clock: Any) -> Iterator[Rig]:
    made = Rig(make_identity(authority=Authority(clock=clock), clock=clock), clock)
    with made.stack:
        yield made


def without(headers: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.lower() not in names}


def test_a_message_is_verified_with_the_request_that_carried_it(rig: Rig) -> None:
    replay = SpiedReplay()
    call = rig.accepted(rig.sent(), options={"replay": replay})
    assert (call.principal.sub, call.call.tool, call.scopes) == ("alice", "pay", set(PAY))
    assert call.token_verified
    kinds = sorted(key[2] for key in replay.remembered)
    assert kinds == ["assertion", "assertion", "proof"]


async def test_the_async_twin_applies_the_same_rules(rig: Rig) -> None:
    sent, verifier = rig.sent(), rig.verifier()
    call = await verifier.averify_message(
        sent.meta, tool="pay", args=ARGS, scopes=PAY, carrier=sent.carrier
    )
    assert call.principal.sub == "alice"
    with pytest.raises(VerificationError, match="other arguments"):
        await verifier.averify_message(
            rig.sent().meta, tool="pay", args={}, scopes=PAY, carrier=sent.carrier
        )


def test_a_message_without_a_request_has_no_token(rig: Rig) -> None:
    call = rig.accepted(rig.sent(with_token=False), carrier=None)
    assert (call.principal.sub, call.token_verified) == ("alice", False)
    assert rig.refused(rig.sent(), carrier=None) == "token_mismatch"


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("assertion", None, "assertion_missing"),
        ("assertion", 1, "malformed_token"),
        ("delegation", None, "chain_missing"),
        ("delegation", "a, b", "chain_malformed"),
        ("delegation", [1], "chain_malformed"),
        ("delegation", [], "chain_empty"),
        ("handover", "a", "chain_malformed"),
    ],
)
def test_statements_that_are_missing_or_malformed_are_refused(
    rig: Rig, name: str, value: Any, code: str
) -> None:
    sent = rig.sent(with_token=False)
    meta = sent.meta | {f"{META}{name}": value}
    assert rig.refused(sent, meta=meta, carrier=None) == code


@pytest.mark.parametrize("meta", [None, [], "x", {}, {"progressToken": 1}])
def test_a_message_without_statements_is_refused(rig: Rig, meta: Any) -> None:
    assert rig.refused(rig.sent(), meta=meta) == "chain_missing"


@pytest.mark.parametrize(
    ("left_out", "code"),
    [
        (("agent-assertion",), "assertion_missing"),
        (("agent-delegation",), "chain_missing"),
        (("agent-assertion", "agent-delegation"), "chain_missing"),
        (("authorization", "dpop"), "token_mismatch"),
        (("dpop",), "proof_missing"),
    ],
)
def test_a_request_without_its_own_statements_is_refused(
    rig: Rig, left_out: tuple[str, ...], code: str
) -> None:
    sent = rig.sent()
    sent.headers = without(sent.headers, *left_out)
    assert rig.refused(sent) == code


def test_a_request_may_be_unsigned_where_bodies_need_not_be_bound(rig: Rig) -> None:
    """The `ath` in the assertion is the proof of possession then."""
    sent = rig.sent()
    sent.headers = without(sent.headers, "agent-assertion", "agent-delegation", "dpop")
    call = rig.accepted(sent, "unbound_body")
    assert call.token_verified
    assert rig.refused(sent, "unbound_body", args={}) == "args_mismatch"
    sent.headers |= {"Authorization": "Basic x"}
    assert rig.refused(sent, "unbound_body") == "scheme_unknown"


def test_a_request_that_is_half_signed_is_refused_also_there(rig: Rig) -> None:
    sent = rig.sent()
    sent.headers = without(sent.headers, "agent-assertion")
    assert rig.refused(sent, "unbound_body") == "assertion_missing"


def test_headers_and_meta_of_two_calls_are_refused(rig: Rig) -> None:
    """Both calls are of one session, with the same tool, arguments and token; and no digest binds the body."""
    sent = rig.sent(is_streamed=True)
    with rig.session.call(Tool("pay", resource=SERVER, scopes=PAY), ARGS) as other:
        assertion, chain = other.sign_assertion(with_token=True)
        meta = {f"{META}assertion": assertion, f"{META}delegation": list(chain)}
    assert list(chain) == sent.meta[f"{META}delegation"]
    assert rig.refused(sent, "unbound_body", meta=meta) == "message_mismatch"
    assert rig.accepted(sent, "unbound_body").principal.sub == "alice"


@pytest.mark.parametrize(
    ("method", "url", "code"),
    [
        ("PUT", SERVER, "method_mismatch"),
        ("POST", "https://billing.example/other", "url_mismatch"),
        ("POST", f"{SERVER}?a=1", "query_mismatch"),
    ],
)
def test_a_message_in_another_request_is_refused(
    rig: Rig, method: str, url: str, code: str
) -> None:
    sent = rig.sent()
    assert rig.refused(sent, carrier=Carrier(method, url, sent.headers, sent.body)) == code


def test_a_proxys_url_is_the_one_that_counts(rig: Rig) -> None:
    sent = rig.sent()
    inside = Carrier("POST", "http://10.0.0.1:8000/mcp", sent.headers, sent.body)
    options = {"public_url": "https://billing.example"}
    assert rig.accepted(sent, carrier=inside, options=options).principal.sub == "alice"


def test_another_body_is_refused(rig: Rig) -> None:
    sent = rig.sent()
    sent.body += b" "
    with pytest.raises(VerificationError) as caught:
        rig.accepted(sent)
    assert caught.value.code == "body_mismatch"


def test_other_arguments_or_another_tool_are_refused(rig: Rig) -> None:
    sent, bare = rig.sent(), rig.sent(with_token=False)
    assert rig.refused(sent, tool="refund") == "tool_mismatch"
    assert rig.refused(sent, args=ARGS | {"amount": 1}) == "args_mismatch"
    assert rig.refused(bare, tool="refund", carrier=None) == "tool_mismatch"
    assert rig.refused(bare, args=ARGS | {"amount": 1}, carrier=None) == "args_mismatch"


def test_details_about_arguments_are_checked_since_a_message_shows_them(rig: Rig) -> None:
    """A bare request with such a chain is refused."""
    rule = {"type": TYPE, "tools": ["pay"], "arguments": {"amount": {"maximum": 400}}}
    sent = rig.sent(authorization_details=[rule])
    assert rig.accepted(sent).details is not None
    with pytest.raises(VerificationError) as caught:
        rig.verifier().verify_request("POST", SERVER, sent.headers, sent.body, scopes=PAY)
    assert caught.value.code == "details_unseen"


def test_scopes_that_a_server_needs_are_needed_in_both(rig: Rig) -> None:
    assert rig.refused(rig.sent(), scopes=("admin",)) == "insufficient_scope"
    with pytest.raises(ConfigurationError):
        rig.accepted(rig.sent(), scopes="admin me")


def test_a_server_may_need_a_token(rig: Rig) -> None:
    assert rig.accepted(rig.sent(), needs_token=True).token_verified
    bare = rig.sent(with_token=False)
    assert rig.refused(bare, needs_token=True, carrier=None) == "token_missing"


def test_a_token_that_cannot_be_verified_is_not_enough_then(rig: Rig) -> None:
    sent = rig.sent()
    call = rig.call
    opaque = call.reach.statement.for_call(call.facts, int(rig.clock()), ath=hash_of("opaque"))
    sent.meta |= {f"{META}assertion": opaque}
    sent.headers = {"Authorization": "Bearer opaque"}
    assert rig.refused(sent, "unbound_body", needs_token=True) == "token_unverified"
    assert not rig.accepted(sent, "unbound_body").token_verified


def test_it_is_revoked_and_replayed_as_any_call_is(rig: Rig) -> None:
    verifier = rig.verifier(replay=None)
    said: Any = {"tool": "pay", "args": ARGS, "scopes": PAY}
    sent = rig.sent()
    verifier.verify_message(sent.meta, carrier=sent.carrier, **said)
    with pytest.raises(VerificationError, match="used before"):
        verifier.verify_message(sent.meta, carrier=sent.carrier, **said)
    again = rig.sent()
    rig.identity.revoke(rig.session, reason="test")
    with pytest.raises(RevokedError):
        verifier.verify_message(again.meta, carrier=again.carrier, **said)


def test_a_challenge_names_the_metadata_of_the_resource() -> None:
    """RFC 9728 §5.1."""
    metadata = "https://billing.example/.well-known/oauth-protected-resource"
    error = VerificationError("token_missing", "no token")
    status, headers, _ = problem(error, resource_metadata=metadata)
    assert status == 401
    assert f'resource_metadata="{metadata}"' in headers["WWW-Authenticate"]
    assert "resource_metadata" not in problem(error).headers["WWW-Authenticate"]
