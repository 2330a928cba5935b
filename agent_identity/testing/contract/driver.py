# SPDX-License-Identifier: Apache-2.0
"""What the tests of the contract ask of an adapter, and how they run it."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from agent_identity.session import Session

BILLING: Final = "https://billing.example"
RULE: Final[Mapping[str, Any]] = {"resource": BILLING, "scopes": ["invoices:read"]}
MODES: Final = pytest.mark.parametrize("mode", ["sync", "async"])


@dataclass(frozen=True)
class ToolCall:
    """A call as a model makes it."""

    id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """What the framework tells the model of a call."""

    tool_call_id: str
    text: str
    is_error: bool


class Driver(Protocol):
    """One framework with one adapter. The suite only passes what `make` returned back to the driver."""

    shown: list[str]
    """Everything that the framework gave to models, callbacks, tracing and checkpoints."""

    def make(self, function: Callable[..., Any], rule: Mapping[str, Any] | None) -> Any:
        """A tool of the framework, guarded under a rule; None: guarded by an adapter that has no rule for it."""
        ...

    def schema(self, tool: Any) -> Mapping[str, Any]:
        """`name`, `description` and `parameters` (a JSON schema) of a tool, as the framework gives them to a model."""
        ...

    def run(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        """The results of calls that the model makes in one turn. A call that was interrupted has none."""
        ...

    async def arun(self, tool: Any, calls: Sequence[ToolCall]) -> list[Result]:
        """The async twin of `run`."""
        ...

    def stream(self, tool: Any, calls: Sequence[ToolCall]) -> Iterator[Result]:
        """The results, each as soon as the framework streams it; the model makes one call a turn."""
        ...

    def interrupt(self, question: str) -> Any:
        """Stop the tool that calls it in the framework's own way, to ask a person."""
        ...


def list_invoices(customer: str, limit: int = 10) -> str:
    """List a customer's invoices."""
    return f"{limit} invoices of {customer}"


def run(driver: Driver, mode: str, tool: Any, *calls: ToolCall) -> list[Result]:
    return driver.run(tool, calls) if mode == "sync" else asyncio.run(arun(driver, tool, *calls))


async def arun(driver: Driver, tool: Any, *calls: ToolCall) -> list[Result]:
    return await driver.arun(tool, calls)


def in_mode(mode: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, or in async mode an async function that does the same."""

    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0.01)
        return function(*args, **kwargs)

    return function if mode == "sync" else run


def kinds_of(session: Session) -> list[str]:
    """What is on record of the session's calls, in order."""
    return [each.kind for each in session.records() if each.kind.startswith("call.")]
