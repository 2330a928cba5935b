# SPDX-License-Identifier: Apache-2.0
"""What happens to a session's tokens when it ends: they are taken back where their issuer does that (RFC 7009).

What can't be taken back is put on record with its end. Nothing here keeps a session from ending: a token that is still good is
a fact to be known, no reason to go on.
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
    taken: Sequence[tuple[Revoker | None, Issued]],
) -> Flow[None]:
    """Give back what still serves, each on record: revoked, or alive until its end.

    All of it together gets the time of one acquisition: whoever leaves a session isn't kept waiting by a slow issuer.
    """
    unreachable: set[str] = set()
    ends = parts.clock() + parts.world.deadline
    for issuer, issued in taken:
        now = parts.clock()
        if issued.expires_at <= now:
            continue
        why: str | None = "no_revocation"
        if issuer is not None and issuer.url in unreachable:
            why = "issuer_unreachable"
        elif issuer is not None and now >= ends:
            why = "deadline_exceeded"
        elif issuer is not None:
            why = yield from _revoke(issuer, issued, unreachable)
        try:
            yield from append(_draft_revoked(session_id, pseudonym, issued, why))
        except LedgerError as failure:
            parts.gate.shut()
            _log.warning(
                "what became of a token of %s is not on record (%s)", session_id, failure.code
            )


def _revoke(issuer: Revoker, issued: Issued, unreachable: set[str]) -> Flow[str | None]:
    """Ask the issuer to take a token back, once. None when it did, else why not."""
    try:
        is_revoked = yield from issuer.revoke(issued)
    except CredentialUnavailableError as failure:
        unreachable.add(issuer.url)
        return failure.code
    except AgentIdentityError as failure:
        return failure.code
    return None if is_revoked else "no_revocation"


def _draft_revoked(session_id: str, pseudonym: str, issued: Issued, why: str | None) -> Draft:
    public: dict[str, JSON] = {
        "resource": issued.resource,
        "issuer": issued.issuer,
        "revoked": why is None,
        "code": why,
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
