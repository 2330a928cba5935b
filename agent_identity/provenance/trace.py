# SPDX-License-Identifier: Apache-2.0
"""Answers who triggered a call, a session, or anything else that is the reference of a record."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.provenance.graph import graph_of, moment
from agent_identity.provenance.records import (
    CALL_INTENDED,
    CREDENTIAL_REFUSED,
    GRANT_MADE,
    SESSION_OPENED,
)
from agent_identity.values import LOCAL, Principal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from agent_identity.provenance.chain import Check
    from agent_identity.provenance.graph import Branch, CallStory, Entry
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.provenance.records import Record
    from agent_identity.values import JSON

__all__ = [
    "WIDTH",
    "Node",
    "Trace",
    "as_html",
    "as_mermaid",
    "as_text",
    "trace_of",
    "visible",
    "wrap_text",
]

WIDTH: Final = 80
"""The default width of a text, in columns."""


@dataclass(frozen=True, slots=True)
class Trace:
    """Who asked for it, through which agents, for what purpose, which rule allowed it, and how it ended.

    `chain` goes from the root to the acting agent, `calls` are in the order in which they began. `decision`, `outcome` and
    `approval` are those of the call if the reference names a single one, else None. `principal` is None once erased;
    `pseudonym` stays.

    Work that was interrupted and resumed in another session is one trace: `calls` and the tree have both, and the rest is of the
    session that the reference names, or of the last one.

    `verified` is True if these records, their signatures and their links to the neighbours passed the check. Otherwise
    `unsound` says what is wrong. `unverifiable` is what can't be checked any more, since a key was deleted. `witnessed` is True
    if a checkpoint that is kept elsewhere covers the records.
    """

    ref: str
    principal: Principal | None
    pseudonym: str | None
    trigger: str | None
    purpose: str | None
    chain: list[Entry]
    calls: list[Entry]
    decision: str | None
    outcome: str | None
    approval: JSON
    verified: bool
    unsound: str | None
    unverifiable: tuple[str, ...]
    witnessed: bool = False
    _records: int = field(default=0, repr=False, compare=False)
    _signatures: bool = field(default=False, repr=False, compare=False)
    _roots: list[Branch] = field(default_factory=list["Branch"], repr=False, compare=False)

    @property
    def erased(self) -> bool:
        """Whether the principal's name and key were deleted."""
        return self.principal is None

    def to_dict(self) -> dict[str, JSON]:
        """The trace as `agent-identity why REF --json` prints it."""
        return {
            "ref": self.ref,
            "verified": self.verified,
            "witnessed": self.witnessed,
            "principal": self._principal(),
            "trigger": self.trigger,
            "purpose": self.purpose,
            "chain": [dict(hop) for hop in self.chain],
            "calls": [dict(call) for call in self.calls],
        }

    def to_mermaid(self) -> str:
        """The trace as a Mermaid flowchart."""
        return as_mermaid(self._tree())

    def to_text(self, width: int = WIDTH) -> str:
        """The trace as a tree in plain text, in lines of `width` columns. Words and ids are never broken."""
        proof = "\n".join(wrap_text(visible(self._proof()), width))
        return f"{as_text(self._tree(), width)}\n{proof}"

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        proof = as_html(Node(self._proof()))
        return f"<div><ul><li>{as_html(self._tree())}</li></ul><p>{proof}</p></div>"

    def _principal(self) -> dict[str, JSON]:
        who = self.principal
        if who is None:
            return {"sub": None, "pseudonym": self.pseudonym, "erased": True}
        return {"sub": who.sub, "iss": who.iss, "profile": who.profile}

    def _tree(self) -> Node:
        who = f"{self.pseudonym} (erased)" if self.principal is None else str(self.principal)
        trigger = "" if self.trigger is None else f", triggered by {self.trigger}"
        purpose = "" if self.purpose is None else f": {self.purpose}"
        below = [_wrap_in_callers(root, _tree_of(root)) for root in self._roots]
        return Node(f"{who}{trigger}{purpose}", below)

    def _proof(self) -> str:
        if not self.verified:
            return f"NOT VERIFIED: {self.unsound}"
        signed = ", signed" if self._signatures else ""
        gone = f"; erased: {', '.join(self.unverifiable)}" if self.unverifiable else ""
        witness = "external checkpoint" if self.witnessed else "no external checkpoint"
        return f"verified ({self._records} records{signed}{gone}; {witness})"


