# SPDX-License-Identifier: Apache-2.0
"""The argument of `agent-identity why`: an id, the beginning of an id, or the newest session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.errors import LedgerError
from agent_identity.provenance.trace import visible
from agent_identity.values import can_be_signed

if TYPE_CHECKING:
    from agent_identity.provenance.ledger import Ledger


_LISTED: Final = 5


def whole_reference(ledger: Ledger, ref: str) -> str:
    """The id that begins with `ref`; `ref` itself if it is an id, or if no id begins with it.

    Raises:
        LedgerError: `ambiguous_reference`, several ids begin with it.
    """
    if not ref or not can_be_signed(ref):
        return ref
    ids = ledger.references(ref, limit=_LISTED + 1)
    if not ids or ref in ids:
        return ref
    if len(ids) == 1:
        return ids[0]
    more = ", …" if len(ids) > _LISTED else ""
    raise LedgerError(
        "ambiguous_reference",
        f"several ids begin with {visible(ref)}: {', '.join(map(visible, ids[:_LISTED]))}{more}",
        remedy="give more characters of the id",
    )


def newest_session(ledger: Ledger) -> str:
    """The session that was opened last and has no parent.

    Raises:
        LedgerError: `unknown_reference`.
    """
    for opened in ledger.sessions():
        if opened.body.get("parent") is None and opened.session_id is not None:
            return opened.session_id
    raise LedgerError("unknown_reference", "the ledger has no session yet")
