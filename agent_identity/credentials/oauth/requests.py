# SPDX-License-Identifier: Apache-2.0
"""Asking an issuer as its client: who asks, with which proof of possession, and what comes back (RFC 6749, 9449, 8705)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias
from urllib.parse import urlencode

from agent_identity.credentials.oauth.responses import (
    Answer,
    asked,
    ath_of,
    error_code,
    failure_of,
    is_sendable,
    json_object,
    read_answer,
)
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest, HttpResponse
from agent_identity.values import JSON, Certificate, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.client import Client
    from agent_identity.credentials.oauth.dpop import Nonces, ProofKey
    from agent_identity.credentials.oauth.metadata import Endpoints

__all__ = ["UNBOUND", "Binding", "Form", "Issued", "encode_form", "form_request", "token_request"]


@dataclass(frozen=True, slots=True)
class Issued:
    """What a source brings: the secret in its wrapper, and all that decides where, how and how long it may be used.

    It is sent in `header`, after `scheme` (empty: nothing before it). `token_type` is `DPoP`, `Bearer`, or what a legacy
    source calls it. `certificate` is shown in TLS along with it, or is the whole credential. `is_opaque` says that nothing in
    it could be checked. `txn_token` rides beside it in a header of its own. `details` are the authorization details that were
    granted (RFC 9396), None where none were asked for. `parts` are secrets that the token is made of.
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
        """All of it that may be shown to nobody."""
        beside = () if self.txn_token is None else (self.txn_token,)
        key = () if self.certificate is None else (self.certificate.key,)
        return (self.token, *self.parts, *beside, *key)

    def __post_init__(self) -> None:
        """Refuse what no header can carry, whichever source brought it: an error about it would hold the secret.

        Raises:
            CredentialRejectedError: `malformed_token`.
        """
        if (self.header and not is_sendable(self.token)) or (
            self.txn_token is not None and not is_sendable(self.txn_token)
        ):
            raise CredentialRejectedError(
                "malformed_token",
                f"the credential for {self.resource} has characters that no header carries",
            )

    @property
    def opens_something(self) -> bool:
        """Whether there is anything to send, or to give back; not where the chain alone is shown."""
        return self.header != "" or self.certificate is not None

    @property
    def sent_ath(self) -> str | None:
        """The `ath` of what goes in `Authorization`, which an assertion names; of nothing else that opens a door."""
        if self.header != "Authorization":
            return None
        return self.ath or ath_of(self.token)

    @property
    def is_bound(self) -> bool:
        """Whether it opens nothing without a key that stays here."""
        return self.token_type == "DPoP" or self.certificate is not None  # noqa: S105 - a type


@dataclass(frozen=True, slots=True)
class Binding:
    """What a token is to be bound to: the agent's key (`dpop`), the client's certificate (`mtls`), or nothing."""

    kind: Literal["dpop", "mtls", "none"]
    proof_key: ProofKey | None = None


UNBOUND = Binding("none")

Form: TypeAlias = "Sequence[tuple[str, str | Secret]]"


def token_request(
    endpoints: Endpoints,
    client: Client,
    form: Form | Callable[[], Form],
    *,
    binding: Binding,
    nonces: Nonces,
    clock: Callable[[], float],
    headers: Sequence[tuple[str, str]] = (),
    certificate: Certificate | None = None,
    may_refresh: bool = False,
) -> Flow[Answer]:
    """Send one token request, and read the answer strictly.

    `certificate` is shown in TLS unless the client's own proof is one. `may_refresh` says that a refresh token may come.

    Raises:
        CredentialRejectedError: the issuer said no, or its answer is malformed.
        CredentialUnavailableError: it could not be reached, or is busy.
    """
    response = yield from form_request(
        endpoints,
        client,
        "token",
        form,
        binding=binding,
        nonces=nonces,
        clock=clock,
        headers=headers,
        certificate=certificate,
    )
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, endpoints.issuer, "a token", clock())
    fields = json_object(response, endpoints.issuer)
    return read_answer(fields, endpoints.issuer, may_refresh=may_refresh)


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
    """Post a form to one of an issuer's endpoints with the client's proof, and give the answer as it came.

    A form that holds something that is good once is given as a function, which makes a fresh one each time that it is sent.
    Asked for a DPoP nonce, it repeats the request once, with a new assertion and a new proof (RFC 9449 §8): that is the one
    allowed repeat of what may be used once.

    Raises:
        CredentialRejectedError: the issuer has no such endpoint.
        CredentialUnavailableError: it could not be reached.
    """
    for attempt in ("first", "with the server's nonce"):
        now = clock()
        proven = yield from client.prove(endpoints, now)
        members = form() if callable(form) else form
        said = {name for name, _ in members}
        more = [member for member in proven.fields if member[0] not in said]
        shown = proven.certificate or certificate
        url = endpoints.at(place, certificate=shown is not None)
        proof: dict[str, str] = {}
        if binding.kind == "dpop" and binding.proof_key is not None:
            proof["DPoP"] = binding.proof_key.proof("POST", url, now, nonce=nonces.get(url))
        response = yield from asked(
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
                certificate=shown,
            ),
            endpoints.issuer,
        )
        nonces.learn(url, response.headers.get("dpop-nonce"))
        if attempt == "first" and proof and _wants_nonce(response):
            continue
        return response
    raise AssertionError("the loop returns")  # pragma: no cover


def encode_form(fields: Sequence[tuple[str, str | Secret]]) -> bytes:
    """A form body; the one place where a flow's secrets become bytes."""
    return urlencode(
        [(name, value.reveal() if isinstance(value, Secret) else value) for name, value in fields]
    ).encode("ascii")


def _wants_nonce(response: HttpResponse) -> bool:
    if response.status not in (400, 401) or "dpop-nonce" not in response.headers:
        return False
    return error_code(response) == "use_dpop_nonce"