def trace_of(
    ledger: Ledger,
    ref: str,
    *,
    check: Check | None = None,
    unknown: frozenset[str] = frozenset(),
) -> Trace:
    """Answer who triggered the calls that `ref` names. `check` verifies the signatures in a record.

    `unknown` are calls whose outcome this process could not record.

    Raises:
        LedgerError: `unknown_reference`; `ambiguous_reference` when several transactions have it; or it can't be read.
    """
    graph = graph_of(ledger, ref, unknown)
    stories = graph.calls()
    opening = graph.root.opening
    first = opening or graph.used[0]
    sealed: Mapping[str, JSON] = (opening.sealed or {}) if opening is not None else {}
    one = (
        stories[-1] if graph.one_call and stories else None
    )  # a call that was interrupted ends as its last pass
    calls = [story.entry() for story in stories]
    unsound = _find_fault(ledger, graph.used, check)
    return Trace(
        ref=ref,
        principal=_principal_of(ledger, first, sealed),
        pseudonym=first.pseudonym,
        trigger=_text(sealed.get("trigger")),
        purpose=None if opening is None else _text(opening.body.get("purpose")),
        chain=graph.chain,
        calls=calls,
        decision=None if one is None else _text(calls[-1]["decision"]),
        outcome=None if one is None else one.outcome,
        approval=None if one is None else one.approval,
        verified=unsound is None,
        unsound=unsound,
        unverifiable=tuple(
            sorted(
                {_SEALED.get(record.kind, record.kind) for record in graph.used if record.erased}
            )
        ),
        _records=len(graph.used),
        _signatures=check is not None,
        _roots=graph.roots,
    )


_SEALED: Final = {
    SESSION_OPENED: "the principal",
    GRANT_MADE: "grants",
    CALL_INTENDED: "assertions and approvals",
}
_AGENT_PREFIX: Final = "urn:agent-identity:agent:"
_MARKS: Final = {"completed": "✔", "failed": "✘", "cancelled": "✘", "denied": "✘", "unknown": "?"}
_DECISIONS: Final = {"permit": "permitted", "deny": "denied", "approval": "needs approval"}


def _find_fault(ledger: Ledger, used: list[Record], check: Check | None) -> str | None:
    """The first fault in the records of an answer; None where there is none."""
    bad = ledger.first_broken(used)
    if bad is not None:
        return f"record {bad.seq} of {bad.writer}: {bad.reason}"
    for record in used if check is not None else ():
        reason = None if check is None else check(record)
        if reason is not None:
            return f"record {record.seq} of {record.writer}: {reason}"
    return None


def _principal_of(ledger: Ledger, first: Record, sealed: Mapping[str, JSON]) -> Principal | None:
    sub, iss, profile = sealed.get("sub"), sealed.get("iss"), sealed.get("profile")
    if isinstance(sub, str) and sub and isinstance(profile, str):
        return Principal(sub, iss=_text(iss), profile=profile)
    return None if first.pseudonym is None else ledger.subjects.principal(first.pseudonym)


def _text(value: JSON) -> str | None:
    return value if isinstance(value, str) else None


