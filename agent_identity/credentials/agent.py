# SPDX-License-Identifier: Apache-2.0
"""An acting agent: its URI, and a key that lives in this process's memory and nowhere else."""

from __future__ import annotations

from agent_identity.credentials.oauth import ProofKey
from agent_identity.keys import SigningKey

__all__ = ["Agent"]


class Agent:
    """One agent instance. Its key is made on first use, and made anew in a forked child: two processes never share one."""

    __slots__ = ("__weakref__", "_key", "_proof_key", "uri")

    def __init__(self, uri: str) -> None:
        self.uri: str = uri
        self.renew()

    def renew(self) -> None:
        """Forget the key; the next use makes another, which is another instance to everybody."""
        self._key: SigningKey | None = None
        self._proof_key: ProofKey | None = None

    @property
    def key(self) -> SigningKey:
        if self._key is None:
            self._key = SigningKey.generate()
        return self._key

    @property
    def proof_key(self) -> ProofKey:
        if self._proof_key is None:
            self._proof_key = ProofKey(self.key)
        return self._proof_key

    def __repr__(self) -> str:
        return f"<Agent {self.uri}>"
