# SPDX-License-Identifier: Apache-2.0
"""The execution graph: sessions below one another, and the calls in each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from agent_identity.delegation.grant import hash_of
from agent_identity.errors import LedgerError
from agent_identity.provenance.records import (
    CALL_DENIED,
    CALL_INTENDED,
    CREDENTIAL_ACQUIRED,
    CREDENTIAL_REFUSED,
    CREDENTIAL_STEPPED_UP,
    GRANT_MADE,
    OUTCOMES,
    SESSION_OPENED,
    rfc3339,
)
from agent_identity.values import can_be_signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from agent_identity.provenance.ledger import Ledger
    from agent_identity.provenance.records import Record
    from agent_identity.values import JSON


class Entry(dict[str, "JSON"]):
    """A JSON object whose members can be read as attributes too."""

    __slots__ = ()

    def __getattr__(self, name: str) -> JSON:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(slots=True)
class CallStory:
    """One call: its intent or refusal, its outcome, and its credential.

    `acquired` is the record of that credential, `used` are the records of its refused uses and step-ups.
    """

    begun: Record
    ended: Record | None
    outcome: str | None
    acquired: Record | None = None
    used: list[Record] = field(default_factory=list["Record"])

    @property
    def took(self) -> float | None:
        """Seconds from the intent to the outcome; None for a call that didn't run, or hasn't ended."""
        if self.ended is None or self.ended.kind == CALL_DENIED:
            return None
        return (self.ended.at - self.begun.at).total_seconds()

    @property
    def approval(self) -> JSON:
        """The approval of the call; None if it needed none."""
        return None if self.begun.sealed is None else self.begun.sealed.get("approval")

    @property
    def credential(self) -> Entry | None:
        """The credential of the call; None if it had none and tried to use none."""
        if self.acquired is None and not self.used:
            return None
        body: Mapping[str, JSON] = {} if self.acquired is None else self.acquired.body
        expires_at = body.get("expires_at")
        refused = [each for each in self.used if each.kind == CREDENTIAL_REFUSED]
        stepped_up = [each for each in self.used if each.kind != CREDENTIAL_REFUSED]
        return Entry(
            source=body.get("source"),
            issuer=body.get("issuer"),
            scopes=body.get("scope"),
            expires_at=rfc3339(moment(expires_at)) if isinstance(expires_at, int) else None,
            step_ups=[
                {"scopes": each.body.get("scope"), "at": rfc3339(each.at)} for each in stepped_up
            ],
            refused=[
                {
                    "code": each.body.get("code"),
                    "place": each.body.get("place"),
                    "at": rfc3339(each.at),
                }
                for each in refused
            ],
        )

    @property
    def parent(self) -> str | None:
        """The id of the call in whose tool this one was made; None outside of all tools."""
        parent = self.begun.body.get("parent")
        return parent if isinstance(parent, str) else None

    def entry(self) -> Entry:
        """The call as a trace lists it."""
        body = dict(self.begun.body)
        if self.ended is not None:  # a refusal may follow the intent, and has more information
            body |= self.ended.body
        return Entry(
            call_id=self.begun.call_id,
            parent=self.parent,
            agent=body.get("agent"),
            tool=body.get("tool"),
            resource=body.get("resource"),
            labels=body.get("labels"),
            decision=body.get("decision"),
            policy_id=body.get("policy_id"),
            code=body.get("code"),
            reason=body.get("reason"),
            approval=self.approval,
            credential=self.credential,
            outcome=self.outcome,
            error=body.get("error"),
            started=rfc3339(self.begun.at),
            ended=None if self.ended is None else rfc3339(self.ended.at),
            trace_id=self.begun.trace_id,
            span_id=self.begun.span_id,
        )


def moment(seconds: int) -> datetime:
    """A time in a record's body, which is in Unix seconds."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


