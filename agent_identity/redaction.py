# SPDX-License-Identifier: Apache-2.0
"""Finds the secrets of this process in a text, in any encoding.

A text is searched as it is and decoded: with its escapes undone (percent-encoding, JSON, HTML), as hex, and as base64 at every
alignment. Decoded text is searched in the same way, so that encodings may be nested. The time is linear in the length of the
text. Secrets of fewer than `SHORTEST` characters aren't searched for: replacing them would destroy any text.

Every existing `Secret` is searched for, whichever session made it. `keep` keeps one for as long as a session lasts.
"""

from __future__ import annotations

import binascii
import re
import threading
import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from functools import cached_property
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHORTEST: Final = 4
"""The minimum length of a secret that is searched for. In hex or base64 it is found from 8 characters on."""

_PART: Final = 8
"""The minimum length of a part (of a signed token, a line of a key) that is searched for, too."""

_DEPTH: Final = 3
"""How many nested encodings are undone."""

_SECRET: Final = "<secret>"  # noqa: S105 - the replacement
_TOKEN: Final = "<token>"  # noqa: S105 - the replacement
_THREE_PARTS: Final = re.compile(
    r"(?<![A-Za-z0-9_-])[A-Za-z0-9_-]++(?=(\.[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+))"
)
"""The first part of a text in the form of a signed token, and the other two."""


class Revealing(Protocol):
    """An object that holds a secret text."""

    def reveal(self) -> str: ...


class _Span(NamedTuple):
    """The place of a secret in a text, and its replacement."""

    start: int
    end: int
    instead: str


def scrub(text: str) -> str:
    """Replace every known secret and every signed token in a text for a model, a log or telemetry."""
    spans = _find_spans(text, _DEPTH)
    if not spans:
        return text
    pieces: list[str] = []
    at = 0
    for span in _merge(spans):
        pieces += (text[at : span.start], span.instead)
        at = span.end
    return "".join((*pieces, text[at:]))


def small_numbers_are_clean() -> bool:
    """Whether no known secret can be in a float, or in an integer below 2**64."""
    return not _secrets.has_numeric()


def scrub_bytes(data: bytes) -> bytes:
    """`scrub` for bytes in any encoding."""
    return scrub(data.decode("latin-1")).encode("latin-1")


def is_clean(text: str) -> bool:
    """Whether `scrub` would leave the text as it is."""
    return not _find_spans(text, _DEPTH)


def remember(secret: Revealing) -> None:
    """Search for a secret from now on, as long as it exists."""
    _secrets.add(secret)


def keep(kept: dict[int, Revealing], *secrets: Revealing) -> None:
    """Keep secrets in `kept`, so that they exist and are searched for as long as it does; only the newest `_KEPT`."""
    for secret in secrets:
        key = hash(secret.reveal())  # salted for this process
        kept.pop(key, None)
        kept[key] = secret
        while len(kept) > _KEPT:
            kept.pop(next(iter(kept)), None)


_KEPT: Final = 1024


def _find_spans(text: str, depth: int, *, has_escapes: bool = True) -> list[_Span]:
    spans = [_Span(start, end, _SECRET) for start, end in _secrets.find(text)]
    if "eyJ" in text:
        spans += [_Span(start, end, _TOKEN) for start, end in _find_tokens(text)]
    if depth:
        for reading in _readings(text, has_escapes=has_escapes):
            spans += [
                _Span(reading.start(start), reading.end(end), instead)
                for start, end, instead in _find_spans_in(reading, depth - 1)
            ]
    return spans


def _find_tokens(text: str) -> Iterator[tuple[int, int]]:
    """The places of signed tokens in a text. The first part of one has 8 or more characters after its `eyJ`."""
    last = 0
    for first in _THREE_PARTS.finditer(text):
        start = text.find("eyJ", max(first.start(), last), max(first.end() - _PART, 0))
        if start >= 0:
            last = first.end(1)
            yield start, last


def _find_spans_in(reading: _Reading, depth: int) -> Iterator[_Span]:
    """Search a decoded text. Of hex and base64 only readable parts are decoded further: the rest is noise without end."""
    if isinstance(reading, _RewrittenText):
        yield from _find_spans(reading.text, depth, has_escapes=False)
        return
    for start, end in _secrets.find(reading.text):
        yield _Span(start, end, _SECRET)
    for match in _TEXT.finditer(reading.text) if depth else ():
        first = match.start()
        for start, end, instead in _find_spans(match[0], depth):
            yield _Span(first + start, first + end, instead)


_TEXT: Final = re.compile(r"[\0\t\r\n -~]{11,}")


