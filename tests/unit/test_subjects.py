# SPDX-License-Identifier: Apache-2.0
"""Pseudonyms and keys by subject: random, found again, and gone for good once erased."""

from __future__ import annotations

import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from agent_identity.errors import ConfigurationError, LedgerError, VerificationError
from agent_identity.keys.sealing import Sealer
from agent_identity.provenance import pseudonyms as module
from agent_identity.provenance.pseudonyms import MemoryShelf, SqliteShelf, Subjects, master_key
from agent_identity.values import Principal

ALICE = Principal("alice-canary", iss="https://idp.example")
BOB = Principal("bob")


@pytest.fixture(params=["memory", "sqlite"])
def shelf(request, tmp_path):
    kept = (
        MemoryShelf()
        if request.param == "memory"
        else SqliteShelf(tmp_path / "subjects.db", durability="process")
    )
    yield kept
    kept.close()


@pytest.fixture
def subjects(shelf):
    return Subjects(shelf, b"m" * 32)


def test_a_principal_keeps_its_pseudonym_and_nobody_shares_it(subjects) -> None:
    alice = subjects.pseudonym(ALICE)
    assert re.fullmatch(r"psn_[0-9a-f]{32}", alice)
    assert subjects.pseudonym(ALICE) == alice
    assert subjects.pseudonym(BOB) != alice


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Principal("x#y"), Principal("y", iss="x")),
        (Principal("alice"), Principal("alice", profile="service")),
        (Principal("alice"), Principal("alice", iss="https://idp.example")),
    ],
)
def test_principals_that_read_alike_are_told_apart(subjects, one, other) -> None:
    assert subjects.pseudonym(one) != subjects.pseudonym(other)


def test_pseudonyms_are_random_and_not_derived_from_the_name(tmp_path) -> None:
    first, second = (Subjects(MemoryShelf(), b"m" * 32) for _ in range(2))
    assert first.pseudonym(ALICE) != second.pseudonym(ALICE)


def test_a_pseudonym_leads_back_to_its_principal(subjects) -> None:
    for principal in (ALICE, BOB, Principal("nightly", profile="trigger")):
        assert subjects.principal(subjects.pseudonym(principal)) == principal
    assert subjects.principal("psn_of-nobody") is None


def test_looking_for_a_stranger_makes_no_pseudonym(subjects) -> None:
    assert subjects.find(ALICE) is None
    alice = subjects.pseudonym(ALICE)
    assert subjects.find(ALICE) == alice


def test_what_is_sealed_for_a_subject_opens_for_it_and_its_context_alone(subjects) -> None:
    alice, bob = subjects.pseudonym(ALICE), subjects.pseudonym(BOB)
    sealed = subjects.sealer(alice).seal(b"canary", b"here")
    assert b"canary" not in sealed
    assert subjects.make_unseal()(alice, sealed, b"here") == b"canary"
    for pseudonym, context in ((alice, b"there"), (bob, b"here")):
        with pytest.raises(VerificationError) as caught:
            subjects.make_unseal()(pseudonym, sealed, context)
        assert caught.value.code == "seal_broken"


def test_the_same_text_is_never_sealed_alike(subjects) -> None:
    alice = subjects.pseudonym(ALICE)
    assert len({subjects.sealer(alice).seal(b"x", b"") for _ in range(50)}) == 50


def test_erasure_takes_key_and_name(subjects) -> None:
    alice = subjects.pseudonym(ALICE)
    sealed = subjects.sealer(alice).seal(b"canary", b"")
    assert subjects.erase(alice)
    assert subjects.make_unseal()(alice, sealed, b"") is None
    assert subjects.principal(alice) is None
    assert subjects.find(ALICE) is None
    with pytest.raises(LedgerError) as caught:
        subjects.sealer(alice).seal(b"more", b"")
    assert caught.value.code == "subject_erased"
    assert not subjects.erase(alice)


