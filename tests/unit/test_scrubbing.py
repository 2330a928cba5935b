# SPDX-License-Identifier: Apache-2.0
"""What leaves for a model is scrubbed, whatever its type and however a secret in it is encoded."""

from __future__ import annotations

import array
import base64
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import html
import io
import ipaddress
import json
import logging
import os
import pathlib
import pickle
import random
import re
import subprocess
import sys
import threading
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self
from urllib.parse import quote, quote_plus

import httpx
import pydantic
import pytest

from agent_identity import redaction, scrubbing
from agent_identity.adapters import scrubbed, scrubs
from agent_identity.testing import assert_no_leak
from agent_identity.values import Secret, scrub

KEY = "sk-live/9f8+A7b6C5d4E3f2 G1h0=="
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLXRoaXM"


@pytest.fixture(autouse=True)
def _held() -> Iterator[None]:
    held = [Secret(KEY), Secret(TOKEN)]
    yield
    held.clear()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


ENCODINGS: dict[str, Callable[[str], str]] = {
    "itself": lambda text: text,
    "percent": lambda text: quote(text, safe=""),
    "percent, lower case": lambda text: re.sub(
        "%..", lambda found: found[0].lower(), quote(text, safe="")
    ),
    "percent, every character": lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    "percent, twice": lambda text: quote(quote(text, safe="")),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON, slashes": lambda text: json.dumps(text).replace("/", r"\/"),
    "JSON, \\u": lambda text: "".join(f"\\u{ord(character):04x}" for character in text),
    "JSON, \\U": lambda text: "".join(f"\\u{ord(character):04X}" for character in text),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"key": text})),
    "bytes": lambda text: repr(text.encode()),
    "hexadecimal escapes": lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    "HTML": lambda text: "".join(f"&#{ord(character)};" for character in text),
    "HTML, hex": lambda text: "".join(f"&#x{ord(character):x};" for character in text),
    "HTML, names": html.escape,
    "hex": lambda text: text.encode().hex(),
    "hex with colons": lambda text: text.encode().hex(":"),
    "hex with tabs": lambda text: text.encode().hex("\t"),
    "hex with underscores": lambda text: text.encode().hex("_"),
    "hex in lines": lambda text: text.encode().hex(" ", -4).upper(),
    "hex, byte by byte": lambda text: ", ".join(f"0x{byte:02x}" for byte in text.encode()),
    "JavaScript": lambda text: "".join(f"\\u{{{ord(character):x}}}" for character in text),
    "hex, upper case": lambda text: text.encode().hex().upper(),
    **{f"base64 after {n}": lambda text, n=n: b64("x" * n + text + "yz" * n) for n in range(5)},
    **{
        f"base64url after {n}": lambda text, n=n: (
            base64.urlsafe_b64encode(("~" * n + text + "?" * n).encode()).decode().rstrip("=")
        )
        for n in range(5)
    },
    "base64 in lines": lambda text: base64.encodebytes((f"{text} " * 9).encode()).decode(),
    "base64 in lines in JSON": lambda text: json.dumps(
        base64.encodebytes((f"{text} " * 9).encode()).decode()
    ),
    "base64 in a URL": lambda text: quote(b64(f"a:{text}"), safe=""),
    "base64 of a URL": lambda text: b64(quote(text, safe="")),
    "base64 of JSON": lambda text: b64(json.dumps({"key": text})),
    "base64 of base64": lambda text: b64(b64("a" + text)),
    "base64 of hex": lambda text: b64(text.encode().hex()),
    "hex of base64": lambda text: b64("a" + text).encode().hex(),
    "UTF-16 in base64": lambda text: base64.b64encode(text.encode("utf-16")).decode(),
    "in lines": lambda text: f"{text[:9]}\n{text[9:]}",
}


