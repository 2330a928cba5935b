# SPDX-License-Identifier: Apache-2.0
"""An acting agent: its URI, and a key that lives in this process's memory and nowhere else."""

from __future__ import annotations

import threading

from agent_identity.credentials.oauth.dpop import ProofKey
from agent_identity.keys.signing import SigningKey

__all__ = ["Agent"]


class Agent:
    """One agent instance. Its key is made on first use, and made anew in a forked child: two processes never share one.

    `key` is one that was configured, for replicas that share an address; that one stays.
    """

    __slots__ = ("__weakref__", "_given", "_lock", "_made", "uri")

    def __init__(self, uri: str, key: SigningKey | None = None) -> None:
        self.uri: str = uri
        self._given = key
        self.renew()

    def renew(self) -> None:
        """Forget the key; the next use makes another, which is another instance to everybody."""
        self._lock = threading.Lock()
        self._made: tuple[SigningKey, ProofKey] | None = None

    @property
    def key(self) -> SigningKey:
        return (self._made or self._make())[0]

    @property
    def proof_key(self) -> ProofKey:
        return (self._made or self._make())[1]

    def _make(self) -> tuple[SigningKey, ProofKey]:
        with self._lock:
            if self._made is None:
                key = self._given or SigningKey.generate()
                self._made = (key, ProofKey(key))
            return self._made

    def __repr__(self) -> str:
        return f"<Agent {self.uri}>"
