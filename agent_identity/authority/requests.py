# SPDX-License-Identifier: Apache-2.0
"""What is asked of the authority, read strictly: one value a header, one value a parameter, caps before parsing."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

import orjson

from agent_identity.errors import (
    ConfigurationError,
    CredentialError,
    DeniedError,
    VerificationError,
)
from agent_identity.flow import HttpResponse
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.errors import AgentIdentityError
    from agent_identity.flow import HttpRequest
    from agent_identity.values import JSON


BODY_LIMIT: Final = 128 * 1024
"""Bytes: three tokens of the largest size, and room for the rest of a form."""

_log: Final = logging.getLogger("agent_identity")
_FORM: Final = "application/x-www-form-urlencoded"
_NUMBER: Final = re.compile(r"[0-9]{1,9}")
_FIELDS: Final = 100
_SCOPES: Final = 200
_REPEATABLE: Final = frozenset({"resource", "audience"})


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to the authority; header names in lower case."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request; an empty one counts as left out (RFC 6749 §3.2)."""

    fields: Mapping[str, str] = field(repr=False)
    resources: tuple[str, ...]
    has_audience: bool

    def optional(self, name: str) -> str | None:
        return self.fields.get(name)

    def text(self, name: str) -> str:
        value = self.fields.get(name)
        if value is None:
            raise OAuthError("invalid_request", f"{name}_missing")
        return value

    def number(self, name: str, *, least: int = 0) -> int | None:
        value = self.fields.get(name)
        if value is None:
            return None
        if _NUMBER.fullmatch(value) is None or int(value) < least:
            raise OAuthError("invalid_request", f"{name}_malformed")
        return int(value)

    def scopes(self) -> frozenset[str]:
        """The scopes asked for; a request without any asks for none."""
        tokens = [token for token in self.fields.get("scope", "").split(" ") if token]
        if len(tokens) > _SCOPES:
            raise OAuthError("invalid_scope", "scope_malformed")
        try:
            return scope_set(tokens)
        except ConfigurationError:
            raise OAuthError("invalid_scope", "scope_malformed") from None


def read_request(request: HttpRequest) -> Asked:
    """Lower the header names, and refuse a body that is too large and a header that comes twice."""
    if len(request.body) > BODY_LIMIT:
        raise OAuthError("invalid_request", "body_too_large", status=413)
    headers = {name.lower(): value for name, value in request.headers.items()}
    if len(headers) != len(request.headers):
        raise OAuthError("invalid_request", "header_repeated")
    return Asked(request.method, request.url, headers, request.body)


def read_form(asked: Asked) -> Form:
    """The parameters of a form body (RFC 6749 §3.2: none but `resource` and `audience` comes twice)."""
    if asked.content_type != _FORM:
        raise OAuthError("invalid_request", "not_a_form")
    try:
        pairs = parse_qsl(
            asked.body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(asked.body),
            errors="strict",
            max_num_fields=_FIELDS,
        )
    except ValueError:  # UnicodeDecodeError is one
        raise OAuthError("invalid_request", "form_malformed") from None
    fields: dict[str, str] = {}
    resources: list[str] = []
    seen: set[str] = set()
    for name, value in pairs:
        if name in seen and name not in _REPEATABLE:
            raise OAuthError("invalid_request", "parameter_repeated")
        seen.add(name)
        if value and name == "resource":
            resources.append(value)
        elif value:
            fields[name] = value
    return Form(fields, tuple(dict.fromkeys(resources)), "audience" in fields)


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


def refused(error: str, cause: AgentIdentityError, *, status: int = 400) -> OAuthError:
    """An error of ours on the wire: its code, which is one of a fixed set, and nothing of its message."""
    return OAuthError(error, cause.code, status=status)


REFUSALS: Final = (
    *(OAuthError, CredentialError),
    *(DeniedError, ConfigurationError, VerificationError, OSError),
)
"""What keeps the authority from issuing; `refusal_of` says how each is answered."""

_RETRY: Final = {"retry-after": "5"}


def refusal_of(error: Exception) -> OAuthError:
    """The answer to a request that one of `REFUSALS` ended.

    What isn't a refusal of the request is an outage (503): an issuer's keys can't be read, or the store, the replay memory, the
    key folder or the clock fails.
    """
    if isinstance(error, OAuthError):
        return error
    why = "state_unavailable"
    if isinstance(error, CredentialError):
        why = "keys_unavailable"
        _log.warning("a request was put off, since an issuer's keys can't be read: %s", error)
    return OAuthError("temporarily_unavailable", why, status=503, headers=_RETRY)


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
