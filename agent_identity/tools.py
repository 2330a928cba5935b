# SPDX-License-Identifier: Apache-2.0
"""The description of a tool, and how the arguments of a call are bound to its parameters."""

from __future__ import annotations

import asyncio
import functools
import inspect
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity.errors import ConfigurationError
from agent_identity.policy.request import Entity
from agent_identity.provenance.spans import call_attributes
from agent_identity.uris import check_resource
from agent_identity.values import LOCAL, is_listed, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent_identity.values import JSON

__all__ = ["Binder", "Tool", "check_function"]

_CANCELLATIONS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


class Tool:
    """A tool: its name, the resource that it reaches, the scopes that it needs there, and labels for what it does.

    `scopes=None` means the resource's configured scopes, `resource=None` that it reaches nothing outside this process.
    `pauses` are a framework's exceptions that interrupt a body which continues later. They don't count as a failure.
    `server` is the URI of the MCP server that has the tool: policy sees `<server>#<name>`, an assertion the bare name.
    """

    __slots__ = (
        *("_target", "labels", "labels_json", "name", "name_json", "opaque", "pauses", "resource"),
        *("policy_name", "scopes", "server", "span_attributes", "span_name"),
    )

    def __init__(
        self,
        name: str,
        *,
        resource: str | None = None,
        scopes: Iterable[str] | None = None,
        labels: Iterable[str] = (),
        opaque: Iterable[str] = (),
        pauses: tuple[type[BaseException], ...] = (),
        server: str | None = None,
    ) -> None:
        _check_name(name)
        self.name = name
        self.server: str | None = server
        self.policy_name: str = name if server is None else f"{check_resource(server)}#{name}"
        self.name_json: str = orjson.dumps(name).decode()
        self.resource: str = LOCAL if resource is None else check_resource(resource)
        self.scopes: frozenset[str] | None = None if scopes is None else scope_set(scopes)
        self.labels: frozenset[str] = _read_labels(labels)
        self.labels_json: list[JSON] = [*sorted(self.labels)]
        self.opaque: frozenset[str] = _read_texts("opaque", opaque, '["handle"]')
        self.span_name: str = f"execute_tool {name}"
        self.span_attributes: dict[str, str] = call_attributes(name)
        self._target: tuple[frozenset[str], Entity] | None = None
        self.pauses: tuple[type[BaseException], ...] = (*_CANCELLATIONS, *pauses)

    def with_name(self, name: str) -> Tool:
        """The same tool under another name."""
        return Tool(
            name,
            resource=None if self.resource == LOCAL else self.resource,
            scopes=self.scopes,
            labels=self.labels,
            opaque=self.opaque,
            server=self.server,
        )

    def target(self, scopes: frozenset[str]) -> Entity:
        """The tool as policy sees it when it asks for these scopes."""
        known = self._target
        if known is None or known[0] is not scopes:
            facts = {"resource": self.resource, "scopes": scopes, "labels": self.labels}
            known = (scopes, Entity("Tool", self.policy_name, MappingProxyType(facts)))
            self._target = known
        return known[1]


_LONGEST: Final = 200


def _check_name(name: str) -> None:
    """Check a tool's name. It has no `#`, since policy sees a server's tool as `<server>#<name>`."""
    if not _is_readable(name) or name != name.strip():
        raise ConfigurationError(
            "tool_malformed",
            f"{_quote(name)} can't be the name of a tool",
            remedy=f"write one line of 1 to {_LONGEST} printable characters without #, and no space at either end",
        )


def _read_labels(value: Iterable[str]) -> frozenset[str]:
    labels = _read_texts("labels", value, '{"reads:finance"}')
    for label in labels:
        if not _is_readable(label) or " " in label:
            raise ConfigurationError(
                "tool_malformed",
                f"{_quote(label)} can't be a label",
                remedy=f"write 1 to {_LONGEST} printable characters without spaces and #, for instance reads:finance",
            )
    return labels


def _read_texts(name: str, value: Iterable[str], example: str) -> frozenset[str]:
    if not is_listed(value) or not all(map(_is_text, texts := tuple(value))):
        raise ConfigurationError(
            "tool_malformed",
            f"{name} must be a list of strings",
            remedy=f"write {name}={example}",
        )
    return frozenset(texts)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_readable(text: object) -> bool:
    return (
        isinstance(text, str)
        and 1 <= len(text) <= _LONGEST
        and text.isprintable()
        and "#" not in text
    )


def _quote(value: object) -> str:
    """A value for an error message: in ASCII, since other characters may move or hide the text beside it, and cut."""
    return ascii(value)[:80]