def _merge(spans: list[_Span]) -> Iterator[_Span]:
    """Spans in order, those that overlap as one."""
    current: _Span | None = None
    for span in sorted(spans):
        if current is None:
            current = span
        elif span.start < current.end:
            instead = _SECRET if _SECRET in (span.instead, current.instead) else _TOKEN
            current = _Span(current.start, max(current.end, span.end), instead)
        else:
            yield current
            current = span
    if current is not None:
        yield current


class _Reading(Protocol):
    """A text decoded in one way. `start` and `end` map a position in it to the original text."""

    text: str

    def start(self, at: int, /) -> int: ...

    def end(self, at: int, /) -> int: ...


def _readings(text: str, *, has_escapes: bool) -> Iterator[_Reading]:
    if has_escapes and _ESCAPING.search(text) is not None:
        yield _RewrittenText(text, _unescape(text), _unescape_steps)
    if _SEPARATED_HEX.search(text) is not None:
        yield _RewrittenText(text, _SEPARATOR.sub("", text), _join_steps)
    shortest = max(_secrets.shortest(), _PART)
    if _has_run(_BASE64, 8 * shortest // 6, text):
        data = text.encode("ascii", "replace").translate(_AS_BASE64)
        for first in range(4):
            letters = data[first:] + b"A" * (-(len(data) - first) % 4)
            yield _DecodedText(binascii.a2b_base64(letters), first, len(data), (4, 3))
    if _has_run(_HEX, 2 * shortest, text):
        data = text.encode("ascii", "replace").translate(_AS_HEX)
        for first in range(2):
            digits = data[first:] + b"0" * ((len(data) - first) % 2)
            yield _DecodedText(binascii.unhexlify(digits), first, len(data), (2, 1))


def _has_run(letters: str, length: int, text: str) -> bool:
    """Whether there are so many letters in a row. Each run is only tried at its start."""
    run = f"(?<!{letters}){letters}{{{length}}}"
    return len(text) >= length and re.search(run, text) is not None


_BASE64: Final = "[A-Za-z0-9+/_-]"
_HEX: Final = "[0-9A-Fa-f]"
_ESCAPING: Final = re.compile(r"[%\\&\r\n\0]")


def _table(alphabet: bytes, other: bytes, **spelled: bytes) -> bytes:
    """A table that replaces what isn't in an alphabet by `other`, so that a whole text can be decoded in place."""
    table = bytearray(other * 256)
    for letter in alphabet:
        table[letter] = letter
    table[ord("-")] = spelled.get("dash", other)[0]
    table[ord("_")] = spelled.get("underscore", other)[0]
    return bytes(table)


_LETTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_AS_BASE64: Final = _table(_LETTERS, b"A", dash=b"+", underscore=b"/")
_AS_HEX: Final = _table(b"0123456789abcdefABCDEF", b"0")


class _DecodedText:
    """A text decoded as hex or base64 from its `first` character on. `ratio` is characters to bytes."""

    def __init__(self, data: bytes, first: int, length: int, ratio: tuple[int, int]) -> None:
        self.text: str = data.decode("latin-1")
        self._first = first
        self._length = length
        self._characters, self._bytes = ratio

    def start(self, at: int, /) -> int:
        return self._first + self._characters * at // self._bytes

    def end(self, at: int, /) -> int:
        return min(self._first - (-self._characters * at // self._bytes), self._length)


_CODED: Final = re.compile(
    r"%[0-9A-Fa-f]{2}"
    r"|(?<!\\)\\++(?:u[dD][89abAB][0-9A-Fa-f]{2}\\++u[dD][c-fC-F][0-9A-Fa-f]{2}"
    r"|u\{[0-9A-Fa-f]{1,6}\}|u[0-9A-Fa-f]{4}|U00[0-9A-Fa-f]{6}|x[0-9A-Fa-f]{2})"
    r"|&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|amp|lt|gt|quot|apos);"
)
"""One escape. A run of backslashes is matched only from its start: a try at each of them would be quadratic."""
_DROPPED: Final = re.compile(r"\\+[nrt]?|[\r\n\0]+")
"""Line breaks, escaped or not, backslashes before a quote or a slash, and the zero bytes of UTF-16."""
_NAMED: Final = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_LAST_CHARACTER: Final = 0x10FFFF


def _decode_escape(match: re.Match[str]) -> str:
    """The character that one escape stands for."""
    escape = match[0]
    if escape[0] == "%":
        return chr(int(escape[1:], 16))
    if escape[0] == "&":
        return _decode_html(escape[1:-1])
    code = escape.lstrip("\\")
    if "\\" in code:  # a pair of surrogates
        high, low = int(code[1:5], 16), int(code[-4:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    return _character(int(code[1:].strip("{}"), 16))


def _decode_html(name: str) -> str:
    if name[0] != "#":
        return _NAMED[name]
    is_hex = name[1] in "xX"
    return _character(int(name[2:] if is_hex else name[1:], 16 if is_hex else 10))


def _character(number: int) -> str:
    return chr(number) if number <= _LAST_CHARACTER else ""


def _drop(_: re.Match[str]) -> str:
    return ""


def _unescape(text: str) -> str:
    *_, (coded, _, _) = _unescape_steps(text)
    return _DROPPED.sub("", coded)


_Step: TypeAlias = "tuple[str, re.Pattern[str], Callable[[re.Match[str]], str]]"


def _unescape_steps(text: str) -> Iterator[_Step]:
    """The steps that undo escapes: decode characters until none is left, then drop the rest."""
    for _ in range(_DEPTH):
        decoded = _CODED.sub(_decode_escape, text)
        if decoded == text:
            break
        yield text, _CODED, _decode_escape
        text = decoded
    yield text, _DROPPED, _drop


def _join_steps(text: str) -> Iterator[_Step]:
    yield text, _SEPARATOR, _drop


_SEPARATED_HEX: Final = re.compile(
    r"[0-9A-Fa-f]{2}(?:(?:(?:[:._ \t-]|, ?)(?:0x)?)?[0-9A-Fa-f]{2}){7}"
)
_SEPARATOR: Final = re.compile(r"(?<=[0-9A-Fa-f]{2})(?:[:._ \t-]|, ?)(?:0x)?(?=[0-9A-Fa-f]{2})")
"""What separates two bytes in hex that is written for people."""


class _RewrittenText:
    """A text after some steps of replacement."""

    def __init__(self, original: str, text: str, steps: Callable[[str], Iterator[_Step]]) -> None:
        self.text: str = text
        self._original = original
        self._steps = steps

    @cached_property
    def _back(self) -> list[_OffsetMap]:
        return [_OffsetMap(*step) for step in self._steps(self._original)][::-1]

    def start(self, at: int, /) -> int:
        for step in self._back:
            at = step.start(at)
        return at

    def end(self, at: int, /) -> int:
        for step in self._back:
            at = step.end(at)
        return at


class _OffsetMap:
    """Maps positions in a text to positions before a pattern was replaced in it."""

    def __init__(
        self, text: str, pattern: re.Pattern[str], instead: Callable[[re.Match[str]], str]
    ) -> None:
        self._after: list[int] = [0]
        self._before: list[int] = [0]
        """Where each piece begins. Kept and replaced pieces alternate."""
        moved = 0
        for match in pattern.finditer(text):
            start, end = match.span()
            length = len(instead(match))
            self._before += (start, end)
            self._after += (start + moved, start + moved + length)
            moved += length - (end - start)

    def start(self, at: int, /) -> int:
        piece = bisect_right(self._after, at) - 1
        into = 0 if piece % 2 else at - self._after[piece]
        return self._before[piece] + into

    def end(self, at: int, /) -> int:
        piece = bisect_left(self._after, at) - 1
        if piece % 2:
            return self._before[piece + 1]
        return self._before[piece] + at - self._after[piece]


def _find_occurrences(form: str, text: str) -> Iterator[tuple[int, int]]:
    """The places of a form in a text, overlapping ones too.

    If a form repeats its beginning, the repetition is followed to its end: a search from each next character would be quadratic.
    """
    at = text.find(form)
    again = _repeating_end(form) if at >= 0 else ""
    while at >= 0:
        end = at + len(form)
        while again and text.startswith(again, end):
            end += len(again)
        yield at, end
        at = text.find(form, end - len(form) + 1)


def _repeating_end(form: str) -> str:
    """The text that would continue a form's repetition of its beginning (of at most half its length), or nothing."""
    period = form.find(form[: (len(form) + 1) // 2], 1)
    return form[-period:] if period > 0 and form.startswith(form[period:]) else ""


def _forms(secret: str) -> tuple[str, ...]:
    """The forms of a secret in decoded text: also its parts, its UTF-8 read as Latin-1, and spaces as plus signs."""
    parts = {secret}
    if secret.count(".") == 2:  # noqa: PLR2004 - a signed token has three parts
        parts.update(part for part in secret.split(".") if len(part) >= _PART)
    if "\n" in secret:
        parts.update(
            line for line in secret.split() if len(line) >= 2 * _PART and "-----" not in line
        )
    forms: set[str] = set()
    for part in parts:
        for spaced in (part, part.replace(" ", "+")) if " " in part else (part,):
            forms |= {spaced, _undo_escapes(spaced)}
    forms |= {_as_latin_1(form) for form in forms if not form.isascii()}
    return tuple(form for form in forms if len(form) >= SHORTEST)


def _as_latin_1(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "surrogatepass").decode("latin-1")


def _undo_escapes(text: str) -> str:
    """A secret as it is in a text whose escapes are undone: what looks like an escape in the secret is undone, too."""
    return text if _ESCAPING.search(text) is None else _unescape(text)


def _is_numeric(form: str) -> bool:
    """Whether a form can be in the text of a small number: as it is, or as hex of at most 20 digits."""
    if _NUMERIC.fullmatch(form) is not None:
        return True
    return (
        len(form) <= _DIGITS
        and _NUMERIC.fullmatch(_as_latin_1(form).encode("latin-1").hex()) is not None
    )


_NUMERIC: Final = re.compile(r"[0-9.e+-]+|inf|nan")
_DIGITS: Final = 20


class _SecretEntry(weakref.ref[Revealing]):
    """A weak reference to a secret, with its forms, their ends and their shortest length."""

    __slots__ = ("ends", "forms", "is_numeric", "shortest")

    ends: frozenset[str]
    forms: Callable[[], tuple[str, ...]]
    is_numeric: bool
    shortest: int


class _SecretIndex:
    """The existing secrets of this process. Thread-safe; a forked child keeps them."""

    __slots__ = ("_by_end", "_dead", "_held", "_lock", "_new", "_shortest")

    def __init__(self) -> None:
        self._new: deque[_SecretEntry] = deque()
        """Secrets that aren't indexed before the next search: most are never searched for, so that making one is cheap."""
        self._held: dict[int, _SecretEntry] = {}
        self._by_end: dict[str, dict[int, _SecretEntry]] = {}
        """Entries by the last characters of their forms, so that searching a short text for many secrets is fast."""
        self._dead: deque[_SecretEntry] = deque()
        """Entries of deleted secrets, to be removed later: the garbage collector may run while the lock is held."""
        self._shortest: int | None = None
        self._lock = threading.RLock()

    def add(self, secret: Revealing) -> None:
        self._new.append(_SecretEntry(secret, self._dead.append))
        if len(self._new) > _PENDING:
            self._update()

    def _update(self) -> None:
        with self._lock:
            while self._new:
                self._index(self._new[0])
                self._new.popleft()  # afterwards, so that an interrupt in between loses nothing
            while self._dead:
                self._forget(self._dead[0])
                self._dead.popleft()

    def _index(self, held: _SecretEntry) -> None:
        secret = held()
        if secret is None:
            return
        forms = _forms(secret.reveal())
        held.ends = frozenset(form[-SHORTEST:] for form in forms)
        held.forms = lambda: forms
        held.is_numeric = any(map(_is_numeric, forms))
        held.shortest = min(map(len, forms), default=_LONG)
        self._held[id(held)] = held
        self._shortest = None
        for end in held.ends:
            sharing = self._by_end.get(end, {})
            sharing[id(held)] = held
            self._by_end[end] = sharing

    def _forget(self, dead: _SecretEntry) -> None:
        if self._held.pop(id(dead), None) is None:
            return
        self._shortest = None
        for end in dead.ends:
            sharing = self._by_end.get(end, {})
            sharing.pop(id(dead), None)
            if not sharing:
                self._by_end.pop(end, None)

    def shortest(self) -> int:
        """The length of the shortest form of all secrets."""
        shortest = self._shortest
        if shortest is None:
            lengths = [held.shortest for held in list(self._held.values())]
            self._shortest = shortest = min(lengths, default=_LONG)
        return shortest

    def has_numeric(self) -> bool:
        if self._new or self._dead:
            self._update()
        return any(held.is_numeric for held in list(self._held.values()))

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """The places of secrets in a text."""
        for held in self._select(text):
            for form in held.forms():
                yield from _find_occurrences(form, text)

    def _select(self, text: str) -> list[_SecretEntry]:
        """Those secrets whose forms may end in the text, or all if that is faster."""
        if self._new or self._dead:
            self._update()
        if len(text) < SHORTEST:
            return []
        if len(self._held) * (100 + len(text) // 10) < len(text) * 60:  # nanoseconds
            return list(self._held.values())
        by_end, last = self._by_end, len(text) - SHORTEST + 1
        ends = {text[at : at + SHORTEST] for at in range(last)}
        selected: dict[int, _SecretEntry] = {}
        for end in ends:
            if (sharing := by_end.get(end)) is not None:
                selected |= {id(held): held for held in list(sharing.values())}
        return list(selected.values())

    def start_over(self) -> None:
        """In a forked child: a thread of the parent may have held the lock."""
        self._lock = threading.RLock()


_PENDING: Final = 256
_LONG: Final = 1 << 20
_secrets: Final = _SecretIndex()


def start_over() -> None:
    """In a forked child: a thread of the parent may have held the lock. `values` registers this."""
    _secrets.start_over()
