# SPDX-License-Identifier: Apache-2.0
"""What `agent-identity why` is asked about: an id, the beginning of one, or the newest session."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.errors import LedgerError
from agent_identity.provenance.trace import visible
from agent_identity.values import can_be_signed

if TYPE_CHECKING:
    from agent_identity.provenance.ledger import Ledger

__all__ = ["newest_session", "whole_reference"]

_LISTED: Final = 5


def whole_reference(ledger: Ledger, ref: str) -> str:
    """The id that begins with `ref`; `ref` itself where it is an id, or where no id begins with it.

    Raises:
        LedgerError: `ambiguous_reference`, several ids begin with it.
    """
    if not ref or not can_be_signed(ref):
        return ref
    found = ledger.references(ref, limit=_LISTED + 1)
    if not found or ref in found:
        return ref
    if len(found) == 1:
        return found[0]
    more = ", …" if len(found) > _LISTED else ""
    raise LedgerError(
        "ambiguous_reference",
        f"several ids begin with {visible(ref)}: {', '.join(map(visible, found[:_LISTED]))}{more}",
        remedy="give more of the id",
    )


def newest_session(ledger: Ledger) -> str:
    """The session that was opened last and isn't part of another one.

    Raises:
        LedgerError: `unknown_reference`, there is none.
    """
    for opened in ledger.sessions():
        if opened.body.get("parent") is None and opened.session_id is not None:
            return opened.session_id
    raise LedgerError("unknown_reference", "the ledger has no session yet")
