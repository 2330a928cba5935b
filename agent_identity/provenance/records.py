# SPDX-License-Identifier: Apache-2.0
"""The entries of a ledger: their canonical bytes, their place in a writer's hash chain, and how they are read.

    body = RFC 8785 of {at, writer, seq, kind, references, pseudonym, public fields, digest of the sealed part}
    hash = SHA-256(hash of the writer's previous entry ‖ body)          32 zero bytes before the first

The sealed part is outside the body, encrypted under its subject's key: the chain stays valid when that key, or even the
ciphertext, is deleted. Bodies have no floats and only ASCII member names, for which sorted orjson output is RFC 8785 byte for
byte; tests/unit/test_records.py tests that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import orjson

from agent_identity.errors import LedgerError, VerificationError

if TYPE_CHECKING:
    from agent_identity.flow import Draft
    from agent_identity.values import JSON

SESSION_OPENED: Final = "session.opened"
SESSION_CLOSED: Final = "session.closed"
GRANT_MADE: Final = "grant.made"
CREDENTIAL_ACQUIRED: Final = "credential.acquired"
CREDENTIAL_DECIDED: Final = "credential.decided"
CREDENTIAL_REFUSED: Final = "credential.refused"
CREDENTIAL_REVOKED: Final = "credential.revoked"
CREDENTIAL_STEPPED_UP: Final = "credential.stepped_up"
AGENT_REGISTERED: Final = "agent.registered"
REVOKED: Final = "revocation.made"
REINSTATED: Final = "revocation.lifted"
TOOL_PINNED: Final = "tool.pinned"
CALL_INTENDED: Final = "call.intended"
CALL_DENIED: Final = "call.denied"
CALL_COMPLETED: Final = "call.completed"
CALL_FAILED: Final = "call.failed"
CALL_CANCELLED: Final = "call.cancelled"
CALL_UNKNOWN: Final = "call.unknown"


OUTCOMES: Final = {
    CALL_DENIED: "denied",
    CALL_COMPLETED: "completed",
    CALL_FAILED: "failed",
    CALL_CANCELLED: "cancelled",
    CALL_UNKNOWN: "unknown",
}

ALIASES: Final = {SESSION_OPENED: "txn", GRANT_MADE: "grant_hash"}
"""The public field by which an entry of this kind is found, in addition to its references."""

Unseal: TypeAlias = Callable[[str, bytes, bytes], bytes | None]

_CANONICAL: Final = orjson.OPT_SORT_KEYS | orjson.OPT_STRICT_INTEGER
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ROUND: Final = re.compile(r"(call_[^.]+)\.r?[0-9]+")


class Row(NamedTuple):
    """A stored entry. The fields before `body` repeat parts of it, so that a store can index them."""

    writer: str
    seq: int
    kind: str
    session: str | None
    call: str | None
    trace: str | None
    span: str | None
    ref: str | None
    alias: str | None
    body: bytes
    sealed: bytes | None
    hash: bytes

    @property
    def references(self) -> tuple[str | None, ...]:
        """All references by which the entry is found."""
        return self[3:9]


def encode_record(kind: str, members: Mapping[str, JSON]) -> bytes:
    """The canonical bytes of a record of this kind.

    Raises:
        LedgerError: it isn't JSON, or has an integer that RFC 8785 can't hold.
    """
    try:
        return orjson.dumps(members, option=_CANONICAL)
    except TypeError as error:
        raise LedgerError(
            "record_malformed", f"a {kind} record can't be written as JSON"
        ) from error


def subject_of(draft: Draft) -> str:
    """The pseudonym of the subject of a draft's sealed part.

    Raises:
        LedgerError: it has none.
    """
    if draft.pseudonym is None:
        raise LedgerError(
            "record_malformed", f"a {draft.kind} record has a sealed part and no subject"
        )
    return draft.pseudonym


def seal_context(pseudonym: str, writer: str, seq: int) -> bytes:
    """The context that a sealed part is bound to (subject and place), so that it can't be moved to another entry."""
    return f"{pseudonym} {writer} {seq}".encode()


def alias_of(kind: str, public: Mapping[str, JSON]) -> str | None:
    """The value by which an entry is found in addition to its references."""
    name = ALIASES.get(kind)
    value = None if name is None else public.get(name)
    return value if isinstance(value, str) else None


def strip_round(ref: str) -> str:
    """The call's id in an assertion's `jti`: `<call.id>.<n>` and `<call.id>.r<n>` name the same call."""
    match = _ROUND.fullmatch(ref)
    return ref if match is None else match[1]


def rfc3339(at: datetime) -> str:
    """A time in UTC as RFC 3339 writes it."""
    return at.isoformat(timespec="microseconds" if at.microsecond else "seconds").replace(
        "+00:00", "Z"
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One ledger entry as it was read.

    `body` has the public fields, `sealed` the decrypted ones. `sealed` is None if there are none, or if the subject's key was
    deleted; then `erased` is True. `row` is the stored entry.
    """

    kind: str
    at: datetime
    writer: str
    seq: int
    session_id: str | None
    call_id: str | None
    trace_id: str | None
    span_id: str | None
    ref: str | None
    pseudonym: str | None
    body: Mapping[str, JSON]
    sealed: Mapping[str, JSON] | None = field(repr=False)
    erased: bool
    row: Row = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, JSON]:
        """The entry as JSON: references, public fields, times as RFC 3339, and a call's assertion."""
        entry: dict[str, JSON] = {
            "kind": self.kind,
            "at": rfc3339(self.at),
            "writer": self.writer,
            "seq": self.seq,
            "session_id": self.session_id,
            "call_id": self.call_id,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "ref": self.ref,
            "pseudonym": self.pseudonym,
        }
        entry.update(self.body)
        expires_at = self.body.get("expires_at")
        if isinstance(expires_at, int):
            entry["expires_at"] = rfc3339(_EPOCH + timedelta(seconds=expires_at))
        if self.kind == CALL_INTENDED:
            entry["assertion"] = None if self.sealed is None else self.sealed.get("assertion")
        return entry


def read_record(row: Row, unseal: Unseal) -> Record:
    """Read a stored entry as a `Record`, from its body and its sealed part alone.

    `unseal` returns None for a subject whose key was deleted. A sealed part that was moved from another entry isn't read;
    verifying the chain reports it.

    Raises:
        LedgerError: the body isn't one of ours.
    """
    try:
        entry = orjson.loads(row.body)
        pseudonym, writer, seq = entry["pseudonym"], entry["writer"], entry["seq"]
        plaintext, erased = None, entry["sealed"] is not None
        if row.sealed is not None and pseudonym is not None:
            try:
                context = seal_context(pseudonym, writer, seq)
                plaintext = unseal(pseudonym, row.sealed, context)
                erased = plaintext is None
            except VerificationError:
                erased = False
        return Record(
            kind=entry["kind"],
            at=_EPOCH + timedelta(microseconds=entry["at"]),
            writer=writer,
            seq=seq,
            session_id=entry["session"],
            call_id=entry["call"],
            trace_id=entry["trace"],
            span_id=entry["span"],
            ref=entry["ref"],
            pseudonym=pseudonym,
            body=entry["public"],
            sealed=None if plaintext is None else orjson.loads(plaintext),
            erased=erased,
            row=row,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise LedgerError(
            "record_unreadable",
            f"record {row.seq} of {row.writer} is damaged",
            remedy="run `agent-identity ledger verify`",
        ) from error
