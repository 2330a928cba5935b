# SPDX-License-Identifier: Apache-2.0
"""Removes secrets from any value that is handed to a model, a callback or a checkpoint: texts, containers, objects, exceptions.

A value without secrets is returned as it is. One with secrets is copied, with the same type and the secrets replaced, and so are
the objects that lead to it. The rest is shared with the original, which isn't changed. What can't be copied becomes a text.

Objects count as data: their fields are read from `__dict__` and slots, and their `repr` and `str` are searched. No other code of
their class runs. The closures of functions, the variables of frames and the memory of C libraries aren't searched.
"""

from __future__ import annotations

import array
import contextlib
import datetime as dt
import decimal
import enum
import fractions
import functools
import inspect
import io
import ipaddress
import logging
import pathlib
import re
import types
import uuid
import weakref
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

from agent_identity.redaction import is_clean, scrub, scrub_bytes, small_numbers_are_clean
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_OBJECTS: Final = 50_000
"""The maximum number of searched objects of unknown classes with fields. Further ones become texts."""

_SMALL: Final = 1 << 64
"""Smaller numbers have too few digits for an encoded secret, unless the secret itself is numeric."""

_BETWEEN: Final = " \x1f "
"""Separates texts that are searched together. No encoding goes across it."""


_VALUES: Final[tuple[type, ...]] = (
    *(dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone),
    *(complex, decimal.Decimal, fractions.Fraction, uuid.UUID, range),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address),
)
_PATHS: Final[tuple[type, ...]] = (
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath),
)


def scrubbed(value: T) -> T:
    """The value without secrets; the same object if it has none.

    A copy has the same type. What can't be copied becomes a text, or an exception of the nearest base class.
    """
    safe: Any = value
    if _kind(value) is str:
        safe = scrub(safe)
    elif value is not None and _kind(value) is not bool:
        try:
            safe = _Walk(value).copy(value)
        except Exception:  # noqa: BLE001 - what can't be searched isn't passed on
            safe = _substitute(value)
    scrubbed_value: T = safe
    return scrubbed_value


