# SPDX-License-Identifier: Apache-2.0
"""Revokes a session's tokens when it ends, where their issuer supports that (RFC 7009).

A token that can't be revoked is recorded with its expiry. An error here never keeps a session from ending.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from agent_identity.errors import AgentIdentityError, CredentialUnavailableError, LedgerError
from agent_identity.flow import Draft, append
from agent_identity.provenance.records import CREDENTIAL_REVOKED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Revoker
    from agent_identity.flow import Flow
    from agent_identity.runtime.parts import Parts
    from agent_identity.values import JSON

__all__ = ["revoke_tokens"]

_log: Final = logging.getLogger("agent_identity")


def revoke_tokens(
    parts: Parts,
    session_id: str,
    pseudonym: str,
    tokens: Sequence[tuple[Revoker | None, Issued]],
) -> Flow[None]:
    """Revoke the tokens that haven't expired, and record for each whether that succeeded.

    All revocations together get the deadline of one acquisition, so that a slow issuer doesn't delay the end of a session.
    """
    unreachable: set[str] = set()
    ends = parts.clock() + parts.world.deadline
    for issuer, issued in tokens:
        now = parts.clock()
        if issued.expires_at <= now:
            continue
        code: str | None
        if issuer is None:
            code = "no_revocation"
        elif issuer.url in unreachable:
            code = "issuer_unreachable"
        elif now >= ends:
            code = "deadline_exceeded"
        else:
            code = yield from _revoke(issuer, issued, unreachable)
        try:
            yield from append(_draft_revoked(session_id, pseudonym, issued, code))
        except LedgerError as failure:
            parts.gate.shut()
            _log.warning(
                "the end of a token of %s could not be recorded (%s)", session_id, failure.code
            )


def _revoke(issuer: Revoker, issued: Issued, unreachable: set[str]) -> Flow[str | None]:
    """Ask the issuer once to revoke a token; return None if it did, else the code of the reason."""
    try:
        is_revoked = yield from issuer.revoke(issued)
    except CredentialUnavailableError as failure:
        unreachable.add(issuer.url)
        return failure.code
    except AgentIdentityError as failure:
        return failure.code
    return None if is_revoked else "no_revocation"


def _draft_revoked(session_id: str, pseudonym: str, issued: Issued, code: str | None) -> Draft:
    public: dict[str, JSON] = {
        "resource": issued.resource,
        "issuer": issued.issuer,
        "revoked": code is None,
        "code": code,
        "expires_at": int(issued.expires_at),
        "bound": issued.is_bound,
    }
    return Draft(
        CREDENTIAL_REVOKED,
        public,
        pseudonym=pseudonym,
        session_id=session_id,
        ref=issued.jti,
    )
