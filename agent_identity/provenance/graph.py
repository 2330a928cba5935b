# SPDX-License-Identifier: Apache-2.0
"""The execution graph: sessions below one another, and the calls in each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from agent_identity.provenance.records import CALL_DENIED, CREDENTIAL_REFUSED, rfc3339

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from agent_identity.provenance.records import Record
    from agent_identity.values import JSON

__all__ = ["Branch", "CallStory", "Entry", "Graph", "moment"]


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
    """One call: what was to be done (or denied), how it ended, and what became of its credential.

    `acquired` is the record of that credential, `used` are the records of its refused uses and step-ups.
    """

    begun: Record
    ended: Record | None
    outcome: str | None
    acquired: Record | None = None
    used: list[Record] = field(default_factory=list["Record"])

    @property
    def took(self) -> float | None:
        """Seconds from the intent to the outcome; None for a call that never ran, or hasn't ended."""
        if self.ended is None or self.ended.kind == CALL_DENIED:
            return None
        return (self.ended.at - self.begun.at).total_seconds()

    @property
    def approval(self) -> JSON:
        """Who said yes to it, None when nobody had to."""
        return None if self.begun.sealed is None else self.begun.sealed.get("approval")

    @property
    def credential(self) -> Entry | None:
        """What the call was done with, None where it had no credential and tried to use none."""
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

    def entry(self) -> Entry:
        """The call as a trace lists it."""
        body = dict(self.begun.body)
        if self.ended is not None:  # a refusal may follow the intent, and says more than it
            body |= self.ended.body
        return Entry(
            call_id=self.begun.call_id,
            parent=body.get("parent"),
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
    """A time of a record's body, which holds Unix seconds."""
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
        told = self.opening or (self.calls[0].begun if self.calls else None)
        return "" if told is None else str(told.body.get("agent"))

    @property
    def began(self) -> datetime:
        """When it was opened, or first called; one of which nothing is known comes last."""
        told = self.opening or (self.calls[0].begun if self.calls else None)
        return datetime.max.replace(tzinfo=UTC) if told is None else told.at

    def walk(self) -> Iterator[Branch]:
        """This branch and all below it."""
        yield self
        for branch in self.below:
            yield from branch.walk()


@dataclass(slots=True)
class Graph:
    """What a reference names: its transaction from the root down, the chain of agents to it, and its calls."""

    root: Branch
    chain: list[Entry]
    one_call: bool
    used: list[Record]

    def calls(self) -> list[CallStory]:
        """All calls in the order in which they began."""
        stories = [story for branch in self.root.walk() for story in branch.calls]
        return sorted(stories, key=lambda story: story.begun.at)
