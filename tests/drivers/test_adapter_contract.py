# SPDX-License-Identifier: Apache-2.0
"""The adapter contract under the smallest framework there could be, which hands functions' results to a model as text."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from pydantic import TypeAdapter, validate_call

from agent_identity import AgentIdentity, ConfigurationError, DeniedError
from agent_identity.adapters import Rules, Tool, refusal_text, scrubs, within, wrap
from agent_identity.testing.contract import Contract, Result, ToolCall


class PauseError(Exception):
    """The framework's interrupt."""


class SmallDriver:
    def __init__(self, identity: AgentIdentity) -> None:
        self.shown: list[str] = []

    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> Any:
        name = function.__name__
        rules = Rules({} if rule is None else {name: rule}, guard="SmallDriver")
        found = rules.describe(
            name, describes_itself=False, has_resource=False, error=ConfigurationError
        )
        tool = Tool(name, pauses=(PauseError,), **(found or {}))
        return validate_call(scrubs(wrap(function, tool)))

    def schema(self, tool: Any) -> Mapping[str, Any]:
        parameters = TypeAdapter(tool).json_schema()
        return {"name": tool.__name__, "description": tool.__doc__, "parameters": parameters}

    def run(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        return [result for call in calls for result in self.turn(tool, call)]

    def turn(self, tool: Any, call: ToolCall) -> Iterator[Result]:
        with within(None, tool_call_id=call.id):
            try:
                yield self.result(call, tool(**call.arguments))
            except DeniedError as error:
                yield self.result(call, refusal_text(error), is_error=True)
            except PauseError:
                return

    async def arun(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        turns = await asyncio.gather(*(self.aturn(tool, call) for call in calls))
        return [result for results in turns for result in results]

    async def aturn(self, tool: Any, call: ToolCall) -> list[Result]:
        with within(None, tool_call_id=call.id):
            try:
                value = tool(**call.arguments)
                return [self.result(call, await value if inspect.isawaitable(value) else value)]
            except DeniedError as error:
                return [self.result(call, refusal_text(error), is_error=True)]
            except PauseError:
                return []

    def stream(self, tool: Any, calls: Sequence[ToolCall]) -> Iterator[Result]:
        for call in calls:
            yield from self.run(tool, [call])

    def interrupt(self, question: str) -> Any:
        raise PauseError(question)

    def result(self, call: ToolCall, value: Any, *, is_error: bool = False) -> Result:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        self.shown.append(text)
        return Result(call.id, text, is_error)


class TestSmallAdapter(Contract):
    @pytest.fixture
    def driver(self, identity: AgentIdentity) -> SmallDriver:
        return SmallDriver(identity)
