# SPDX-License-Identifier: Apache-2.0
"""Credentials for services without OAuth: an API key, a password, a token or a certificate from a secret store.

A secret is read at each fetch and cached for five minutes, so that a rotated one is soon in use. Such a secret can't be
limited to scopes: prefer any other source.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import ath_of, read_jwt
from agent_identity.credentials.source import Described
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from re import Pattern

    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow
    from agent_identity.values import Certificate

LIFE: Final = 300.0
"""Seconds until a secret is read again."""

_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")  # a token (RFC 9110 §5.6.2)
_VALUE: Final = re.compile(r"[!-~](?:[ -~]{0,16382}[!-~])?")  # what a header's value may be
_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_TEXT: Final = re.compile(r"[^\0-\x1f\x7f-\x9f\ud800-\udfff]{1,4096}")  # no control characters


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What the four sources share.

    The callable of a secret makes the flow that reads it; the flow returns None where there is none. `reference` names the
    secret's place, for messages and the cache key. `clock` returns Unix seconds.
    """

    clock: Callable[[], float] = field(repr=False)
    reference: str = ""
    patience: float | None = None


@dataclass(frozen=True, slots=True)
class ApiKey(_Kept):
    """A key in a header, after `scheme` (empty: the key alone)."""

    secret: Callable[[], Flow[Secret | None]] = field(repr=False)
    header: str = "Authorization"
    scheme: str = "Bearer"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.header):
            raise ConfigurationError(
                "header_malformed",
                "the header of an API key isn't a valid header name",
                remedy="write the name alone, for instance X-Api-Key",
            )
        if self.scheme and not _NAME.fullmatch(self.scheme):
            raise ConfigurationError(
                "scheme_malformed",
                "the scheme of an API key isn't a single word",
                remedy='write one word, for instance Bearer, or "" for none',
            )

    @property
    def described(self) -> Described:
        return Described(
            "api-key", client=self.reference, details=f"{self.header.lower()} {self.scheme}"
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Read the key.

        Raises:
            ConfigurationError: `secret_missing` or `secret_unreadable`.
        """
        key = yield from _secret(self.secret, "API key", wanted, self.reference, _VALUE)
        now = self.clock()
        return Issued(
            token=key,
            token_type="api-key",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="api-key",
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=now + LIFE,
            header=self.header,
            scheme=self.scheme,
            is_opaque=True,
        )


@dataclass(frozen=True, slots=True)
class Basic(_Kept):
    """A user name and a password, in UTF-8 (RFC 7617). `username` is the name itself, or makes the flow that reads it."""

    username: str | Callable[[], Flow[Secret | None]] = field(repr=False)
    password: Callable[[], Flow[Secret | None]] = field(repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.username, str) and self.username:  # may be empty (RFC 7617 §2)
            _check_username(Secret(self.username))

    @property
    def described(self) -> Described:
        name = self.username if isinstance(self.username, str) else ""
        return Described("basic", client=f"{name} {self.reference}")

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Read the name and the password.

        Raises:
            ConfigurationError: `secret_missing`, `secret_unreadable` or `username_malformed`.
        """
        parts: tuple[Secret, ...] = ()
        if isinstance(self.username, str):
            name = Secret(self.username)
        else:
            name = yield from _secret(self.username, "user name", wanted, "", _TEXT)
            _check_username(name)
            parts = (name,)
        password = yield from _secret(self.password, "password", wanted, self.reference, _TEXT)
        now = self.clock()
        return Issued(
            token=_pair(name, password),
            token_type="Basic",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="basic",
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=now + LIFE,
            scheme="Basic",
            is_opaque=True,
            parts=(*parts, password),
        )


@dataclass(frozen=True, slots=True)
class Static(_Kept):
    """A bearer token that was obtained elsewhere. A JWT is used until its `exp` at most."""

    token: Callable[[], Flow[Secret | None]] = field(repr=False)

    @property
    def described(self) -> Described:
        return Described("static", client=self.reference)

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Read the token.

        Raises:
            ConfigurationError: `secret_missing` or `secret_unreadable`.
            CredentialRejectedError: `token_expired`, by its `exp`.
        """
        token = yield from _secret(self.token, "token", wanted, self.reference, _TOKEN)
        now = self.clock()
        claims = read_jwt(token)
        end = None if claims is None else claims.number("exp")
        if end is not None and end <= now:
            raise CredentialRejectedError(
                "token_expired",
                f"the token for {wanted.resource} has expired",
                remedy="replace it with a new one, and check this machine's clock",
            )
        return Issued(
            token=token,
            token_type="Bearer",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="static",
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=now + LIFE if end is None else min(end, now + LIFE),
            jti=None if claims is None else claims.text("jti"),
            ath=ath_of(token),
            scheme="Bearer",
            is_opaque=True,  # its audience and scopes aren't checked
        )


@dataclass(frozen=True, slots=True)
class ClientCertificate(_Kept):
    """A TLS client certificate as the whole credential."""

    certificate: Callable[[], Flow[Certificate | None]] = field(repr=False)

    @property
    def described(self) -> Described:
        return Described("client-certificate", client=self.reference)

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Read the certificate.

        Raises:
            ConfigurationError: `secret_missing`.
            CredentialRejectedError: `certificate_expired`.
        """
        certificate = yield from self.certificate()
        if certificate is None:
            raise _missing("client certificate", wanted.resource, self.reference)
        now = self.clock()
        if certificate.expires_at <= now:
            raise CredentialRejectedError(
                "certificate_expired",
                f"the client certificate for {wanted.resource} has expired",
                remedy="replace it with a new one, and check this machine's clock",
            )
        return Issued(
            token=Secret(""),
            token_type="certificate",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer="client-certificate",
            scopes=wanted.scopes,
            issued_at=now,
            expires_at=min(certificate.expires_at, now + LIFE),
            header="",
            certificate=certificate,
            is_opaque=True,
        )


def _secret(
    make: Callable[[], Flow[Secret | None]],
    what: str,
    wanted: Wanted,
    reference: str,
    allowed: Pattern[str],
) -> Flow[Secret]:
    secret = yield from make()
    if secret is None:
        raise _missing(what, wanted.resource, reference)
    if allowed.fullmatch(secret.reveal()) is None:
        raise ConfigurationError(
            "secret_unreadable",
            f"the {what} for {wanted.resource} is empty or has characters that can't be sent",
            remedy=f"check {reference or 'its reference'}: it must hold the secret alone, without a line break",
        )
    return secret


def _missing(what: str, resource: str, reference: str) -> ConfigurationError:
    return ConfigurationError(
        "secret_missing",
        f"there is no {what} for {resource} at its reference",
        remedy=f"put it there ({reference})"
        if reference
        else "put it there, or correct the reference",
    )


def _check_username(name: Secret) -> None:
    if ":" in name.reveal() or _TEXT.fullmatch(name.reveal()) is None:
        raise ConfigurationError(
            "username_malformed",
            "a user name for HTTP Basic has a colon or a control character",
            remedy="set the name alone; the password has a reference of its own",
        )


def _pair(name: Secret, password: Secret) -> Secret:
    pair = f"{name.reveal()}:{password.reveal()}"
    return Secret(base64.b64encode(pair.encode()).decode("ascii"))
