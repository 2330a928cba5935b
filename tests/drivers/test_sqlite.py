# SPDX-License-Identifier: Apache-2.0
"""Transactions of the ledger's and the authority's databases, where an interrupt left one open."""

from __future__ import annotations

from agent_identity.storage.sqlite import connect, roll_back, transaction


def test_a_transaction_that_an_interrupt_left_behind_takes_no_later_one_along() -> None:
    """An interrupt between the start of `with` and its body leaves it to the garbage collector, at any time later."""
    database = connect(None)
    database.execute("CREATE TABLE t (x)")
    left_behind = transaction(database)
    left_behind.__enter__()
    roll_back(database)  # as the next use does
    with transaction(database):
        database.execute("INSERT INTO t VALUES (1)")
        del left_behind
        database.execute("INSERT INTO t VALUES (2)")
    assert database.execute("SELECT count(*) FROM t").fetchone() == (2,)
    database.close()
