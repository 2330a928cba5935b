# SPDX-License-Identifier: Apache-2.0
"""An issuer as one identity knows it: where its endpoints are, and as which client the identity asks there.

Both are shared by everybody in the process: found once, kept while they last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.metadata import discover, read_keys
from agent_identity.credentials.proofs import Nonces
from agent_identity.credentials.registration import register
from agent_identity.credentials.subject import subject_assertion
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Shared, shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.metadata import Endpoints, KeySet
    from agent_identity.credentials.oauth import Client
    from agent_identity.credentials.registration import Registered
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Principal, Secret

__all__ = ["Issuer"]


class Issuer:
    """An issuer where the agent instance registers itself, and that keeps a directory of string principals.

    `initial_token` is asked for when the instance registers, `recorded` puts the registration on record; `clock` gives
    Unix seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        agent: Agent,
        owner: str | None,
        initial_token: Callable[[], Secret],
        clock: Callable[[], float],
        recorded: Callable[[Registered], Flow[None]],
    ) -> None:
        self.url = url
        self.nonces: Nonces = Nonces()
        self._name = name
        self._agent = agent
        self._owner = owner
        self._initial_token = initial_token
        self._clock = clock
        self._recorded = recorded

    def endpoints(self) -> Flow[Endpoints]:
        """The issuer's metadata, read once and kept while it lasts."""
        key = digest_of(("metadata", self.url))
        return (yield from shared(Shared(key, lambda: discover(self.url, self._clock))))

    def client(self) -> Flow[Client]:
        """The client that this process is to the issuer: the registered instance."""
        key = digest_of(("registration", self.url, self._agent.key.thumbprint))
        found = yield from shared(Shared(key, self._register))
        return found.client

    def key(self, kid: str) -> Flow[dict[str, JSON]]:
        """The public key by which the issuer signs under `kid`.

        Raises:
            CredentialRejectedError: the issuer has no such key.
        """
        keys = yield from shared(Shared(digest_of(("keys", self.url, kid)), self._read_keys))
        found = keys.get(kid)
        if found is None:
            raise CredentialRejectedError(
                "unknown_key", f"{self.url} signed with a key that it doesn't publish"
            )
        return found

    def _read_keys(self) -> Flow[KeySet]:
        endpoints = yield from self.endpoints()
        return (yield from read_keys(endpoints, self._clock))

    def subject(
        self, client: Client, principal: Principal, *, txn: str, expires_at: float
    ) -> Secret:
        """A subject token for one of the directory's own principals."""
        return subject_assertion(
            client,
            principal,
            issuer=self.url,
            txn=txn,
            now=self._clock(),
            expires_at=expires_at,
        )

    def _register(self) -> Flow[Registered]:
        endpoints = yield from self.endpoints()
        found = yield from register(
            endpoints,
            name=self._name,
            agent=self._agent.uri,
            owner=self._owner,
            key=self._agent.key,
            initial_token=self._initial_token(),
            clock=self._clock,
        )
        yield from self._recorded(found)
        return found
