# SPDX-License-Identifier: Apache-2.0
"""How a client proves itself to an issuer: by a key, a secret, a certificate, a SPIFFE identity, or not at all.

Each way is a small object with one method, a flow that gives what goes along with one request. Secrets and keys are read
when they are needed, so that a rotated one is used from then on.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol
from urllib.parse import quote_plus

import orjson

from agent_identity import jose
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.flow import jwt_svid
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Certificate

__all__ = [
    "Authentication",
    "Client",
    "NoProof",
    "PlatformJwt",
    "PrivateKeyJwt",
    "Proven",
    "SecretBasic",
    "SecretPost",
    "SpiffeJwt",
    "TlsCertificate",
]

_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
_JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"


class Proven(NamedTuple):
    """What one request carries so that the issuer knows the client."""

    fields: tuple[tuple[str, str | Secret], ...] = ()
    headers: tuple[tuple[str, Secret], ...] = ()
    certificate: Certificate | None = None


class Authentication(Protocol):
    """One way to prove who the client is. `method` is its registered name (RFC 7591 §2)."""

    @property
    def method(self) -> str: ...

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        """What goes along with one request to `to`; fresh each time. `now` is Unix seconds."""
        ...


@dataclass(frozen=True, slots=True)
class Client:
    """A client as one issuer knows it, and how it proves that it is this client."""

    client_id: str
    authentication: Authentication

    def prove(self, to: Endpoints, now: float) -> Flow[Proven]:
        return self.authentication.prove(self.client_id, to, now)


@dataclass(frozen=True, slots=True)
class PrivateKeyJwt:
    """A signed assertion, good once and for a minute (RFC 7523 §2.2); its audience is the issuer (RFC 10070).

    `audience` may be `token-endpoint` for issuers that know the old rule alone. `kid` is what the key is registered under,
    by default its thumbprint.
    """

    key: SigningKey | Callable[[], Flow[SigningKey]] = field(repr=False)
    audience: Literal["issuer", "token-endpoint"] = "issuer"
    kid: str | None = None
    method: str = "private_key_jwt"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        key = (yield from self.key()) if callable(self.key) else self.key
        header = jose.header(
            key.alg, typ="client-authentication+jwt", kid=self.kid or key.thumbprint
        )
        claims: dict[str, JSON] = {
            "iss": client_id,
            "sub": client_id,
            "aud": to.issuer if self.audience == "issuer" else to.token,
            "iat": int(now),
            "exp": int(now) + 60,
            "jti": new_id("ca_"),
        }
        assertion = Secret(key.compact(header, orjson.dumps(claims)))
        return Proven(
            (
                ("client_id", client_id),
                ("client_assertion_type", _JWT_BEARER),
                ("client_assertion", assertion),
            )
        )


@dataclass(frozen=True, slots=True)
class SecretBasic:
    """A shared secret in the Authorization header, both parts form-encoded first (RFC 6749 §2.3.1)."""

    secret: Callable[[], Flow[Secret]] = field(repr=False)
    method: str = "client_secret_basic"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        secret = yield from self.secret()
        return Proven(headers=(("Authorization", _basic(quote_plus(client_id), secret)),))


def _basic(name: str, secret: Secret) -> Secret:
    pair = f"{name}:{quote_plus(secret.reveal())}"
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
    """A client certificate in TLS (RFC 8705 §2): one of a known authority, or a registered self-signed one."""

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
                f"{to.issuer} wants a JWT-SVID, and there is no SPIFFE Workload API",
                remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
            )
        if svid.reveal() == "":
            raise CredentialRejectedError("malformed_answer", "the Workload API gave an empty SVID")
        return Proven(
            (
                ("client_id", client_id),
                ("client_assertion_type", _JWT_SPIFFE),
                ("client_assertion", svid),
            )
        )


@dataclass(frozen=True, slots=True)
class PlatformJwt:
    """What the platform says of this job or pod, in a token whose audience is the issuer (RFC 7523 §2.2).

    The issuer has to know which of the platform's subjects the client is.
    """

    fetch: Callable[[str, float], Flow[Secret]] = field(repr=False)
    method: str = "workload_token"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:
        token = yield from self.fetch(to.issuer, now)
        return Proven(
            (
                ("client_id", client_id),
                ("client_assertion_type", _JWT_BEARER),
                ("client_assertion", token),
            )
        )


@dataclass(frozen=True, slots=True)
class NoProof:
    """A public client: it says who it is, and proves nothing (RFC 6749 §2.1)."""

    method: str = "none"

    def prove(self, client_id: str, to: Endpoints, now: float, /) -> Flow[Proven]:  # noqa: ARG002 - the protocol's
        yield from ()
        return Proven((("client_id", client_id),))
