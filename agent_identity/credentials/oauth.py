# SPDX-License-Identifier: Apache-2.0
"""What every token request has in common (RFC 6749, 7523, 8414, 9449, 10070).

The issuer's metadata, how the client proves itself, the proof of possession, and how an answer is read before anybody uses it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urlsplit

import orjson

from agent_identity import jose
from agent_identity.delegation.grant import hash_of
from agent_identity.errors import (
    AgentIdentityError,
    CredentialError,
    CredentialRejectedError,
    CredentialUnavailableError,
    DeniedError,
    TransportError,
    VerificationError,
)
from agent_identity.flow import Flow, HttpRequest, HttpResponse, http
from agent_identity.uris import htu_of, origin
from agent_identity.values import JSON, Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_identity.keys import SigningKey

__all__ = [
    "Answer",
    "Client",
    "Endpoints",
    "Fields",
    "Issued",
    "KeySet",
    "Nonces",
    "ProofKey",
    "discover",
    "failure_of",
    "read_keys",
    "token_request",
]

ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type name
JWT: Final = "urn:ietf:params:oauth:token-type:jwt"
TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105 - a type name
_JWT_BEARER_CLIENT: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_LONGEST_LIFE: Final = 24 * 3600
_METADATA_LIFE: Final = 300.0
_TOKEN_LIMIT: Final = 16_384
_NONCE_LIMIT: Final = 512
_KEY_LIMIT: Final = 64
_NONCE_ORIGINS: Final = 100
_SECONDS_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What an issuer's metadata says of itself (RFC 8414); `issuer` is the very string it was asked under."""

    issuer: str
    token: str
    registration: str | None
    revocation: str | None
    introspection: str | None
    jwks: str | None
    issued_at: float
    expires_at: float


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


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """A token endpoint's answer, read strictly; nothing in it has been compared with what was asked."""

    token: Secret
    token_type: str
    issued_token_type: str | None
    expires_in: float | None
    scopes: frozenset[str] | None


class Nonces:
    """The DPoP nonces that servers handed out, one an origin, the last hundred origins (RFC 9449 §8.2)."""

    __slots__ = ("_lock", "_nonces")

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._lock = threading.Lock()
        self._nonces: OrderedDict[str, str] = OrderedDict()

    def get(self, url: str) -> str | None:
        with self._lock:
            return self._nonces.get(origin(url))

    def learn(self, url: str, nonce: str | None) -> None:
        if not nonce or len(nonce) > _NONCE_LIMIT or not nonce.isascii() or not nonce.isprintable():
            return
        with self._lock:
            place = origin(url)
            self._nonces[place] = nonce
            self._nonces.move_to_end(place)
            if len(self._nonces) > _NONCE_ORIGINS:
                self._nonces.popitem(last=False)


class ProofKey:
    """An agent's key as a maker of DPoP proofs (RFC 9449 §4.2), its header encoded once."""

    __slots__ = ("_header", "_key", "thumbprint")

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._header = jose.header(key.alg, typ="dpop+jwt", jwk=key.public_jwk)
        self.thumbprint: str = key.thumbprint

    def proof(
        self, method: str, url: str, now: float, *, ath: str | None = None, nonce: str | None = None
    ) -> str:
        """A fresh proof for one request; `ath` goes along with an access token, `nonce` where the server gave one."""
        claims: dict[str, JSON] = {
            "jti": new_id("dpop_"),
            "htm": method,
            "htu": htu_of(url),
            "iat": int(now),
        }
        if ath is not None:
            claims["ath"] = ath
        if nonce is not None:
            claims["nonce"] = nonce
        return self._key.compact(self._header, orjson.dumps(claims))


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


def discover(issuer: str, clock: Callable[[], float]) -> Flow[Endpoints]:
    """Read an issuer's metadata (RFC 8414 §3), and hold it to naming itself exactly as it was asked for.

    Raises:
        CredentialRejectedError: `issuer_mismatch`, or an endpoint at another origin.
        CredentialUnavailableError: the issuer could not be reached.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    url = f"{parts.scheme}://{parts.netloc}/.well-known/oauth-authorization-server{path}"
    response = yield from _asked(HttpRequest("GET", url, {"Accept": "application/json"}), issuer)
    if response.status != 200:  # noqa: PLR2004
        raise failure_of(response, issuer, "its metadata")
    document = _json_object(response, issuer)
    if document.text("issuer") != issuer:
        raise CredentialRejectedError(
            "issuer_mismatch", f"the metadata found at {issuer} names another issuer"
        )
    now = clock()

    def endpoint(name: str) -> str | None:
        if not document.has(name):
            return None
        if not _same_origin(document.text(name), issuer):
            raise CredentialRejectedError(
                "endpoint_origin", f"{issuer} names a {name} at another origin"
            )
        return document.text(name)

    token = endpoint("token_endpoint")
    if token is None:
        raise CredentialRejectedError("metadata_incomplete", f"{issuer} names no token_endpoint")
    return Endpoints(
        issuer=issuer,
        token=token,
        registration=endpoint("registration_endpoint"),
        revocation=endpoint("revocation_endpoint"),
        introspection=endpoint("introspection_endpoint"),
        jwks=endpoint("jwks_uri"),
        issued_at=now,
        expires_at=now + _METADATA_LIFE,
    )


def _same_origin(url: str | None, issuer: str) -> bool:
    try:
        return url is not None and origin(url) == origin(issuer)
    except DeniedError:
        return False


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys by `kid`, at most 64 of them."""

    keys: Mapping[str, dict[str, JSON]]
    issued_at: float
    expires_at: float

    def get(self, kid: str) -> dict[str, JSON] | None:
        return self.keys.get(kid)


