# SPDX-License-Identifier: Apache-2.0
"""Client authentication at an issuer: by a key, a secret, a certificate, a SPIFFE identity, a platform token, or none.

Each method is a small object whose `prove` is a flow that returns what one request carries. Secrets and keys are read when
they are needed, so that a rotated one is used from then on.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol

import orjson

from agent_identity import jose
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.flow import jwt_svid
from agent_identity.uris import quote_form
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Certificate

_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"


class Proven(NamedTuple):
    """What one request carries to authenticate the client."""

    fields: tuple[tuple[str, str | Secret], ...] = ()
    headers: tuple[tuple[str, Secret], ...] = ()
    certificate: Certificate | None = None


class Authentication(Protocol):
    """A client authentication method. `method` is its registered name (RFC 7591 §2)."""

    @property
    def method(self) -> str: ...

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        """Return what one request to `to` carries, fresh for each request. `now` is Unix seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Client:
    """A client at one issuer, and its authentication method."""

    client_id: str
    authentication: Authentication

    def prove(self, to: Endpoints, now: float) -> Flow[Proven]:
        return self.authentication.prove(self.client_id, to, now)


def _asserted(client_id: str, kind: str, assertion: Secret) -> Proven:
    return Proven(
        (
            ("client_id", client_id),
            ("client_assertion_type", kind),
            ("client_assertion", assertion),
        )
    )


def sign_assertion(
    key: SigningKey,
    *,
    typ: str,
    kid: str | None,
    iss: str,
    sub: str,
    aud: str,
    now: float,
    jti: str,
) -> Secret:
    """Sign an assertion that is valid for a minute (RFC 7523 §3). The default `kid` is the key's thumbprint."""
    header = jose.encode_header(key.alg, typ=typ, kid=kid or key.thumbprint)
    claims: dict[str, JSON] = {
        "iss": iss,
        "sub": sub,
        "aud": aud,
        "iat": int(now),
        "exp": int(now) + 60,
        "jti": jti,
    }
    return Secret(key.compact(header, orjson.dumps(claims)))


@dataclass(frozen=True, slots=True)
class PrivateKeyJwt:
    """A signed assertion for one use, valid for a minute (RFC 7523 §2.2). Its audience is the issuer (RFC 10070).

    `audience="token-endpoint"` is for issuers that only know the older rule. `kid` is the registered name of the key
    (default: its thumbprint).
    """

    key: SigningKey | Callable[[], Flow[SigningKey]] = field(repr=False)
    audience: Literal["issuer", "token-endpoint"] = "issuer"
    kid: str | None = None
    method: str = "private_key_jwt"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        key = (yield from self.key()) if callable(self.key) else self.key
        assertion = sign_assertion(
            key,
            typ="client-authentication+jwt",
            kid=self.kid,
            iss=client_id,
            sub=client_id,
            aud=to.issuer if self.audience == "issuer" else to.token,
            now=now,
            jti=new_id("ca_"),
        )
        return _asserted(client_id, _JWT_BEARER, assertion)


@dataclass(frozen=True, slots=True)
class SecretBasic:
    """A shared secret in the Authorization header, both parts form-encoded first (RFC 6749 §2.3.1)."""

    secret: Callable[[], Flow[Secret]] = field(repr=False)
    method: str = "client_secret_basic"
    _last: list[tuple[Secret, str, Secret]] = field(
        default_factory=list[tuple[Secret, str, Secret]], init=False, repr=False, compare=False
    )
    """The last header: its secret, its client id, and the header."""

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        secret = yield from self.secret()
        return Proven(headers=(("Authorization", self._header(client_id, secret)),))

    def _header(self, client_id: str, secret: Secret) -> Secret:
        for of, name, header in self._last:
            if of.equals(secret) and name == client_id:
                return header
        made = _basic(quote_form(client_id), secret)
        self._last[:] = [(secret, client_id, made)]
        return made


def _basic(name: str, secret: Secret) -> Secret:
    pair = f"{name}:{quote_form(secret.reveal())}"
    return Secret("Basic " + base64.b64encode(pair.encode()).decode("ascii"))


@dataclass(frozen=True, slots=True)
class SecretPost:
    """A shared secret in the form (RFC 6749 §2.3.1)."""

    secret: Callable[[], Flow[Secret]] = field(repr=False)
    method: str = "client_secret_post"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        secret = yield from self.secret()
        return Proven((("client_id", client_id), ("client_secret", secret)))


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """A TLS client certificate (RFC 8705 §2): issued by an authority that the issuer trusts, or self-signed and registered."""

    certificate: Callable[[], Flow[Certificate]] = field(repr=False)
    method: str = "tls_client_auth"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        certificate = yield from self.certificate()
        return Proven((("client_id", client_id),), certificate=certificate)


@dataclass(frozen=True, slots=True)
class SpiffeJwt:
    """A JWT-SVID whose audience is the issuer (draft-ietf-oauth-spiffe-client-auth-02)."""

    method: str = "spiffe_jwt"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        svid = yield from jwt_svid(to.issuer)
        if svid is None:
            raise ConfigurationError(
                "no_workload_api",
                f"{to.issuer} requires a JWT-SVID, and no SPIFFE Workload API is configured",
                remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
            )
        if svid.reveal() == "":
            raise CredentialRejectedError(
                "malformed_answer", "the SPIFFE Workload API returned an empty SVID"
            )
        return _asserted(client_id, _JWT_SPIFFE, svid)


@dataclass(frozen=True, slots=True)
class PlatformJwt:
    """The platform's token for this job or pod; its audience is the issuer (RFC 7523 §2.2).

    The issuer must map the platform's subject to the client.
    """

    fetch: Callable[[str, float], Flow[Secret]] = field(repr=False)
    method: str = "workload_token"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        token = yield from self.fetch(to.issuer, now)
        return _asserted(client_id, _JWT_BEARER, token)


@dataclass(frozen=True, slots=True)
class NoProof:
    """A public client: it sends its `client_id` without authentication (RFC 6749 §2.1); an anonymous one has an empty id."""

    method: str = "none"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        yield from ()
        return Proven((("client_id", client_id),) if client_id else ())