def scrubs(function: F) -> F:
    """Wrap a function, sync or async, so that its return value and its exceptions are scrubbed.

    An exception without secrets passes through as it is. Another one is replaced by a copy with the same traceback.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return scrubbed(await function(*args, **kwargs))
            except BaseException as error:
                safe = _scrub_exception(error)
                if safe is error:
                    raise
            raise safe  # outside of the block, so that it isn't linked to the original

        return awrapper  # type: ignore[return-value]

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return scrubbed(function(*args, **kwargs))
        except BaseException as error:
            safe = _scrub_exception(error)
            if safe is error:
                raise
        raise safe

    return wrapper  # type: ignore[return-value]


def _scrub_exception(error: BaseException) -> BaseException:
    safe = scrubbed(error)
    if safe is not error and error.__traceback__ is not None:
        safe.__traceback__ = error.__traceback__.tb_next
    return safe


class _Node:
    """One collected value, the ids of those that hold it, and its own texts."""

    __slots__ = ("held_by", "texts", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.held_by: list[int] = []
        self.texts: tuple[str, ...] = ()


class _Walk:
    """Collects everything that a value leads to, then copies what leads to a secret."""

    def __init__(self, value: Any) -> None:
        self._nodes: dict[int, _Node] = {}
        self._unknown: set[int] = set()
        self._tainted: set[int] = set()
        self._copies: dict[int, Any] = {}
        self._objects = 0
        self._numbers_are_clean = small_numbers_are_clean()
        self._collect(value)
        texts = [text for node in self._nodes.values() for text in node.texts]
        if self._unknown or not is_clean(_BETWEEN.join(texts)):
            self._mark_tainted()

    def _collect(self, value: Any) -> None:
        """Collect all of it, without recursion, so that deep nesting can't fail."""
        waiting: list[tuple[object, int | None]] = [(value, None)]
        while waiting:
            item, holder = waiting.pop()
            if self._shows_nothing(item):
                continue
            node = self._nodes.get(id(item))
            if node is None:
                node = self._nodes[id(item)] = _Node(item)
                node.texts = (item,) if type(item) is str else _texts(item)
                if type(item) not in _BARE:
                    waiting += [(part, id(item)) for part in self._parts(item)]
            if holder is not None:
                node.held_by.append(holder)

    def _shows_nothing(self, value: Any) -> bool:
        if value is None or value is True or value is False:
            return True
        return (
            self._numbers_are_clean
            and (type(value) is int or type(value) is float)
            and -_SMALL < value < _SMALL
        )

    def _parts(self, value: Any) -> Iterator[object]:
        if _is_opaque(value):
            return
        if _is(value, dict | types.MappingProxyType):
            for pair in _pairs(value):
                yield from pair
        elif _is(value, _SERIES):
            yield from _items(value)
        elif _is(value, BaseException):
            yield from (*value.args, value.__cause__, value.__context__)
            yield from value.exceptions if _is(value, BaseExceptionGroup) else ()
            yield from _input_errors(value)
        state, fields = _state(value), _fields(value)
        if (state or fields) and not _is(value, _KNOWN):
            self._objects += 1
            if self._objects > _OBJECTS:
                self._unknown.add(id(value))
                return
        yield from (*state, *state.values(), *fields.values())

    def _mark_tainted(self) -> None:
        """Mark the values that show a secret, and all that lead to them."""
        waiting = [
            key
            for key, node in self._nodes.items()
            if key in self._unknown or not all(map(is_clean, node.texts))
        ]
        while waiting:
            key = waiting.pop()
            if key not in self._tainted:
                self._tainted.add(key)
                waiting += self._nodes[key].held_by

    def copy(self, value: Any) -> Any:
        """A copy of the value; the value itself if it leads to no secret."""
        if self._shows_nothing(value):
            return value
        if id(value) not in self._nodes:
            return scrubbed(value)  # a field written in C returned a new object
        if id(value) not in self._tainted:
            return value
        if id(value) not in self._copies:
            # A tuple that contains itself by way of another object gets this text in there.
            self._copies[id(value)] = _HIDDEN
            try:
                copy = self._make(value)
            except Exception:  # noqa: BLE001 - whatever a foreign class raises, its secret isn't passed on
                copy = _substitute(value)
            self._copies[id(value)] = copy
        return self._copies[id(value)]

    def _make(self, value: Any) -> Any:
        if id(value) in self._unknown:
            return _text_of(value)
        if _is(value, BaseException):
            return self._exception(value)
        for kinds, make in self._MAKERS:
            if _is(value, kinds):
                return make(self, value)
        return self._object(value)

    def _text(self, value: Any) -> Any:
        text = scrub("".join(value))
        copy = str.__new__(_kind(value), text)
        return text if type(copy) is str else self._check(value, self._fill(value, copy))

    def _bytes(self, value: Any) -> Any:
        data = scrub_bytes(bytes(value))
        if _is(value, bytes):
            copy = bytes.__new__(_kind(value), data)
            return copy if type(copy) is bytes else self._fill(value, copy)
        extended = self._begin(value)
        bytearray.extend(extended, data)
        return extended

    def _list(self, value: Any) -> Any:
        copy = self._begin(value)
        kind: Any = list if _is(value, list) else deque
        kind.extend(copy, [self.copy(item) for item in _items(value)])
        return self._check(value, copy)

    def _deque(self, value: Any) -> Any:
        if _kind(value) is not deque:
            return self._list(value)
        copy = self._copies[id(value)] = deque[Any](maxlen=value.maxlen)
        copy.extend([self.copy(item) for item in value])
        return copy

    def _tuple(self, value: Any) -> Any:
        copy = _TUPLE.__new__(_kind(value), [self.copy(item) for item in _items(value)])
        return self._check(value, self._fill(value, copy))

    def _set(self, value: Any) -> Any:
        items = [self.copy(item) for item in _items(value)]
        if _is(value, frozenset):
            frozen = _FROZEN.__new__(_kind(value), items)
            return self._check(value, self._fill(value, frozen))
        copy = self._begin(value)
        _SET.update(copy, items)
        return self._check(value, copy)

    def _dict(self, value: Any) -> Any:
        copy = self._begin(value)
        kind: Any = OrderedDict if _is(value, OrderedDict) else dict
        for key, item in _pairs(value):
            kind.__setitem__(copy, self.copy(key), self.copy(item))
        return self._check(value, copy)

    def _proxy(self, value: Any) -> Any:
        return types.MappingProxyType({self.copy(k): self.copy(v) for k, v in _pairs(value)})

    def _object(self, value: Any) -> Any:
        if hasattr(_kind(value), "__del__"):
            # The finalizer of a copy would clean up for the original.
            return _text_of(value)
        if _is_opaque(value) or not (_state(value) or _fields(value)):
            return _text_of(value)
        return self._check(value, self._begin(value))

    def _begin(self, value: Any) -> Any:
        """An object of the same class, registered before its parts are copied, since they may lead back to it."""
        copy = self._copies[id(value)] = _allocate(_kind(value))
        return self._fill(value, copy)

    def _fill(self, value: Any, copy: Any) -> Any:
        state = {self.copy(key): self.copy(item) for key, item in _state(value).items()}
        if state:
            object.__getattribute__(copy, "__dict__").update(state)
        for member, item in _fields(value).items():
            member.__set__(copy, self.copy(item))
        return copy

    def _check(self, value: Any, copy: Any) -> Any:
        """The copy, or a text if the copy still shows a secret (which its class computes) or can't be shown any more."""
        for before, after in zip(_texts(value), _texts(copy), strict=True):
            if not is_clean(after) or (before and not after):
                return _text_of(value)
        return copy

    def _exception(self, error: Any) -> BaseException:
        copy: BaseException = self._copy_exception(error)
        self._copies[id(error)] = copy
        if _is(notes := error.__dict__.get("__notes__"), list):
            copy.__dict__["__notes__"] = self.copy(notes)
        copy.__cause__ = self._copy_link(error.__cause__)
        copy.__context__ = self._copy_link(error.__context__)
        copy.__suppress_context__ = error.__suppress_context__
        copy.__traceback__ = error.__traceback__
        return copy

    def _copy_link(self, error: BaseException | None) -> BaseException | None:
        copy = self.copy(error)
        return copy if isinstance(copy, BaseException) else None

    def _copy_exception(self, error: Any) -> Any:
        """An exception of the same class, or of the nearest base class that takes one text."""
        try:
            copy = self._copy_in_class(error)
            if _kind(copy) is _kind(error) and self._check(error, copy) is copy:
                return copy
        except Exception:  # noqa: BLE001, S110 - see `copy`
            pass
        if _is(error, BaseExceptionGroup):
            return BaseExceptionGroup(*self._group(error))
        return _plain_exception(error)

    def _copy_in_class(self, error: Any) -> Any:
        kind = _kind(error)
        if errors := _input_errors(error):
            copy: Any = kind.from_exception_data(
                scrub(error.title), [_input_error(self.copy(each)) for each in errors]
            )
            return copy
        if _is(error, BaseExceptionGroup):
            copy = _allocate(kind, *self._group(error))
        else:
            args = [self.copy(argument) for argument in error.args]
            copy = _allocate(kind, *args)
            copy.args = tuple(args)
        self._copies[id(error)] = copy
        self._fill(error, copy)
        return copy

    def _group(self, error: Any) -> tuple[str, list[Any]]:
        return scrub(error.message), [self.copy(member) for member in error.exceptions]

    _MAKERS: Final[tuple[tuple[Any, Callable[[Any, Any], Any]], ...]] = (
        ((enum.Enum, int, float, *_VALUES), lambda _, value: _text_of(value)),
        (re.Match, lambda _, value: f"<{_kind(value).__name__}>"),
        (str, _text),
        ((bytes, bytearray), _bytes),
        (memoryview, lambda _, value: memoryview(scrub_bytes(bytes(value)))),
        (array.array, lambda _, value: scrub_bytes(bytes(value))),
        (io.BytesIO, lambda _, value: io.BytesIO(scrub_bytes(value.getvalue()))),
        (io.StringIO, lambda _, value: io.StringIO(scrub(value.getvalue()))),
        (list, _list),
        (deque, _deque),
        (tuple, _tuple),
        ((set, frozenset), _set),
        (dict, _dict),
        (types.MappingProxyType, _proxy),
    )


