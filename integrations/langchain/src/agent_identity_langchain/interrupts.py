# SPDX-License-Identifier: Apache-2.0
"""What of a tool call outlives an interrupt of LangGraph, which runs a node again from its beginning.

It is kept in the user's own checkpointer, beside the interrupt, as pending writes of a task that the graph doesn't have: whose
call was interrupted, and what the other calls of the same node have returned. It lasts as long as the interrupt does.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from weakref import WeakKeyDictionary

from langchain_core.messages import AIMessage
from langchain_core.runnables.config import var_child_runnable_config

from agent_identity.adapters import arefuse, check_owner, mark_owner, refuse
from agent_identity.errors import DeniedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from langchain_core.messages import BaseMessage

    from agent_identity.adapters import Attempt

__all__ = ["Interrupts", "check_asker", "mark_asker"]

_CHANNEL: Final = "agent_identity"
_CHECKPOINTER: Final = "__pregel_checkpointer"
_SCRATCHPAD: Final = "__pregel_scratchpad"
_SEND: Final = "__pregel_send"
_RESUME: Final = "__resume__"
_WHOLE_GRAPH: Final = "00000000-0000-0000-0000-000000000000"
"""The task under which LangGraph keeps an answer before an interrupt takes it."""
_FOREIGN: Final = "answered by another principal"
_PULL: Final = "__pregel_pull"
"""A task that is a whole node, which may run several calls; `create_agent` makes a task of its own for each tool call."""
_DONE: Final = "done"
_LOST: Final = "lost"
_STOPPED: Final = "stopped"

_lock: Final = threading.Lock()
_passes: Final[WeakKeyDictionary[Any, str]] = WeakKeyDictionary()
_running: Final[dict[str, str]] = {}


class _Kept(NamedTuple):
    """What an earlier pass has kept of a call: it was interrupted, or it returned; `result` is empty if it couldn't be kept."""

    owner: Any
    call_id: str | None
    is_done: bool
    result: tuple[Any, ...]


