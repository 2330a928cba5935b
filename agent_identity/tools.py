# SPDX-License-Identifier: Apache-2.0
"""What is known of a tool before it is called."""

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
from agent_identity.uris import checked_resource
from agent_identity.values import LOCAL, is_listed, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from agent_identity.values import JSON

__all__ = ["Binder", "Tool", "check_function"]

_CANCELLATIONS: Final = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt)


class Tool:
    """What is known of a tool before it is called: its name, what it reaches, what it says of itself.

    `scopes=None` means those that its resource is configured with, `resource=None` that it reaches nothing outside.
    `pauses` are a framework's exceptions by which a body stops to go on later; they are no failure.
    """

    __slots__ = (
        *("_target", "labels", "labels_json", "name", "name_json", "opaque", "pauses", "resource"),
        *("scopes", "span_attributes", "span_name"),
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
    ) -> None:
        _check_name(name)
        self.name = name
        self.name_json: str = orjson.dumps(name).decode()
        self.resource: str = LOCAL if resource is None else checked_resource(resource)
        self.scopes: frozenset[str] | None = None if scopes is None else scope_set(scopes)
        self.labels: frozenset[str] = _labels(labels)
        self.labels_json: list[JSON] = [*sorted(self.labels)]
        self.opaque: frozenset[str] = _texts("opaque", opaque, '["handle"]')
        self.span_name: str = f"execute_tool {name}"
        self.span_attributes: dict[str, str] = call_attributes(name)
        self._target: tuple[frozenset[str], Entity] | None = None
        self.pauses: tuple[type[BaseException], ...] = (*_CANCELLATIONS, *pauses)

    def named(self, name: str) -> Tool:
        """The same under another name."""
        return Tool(
            name,
            resource=None if self.resource == LOCAL else self.resource,
            scopes=self.scopes,
            labels=self.labels,
            opaque=self.opaque,
        )

    def target(self, scopes: frozenset[str]) -> Entity:
        """The tool as policy sees it when it asks for these scopes."""
        known = self._target
        if known is None or known[0] is not scopes:
            facts = {"resource": self.resource, "scopes": scopes, "labels": self.labels}
            known = (scopes, Entity("Tool", self.name, MappingProxyType(facts)))
            self._target = known
        return known[1]


_LONGEST: Final = 200


def _check_name(name: str) -> None:
    """Hold a name to what people read and policy compares; `<server>#<name>` is how policy sees a server's tool.

    Raises:
        ConfigurationError: it can't be one.
    """
    if not _is_shown(name) or name != name.strip():
        raise ConfigurationError(
            "tool_malformed",
            f"{_quoted(name)} can't be the name of a tool",
            remedy=f"a name is one line of 1 to {_LONGEST} printable characters without #, and no space begins or ends it",
        )


def _labels(given: Iterable[str]) -> frozenset[str]:
    labels = _texts("labels", given, '{"reads:finance"}')
    for label in labels:
        if not _is_shown(label) or " " in label:
            raise ConfigurationError(
                "tool_malformed",
                f"{_quoted(label)} can't be a label",
                remedy=f"a label is 1 to {_LONGEST} printable characters without spaces and #, for instance reads:finance",
            )
    return labels


def _texts(name: str, given: Iterable[str], example: str) -> frozenset[str]:
    texts = tuple(given) if is_listed(given) else (None,)
    if not all(map(_is_text, texts)):
        raise ConfigurationError(
            "tool_malformed",
            f"{name} is a list of texts, not one string or anything else",
            remedy=f"write {name}={example}",
        )
    return frozenset(text for text in texts if text is not None)


def _is_text(given: object) -> bool:
    return isinstance(given, str)


def _is_shown(text: object) -> bool:
    return (
        isinstance(text, str)
        and 1 <= len(text) <= _LONGEST
        and text.isprintable()
        and "#" not in text
    )


def _quoted(given: object) -> str:
    """A value in an error: ASCII, since it may hold what moves or hides the text beside it, and cut."""
    return ascii(given)[:80]


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
        """Pass for names of parameters.

        Raises:
            ConfigurationError: one of them is none.
        """
        unknown = sorted(frozenset(names) - self._all)
        if unknown:
            raise ConfigurationError(
                "tool_malformed",
                f"{self._name} has no parameter {ascii(unknown[0])[:80]}, which opaque names",
                remedy=f"name some of its parameters: {self._listed()}",
            )

    def _listed(self) -> str:
        return ", ".join(self._signature.parameters) or "it has none"

    def owner(self, args: tuple[object, ...]) -> tuple[object, ...]:
        """`self` or `cls`, which go to the function as they are and are no arguments of the call."""
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
        """An argument that only looks like an owner would be kept from policy and digest.

        Raises:
            TypeError: there is none.
            ConfigurationError: a function with a first parameter `self` or `cls` that is no method.
        """
        if not args:
            raise TypeError(f"{self._name}() is a method, and was called without its object")
        holder = args[0] if isinstance(args[0], type) else type(args[0])
        if not hasattr(holder, self._name):
            raise ConfigurationError(
                "tool_malformed",
                f"{self._name} has a first parameter named self or cls, and isn't called as a method",
                remedy="give the parameter another name",
            )

    def _bind_slowly(
        self, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> dict[str, object]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._name}(): {error} (its parameters: {self._listed()})") from None
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
        return False  # what it belongs to is bound already
    place = function.__qualname__.rpartition(".")[0]
    return first.name in ("self", "cls") and bool(place) and not place.endswith("<locals>")


def check_function(given: object) -> None:
    """Pass for a function or a method, which are what `tool` can decorate.

    Raises:
        ConfigurationError: it is something else; the remedy says what to write for its kind.
    """
    if inspect.isfunction(given) or inspect.ismethod(given):
        return
    kind = type(given)
    if isinstance(given, type):
        what = f"the class {given.__qualname__}"
    elif inspect.isbuiltin(given):
        what = f"the builtin {given.__name__}"
    else:
        what = f"an object of the class {kind.__module__}.{kind.__qualname__}"  # its repr may hold anything
    raise ConfigurationError(
        "tool_malformed",
        f"tool decorates a function or a method, not {what}",
        remedy=_remedy(given),
    )


def _remedy(given: object) -> str:
    if isinstance(given, type):
        return "decorate a method of the class, or a function that makes the object"
    for base in type(given).__mro__:
        instead = _FRAMEWORKS.get(base.__module__.partition(".")[0])
        if instead is not None and "Tool" in base.__name__:
            return instead
    return next((remedy for kind, remedy in _KINDS if isinstance(given, kind)), _ANY)


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
"""What to write for a framework's tool, by the package that its class comes from: no framework is imported to tell."""
