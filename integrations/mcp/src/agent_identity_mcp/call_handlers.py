# SPDX-License-Identifier: Apache-2.0
"""The call handler of a server: it runs verified calls only, and a tool can ask by whom it is called.

The handler is replaced in place. Whatever the transport, a call reaches its tool as it was verified, or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from mcp.server.lowlevel import Server

from agent_identity import ConfigurationError, DeniedError, VerificationError
from agent_identity.canonical import args_digest
from agent_identity.delegation.carriers import DECLARED_SCOPES
from agent_identity.jose import loads_object
from agent_identity.values import scope_set
from agent_identity.verify import RefusedError, VerifiedCall, problem
from agent_identity_mcp.generations import IS_SECOND, meta_of, types

if IS_SECOND:
    from mcp.shared.exceptions import MCPError
else:
    from mcp.shared.exceptions import McpError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from agent_identity.verify import Carrier, Verifier

__all__ = ["Admitted", "CallHandler", "CallRefusedError", "Message", "handler_of", "verified_call"]

ADMITTED: Final = "agent_identity.mcp"
"""The key in a request's scope of what its message may do."""

_MARK: Final = "__agent_identity_handler__"
_INVALID_PARAMS: Final = -32602

_call: Final[ContextVar[VerifiedCall | None]] = ContextVar("agent_identity_mcp_call", default=None)


def verified_call() -> VerifiedCall:
    """The verified call of the tool that runs: its principal, the agents of the chain, the purpose.

    Raises:
        RefusedError: no call was verified here.
    """
    call = _call.get()
    if call is None:
        raise RefusedError("chain_missing", "no call was verified here")
    return call


class Message(NamedTuple):
    """A `tools/call` as it was sent."""

    tool: str
    arguments: Mapping[str, Any]
    meta: Any

    @classmethod
    def of(cls, params: object) -> Message:
        """Read the parameters of a call.

        Raises:
            CallRefusedError: they are malformed.
        """
        if isinstance(params, Mapping):
            name, arguments = params.get("name"), params.get("arguments")
            held = {} if arguments is None else arguments
            if isinstance(name, str) and isinstance(held, dict):
                return cls(name, held, params.get("_meta"))
        raise CallRefusedError(_INVALID_PARAMS, "a call needs a name, and an object of arguments")


class Admitted(NamedTuple):
    """The one call that a request may make. `call` is None where calls need no statements."""

    tool: str
    args_hash: str
    call: VerifiedCall | None


class CallRefusedError(Exception):
    """A refused message, with its answer: a JSON-RPC error, and for HTTP a status and headers."""

    def __init__(self, code: int, message: str, *, status: int = 200) -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message}
        self.status: int = status
        self.headers: Mapping[str, str] = {}

    @classmethod
    def of(
        cls,
        error: VerificationError | DeniedError,
        scopes: Iterable[str] = (),
        resource_metadata: str | None = None,
    ) -> CallRefusedError:
        """The answer to a call that didn't pass: the HTTP status is the error's code, the problem document its data."""
        answer = problem(error, scopes=scopes, resource_metadata=resource_metadata)
        document = loads_object(answer.body)
        refused = cls(answer.status, str(document["title"]), status=answer.status)
        refused.error["data"] = document
        refused.headers = answer.headers
        return refused


class CallHandler:
    """The call handler of one server."""

    def __init__(self, server: Any, low: Server[Any]) -> None:
        self.verifier: Verifier | None = None
        self._server = server
        if IS_SECOND:
            low.middleware.append(self._handle)
            return
        handlers: Any = low.request_handlers
        handle = handlers.get(types.CallToolRequest)
        if handle is None:
            raise ConfigurationError("server_unknown", "the server has no tools")

        async def verified(request: Any) -> Any:
            params = request.params
            sent = {"name": params.name, "arguments": params.arguments, "_meta": meta_of(params)}
            return await self._run(low.request_context.request, sent, lambda: handle(request))

        handlers[types.CallToolRequest] = verified

    async def _handle(self, context: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Middleware of mcp 2."""
        if context.method != "tools/call":
            return await call_next(context)
        return await self._run(context.request, context.params, lambda: call_next(context))

    async def _run(self, request: Any, params: Any, run: Callable[[], Awaitable[Any]]) -> Any:
        try:
            call = await self._admit(request, Message.of(params))
        except CallRefusedError as refused:
            raise _exception(refused.error) from None
        token = _call.set(call)
        try:
            return await run()
        finally:
            _call.reset(token)

    async def _admit(self, request: Any, message: Message) -> VerifiedCall | None:
        if request is None:
            if self.verifier is None:
                raise CallRefusedError.of(_unverified_error())
            return await self.verify(self.verifier, message)
        admitted = request.scope.get(ADMITTED)
        if not isinstance(admitted, Admitted):
            raise CallRefusedError.of(_unverified_error())
        if (admitted.tool, admitted.args_hash) != (message.tool, args_digest(message.arguments)):
            error = RefusedError("args_mismatch", "another call was verified than the one to run")
            raise CallRefusedError.of(error)
        return admitted.call

    async def verify(
        self,
        verifier: Verifier,
        message: Message,
        carrier: Carrier | None = None,
        resource_metadata: str | None = None,
    ) -> VerifiedCall:
        """Verify a call, with the scopes that its tool declares. With `resource_metadata` it needs an access token.

        Raises:
            CallRefusedError: it is refused.
        """
        scopes = await self.scopes_of(message.tool)
        try:
            return await verifier.averify_message(
                message.meta,
                tool=message.tool,
                args=message.arguments,
                scopes=scopes,
                carrier=carrier,
                needs_token=resource_metadata is not None,
            )
        except (VerificationError, DeniedError) as error:
            raise CallRefusedError.of(error, scopes, resource_metadata) from error

    async def scopes_of(self, name: str) -> frozenset[str]:
        """The scopes that a tool declares in its `_meta`, those of all its versions together.

        Raises:
            CallRefusedError: the server lists no such tool.
            ConfigurationError: they are malformed.
        """
        own = {"run_middleware": False} if _is_fastmcp(self._server) else {}
        named = [tool for tool in await self._server.list_tools(**own) if tool.name == name]
        if not named:
            raise CallRefusedError(_INVALID_PARAMS, "the server lists no such tool")
        declared = ((tool.meta or {}).get(DECLARED_SCOPES, ()) for tool in named)
        return frozenset[str]().union(*map(scope_set, declared))


def handler_of(server: Any) -> CallHandler:
    """The call handler of a server, replaced the first time.

    Raises:
        ConfigurationError: `server_unknown`, it is no `MCPServer` or `FastMCP`.
    """
    low = getattr(server, "_lowlevel_server", None) or getattr(server, "_mcp_server", None)
    if not isinstance(low, Server):
        raise ConfigurationError(
            "server_unknown",
            f"{type(server).__name__} isn't an MCPServer or a FastMCP",
            remedy="pass the object with the tools, not its application",
        )
    handler = getattr(low, _MARK, None)
    if not isinstance(handler, CallHandler):
        handler = CallHandler(server, low)
        setattr(low, _MARK, handler)
    return handler


def _is_fastmcp(server: Any) -> bool:
    return any(kind.__module__.partition(".")[0] == "fastmcp" for kind in type(server).__mro__)


def _unverified_error() -> RefusedError:
    return RefusedError("chain_missing", "calls over this transport aren't verified")


def _exception(error: dict[str, Any]) -> Exception:
    if IS_SECOND:
        return MCPError(**error)
    return McpError(types.ErrorData(**error))
