# SPDX-License-Identifier: Apache-2.0
"""Requests to the authority, parsed strictly: each header and parameter once, size limits first. And its responses."""

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
class ParsedRequest:
    """A request whose headers and size were checked; header names are in lower case."""

    method: str
    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Form:
    """The parameters of a request; an empty one counts as missing (RFC 6749 §3.2)."""

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
        """The requested scopes; without the parameter, none."""
        tokens = [token for token in self.fields.get("scope", "").split(" ") if token]
        if len(tokens) > _SCOPES:
            raise OAuthError("invalid_scope", "scope_malformed")
        try:
            return scope_set(tokens)
        except ConfigurationError:
            raise OAuthError("invalid_scope", "scope_malformed") from None


def read_request(request: HttpRequest) -> ParsedRequest:
    """Refuse a large body and repeated headers; header names become lower case."""
    if len(request.body) > BODY_LIMIT:
        raise OAuthError("invalid_request", "body_too_large", status=413)
    headers = {name.lower(): value for name, value in request.headers.items()}
    if len(headers) != len(request.headers):
        raise OAuthError("invalid_request", "header_repeated")
    return ParsedRequest(request.method, request.url, headers, request.body)


def read_form(request: ParsedRequest) -> Form:
    """Read the parameters of a form body; only `resource` and `audience` may be repeated (RFC 6749 §3.2)."""
    if request.content_type != _FORM:
        raise OAuthError("invalid_request", "not_a_form")
    try:
        pairs = parse_qsl(
            request.body.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=bool(request.body),
            errors="strict",
            max_num_fields=_FIELDS,
        )
    except ValueError:  # includes UnicodeDecodeError
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
    """The authority refuses a request (RFC 6749 §5.2). `reason` is a code, so the response quotes no input."""

    def __init__(
        self,
        error: str,
        reason: str,
        *,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{error}: {reason}")
        self.error = error
        self.reason = reason
        self.status = status
        self.headers: Mapping[str, str] = headers or {}

    def response(self) -> HttpResponse:
        body: JSON = {"error": self.error, "error_description": self.reason}
        return HttpResponse(self.status, {**_SECRET, **self.headers}, orjson.dumps(body))


REFUSALS: Final = (
    *(OAuthError, CredentialError),
    *(DeniedError, ConfigurationError, VerificationError, OSError),
)
"""The errors that the authority answers; `refusal_of` maps each to a response."""

_RETRY: Final = {"retry-after": "5"}


def refusal_of(error: Exception) -> OAuthError:
    """Map one of `REFUSALS` to the `OAuthError` that answers the request.

    All but an `OAuthError` are outages (503): an issuer's keys can't be fetched, or the store, the replay memory, the key folder
    or the clock fails.
    """
    if isinstance(error, OAuthError):
        return error
    reason = "state_unavailable"
    if isinstance(error, CredentialError):
        reason = "keys_unavailable"
        _log.warning(
            "the authority answered 503 because an issuer's keys can't be fetched: %s", error
        )
    return OAuthError("temporarily_unavailable", reason, status=503, headers=_RETRY)


def json_response(
    body: Mapping[str, JSON],
    *,
    status: int = 200,
    public: bool = False,
    headers: Mapping[str, str] | None = None,
) -> HttpResponse:
    """A JSON response; `public` True is for one that contains no token and may be cached."""
    base = _PUBLIC if public else _SECRET
    return HttpResponse(status, {**base, **(headers or {})}, orjson.dumps(body))
