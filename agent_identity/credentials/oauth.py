# SPDX-License-Identifier: Apache-2.0
"""A token request: how the client proves itself, and what comes back (RFC 6749, 7523, 9449, 10070)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

import orjson

from agent_identity import jose
from agent_identity.credentials.answers import (
    Answer,
    asked,
    error_code,
    failure_of,
    json_object,
    read_answer,
)
from agent_identity.flow import Flow, HttpRequest, HttpResponse
from agent_identity.values import JSON, Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.metadata import Endpoints
    from agent_identity.credentials.proofs import Nonces, ProofKey
    from agent_identity.keys import SigningKey

__all__ = [
    "ACCESS_TOKEN",
    "JWT",
    "TOKEN_EXCHANGE",
    "Client",
    "Issued",
    "encode_form",
    "token_request",
]

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type name
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a type name
_JWT_BEARER_CLIENT: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


@dataclass(frozen=True, slots=True)
class Issued:
    """What a source brings: the token in its wrapper, and all that decides where and how long it may be used."""

    token: Secret = field(repr=False)
    token_type: str
    resource: str
    issuer: str
    scopes: frozenset[str]
    issued_at: float
    expires_at: float
    jti: str | None = None
    ath: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Client:
    """An OAuth client that proves itself by `private_key_jwt`; the assertion's audience is the issuer (RFC 10070)."""

    client_id: str
    key: SigningKey

    def assertion(self, issuer: str, now: float) -> Secret:
        """A one-use client assertion, good for a minute."""
        header = jose.header(self.key.alg, typ="client-authentication+jwt", kid=self.key.thumbprint)
        claims: dict[str, JSON] = {
            "iss": self.client_id,
            "sub": self.client_id,
            "aud": issuer,
            "iat": int(now),
            "exp": int(now) + 60,
            "jti": new_id("ca_"),
        }
        return Secret(self.key.compact(header, orjson.dumps(claims)))


def token_request(
    endpoints: Endpoints,
    client: Client,
    form: Sequence[tuple[str, str | Secret]],
    *,
    proof_key: ProofKey,
    nonces: Nonces,
    clock: Callable[[], float],
    headers: Sequence[tuple[str, str]] = (),
) -> Flow[Answer]:
    """Send one token request with client authentication and proof of possession, and read the answer strictly.

    Asked for a DPoP nonce, it repeats the request once, with a new assertion and a new proof (RFC 9449 §8).

    Raises:
        CredentialRejectedError: the issuer said no, or its answer is malformed.
        CredentialUnavailableError: it could not be reached, or is busy.
    """
    for attempt in ("first", "with the server's nonce"):
        request = _signed(endpoints, client, form, proof_key, nonces, clock(), headers)
        response = yield from asked(request, endpoints.issuer)
        nonces.learn(endpoints.token, response.headers.get("dpop-nonce"))
        if attempt == "first" and _wants_nonce(response):
            continue
        if response.status != 200:  # noqa: PLR2004 - a status of HTTP
            raise failure_of(response, endpoints.issuer, "a token")
        return read_answer(json_object(response, endpoints.issuer), endpoints.issuer)
    raise AssertionError("the loop returns or raises")  # pragma: no cover


def _signed(
    endpoints: Endpoints,
    client: Client,
    form: Sequence[tuple[str, str | Secret]],
    proof_key: ProofKey,
    nonces: Nonces,
    now: float,
    headers: Sequence[tuple[str, str]],
) -> HttpRequest:
    fields = [
        *form,
        ("client_id", client.client_id),
        ("client_assertion_type", _JWT_BEARER_CLIENT),
        ("client_assertion", client.assertion(endpoints.issuer, now)),
    ]
    proof = proof_key.proof("POST", endpoints.token, now, nonce=nonces.get(endpoints.token))
    return HttpRequest(
        "POST",
        endpoints.token,
        {
            "Accept": "application/json",
            "Content-Type": "application/x-www-form-urlencoded",
            "DPoP": proof,
            **dict(headers),
        },
        encode_form(fields),
    )


def encode_form(fields: Sequence[tuple[str, str | Secret]]) -> bytes:
    """A form body; the one place where a flow's secrets become bytes."""
    return urlencode(
        [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in fields]
    ).encode("ascii")


def _wants_nonce(response: HttpResponse) -> bool:
    if response.status not in (400, 401) or "dpop-nonce" not in response.headers:
        return False
    return error_code(response) == "use_dpop_nonce"
