# SPDX-License-Identifier: Apache-2.0
"""Looks for leaked secrets in texts, objects, exceptions with their frames, spans and log records.

A secret is searched as it is and encoded: base64 at all three offsets, base64url, percent-encoded, hex, escaped as JSON or by
`repr`, and each part of a signed token.
"""

from __future__ import annotations

import base64
import json
import re
import traceback
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus

from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

_SHORTEST: Final = 8


class LeakError(AssertionError):
    """A leaked secret. It holds the secrets, so that the report of the failure can be scrubbed of them."""

    def __init__(self, where: str, secrets: Iterable[Secret]) -> None:
        super().__init__(f"a secret shows in the {where}")
        self._secrets = tuple(secrets)


def assert_no_leak(secrets: Iterable[str], *places: object) -> None:
    """Fail if a secret, in any encoding, shows in a place: a text, bytes, an exception, or any object's readable forms.

    pytest reports the failure scrubbed and without the values of variables, since CI logs must not have secrets, either.

    Raises:
        AssertionError: a secret shows; the message says where, but not which.
    """
    __tracebackhide__ = True
    held = [Secret(secret) for secret in secrets]
    where = _find_leak(held, places)
    del secrets, places  # pytest and crash reporters show the variables of each frame
    if where is not None:
        raise LeakError(where, held)


def _find_leak(secrets: Iterable[Secret], places: Iterable[object]) -> str | None:
    """The first place where a secret shows."""
    spellings = {spelling for secret in secrets for spelling in _spellings(secret.reveal())}
    for number, place in enumerate(places):
        for kind, text in traces_of(place):
            if any(spelling in text for spelling in spellings):
                return f"{kind} of place {number} ({type(place).__name__})"
    return None


def traces_of(place: object) -> Iterator[tuple[str, str]]:
    """Every text that a place can turn into, with the kind of text."""
    if isinstance(place, str):
        yield "text", place
    elif isinstance(place, bytes):
        yield "bytes", place.decode("utf-8", "replace")
    elif isinstance(place, BaseException):
        yield from _exception_traces(place, set())
    else:
        yield from _object_traces(place)


def _object_traces(place: object) -> Iterator[tuple[str, str]]:
    yield "repr", _render(place)
    yield "str", _render(place, str)
    yield "format", _render(place, format)
    if hasattr(place, "__dict__"):
        yield "vars", _render(vars(place))
    for kind in type(place).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(place, name):
                yield f"slot {name}", _render(getattr(place, name))


def _exception_traces(error: BaseException, seen: set[int]) -> Iterator[tuple[str, str]]:
    """An exception as a crash reporter sees it: text, args, notes, and the locals of every frame, of its causes too."""
    if id(error) in seen:
        return
    seen.add(id(error))
    yield "error", "".join(traceback.format_exception(error))
    yield "args", repr(error.args)
    yield "error vars", repr(vars(error))
    yield from _frame_traces(error.__traceback__)
    for inner in (error.__cause__, error.__context__):
        if inner is not None:
            yield from _exception_traces(inner, seen)
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
            yield from _exception_traces(inner, seen)  # pyright: ignore[reportUnknownArgumentType]


def _frame_traces(frames: TracebackType | None) -> Iterator[tuple[str, str]]:
    while frames is not None:
        place = f"{frames.tb_frame.f_code.co_filename}:{frames.tb_lineno}"
        if "agent_identity" in place:  # not the frames of tools
            for name, value in frames.tb_frame.f_locals.items():
                yield f"local {name} at {place}", _render(value)
        frames = frames.tb_next


def _render(value: object, how: Callable[[object], str] = repr) -> str:
    try:
        return how(value)
    except Exception:  # noqa: BLE001 - an unfinished object has no readable form, so it shows nothing
        return ""


def _spellings(secret: str) -> Iterator[str]:
    parts = [secret, *(part for part in secret.split(".") if secret.count(".") == 2)]  # noqa: PLR2004 - a JWS has three
    for part in parts:
        if len(part) < _SHORTEST:
            continue
        data = part.encode()
        yield from (part, repr(part)[1:-1], repr(data)[2:-1])
        yield from (json.dumps(part)[1:-1], json.dumps(part, ensure_ascii=False)[1:-1])
        for quoted in (quote(part, safe=""), quote_plus(part)):
            yield from (quoted, _ESCAPE.sub(lambda match: match[0].lower(), quoted))
        yield from (data.hex(), data.hex().upper())
        for offset in range(3):
            # The encoding inside of a longer text, whatever comes before and after.
            padded = base64.b64encode(b"\0" * offset + data).decode()
            middle = padded[4 if offset else 0 :].rstrip("=")[:-1]
            if len(middle) >= _SHORTEST:
                yield from (middle, middle.replace("+", "-").replace("/", "_"))


_ESCAPE: Final = re.compile("%[0-9A-F]{2}")
