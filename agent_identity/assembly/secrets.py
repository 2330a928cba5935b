# SPDX-License-Identifier: Apache-2.0
"""References as flows: what `env:`, `file:`, `keyring:` and `vault:` name, read when it is needed and not before.

A client secret or an API key of the vault serves for five minutes, since reading it is two requests; all others are read each
time. So is whatever is kept there too: a refresh token that another process replaced is worth nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from agent_identity.config.references import transit_key
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.vault.transit import TransitSigner
from agent_identity.errors import ConfigurationError
from agent_identity.flow import Shared, certificate_svid, keep, read, shared
from agent_identity.keys.signing import SigningKey, read_certificate

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.vault.secrets import Vault
    from agent_identity.flow import Flow
    from agent_identity.signers import Signer
    from agent_identity.values import Certificate, Secret

__all__ = ["Secrets", "workload_certificate"]

_LIFE: Final = 300.0
_VAULT: Final = "vault:"


@dataclass(frozen=True, slots=True)
class _Kept:
    secret: Secret | None = field(repr=False)
    issued_at: float
    expires_at: float


class Secrets:
    """The secrets that one configuration names. `vault` is where `vault:` references lead, `clock` gives Unix seconds."""

    def __init__(self, vault: Vault | None, clock: Callable[[], float]) -> None:
        self._vault = vault
        self._clock = clock

    def read(self, reference: str) -> Flow[Secret | None]:
        """What a reference names as it is now, None where there is nothing."""
        if not reference.startswith(_VAULT):
            return read(reference)
        return self._the_vault().read(reference)

    def keep(self, reference: str, secret: Secret | None) -> Flow[None]:
        """Keep a secret where a reference names; None takes away what is there."""
        if not reference.startswith(_VAULT):
            return keep(reference, secret)
        return self._the_vault().keep(reference, secret)

    def optional(self, reference: str) -> Callable[[], Flow[Secret | None]]:
        """A flow that reads the reference, made anew for each use; what the vault holds may be five minutes old."""
        return lambda: self._served(reference)

    def required(self, reference: str, what: str) -> Callable[[], Flow[Secret]]:
        """The same for a secret that has to be there; `what` says in errors which it is."""

        def fetch() -> Flow[Secret]:
            found = yield from self._served(reference)
            if found is None:
                raise ConfigurationError(
                    "secret_missing",
                    f"there is no {what} where the configuration says ({reference})",
                    remedy="put it there, or name another place",
                )
            return found

        return fetch

    def key(self, reference: str, what: str) -> Callable[[], Flow[SigningKey]]:
        """A private key, PEM."""
        text = self.required(reference, what)

        def fetch() -> Flow[SigningKey]:
            found = yield from text()
            return SigningKey.from_pem(found.reveal().encode())

        return fetch

    def signer(self, reference: str) -> Signer:
        """The key of the vault's transit engine that `vault:MOUNT/NAME` names, which signs there.

        Raises:
            ConfigurationError: `reference_malformed`, `vault_unconfigured`.
        """
        place = transit_key(reference)
        return TransitSigner(self._the_vault(), place.mount, place.name)

    def certificate(
        self, chain: str, key: str | None, what: str
    ) -> Callable[[], Flow[Certificate]]:
        """A certificate chain and its key, PEM, in two places or in one."""
        first = self.required(chain, what)
        second = first if key is None else self.required(key, f"key of the {what}")

        def fetch() -> Flow[Certificate]:
            certificates = yield from first()
            private = yield from second()
            return read_certificate(certificates.reveal().encode(), private.reveal().encode())

        return fetch

    def _served(self, reference: str) -> Flow[Secret | None]:
        if not reference.startswith(_VAULT):
            return (yield from read(reference))
        key = digest_of(("secret", reference))
        kept = yield from shared(Shared(key, lambda: self._fetched(reference)))
        return kept.secret

    def _fetched(self, reference: str) -> Flow[_Kept]:
        secret = yield from self._the_vault().read(reference)
        now = self._clock()
        return _Kept(secret, now, now + _LIFE)

    def _the_vault(self) -> Vault:
        if self._vault is None:
            raise ConfigurationError(
                "vault_unconfigured", "there is no [vault]", remedy="add one with its address"
            )
        return self._vault


def workload_certificate() -> Flow[Certificate]:
    """The X.509-SVID of this workload, where an issuer knows the client by it."""
    found = yield from certificate_svid()
    if found is None:
        raise ConfigurationError(
            "no_workload_api",
            "the client's certificate is to be an SVID, and there is no SPIFFE Workload API",
            remedy="set [spiffe] socket or SPIFFE_ENDPOINT_SOCKET",
        )
    return found
