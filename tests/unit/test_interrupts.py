# SPDX-License-Identifier: Apache-2.0
"""An interrupt is told from a failure, and passes every seam that wraps failures."""

from __future__ import annotations

import functools
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from agent_identity import DeniedError, current_session, tool
from agent_identity.errors import is_interrupt


class SoftTimeLimitError(Exception):
    """What a task queue raises from its alarm."""


def expired(signum: int, frame: Any, text: str = "time is up") -> None:
    raise SoftTimeLimitError(text)


class Expired:
    def __call__(self, signum: int, frame: Any) -> None:
        raise SoftTimeLimitError

    def method(self, signum: int, frame: Any) -> None:
        raise SoftTimeLimitError


@pytest.fixture(
    params=[expired, functools.partial(expired, text="late"), Expired(), Expired().method]
)
def alarm(request: pytest.FixtureRequest) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, request.param)
    yield
    signal.signal(signal.SIGALRM, before)


@tool()
def who() -> str:
    return current_session().principal.sub


@pytest.mark.usefixtures("alarm")
def test_what_a_signal_handler_raises_is_an_interrupt() -> None:
    with pytest.raises(SoftTimeLimitError) as raised:
        signal.raise_signal(signal.SIGALRM)
    assert is_interrupt(raised.value)
    assert not is_interrupt(SoftTimeLimitError())
    assert is_interrupt(KeyboardInterrupt())


@pytest.mark.usefixtures("alarm")
def test_an_alarm_inside_a_policy_passes_through_and_the_tool_does_not_run(make_identity) -> None:
    alarms = [True]

    def policy(request: object) -> bool:
        if alarms:
            alarms.pop()
            signal.raise_signal(signal.SIGALRM)
        return True

    identity = make_identity(policy=policy)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(SoftTimeLimitError):
            who()
        assert session.records()[-1].body["code"] == "interrupted"
        assert who() == "alice"


def test_a_policy_that_raises_by_itself_still_denies(make_identity) -> None:
    def policy(request: object) -> bool:
        raise SoftTimeLimitError

    identity = make_identity(policy=policy)
    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as refusal:
        who()
    assert refusal.value.code == "policy_failed"


@pytest.mark.usefixtures("alarm")
def test_an_alarm_inside_a_span_processor_passes_through_and_the_outcome_is_on_record(
    make_identity,
) -> None:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

    from agent_identity.provenance import spans

    class Late(SpanProcessor):
        def on_end(self, span: object) -> None:
            signal.raise_signal(signal.SIGALRM)

    provider = TracerProvider()
    provider.add_span_processor(Late())
    identity = make_identity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "_tracer", provider.get_tracer("test"))
        with identity.on_behalf_of("user:alice", purpose="p") as session:
            with pytest.raises(SoftTimeLimitError):
                who()
            assert session.records()[-1].kind == "call.completed"


def test_an_interrupt_at_the_first_instruction_of_exit_ends_the_session_all_the_same(
    bot: Any,
) -> None:
    import sys

    from agent_identity import NoSessionError

    def interrupt(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == "__exit__":
            sys.settrace(None)
            raise KeyboardInterrupt

    session = bot.on_behalf_of("user:alice", purpose="p")
    with pytest.raises(KeyboardInterrupt), bot.on_behalf_of("user:erin", purpose="p"):  # noqa: PT012
        sys.settrace(interrupt)
        with session:
            assert who() == "alice"
    sys.settrace(None)
    assert not session.is_open
    with pytest.raises(NoSessionError):
        who()
    with pytest.raises(DeniedError) as refusal:
        session.delegate("helper")
    assert refusal.value.code == "session_ended"
    with bot.on_behalf_of("user:bob", purpose="p"):
        assert who() == "bob"