class Interrupts:
    """The passes of one tool call of a model, in a graph with a checkpointer."""

    def __init__(
        self, tool: str, call_id: str, config: Mapping[str, Any], place: dict[str, Any]
    ) -> None:
        configurable = config["configurable"]
        scratchpad = configurable[_SCRATCHPAD]
        path = (config.get("metadata") or {}).get("langgraph_path") or (_PULL,)
        self._tool = tool
        self._call_id = call_id
        self._graphs: dict[str, str] = configurable["checkpoint_map"]
        self._saver = configurable[_CHECKPOINTER]
        self._place: Any = {"configurable": place}
        # LangGraph before 1.2 may run the other calls of an agent inside a tool again, too.
        self._is_shared: bool = path[0] == _PULL or bool(place["checkpoint_ns"])
        self._is_resumed: bool = bool(scratchpad.resume) or scratchpad.get_null_resume() is not None
        self._is_again: bool = self._is_shared or self._is_resumed
        self._is_foreign: bool = list(scratchpad.resume) == [_FOREIGN]
        self._send = configurable.get(_SEND)
        self._task_id: str = str(configurable["checkpoint_ns"]).rpartition(":")[2]
        with _lock:
            self._pass = _passes.setdefault(scratchpad.get_null_resume, secrets.token_hex(8))
        parts = (*place.values(), configurable["checkpoint_ns"], call_id, tool)
        self._key = hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()

    @classmethod
    def of_call(
        cls, tool: str, call_id: str | None, config: Mapping[str, Any] | None = None
    ) -> Interrupts | None:
        """Those of the call with the model's id `call_id`; None where none can be interrupted. `config` is that of the run."""
        config = config or var_child_runnable_config.get() or {}
        configurable = config.get("configurable") or {}
        namespace = configurable.get("checkpoint_ns")
        if call_id is None or not namespace or _SCRATCHPAD not in configurable:
            return None
        graph = str(namespace).rpartition("|")[0]
        checkpoint = (configurable.get("checkpoint_map") or {}).get(graph)
        thread = configurable.get("thread_id")
        if checkpoint is None or not hasattr(configurable.get(_CHECKPOINTER), "put_writes"):
            return None
        place = {"thread_id": thread, "checkpoint_ns": graph, "checkpoint_id": checkpoint}
        return cls(tool, call_id, config, place)

    def check(self, state: Any = None) -> _Kept | None:
        """Check that the call may go on, and return what an earlier pass has kept of it. `state` is the graph's.

        Raises:
            DeniedError: it belongs to another principal, another one has answered for it, or it still runs.
        """
        kept = self._read(self._saver.get_tuple(self._place)) if self._is_again else None
        error = self._find_fault(kept, state)
        if error is None:
            return kept
        for place, task, value in self._undo(error, kept):
            self._saver.put_writes(place, [(_RESUME, value)], task)
        raise error

    async def acheck(self, state: Any = None) -> _Kept | None:
        """The async twin of `check`."""
        kept = self._read(await self._saver.aget_tuple(self._place)) if self._is_again else None
        error = self._find_fault(kept, state)
        if error is None:
            return kept
        for place, task, value in self._undo(error, kept):
            await self._saver.aput_writes(place, [(_RESUME, value)], task)
        raise error

    def _undo(self, error: DeniedError, kept: _Kept | None) -> Iterator[tuple[Any, str, Any]]:
        """The writes that take back the answer of another principal: LangGraph keeps it, and would use it in the next pass."""
        if error.code != "resumed_by_another":
            return
        if self._is_resumed:
            taken: Any = getattr(self._send, "__self__", [])  # the writes of the running task
            for write in [each for each in taken if each[0] == _RESUME]:
                taken.remove(write)
            for namespace, checkpoint in self._graphs.items():
                ids = {"checkpoint_ns": namespace, "checkpoint_id": checkpoint}
                place = {"configurable": {**self._place["configurable"], **ids}}
                yield place, _WHOLE_GRAPH, None  # None is no answer
        elif kept is None:
            # An earlier node has taken the answer, as HumanInTheLoopMiddleware does: the call is refused in the next pass too.
            yield self._place, self._task_id, [_FOREIGN]

    def run(self, attempt: Attempt, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the function, or return what it has returned in an earlier pass."""
        try:
            kept = self.check()
        except DeniedError as error:
            refuse(self._tool, error)
            raise
        if kept is not None and kept.is_done:
            return kept.result[0]
        attempt.continues = None if kept is None else kept.call_id
        _running[self._key] = self._pass
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            self.keep_interrupt(error, attempt.call_id)
            raise
        finally:
            _running.pop(self._key, None)
        if self._is_shared:
            try:
                self._save(_DONE, attempt.call_id, result)
            except Exception:  # noqa: BLE001 - whatever the saver raises for a value that it can't write
                self._save(_LOST, attempt.call_id)
        return result

    async def arun(
        self, attempt: Attempt, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The async twin of `run`."""
        try:
            kept = await self.acheck()
        except DeniedError as error:
            await arefuse(self._tool, error)
            raise
        if kept is not None and kept.is_done:
            return kept.result[0]
        attempt.continues = None if kept is None else kept.call_id
        _running[self._key] = self._pass
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            await self.akeep_interrupt(error, attempt.call_id)
            raise
        finally:
            _running.pop(self._key, None)
        if self._is_shared:
            try:
                await self._asave(_DONE, attempt.call_id, result)
            except Exception:  # noqa: BLE001 - see above
                await self._asave(_LOST, attempt.call_id)
        return result

    def keep_interrupt(self, error: BaseException, call_id: str | None = None) -> None:
        """Keep whose call an interrupt has stopped; any other error is none."""
        if _is_interrupt(error):
            self._save(_STOPPED, call_id)

    async def akeep_interrupt(self, error: BaseException, call_id: str | None = None) -> None:
        """The async twin of `keep_interrupt`."""
        if _is_interrupt(error):
            await self._asave(_STOPPED, call_id)

    def _find_fault(self, kept: _Kept | None, state: Any) -> DeniedError | None:
        if _running.get(self._key, self._pass) != self._pass:
            return DeniedError(
                "call_running",
                "the call still runs in the pass that was interrupted",
                remedy="resume the graph when the call has ended",
            )
        marks = [] if kept is None else [kept.owner]
        for mark in [*marks, *_marks_of(state, self._call_id)]:
            try:
                check_owner(mark)
            except DeniedError as error:
                return error
        if self._is_foreign:
            return DeniedError(
                "answered_by_another",
                "another principal has answered the interrupt before this call",
                remedy="make the call again, and ask again",
            )
        if kept is None or not kept.is_done or kept.result:
            return None
        return DeniedError(
            "call_repeated",
            "the call has returned before the interrupt, and its result couldn't be kept",
            remedy="let the tool return text, or values that the checkpointer can write",
        )

    def _save(self, state: str, call_id: str | None, *result: Any) -> None:
        self._saver.put_writes(self._place, self._write(state, call_id, result), self._task(state))

    async def _asave(self, state: str, call_id: str | None, *result: Any) -> None:
        write = self._write(state, call_id, result)
        await self._saver.aput_writes(self._place, write, self._task(state))

    def _write(self, state: str, call_id: str | None, result: tuple[Any, ...]) -> list[Any]:
        kept = {"owner": mark_owner(), "call_id": call_id, "pass": self._pass, "state": state}
        return [(_CHANNEL, {**kept, "result": list(result)})]

    def _task(self, state: str) -> str:
        """The id under which a state is kept. A saver keeps the first write of a task, so each state has one of its own."""
        digest = hashlib.sha256(f"{self._key}\0{state}".encode()).hexdigest()
        return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:32]}"

    def _read(self, found: Any) -> _Kept | None:
        """What an earlier pass has kept; a call that this pass repeats is the framework's or the user's own wish."""
        writes = (None if found is None else found.pending_writes) or []
        kept = {task: value for task, channel, value in writes if channel == _CHANNEL}
        for state in (_DONE, _LOST, _STOPPED):
            value = kept.get(self._task(state))
            if value is not None and value["pass"] != self._pass:
                is_done = state != _STOPPED
                return _Kept(value["owner"], value["call_id"], is_done, tuple(value["result"]))
        return None


