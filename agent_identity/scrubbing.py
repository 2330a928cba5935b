# SPDX-License-Identifier: Apache-2.0
"""Takes the secrets out of any value that leaves for a model, a callback or a checkpoint: texts, containers, objects, exceptions.

What shows no secret stays itself. What does is made anew, with the same type and the secrets replaced, and with it all that
leads to it; the rest is shared with the original, which isn't touched. What can't be made anew becomes a text.

A class counts as data: its fields are read from `__dict__` and slots, its `repr` and `str` are looked at, and nothing else of it
runs. What a function closes over, what a frame holds and what lies in a foreign library's memory isn't looked at.
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

__all__ = ["scrubbed", "scrubs"]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_OBJECTS: Final = 50_000
"""Objects with fields, of classes that aren't known here, that are looked into; those beyond become texts."""

_SMALL: Final = 1 << 64
"""Numbers below it have too few digits to hide an encoded secret that isn't itself made of digits."""

_BETWEEN: Final = " \x1f "
"""Stands between texts that are searched together: no encoding goes across it."""


_VALUES: Final[tuple[type, ...]] = (
    *(dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone),
    *(complex, decimal.Decimal, fractions.Fraction, uuid.UUID, range),
    *(ipaddress.IPv4Address, ipaddress.IPv6Address),
)
_PATHS: Final[tuple[type, ...]] = (
    *(pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath, pathlib.WindowsPath),
)


def scrubbed(value: T) -> T:
    """The value without secrets; the very same where it shows none.

    The type stays as well, save for what can't be made anew: that becomes a text, or an exception of the nearest base class.
    """
    made: T = _scrubbed(value)
    return made


def _scrubbed(value: Any) -> Any:
    if _kind(value) is str:
        return scrub(value)
    if value is None or _kind(value) is bool:
        return value
    try:
        return _Walk(value).again(value)
    except Exception:  # noqa: BLE001 - what can't be looked through isn't passed on
        return _substitute(value)


def scrubs(function: F) -> F:
    """The function, sync or async, with what it returns and what it raises scrubbed.

    An exception that shows no secret passes through as it is. One that does is replaced: it shows the same traceback, and
    nothing of the original.
    """
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def acalled(*args: Any, **kwargs: Any) -> Any:
            try:
                return scrubbed(await function(*args, **kwargs))
            except BaseException as error:
                safe = _without_this_frame(error)
                if safe is error:
                    raise
            raise safe  # outside of the block: nothing links it to the original

        return acalled  # type: ignore[return-value]

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return scrubbed(function(*args, **kwargs))
        except BaseException as error:
            safe = _without_this_frame(error)
            if safe is error:
                raise
        raise safe

    return called  # type: ignore[return-value]


def _without_this_frame(error: BaseException) -> BaseException:
    safe = scrubbed(error)
    if safe is not error and error.__traceback__ is not None:
        safe.__traceback__ = error.__traceback__.tb_next
    return safe


