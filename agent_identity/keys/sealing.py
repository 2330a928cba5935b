# SPDX-License-Identifier: Apache-2.0
"""Sealing is encryption under a key that can be deleted, which makes the data unreadable for good."""

from __future__ import annotations

import os
from typing import NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from agent_identity.errors import VerificationError

KEY_BYTES = 32
_NONCE_BYTES = 12


class Sealer:
    """Encrypts under one 256-bit key (AES-256-GCM, a random nonce in front of the ciphertext).

    `context` is authenticated, but not stored: unsealing with another context fails. One key can seal 2^32 texts (NIST SP 800-38D §8.3).
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, plaintext: bytes, context: bytes) -> bytes:
        """Encrypt. The result is 28 bytes longer than the plaintext."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, plaintext, context)

    def unseal(self, sealed: bytes, context: bytes) -> bytes:
        """Decrypt.

        Raises:
            VerificationError: the key or the context is another one, or bytes were changed.
        """
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError) as error:
            raise VerificationError(
                "seal_broken", "a sealed text has another key or context, or was changed"
            ) from error

    def __repr__(self) -> str:
        return "<Sealer>"

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a Sealer can't be pickled or copied")
