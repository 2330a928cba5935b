# SPDX-License-Identifier: Apache-2.0
"""The acting agent's signed statement about one call: the tool, the exact arguments, the grant (DESIGN section 5).

`Statement` is what is constant for one grant and resource, serialised once, so that a call costs one formatting and one
signature. `read_assertion` is the verifier's side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.errors import InvalidAssertionError
from agent_identity.values import Approval, b64url, b64url_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.delegation.grant import Grant
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON

ASSERTION_TYPE: Final = "agent-assertion+jwt"
LIFETIME: Final = 60
"""The lifetime of an assertion in seconds, and the longest that a verifier accepts."""


class RequestBinding(NamedTuple):
    """The one HTTP request that an assertion is for: method, URL, and digests of query, body and token."""

    htm: str
    htu: str
    htq: str | None
    content_digest: str | None
    ath: str | None


class CallFacts(NamedTuple):
    """The constant facts of one call. `tool` is already a JSON string; ids and digests need no escaping."""

    call_id: str
    tool: str
    args_hash: str
    trace_id: str
    span_id: str


class Statement:
    """The constant part of all assertions under one grant for one resource, serialised and encoded once."""

    __slots__ = ("_key", "_rest", "_start")

    def __init__(self, key: SigningKey, leaf: Grant, resource: str) -> None:
        self._key = key
        header = jose.encode_header(key.alg, typ=ASSERTION_TYPE, jwk=key.public_jwk)
        constant = orjson.dumps(
            {
                "iss": leaf.agent,
                "sub": leaf.sub,
                "txn": leaf.txn,
                "aud": resource,
                "grant_hash": leaf.hash(),
            }
        )
        # Base64 encodes three bytes at a time: the remainder of the constant part is encoded with each assertion's rest.
        opened = constant[:-1] + b","
        whole = len(opened) - len(opened) % 3
        self._start = f"{header}.{b64url(opened[:whole])}".encode("ascii")
        self._rest = opened[whole:]

    def for_record(self, facts: CallFacts, now: int) -> str:
        """The assertion for the ledger only: every verifier refuses one with `use`."""
        return self._sign(facts, now, facts.call_id, ',"use":"record"}')

    def for_call(
        self, facts: CallFacts, now: int, *, resend: int = 0, ath: str | None = None
    ) -> str:
        """The assertion of a call whose recipient gets tool and arguments: in MCP's `_meta`, in a message.

        `resend` counts further rounds of the same call, each of which is used once.
        """
        jti = f"{facts.call_id}.r{resend}" if resend else facts.call_id
        return self._sign(facts, now, jti, "}" if ath is None else f',"ath":"{ath}"}}')

    def for_request(self, facts: CallFacts, now: int, number: int, binding: RequestBinding) -> str:
        """The assertion of one HTTP request, the `number`-th of its call."""
        bound = {name: value for name, value in binding._asdict().items() if value is not None}
        rest = orjson.dumps(bound)[1:].decode()
        return self._sign(facts, now, f"{facts.call_id}.{number}", f",{rest}")

    def _sign(self, facts: CallFacts, now: int, jti: str, rest: str) -> str:
        call_id, tool, args_hash, trace_id, span_id = facts
        variable = (
            f'"iat":{now},"exp":{now + LIFETIME},"jti":"{jti}",'
            f'"call":{{"id":"{call_id}","tool":{tool},"args_hash":"{args_hash}","canon":"jcs"}},'
            f'"trace":{{"trace_id":"{trace_id}","span_id":"{span_id}"}}{rest}'
        )
        return self._key.complete(self._start + b64url_bytes(self._rest + variable.encode()))


class Assertion(NamedTuple):
    """An assertion as read, its signature not yet checked."""

    compact: str
    parsed: jose.Parsed
    jwk: Mapping[str, JSON]
    iss: str
    sub: str
    txn: str
    aud: str
    iat: int
    exp: int
    jti: str
    grant_hash: str
    call_id: str
    tool: str
    args_hash: str
    use: str | None
    htm: str | None
    htu: str | None
    htq: str | None
    content_digest: str | None
    ath: str | None
    trace_id: str | None
    span_id: str | None
    approval: Approval | None

    def __repr__(self) -> str:
        return f"<Assertion of {self.call_id}>"


_HEADER: Final = frozenset({"typ", "alg", "jwk"})
_CLAIMS: Final = frozenset(
    {
        *("iss", "sub", "txn", "aud", "iat", "exp", "jti", "grant_hash"),
        *("call", "approval", "trace", "use", "ath", "htm", "htu", "htq", "content_digest"),
    }
)
_CALL: Final = frozenset({"id", "tool", "args_hash", "canon"})
_TRACE: Final = frozenset({"trace_id", "span_id"})
_APPROVAL: Final = frozenset({"id", "by", "method", "at", "digest", "evidence", "proof", "acr"})


def read_assertion(compact: str) -> Assertion:
    """Read an assertion's claims, strictly and without checking its signature.

    Raises:
        InvalidAssertionError: the token is malformed, of another type, or a claim has another type or is unknown.
    """
    token = jose.unverified(compact, max_header=1024, error=InvalidAssertionError)
    header = Claims(token.header)
    if header.text("typ") != ASSERTION_TYPE:
        raise InvalidAssertionError("wrong_typ", "the typ of the assertion is another one")
    header.check_names(_HEADER)
    claims = Claims(jose.loads_object(token.payload, error=InvalidAssertionError))
    claims.check_names(_CLAIMS)
    call = claims.nested("call")
    call.check_names(_CALL)
    if call.text("canon") != "jcs" or not call.text("args_hash").startswith("sha-256:"):
        raise InvalidAssertionError(
            "digest_unknown", "the canonical form of the arguments is unknown"
        )
    trace = claims.nested("trace") if claims.has("trace") else None
    if trace is not None:
        trace.check_names(_TRACE)
    return Assertion(
        compact=compact,
        parsed=token,
        jwk={**header.mapping("jwk")},
        iss=claims.text("iss"),
        sub=claims.text("sub"),
        txn=claims.text("txn"),
        aud=claims.text("aud"),
        iat=claims.integer("iat"),
        exp=claims.integer("exp"),
        jti=claims.text("jti"),
        grant_hash=claims.text("grant_hash"),
        call_id=call.text("id"),
        tool=call.text("tool"),
        args_hash=call.text("args_hash"),
        use=claims.optional_text("use"),
        htm=claims.optional_text("htm"),
        htu=claims.optional_text("htu"),
        htq=claims.optional_text("htq"),
        content_digest=claims.optional_text("content_digest"),
        ath=claims.optional_text("ath"),
        trace_id=trace.text("trace_id") if trace else None,
        span_id=trace.text("span_id") if trace else None,
        approval=_approval(claims.nested("approval")) if claims.has("approval") else None,
    )


def _approval(claims: Claims) -> Approval:
    """The approval as the agent states it. Its evidence is `asserted`, whatever is claimed, until a proof is checked."""
    claims.check_names(_APPROVAL)
    claims.text("evidence")
    return Approval(
        id=claims.text("id"),
        by=claims.text("by"),
        method=claims.text("method"),
        at=claims.integer("at"),
        digest=claims.text("digest"),
        proof=claims.optional_text("proof"),
        acr=claims.optional_text("acr"),
    )
