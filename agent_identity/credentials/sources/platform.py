# SPDX-License-Identifier: Apache-2.0
"""Resources that know the platform: they take what it says of this workload itself, and no issuer stands between.

Such a token names the workload and nobody else: whom the agent acts for shows in the chain beside it. Nothing but the
certificate is bound to a key.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import ath_of, read_jwt
from agent_identity.credentials.source import Described
from agent_identity.credentials.workload.spiffe import Spiffe, check_trust_domain, check_x509_svid
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

__all__ = ["SpiffeJwtSource", "SpiffeX509Source", "WorkloadTokenSource"]

_WORKLOAD_API: Final = "the SPIFFE Workload API"


@dataclass(frozen=True, slots=True)
class WorkloadTokenSource:
    """The platform's token for `audience`, which is the resource unless it is given. `clock` gives Unix seconds."""

    provider: Provider
    audience: str | None = None
    clock: Callable[[], float] = field(repr=False, kw_only=True)
    patience: float | None = None

    @property
    def described(self) -> Described:
        # A provider's readable form is its whole set-up: path, expected claims, trust domain. It holds no secret.
        return Described(
            "workload-token",
            self.provider.kind,
            audience=self.audience or "",
            details=repr(self.provider),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Take the platform's token.

        Raises:
            CredentialUnavailableError: `no_workload_identity`, the platform isn't here; or it gives none now.
            CredentialRejectedError: its token isn't what was asked for.
            ConfigurationError: what names the place of the token can't be used.
        """
        audience = wanted.resource if self.audience is None else self.audience
        given = yield from self.provider.fetch(audience, self.clock())
        if given is None:
            raise CredentialUnavailableError(
                "no_workload_identity",
                f"{self.provider.kind} gives this workload no identity: looked for {self.provider.looks_for}",
                remedy=self.provider.setup,
            )
        return _bearer(given, wanted, self.provider.kind)


@dataclass(frozen=True, slots=True)
class SpiffeJwtSource:
    """A JWT-SVID whose audience is the resource, of `trust_domain` where that is given. `clock` gives Unix seconds."""

    trust_domain: str | None = None
    clock: Callable[[], float] = field(repr=False, kw_only=True)
    patience: float | None = None

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)

    @property
    def described(self) -> Described:
        return Described("spiffe-jwt", "spiffe", details=self.trust_domain or "")

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Ask the Workload API for an SVID to this resource.

        Raises:
            ConfigurationError: `no_workload_api`.
            CredentialRejectedError: it is for another audience, of another trust domain, or no SVID.
        """
        provider = Spiffe(trust_domain=self.trust_domain)
        given = yield from provider.fetch(wanted.resource, self.clock())
        if given is None:
            raise _no_workload_api(wanted.resource, "a JWT-SVID")
        return _bearer(given, wanted, "spiffe")


@dataclass(frozen=True, slots=True)
class SpiffeX509Source:
    """The workload's X.509-SVID, shown in TLS, of `trust_domain` where that is given. `clock` gives Unix seconds."""

    trust_domain: str | None = None
    clock: Callable[[], float] = field(repr=False, kw_only=True)
    patience: float | None = None

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)

    @property
    def described(self) -> Described:
        return Described("spiffe-x509", "spiffe", details=self.trust_domain or "")

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Ask the Workload API for this workload's certificate.

        Raises:
            ConfigurationError: `no_workload_api`.
            CredentialRejectedError: it names not exactly one workload, one of another trust domain, or has ended.
        """
        now = self.clock()
        svid = yield from certificate_svid()
        if svid is None:
            raise _no_workload_api(wanted.resource, "an X.509-SVID")
        check_x509_svid(svid, self.trust_domain, who=_WORKLOAD_API)
        if svid.expires_at <= now:
            raise CredentialRejectedError(
                "certificate_expired",
                f"the X.509-SVID of {_WORKLOAD_API} has expired",
                remedy="see that it is renewed, and that this machine's clock is right",
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


def _bearer(given: WorkloadToken, wanted: Wanted, issuer: str) -> Issued:
    """The token as it is sent; its scopes are as asked, since a platform knows of none."""
    claims = read_jwt(given.token)
    return Issued(
        token=given.token,
        token_type="Bearer",  # noqa: S106 - a type
        resource=wanted.resource,
        issuer=issuer,
        scopes=wanted.scopes,
        issued_at=given.issued_at,
        expires_at=given.expires_at,
        jti=None if claims is None else claims.text("jti"),
        ath=ath_of(given.token),
        scheme="Bearer",
        is_opaque=claims is None,
    )


def _no_workload_api(resource: str, what: str) -> ConfigurationError:
    return ConfigurationError(
        "no_workload_api",
        f"{resource} wants {what}, and there is no SPIFFE Workload API",
        remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
    )
