# SPDX-License-Identifier: Apache-2.0
"""Killed processes, full disks, edited files, and whoever else would have the ledger say something that didn't happen."""

from __future__ import annotations

import ast
import os
import random
import resource
import shutil
import signal
import sqlite3
import struct
import threading
import time
import traceback
import warnings
from pathlib import Path

import pytest

import agent_identity
from agent_identity.errors import ConfigurationError, LedgerError
from agent_identity.flow import Draft
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.sqlite import writer
from agent_identity.provenance.trace import trace_of
from agent_identity.storage import sqlite as storage
from agent_identity.values import Principal, new_id

ROUNDS = int(os.environ.get("AGENT_IDENTITY_KILL_ROUNDS", "15"))
SESSION = "ses_" + "a" * 32
ALICE = Principal("alice-canary@example.com")


def intent(who=None, *, number=0, call=None, session=SESSION, ref=None, **sealed):
    public = {"tool": "pay", "resource": "https://bank.example", "decision": "permit"}
    public |= {"number": number, "agent": "urn:agent-identity:agent:bot"}
    call = call or new_id("call_")
    return Draft(
        "call.intended",
        public,
        sealed or None,
        pseudonym=who,
        session_id=session,
        call_id=call,
        ref=ref,
    )


def completed(call, number=0):
    return Draft("call.completed", {"number": number}, session_id=SESSION, call_id=call)


def opened(who):
    public = {"purpose": "close the books", "task": None, "agent": "urn:agent-identity:agent:bot"}
    public |= {"depth": 0, "parent": None, "txn": SESSION, "scopes": None, "resources": None}
    sealed = {"sub": ALICE.sub, "iss": ALICE.iss, "profile": "user", "trigger": None}
    return Draft("session.opened", public, sealed, pseudonym=who, session_id=SESSION)


@pytest.fixture
def ledger(tmp_path):
    with open_ledger("sqlite:", state_dir=tmp_path) as opened_one:
        yield opened_one


@pytest.fixture
def edit(tmp_path):
    """Run SQL on the ledger's file as somebody who has it."""

    def run(*statements):
        database = sqlite3.connect(tmp_path / "ledger.db")
        with database:
            answers = [database.execute(*statement).fetchall() for statement in statements]
        database.close()
        return answers[-1]

    return run


def fork(work) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(60)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


# -- F01, F02, F16: what a killed process leaves ---------------------------------------------------------------------


def append_until_killed(state: Path, pipe: int, *, upkeep: bool) -> None:
    """Append, and say each number once it is committed."""
    ledger = open_ledger("sqlite:", state_dir=state)
    who = ledger.pseudonym(ALICE)
    number = 0
    while True:
        number += 1
        ledger.append(intent(who, number=number, assertion="x" * random.randint(0, 3_000)))
        os.write(pipe, struct.pack("<q", number))
        if upkeep and number % 7 == 0:
            ledger._tend()


def first_of(pipe: int, count: int) -> bytes:
    """What came out of a pipe until so many numbers had come."""
    said = b""
    while len(said) < 8 * count and (chunk := os.read(pipe, 8 * count - len(said))):
        said += chunk
    return said