@pytest.mark.parametrize("secret", [KEY, TOKEN], ids=["key", "token"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_secret_is_found_however_it_is_encoded_and_what_is_around_it_stays(
    encoding: str, secret: str
) -> None:
    text = f"before: {ENCODINGS[encoding](secret)} :after"
    found = scrub(text)
    assert re.search("<secret>|<token>", found)
    assert found.startswith("before: ")
    assert found.endswith(" :after")
    assert_no_leak([secret], found)
    for decoded in (found, html.unescape(found), re.sub(r"\s", "", found)):
        assert secret not in decoded


@pytest.mark.parametrize(
    "secret", ['pä"ss\\wö😀rd', "%41%42 100%", "a\\nb\\u0041c", "line\nline-2"]
)
@pytest.mark.parametrize("encoding", ["itself", "percent", "JSON", "JSON in JSON", "hex"])
def test_a_secret_with_characters_that_are_escaped_is_found(encoding: str, secret: str) -> None:
    held = Secret(secret)
    for text in (f"<{ENCODINGS[encoding](secret)}>", f"{ENCODINGS[encoding](secret)} twice" * 2):
        assert "<secret>" in scrub(text)
    assert "<secret>" in scrub(json.dumps(secret, ensure_ascii=False))
    assert b"<secret>" in scrubbed(secret.encode())
    del held


def test_one_part_of_a_signed_token_is_a_secret_too() -> None:
    for part in TOKEN.split("."):
        assert scrub(f"it was {part}!") == "it was <secret>!"


def test_a_secret_too_short_to_be_searched_for_leaves_a_text_alone() -> None:
    held = [Secret("a"), Secret("xyz"), Secret("")]
    assert scrub("a text with xyz in it") == "a text with xyz in it"
    four = Secret("hunt")
    assert scrub("a hunt") == "a <secret>"
    assert held
    assert four


def test_many_secrets_are_found_as_few_are() -> None:
    many = [Secret(f"{n:05}-{n * 7919:09}") for n in range(3000)]
    for n in (0, 1234, 2999):
        text = many[n].reveal()
        assert scrub(f"sent {text} and {text.encode().hex()}") == "sent <secret> and <secret>"
    long = "nothing of the kind " * 5000
    assert scrub(long) == long
    assert scrub(long + many[77].reveal()) == long + "<secret>"
    assert len(many) == 3000


def test_a_secret_that_nobody_holds_any_more_is_forgotten() -> None:
    before = len(redaction._secrets._held)
    held = [Secret(f"short-lived-{n}") for n in range(400)]
    assert scrub("short-lived-7 ") == "<secret> "
    held.clear()
    assert scrub("short-lived-7 ") == "short-lived-7 "
    assert len(redaction._secrets._held) <= before
    assert not redaction._secrets._dead


def test_what_is_searched_for_has_no_readable_form_and_is_not_pickled() -> None:
    scrub("have all of them indexed")
    for found in (redaction._secrets, *redaction._secrets._held.values()):
        assert_no_leak([KEY, TOKEN], found)
        with pytest.raises(TypeError):
            pickle.dumps(found)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_a_forked_child_searches_for_what_its_parent_held_whoever_had_the_lock() -> None:
    acquired, done = threading.Event(), threading.Event()

    def hold() -> None:
        with redaction._secrets._lock:
            acquired.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    acquired.wait()
    child = os.fork()
    if child == 0:
        fresh = Secret("made-in-the-child")
        text = scrub(f"{KEY} made-in-the-child")
        os._exit(0 if text == "<secret> <secret>" and fresh else 1)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_noise_that_decodes_to_anything_is_left_alone() -> None:
    noise = random.Random(7)
    for size in (10, 1000, 30_000):
        data = noise.randbytes(size)
        for text in (
            data.hex(),
            base64.b64encode(data).decode(),
            data.decode("latin-1"),
            str(data),
        ):
            assert scrub(text) == text
        assert scrubbed(data) is data


@pytest.mark.parametrize(
    "secret", ["pqrspqrs", "ppppp", "pqrpq", "ppqppqpp", "pqppqpqppq", "pqrpqrp"]
)
def test_a_secret_that_overlaps_with_itself_leaves_no_part_of_it(secret: str) -> None:
    held = Secret(secret)
    noise = random.Random(5)
    for _ in range(500):
        text = "".join(noise.choice((secret, secret[:3], secret[-4:], "-")) for _ in range(9))
        covered = {
            at + n
            for at in range(len(text))
            if text.startswith(secret, at)
            for n in range(len(secret))
        }
        kept = "".join(letter for at, letter in enumerate(text) if at not in covered)
        assert scrub(text).replace("<secret>", "") == kept
    assert held


HOSTILE: dict[str, str] = {
    "backslashes": "\\" * 400_000,
    "beginnings of an escape": "\\u" * 200_000,
    "beginnings of a pair of surrogates": ("\\ud8aa" + "\\" * 10) * 25_000,
    "escaped percent signs": "%25" * 130_000,
    "beginnings of a reference": "&#1111111" * 45_000,
    "beginnings of a token": "eyJ" * 130_000,
    "a token without an end": "eyJ" * 130_000 + "." + "eyJ" * 130_000,
    "first parts of a token": "eyJaaaaaaaa." * 35_000,
    "a secret's letter": "a" * 400_000,
    "runs of base64 too short for a secret": ("b" * 30_000 + " ") * 13,
    "hex": "0f" * 200_000,
    "hex, byte by byte": "0x0f, " * 65_000,
}


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_text_costs_more_than_its_length(hostile: str) -> None:
    """Read anew at each of its characters, a text of this size takes many minutes; in one go, less than a second."""
    program = (
        "import sys\n"
        "from agent_identity.values import Secret, scrub\n"
        "held = [Secret('a' * 25_000), Secret('q' * 30_000)]\n"
        "scrub(sys.stdin.read())\n"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, input=HOSTILE[hostile], text=True, check=True, timeout=60)


# -- values of every type ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Data:
    text: str
    more: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    text: str


class Model(pydantic.BaseModel):
    text: str
    more: Any = None
    _own: str = ""


class Loose(pydantic.BaseModel, extra="allow"):
    pass


class Pair(NamedTuple):
    number: int
    text: str


class Plain:
    def __init__(self, text: str) -> None:
        self.text = text


class Slotted:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Text(str):
    __slots__ = ("__dict__",)


class Data8(bytes):
    more = ""


class Sent:
    __slots__ = ("exceptions", "message")

    def __init__(self, text: str) -> None:
        self.message, self.exceptions = text, []


def with_more(value: Any, text: str) -> Any:
    value.more = text
    return value


class Texts(list):
    pass


class Names(dict):
    pass


class Talking:
    """Shows what no field of it holds."""

    def __init__(self, text: str, how: str) -> None:
        self._say = {how: lambda: text}

    def __repr__(self) -> str:
        return self._say.get("repr", lambda: "talking")()

    def __str__(self) -> str:
        return self._say.get("str", lambda: "talking")()


class Closing:
    closed = 0

    def __init__(self, text: str) -> None:
        self.text = text

    def __del__(self) -> None:
        Closing.closed += 1


class Requiring:
    def __new__(cls, text: str) -> Self:
        assert text
        return super().__new__(cls)

    def __init__(self, text: str) -> None:
        self.text = text


SHAPES: dict[str, Callable[[str], Any]] = {
    "text": lambda text: f"a {text} b",
    "bytes": lambda text: b"\xff" + text.encode() + b"\0",
    "bytearray": lambda text: bytearray(text.encode()),
    "memoryview": lambda text: memoryview(text.encode()),
    "BytesIO": lambda text: io.BytesIO(text.encode()),
    "StringIO": io.StringIO,
    "list": lambda text: [1, text],
    "tuple": lambda text: (1, text),
    "dict": lambda text: {"x": text},
    "key": lambda text: {text: 1},
    "set": lambda text: {1, text},
    "frozenset": lambda text: frozenset({1, text}),
    "deque": lambda text: collections.deque([text], maxlen=3),
    "defaultdict": lambda text: collections.defaultdict(list, x=text),
    "OrderedDict": lambda text: collections.OrderedDict([("x", 1), ("y", text)]),
    "Counter": lambda text: collections.Counter([text]),
    "ChainMap": lambda text: collections.ChainMap({"x": text}),
    "UserDict": lambda text: collections.UserDict(x=text),
    "UserList": lambda text: collections.UserList([text]),
    "mappingproxy": lambda text: types.MappingProxyType({"x": text}),
    "namespace": lambda text: types.SimpleNamespace(x=text),
    "namedtuple": lambda text: Pair(1, text),
    "list of a class": lambda text: Texts([text]),
    "dict of a class": lambda text: Names(x=text),
    "text of a class": Text,
    "text with an attribute": lambda text: with_more(Text("x"), text),
    "bytes of a class": lambda text: Data8(text.encode()),
    "bytes with an attribute": lambda text: with_more(Data8(b"x"), text),
    "slots of a message": Sent,
    "dataclass": Data,
    "frozen dataclass": Frozen,
    "model": lambda text: Model(text=text),
    "model's extra": lambda text: Loose(x=text),
    "plain object": Plain,
    "slots": Slotted,
    "an object's constructor": Requiring,
    "path": pathlib.PurePosixPath,
    "httpx request": lambda text: httpx.Request("GET", "https://a.example", headers={"x": text}),
    "httpx response": lambda text: httpx.Response(
        200, headers={"x": text}, request=httpx.Request("GET", "https://a.example", content=text)
    ),
    "nested": lambda text: [{"a": ({"b": [Data("x", Model(text="y", more=Plain(text)))]},)}],
    "finished process": lambda text: subprocess.CompletedProcess(["curl", text], 1, text),
    "log record": lambda text: logging.makeLogRecord({"msg": "sent %s", "args": (text,)}),
    "error": ValueError,
    "error in a list": lambda text: [ValueError(text)],
}
TEXTS: dict[str, Callable[[str], Any]] = {
    "repr": lambda text: Talking(text, "repr"),
    "str": lambda text: Talking(text, "str"),
    "partial": lambda text: functools.partial(print, text),
    "match": lambda text: re.match(".*", text),
    "dict values": lambda text: {"x": text}.values(),
    "enum": lambda text: enum.Enum("Kind", {"one": text})["one"],
    "number": lambda _: 90210_90210_90210,
    "decimal": lambda _: decimal.Decimal(90210_90210_90210),
    "array": lambda text: array.array("B", text.encode()),
    "closing": Closing,
    "class": lambda text: type(text, (), {}),
    "module": types.ModuleType,
}


def shown(value: Any, seen: set[int] | None = None) -> Iterator[str]:
    """Every text in a value, found in another way than the library looks for it."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, type | types.ModuleType):
        return
    seen.add(id(value))
    yield from (repr(value), str(value))
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value).decode("latin-1")
    if isinstance(value, io.BytesIO | io.StringIO):
        yield str(value.getvalue())
    if isinstance(value, collections.abc.Mapping):
        for pair in value.items():
            yield from (text for part in pair for text in shown(part, seen))
    elif isinstance(value, collections.abc.Iterable) and not isinstance(value, str | bytes):
        for item in list(value) if isinstance(value, collections.abc.Sized) else ():
            yield from shown(item, seen)
    for name in (*getattr(type(value), "__slots__", ()), *getattr(value, "__dict__", ())):
        yield from shown(getattr(value, name, None), seen)
    if isinstance(value, BaseException):
        for inner in (value.args, value.__cause__, value.__context__):
            yield from shown(inner, seen)
        for inner in getattr(value, "exceptions", ()):
            yield from shown(inner, seen)


@pytest.mark.parametrize("encoding", ["itself", "percent", "JSON, \\u", "hex", "base64 after 1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_value_of_any_type_keeps_its_type_and_loses_its_secret(shape: str, encoding: str) -> None:
    told = ENCODINGS[encoding](KEY)
    value = SHAPES[shape](told)
    made = scrubbed(value)
    assert type(made) is type(value)
    assert made is not value
    texts = [*shown(made)]
    assert any("<secret>" in text for text in texts)
    assert_no_leak([KEY], *texts)
    assert not any("<secret>" in text for text in shown(value))  # the original isn't touched


@pytest.mark.parametrize("shape", TEXTS)
def test_what_cannot_be_made_anew_becomes_a_text(shape: str) -> None:
    number = Secret("902109021090210")
    value = TEXTS[shape](KEY)
    made = scrubbed(value)
    assert type(made) in (str, bytes)
    assert_no_leak([KEY, number.reveal()], made)
    assert Closing.closed <= 1


@pytest.mark.parametrize("shape", [*SHAPES, *TEXTS])
def test_a_value_without_a_secret_stays_the_very_same(shape: str) -> None:
    value = {**SHAPES, **TEXTS}[shape]("nothing of the kind")
    assert scrubbed(value) is value or scrubbed(value) == value


def test_only_what_leads_to_a_secret_is_made_anew() -> None:
    kept, lock = Plain("x"), threading.Lock()
    value = {"kept": kept, "leak": [KEY], "object": types.SimpleNamespace(lock=lock, key=KEY)}
    made = scrubbed(value)
    assert made["kept"] is kept
    assert made["object"].lock is lock
    assert made["leak"] == ["<secret>"]


def test_what_leads_back_to_itself_does_so_still() -> None:
    one = types.SimpleNamespace(key=KEY)
    one.me, one.all = one, [one]
    made = scrubbed(one)
    assert made.me is made
    assert made.all[0] is made
    assert made.key == "<secret>"
    deep: Any = [KEY]
    for _ in range(100_000):
        deep = [deep]
    assert scrubbed(deep) is not deep
    while deep:  # taken apart by hand: the interpreter would do it by recursion
        deep = deep.pop() if isinstance(deep, list) else None


def test_more_objects_than_can_be_looked_into_are_not_passed_on() -> None:
    many = [Plain("x") for _ in range(50_100)]
    many.insert(0, Plain(KEY))
    made = scrubbed(many)
    assert_no_leak([KEY], *(str(vars(one)) if isinstance(one, Plain) else one for one in made))
    assert scrubbed(many[1:100]) == many[1:100]


class Level(enum.Enum):
    LOW = 1
    HIGH = ("b", 2)


STANDARD: dict[str, Callable[[int], Any]] = {
    "date": lambda n: dt.date.fromordinal(n + 1),
    "time": lambda n: dt.time(1, 2, 3, n),
    "datetime": lambda n: dt.datetime(2026, 1, 2, 3, 4, 5, n, dt.UTC),
    "timedelta": dt.timedelta,
    "Decimal": decimal.Decimal,
    "Fraction": lambda n: fractions.Fraction(1, n + 1),
    "UUID": lambda n: uuid.UUID(int=n),
    "path": lambda n: pathlib.PurePosixPath(f"/a/{n}"),
    "concrete path": lambda n: pathlib.Path(f"/a/{n}"),
    "IPv4 address": ipaddress.IPv4Address,
    "IPv6 address": ipaddress.IPv6Address,
    "IPv4 network": ipaddress.IPv4Network,
    "complex": lambda n: complex(n, 1),
    "float": float,
    "int": lambda n: n + 1000,
    "enum": lambda n: Level.HIGH if n % 2 else Level.LOW,
    "range": range,
    "object without fields": lambda _: object(),
}


@pytest.mark.parametrize("kind", STANDARD)
def test_a_value_without_a_secret_stays_however_many_objects_came_before_it(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(scrubbing, "_OBJECTS", 20)
    values = [STANDARD[kind](n) for n in range(50)]
    looked_at_first = [Plain(KEY), *(Plain("x") for _ in range(40))]
    made = scrubbed([*values, *looked_at_first])  # the last is looked at first
    for value, after in zip(values, made, strict=False):
        assert after is value
    assert scrubbed(values) is values


@pytest.mark.parametrize("kind", ["Decimal", "Fraction", "UUID", "IPv6 address", "complex"])
def test_a_number_of_any_class_that_shows_a_secret_becomes_a_text(kind: str) -> None:
    number = 90210_90210_90210
    value = STANDARD[kind](number)
    held = [Secret(str(number)), Secret(str(value))]
    assert scrubbed([value, 1]) == ["<secret>", 1]
    assert held


def test_numbers_are_looked_at_only_while_a_secret_can_stand_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[object] = []

    class Counted(scrubbing._Node):
        def __init__(self, value: Any) -> None:
            looked_at.append(value)
            super().__init__(value)

    monkeypatch.setattr(scrubbing, "_Node", Counted)
    monkeypatch.setattr(redaction, "_secrets", redaction._SecretIndex())
    key, numbers = Secret("sk-live/none of digits"), [*range(300), *(n / 7 for n in range(300))]
    assert scrubbed(numbers) is numbers
    assert looked_at == [numbers]
    assert scrubbed([5, key.reveal()]) == [5, "<secret>"]
    in_hex, twice = int(b"sTuVpQrS".hex()), int(key.reveal().encode().hex().encode().hex())
    assert scrubbed([twice]) == ["<secret>"]
    held = Secret("sTuVpQrS")
    assert scrubbed([1, in_hex]) == [1, "<secret>"]
    assert scrubbed([1.5, 7312345]) == [1.5, 7312345]
    digits = Secret("7312345")
    assert scrubbed([1.5, 7312345, 87312345.5]) == [1.5, "<secret>", "8<secret>.5"]
    assert held
    assert digits


def test_an_attribute_of_a_class_made_from_a_standard_value_is_looked_at() -> None:
    class Price(decimal.Decimal):
        note = ""

    price = Price(5)
    price.note = KEY
    assert_no_leak([KEY], str(getattr(scrubbed([price])[0], "note", "")))


def test_an_object_that_lies_about_itself_or_fails_is_not_passed_on() -> None:
    class Broken:
        @property
        def __class__(self) -> Any:
            raise RuntimeError(KEY)

    class Mute:
        def __init__(self) -> None:
            self.text = KEY

        def __repr__(self) -> str:
            raise RuntimeError(KEY)

    assert_no_leak([KEY], scrubbed([Broken()]))
    made = scrubbed(Mute())
    assert isinstance(made, Mute)
    assert made.text == "<secret>"


# -- exceptions -------------------------------------------------------------------------------------------------------


class OwnError(Exception):
    def __init__(self, code: int, *, body: str) -> None:
        super().__init__(f"{code}: {body}")
        self.code, self.body = code, body


class TellingError(Exception):
    def __init__(self, text: str) -> None:
        super().__init__()
        self._tell = lambda: text

    def __str__(self) -> str:
        return self._tell()


class OwnGroup(ExceptionGroup):
    def __new__(cls, text: str, errors: list[Exception], extra: int) -> Self:
        made = super().__new__(cls, text, errors)
        made.extra = extra
        return made


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def noted(text: str) -> BaseException:
    error = ValueError("x")
    error.add_note(text)
    return error


def in_context(text: str) -> BaseException:
    try:
        try:
            raise ValueError(text)
        except ValueError:
            raise KeyError("x") from None
    except KeyError as error:
        return error


def circle(text: str) -> BaseException:
    one, two = ValueError(text), KeyError(text)
    one.__context__, two.__context__ = two, one
    one.me = one
    return one


def invalid(text: str) -> BaseException:
    try:
        Model.model_validate({"text": [text], "more": 1})
    except pydantic.ValidationError as error:
        return error
    raise AssertionError


def misread(text: str) -> BaseException:
    try:
        (text.encode() + b"\xff").decode()
    except UnicodeDecodeError as error:
        return error
    raise AssertionError


ERRORS: dict[str, Callable[[str], BaseException]] = {
    "text": ValueError,
    "key": KeyError,
    "args": lambda text: ValueError(1, {"x": [text]}),
    "own": lambda text: OwnError(401, body=text),
    "note": noted,
    "cause": lambda text: raised(KeyError("x"), ValueError(text)),
    "context": in_context,
    "group": lambda text: ExceptionGroup("some", [ValueError(text), KeyError("y")]),
    "group's text": lambda text: ExceptionGroup(text, [ValueError("x")]),
    "group in a group": lambda text: BaseExceptionGroup(
        "x", [ExceptionGroup("y", [ValueError(text)]), KeyboardInterrupt(text)]
    ),
    "group of a class": lambda text: OwnGroup("x", [ValueError(text)], 3),
    "OSError": lambda text: FileNotFoundError(2, "No such file", f"/x/{text}"),
    "decoding": misread,
    "StopIteration": StopIteration,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "AttributeError": lambda text: AttributeError("x", name="y", obj=Plain(text)),
    "SyntaxError": lambda text: SyntaxError("x", ("file", 1, 2, text)),
    "httpx": lambda text: httpx.HTTPStatusError(
        "401",
        request=httpx.Request("GET", "https://a.example", headers={"authorization": text}),
        response=httpx.Response(401, text=text),
    ),
    "circle": circle,
    "invalid": invalid,
}


@pytest.mark.parametrize("encoding", ["itself", "percent", "JSON, \\u", "hex", "base64 after 2"])
@pytest.mark.parametrize("kind", ERRORS)
def test_an_exception_keeps_its_class_and_loses_its_secret(kind: str, encoding: str) -> None:
    error = ERRORS[kind](ENCODINGS[encoding](KEY))
    error.__traceback__ = raised(ValueError()).__traceback__
    made = scrubbed(error)
    assert made is not error
    assert type(made) is type(error)
    assert made.__traceback__ is error.__traceback__
    assert_no_leak([KEY], made, *shown(made))
    if isinstance(made, pydantic.ValidationError):
        assert_no_leak([KEY], str(made.errors()))
        assert made.title == error.title


def test_an_exception_that_cannot_be_made_anew_is_one_of_its_nearest_base() -> None:
    made = scrubbed(TellingError(f"key {KEY}"))
    assert (type(made), made.args) == (Exception, ("TellingError: key <secret>",))
    cause = raised(RuntimeError("x"), TellingError(KEY))
    assert type(scrubbed(cause)) is RuntimeError
    assert type(scrubbed(cause).__cause__) is Exception


def test_an_exceptions_attributes_still_work() -> None:
    made = scrubbed(ERRORS["httpx"](KEY))
    assert made.response.status_code == 401
    assert made.response.text == "<secret>"
    assert made.request.method == "GET"
    assert made.request.headers["authorization"] == "<secret>"
    assert scrubbed(OwnError(401, body=KEY)).code == 401
    group = scrubbed(ERRORS["group of a class"](KEY))
    assert (group.extra, str(group.exceptions[0])) == (3, "<secret>")
    assert scrubbed(ERRORS["OSError"](KEY)).errno == 2


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_function_that_is_scrubbed_returns_and_raises_no_secret(is_async: bool) -> None:
    innocent = ValueError("nothing")

    def work(what: str) -> Any:
        if what == "return":
            return [KEY]
        if what == "innocent":
            raise innocent
        try:
            raise KeyError(KEY)
        except KeyError as error:
            raise ValueError(KEY) from error

    async def awork(what: str) -> Any:
        return work(what)

    async def called(what: str) -> Any:
        return await scrubs(awork)(what) if is_async else scrubs(work)(what)

    assert await called("return") == ["<secret>"]
    with pytest.raises(ValueError, match="nothing") as caught:
        await called("innocent")
    assert caught.value is innocent
    with pytest.raises(ValueError, match="<secret>") as caught:
        await called("raise")
    assert_no_leak([KEY], caught.value)
    assert type(caught.value.__cause__) is KeyError
    frames = [frame.name for frame in caught.traceback]
    assert frames.count("work") == 1
