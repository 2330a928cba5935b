# SPDX-License-Identifier: Apache-2.0
"""The identity of this process as a client of its own authority: registration, first grants, tokens and revocation by calls.

The rules are those of the HTTP endpoints. There is no client assertion, DPoP proof or subject assertion, and the signatures of
a chain aren't verified again, because the process that checks them would have signed them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from agent_identity.authority.client_proofs import SKEW
from agent_identity.authority.issuance import GrantRequest
from agent_identity.authority.requests import REFUSALS, refusal_of
from agent_identity.authority.subjects import directory_subject
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.registration import instance_metadata
from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import ath_of, failure_of
from agent_identity.credentials.source import Described
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Shared, blocking, pure, shared
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.issuance import AccessToken
    from agent_identity.authority.server import Authority
    from agent_identity.authority.subjects import Subject
    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.root_grants import RootWanted
    from agent_identity.credentials.source import Wanted
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.values import JSON

T = TypeVar("T")

_LIFE: Final = 12 * 3600.0
"""Seconds after which an instance registers again; its lease lasts longer."""


@dataclass(frozen=True, slots=True)
class _Registered:
    client_id: str
    issued_at: float
    expires_at: float


class OwnClient:
    """An `Anchor`, a `Source` and a `Revoker`. `record` writes the registration to the ledger."""

    patience: float | None = None

    def __init__(
        self,
        authority: Authority,
        *,
        name: str,
        agent: Agent,
        owner: str | None,
        record: Callable[[], Flow[None]],
    ) -> None:
        self._authority = authority
        self.name: str = authority.issuer
        self.url: str = authority.issuer
        self.described: Described = Described("token-exchange", authority.issuer)
        self._client_name = name
        self._agent = agent
        self._owner = owner
        self._record = record

    def grant(self, wanted: RootWanted, /) -> Flow[Grant]:
        """See `Anchor`.

        Raises:
            CredentialRejectedError: the authority refused.
            CredentialUnavailableError: the authority's state can't be read or written.
        """
        client_id = yield from self._find_client_id()
        return (yield from self._call(lambda: self._issue_grant(client_id, wanted), "a token"))

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        keys = yield from self.keys()
        for key in keys:
            if key.get("kid") == kid:
                return key
        raise CredentialRejectedError("unknown_key", f"{self.name} has no key with this kid")

    def keys(self) -> Flow[list[dict[str, JSON]]]:
        return pure(self._authority.public_keys)

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """See `Source`."""
        client_id = yield from self._find_client_id()
        token = yield from self._call(lambda: self._issue_token(client_id, wanted), "a token")
        secret = Secret(token.compact)
        return Issued(
            token=secret,
            token_type="DPoP",  # noqa: S106 - a type
            resource=wanted.resource,
            issuer=self.name,
            scopes=token.scopes,
            issued_at=float(token.issued_at),
            expires_at=float(token.expires_at),
            jti=token.jti,
            ath=ath_of(secret),
            scheme="DPoP",
        )

    def revoke(self, issued: Issued, /) -> Flow[bool]:
        """See `Revoker`."""
        jti = issued.jti
        if jti is None:
            return False
        ends = issued.expires_at + SKEW
        yield from self._call(lambda: self._authority.revoke(jti, ends=ends), "a revocation")
        return True

    def _find_client_id(self) -> Flow[str]:
        key = digest_of(("registration", self.name, self._agent.key.thumbprint))
        registered = yield from shared(Shared(key, self._register))
        return registered.client_id

    def _register(self) -> Flow[_Registered]:
        metadata = instance_metadata(
            self._client_name, self._agent.uri, self._owner, self._agent.key
        )
        client = yield from self._call(lambda: self._authority.register(metadata), "a registration")
        yield from self._record()
        return _Registered(client.client_id, client.issued_at, client.issued_at + _LIFE)

    def _call(self, work: Callable[[], T], what: str) -> Flow[T]:
        """Call the authority, and turn its refusals into the errors that an HTTP client gets."""

        def call() -> T:
            try:
                return work()
            except REFUSALS as error:
                refusal = refusal_of(error).response()
            raise failure_of(refusal, self.name, what, self._authority.clock())

        return blocking(call)

    def _check(
        self, client_id: str, wanted: RootWanted | Wanted, now: float, expires_at: float
    ) -> tuple[ClientRecord, Subject]:
        """Check the client and the principal that it acts for until `expires_at`."""
        client = self._authority.client(client_id)
        subject = directory_subject(
            client, wanted.principal, txn=wanted.txn, now=now, expires_at=expires_at
        )
        return client, subject

    def _issue_grant(self, client_id: str, wanted: RootWanted) -> Grant:
        now = self._authority.clock()
        client, subject = self._check(client_id, wanted, now, now + wanted.lifetime)
        request = GrantRequest(
            sorted(wanted.resources),
            wanted.scopes,
            wanted.proof_key.thumbprint,
            purpose=wanted.purpose,
            task=wanted.task,
            max_depth=wanted.max_depth,
            lifetime=int(wanted.lifetime),
            details=wanted.details,
        )
        return self._authority.issuance.grant(client, subject, request, int(now))

    def _issue_token(self, client_id: str, wanted: Wanted) -> AccessToken:
        now = self._authority.clock()
        client, subject = self._check(client_id, wanted, now, wanted.chain[0].exp)
        return self._authority.issuance.access_token(
            client,
            subject,
            wanted.chain,
            [wanted.resource],
            wanted.scopes,
            jkt=wanted.proof_key.thumbprint,
            now=now,
        )
