# SPDX-License-Identifier: Apache-2.0
"""The embedded authority's own principals: the agent's client says on whose behalf it acts, in a signed statement.

An authority that keeps a directory of string principals takes this as the subject token of a session
(RFC 8693 §2.1, `…:token-type:jwt`). It is bound to the session by `txn`, so that it can't be spliced with another's chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from agent_identity.credentials.oauth import Client
    from agent_identity.values import JSON, Principal

__all__ = ["SUBJECT_TYPE", "subject_assertion"]

SUBJECT_TYPE: Final = "agent-subject+jwt"


def subject_assertion(
    client: Client, principal: Principal, *, issuer: str, txn: str, now: float, expires_at: float
) -> Secret:
    """State that session `txn` acts for `principal`; times are Unix seconds."""
    header = jose.header(client.key.alg, typ=SUBJECT_TYPE, kid=client.key.thumbprint)
    claims: dict[str, JSON] = {
        "iss": client.client_id,
        "sub": principal.sub,
        "sub_profile": principal.profile,
        "aud": issuer,
        "iat": int(now),
        "exp": int(expires_at),
        "jti": new_id("sub_"),
        "txn": txn,
    }
    return Secret(client.key.compact(header, orjson.dumps(claims)))
