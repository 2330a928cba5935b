# SPDX-License-Identifier: Apache-2.0
"""Both ledgers by the same tests, then what only one in a file can do: leases, forks, neighbours, a busy file."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sqlite3
import threading
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from agent_identity import tool
from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.flow import Draft
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.provenance.sqlite.database import ledger_error
from agent_identity.provenance.trace import trace_of
from agent_identity.storage import sqlite as storage
from agent_identity.values import Principal, new_id

ALICE = Principal("alice")
SESSION = "ses_" + "a" * 32


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory:", "sqlite:"])
def ledger(request, tmp_path, clock):
    with open_ledger(request.param, state_dir=tmp_path, clock=clock) as opened:
        yield opened


@pytest.fixture
def open_sqlite(tmp_path, clock):
    opened = []

    def open_one(**options):
        opened.append(open_ledger("sqlite:", state_dir=tmp_path, clock=clock, **options))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def draft(kind="call.completed", *, call=None, session=SESSION, sealed=None, who=None, **public):
    return Draft(
        kind,
        public,
        sealed,
        pseudonym=who,
        session_id=session,
        call_id=call or new_id("call_"),
    )


def numbers(ledger) -> list:
    return [record.body["number"] for record in ledger.records()]


def eventually(claim, seconds=60.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if claim():
            return True
        time.sleep(0.005)
    return False


# -- both ledgers ---------------------------------------------------------------------------------------------------


def test_records_read_back_in_the_order_of_commits(ledger) -> None:
    for number in range(30):
        ledger.append(draft(number=number))
    assert numbers(ledger) == list(range(30))
    assert [record.seq for record in ledger.records()] == list(range(1, 31))
    assert len({record.writer for record in ledger.records()}) == 1


async def test_async_appends_are_records_like_any_other(ledger) -> None:
    for number in range(5):
        await ledger.aappend(draft(number=number))
    assert numbers(ledger) == list(range(5))
    assert ledger.verify().ok


def test_a_record_is_found_by_everything_that_it_carries(ledger) -> None:
    call, trace, span = new_id("call_"), "7" * 32, "8" * 16
    ledger.append(draft())
    ledger.append(
        Draft(
            "call.intended",
            {},
            session_id=SESSION,
            call_id=call,
            trace_id=trace,
            span_id=span,
            ref="toolu_1",
        )
    )
    ledger.append(Draft("call.completed", {}, session_id=SESSION, call_id=call))
    ledger.append(Draft("grant.made", {}, session_id=SESSION, ref="grant_1"))
    ledger.append(Draft("credential.acquired", {}, session_id=SESSION, ref="at-jti"))

    def kinds(ref):
        return [record.kind for record in ledger.find(ref)]

    assert kinds(call) == ["call.intended", "call.completed"]
    for jti in (f"{call}.1", f"{call}.27", f"{call}.r2"):
        assert kinds(jti) == ["call.intended", "call.completed"]
    for ref in (trace, span, "toolu_1"):
        assert kinds(ref) == ["call.intended"]
    assert kinds("grant_1") == ["grant.made"]
    assert kinds("at-jti") == ["credential.acquired"]
    assert len(kinds(SESSION)) == 5
    assert kinds("call_unknown") == []
    assert kinds("") == []


def test_a_reference_is_matched_whole_and_as_it_stands(ledger) -> None:
    ledger.append(draft(call="call_Ab"))
    for other in ("call_A", "call_ab", "call_Ab ", "call_%", "call_Ab\0", "'; --"):
        assert ledger.find(other) == []


def test_the_frame_of_a_session_leaves_its_calls_out(ledger) -> None:
    ledger.append(draft("session.opened", call=None, txn="ses_root"))
    ledger.append(draft("call.intended"))
    ledger.append(draft("grant.made", call=None))
    assert [record.kind for record in ledger.frame(SESSION)] == ["session.opened", "grant.made"]
    assert [record.kind for record in ledger.frame("ses_root")] == ["session.opened"]


def test_the_records_of_a_session_are_its_own(ledger) -> None:
    ledger.append(draft("session.opened", session="ses_root", txn="ses_root"))
    ledger.append(draft("session.opened", session="ses_child", txn="ses_root"))
    ledger.append(draft(session="ses_child"))
    assert [r.session_id for r in ledger.session_records("ses_root")] == ["ses_root"]
    assert len(ledger.session_records("ses_child")) == 2


def test_what_is_sealed_reads_back_until_its_subject_is_erased(ledger) -> None:
    who = ledger.pseudonym(ALICE)
    call = new_id("call_")
    ledger.append(draft("call.intended", call=call, who=who, sealed={"assertion": "eyJ.a.b"}))
    assert ledger.find(call)[0].sealed == {"assertion": "eyJ.a.b"}
    ledger.subjects.erase(who)
    (record,) = ledger.find(call)
    assert (record.sealed, record.erased) == (None, True)
    assert ledger.verify().ok
    assert ledger.first_broken([record]) is None


def test_nothing_is_recorded_for_a_subject_that_was_erased(ledger) -> None:
    who = ledger.pseudonym(ALICE)
    ledger.subjects.erase(who)
    with pytest.raises(LedgerError) as caught:
        ledger.append(draft(who=who, sealed={"assertion": "x"}))
    assert caught.value.code == "subject_erased"
    assert list(ledger.records()) == []


def test_a_draft_without_canonical_form_leaves_no_gap(ledger) -> None:
    ledger.append(draft(number=1))
    with pytest.raises(LedgerError):
        ledger.append(draft(number=2, value=object()))
    ledger.append(draft(number=3))
    assert numbers(ledger) == [1, 3]
    assert ledger.verify().ok


def test_a_draft_changed_after_its_append_changes_no_record(ledger) -> None:
    one = draft(number=1, labels=["a"])
    ledger.append(one)
    one.public["number"] = 2
    one.public["labels"].append("b")
    assert [record.body for record in ledger.records()] == [{"number": 1, "labels": ["a"]}]


def test_threads_share_one_chain_without_a_gap(ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.append(draft(number=number)), range(400)))
    assert sorted(numbers(ledger)) == list(range(400))
    report = ledger.verify()
    assert (report.ok, report.records, report.writers) == (True, 400, 1)


def test_a_writer_is_live_until_it_closes(ledger) -> None:
    ledger.append(draft())
    (record,) = ledger.records()
    assert ledger.is_live(record.writer)
    assert not ledger.is_live("wrt_of-nobody")


def test_its_own_open_calls_are_running_however_long_they_take(ledger, clock) -> None:
    ledger.append(draft())
    clock.now += 86_400
    assert ledger.is_live(next(iter(ledger.records())).writer)


def test_a_closed_ledger_takes_nothing_more(ledger) -> None:
    ledger.append(draft())
    ledger.close()
    for write in (lambda: ledger.append(draft()), ledger.probe):
        with pytest.raises(LedgerError) as caught:
            write()
        assert caught.value.code == "ledger_closed"
    ledger.close()


def test_a_record_whose_neighbour_was_changed_is_named(ledger) -> None:
    for number in range(3):
        ledger.append(draft(number=number))
    first, second, third = ledger.records()
    assert ledger.first_broken([first, second, third]) is None
    forged = second.row._replace(body=second.row.body.replace(b'"number":1', b'"number":7'))
    bad = ledger.first_broken([type(second)(**{**_fields(second), "row": forged})])
    assert bad.seq == 2


def _fields(record) -> dict:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def in_child(work) -> None:
    """Run in a forked child; what fails there fails here, and a child that hangs is ended."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # 3.12: forking with threads is what this is about
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(30)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_a_database_that_is_dropped_leaves_nothing_open(tmp_path) -> None:
    database = storage.Database(
        lambda: sqlite3.connect(tmp_path / "some.db", check_same_thread=False), ledger_error
    )
    with database.lock, database.reading("a look") as connection:
        connection.execute("SELECT 1")
    del database
    gc.collect()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_a_forked_child_writes_a_chain_of_its_own(ledger) -> None:
    ledger.append(draft(number=0))
    before = next(iter(ledger.records())).writer

    def work() -> None:
        ledger.append(draft(number=1))
        records = list(ledger.records())
        assert [record.body["number"] for record in records] == [0, 1]
        assert (records[1].seq, records[1].writer != before) == (1, True)
        assert ledger.is_live(before)
        report = ledger.verify()
        assert (report.ok, report.writers) == (True, 2)
        assert ledger.first_broken(records) is None

    in_child(work)
    ledger.append(draft(number=2))
    mine = [record for record in ledger.records() if record.writer == before]
    assert [(record.seq, record.body["number"]) for record in mine] == [(1, 0), (2, 2)]
    assert ledger.verify().ok