class _Node:
    """One value that was reached, those that hold it, and what it shows by itself."""

    __slots__ = ("held_by", "texts", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        self.held_by: list[int] = []
        self.texts: tuple[str, ...] = ()


class _Walk:
    """Everything that a value leads to: looked at first, then made anew as far as it leads to a secret."""

    def __init__(self, value: Any) -> None:
        self._nodes: dict[int, _Node] = {}
        self._unknown: set[int] = set()
        self._tainted: set[int] = set()
        self._made: dict[int, Any] = {}
        self._objects = 0
        self._numbers_are_clean = small_numbers_are_clean()
        self._look(value)
        texts = [text for node in self._nodes.values() for text in node.texts]
        if self._unknown or not is_clean(_BETWEEN.join(texts)):
            self._trace()

    def _look(self, value: Any) -> None:
        """Reach all of it, without recursion: what is nested deeply is no reason to fail."""
        waiting: list[tuple[object, int | None]] = [(value, None)]
        while waiting:
            found, holder = waiting.pop()
            if self._shows_nothing(found):
                continue
            node = self._nodes.get(id(found))
            if node is None:
                node = self._nodes[id(found)] = _Node(found)
                node.texts = (found,) if type(found) is str else _texts(found)
                if type(found) not in _BARE:
                    waiting += [(part, id(found)) for part in self._parts(found)]
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
        if _is_closed(value):
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

    def _trace(self) -> None:
        """Find what shows a secret, and all that leads to it."""
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

    # -- made anew -----------------------------------------------------------------------------------------------------

    def again(self, value: Any) -> Any:
        """The value made anew; the same where it leads to no secret."""
        if self._shows_nothing(value):
            return value
        if id(value) not in self._nodes:
            return scrubbed(value)  # made when it was asked for, by a field that is written in C
        if id(value) not in self._tainted:
            return value
        if id(value) not in self._made:
            # For what holds itself by way of something that can't wait, a tuple.
            self._made[id(value)] = _HIDDEN
            try:
                made = self._new(value)
            except Exception:  # noqa: BLE001 - whatever a foreign class raises, its secret doesn't pass
                made = _substitute(value)
            self._made[id(value)] = made
        return self._made[id(value)]

    def _new(self, value: Any) -> Any:
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
        made = str.__new__(_kind(value), text)
        return text if type(made) is str else self._checked(value, self._filled(value, made))

    def _bytes(self, value: Any) -> Any:
        data = scrub_bytes(bytes(value))
        if _is(value, bytes):
            made = bytes.__new__(_kind(value), data)
            return made if type(made) is bytes else self._filled(value, made)
        extended = self._begun(value)
        bytearray.extend(extended, data)
        return extended

    def _list(self, value: Any) -> Any:
        made = self._begun(value)
        kind: Any = list if _is(value, list) else deque
        kind.extend(made, [self.again(item) for item in _items(value)])
        return self._checked(value, made)

    def _deque(self, value: Any) -> Any:
        if _kind(value) is not deque:
            return self._list(value)
        made = self._made[id(value)] = deque[Any](maxlen=value.maxlen)
        made.extend([self.again(item) for item in value])
        return made

    def _tuple(self, value: Any) -> Any:
        made = _TUPLE.__new__(_kind(value), [self.again(item) for item in _items(value)])
        return self._checked(value, self._filled(value, made))

    def _set(self, value: Any) -> Any:
        items = [self.again(item) for item in _items(value)]
        if _is(value, frozenset):
            frozen = _FROZEN.__new__(_kind(value), items)
            return self._checked(value, self._filled(value, frozen))
        made = self._begun(value)
        _SET.update(made, items)
        return self._checked(value, made)

    def _dict(self, value: Any) -> Any:
        made = self._begun(value)
        kind: Any = OrderedDict if _is(value, OrderedDict) else dict
        for key, item in _pairs(value):
            kind.__setitem__(made, self.again(key), self.again(item))
        return self._checked(value, made)

    def _proxy(self, value: Any) -> Any:
        return types.MappingProxyType({self.again(k): self.again(v) for k, v in _pairs(value)})

    def _object(self, value: Any) -> Any:
        if hasattr(_kind(value), "__del__"):
            # A copy of what cleans up after itself would do so for the original.
            return _text_of(value)
        if _is_closed(value) or not (_state(value) or _fields(value)):
            return _text_of(value)
        return self._checked(value, self._begun(value))

    def _begun(self, value: Any) -> Any:
        """Another one of its class, known before what it holds is made, which may lead back to it."""
        made = self._made[id(value)] = _bare(_kind(value))
        return self._filled(value, made)

    def _filled(self, value: Any, made: Any) -> Any:
        state = {self.again(key): self.again(item) for key, item in _state(value).items()}
        if state:
            object.__getattribute__(made, "__dict__").update(state)
        for member, item in _fields(value).items():
            member.__set__(made, self.again(item))
        return made

    def _checked(self, value: Any, made: Any) -> Any:
        """What was made, unless it still shows something (what a class computes isn't a field), or can't be shown any more."""
        for before, after in zip(_texts(value), _texts(made), strict=True):
            if not is_clean(after) or (before and not after):
                return _text_of(value)
        return made

    def _exception(self, error: Any) -> BaseException:
        made: BaseException = self._like(error)
        self._made[id(error)] = made
        if _is(notes := error.__dict__.get("__notes__"), list):
            made.__dict__["__notes__"] = self.again(notes)
        made.__cause__ = self._linked(error.__cause__)
        made.__context__ = self._linked(error.__context__)
        made.__suppress_context__ = error.__suppress_context__
        made.__traceback__ = error.__traceback__
        return made

    def _linked(self, error: BaseException | None) -> BaseException | None:
        made = self.again(error)
        return made if isinstance(made, BaseException) else None

    def _like(self, error: Any) -> Any:
        """One of the same class, or of the nearest base that can be made with a text alone."""
        try:
            made = self._of_its_class(error)
            if _kind(made) is _kind(error) and self._checked(error, made) is made:
                return made
        except Exception:  # noqa: BLE001, S110 - see `again`
            pass
        if _is(error, BaseExceptionGroup):
            return BaseExceptionGroup(*self._group(error))
        return _plain_exception(error)

    def _of_its_class(self, error: Any) -> Any:
        kind = _kind(error)
        if found := _input_errors(error):
            made: Any = kind.from_exception_data(
                scrub(error.title), [_input_error(self.again(each)) for each in found]
            )
            return made
        if _is(error, BaseExceptionGroup):
            made = _bare(kind, *self._group(error))
        else:
            args = [self.again(argument) for argument in error.args]
            made = _bare(kind, *args)
            made.args = tuple(args)
        self._made[id(error)] = made
        self._filled(error, made)
        return made

    def _group(self, error: Any) -> tuple[str, list[Any]]:
        return scrub(error.message), [self.again(member) for member in error.exceptions]

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
"""Classes whose values hold nothing but what they show; those of a subclass may."""
_TUPLE: Final[Any] = tuple
_SET: Final[Any] = set
_FROZEN: Final[Any] = frozenset
_SERIES: Final[tuple[Any, ...]] = (list, tuple, set, frozenset, deque)
_KNOWN: Final[tuple[Any, ...]] = (
    *(dict, types.MappingProxyType, *_SERIES, BaseException),
    *(str, bytes, bytearray, int, float, enum.Enum, *_VALUES, pathlib.PurePath),
    *(ipaddress.IPv4Network, ipaddress.IPv6Network),
)
"""Classes whose values are looked into however many there are."""
_CLOSED: Final = (
    *(Secret, type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType),
    *(types.MethodType, types.CodeType, types.FrameType, types.TracebackType, types.GeneratorType),
    *(types.CoroutineType, types.AsyncGeneratorType, weakref.ReferenceType, property),
    *(logging.Logger, logging.Handler),
)
_CLOSED_MODULES: Final = frozenset(
    {
        *("agent_identity", "asyncio", "_asyncio", "concurrent", "contextvars", "_contextvars"),
        *("multiprocessing", "selectors", "socket", "_socket", "sqlite3", "ssl", "_ssl"),
        *("threading", "_thread"),
    }
)
"""What isn't data, and isn't looked into: it may lead to the whole program. What this library makes shows no secret."""


def _kind(value: object) -> Any:
    kind: Any = type(value)
    return kind


def _is(value: Any, kinds: Any) -> bool:
    """`isinstance` by the class alone: what a value says of its class is its own affair, and asking runs its code."""
    return issubclass(_kind(value), kinds)


def _is_closed(value: Any) -> bool:
    return _is_closed_kind(_kind(value))


@functools.lru_cache(maxsize=1024)
def _is_closed_kind(kind: Any) -> bool:
    if issubclass(kind, BaseException):
        return False
    return issubclass(kind, _CLOSED) or str(kind.__module__).partition(".")[0] in _CLOSED_MODULES


def _bare(kind: Any, *args: object) -> Any:
    """An object of a class, made without any code of the class."""
    bases: list[type] = kind.__mro__
    for base in bases:
        make: Any = vars(base).get("__new__")
        if make is not None and not _is(make, staticmethod):
            return make(kind, *args)
    raise TypeError("a class without a way to make objects")


def _texts(value: Any) -> tuple[str, ...]:
    """What a value shows by itself, apart from what it holds."""
    return tuple([_said(way, value) for way in _ways(_kind(value))])


@functools.lru_cache(maxsize=1024)
def _ways(kind: Any) -> tuple[Callable[[Any], str], ...]:
    """How values of a class are read."""
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
"""What shows the fields and nothing else."""


def _said(way: Callable[[Any], str], value: Any) -> str:
    try:
        return way(value)
    except Exception:  # noqa: BLE001 - what can't be shown shows nothing
        return ""


def _text_of(value: Any) -> str:
    return scrub(_said(str, value)) or f"<{_kind(value).__name__}>"


def _substitute(value: Any) -> object:
    return _plain_exception(value) if _is(value, BaseException) else _text_of(value)


def _plain_exception(error: Any) -> BaseException:
    text = _text_of(error)
    if _keeps_inputs(error):
        # Below the first line stand inputs, cut short, in which no secret can be found.
        text = text.partition("\n")[0]
    for base in _kind(error).__mro__[1:]:
        if issubclass(base, BaseException) and base.__module__ == "builtins":
            with contextlib.suppress(TypeError):  # where it wants more than a text
                made: BaseException = base(f"{_kind(error).__name__}: {text}")
                return made
    return Exception(text)


def _input_errors(error: Any) -> list[Any]:
    """What pydantic found wrong, with the inputs; its error keeps that to itself, and can be made anew from it."""
    found: list[Any] = error.errors(include_url=False) if _keeps_inputs(error) else []
    return found


def _keeps_inputs(error: Any) -> bool:
    return hasattr(_kind(error), "from_exception_data")


def _input_error(found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("type", "loc", "input", "ctx") if name in found}


def _items(value: Any) -> list[Any]:
    kind = next(kind for kind in _SERIES if _is(value, kind))
    return list(kind.__iter__(value))


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    kind: Any = OrderedDict if _is(value, OrderedDict) else dict
    return list(kind.items(value) if _is(value, dict) else value.items())


def _state(value: Any) -> dict[str, object]:
    """An object's own attributes, without asking its class."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return dict(found) if _is(found, dict) else {}


def _fields(value: Any) -> dict[Any, Any]:
    """What an object holds in slots, its own and those of a class that is written in C, by their descriptors."""
    found: dict[Any, Any] = {}
    for member in _members(_kind(value)):
        try:
            found[member] = member.__get__(value)
        except AttributeError:  # not set
            continue
    return found


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
"""What an exception is made with, or is set by the rest."""
