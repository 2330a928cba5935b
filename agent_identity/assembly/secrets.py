# SPDX-License-Identifier: Apache-2.0
"""Flows that read the secrets of `env:`, `file:`, `keyring:` and `vault:` references when they are needed.

A client secret or an API key in the vault is cached for five minutes, since reading it takes two requests. All others are read
each time, and so are secrets that are also written, since another process may have replaced a refresh token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.config.references import transit_key
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.vault.transit import TransitSigner
from agent_identity.errors import ConfigurationError
from agent_identity.flow import Shared, certificate_svid, keep, read, shared
from agent_identity.keys.signing import SigningKey, read_certificate
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.vault.secrets import Vault
    from agent_identity.flow import Flow
    from agent_identity.signers import Signer
    from agent_identity.values import Certificate

T = TypeVar("T")

_LIFE: Final = 300.0
_VAULT: Final = "vault:"


@dataclass(frozen=True, slots=True)
class _CachedSecret:
    secret: Secret | None = field(repr=False)
    issued_at: float
    expires_at: float


class Secrets:
    """The secrets that one configuration names. `vault` is for `vault:` references, `clock` returns Unix seconds."""

    def __init__(self, vault: Vault | None, clock: Callable[[], float]) -> None:
        self._vault = vault
        self._clock = clock

    def read(self, reference: str) -> Flow[Secret | None]:
        """Read the current secret of a reference; None if there is none."""
        if not reference.startswith(_VAULT):
            return read(reference)
        return self._require_vault().read(reference)

    def keep(self, reference: str, secret: Secret | None) -> Flow[None]:
        """Write a secret to the place of a reference; None deletes it."""
        if not reference.startswith(_VAULT):
            return keep(reference, secret)
        return self._require_vault().keep(reference, secret)

    def optional(self, reference: str) -> Callable[[], Flow[Secret | None]]:
        """A function that makes a flow to read the reference. A secret of the vault may be five minutes old."""
        return lambda: self._read_cached(reference)

    def required(self, reference: str, what: str) -> Callable[[], Flow[Secret]]:
        """The same for a required secret. `what` names it in error messages."""

        def fetch() -> Flow[Secret]:
            secret = yield from self._read_cached(reference)
            if secret is None:
                raise ConfigurationError(
                    "secret_missing",
                    f"there is no {what} at {reference}",
                    remedy="put it there, or name another place",
                )
            return secret

        return fetch

    def key(self, reference: str, what: str) -> Callable[[], Flow[SigningKey]]:
        """A private key, PEM."""
        return _parsed(
            (self.required(reference, what),),
            lambda read: SigningKey.from_pem(read[0].reveal().encode()),
        )

    def signer(self, reference: str) -> Signer:
        """The key of the vault's transit engine that `vault:MOUNT/NAME` names, which signs there.

        Raises:
            ConfigurationError: `reference_malformed`, `vault_unconfigured`.
        """
        place = transit_key(reference)
        return TransitSigner(self._require_vault(), place.mount, place.name)

    def certificate(
        self, chain: str, key: str | None, what: str
    ) -> Callable[[], Flow[Certificate]]:
        """A certificate chain and its key in PEM, in one place or two."""
        first = self.required(chain, what)
        second = first if key is None else self.required(key, f"key of the {what}")
        return _parsed(
            (first, second),
            lambda read: read_certificate(read[0].reveal().encode(), read[1].reveal().encode()),
        )

    def _read_cached(self, reference: str) -> Flow[Secret | None]:
        if not reference.startswith(_VAULT):
            return (yield from read(reference))
        key = digest_of(("secret", reference))
        kept = yield from shared(Shared(key, lambda: self._read_vault(reference)))
        return kept.secret

    def _read_vault(self, reference: str) -> Flow[_CachedSecret]:
        secret = yield from self._require_vault().read(reference)
        now = self._clock()
        return _CachedSecret(secret, now, now + _LIFE)

    def _require_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigurationError(
                "vault_unconfigured",
                "a vault: reference needs a [vault] table, and there is none",
                remedy="add [vault] with its address",
            )
        return self._vault


def workload_certificate() -> Flow[Certificate]:
    """The X.509-SVID of this workload, for an issuer that knows the client by it."""
    certificate = yield from certificate_svid()
    if certificate is None:
        raise ConfigurationError(
            "no_workload_api",
            "the client's certificate must be an SVID, and there is no SPIFFE Workload API",
            remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
        )
    return certificate


def _parsed(
    texts: tuple[Callable[[], Flow[Secret]], ...], parse: Callable[[Sequence[Secret]], T]
) -> Callable[[], Flow[T]]:
    """A function that makes a flow to read texts, and parses them again only if they have changed."""
    last: list[tuple[list[Secret], T]] = []

    def fetch() -> Flow[T]:
        read: list[Secret] = []
        for text in texts:
            read.append((yield from text()))  # noqa: PERF401 - a comprehension can't yield
        for before, value in last:
            if all(map(Secret.equals, before, read)):
                return value
        value = parse(read)
        last[:] = [(read, value)]
        return value

    return fetch
