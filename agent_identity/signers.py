# SPDX-License-Identifier: Apache-2.0
"""Signers of first grants: a key in this process, or a service that signs on request.

A signer has public keys, and signs with the one that a grant names. Each signature is checked before it is used: every service
would refuse one of another key, without a hint at the cause.
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
from agent_identity.keys.signing import to_published_jwk
from agent_identity.values import b64url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.flow import Flow
    from agent_identity.keys.signing import JWK, SigningKey
    from agent_identity.values import JSON

__all__ = ["MemorySigner", "Signer", "probe_signer", "public_keys_of", "sign_compact"]

T = TypeVar("T")


class Signer(Protocol):
    """Holds a key that signs first grants, and its older versions. `testing.play` drives one by hand."""

    def keys(self, /) -> Flow[Sequence[JWK]]:
        """Its public keys as JWKs: first the one that signs now, then the older ones that valid grants were signed with.

        A key is named by its RFC 7638 thumbprint, whatever `kid` its JWK has.

        Raises:
            CredentialError: there is no key, or its holder refuses or can't be reached.
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
    """A signer's public keys as they are published, the one that signs now first.

    Raises:
        CredentialRejectedError: it has no key; see also `Signer.keys`.
        CredentialUnavailableError: it could not be reached.
        ConfigurationError: `key_unusable`, a key is of a type that isn't supported.
    """
    keys = yield from _wrap_network_errors(signer.keys())
    if not keys:
        raise CredentialRejectedError("unknown_key", "the signer of first grants has no key")
    return [to_published_jwk(key) for key in keys]


def sign_compact(signer: Signer, signing_input: bytes, key: dict[str, JSON]) -> Flow[str]:
    """Sign a signing input with `key`, one of `public_keys_of`, and return the compact JWS.

    Raises:
        CredentialRejectedError: the signature isn't valid under that key; the code says which rule was broken.
        CredentialUnavailableError: the signer could not be reached.
    """
    signature = yield from _wrap_network_errors(signer.sign(signing_input, str(key["kid"])))
    compact = f"{signing_input.decode('ascii')}.{b64url(signature)}"
    try:
        jose.verify(compact, [key], algorithms=ALGORITHMS)
    except VerificationError as error:
        code = error.code
    else:
        return compact
    raise CredentialRejectedError(
        code,
        f"the signer of first grants returned an invalid signature: {code}",
        remedy="check whether the signer's key was replaced, and what proxies its answers",
    )


def _wrap_network_errors(flow: Flow[T]) -> Flow[T]:
    """Run a signer's flow with network errors as credential errors, so that no signer has to convert them."""
    try:
        return (yield from flow)
    except TransportError as error:
        raise CredentialUnavailableError(
            "issuer_unreachable",
            f"the signer of first grants can't be reached: {error.code}",
            remedy=error.remedy,
        ) from error


def probe_signer(signer: Signer) -> Flow[dict[str, JSON]]:
    """Return the key that signs now, after a test signature that no service accepts.

    Raises:
        CredentialError: it doesn't sign.
    """
    key, *_ = yield from public_keys_of(signer)
    header = jose.encode_header(str(key["alg"]), typ="agent-identity-probe", kid=str(key["kid"]))
    yield from sign_compact(signer, f"{header}.{b64url(b'{}')}".encode("ascii"), key)
    return key
