# SPDX-License-Identifier: Apache-2.0
"""The embedded authority's own principals: the agent's instance says on whose behalf it acts, in a signed statement.

An authority that keeps a directory of string principals takes this as the subject token of a session
(RFC 8693 §2.1, `…:token-type:jwt`). It is bound to the session by `txn`, so that it can't be spliced with another's chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.credentials.source import SubjectToken
from agent_identity.credentials.oauth.token_types import JWT
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Collection

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON, Principal

__all__ = ["SUBJECT_TYPE", "DirectorySubject", "subject_assertion"]

SUBJECT_TYPE: Final = "agent-subject+jwt"


class DirectorySubject:
    """A principal of the issuer's own directory, as one session acts for it. `key` is what the instance registered."""

    def __init__(self, principal: Principal, agent: Agent, *, txn: str, expires_at: float) -> None:
        self._principal = principal
        self._agent = agent
        self._txn = txn
        self._expires_at = expires_at

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:  # noqa: ARG002 - there is one kind
        client = yield from issuer.client()
        statement = subject_assertion(
            client.client_id,
            self._agent.key,
            self._principal,
            issuer=issuer.url,
            txn=self._txn,
            now=issuer.clock(),
            expires_at=self._expires_at,
        )
        return SubjectToken(statement, JWT)


def subject_assertion(
    client_id: str,
    key: SigningKey,
    principal: Principal,
    *,
    issuer: str,
    txn: str,
    now: float,
    expires_at: float,
) -> Secret:
    """State that session `txn` acts for `principal`; times are Unix seconds."""
    header = jose.header(key.alg, typ=SUBJECT_TYPE, kid=key.thumbprint)
    claims: dict[str, JSON] = {
        "iss": client_id,
        "sub": principal.sub,
        "sub_profile": principal.profile,
        "aud": issuer,
        "iat": int(now),
        "exp": int(expires_at),
        "jti": new_id("sub_"),
        "txn": txn,
    }
    return Secret(key.compact(header, orjson.dumps(claims)))