def test_who_comes_back_after_an_erasure_is_somebody_new(subjects) -> None:
    before = subjects.pseudonym(ALICE)
    subjects.erase(before)
    assert subjects.pseudonym(ALICE) != before


def test_an_erasure_elsewhere_counts_at_once_for_all_that_is_read(shelf) -> None:
    here, elsewhere = Subjects(shelf, b"m" * 32), Subjects(shelf, b"m" * 32)
    alice = here.pseudonym(ALICE)
    sealed = here.sealer(alice).seal(b"canary", b"")
    elsewhere.erase(alice)
    assert here.make_unseal()(alice, sealed, b"") is None
    assert here.principal(alice) is None
    assert here.find(ALICE) is None


def test_a_key_evicted_from_the_cache_is_found_again(subjects, monkeypatch) -> None:
    monkeypatch.setattr(module, "_SEALERS", 2)
    everybody = [subjects.pseudonym(Principal(f"p{n}")) for n in range(8)]
    sealed = {who: subjects.sealer(who).seal(who.encode(), b"") for who in everybody * 2}
    assert all(
        subjects.make_unseal()(who, text, b"") == who.encode() for who, text in sealed.items()
    )
    assert len(subjects._sealers) <= 2


def test_many_who_ask_at_once_get_one_pseudonym(subjects) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = set(pool.map(lambda _: subjects.pseudonym(ALICE), range(64)))
    assert len(answers) == 1


def test_nothing_in_the_files_names_a_subject_or_shows_a_key(tmp_path) -> None:
    shelf = SqliteShelf(tmp_path / "subjects.db", durability="process")
    subjects = Subjects(shelf, b"m" * 32)
    alice = subjects.pseudonym(ALICE)
    subjects.sealer(alice).seal(b"x", b"")
    key = subjects._unwrap(shelf.by_pseudonym(alice))
    on_disk = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    shelf.close()
    assert alice.encode() in on_disk
    assert b"alice-canary" not in on_disk
    assert key not in on_disk


def test_an_erased_row_leaves_no_bytes_behind(tmp_path) -> None:
    shelf = SqliteShelf(tmp_path / "subjects.db", durability="process")
    subjects = Subjects(shelf, b"m" * 32)
    alice = subjects.pseudonym(ALICE)
    wrapped = shelf.by_pseudonym(alice).key
    assert any(wrapped in path.read_bytes() for path in tmp_path.iterdir())
    subjects.erase(alice)
    assert not any(wrapped in path.read_bytes() for path in tmp_path.iterdir())
    shelf.close()


def test_another_master_key_opens_nothing(shelf) -> None:
    alice = Subjects(shelf, b"m" * 32).pseudonym(ALICE)
    stranger = Subjects(shelf, b"n" * 32)
    assert stranger.find(ALICE) is None
    with pytest.raises(VerificationError):
        stranger.principal(alice)


def test_the_master_key_is_made_once_and_is_its_owners_alone(tmp_path) -> None:
    path = tmp_path / "subjects.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: master_key(path), range(16)))
    assert keys == {path.read_bytes()}
    assert len(path.read_bytes()) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["subjects.key"]


def test_a_file_that_is_no_key_is_refused(tmp_path) -> None:
    (tmp_path / "subjects.key").write_bytes(b"short")
    with pytest.raises(ConfigurationError) as caught:
        master_key(tmp_path / "subjects.key")
    assert caught.value.code == "key_unusable"


def test_a_sealer_shows_nothing_and_stays_in_its_process() -> None:
    sealer = Sealer(b"k" * 32)
    assert repr(sealer) == "<Sealer>"
    with pytest.raises(TypeError):
        pickle.dumps(sealer)


@pytest.mark.parametrize("sealed", [b"", b"short", bytes(12), bytes(27)])
def test_a_text_too_short_to_be_sealed_is_refused(sealed) -> None:
    with pytest.raises(VerificationError):
        Sealer(b"k" * 32).unseal(sealed, b"")
