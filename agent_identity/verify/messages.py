# SPDX-License-Identifier: Apache-2.0
"""A tool call that came as a message: its statements in `_meta`, and the HTTP request that carried it.

Over HTTP both are signed, each by an assertion of its own. That of `_meta` names the tool and its arguments, that of the headers the
request with its whole body. They must be of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.delegation.carriers import ASSERTION, DELEGATION, HANDOVER, META
from agent_identity.errors import InvalidAssertionError, VerificationError
from agent_identity.verify.request import is_same

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_identity.verify.judge import Examined
    from agent_identity.verify.request import Headers, ReceivedRequest


_HEADERS: Final = frozenset(name.lower() for name in (ASSERTION, DELEGATION, HANDOVER))


class Carrier(NamedTuple):
    """The HTTP request that carried a message: the whole URL as requested, and the body as received."""

    method: str
    url: str
    headers: Headers
    body: bytes

    def __repr__(self) -> str:
        return f"<Carrier {self.method}>"


class Statements(NamedTuple):
    """The statements of a message, unverified."""

    assertion: str
    chain: Sequence[str]
    handover: Sequence[str]

    def __repr__(self) -> str:
        return "<Statements>"


def has_statements(meta: object, headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a message, or the request that carries it, has any statement of a chain, valid or not."""
    names = {f"{META}{name}" for name in ("assertion", "delegation", "handover")}
    if isinstance(meta, Mapping) and not names.isdisjoint(meta):
        return True
    return not _HEADERS.isdisjoint(name.lower() for name, _ in headers)


def is_signed(request: ReceivedRequest) -> bool:
    """Whether the headers of a request carry an assertion, a chain or a hand-over."""
    return not _HEADERS.isdisjoint(request.headers)


def read_meta(meta: object) -> Statements:
    """Read the statements in the `_meta` of a message.

    Raises:
        VerificationError: one is missing or malformed.
    """
    members = meta if isinstance(meta, Mapping) else {}
    chain = members.get(f"{META}delegation")
    if chain is None:
        raise InvalidAssertionError("chain_missing", "the message carries no delegation")
    assertion = members.get(f"{META}assertion")
    if assertion is None:
        raise InvalidAssertionError("assertion_missing", "the message carries no assertion")
    if not isinstance(assertion, str):
        raise VerificationError("malformed_token", "the assertion isn't a string")
    handover = members.get(f"{META}handover", ())
    if not isinstance(chain, list | tuple) or not isinstance(handover, list | tuple):
        raise InvalidAssertionError("chain_malformed", "a chain must be a list of compact grants")
    return Statements(assertion, chain, handover)


def token_of(request: ReceivedRequest) -> str | None:
    """The access token that came with a message.

    Raises:
        VerificationError: `scheme_unknown`.
    """
    authorization = request.headers.get("authorization")
    if authorization is None:
        return None
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() not in {"dpop", "bearer"}:
        raise VerificationError("scheme_unknown", "the token has an unknown authentication scheme")
    return token


def check_same_call(by_request: Examined, by_message: Examined) -> None:
    """Check that the headers and the `_meta` of a message were signed for one call, below one chain.

    Raises:
        InvalidAssertionError: `message_mismatch`.
    """
    first, second = by_request.assertion, by_message.assertion
    if (
        first is None
        or second is None
        or not is_same(first.call_id, second.call_id)
        or tuple(by_request.seen.chain) != tuple(by_message.seen.chain)
    ):
        raise InvalidAssertionError(
            "message_mismatch", "the headers and the _meta of the message are of two calls"
        )