@dataclass(slots=True)
class Branch:
    """One session with its calls, and the sessions that were delegated from it."""

    session_id: str
    opening: Record | None
    calls: list[CallStory] = field(default_factory=list[CallStory])
    below: list[Branch] = field(default_factory=list["Branch"])

    @property
    def agent(self) -> str:
        """Who acted in it."""
        record = self.opening or (self.calls[0].begun if self.calls else None)
        return "" if record is None else str(record.body.get("agent"))

    @property
    def parent(self) -> str | None:
        """The id of the call in whose tool its calls were made, if all were made in the same one."""
        parents = {story.parent for story in self.calls}
        return parents.pop() if len(parents) == 1 else None

    @property
    def began(self) -> datetime:
        """When it was opened, or when its first call began. A session without records comes last."""
        record = self.opening or (self.calls[0].begun if self.calls else None)
        return datetime.max.replace(tzinfo=UTC) if record is None else record.at

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it."""
        yield self
        for branch in self.below:
            yield from branch.walk()


@dataclass(slots=True)
class Graph:
    """The transaction that a reference names, from the root down, with the chain of agents, and its calls.

    `roots` are this transaction and those of the same principal that it continues, or that continue it, in the order in which
    they began.
    """

    root: Branch
    roots: list[Branch]
    chain: list[Entry]
    one_call: bool
    used: list[Record]

    def calls(self) -> list[CallStory]:
        """All calls in the order in which they began."""
        stories = [story for root in self.roots for branch in root.walk() for story in branch.calls]
        return sorted(stories, key=lambda story: story.begun.at)


_FOREIGN_RESUME: Final = "resumed_by_another"
_DEEPEST: Final = 64  # levels of sessions; manipulated records may form a ring


def graph_of(ledger: Ledger, ref: str, unknown: frozenset[str] = frozenset()) -> Graph:
    """Read the graph of a reference. `unknown` are calls whose outcome was lost.

    Raises:
        LedgerError: no record has that reference, or several transactions have.
    """
    return _GraphReader(ledger, unknown).read(ref)


class _GraphReader:
    """Reads the records for one graph, each once, and collects them."""

    def __init__(self, ledger: Ledger, unknown: frozenset[str]) -> None:
        self._ledger = ledger
        self._unknown = unknown
        self._used: dict[tuple[str, int], Record] = {}
        self._openings: dict[str, Record | None] = {}
        self._live: dict[str, bool] = {}
        self._credentials: dict[str, list[Record]] = {}
        self._branches: dict[str, Branch] = {}
        self._whole: set[str] = set()

    def read(self, ref: str) -> Graph:
        records = self._records_of(ref) if can_be_signed(ref) else []
        records, is_one = self._follow(records, ref)
        call_ids = _call_ids_of(records)
        sessions = _session_ids_of(self._use(records), ref)
        if not sessions:
            raise LedgerError(
                "unknown_reference",
                "the ledger has no session or call with that reference",
                remedy="pass the id of a call, session, trace or span, a tool call's id, or a jti",
            )
        paths = [self._path(session) for session in sessions]
        self._check_joined(records, {path[0] for path in paths})
        for path in paths:
            self._grow(path)
        if call_ids:
            for call_id in call_ids:
                found = self._ledger.find(call_id)  # calls that continue this one name it too
                self._add_calls(self._use(each for each in found if each.call_id == call_id))
        else:
            self._add_subtrees(sessions)
            self._add_continued()
        for branch in self._branches.values():
            branch.calls.sort(key=lambda story: story.begun.at)
        roots = {path[0] for path in map(self._path, list(self._branches))}
        root = max((path[0] for path in paths), key=lambda each: self._branches[each].began)
        return Graph(
            root=self._branches[root],
            roots=sorted((self._branches[each] for each in roots), key=lambda each: each.began),
            chain=self._chain(_common_prefix([path for path in paths if path[0] == root])),
            one_call=is_one,
            used=list(self._used.values()),
        )

    def _check_joined(self, records: list[Record], roots: set[str]) -> None:
        """Check that the transactions of a reference are one, or continue one another.

        Raises:
            LedgerError: they don't.
        """
        root_of = {each.call_id: self._root(each) for each in records if each.call_id is not None}
        joined = {next(iter(roots))}
        links = [
            {self._root(each), root_of.get(str(each.body["continues"]))}
            for each in records
            if "continues" in each.body
        ]
        for _ in roots:
            joined |= {root for link in links if link & joined for root in link if root is not None}
        if not roots <= joined:
            raise LedgerError(
                "ambiguous_reference",
                f"the reference names {len(roots)} transactions: {', '.join(sorted(roots))}",
                remedy="ask for one of them, or for a call by its call_id",
            )

    def _records_of(self, ref: str) -> list[Record]:
        frame = self._ledger.frame(ref)  # for a session, a small part of its records
        is_session = any(each.kind == SESSION_OPENED for each in frame)
        return frame if is_session else self._ledger.find(ref)

    def _follow(self, records: list[Record], ref: str) -> tuple[list[Record], bool]:
        """The records of calls with those of the calls that continue them after an interrupt; whether it is all one call.

        A model's id may name a call that was continued in another transaction, for the same principal. Another principal's attempt
        to continue it is left out. A call's own id names that call alone.
        """
        own = [each for each in records if each.call_id == ref]
        if own:
            return own, True
        call_ids = _call_ids_of(records)
        if len(call_ids) > 1:
            foreign = {each.call_id for each in records if each.body.get("code") == _FOREIGN_RESUME}
            if not foreign.issuperset(call_ids):
                records = [each for each in records if each.call_id not in foreign]
                call_ids = _call_ids_of(records)
        first = len(call_ids)
        for call_id in call_ids:  # it grows
            for record in self._ledger.find(call_id):
                if record.body.get("continues") != call_id or record.call_id is None:
                    continue
                if record.call_id not in call_ids:
                    call_ids.append(record.call_id)
                    records = [*records, *self._ledger.find(record.call_id)]
        is_one = bool(call_ids) and first - _count_continuing(records, call_ids[:first]) == 1
        if is_one and len(call_ids) > 1:
            last = max(records, key=lambda record: record.at)
            records = [each for each in records if each.pseudonym == last.pseudonym]
        return records, is_one

    def _root(self, record: Record) -> str | None:
        return None if record.session_id is None else self._path(record.session_id)[0]

    def _use(self, records: Iterable[Record]) -> list[Record]:
        used = list(records)
        self._used.update({(record.writer, record.seq): record for record in used})
        return used

    def _opening(self, session_id: str) -> Record | None:
        if session_id not in self._openings:
            openings = (
                record
                for record in self._ledger.frame(session_id)
                if record.kind == SESSION_OPENED and record.session_id == session_id
            )
            opening = self._openings[session_id] = next(openings, None)
            self._use([] if opening is None else [opening])
        return self._openings[session_id]

    def _path(self, session_id: str) -> tuple[str, ...]:
        """The sessions from the root down to this one, as far as this ledger has them."""
        path = [session_id]
        while len(path) < _DEEPEST:
            opening = self._opening(path[-1])
            parent = None if opening is None else opening.body.get("parent")
            if not isinstance(parent, str) or parent in path or self._opening(parent) is None:
                break
            path.append(parent)
        return tuple(reversed(path))

    def _grow(self, path: tuple[str, ...]) -> None:
        above: Branch | None = None
        for session_id in path:
            branch = self._branches.get(session_id)
            if branch is None:
                branch = self._branches[session_id] = Branch(session_id, self._opening(session_id))
                if above is not None:
                    above.below.append(branch)
            above = branch

    def _add_subtrees(self, sessions: list[str]) -> None:
        """Add the calls of some sessions, and of all sessions that were delegated from them."""
        for session_id in sessions:
            opening = self._opening(session_id)
            txn = None if opening is None else opening.body.get("txn")
            for record in self._ledger.frame(txn) if isinstance(txn, str) else ():
                if record.kind == SESSION_OPENED and record.session_id is not None:
                    self._openings.setdefault(record.session_id, record)
                    path = self._path(record.session_id)
                    if session_id in path:
                        self._use([record])
                        self._grow(path)
        wanted = {branch.session_id for id_ in sessions for branch in self._branches[id_].walk()}
        for session_id in wanted - self._whole:
            self._add_calls(self._use(self._ledger.session_records(session_id)))
        self._whole |= wanted

    def _add_continued(self) -> None:
        """Add the sessions of the same principal that continue interrupted calls of these, or whose calls these continue."""
        looked: set[str] = set()
        while waiting := self._whole - looked:
            looked |= waiting
            stories = [story for session in waiting for story in self._branches[session].calls]
            linked = {
                record.session_id
                for story in stories
                for record in self._linked(story)
                if record.session_id is not None and record.pseudonym == story.begun.pseudonym
            }
            for session_id in sorted(linked - self._whole):
                self._grow(self._path(session_id))
                self._add_subtrees([session_id])

    def _linked(self, story: CallStory) -> Iterator[Record]:
        """The records of the call that this one continues, and of those that continue it; only an interrupted call is continued."""
        continued = story.begun.body.get("continues")
        if isinstance(continued, str):
            yield from (each for each in self._ledger.find(continued) if each.call_id == continued)
        if story.outcome not in {"completed", "denied"} and story.begun.call_id is not None:
            call_id = story.begun.call_id
            for record in self._ledger.find(call_id):
                if record.body.get("continues") == call_id:
                    yield record

    def _add_calls(self, records: list[Record]) -> None:
        begun: dict[str, Record] = {}
        ended: dict[str, Record] = {}
        used: dict[str, list[Record]] = {}
        for record in records:
            if record.call_id is None:
                continue
            if record.kind == CALL_INTENDED:
                begun[record.call_id] = record
            elif record.kind in OUTCOMES:
                ended[record.call_id] = record
            elif record.kind in {CREDENTIAL_REFUSED, CREDENTIAL_STEPPED_UP}:
                used.setdefault(record.call_id, []).append(record)
        for call_id, record in {**ended, **begun}.items():
            end = ended.get(call_id)
            branch = self._branches.get(record.session_id or "")
            if branch is not None and (record.kind in {CALL_INTENDED, CALL_DENIED}):
                branch.calls.append(
                    CallStory(
                        record,
                        end,
                        self._outcome(record, end),
                        self._credential_of(record),
                        used.get(call_id, []),
                    )
                )

    def _credential_of(self, begun: Record) -> Record | None:
        """The record of a call's credential: the session's last one for the same grant before the call."""
        if begun.kind != CALL_INTENDED or begun.session_id is None:
            return None
        if begun.session_id not in self._credentials:
            frame = self._ledger.frame(begun.session_id)
            self._credentials[begun.session_id] = [
                record
                for record in frame
                if record.kind == CREDENTIAL_ACQUIRED and record.call_id is None
            ]
        wanted = (begun.body.get("resource"), begun.body.get("grant_hash"))
        acquired = [
            record
            for record in self._credentials[begun.session_id]
            if (record.body.get("resource"), record.body.get("grant_hash")) == wanted
            and record.at <= begun.at
        ]
        return self._use(acquired[-1:])[0] if acquired else None

    def _outcome(self, begun: Record, ended: Record | None) -> str | None:
        if ended is not None:
            return OUTCOMES[ended.kind]
        if begun.call_id in self._unknown:
            return "unknown"
        if begun.writer not in self._live:
            self._live[begun.writer] = self._ledger.is_live(begun.writer)
        return None if self._live[begun.writer] else "unknown"

    def _chain(self, path: tuple[str, ...]) -> list[Entry]:
        grants = self._grants()
        hops = self._entries_above(path)
        for session_id in path:
            opening = self._opening(session_id)
            branch = self._branches[session_id]
            body: Mapping[str, JSON] = {} if opening is None else opening.body
            grants_made = grants.get(session_id) or self._grants_of(session_id)
            scope = sorted(
                {str(token) for grant in grants_made for token in _list_of(grant.body["scope"])}
            )
            evidence = [grant.body.get("evidence") for grant in grants_made]
            hops.append(
                Entry(
                    agent=branch.agent,
                    depth=body.get("depth", len(hops)),
                    scope=[*scope] if grants_made else [*_list_of(body.get("scopes"))],
                    evidence=next((word for word in evidence if word is not None), None),
                )
            )
        return hops

    def _entries_above(self, path: tuple[str, ...]) -> list[Entry]:
        """The agents in other processes above the first of these sessions, if it was handed over."""
        opening = self._opening(path[0]) if path else None
        above = _list_of(None if opening is None else opening.body.get("above"))
        return [
            Entry(
                agent=str(hop.get("agent")),
                depth=hop.get("depth"),
                scope=_list_of(hop.get("scope")),
                evidence=hop.get("evidence"),
            )
            for hop in above
            if isinstance(hop, dict)
        ]

    def _grants(self) -> dict[str, list[Record]]:
        """The grants of the calls by session: each call's own grant, and those above it."""
        hashes = {
            str(story.begun.body["grant_hash"])
            for branch in self._branches.values()
            for story in branch.calls
            if story.begun.body.get("grant_hash") is not None
        }
        by_session: dict[str, list[Record]] = {}
        seen: set[str] = set()
        while hashes:
            grant_hash = hashes.pop()
            seen.add(grant_hash)
            grants_made = [
                grant for grant in self._ledger.frame(grant_hash) if grant.kind == GRANT_MADE
            ]
            for grant in self._use(grants_made):
                by_session.setdefault(grant.session_id or "", []).append(grant)
                chain = _list_of(None if grant.sealed is None else grant.sealed.get("chain"))
                hashes |= {hash_of(str(compact)) for compact in chain} - seen
        return by_session

    def _grants_of(self, session_id: str) -> list[Record]:
        frame = self._ledger.frame(session_id)
        return self._use(record for record in frame if record.kind == GRANT_MADE)


def _count_continuing(records: list[Record], call_ids: list[str]) -> int:
    """How many of these calls continue another one of them."""
    return len(
        {
            record.call_id
            for record in records
            if record.call_id in call_ids and record.body.get("continues") in call_ids
        }
    )


def _call_ids_of(records: list[Record]) -> list[str]:
    """The ids of the calls that a reference names; empty if it names a session, a grant or a token."""
    calls = [record.call_id for record in records if record.kind.startswith("call.")]
    return list(dict.fromkeys(call_id for call_id in calls if call_id is not None))


def _session_ids_of(records: list[Record], ref: str) -> list[str]:
    """The ids of the sessions that a reference names, or of the sessions of the calls that it names."""
    sessions = list(dict.fromkeys(record.session_id for record in records if record.session_id))
    return [ref] if ref in sessions else sessions


def _common_prefix(paths: list[tuple[str, ...]]) -> tuple[str, ...]:
    """The common beginning of all paths."""
    common = paths[0]
    for path in paths[1:]:
        same = 0
        while same < min(len(common), len(path)) and common[same] == path[same]:
            same += 1
        common = common[:same]
    return common


def _list_of(value: JSON) -> list[JSON]:
    return value if isinstance(value, list) else []
