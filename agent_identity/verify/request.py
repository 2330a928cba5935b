# SPDX-License-Identifier: Apache-2.0
"""An HTTP request as the service received it, and the check that an assertion is for exactly this request."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from agent_identity.delegation.carriers import ASSERTION, DELEGATION, HANDOVER
from agent_identity.errors import DeniedError, InvalidAssertionError, VerificationError
from agent_identity.uris import has_one_reading, htu_of
from agent_identity.values import b64url, unb64url

if TYPE_CHECKING:
    from agent_identity.delegation.assertion import Assertion

Headers: TypeAlias = "Mapping[str, str] | Iterable[tuple[str, str]]"

_SINGLE: Final = tuple(
    name.lower() for name in ("Authorization", "DPoP", ASSERTION, DELEGATION, HANDOVER)
)
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")
_NUMBERED: Final = re.compile(r"(.+)\.[1-9][0-9]*", re.ASCII)


class ReceivedRequest(NamedTuple):
    """A request: headers by lower-case name, the URL that the caller used, and `htu`, the signed form of that URL."""

    method: str
    url: str
    htu: str
    headers: Mapping[str, str]
    body: bytes | None

    def __repr__(self) -> str:
        return f"<ReceivedRequest {self.method}>"


def read_request(
    method: str, url: str, headers: Headers, body: bytes | None, *, public_url: str | None
) -> ReceivedRequest:
    """Read a request. `public_url` is the URL of this service in front of a proxy.

    Raises:
        VerificationError: `header_repeated` or `header_malformed`, about a header that identifies the caller.
        InvalidAssertionError: `url_malformed`.
    """
    sent = _single(headers)
    seen = url if public_url is None else _public(public_url, url)
    if not has_one_reading(seen):
        raise InvalidAssertionError(
            "url_malformed", "the request's URL has a fragment or a dot segment"
        )
    return ReceivedRequest(method, seen, _htu(seen), sent, body)


def check_bound(assertion: Assertion, seen: ReceivedRequest, *, unbound_body: bool) -> None:
    """Check an assertion against the head of its request. `unbound_body` accepts a body that it doesn't bind.

    Raises:
        InvalidAssertionError: it is for another request, or for a call.
    """
    numbered = _NUMBERED.fullmatch(assertion.jti)
    if numbered is None or numbered[1] != assertion.call_id:
        raise InvalidAssertionError("wrong_door", "the assertion isn't for an HTTP request")
    if not _is_digest(assertion.args_hash):
        raise InvalidAssertionError(
            "digest_malformed", "the digest of the arguments isn't a SHA-256 digest in base64url"
        )
    if assertion.htm != seen.method:
        raise InvalidAssertionError("method_mismatch", "the assertion is for another method")
    if assertion.htu != seen.htu:
        raise InvalidAssertionError("url_mismatch", "the assertion is for another URL")
    query = seen.url.partition("#")[0].partition("?")[2]
    if not is_same(assertion.htq, _digest(query.encode("ascii")) if query else None):
        raise InvalidAssertionError("query_mismatch", "the assertion is for another query")
    if (assertion.content_digest is None or seen.body is None) and not unbound_body:
        raise InvalidAssertionError(
            "body_unbound",
            "the assertion doesn't bind the body",
            remedy='don\'t stream the body, or set allow={"unbound_body"} if it must be streamed',
        )


def check_body(assertion: Assertion, body: bytes | None) -> None:
    """Check the body of a request, if the assertion binds one. None is a body that wasn't read.

    Raises:
        InvalidAssertionError: `body_mismatch`.
    """
    bound = assertion.content_digest
    if bound is not None and body is not None and not is_same(bound, _digest(body)):
        raise InvalidAssertionError("body_mismatch", "the assertion is for another body")


def is_text(value: object) -> bool:
    """Whether a value is a string at run time, whatever its type hint says."""
    return isinstance(value, str)


def is_same(left: str | None, right: str | None) -> bool:
    """Compare in constant time. Two absent values are equal."""
    if left is None or right is None:
        return left is right
    return hmac.compare_digest(left.encode(), right.encode())


def _single(headers: Headers) -> dict[str, str]:
    """Headers by lower-case name. Those that identify the caller must not be repeated."""
    pairs = [(name.lower(), value) for name, value in _pairs(headers)]
    counts = Counter(name for name, _ in pairs)
    if any(counts[name] > 1 for name in _SINGLE):
        raise VerificationError(
            "header_repeated", "a header that identifies the caller is repeated"
        )
    sent = dict(pairs)
    if not all(is_text(sent[name]) for name in _SINGLE if name in sent):
        raise VerificationError(
            "header_malformed", "a header that identifies the caller isn't a string"
        )
    return sent


def _pairs(headers: Headers) -> Iterator[tuple[str, str]]:
    if isinstance(headers, Mapping):
        yield from headers.items()  # pyright: ignore[reportReturnType]  # no mapping is meant as pairs
    else:
        yield from headers


def _public(public_url: str, url: str) -> str:
    """The URL that the caller used, if a proxy changed its origin."""
    absolute = _ABSOLUTE.match(url)
    if absolute is None:
        raise InvalidAssertionError("url_malformed", "the request's URL isn't absolute")
    below = url[absolute.end() :]
    return public_url.rstrip("/") + (below if below.startswith("/") else f"/{below}")


def _htu(url: str) -> str:
    try:
        return htu_of(url)
    except DeniedError:
        raise InvalidAssertionError("url_malformed", "the request's URL is malformed") from None


def _is_digest(args_hash: str) -> bool:
    """Whether it has the form of a digest. An HTTP request doesn't show the arguments to compare it with."""
    try:
        return len(unb64url(args_hash.removeprefix("sha-256:"))) == hashlib.sha256().digest_size
    except VerificationError:
        return False


def _digest(data: bytes) -> str:
    return b64url(hashlib.sha256(data).digest())
