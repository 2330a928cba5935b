# SPDX-License-Identifier: Apache-2.0
"""How a Python call becomes named arguments and back, worked out once when a tool is decorated.

Bound arguments are what is digested: defaults included, `self` and `cls` left out, `*args` a list and `**kw` an object under
their names. The common call, with plain parameters, takes no `inspect.signature` at call time.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["Binder"]

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