_HIDDEN: Final = "<secret>"
_BARE: Final = frozenset(
    {
        *(str, bytes, bytearray, memoryview, array.array, int, float, bool, type(None)),
        *_VALUES,
        *_PATHS,
    }
)
"""Exactly these classes have values that show all that they hold."""
_TUPLE: Final[Any] = tuple
_SET: Final[Any] = set
_FROZEN: Final[Any] = frozenset
_SERIES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, deque)
_KNOWN: Final[tuple[Any, ...]] = (
    *(dict, types.MappingProxyType, *_SERIES, BaseException),
    *(str, bytes, bytearray, int, float, enum.Enum, *_VALUES, pathlib.PurePath),
    *(ipaddress.IPv4Network, ipaddress.IPv6Network),
)
"""Classes whose values are searched without a limit."""
_OPAQUE: Final = (
    *(Secret, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType),
    *(types.MethodType, types.CodeType, types.FrameType, types.TracebackType, types.GeneratorType),
    *(types.CoroutineType, types.AsyncGeneratorType, weakref.ReferenceType, property),
    *(logging.Logger, logging.Handler),
)
_OPAQUE_MODULES: Final = frozenset(
    {
        *("agent_identity", "asyncio", "_asyncio", "concurrent", "contextvars", "_contextvars"),
        *("multiprocessing", "selectors", "socket", "_socket", "sqlite3", "ssl", "_ssl"),
        *("threading", "_thread"),
    }
)
"""What isn't data, and isn't searched: it may lead to the whole program. Objects of this library show no secrets."""