def acknowledged_by(pipe: int, early: bytes = b"") -> int:
    """The last number that came whole out of a pipe whose writer is dead; `early` came before."""
    said = bytearray(early)
    while chunk := os.read(pipe, 65_536):
        said += chunk
    os.close(pipe)
    numbers = [number for (number,) in struct.iter_unpack("<q", said[: len(said) // 8 * 8])]
    assert numbers == list(range(1, len(numbers) + 1))
    return len(numbers)


@pytest.mark.parametrize("writers", [1, 2])
def test_F01_nothing_acknowledged_is_lost_by_kill_9(tmp_path, writers) -> None:
    acknowledged = 0
    rounds = max(1, ROUNDS // writers)
    for number in range(rounds):
        children = []
        for _ in range(writers):
            readable, writable = os.pipe()
            child = fork(
                lambda pipe=writable, upkeep=bool(number % 3): append_until_killed(
                    tmp_path, pipe, upkeep=upkeep
                )
            )
            os.close(writable)
            children.append((child, readable))
        # killed after so many; in every other round perhaps before the first one
        early = first_of(children[0][1], random.randint(0 if number % 2 else 1, 60))
        for child, _ in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        pipes = [readable for _, readable in children]
        said = [acknowledged_by(pipes[0], early), *(acknowledged_by(pipe) for pipe in pipes[1:])]
        acknowledged += sum(said)
        with open_ledger("sqlite:", state_dir=tmp_path, clock=lambda: time.time() + 31) as ledger:
            report = ledger.verify()
            assert report.ok, report.first_bad
            kept: dict[str, list[int]] = {}
            for record in ledger.records():
                kept.setdefault(record.writer, []).append(record.body["number"])
                last = record
            assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in kept.values())
            newest = sorted(len(numbers) for numbers in list(kept.values())[-writers:])
            if all(said):
                assert all(kept >= told for kept, told in zip(newest, sorted(said), strict=True))
            assert report.records >= acknowledged
            if report.records:
                assert trace_of(ledger, last.call_id).outcome == "unknown"
        database = sqlite3.connect(tmp_path / "ledger.db")
        assert database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        database.close()
    assert acknowledged > 0


def test_F02_of_a_torn_tail_only_the_tail_is_dropped(ledger, tmp_path) -> None:
    for number in range(20):
        ledger.append(intent(number=number))
    whole = tmp_path / "ledger.db-wal"
    for cut in (1, 100, 2_000):
        copy = tmp_path / f"copy-{cut}"
        copy.mkdir(mode=0o700)
        shutil.copy(tmp_path / "ledger.db", copy)
        torn = whole.read_bytes()[:-cut]
        (copy / "ledger.db-wal").write_bytes(torn)
        with open_ledger("sqlite:", state_dir=copy) as after:
            report = after.verify()
            assert (report.ok, report.records) == (True, 19)
            after.append(intent(number=99))
            assert after.verify().writers == 2


def test_F16_a_call_whose_process_died_reads_unknown_and_never_completed(tmp_path) -> None:
    call = new_id("call_")

    def work() -> None:
        ledger = open_ledger("sqlite:", state_dir=tmp_path)
        ledger.append(intent(call=call))
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(fork(work), 0)
    now = [time.time()]
    with open_ledger("sqlite:", state_dir=tmp_path, clock=lambda: now[0]) as ledger:
        assert trace_of(ledger, call).outcome is None
        now[0] += 31
        trace = trace_of(ledger, call)
        assert (trace.decision, trace.outcome) == ("permit", "unknown")
        assert trace.calls[0]["ended"] is None
        assert [record.kind for record in ledger.records()] == ["call.intended"]


# -- F03, F04, F06: a disk or a neighbour in the way -----------------------------------------------------------------


def test_F03_a_full_disk_is_an_error_until_there_is_space_again(tmp_path) -> None:
    def work() -> None:
        ledger = open_ledger("sqlite:", state_dir=tmp_path)
        kept = list(range(20))
        for number in kept:
            ledger.append(intent(number=number))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        full = (tmp_path / "ledger.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, hard))
        for write in (lambda: ledger.append(intent()), ledger.probe, ledger.probe):
            with pytest.raises(LedgerError) as caught:
                write()
            assert caught.value.code == "ledger_unwritable"
            assert not ledger.healthy
        assert [record.body["number"] for record in ledger.records()] == kept
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        ledger.probe()
        assert ledger.healthy
        ledger.append(intent(number=-1))
        assert [record.body["number"] for record in ledger.records()] == [*kept, -1]
        assert ledger.verify().ok
        ledger.close()

    assert os.waitpid(fork(work), 0)[1] == 0
    with open_ledger("sqlite:", state_dir=tmp_path) as ledger:
        assert ledger.verify().ok


def test_F03_a_file_turned_read_only_is_an_error_until_it_can_be_written(ledger) -> None:
    ledger.append(intent(number=0))
    ledger._writer._connection.execute("PRAGMA query_only = ON")
    for write in (lambda: ledger.append(intent(number=1)), ledger.probe):
        with pytest.raises(LedgerError) as caught:
            write()
        assert caught.value.code == "ledger_unwritable"
    assert not ledger.healthy
    ledger._writer._connection.execute("PRAGMA query_only = OFF")
    ledger.append(intent(number=2))
    assert ledger.healthy
    assert [record.body["number"] for record in ledger.records()] == [0, 2]
    assert ledger.verify().ok


@pytest.mark.parametrize("committed", [False, True], ids=["lost", "committed all the same"])
@pytest.mark.parametrize(
    ("durability", "step", "last"),
    [("process", "INSERT", True), ("power", "INSERT", False), ("power", "COMMIT", True)],
)
def test_F03_an_input_output_error_at_any_step_leaves_the_chain_whole(
    tmp_path, durability, step, last, committed
) -> None:
    """Also when the disk says no to a commit that it has made: the next append goes on from what is really there."""
    with open_ledger("sqlite:", state_dir=tmp_path, durability=durability) as ledger:
        ledger.append(intent(number=0))
        execute = ledger._writer._execute

        def failing(statement, *values):
            if statement.strip().startswith(step):
                if committed:
                    execute(statement, *values)
                error = sqlite3.OperationalError("disk I/O error")
                error.sqlite_errorcode = sqlite3.SQLITE_IOERR
                raise error
            return execute(statement, *values)

        ledger._writer._execute = failing
        with pytest.raises(LedgerError) as caught:
            ledger.append(intent(number=1))
        assert caught.value.code == "ledger_unwritable"
        assert not ledger.healthy
        neighbour = sqlite3.connect(tmp_path / "ledger.db", timeout=0, isolation_level=None)
        neighbour.execute("BEGIN IMMEDIATE")  # nobody else is kept waiting
        neighbour.execute("ROLLBACK")
        neighbour.close()
        ledger._writer._execute = execute
        ledger.append(intent(number=2))
        assert ledger.verify().ok
        kept = [record.body["number"] for record in ledger.records()]
        assert kept == ([0, 1, 2] if committed and last else [0, 2])


def test_F04_a_locked_file_is_waited_for_and_then_an_error(ledger, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.2)
    ledger.append(intent(number=0))
    other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for write in (lambda: ledger.append(intent(number=1)), ledger.probe):
        with pytest.raises(LedgerError) as caught:
            write()
        assert caught.value.code == "ledger_busy"
    timer = threading.Timer(0.05, lambda: None)
    timer.start()
    timer.join()
    other.execute("ROLLBACK")
    other.close()
    ledger.append(intent(number=2))
    assert [record.body["number"] for record in ledger.records()] == [0, 2]


def test_F04_a_thread_that_holds_the_ledger_is_waited_for_and_then_an_error(
    ledger, monkeypatch
) -> None:
    monkeypatch.setattr(writer, "BUSY_SECONDS", 0.1)
    with ledger._writer._database.lock, pytest.raises(LedgerError) as caught:
        ledger.append(intent())
    assert caught.value.code == "ledger_busy"


def test_F04_every_write_transaction_begins_immediate() -> None:
    """A deferred read that turns into a write fails at once, whatever the timeout."""
    begins = [
        (path.name, node.value)
        for path in Path(agent_identity.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.strip().startswith("BEGIN")
    ]
    assert ("sqlite.py", "BEGIN IMMEDIATE") in begins
    assert {text for _, text in begins} == {"BEGIN IMMEDIATE"}


def test_F06_no_number_is_used_twice_however_many_write(ledger, edit) -> None:
    ledger.append(intent())

    def work() -> None:
        threads = [
            threading.Thread(target=lambda: [ledger.append(intent()) for _ in range(60)])
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    children = [fork(work) for _ in range(2)]
    work()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert edit(["SELECT count(*) FROM records GROUP BY writer, seq HAVING count(*) > 1"]) == []
    report = ledger.verify()
    assert (report.ok, report.records, report.writers) == (True, 541, 3)


# -- F05, F13: an edited file ----------------------------------------------------------------------------------------

COLUMNS = "writer, seq, kind, session, call, trace, span, ref, alias, body, sealed, hash"
EDITS = {
    "a record deleted": ["DELETE FROM records WHERE seq = 5"],
    "a record inserted again": [
        "UPDATE records SET id = -id - 1 WHERE seq > 4",
        "UPDATE records SET id = -id WHERE id < 0",
        f"INSERT INTO records SELECT id + 1, {COLUMNS} FROM records WHERE seq = 4",  # noqa: S608 - the attacker's
    ],
    "two records swapped": [
        "UPDATE records SET id = -1 WHERE seq = 5",
        "UPDATE records SET id = id - 1 WHERE seq = 6",
        "UPDATE records SET id = (SELECT id + 1 FROM records WHERE seq = 6) WHERE seq = 5",
    ],
    "the contents of two records swapped": [
        "UPDATE records SET body = (SELECT body FROM records b WHERE b.seq = 11 - records.seq) WHERE seq IN (5, 6)"
    ],
    "the type of a body and its content": ["UPDATE records SET body = 'x' || body WHERE seq = 5"],
    "a number": ["UPDATE records SET seq = 'x' WHERE seq = 5"],
    "a column": ["UPDATE records SET session = 'ses_other' WHERE seq = 5"],
    "a kind": ["UPDATE records SET kind = 'call.completed' WHERE seq = 5"],
    "a text that is no text": ["UPDATE records SET call = CAST(x'ff00' AS TEXT) WHERE seq = 5"],
    "a sealed part that wasn't there": ["UPDATE records SET sealed = x'00' WHERE seq = 5"],
}


@pytest.mark.parametrize("column", ["body", "hash", "sealed"])
def test_F05_a_flipped_bit_is_found_and_its_record_named(ledger, edit, column) -> None:
    who = ledger.pseudonym(ALICE)
    for number in range(10):
        ledger.append(intent(who, number=number, assertion="eyJ.a.b"))
    ((value,),) = edit([f"SELECT {column} FROM records WHERE seq = 5"])  # noqa: S608 - from the line above
    for place in (0, len(value) // 2, len(value) - 1):
        flipped = value[:place] + bytes([value[place] ^ 4]) + value[place + 1 :]
        edit([f"UPDATE records SET {column} = ? WHERE seq = 5", (flipped,)])  # noqa: S608 - as above
        assert ledger.verify().first_bad.seq == 5
    edit([f"UPDATE records SET {column} = ? WHERE seq = 5", (value,)])  # noqa: S608 - as above
    assert ledger.verify().ok


@pytest.mark.parametrize("what", EDITS)
def test_F05_an_edit_is_found_and_the_first_bad_record_named(ledger, edit, what) -> None:
    who = ledger.pseudonym(ALICE)
    for number in range(10):
        ledger.append(intent(who, number=number, assertion="eyJ.a.b"))
    (record, *_) = ledger.records()
    assert ledger.verify().ok
    edit(*([statement] for statement in EDITS[what]))
    report = ledger.verify()
    assert not report.ok
    bad = report.first_bad
    wanted = 4 if what == "a record inserted again" else 5
    assert (bad.writer, bad.seq) == (record.writer, wanted)
    assert report.to_dict()["first_bad"]["reason"] == bad.reason != ""


def test_F05_a_writer_renamed_is_found(ledger, edit) -> None:
    ledger.append(intent())
    edit(["UPDATE writers SET name = 'wrt_other'"])
    assert ledger.verify().first_bad.seq == 1


def test_F05_an_edit_with_its_hash_made_to_fit_breaks_the_next_link(ledger, edit) -> None:
    from agent_identity.provenance.chain import hash_link

    calls = [new_id("call_") for _ in range(3)]
    for call in calls:
        ledger.append(intent(call=call))
    ((before,),) = edit(["SELECT hash FROM records WHERE seq = 1"])
    ((body,),) = edit(["SELECT body FROM records WHERE seq = 2"])
    forged = body.replace(b'"pay"', b'"get"')
    values = (forged, hash_link(before, forged))
    edit(["UPDATE records SET body = ?, hash = ? WHERE seq = 2", values])
    assert ledger.verify().first_bad.seq == 3
    trace = trace_of(ledger, calls[1])
    assert not trace.verified
    assert "record 3" in trace.unsound
    assert "NOT VERIFIED" in str(trace)


def test_F05_bits_flipped_anywhere_in_the_file_change_no_answer_in_silence(tmp_path) -> None:
    """Ours: after a flip the ledger is unsound, can't be read, or reads exactly as before."""
    with open_ledger("sqlite:", state_dir=tmp_path / "whole") as ledger:
        for number in range(40):
            ledger.append(intent(number=number))
        told = [record.to_dict() for record in ledger.records()]
    content = (tmp_path / "whole" / "ledger.db").read_bytes()
    found = 0
    for number in range(60):
        state = tmp_path / f"flip-{number}"
        state.mkdir(mode=0o700)
        flipped = bytearray(content)
        flipped[random.Random(number).randrange(100, len(content))] ^= 1 << number % 8
        (state / "ledger.db").write_bytes(flipped)
        try:
            with open_ledger("sqlite:", state_dir=state) as ledger:
                if not ledger.verify().ok:
                    found += 1
                    continue
                assert [record.to_dict() for record in ledger.records()] == told
        except (LedgerError, ConfigurationError):
            found += 1
    assert found > 20


def test_F05_a_cut_tail_needs_a_checkpoint_and_the_report_has_none(ledger, edit) -> None:
    """Rule 16: hash chains show edits inside; truncation shows only against a checkpoint kept elsewhere."""
    for number in range(5):
        ledger.append(intent(number=number))
    edit(["DELETE FROM records WHERE seq > 3"])
    report = ledger.verify()
    assert (report.ok, report.records, report.checkpoint) == (True, 3, None)


def test_F05_a_trace_of_an_edited_call_is_not_verified(ledger, edit) -> None:
    ledger.append(opened(ledger.pseudonym(ALICE)))
    call = new_id("call_")
    ledger.append(intent(ledger.pseudonym(ALICE), call=call, assertion="eyJ.a.b"))
    ledger.append(completed(call))
    assert trace_of(ledger, call).verified
    edit(
        [
            "UPDATE records SET body = CAST(replace(body, '\"pay\"', '\"get\"') AS BLOB) WHERE seq = 2"
        ]
    )
    trace = trace_of(ledger, call)
    assert (trace.verified, trace.to_dict()["verified"]) == (False, False)
    assert "record 2" in trace.unsound


@pytest.mark.parametrize("deleted", [1, 3])
def test_F05_a_trace_beside_a_deleted_record_is_not_verified(ledger, edit, deleted) -> None:
    calls = [new_id("call_") for _ in range(4)]
    for call in calls:
        ledger.append(intent(call=call))
    ledger._lookup.catch_up()
    edit(["DELETE FROM records WHERE seq = ?", (deleted,)])
    trace = trace_of(ledger, calls[1])
    assert not trace.verified
    assert "missing" in trace.unsound


def test_F13_ciphertexts_swapped_between_subjects_or_places_open_nowhere(ledger, edit) -> None:
    alice, bob = ledger.pseudonym(ALICE), ledger.pseudonym(Principal("bob"))
    calls = [new_id("call_") for _ in range(3)]
    for call, who in zip(calls, (alice, bob, alice), strict=True):
        ledger.append(intent(who, call=call, assertion=f"assertion of {call}"))
    rows = dict(edit(["SELECT seq, sealed FROM records"]))
    for one, other in ((1, 2), (1, 3)):
        edit(
            ["UPDATE records SET sealed = ? WHERE seq = ?", (rows[other], one)],
            ["UPDATE records SET sealed = ? WHERE seq = ?", (rows[one], other)],
        )
        for place in (one, other):
            (record,) = ledger.find(calls[place - 1])
            assert (record.sealed, record.erased) == (None, False)
            assert not trace_of(ledger, calls[place - 1]).verified
        assert ledger.verify().first_bad.seq == 1
        edit(*(["UPDATE records SET sealed = ? WHERE seq = ?", (rows[n], n)] for n in rows))
    assert ledger.verify().ok


def test_F13_after_an_erasure_the_ledger_verifies_and_the_trace_says_erased(tmp_path) -> None:
    call = new_id("call_")
    with open_ledger("sqlite:", state_dir=tmp_path) as ledger:
        who = ledger.pseudonym(ALICE)
        ledger.append(opened(who))
        ledger.append(intent(who, call=call, assertion="eyJ.a.b"))
        ledger.append(completed(call))
    with open_ledger("sqlite:", state_dir=tmp_path) as elsewhere:
        elsewhere.subjects.erase(elsewhere.subjects.find(ALICE))
    with open_ledger("sqlite:", state_dir=tmp_path) as ledger:
        assert ledger.verify().ok
        trace = trace_of(ledger, call)
        assert trace.to_dict()["principal"] == {"sub": None, "pseudonym": who, "erased": True}
        assert (trace.erased, trace.verified, trace.outcome) == (True, True, "completed")
        assert trace.unverifiable == ("assertions and approvals", "the principal")
        assert "erased" in str(trace)
        assert ALICE.sub not in str(trace)


# -- F10, F11, F15, H06 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, 99, -1])
def test_F10_a_schema_of_another_version_is_refused_and_left_alone(tmp_path, version) -> None:
    with open_ledger("sqlite:", state_dir=tmp_path) as ledger:
        ledger.append(intent())
    database = sqlite3.connect(tmp_path / "ledger.db")
    database.execute(f"PRAGMA user_version = {version}")
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    before = (tmp_path / "ledger.db").read_bytes()
    with pytest.raises(ConfigurationError) as caught:
        open_ledger("sqlite:", state_dir=tmp_path)
    assert caught.value.code == "ledger_schema"
    assert (tmp_path / "ledger.db").read_bytes() == before


def test_F10_a_database_of_another_program_is_refused_and_left_alone(tmp_path) -> None:
    database = sqlite3.connect(tmp_path / "ledger.db")
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    before = (tmp_path / "ledger.db").read_bytes()
    with pytest.raises(ConfigurationError):
        open_ledger("sqlite:", state_dir=tmp_path)
    assert (tmp_path / "ledger.db").read_bytes() == before


def test_F10_a_file_that_is_no_database_is_a_ledger_error(tmp_path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"not a database, and long enough to be looked at" * 100)
    with pytest.raises(LedgerError) as caught:
        open_ledger("sqlite:", state_dir=tmp_path)
    assert caught.value.code == "ledger_unreadable"


def test_F11_files_and_folder_open_to_others_are_closed_and_that_is_said(tmp_path, caplog) -> None:
    state = tmp_path / "state"
    open_ledger("sqlite:", state_dir=state).close()
    state.chmod(0o755)
    for path in state.iterdir():
        path.chmod(0o644)
    open_ledger("sqlite:", state_dir=state).close()
    assert state.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}
    assert "ledger.db was readable or writable by others" in caplog.text


@pytest.mark.parametrize("name", ["ledger.db", "subjects.db", "subjects.key"])
def test_F11_a_link_in_place_of_a_file_is_refused(tmp_path, name) -> None:
    state, elsewhere = tmp_path / "state", tmp_path / "elsewhere"
    state.mkdir(mode=0o700)
    elsewhere.write_bytes(b"")
    (state / name).symlink_to(elsewhere)
    with pytest.raises(ConfigurationError) as caught:
        open_ledger("sqlite:", state_dir=state)
    assert caught.value.code == "state_not_private"
    assert elsewhere.read_bytes() == b""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_F11_a_file_of_somebody_else_is_refused(tmp_path) -> None:
    open_ledger("sqlite:", state_dir=tmp_path).close()
    os.chown(tmp_path / "ledger.db", 12_345, -1)
    with pytest.raises(ConfigurationError) as caught:
        open_ledger("sqlite:", state_dir=tmp_path)
    assert caught.value.code == "state_not_private"


def test_F11_a_folder_that_others_can_write_to_is_no_place_for_a_ledger(tmp_path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(ConfigurationError) as caught:
        open_ledger(f"sqlite:///{shared}/ledger.db", state_dir=tmp_path / "state")
    assert caught.value.code == "state_not_private"
    assert list(shared.iterdir()) == []


HOSTILE = ["' OR 1=1 --", 'x"; DROP TABLE records; --', "a\0b", "%", "_", "é" * 5_000, "\\", "?1"]


@pytest.mark.parametrize("ref", HOSTILE)
def test_F15_an_id_is_a_value_and_never_a_query(ledger, ref) -> None:
    ledger.append(intent(number=1))
    assert ledger.find(ref) == []
    ledger.append(intent(number=2, ref=ref))
    assert [record.body["number"] for record in ledger.find(ref)] == [2]
    ledger._lookup.catch_up()
    assert [record.body["number"] for record in ledger.find(ref)] == [2]
    assert ledger.find(ref[:1]) == ([] if len(ref) > 1 else ledger.find(ref))
    assert ledger.verify().ok


def test_H06_no_file_shows_a_person_an_assertion_or_a_digest_of_arguments(ledger, tmp_path) -> None:
    who = ledger.pseudonym(ALICE)
    ledger.append(opened(who))
    digest = "sha-256:n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg"
    ledger.append(intent(who, assertion="eyJhcmdz.canary-assertion", args_hash=digest))
    ledger._lookup.catch_up()
    ledger._lookup.checkpoint()
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert who.encode() in files["ledger.db"]
    for name, content in files.items():
        for canary in (b"alice-canary", b"canary-assertion", digest.encode(), digest[8:].encode()):
            assert canary not in content, name