def test_forking_while_threads_append_loses_nothing_and_hangs_nobody(ledger) -> None:
    over = threading.Event()
    appended = [0] * 3

    def hammer(place: int) -> None:
        while not over.is_set() and appended[place] < 5_000:
            ledger.append(draft(number=-1))
            appended[place] += 1

    threads = [threading.Thread(target=hammer, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(8):
            in_child(lambda number=number: ledger.append(draft(number=number)))
    finally:
        over.set()
        for thread in threads:
            thread.join()
    report = ledger.verify()
    assert report.ok
    assert report.records >= sum(appended)
    assert numbers(ledger).count(-1) == sum(appended)


# -- the one in a file ----------------------------------------------------------------------------------------------


def test_a_second_opening_reads_what_the_first_committed(open_sqlite) -> None:
    writing, reading = open_sqlite(), open_sqlite()
    call = new_id("call_")
    writing.append(draft(call=call, number=1))
    assert numbers(reading) == [1]
    assert len(reading.find(call)) == 1


def test_the_lease_of_a_writer_decides_whether_its_calls_are_unknown(open_sqlite, clock) -> None:
    writing, reading = open_sqlite(), open_sqlite()
    call = new_id("call_")
    writing.append(draft("call.intended", call=call, decision="permit"))
    writing._upkeep.stop()  # it would renew the lease as the clock is moved
    assert trace_of(reading, call).outcome is None
    clock.now += 29
    assert trace_of(reading, call).outcome is None
    clock.now += 2
    assert trace_of(reading, call).outcome == "unknown"
    writing.probe()
    assert trace_of(reading, call).outcome is None


def test_a_writer_that_closes_leaves_its_open_calls_unknown_at_once(open_sqlite) -> None:
    writing, reading = open_sqlite(), open_sqlite()
    call = new_id("call_")
    writing.append(draft("call.intended", call=call, decision="permit"))
    writing.close()
    assert trace_of(reading, call).outcome == "unknown"


def test_upkeep_renews_the_lease(open_sqlite, clock) -> None:
    writing, reading = open_sqlite(), open_sqlite()
    writing.append(draft())
    writer = next(iter(reading.records())).writer
    clock.now += 25
    writing._do_upkeep()
    clock.now += 25
    assert reading.is_live(writer)


def test_reading_alone_registers_no_writer(open_sqlite, tmp_path) -> None:
    ledger = open_sqlite()
    list(ledger.records())
    ledger.find("call_x")
    ledger.verify()
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        assert database.execute("SELECT count(*) FROM writers").fetchone() == (0,)
    database.close()


def test_an_uncontended_async_append_needs_no_thread(open_sqlite, monkeypatch) -> None:
    ledger = open_sqlite()
    ledger.append(draft(number=0))

    async def no_thread(*_):
        raise AssertionError("went to a thread")

    async def work() -> None:
        monkeypatch.setattr(asyncio, "to_thread", no_thread)
        await ledger.aappend(draft(number=1))

    asyncio.run(work())
    assert numbers(ledger) == [0, 1]


@pytest.mark.parametrize("holder", ["another process", "another thread"])
async def test_an_async_append_that_has_to_wait_leaves_the_loop_free(
    open_sqlite, tmp_path, holder
) -> None:
    ledger = open_sqlite()
    ledger.append(draft(number=0))
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    if holder == "another process":
        other.execute("BEGIN IMMEDIATE")
    else:
        ledger._writer._database.lock.acquire()
    append = asyncio.ensure_future(ledger.aappend(draft(number=1)))
    turns = 0
    until = time.monotonic() + 0.2
    while time.monotonic() < until:
        await asyncio.sleep(0)
        turns += 1
    assert turns > 100
    assert not append.done()
    if holder == "another process":
        other.execute("COMMIT")
    else:
        ledger._writer._database.lock.release()
    await append
    other.close()
    assert numbers(ledger) == [0, 1]


def test_two_processes_append_side_by_side(open_sqlite) -> None:
    ledger = open_sqlite()

    def work() -> None:
        for number in range(150):
            ledger.append(draft(number=number))

    readable, writable = os.pipe()
    ledger.append(draft(number=-1))

    def both() -> None:
        os.write(writable, b"x")
        work()

    parent = threading.Thread(target=lambda: (os.read(readable, 1), work()))
    parent.start()
    in_child(both)
    parent.join()
    os.close(readable)
    os.close(writable)
    report = ledger.verify()
    assert (report.ok, report.records, report.writers) == (True, 301, 2)


def test_a_fork_that_could_not_wait_refuses_in_the_child_alone(open_sqlite, monkeypatch) -> None:
    """Ours: better no ledger in the child than one whose file locks are the parent's."""
    ledger = open_sqlite()
    ledger.append(draft(number=0))
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.05)
    lock = ledger._writer._database.lock
    lock.acquire()

    def work() -> None:
        with pytest.raises(LedgerError) as caught:
            ledger.append(draft(number=1))
        assert caught.value.code == "ledger_forked"

    in_child(work)
    lock.release()
    ledger.append(draft(number=2))
    assert numbers(ledger) == [0, 2]
    assert ledger.verify().ok


def test_a_closed_parent_leaves_the_child_its_file(open_sqlite, tmp_path) -> None:
    """The last to close a SQLite file removes its -wal: a parent that took itself for the last would remove the child's."""
    ledger = open_sqlite()
    ledger.append(draft(number=0))
    told, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        signal.alarm(30)
        ledger.append(draft(number=1))
        os.read(told, 1)
        ledger.append(draft(number=2))
        os._exit(0)
    assert eventually(lambda: numbers(ledger) == [0, 1])
    ledger.close()
    os.write(tell, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(told)
    os.close(tell)
    assert numbers(open_sqlite()) == [0, 1, 2]


@pytest.mark.parametrize(("durability", "synchronous"), [("process", 1), ("power", 2)])
def test_durability_decides_what_a_commit_waits_for(open_sqlite, durability, synchronous) -> None:
    ledger = open_sqlite(durability=durability)
    ledger.append(draft(number=0))
    asyncio.run(ledger.aappend(draft(number=1)))
    with ledger._writer._database.lock, ledger._writer._database.reading("") as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
    assert numbers(ledger) == [0, 1]


def test_those_who_wait_for_the_disk_share_a_commit_and_a_bad_draft_fails_alone(
    open_sqlite,
) -> None:
    ledger = open_sqlite(durability="power")
    ledger.append(draft(number=0))
    commits = []
    ledger._writer._connection.set_trace_callback(
        lambda statement: commits.append(statement) if statement == "COMMIT" else None
    )
    lock = ledger._writer._database.lock
    lock.acquire()
    drafts = [draft(number=number) for number in range(1, 7)] + [draft(number=object())]
    with ThreadPoolExecutor(7) as pool:
        futures = [pool.submit(ledger.append, one) for one in drafts]
        assert eventually(lambda: len(ledger._writer._waiting) == 7)
        lock.release()
        errors = [future.exception() for future in futures]
    assert len(commits) == 1
    assert [type(error) for error in errors] == [type(None)] * 6 + [LedgerError]
    assert sorted(numbers(ledger)) == list(range(7))
    assert ledger.verify().ok


@pytest.mark.parametrize(("durability", "step"), [("process", "INSERT"), ("power", "COMMIT")])
@pytest.mark.parametrize(("where", "kept"), [("before", [0, 2, 3]), ("after", [0, 1, 2, 3])])
def test_an_interrupt_around_the_commit_leaves_neither_a_lock_nor_a_fork_in_the_chain(
    open_sqlite, where, kept, durability, step
) -> None:
    """Ours: Ctrl-C may come in a transaction, or after it and before the chain in memory has moved on."""
    ledger, other = open_sqlite(durability=durability), open_sqlite()
    ledger.append(draft(number=0))
    execute = ledger._writer._execute

    def interrupted(statement, *values):
        if not statement.strip().startswith(step):
            return execute(statement, *values)
        if where == "after":
            execute(statement, *values)
        raise KeyboardInterrupt

    ledger._writer._execute = interrupted
    with pytest.raises(KeyboardInterrupt):
        ledger.append(draft(number=1))
    ledger._writer._execute = execute
    with other._writer._database.lock, other._writer._database.reading("") as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("ROLLBACK")
    other.append(draft(number=2))
    ledger.append(draft(number=3))
    assert numbers(ledger) == kept
    assert ledger.verify().ok


def test_what_a_parent_takes_at_the_last_moment_is_not_the_childs(clock) -> None:
    ledger = MemoryLedger(clock=clock)
    ledger.append(draft(number=0))
    ledger.before_fork()
    assert ledger.is_at_rest
    ledger.append(draft(number=1))  # as another thread of the parent may
    ledger.after_fork_in_child()
    ledger.append(draft(number=2))
    assert numbers(ledger) == [0, 2]
    assert [record.seq for record in ledger.records()] == [1, 1]


# -- finding --------------------------------------------------------------------------------------------------------


def steps_to_find(ledger, ref) -> int:
    """How many instructions SQLite's machine needs, which says more than a stopwatch."""
    counted = [0]

    def step() -> int:
        counted[0] += 1
        return 0

    with ledger._lookup.reader.lock, ledger._lookup.reader.reading("") as connection:
        connection.set_progress_handler(step, 1)
    assert len(ledger.find(ref)) == 1
    with ledger._lookup.reader.lock, ledger._lookup.reader.reading("") as connection:
        connection.set_progress_handler(None, 1)
    return counted[0]


def test_finding_costs_the_same_in_a_long_ledger(open_sqlite) -> None:
    """PERFORMANCE.md: O(1) in ledger size."""
    ledger = open_sqlite()
    first = new_id("call_")
    ledger.append(draft(call=first))
    ledger._lookup.catch_up()
    short = steps_to_find(ledger, first)
    for _ in range(3_000):
        ledger.append(draft())
    ledger._lookup.catch_up()
    assert steps_to_find(ledger, first) <= 1.3 * short


def test_upkeep_fills_the_index_by_itself(open_sqlite) -> None:
    ledger = open_sqlite()
    for _ in range(1_100):
        ledger.append(draft())
    assert eventually(lambda: len(places_in(ledger)) >= 1_024)


@pytest.mark.parametrize("durability", ["process", "power"])
def test_upkeep_is_called_for_after_every_few_hundred_records(open_sqlite, durability) -> None:
    ledger = open_sqlite(durability=durability)
    ledger.append(draft())
    called = []
    ledger._writer._due = lambda: called.append(1)
    for _ in range(1_100):
        ledger.append(draft())
    assert len(called) == 2


def test_a_record_is_found_before_and_after_it_is_in_the_index(open_sqlite) -> None:
    ledger = open_sqlite()
    call = new_id("call_")
    ledger.append(draft(call=call))
    assert len(ledger.find(call)) == 1
    ledger._lookup.catch_up()
    assert len(ledger.find(call)) == 1
    ledger.append(draft(call=call))
    assert len(ledger.find(call)) == 2


def test_an_index_that_is_gone_is_made_anew(open_sqlite, tmp_path) -> None:
    ledger = open_sqlite()
    call = new_id("call_")
    ledger.append(draft(call=call))
    ledger.close()
    (tmp_path / "ledger-index.db").unlink()
    again = open_sqlite()
    assert len(again.find(call)) == 1
    again._lookup.catch_up()
    assert places_in(again) == [(1, 1)]
    assert len(again.find(call)) == 1


def places_in(ledger) -> list:
    with ledger._lookup.index.lock, ledger._lookup.index.reading("") as index:
        return index.execute("SELECT seq, id FROM places ORDER BY id").fetchall()


def test_an_index_of_another_ledger_is_not_believed(open_sqlite, tmp_path) -> None:
    """A ledger restored from a backup has new records under numbers that the index knows already."""
    ledger = open_sqlite()
    for _ in range(5):
        ledger.append(draft())
    ledger.close()
    (tmp_path / "ledger.db").unlink()
    other = open_sqlite()
    other._upkeep.stop()
    calls = [new_id("call_") for _ in range(7)]
    for call in calls:
        other.append(draft(call=call))
    assert len(other._lookup.by_ref(calls[0])) == 1
    other._lookup.catch_up()
    assert places_in(other) == [(number, number) for number in range(1, 8)]
    assert all(len(other._lookup.by_ref(call)) == 1 for call in calls)


def test_a_reference_that_the_index_lost_is_found_all_the_same(open_sqlite, tmp_path) -> None:
    ledger = open_sqlite()
    call = new_id("call_")
    ledger.append(draft(call=call))
    ledger._lookup.catch_up()
    with ledger._lookup.index.writing("") as index:
        index.execute("DELETE FROM refs")
    assert len(ledger.find(call)) == 1


def test_an_index_row_that_points_elsewhere_finds_nothing(open_sqlite) -> None:
    ledger = open_sqlite()
    ledger.append(draft())
    ledger._lookup.catch_up()
    with ledger._lookup.index.writing("") as index:
        index.execute("INSERT INTO refs VALUES ('call_forged', 1, 1)")
    assert ledger.find("call_forged") == []


def test_upkeep_ends_with_a_ledger_that_nobody_closed(tmp_path) -> None:
    ledger = open_ledger("sqlite:", state_dir=tmp_path)
    ledger.append(draft())
    ledger._upkeep.wake()
    assert eventually(partial(places_in, ledger))
    thread = ledger._upkeep._thread
    connections = [ledger._writer._database, ledger._lookup.reader, ledger._lookup.mover]
    connections += [ledger._lookup.index, ledger.subjects._shelf._database]
    del ledger
    gc.collect()
    assert eventually(lambda: not thread.is_alive())
    for connection in connections:
        connection.close()


# -- which ledger ---------------------------------------------------------------------------------------------------


def test_a_url_says_where_the_ledger_lies(tmp_path, monkeypatch) -> None:
    folder, state = tmp_path / "folder", tmp_path / "state"
    folder.mkdir(mode=0o700)
    monkeypatch.chdir(folder)
    for url, path in (
        ("sqlite:", state / "ledger.db"),
        ("sqlite:///near.db", folder / "near.db"),
        ("sqlite:///made/near.db", folder / "made" / "near.db"),
        (f"sqlite:///{tmp_path}/folder/far%20away.db", folder / "far away.db"),
    ):
        with open_ledger(url, state_dir=state) as ledger:
            ledger.append(draft(number=1))
            assert path.exists()
        assert (state / "subjects.db").exists()
    with open_ledger("sqlite:///near.db", state_dir=state, base=tmp_path) as ledger:
        assert (tmp_path / "near.db").exists()


@pytest.mark.parametrize(
    "url", ["", "memory", "sqlite", "sqlite://", "sqlite:///", "sqlite://host/x", "postgresql://x"]
)
def test_any_other_url_is_a_configuration_error(tmp_path, url) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_ledger(url, state_dir=tmp_path)
    assert caught.value.code == "ledger_url"
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_durability_is_a_configuration_error(tmp_path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_ledger("sqlite:", state_dir=tmp_path, durability="eventual")
    assert caught.value.code == "ledger_durability"


def test_one_process_may_open_a_file_twice_and_keep_its_locks(tmp_path) -> None:
    """POSIX drops a process's locks on a file when any descriptor of it is closed, so opening must not open and close it."""
    first = open_ledger("sqlite:", state_dir=tmp_path)
    first.append(draft(number=0))
    with first._writer._database.lock, first._writer._database.reading("") as connection:
        connection.execute("BEGIN IMMEDIATE")
        second = open_ledger("sqlite:", state_dir=tmp_path)
        probe = (
            "import sqlite3, sys; d = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
            "try: d.execute('BEGIN IMMEDIATE')\n"
            "except sqlite3.OperationalError: sys.exit(7)"
        )
        import subprocess
        import sys

        done = subprocess.run(
            [sys.executable, "-c", probe, str(tmp_path / "ledger.db")], check=False
        )
        assert done.returncode == 7
        connection.execute("ROLLBACK")
    second.close()
    first.close()


def test_every_file_is_its_owners_alone_whatever_the_umask(tmp_path) -> None:
    state = tmp_path / "state"
    before = os.umask(0)
    try:
        with open_ledger("sqlite:", state_dir=state) as ledger:
            ledger.append(draft(who=ledger.pseudonym(ALICE), sealed={"a": "b"}))
            ledger._lookup.catch_up()
            modes = {path.name: path.stat().st_mode & 0o777 for path in Path(state).iterdir()}
    finally:
        os.umask(before)
    assert {"ledger.db", "ledger.db-wal", "ledger.db-shm", "subjects.db", "subjects.key"} <= set(
        modes
    )
    assert set(modes.values()) == {0o600}
    assert state.stat().st_mode & 0o777 == 0o700


# -- a file that goes away ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["deleted", "moved", "replaced"])
def test_a_file_that_goes_away_is_noticed_at_the_next_intent(tmp_path, what, make_identity) -> None:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db", state_dir=tmp_path)
    path, elsewhere = tmp_path / "ledger.db", tmp_path / "elsewhere.db"
    ran: list[int] = []

    @tool()
    def work(number: int) -> None:
        ran.append(number)

    identity = make_identity(ledger=ledger)
    with identity.on_behalf_of("user:alice", purpose="p"):
        work(0)
        elsewhere.hardlink_to(path)
        path.unlink()
        if what == "replaced":
            path.write_bytes(b"")
            time.sleep(0.06)  # which file it is, is looked at every 50 ms
        for number in (1, 2):
            with pytest.raises(LedgerError) as refusal:
                work(number)
            assert refusal.value.code == "ledger_moved"
        assert ran == [0]
        path.unlink(missing_ok=True)
        path.hardlink_to(elsewhere)
        work(3)
    assert ran == [0, 3]


async def test_a_cancelled_calls_outcome_comes_behind_its_intent(
    tmp_path, make_identity, monkeypatch
) -> None:
    """With durability "power" every commit is waited for in a thread."""
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db", state_dir=tmp_path, durability="power")
    identity = make_identity(ledger=ledger)

    @tool()
    async def work() -> None:
        await asyncio.sleep(0)

    seal_for = ledger._seal_for

    def slow(each: Draft) -> Any:
        time.sleep(
            0.005 if each.sealed is not None else 0
        )  # an intent has more to encrypt than an outcome
        return seal_for(each)

    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        await work()
        monkeypatch.setattr(ledger, "_seal_for", slow)
        for turns in range(30):
            task = asyncio.create_task(work())
            for _ in range(turns % 6):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.sleep(0.01)
    seen: dict[str, list[str]] = {}
    for record in session.records():
        if record.call_id is not None:
            seen.setdefault(record.call_id, []).append(record.kind)
    orders = {tuple(order) for order in seen.values()}
    assert all(order[0] == "call.intended" or order == ("call.denied",) for order in orders)
    assert all(len(order) <= 2 for order in orders)
    assert any(order[0] == "call.intended" for order in orders)


@pytest.mark.parametrize("durability", ["process", "power"])
async def test_a_call_that_is_cancelled_while_its_outcome_waits_has_one_outcome(
    tmp_path, make_identity, durability
) -> None:
    """Another thread holds the ledger; the outcome waits behind it, and nobody waits for the outcome any more."""
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = open_ledger(url, state_dir=tmp_path, durability=durability)
    identity = make_identity(ledger=ledger)
    lock = ledger._writer._database.lock

    held: list[bool] = []

    @tool()
    async def work() -> None:
        held.append(lock.acquire())

    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        for _ in range(5):
            held.clear()
            task = asyncio.create_task(work())
            for _ in range(60_000):
                if held and ledger._writer._waiting:
                    break
                await asyncio.sleep(0.001)
            task.cancel()
            await asyncio.sleep(0.02)
            lock.release()
            await asyncio.gather(task, return_exceptions=True)
    seen = Counter(
        record.call_id
        for record in session.records()
        if record.kind.startswith("call.") and record.kind != "call.intended"
    )
    assert set(seen.values()) == {1}


# -- what an operator asks by ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("many", [3, 200])
def test_references_that_begin_alike_are_found_in_the_index_and_in_what_is_not_in_it_yet(
    ledger, many
) -> None:
    who = ledger.pseudonym(ALICE)
    calls = sorted(f"call_{number:032x}" for number in range(many))
    for call in calls:
        ledger.append(Draft("call.completed", {}, pseudonym=who, session_id=SESSION, call_id=call))
    assert ledger.references("call_", limit=5) == calls[:5]
    assert ledger.references(calls[-1][:-1], limit=500) == [
        call for call in calls if call.startswith(calls[-1][:-1])
    ]
    assert ledger.references(SESSION[:8], limit=5) == [SESSION]
    assert ledger.references("call_%", limit=5) == []
    assert ledger.references("CALL_", limit=5) == []


def test_sessions_come_newest_first_with_nothing_else_between_them(ledger) -> None:
    who = ledger.pseudonym(ALICE)
    assert [*ledger.sessions()] == []
    opened = [f"ses_{number:032x}" for number in range(3)]
    for session in opened:
        for kind in ("session.opened", "session.closed"):
            ledger.append(Draft(kind, {}, pseudonym=who, session_id=session))
    assert [record.session_id for record in ledger.sessions()] == opened[::-1]
