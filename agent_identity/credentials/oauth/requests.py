# SPDX-License-Identifier: Apache-2.0
"""Requests to an issuer: client authentication, proof of possession, and the credential (RFC 6749, 9449, 8705)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from agent_identity.credentials.oauth.responses import ath_of, error_code, is_sendable, send
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest, HttpResponse
from agent_identity.uris import quote_form
from agent_identity.values import JSON, Certificate, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.client import Client
    from agent_identity.credentials.oauth.dpop import Nonces, ProofKey
    from agent_identity.credentials.oauth.metadata import Endpoints


@dataclass(frozen=True, slots=True)
class Issued:
    """A credential from a source: the wrapped secret, and where, how and how long it may be used.

    It is sent in `header`, after `scheme` (if that isn't empty). `token_type` is `DPoP`, `Bearer`, or a legacy source's own
    name. `certificate` is used in TLS with the token, or is the whole credential. `is_opaque` means that the token's claims
    could not be checked. `txn_token` is sent in a header of its own. `details` are the authorization details that were granted
    (RFC 9396), None where none were requested. `parts` are secrets that the token contains.
    """

    token: Secret = field(repr=False)
    token_type: str
    resource: str
    issuer: str
    scopes: frozenset[str]
    issued_at: float
    expires_at: float
    jti: str | None = None
    ath: str = field(default="", repr=False)
    header: str = "Authorization"
    scheme: str = ""
    certificate: Certificate | None = field(default=None, repr=False)
    is_opaque: bool = False
    txn_token: Secret | None = field(default=None, repr=False)
    details: JSON = field(default=None, repr=False)
    parts: tuple[Secret, ...] = field(default=(), repr=False)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All secrets in it."""
        beside = () if self.txn_token is None else (self.txn_token,)
        key = () if self.certificate is None else (self.certificate.key,)
        return (self.token, *self.parts, *beside, *key)

    def __post_init__(self) -> None:
        """Refuse a token that no header can carry, whatever its source: a client's error about it would hold the secret.

        Raises:
            CredentialRejectedError: `malformed_token`.
        """
        if (self.header and not is_sendable(self.token)) or (
            self.txn_token is not None and not is_sendable(self.txn_token)
        ):
            raise CredentialRejectedError(
                "malformed_token",
                f"the credential for {self.resource} has characters that are not allowed in a header",
            )

    @property
    def opens_something(self) -> bool:
        """Whether there is a token or a certificate to use; False where the chain is the whole credential."""
        return self.header != "" or self.certificate is not None

    @property
    def sent_ath(self) -> str | None:
        """The `ath` of a token in `Authorization`, for the assertion; None for a secret in another header."""
        if self.header != "Authorization":
            return None
        return self.ath or ath_of(self.token)

    @property
    def is_bound(self) -> bool:
        """Whether it is worthless without a key that stays in this process."""
        return self.token_type == "DPoP" or self.certificate is not None  # noqa: S105 - a type


@dataclass(frozen=True, slots=True)
class Binding:
    """What a token should be bound to: the agent's key (`dpop`), the client's certificate (`mtls`), or nothing."""

    kind: Literal["dpop", "mtls", "none"]
    proof_key: ProofKey | None = None


UNBOUND = Binding("none")

Form: TypeAlias = "Sequence[tuple[str, str | Secret]]"


def form_request(
    endpoints: Endpoints,
    client: Client,
    place: str,
    form: Form | Callable[[], Form],
    *,
    binding: Binding,
    nonces: Nonces,
    clock: Callable[[], float],
    headers: Sequence[tuple[str, str]] = (),
    certificate: Certificate | None = None,
) -> Flow[HttpResponse]:
    """Post a form to one of an issuer's endpoints with client authentication, and return the response as it is.

    A form with single-use content is passed as a function, which makes a fresh form for each attempt. If the server requires a
    DPoP nonce, the request is repeated once, with a new assertion and a new proof (RFC 9449 §8); a single-use form too.
    `certificate` is used in TLS unless the client authenticates with its own.

    Raises:
        CredentialRejectedError: the issuer has no such endpoint.
        CredentialUnavailableError: it could not be reached.
    """
    for attempt in ("first", "with the server's nonce"):
        now = clock()
        proven = yield from client.prove(endpoints, now)
        members = form() if callable(form) else form
        names = {name for name, _ in members}
        more = [member for member in proven.fields if member[0] not in names]
        tls_certificate = proven.certificate or certificate
        url = endpoints.at(place, certificate=tls_certificate is not None)
        proof: dict[str, str] = {}
        if binding.kind == "dpop" and binding.proof_key is not None:
            proof["DPoP"] = binding.proof_key.proof("POST", url, now, nonce=nonces.get(url))
        response = yield from send(
            HttpRequest(
                "POST",
                url,
                {
                    "Accept": "application/json",
                    "Content-Type": "application/x-www-form-urlencoded",
                    **proof,
                    **dict(headers),
                    **{name: value.reveal() for name, value in proven.headers},
                },
                encode_form([*members, *more]),
                certificate=tls_certificate,
                discovered=endpoints.discovered,
            ),
            endpoints.issuer,
        )
        nonces.learn(url, response.headers.get("dpop-nonce"))
        if attempt == "first" and proof and _wants_nonce(response):
            continue
        return response
    raise AssertionError("the loop returns")  # pragma: no cover


def encode_form(fields: Sequence[tuple[str, str | Secret]]) -> bytes:
    """Encode a form body. This is the one place where a flow's secrets become bytes."""
    return "&".join(
        [
            f"{_quote_name(name)}={quote_form(value.reveal() if isinstance(value, Secret) else value)}"
            for name, value in fields
        ]
    ).encode("ascii")


_quote_name: Final = lru_cache(256)(quote_form)


def _wants_nonce(response: HttpResponse) -> bool:
    if response.status not in (400, 401) or "dpop-nonce" not in response.headers:
        return False
    return error_code(response) == "use_dpop_nonce"
