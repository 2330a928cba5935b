# SPDX-License-Identifier: Apache-2.0
"""What differs between mcp 1 and mcp 2: the names of fields, the shape of requests, the HTTP client.

mcp 2 has its types in `mcp_types`; that it can be imported is what tells the two apart.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from agent_identity.adapters import ListedTool

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

IS_SECOND: Final = find_spec("mcp_types") is not None

if TYPE_CHECKING or IS_SECOND:
    import httpx2 as http
    import mcp_types as types
    from mcp_types.version import MODERN_PROTOCOL_VERSIONS as _STATELESS
else:
    import httpx as http
    from mcp import types

    _STATELESS = ()

_ROUNDS: Final = ("input_responses", "request_state")
"""What a further round of a call has, by which it answers its server."""

__all__ = [
    "IS_SECOND",
    "call_params",
    "called",
    "cursor_of",
    "http",
    "is_error",
    "is_further_round",
    "is_stateless",
    "know_session_id",
    "listed",
    "listed_tool",
    "make_list_params",
    "meta_of",
    "method_of",
    "refusal",
    "sent_arguments",
    "types",
    "with_call",
]


def method_of(request: Any) -> str:
    """The method of a request."""
    return str(_inner(request).method)


def cursor_of(request: Any) -> str | None:
    """The cursor of a `tools/list` request."""
    params = _inner(request).params
    return None if params is None else params.cursor


def make_list_params(cursor: str | None) -> Any:
    """The parameters of a `tools/list` request for one page."""
    return types.PaginatedRequestParams(cursor=cursor)


def listed(result: Any) -> tuple[str | None, list[ListedTool]]:
    """The following cursor and the tools of one page of a listing."""
    tools = [listed_tool(each) for each in result.tools]
    return (result.next_cursor if IS_SECOND else result.nextCursor), tools


def listed_tool(tool: Any) -> ListedTool:
    """The definition of a tool."""
    schema = tool.input_schema if IS_SECOND else tool.inputSchema
    return ListedTool(tool.name, tool.description, schema, tool.meta)


def call_params(name: str, arguments: Mapping[str, Any] | None, options: Mapping[str, Any]) -> Any:
    """The parameters of a `tools/call` request, checked as mcp checks them. `options` are those of `call_tool`."""
    rounds = {key: options[key] for key in _ROUNDS if options.get(key) is not None}
    held = None if arguments is None else dict(arguments)
    return types.CallToolRequestParams(name=name, arguments=held, **(rounds if IS_SECOND else {}))


def called(request: Any) -> Any:
    """The parameters of a `tools/call` request."""
    return _inner(request).params


def sent_arguments(params: Any) -> dict[str, Any] | None:
    """The arguments of a call as they are sent."""
    sent = params.model_dump(by_alias=True, mode="json", exclude_none=True)
    arguments: dict[str, Any] | None = sent.get("arguments")
    return arguments


def is_further_round(params: Any) -> bool:
    """Whether the call answers what its server asked in an earlier round (mcp 2)."""
    return any(getattr(params, name, None) is not None for name in _ROUNDS)


def meta_of(params: Any) -> dict[str, Any]:
    """A copy of the `_meta` of a call."""
    meta = params.meta
    if meta is None:
        return {}
    if IS_SECOND:
        return dict(meta)
    dumped: dict[str, Any] = meta.model_dump(by_alias=True, exclude_none=True)
    return dumped


def with_call(request: Any, arguments: Mapping[str, Any] | None, meta: Mapping[str, Any]) -> Any:
    """A copy of a `tools/call` request with these arguments and this `_meta`."""
    inner = _inner(request)
    held: Any = dict(meta)
    if not IS_SECOND:
        held = types.RequestParams.Meta(**meta)  # type: ignore[attr-defined]  # of mcp 1
    changes = {"arguments": None if arguments is None else dict(arguments), "meta": held}
    changed = inner.model_copy(update={"params": inner.params.model_copy(update=changes)})
    return changed if inner is request else type(request)(changed)


def refusal(text: str) -> Any:
    """The result that tells a model of a refusal."""
    flag: dict[str, Any] = {"is_error": True} if IS_SECOND else {"isError": True}
    return types.CallToolResult(content=[types.TextContent(type="text", text=text)], **flag)


def is_error(result: Any) -> bool:
    """Whether a tool's result says that the tool failed."""
    return bool(getattr(result, "is_error" if IS_SECOND else "isError", False))


_SESSION_ID: Final = "__agent_identity_session_id__"


def know_session_id(session: Any, find: Callable[[], str | None]) -> None:
    """Tell how to find the id that the server gave to a connection of mcp 1, None if it gave none."""
    setattr(session, _SESSION_ID, find)


def is_stateless(session: Any) -> bool:
    """Whether a connection keeps no state of its caller between requests: by its protocol, or since its server gave it no id."""
    find = getattr(session, _SESSION_ID, None)
    has_no_id = find is not None and find() is None
    return has_no_id or getattr(session, "protocol_version", None) in _STATELESS


def _inner(request: Any) -> Any:
    return getattr(request, "root", request)