def _tree_of(root: Branch) -> Node:
    """The tree of a session: a call stands below the call that made it, a delegated session below the call that opened it."""
    branches = {branch.session_id: _branch(branch) for branch in root.walk()}
    items = [item for branch in root.walk() for item in _items(branch, branches)]
    calls: dict[str | None, tuple[Node, str]] = {}
    for item in sorted(items, key=itemgetter(0)):
        # Only a call that began before can be the parent: manipulated records may form a ring.
        parent, session_id = calls.get(item.parent, (None, None))
        is_beside = item.call_id is not None and session_id != item.session_id
        around = branches[item.session_id] if parent is None or is_beside else parent
        around.below.append(item.node)
        if item.call_id is not None:
            calls[item.call_id] = item.node, item.session_id
    return branches[root.session_id]


class _Item(NamedTuple):
    """A call, or a session that was delegated from `session_id`; then it has no `call_id`."""

    at: datetime
    call_id: str | None
    session_id: str
    parent: str | None
    node: Node


def _items(branch: Branch, branches: Mapping[str, Node]) -> Iterator[_Item]:
    for story in branch.calls:
        call_id = story.begun.call_id
        yield _Item(story.begun.at, call_id, branch.session_id, story.parent, _call(story))
    for child in branch.below:
        node = branches[child.session_id]
        yield _Item(child.began, None, branch.session_id, child.parent, node)


def _branch(branch: Branch) -> Node:
    task = None if branch.opening is None else _text(branch.opening.body.get("task"))
    name = branch.agent.removeprefix(_AGENT_PREFIX)
    return Node(name if task is None else f"{name}: {task}")


def _wrap_in_callers(root: Branch, node: Node) -> Node:
    """Wrap a session that was handed over in the nodes of the agents above it, which ran in other processes."""
    above = None if root.opening is None else root.opening.body.get("above")
    for hop in reversed(above if isinstance(above, list) else []):
        name = str(hop.get("agent")) if isinstance(hop, dict) else ""
        node = Node(f"{name.removeprefix(_AGENT_PREFIX)} (in another process)", [node])
    return node


def _call(story: CallStory) -> Node:
    call = story.entry()
    where = "locally" if call["resource"] == LOCAL else f"at {call['resource']}"
    ended = "running" if story.outcome is None else story.outcome
    error = "" if call["error"] is None else f" ({call['error']})"
    took = "" if story.took is None else f" in {_duration(story.took)}"
    mark = _MARKS.get(str(story.outcome), "…")
    return Node(
        f"{mark} {call['tool']} {where}, {ended}{error}{took}", notes=[*_notes(story, call)]
    )


def _notes(story: CallStory, call: Entry) -> Iterator[str]:
    """The facts about a call, one per line."""
    yield str(call["call_id"])
    agent = str(call["agent"]).removeprefix(_AGENT_PREFIX)
    rule = "" if call["policy_id"] is None else f" by {call['policy_id']}"
    yield f"by {agent}, {_DECISIONS.get(str(call['decision']), call['decision'])}{rule}"
    if "continues" in story.begun.body:
        yield f"continues {story.begun.body['continues']}"
    if call["code"] is not None:
        yield f"{call['code']}: {call['reason']}"
    if isinstance(story.approval, dict):
        yield f"approved by {story.approval.get('by')} ({story.approval.get('evidence')})"
    yield _times(story)
    if story.acquired is not None:
        yield from _credential(story.acquired)
    yield from map(_credential_event, story.used)


def _credential(acquired: Record) -> Iterator[str]:
    body = acquired.body
    issuer = "" if body.get("issuer") is None else f" from {body.get('issuer')}"
    yield f"credential: {body.get('source')}{issuer}"
    scopes, expires_at = _scope_text(body.get("scope")), body.get("expires_at")
    facts = [f"for {scopes}"] if scopes else []
    facts += [f"until {_moment(moment(expires_at))}"] if isinstance(expires_at, int) else []
    if facts:
        yield ", ".join(facts)


def _credential_event(record: Record) -> str:
    at = _moment(record.at)
    if record.kind == CREDENTIAL_REFUSED:
        return (
            f"credential refused for {record.body.get('place')} ({record.body.get('code')}) at {at}"
        )
    return f"stepped up to {_scope_text(record.body.get('scope'))} at {at}"