def read_keys(endpoints: Endpoints, clock: Callable[[], float]) -> Flow[KeySet]:
    """Read an issuer's JWK set (RFC 7517 §5); keys without a `kid`, or with one that stands twice, are left out.

    Raises:
        CredentialRejectedError: it publishes none, or something that is no key set.
        CredentialUnavailableError: it could not be reached.
    """
    if endpoints.jwks is None:
        raise CredentialRejectedError(
            "metadata_incomplete", f"{endpoints.issuer} names no jwks_uri"
        )
    request = HttpRequest("GET", endpoints.jwks, {"Accept": "application/json"})
    response = yield from _asked(request, endpoints.issuer)
    if response.status != 200:  # noqa: PLR2004
        raise failure_of(response, endpoints.issuer, "its keys")
    keys = _named_keys(_json_object(response, endpoints.issuer))
    if keys is None:
        raise CredentialRejectedError("malformed_keys", f"{endpoints.issuer} publishes no key set")
    now = clock()
    return KeySet(keys, issued_at=now, expires_at=now + _METADATA_LIFE)


def _named_keys(document: Fields) -> dict[str, dict[str, JSON]] | None:
    found = document.get("keys")
    if not isinstance(found, list) or len(found) > _KEY_LIMIT:
        return None
    named = [(key.get("kid"), key) for key in found if isinstance(key, dict)]
    counts = Counter(kid for kid, _ in named if isinstance(kid, str))
    return {kid: key for kid, key in named if isinstance(kid, str) and counts[kid] == 1}


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
        response = yield from _asked(request, endpoints.issuer)
        nonces.learn(endpoints.token, response.headers.get("dpop-nonce"))
        if attempt == "first" and _wants_nonce(response):
            continue
        if response.status != 200:  # noqa: PLR2004
            raise failure_of(response, endpoints.issuer, "a token")
        return _answer(_json_object(response, endpoints.issuer), endpoints.issuer)
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


def _asked(request: HttpRequest, issuer: str) -> Flow[HttpResponse]:
    try:
        return (yield from http(request))
    except TransportError as error:
        raise CredentialUnavailableError(
            "issuer_unreachable", f"{issuer} could not be asked: {error.code}", remedy=error.remedy
        ) from error


def _wants_nonce(response: HttpResponse) -> bool:
    if response.status not in (400, 401) or "dpop-nonce" not in response.headers:
        return False
    return _error_code(response) == "use_dpop_nonce"


_OAUTH_ERRORS: Final = frozenset(
    {
        *("invalid_request", "invalid_client", "invalid_grant", "unauthorized_client"),
        *("unsupported_grant_type", "invalid_scope", "invalid_target", "invalid_dpop_proof"),
        *("use_dpop_nonce", "access_denied", "invalid_token", "invalid_client_metadata"),
        *("insufficient_scope", "temporarily_unavailable", "server_error"),
        "invalid_authorization_details",
    }
)


def _error_code(response: HttpResponse) -> str:
    """The issuer's error code if it is one that a standard names; its own words are never quoted."""
    try:
        found = jose.loads_object(response.body).get("error")
    except VerificationError:
        return "unreadable_error"
    return found if isinstance(found, str) and found in _OAUTH_ERRORS else "unknown_error"


def failure_of(response: HttpResponse, issuer: str, what: str) -> CredentialError:
    status = response.status
    if 300 <= status < 400:  # noqa: PLR2004
        return CredentialRejectedError(
            "redirected", f"{issuer} answered with a redirect, which is never followed"
        )
    if status in (408, 429) or status >= 500:  # noqa: PLR2004
        return CredentialUnavailableError(
            "issuer_busy",
            f"{issuer} answered {status} when asked for {what}",
            retry_after=retry_after(response.headers.get("retry-after")),
        )
    code = _error_code(response)
    return CredentialRejectedError(code, f"{issuer} refused {what}: {code} ({status})")


def retry_after(value: str | None) -> float | None:
    """Seconds from a Retry-After header in its plain form; anything else is no word at all."""
    if value is None or not value.isascii() or not value.isdigit() or len(value) > _SECONDS_DIGITS:
        return None
    return min(float(value), 3600.0)


