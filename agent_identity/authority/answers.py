# SPDX-License-Identifier: Apache-2.0
"""How the authority answers: JSON that nobody may cache, and errors that quote nothing of what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from agent_identity.flow import HttpResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.errors import VerificationError
    from agent_identity.values import JSON

__all__ = ["OAuthError", "answer", "refused"]

_SECRET: Final = {
    "content-type": "application/json",
    "cache-control": "no-store",
    "pragma": "no-cache",
    "x-content-type-options": "nosniff",
}
_PUBLIC: Final = {**_SECRET, "cache-control": "public, max-age=300"}
del _PUBLIC["pragma"]


class OAuthError(Exception):
    """The authority says no (RFC 6749 §5.2). `why` is a code of ours: it goes on the wire, what was sent never does."""

    def __init__(
        self,
        error: str,
        why: str,
        *,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{error}: {why}")
        self.error = error
        self.why = why
        self.status = status
        self.headers: Mapping[str, str] = headers or {}

    def response(self) -> HttpResponse:
        body: JSON = {"error": self.error, "error_description": self.why}
        return HttpResponse(self.status, {**_SECRET, **self.headers}, orjson.dumps(body))


def refused(error: str, cause: VerificationError, *, status: int = 400) -> OAuthError:
    """An error of ours on the wire: its code, which is one of a fixed set, and nothing of its message."""
    return OAuthError(error, cause.code, status=status)


def answer(
    body: Mapping[str, JSON],
    *,
    status: int = 200,
    public: bool = False,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """A JSON answer; `public` is for what holds no token and may be cached."""
    base = _PUBLIC if public else _SECRET
    return HttpResponse(status, {**base, **(headers or {})}, orjson.dumps(body))
