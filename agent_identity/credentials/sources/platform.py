# SPDX-License-Identifier: Apache-2.0
"""For resources that accept the platform's own tokens for this workload, without an issuer in between.

Such a token names only the workload; the chain beside it names the principal. Only the certificate is bound to a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import ath_of, read_jwt
from agent_identity.credentials.source import Described
from agent_identity.credentials.workload.spiffe import (
    WORKLOAD_API,
    Spiffe,
    check_trust_domain,
    check_x509_svid,
)
from agent_identity.errors import (
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import certificate_svid
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.source import Wanted
    from agent_identity.credentials.workload.tokens import Provider, WorkloadToken
    from agent_identity.flow import Flow


@dataclass(frozen=True, slots=True)
class WorkloadTokenSource:
    """The platform's token for `audience` (default: the resource). `clock` returns Unix seconds."""

    provider: Provider
    audience: str | None = None
    clock: Callable[[], float] = field(repr=False, kw_only=True)
    patience: float | None = None

    @property
    def described(self) -> Described:
        # The repr of a provider has all its settings: path, expected claims, trust domain. It holds no secret.
        return Described(
            "workload-token",
            self.provider.kind,
            audience=self.audience or "",
            details=repr(self.provider),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get the platform's token.

        Raises:
            CredentialUnavailableError: `no_workload_identity`, this isn't that platform; or it issues no token now.
            CredentialRejectedError: the token doesn't match the request.
            ConfigurationError: the configured place of the token can't be used.
        """
        audience = wanted.resource if self.audience is None else self.audience
        token = yield from self.provider.fetch(audience, self.clock())
        if token is None:
            raise CredentialUnavailableError(
                "no_workload_identity",
                f"this workload has no identity of {self.provider.kind}: looked for {self.provider.looks_for}",
                remedy=self.provider.setup,
            )
        return _bearer(token, wanted, self.provider.kind)


@dataclass(frozen=True, slots=True)
class _SpiffeSource:
    """A source that asks the Workload API, for an SVID from `trust_domain` if that is set. `clock` returns Unix seconds."""

    kind: ClassVar[str]

    trust_domain: str | None = None
    clock: Callable[[], float] = field(repr=False, kw_only=True)
    patience: float | None = None

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)

    @property
    def described(self) -> Described:
        return Described(self.kind, "spiffe", details=self.trust_domain or "")


class SpiffeJwtSource(_SpiffeSource):
    """A JWT-SVID whose audience is the resource, from `trust_domain` if that is set. `clock` returns Unix seconds."""

    __slots__ = ()
    kind: ClassVar[str] = "spiffe-jwt"

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get an SVID for this resource from the Workload API.

        Raises:
            ConfigurationError: `no_workload_api`.
            CredentialRejectedError: it has another audience or trust domain, or isn't an SVID.
        """
        provider = Spiffe(trust_domain=self.trust_domain)
        svid = yield from provider.fetch(wanted.resource, self.clock())
        if svid is None:
            raise _no_workload_api(wanted.resource, "a JWT-SVID")
        return _bearer(svid, wanted, "spiffe")


class SpiffeX509Source(_SpiffeSource):
    """The workload's X.509-SVID as TLS client certificate, from `trust_domain` if that is set. `clock` returns Unix seconds."""

    __slots__ = ()
    kind: ClassVar[str] = "spiffe-x509"

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get this workload's certificate from the Workload API.

        Raises:
            ConfigurationError: `no_workload_api`.
            CredentialRejectedError: it doesn't name exactly one workload, has another trust domain, or has expired.
        """
        now = self.clock()
        svid = yield from certificate_svid()
        if svid is None:
            raise _no_workload_api(wanted.resource, "an X.509-SVID")
        check_x509_svid(svid, self.trust_domain, who=WORKLOAD_API)
        if svid.expires_at <= now:
            raise CredentialRejectedError(
                "certificate_expired",
                f"the X.509-SVID of {WORKLOAD_API} has expired",
                remedy="check that it is renewed, and this machine's clock",
            )
        return Issued(
            token=Secret(""),
            token_type="certificate",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="spiffe",
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=svid.expires_at,
            header="",
            certificate=svid,
        )


def _bearer(token: WorkloadToken, wanted: Wanted, issuer: str) -> Issued:
    """Return the token as a credential. Its scopes are the requested ones, since a platform has none."""
    claims = read_jwt(token.token)
    return Issued(
        token=token.token,
        token_type="Bearer",  # noqa: S106 - a type
        resource=wanted.resource,
        issuer=issuer,
        scopes=wanted.scopes,
        issued_at=token.issued_at,
        expires_at=token.expires_at,
        jti=None if claims is None else claims.text("jti"),
        ath=ath_of(token.token),
        scheme="Bearer",
        is_opaque=claims is None,
    )


def _no_workload_api(resource: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        "no_workload_api",
        f"{resource} requires {what}, and no SPIFFE Workload API is configured",
        remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
    )