class Fields:
    """The members of an answer, without a readable form.

    What an issuer sends may echo what it was sent. A traceback that captures locals finds it neither here nor in the frames
    that raise: those ask questions, and hold only the answers.
    """

    __slots__ = ("_members",)

    def __init__(self, members: dict[str, JSON]) -> None:
        self._members = members

    def get(self, name: str) -> JSON:
        return self._members.get(name)

    def has(self, name: str) -> bool:
        """Whether a member is there with a value."""
        return self._members.get(name) is not None

    def is_text(self, name: str) -> bool:
        value = self._members.get(name)
        return isinstance(value, str) and 0 < len(value) <= _TOKEN_LIMIT

    def text(self, name: str) -> str | None:
        value = self._members.get(name)
        return value if isinstance(value, str) and value else None

    def actor(self) -> JSON:
        """`act.sub` of a token (RFC 8693 §4.1)."""
        act = self._members.get("act")
        return act.get("sub") if isinstance(act, dict) else None

    def bound_key(self) -> JSON:
        """`cnf.jkt` of a token (RFC 9449 §6.1)."""
        confirmation = self._members.get("cnf")
        return confirmation.get("jkt") if isinstance(confirmation, dict) else None


def _json_object(response: HttpResponse, issuer: str) -> Fields:
    if not _says_json(response):
        raise CredentialRejectedError("not_json", f"{issuer} answered something other than JSON")
    try:
        return Fields(jose.loads_object(response.body))
    except AgentIdentityError as error:
        code = error.code
    raise CredentialRejectedError(
        "malformed_answer", f"{issuer} answered JSON that is refused: {code}"
    )


def _says_json(response: HttpResponse) -> bool:
    kind = response.headers.get("content-type", "")
    return kind.partition(";")[0].strip().lower() == "application/json"


def _answer(fields: Fields, issuer: str) -> Answer:
    if fields.has("error") or not fields.is_text("access_token"):
        raise CredentialRejectedError("malformed_answer", f"{issuer} answered without a token")
    if not fields.is_text("token_type") or (
        fields.has("issued_token_type") and not fields.is_text("issued_token_type")
    ):
        raise CredentialRejectedError("malformed_answer", f"{issuer} doesn't say what it issued")
    if fields.has("refresh_token"):
        raise CredentialRejectedError(
            "unexpected_refresh_token", f"{issuer} answered with a refresh token nobody asked for"
        )
    if fields.has("scope") and not isinstance(fields.get("scope"), str):
        raise CredentialRejectedError("malformed_answer", f"{issuer} gives a scope that is none")
    scope = fields.text("scope") if fields.has("scope") else None
    return Answer(
        token=Secret(fields.text("access_token") or ""),
        token_type=fields.text("token_type") or "",
        issued_token_type=fields.text("issued_token_type"),
        expires_in=_expires_in(fields, issuer),
        scopes=None if not fields.has("scope") else frozenset((scope or "").split(" ")) - {""},
    )


def _expires_in(fields: Fields, issuer: str) -> float | None:
    if not fields.has("expires_in"):
        return None
    seconds = _finite(fields.get("expires_in"))
    if seconds is None:
        raise CredentialRejectedError("malformed_answer", f"{issuer} gives a lifetime that is none")
    if seconds <= 0:
        raise CredentialRejectedError("already_expired", f"{issuer} issued what has expired")
    return min(seconds, _LONGEST_LIFE)


def _finite(value: JSON) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def check_scopes(answer: Answer, asked: frozenset[str], issuer: str) -> frozenset[str]:
    """The scopes that were granted: as asked where the answer is silent, never more (RFC 8693 §2.2.1)."""
    if answer.scopes is not None and not answer.scopes <= asked:
        raise CredentialRejectedError("scope_widened", f"{issuer} granted more than was asked for")
    if answer.scopes is not None and not asked <= answer.scopes:
        raise CredentialRejectedError(
            "scope_narrowed",
            f"{issuer} granted less than the call needs",
            remedy="register the missing scopes for this client at the issuer",
        )
    return asked


def check_binding(claims: Fields, key: ProofKey, issuer: str) -> None:
    """Hold a token to being bound to our key (RFC 9449 §6): a binding that was asked for is never dropped in silence."""
    if claims.bound_key() != key.thumbprint:
        raise CredentialRejectedError(
            "binding_missing", f"{issuer} issued a token that isn't bound to the agent's key"
        )


def read_jwt(token: Secret) -> Fields | None:
    """The claims of a token that is a JWT, unverified: the issuer's word to us, and None for an opaque one."""
    try:
        return Fields(jose.loads_object(jose.unverified(token.reveal()).payload))
    except VerificationError:
        return None


def ath_of(token: Secret) -> str:
    """The `ath` of a token: SHA-256 of its ASCII bytes."""
    return hash_of(token.reveal())
