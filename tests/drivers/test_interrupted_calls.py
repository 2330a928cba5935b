# SPDX-License-Identifier: Apache-2.0
"""An interrupt at any place of a call's way in and out costs that one call. The identity works on, and no lock stays held."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent_identity import AgentIdentity, current_credential, current_session, tool
from agent_identity.authority import Authority
from agent_identity.errors import AgentIdentityError
from agent_identity.forks import StillLock, _holding_still
from agent_identity.provenance.ledger import open_ledger

BILLING = "https://billing.example"
SOAKS = os.environ.get("AGENT_IDENTITY_SOAK") == "full"


@tool(resource=BILLING, scopes=["invoices:read"])
def read() -> str:
    assert current_credential().resource == BILLING
    return current_session().principal.sub


@tool()
async def aread() -> str:
    return current_session().principal.sub


@tool()
def pages() -> Any:
    yield current_session().principal.sub
    yield current_session().principal.sub


@pytest.fixture(params=["memory:", "sqlite:"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made: list[AgentIdentity] = []

    def one() -> AgentIdentity:
        ledger = open_ledger(request.param, state_dir=tmp_path)
        made.append(AgentIdentity("bot", authority=Authority(), ledger=ledger))
        return made[-1]

    yield one
    for identity in made:
        identity.close()


def held_for_good() -> list[object]:
    """Locks that nobody gives back; a thread that tends a ledger holds one for a moment."""
    held: list[object] = []
    for thing in list(_holding_still):
        if not isinstance(thing, StillLock):
            continue
        if thing.lock.acquire(timeout=20):
            thing.lock.release()
        else:
            held.append(thing)
    return held


def every_place(
    interrupts: Any, work: Callable[[], object], works_on: Callable[[], None], *, step: int = 29
) -> list[str]:
    """Interrupt `work` at one of `step` places after the other, in the soak at each; the places that were hit.

    The places of one run are those of the next, so that a start that is drawn reaches them all in time.
    """
    places: list[str] = []
    step = 1 if SOAKS else step
    number = random.randint(1, step)
    while True:
        try:
            if not interrupts.at(number, work):
                return places
            raise AssertionError(f"the interrupt was lost at {interrupts.place}")
        except AgentIdentityError as error:
            raise AssertionError(f"{interrupts.place} became {error.code}") from error
        except BaseException as error:
            if isinstance(error, AssertionError):
                raise
            assert type(error).__name__ in {"KeyboardInterrupt", "SoftTimeLimitError"}, (  # noqa: PT017 - whatever comes, it is one of these
                interrupts.place
            )
        places.append(interrupts.place)
        assert not held_for_good(), interrupts.place
        try:
            works_on()
        except BaseException as error:
            raise AssertionError(f"broken by an interrupt at {interrupts.place}") from error
        number += step


def test_a_call_that_is_interrupted_anywhere_costs_that_call_alone(make, interrupts) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="p") as session:

        def works_on() -> None:
            assert read() == "alice"

        works_on()
        places = every_place(interrupts, read, works_on)
        assert len(places) >= 3
        gc.collect()
    kinds: dict[str, list[str]] = {}
    for record in session.records():
        if record.call_id is not None:
            kinds.setdefault(record.call_id, []).append(record.kind)
    outcomes = [order for order in kinds.values() if order[0] == "call.intended"]
    assert all(len(order) == 2 for order in outcomes), outcomes
    assert identity.ledger.verify().ok


def test_a_first_call_that_is_interrupted_anywhere_costs_that_call_alone(make, interrupts) -> None:
    """Grants and credentials are acquired on the way."""
    identity = make()

    def fresh() -> None:
        with identity.on_behalf_of("user:alice", purpose="p"):
            read()

    fresh()
    places = every_place(interrupts, fresh, fresh, step=97)
    assert len(places) >= 3


def test_an_async_call_that_is_interrupted_anywhere_costs_that_call_alone(make, interrupts) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="p"):

        def once() -> None:
            async def main() -> None:
                await aread()

            asyncio.run(main())

        def works_on() -> None:
            assert read() == "alice"
            once()

        works_on()
        places = every_place(interrupts, once, works_on)
        assert len(places) >= 3


def test_a_generator_tool_that_is_interrupted_anywhere_costs_that_call_alone(
    make, interrupts
) -> None:
    identity = make()
    with identity.on_behalf_of("user:alice", purpose="p"):

        def works_on() -> None:
            assert list(pages()) == ["alice", "alice"]

        works_on()
        places = every_place(interrupts, lambda: list(pages()), works_on)
        assert len(places) >= 3


def test_a_session_inside_a_generator_that_is_interrupted_anywhere_is_no_ones_afterwards(
    make, interrupts
) -> None:
    identity = make()

    def job() -> Any:
        with identity.on_behalf_of("user:carol", purpose="p"):
            yield read()

    with identity.on_behalf_of("user:alice", purpose="p"):

        def works_on() -> None:
            gc.collect()
            assert read() == "alice"

        works_on()
        list(job())
        places = every_place(interrupts, lambda: list(job()), works_on, step=97)
        assert len(places) >= 3