def _scope_text(scopes: JSON) -> str:
    return " ".join(map(str, scopes)) if isinstance(scopes, list) else ""


def _times(story: CallStory) -> str:
    began, ended = story.begun.at, None if story.ended is None else story.ended.at
    if ended is None:
        return _moment(began) if story.outcome is not None else f"since {_moment(began)}"
    if ended == began:
        return _moment(began)
    until = _moment(ended).removeprefix(f"{began.date()} ")
    return f"{_moment(began).removesuffix(' UTC')} to {until}"


def _moment(at: datetime) -> str:
    """A time in UTC, to the millisecond where it isn't a whole second."""
    timespec = "milliseconds" if at.microsecond else "seconds"
    return at.isoformat(sep=" ", timespec=timespec).replace("+00:00", " UTC")


def _duration(seconds: float) -> str:
    return f"{seconds * 1_000:.0f}ms" if seconds < 1 else f"{seconds:.1f}s"


@dataclass(slots=True)
class Node:
    """A text, notes about it, and the nodes below it."""

    text: str
    below: list[Node] = field(default_factory=list["Node"])
    notes: list[str] = field(default_factory=list[str])


def visible(text: str) -> str:
    """Escape control, bidirectional and invisible characters."""
    return text if text.isascii() and text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" and category not in {"Zl", "Zp"}:
        return character
    return f"\\u{{{ord(character):x}}}"


def wrap_text(text: str, width: int = WIDTH) -> list[str]:
    """Wrap a text at `width` columns, between words only; a longer word has a line of its own.

    All lines but the first are indented, so that they can't look like the start of another text.
    """
    first, *words = text.split() or [""]
    lines = [first]
    for word in words:
        if _columns(f"{lines[-1]} {word}") > width:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return lines


def _columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def as_text(root: Node, width: int = WIDTH) -> str:
    """The tree with box characters, in lines of at most `width` columns as far as its words allow."""
    return "\n".join(_lines(root, "", "", width))


def _lines(node: Node, first: str, rest: str, width: int) -> Iterator[str]:
    after = rest + ("│ " if node.below else "  ") if first else rest
    heading, *more = wrap_text(_escape_boxes(node.text), width - len(after))
    yield first + heading
    for text in [
        *more,
        *(
            line
            for note in node.notes
            for line in wrap_text(_escape_boxes(note), width - len(after))
        ),
    ]:
        yield after + text
    for index, child in enumerate(node.below):
        last = index == len(node.below) - 1
        yield from _lines(
            child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), width
        )


def _escape_boxes(text: str) -> str:
    """Escape the box characters that draw the tree, too."""
    return _BOXES.sub(lambda match: f"\\u{{{ord(match[0]):x}}}", visible(text))


_BOXES: Final = re.compile("[\u2500-\u257f]")


def as_html(root: Node) -> str:
    """The tree as nested lists, everything in it escaped."""
    below = "".join(f"<li>{as_html(child)}</li>" for child in root.below)
    text = "<br>".join(html.escape(visible(line)) for line in [root.text, *root.notes])
    return f"{text}<ul>{below}</ul>" if below else text


def as_mermaid(root: Node) -> str:
    """The tree as a Mermaid flowchart, with special characters in labels escaped."""
    return "\n".join(["flowchart LR", *_boxes(root, "n")])


def _boxes(node: Node, name: str) -> Iterator[str]:
    label = ", ".join(visible(line) for line in [node.text, *node.notes])
    yield f'  {name}["{_NOT_PLAIN.sub(_entity, label)}"]'
    for number, child in enumerate(node.below):
        below = f"{name}_{number}"
        yield f"  {name} --> {below}"
        yield from _boxes(child, below)


def _entity(match: re.Match[str]) -> str:
    return f"#{ord(match[0])};"


_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9 .,:/_()✔✘…?-]")