def _kind(value: object) -> Any:
    kind: Any = type(value)
    return kind


def _is(value: Any, kinds: Any) -> bool:
    """`isinstance` by the real class: a value's own `__class__` may be wrong, and reading it runs code."""
    return issubclass(_kind(value), kinds)


def _is_opaque(value: Any) -> bool:
    return _is_opaque_class(_kind(value))


@functools.lru_cache(maxsize=1024)
def _is_opaque_class(kind: Any) -> bool:
    if issubclass(kind, BaseException):
        return False
    return issubclass(kind, _OPAQUE) or str(kind.__module__).partition(".")[0] in _OPAQUE_MODULES


def _allocate(kind: Any, *args: object) -> Any:
    """Make an object of a class without running any code of the class."""
    bases: list[type] = kind.__mro__
    for base in bases:
        make: Any = vars(base).get("__new__")
        if make is not None and not _is(make, staticmethod):
            return make(kind, *args)
    raise TypeError("the class has no __new__ written in C")


def _texts(value: Any) -> tuple[str, ...]:
    """The texts of a value itself, without those of its parts."""
    return tuple([_render(way, value) for way in _readers(_kind(value))])


@functools.lru_cache(maxsize=1024)
def _readers(kind: Any) -> tuple[Callable[[Any], str], ...]:
    """The functions that return the texts of a value of this class."""
    for kinds, read in _CONTENTS:
        if issubclass(kind, kinds):
            return (read,)
    ways: list[tuple[Callable[[Any], str], Any]] = [(repr, kind.__repr__), (str, kind.__str__)]
    own = [way for way, method in ways if method not in _STOCK]
    return ("".join, *own) if issubclass(kind, str) else tuple(own)