_PLAIN: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Binder:
    """Binds calls of one function."""

    __slots__ = ("_all", "_defaults", "_is_plain", "_name", "_owner", "_positional", "_signature")

    def __init__(self, function: Callable[..., object]) -> None:
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())
        self._owner = bool(parameters) and _is_owner(parameters[0], function)
        if self._owner:
            signature = signature.replace(parameters=parameters[1:])
            parameters = parameters[1:]
        self._name = function.__name__
        self._signature = signature
        self._is_plain = all(parameter.kind in _PLAIN for parameter in parameters)
        self._positional = tuple(
            p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        )
        self._all = frozenset(p.name for p in parameters)
        self._defaults = {
            p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty
        }

    def check_parameters(self, names: Iterable[str]) -> None:
        """Check that the function has a parameter of each name."""
        unknown = sorted(frozenset(names) - self._all)
        if unknown:
            raise ConfigurationError(
                "tool_malformed",
                f"{self._name} has no parameter {_quote(unknown[0])}, which opaque names",
                remedy=f"name some of its parameters: {self._list_parameters()}",
            )

    def _list_parameters(self) -> str:
        return ", ".join(self._signature.parameters) or "it has none"

    def owner(self, args: tuple[object, ...]) -> tuple[object, ...]:
        """`self` or `cls`, which is passed to the function as it is and isn't an argument of the call."""
        return args[:1] if self._owner else ()

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """The named arguments of a call.

        Raises:
            TypeError: the function can't be called like this; it names function and parameter, as Python does.
        """
        if self._owner:
            self._check_owner(args)
            args = args[1:]
        if self._is_plain and len(args) <= len(self._positional):
            bound = dict(zip(self._positional, args, strict=False))
            if kwargs:
                count = len(bound)
                bound.update(kwargs)
                if len(bound) != count + len(kwargs):
                    return self._bind_slowly(args, kwargs)  # a name given twice
            if len(bound) < len(self._all):
                bound = {**self._defaults, **bound}
            if bound.keys() == self._all:
                return bound
        return self._bind_slowly(args, kwargs)

    def _check_owner(self, args: tuple[object, ...]) -> None:
        """Check that `self` or `cls` is a real owner: any other argument belongs into the digest.

        Raises:
            TypeError: it is missing.
            ConfigurationError: the first parameter is named `self` or `cls`, but the function isn't a method.
        """
        if not args:
            raise TypeError(f"{self._name}() is a method and was called without its object")
        holder = args[0] if isinstance(args[0], type) else type(args[0])
        if not hasattr(holder, self._name):
            raise ConfigurationError(
                "tool_malformed",
                f"{self._name} has a first parameter named self or cls, but isn't called as a method",
                remedy="rename the parameter",
            )

    def _bind_slowly(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> dict[str, object]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self._name}(): {error} (its parameters: {self._list_parameters()})"
            ) from None
        bound.apply_defaults()
        return dict(bound.arguments)

    def unbind(
        self, arguments: Mapping[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Positional and keyword arguments that call the function with these named ones."""
        if self._is_plain:
            return (), dict(arguments)
        bound = self._signature.bind_partial()
        for name, parameter in self._signature.parameters.items():
            value = arguments[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL and isinstance(value, list):
                value = tuple(value)  # pyright: ignore[reportUnknownVariableType,reportUnknownArgumentType]
            bound.arguments[name] = value
        return bound.args, bound.kwargs


def _is_owner(first: inspect.Parameter, function: Callable[..., object]) -> bool:
    """Whether the first parameter is the object or class that a method belongs to."""
    if inspect.ismethod(function):
        return False  # its owner is bound already
    place = function.__qualname__.rpartition(".")[0]
    return first.name in ("self", "cls") and bool(place) and not place.endswith("<locals>")


def check_function(value: object) -> None:
    """Check that it is a function or a method; otherwise the remedy says what to write instead."""
    if inspect.isfunction(value) or inspect.ismethod(value):
        return
    kind = type(value)
    if isinstance(value, type):
        what = f"the class {value.__qualname__}"
    elif inspect.isbuiltin(value):
        what = f"the builtin {value.__name__}"
    else:
        what = f"an object of the class {kind.__module__}.{kind.__qualname__}"  # its repr may hold anything
    raise ConfigurationError(
        "tool_malformed",
        f"tool decorates a function or a method, not {what}",
        remedy=_remedy_for(value),
    )


def _remedy_for(value: object) -> str:
    if isinstance(value, type):
        return "decorate a method of the class, or a function that makes the object"
    for base in type(value).__mro__:
        instead = _FRAMEWORKS.get(base.__module__.partition(".")[0])
        if instead is not None and "Tool" in base.__name__:
            return instead
    return next((remedy for kind, remedy in _KINDS if isinstance(value, kind)), _ANY)


_ANY: Final = "write a function that calls it, and decorate that function"

_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (classmethod, "write @classmethod above @tool, not below it"),
    (staticmethod, "write @staticmethod above @tool, not below it"),
    (property, "write @property above @tool, not below it"),
    (functools.partial, "decorate the function, then make the partial object of the tool"),
    (functools.partialmethod, "decorate the function, then make the partial method of the tool"),
    (str, "pass the name by its keyword, tool(name=…)"),
)

_FRAMEWORKS: Final[Mapping[str, str]] = {
    "langchain_core": "use agent_identity_langchain.protect(…), or write agent_identity's @tool below LangChain's",
    "pydantic_ai": "decorate the function, then make the tool, Tool(function), or register the function at the agent",
    "agents": "write @tool below @function_tool, directly above the function",
    "crewai": "write agent_identity's @tool below CrewAI's, or decorate the method _run",
    "mcp": "decorate the function, then register it at the server; at a client, decorate the function that calls call_tool",
    "mcp_types": "decorate the function that calls call_tool: this only describes a tool of a server",
    "fastmcp": "decorate the function, then register it at the server",
    "google": "decorate the function, then make the tool, FunctionTool(function)",
    "llama_index": "decorate the function, then make the tool, FunctionTool.from_defaults(function)",
}
"""What to write for a framework's tool, by the package of its class. No framework is imported for that."""
