# SPDX-License-Identifier: Apache-2.0
"""How a refusal is told: with code and remedy, without the policy's reason; to a model as LangChain's own tool error."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, ToolException

from agent_identity.adapters import is_for_model, refusal_for_model, refusal_text, scrubbed
from agent_identity.errors import DeniedError
from agent_identity_langchain.tool_functions import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["states_refusals", "tell_model"]


class _RefusedError(ToolException):
    """A refusal on its way to the model; its text holds nothing that the model may not read."""


def states_refusals(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the text for a model as the message of its refusals, since LangChain shows them to callbacks."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def astate(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except DeniedError as error:
                refusal = refusal_for_model(error)
            raise refusal  # outside of the handler, so that the error before isn't its context

        return astate

    @functools.wraps(function)
    def state(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DeniedError as error:
            refusal = refusal_for_model(error)
        raise refusal  # see above

    return state


def tell_model(
    tool: BaseTool,
    handled: bool | str | Callable[[ToolException], Any] | None,  # noqa: FBT001 - LangChain's own type
) -> BaseTool:
    """A copy of a guarded tool whose refusals the model is told; `handled` is the unguarded tool's `handle_tool_error`."""
    copy = guarded(tool, _telling)
    copy.handle_tool_error = functools.partial(_told, handled)
    return copy


def _telling(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, a refusal turned into what LangChain has for errors that a model may see."""
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def atold(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except DeniedError as error:
                if not is_for_model(error):
                    raise
                raise _RefusedError(refusal_text(error)) from error

        return atold

    @functools.wraps(function)
    def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except DeniedError as error:
            if not is_for_model(error):
                raise
            raise _RefusedError(refusal_text(error)) from error

    return told


def _told(
    own: bool | str | Callable[[ToolException], Any] | None,  # noqa: FBT001 - LangChain's own type
    error: ToolException,
) -> Any:
    """Our refusals as text; the tool's own errors, scrubbed already, as the tool's own setting says."""
    if isinstance(error, _RefusedError) or own is True:
        return str(error.args[0]) if error.args else "Tool execution error"
    if isinstance(own, str):
        return own
    if callable(own):
        return scrubbed(own(error))
    raise error
