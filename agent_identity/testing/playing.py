# SPDX-License-Identifier: Apache-2.0
"""Flows without I/O: a test says what the world answers, and looks at what was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from agent_identity.flow import Append, HttpRequest, run

if TYPE_CHECKING:
    from agent_identity.errors import AgentIdentityError
    from agent_identity.flow import Answer, Ask, Flow, HttpResponse

__all__ = ["play"]

T = TypeVar("T")


def play(
    flow: Flow[T], *answers: HttpResponse | AgentIdentityError, asks: list[Ask] | None = None
) -> T:
    """Drive a flow with these answers to its HTTP requests, in order; an error among them is raised into the flow.

    What is shared is fetched by playing its own flow, records are taken and forgotten. `asks` collects all that was asked.

    Raises:
        AssertionError: it asked for more than there are answers, or for less.
    """
    left = list(answers)

    def world(ask: Ask) -> Answer:
        if asks is not None:
            asks.append(ask)
        if isinstance(ask, Append):
            return None
        if not isinstance(ask, HttpRequest):
            return run(ask.start(), world)
        if not left:
            raise AssertionError(f"the flow asks for one more exchange: {ask}")
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    value = run(flow, world)
    if left:
        raise AssertionError(f"the flow left {len(left)} answers unasked for")
    return value
