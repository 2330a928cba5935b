# SPDX-License-Identifier: Apache-2.0
"""An acting agent: its URI, and a key that exists only in this process's memory."""

from __future__ import annotations

import threading

from agent_identity.credentials.oauth.dpop import ProofKey
from agent_identity.keys.signing import SigningKey


class Agent:
    """One agent instance. Its key is made on first use, and again in a forked child: two processes never share one.

    `key` is a configured key, for replicas that share an address; it stays the same in a forked child.
    """

    __slots__ = ("__weakref__", "_configured", "_keys", "_lock", "uri")

    def __init__(self, uri: str, key: SigningKey | None = None) -> None:
        self.uri: str = uri
        self._configured = key
        self.renew()

    def renew(self) -> None:
        """Forget the key. The next use makes another one, and others see a new instance."""
        self._lock = threading.Lock()
        self._keys: tuple[SigningKey, ProofKey] | None = None

    @property
    def key(self) -> SigningKey:
        return (self._keys or self._make_keys())[0]

    @property
    def proof_key(self) -> ProofKey:
        return (self._keys or self._make_keys())[1]

    def _make_keys(self) -> tuple[SigningKey, ProofKey]:
        with self._lock:
            if self._keys is None:
                key = self._configured or SigningKey.generate()
                self._keys = (key, ProofKey(key))
            return self._keys

    def __repr__(self) -> str:
        return f"<Agent {self.uri}>"