_OWNER: Final = "agent_identity_owner"


def mark_asker(message: BaseMessage) -> BaseMessage:
    """A copy with a mark of the current principal, if the message asks for tool calls; a checkpoint keeps it.

    What interrupts the graph before the calls run is resumed by that principal, or the calls are refused. The message itself may
    be a cache's, and go to others.
    """
    if not isinstance(message, AIMessage) or not message.tool_calls:
        return message
    metadata = {**message.response_metadata, _OWNER: mark_owner()}
    return message.model_copy(update={"response_metadata": metadata})


def check_asker(state: Any, call_id: str | None) -> None:
    """Check that a call runs for the principal whose agent has asked for it, if a message in the state says who that was.

    Raises:
        DeniedError: it doesn't.
    """
    for mark in _marks_of(state, call_id):
        check_owner(mark)


def _marks_of(state: Any, call_id: str | None) -> Iterator[Any]:
    messages = (
        state.get("messages") if isinstance(state, dict) else getattr(state, "messages", None)
    )
    for message in reversed(messages or ()):
        if isinstance(message, AIMessage):
            asked = any(call["id"] == call_id for call in message.tool_calls)
            if asked and _OWNER in message.response_metadata:
                yield message.response_metadata[_OWNER]
            return


def _is_interrupt(error: BaseException) -> bool:
    from langgraph.errors import GraphInterrupt  # noqa: PLC0415 - langchain brings it, langchain-core doesn't

    return isinstance(error, GraphInterrupt)