_CONTENTS: Final[tuple[tuple[Any, Callable[[Any], str]], ...]] = (
    ((bytes, bytearray, memoryview, array.array), lambda value: bytes(value).decode("latin-1")),
    (io.BytesIO, lambda value: value.getvalue().decode("latin-1")),
    (io.StringIO, lambda value: value.getvalue()),
    (re.Match, lambda value: str(value.string)),
)


_STOCKED: Final[tuple[Any, ...]] = (
    *(object, str, *_SERIES, dict, OrderedDict),
    *(types.SimpleNamespace, types.MappingProxyType, BaseException),
)
_STOCK: Final[frozenset[Any]] = frozenset(
    {object.__str__, str.__str__, *(kind.__repr__ for kind in _STOCKED)}
)
"""The methods that only show the fields."""


def _render(way: Callable[[Any], str], value: Any) -> str:
    try:
        return way(value)
    except Exception:  # noqa: BLE001 - a value that can't be shown shows no secret
        return ""


def _text_of(value: Any) -> str:
    return scrub(_render(str, value)) or f"<{_kind(value).__name__}>"


def _substitute(value: Any) -> object:
    return _plain_exception(value) if _is(value, BaseException) else _text_of(value)


def _plain_exception(error: Any) -> BaseException:
    text = _text_of(error)
    if _keeps_inputs(error):
        # The lines after the first have inputs, cut short, where a secret can't be found.
        text = text.partition("\n")[0]
    for base in _kind(error).__mro__[1:]:
        if issubclass(base, BaseException) and base.__module__ == "builtins":
            with contextlib.suppress(TypeError):  # where it wants more than a text
                copy: BaseException = base(f"{_kind(error).__name__}: {text}")
                return copy
    return Exception(text)


def _input_errors(error: Any) -> list[Any]:
    """The errors and inputs inside a pydantic error, from which it can be made again."""
    errors: list[Any] = error.errors(include_url=False) if _keeps_inputs(error) else []
    return errors


def _keeps_inputs(error: Any) -> bool:
    return hasattr(_kind(error), "from_exception_data")


def _input_error(error: dict[str, Any]) -> dict[str, Any]:
    return {name: error[name] for name in ("type", "loc", "input", "ctx") if name in error}


def _items(value: Any) -> list[Any]:
    kind = next(kind for kind in _SERIES if _is(value, kind))
    return list(kind.__iter__(value))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    kind: Any = OrderedDict if _is(value, OrderedDict) else dict
    return list(kind.items(value) if _is(value, dict) else value.items())


def _state(value: Any) -> dict[str, object]:
    """An object's own attributes, read without code of its class."""
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return dict(attributes) if _is(attributes, dict) else {}


def _fields(value: Any) -> dict[Any, Any]:
    """The values of an object's slots, also those of classes written in C, by their descriptors."""
    fields: dict[Any, Any] = {}
    for member in _members(_kind(value)):
        with contextlib.suppress(AttributeError):  # not set
            fields[member] = member.__get__(value)
    return fields


@functools.lru_cache(maxsize=1024)
def _members(kind: Any) -> tuple[types.MemberDescriptorType, ...]:
    bases: list[type] = kind.__mro__
    return tuple(
        member
        for base in bases
        for name, member in vars(base).items()
        if isinstance(member, types.MemberDescriptorType)
        and name not in ("__dict__", "__weakref__")
        and member not in _DERIVED
    )


_DERIVED: Final[frozenset[Any]] = frozenset(
    {
        vars(BaseException)["__suppress_context__"],
        vars(BaseExceptionGroup)["message"],
        vars(BaseExceptionGroup)["exceptions"],
    }
)
"""Slots of exceptions that are set by the arguments or by other attributes."""
