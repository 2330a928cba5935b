# SPDX-License-Identifier: Apache-2.0
"""The threads that wait for disks, keyrings and people."""

from __future__ import annotations

import os
import threading
import time
from contextvars import ContextVar

import pytest

from agent_identity.errors import CredentialUnavailableError
from agent_identity.http.waiting import wait_within

_here: ContextVar[str] = ContextVar("here", default="nowhere")


def soon() -> float:
    return time.monotonic() + 60


def test_one_thread_serves_one_caller_after_another() -> None:
    wait_within(soon(), int)
    time.sleep(0.05)  # it has put itself among the idle ones
    first = wait_within(soon(), threading.get_ident)
    time.sleep(0.05)
    assert wait_within(soon(), threading.get_ident) == first


def test_what_is_looked_up_runs_in_the_callers_context() -> None:
    token = _here.set("here")
    assert wait_within(soon(), _here.get) == "here"
    _here.reset(token)
    assert wait_within(float("inf"), _here.get) == "nowhere"


def test_an_error_of_the_work_is_the_callers() -> None:
    def fails() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        wait_within(soon(), fails)
    assert wait_within(soon(), int) == 0


def test_a_thread_that_hangs_costs_its_caller_the_deadline_and_nobody_else() -> None:
    is_over = threading.Event()
    with pytest.raises(CredentialUnavailableError) as caught:
        wait_within(time.monotonic() + 0.1, lambda: is_over.wait(60))
    assert caught.value.code == "deadline_exceeded"
    assert wait_within(soon(), int) == 0
    is_over.set()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_threads_of_its_own() -> None:
    wait_within(soon(), int)
    time.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        os._exit(wait_within(soon(), int))
    assert os.waitpid(pid, 0)[1] == 0
