# SPDX-License-Identifier: Apache-2.0
"""Who holds the key that signs first grants: this process, or something that signs when it is asked.

A signer is asked by flows, so that it can live anywhere. It says which public keys it has, and signs with the one that a
grant names. What it signed is checked before it is used: a signature of another key would be refused by every service, with
nothing to say why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from agent_identity import jose
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
    VerificationError,
)
from agent_identity.flow import pure
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.keys.signing import published
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.flow import Flow
    from agent_identity.keys.signing import JWK, SigningKey
    from agent_identity.values import JSON

__all__ = ["MemorySigner", "Signer", "probed", "public_keys_of", "signed"]

T = TypeVar("T")


class Signer(Protocol):
    """Holds a key that signs first grants, in whatever versions it has. `testing.play` drives one by hand."""

    def keys(self, /) -> Flow[Sequence[JWK]]:
        """Its public keys as JWKs: the one that signs now first, then those by which older grants still verify.

        A key is named by its RFC 7638 thumbprint, whatever `kid` its JWK has.

        Raises:
            CredentialError: there is no such key, or its holder refuses or can't be reached.
        """
        ...

    def sign(self, data: bytes, kid: str, /) -> Flow[bytes]:
        """The signature of the key that `kid` names, as JWS wants it: r‖s of 64 bytes for ES256, RFC 8032 for Ed25519.

        A holder of a P-256 key needs no more than the SHA-256 digest of `data`; Ed25519 signs all of it.

        Raises:
            CredentialError: see `keys`.
        """
        ...


class MemorySigner:
    """A signer whose key is in this process."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    @property
    def thumbprint(self) -> str:
        return self._key.thumbprint

    def keys(self, /) -> Flow[Sequence[JWK]]:
        return pure((self._key.public_jwk,))

    def sign(self, data: bytes, kid: str, /) -> Flow[bytes]:  # noqa: ARG002 - it has one key
        return pure(self._key.sign(data))

    def __repr__(self) -> str:
        return f"<MemorySigner {self._key!r}>"


def public_keys_of(signer: Signer) -> Flow[list[dict[str, JSON]]]:
    """What a signer's keys are published as, the one that signs now first.

    Raises:
        CredentialRejectedError: it has none, and see `Signer.keys`.
        CredentialUnavailableError: it could not be reached.
        ConfigurationError: `key_unusable`, one is none that signatures here have.
    """
    found = yield from _answered(signer.keys())
    if not found:
        raise CredentialRejectedError("unknown_key", "the signer of first grants has no key")
    return [published(key) for key in found]


def signed(signer: Signer, signing_input: bytes, key: dict[str, JSON]) -> Flow[str]:
    """The compact JWS over a signing input that names `key`, one of `public_keys_of`.

    Raises:
        CredentialRejectedError: what came back isn't signed by that key; its code is the rule that was broken.
        CredentialUnavailableError: the signer could not be reached.
    """
    signature = yield from _answered(signer.sign(signing_input, str(key["kid"])))
    compact = f"{signing_input.decode('ascii')}.{b64url(signature)}"
    try:
        jose.verify(compact, [key], algorithms=ALGORITHMS)
    except VerificationError as error:
        code = error.code
    else:
        return compact
    raise CredentialRejectedError(
        code,
        f"what the signer of first grants gave is refused: {code}",
        remedy="look at what stands between this process and the key, and whether the key is still the one it was",
    )


def _answered(flow: Flow[T]) -> Flow[T]:
    """What a signer answers; the network's errors are wrapped here, so that no signer has to."""
    try:
        return (yield from flow)
    except TransportError as error:
        raise CredentialUnavailableError(
            "issuer_unreachable",
            f"the signer of first grants could not be asked: {error.code}",
            remedy=error.remedy,
        ) from error


def probed(signer: Signer) -> Flow[dict[str, JSON]]:
    """The key that signs now, once it has signed something that means nothing anywhere.

    Raises:
        CredentialError: it doesn't sign.
    """
    key, *_ = yield from public_keys_of(signer)
    header = jose.header(str(key["alg"]), typ="agent-identity-probe", kid=str(key["kid"]))
    yield from signed(signer, f"{header}.{b64url(b'{}')}".encode("ascii"), key)
    return key
