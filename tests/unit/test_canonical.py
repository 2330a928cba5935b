# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import array
import dataclasses
import datetime as dt
import enum
import json
import math
import subprocess
import sys
import threading
import unicodedata
import uuid
from collections import OrderedDict, UserDict, defaultdict, deque, namedtuple
from decimal import Decimal
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeVar

import pydantic
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from agent_identity import jose
from agent_identity.canonical import args_digest, copy_and_encode, digest, encode
from agent_identity.errors import DeniedError
from agent_identity.values import unb64url

NOTHING: frozenset[str] = frozenset()

utf8 = st.text(st.characters(codec="utf-8"), max_size=8)
integers = st.integers(-(2**53 - 1), 2**53 - 1)
floats = st.floats(allow_nan=False, allow_infinity=False).filter(
    lambda value: not (value.is_integer() and 2**53 <= abs(value) < 1e21)
)
atoms = st.none() | st.booleans() | integers | floats | utf8
values = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(utf8, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(utf8, values, max_size=4)


def form_of(value: object) -> object:
    return json.loads(copy_and_encode({"it": value}, NOTHING)[1])["it"]


def refusal_of(value: object) -> DeniedError:
    with pytest.raises(DeniedError) as caught:
        copy_and_encode({"fine": 1, "it": value}, NOTHING)
    assert caught.value.code == "undigestible_argument"
    assert "argument 'it'" in str(caught.value)
    return caught.value


@given(values)
def test_values_are_encoded_as_an_independent_rfc_8785_does(value):
    assert encode(value) == rfc8785.dumps(value)


@given(st.dictionaries(st.text("a\u00e9\u20ac\ufb33\U0001f600", max_size=3), utf8, max_size=6))
def test_names_beyond_the_basic_plane_are_sorted_by_utf_16_code_unit(value):
    assert encode(value) == rfc8785.dumps(value)


@given(st.floats(1e-9, 1e-3) | st.floats(1e20, 1e24).map(lambda x: x * 1e3) | st.floats(-10, 10))
def test_floats_are_written_as_ecmascript_does_where_formats_differ(value):
    assert encode([value]) == rfc8785.dumps([value])


@given(values, values)
def test_digests_are_equal_exactly_when_canonical_json_is(left, right):
    same = rfc8785.dumps({"it": left}) == rfc8785.dumps({"it": right})
    assert (args_digest({"it": left}) == args_digest({"it": right})) is same


@given(objects)
def test_a_digest_survives_a_round_trip_through_json(arguments):
    data = copy_and_encode(arguments, NOTHING)[1]
    assert args_digest(jose.loads_object(data)) == digest(data) == args_digest(arguments)


@given(objects, st.randoms())
def test_the_order_of_arguments_does_not_count(arguments, random):
    names = [*arguments]
    random.shuffle(names)
    assert args_digest({name: arguments[name] for name in names}) == args_digest(arguments)


@given(objects)
def test_the_copy_equals_the_arguments_and_shares_no_container_with_them(arguments):
    copied, data = copy_and_encode(arguments, NOTHING)
    assert copied == arguments
    assert copy_and_encode(copied, NOTHING)[1] == data
    assert not containers(copied) & containers(arguments)


def containers(value: object) -> set[int]:
    if isinstance(value, dict):
        return {id(value)}.union(*map(containers, value.values()))
    if isinstance(value, list):
        return {id(value)}.union(*map(containers, value))
    return set()


def test_the_digest_is_sha_256_over_the_canonical_bytes_in_base64url():
    # printf '{"a":1,"b":"x"}' | openssl dgst -sha256 -binary | base64
    assert args_digest({"b": "x", "a": 1}) == (
        "sha-256:" + "7PnpjsBkHiMRP_POi9x40N3SSYhlF_1Kf2jMg9TmVmc"
    )


@pytest.mark.parametrize(
    ("left", "right"),
    [(1, 1.0), (2**53 - 1, float(2**53 - 1)), (0, -0.0), ([1], (1.0,)), (-5, -5.0)],
)
def test_one_value_in_two_spellings_has_one_digest(left, right):
    assert args_digest({"it": left}) == args_digest({"it": right})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (True, 1),
        (False, 0),
        (None, "null"),
        (None, False),
        (1, "1"),
        (unicodedata.normalize("NFC", "\u00e9"), unicodedata.normalize("NFD", "\u00e9")),
        ([], {}),
        ([1, 2], [2, 1]),
        ("", None),
    ],
)
def test_different_values_have_different_digests(left, right):
    assert args_digest({"it": left}) != args_digest({"it": right})


class Colour(enum.Enum):
    RED = "red"
    PAIR = ("a", 1)


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    YES = "yes"


@dataclasses.dataclass
class Point:
    x: int
    tags: list[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    when: dt.date
    inner: Point


Pair = namedtuple("Pair", "index count")  # noqa: PYI024 - the untyped kind is the case

T = TypeVar("T")


class Line(NamedTuple):
    sku: str
    tags: list[str] = []

    def __add__(self, other: object) -> object:
        return other


class Both(NamedTuple, Generic[T]):
    left: T
    right: T


class Order(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int
    lines: list[str] = []


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (dt.date(2026, 10, 31), "2026-10-31"),
        (dt.time(7, 5, tzinfo=dt.UTC), "07:05:00+00:00"),
        (dt.time(7, 5), "07:05:00"),
        (dt.datetime(2026, 10, 31, 7, 5, tzinfo=dt.UTC), "2026-10-31T07:05:00+00:00"),
        (
            dt.datetime(2026, 10, 31, 7, 5, 1, 5, tzinfo=dt.timezone(dt.timedelta(hours=2))),
            "2026-10-31T07:05:01.000005+02:00",
        ),
        (dt.datetime(2026, 10, 31), "2026-10-31T00:00:00"),  # noqa: DTZ001 - a naive one is the case
        (Decimal("12.50"), "12.50"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("/tmp/a"), "/tmp/a"),  # noqa: S108 - a name, no file
        (PurePosixPath("a/b"), "a/b"),
        (PureWindowsPath("a/b"), "a\\b"),
        (b"\xff\xfe\xfd", "__79"),
        (b"", ""),
        (bytearray(b"\xff\xfe\xfd"), "__79"),
        (OrderedDict(b=[1], a=dt.date(2026, 1, 2)), {"a": "2026-01-02", "b": [1]}),
        (defaultdict(list, a=[1.5]), {"a": [1.5]}),
        (Pair(1, (2,)), [1, [2]]),
        (Line("a", ["b"]), ["a", ["b"]]),
        (Both(1, [2.5]), [1, [2.5]]),
        ({"deep": [bytearray(b""), OrderedDict()]}, {"deep": ["", {}]}),
        (Colour.RED, "red"),
        (Colour.PAIR, ["a", 1]),
        (Level.HIGH, 3),
        (Word.YES, "yes"),
        (Point(1, ["a"]), {"x": 1, "tags": ["a"]}),
        (
            Frozen(dt.date(2026, 1, 2), Point(1, [])),
            {"when": "2026-01-02", "inner": {"x": 1, "tags": []}},
        ),
        (Order(id=7, lines=["a"]), {"id": 7, "lines": ["a"]}),
        (
            Order.model_validate({"id": 7, "note": {"by": "bo"}}),
            {"id": 7, "lines": [], "note": {"by": "bo"}},
        ),
        ({"b", "a", "a!"}, ["a", "a!", "b"]),
        (frozenset({10, 9, 1.5}), [1.5, 9, 10]),
        ({True, None, "x", 7, (2,), (1,)}, [7, "x", [1], [2], None, True]),
        ((1, (2, [3])), [1, [2, [3]]]),
        ([1.5, {"deep": dt.date(2026, 1, 2)}], [1.5, {"deep": "2026-01-02"}]),
        ({"a": 0.5, "b": [Decimal(1)], "c": [1]}, {"a": 0.5, "b": ["1"], "c": [1]}),
    ],
)
def test_values_beyond_json_have_the_form_of_the_contract(value, form):
    assert form_of(value) == form
    copied = copy_and_encode({"it": value}, NOTHING)[0]["it"]
    assert copied == value
    assert type(copied) is type(value)


def test_numbers_in_a_set_are_numbers_in_the_form():
    assert copy_and_encode({"it": {2.0, 1}}, NOTHING)[1] == b'{"it":[1,2]}'


class Text(str):
    __slots__ = ()


class Many(list):
    pass


@dataclasses.dataclass
class Shelf(dict):
    name: str


class Later(dt.datetime):
    pass


class Whole(int):
    pass


class Real(float):
    pass


class Longer(Line):
    __slots__ = ()


class Shifting(NamedTuple):
    a: int

    def __getitem__(self, index):
        return "other"


class Posing(tuple):
    __slots__ = ()
    _fields = ("a",)
    a = property(lambda self: "other")


class Grid:
    def tolist(self):
        return [[1]]


class Posed:
    """Says of itself that it is a member of an Enum."""

    value = "x"
    __class__ = property(lambda self: Colour)


@pytest.mark.parametrize(
    ("value", "reason", "advice"),
    [
        (2**53, "integer beyond", "pass `str(x)`"),
        (-(2**53), "integer beyond", "pass `str(x)`"),
        pytest.param(10**5000, "integer beyond", "pass `str(x)`", id="5001 digits"),
        (float(2**53), "float that would be an integer", "pass `str(x)`"),
        (-1e20, "float that would be an integer", "pass `str(x)`"),
        (math.nan, "NaN", "pass None or a string"),
        (math.inf, "NaN or an infinity", "pass None or a string"),
        ("\ud800", "holds text with a lone surrogate", "UTF-8"),
        ({"\udfff": 1}, "lone surrogate", "UTF-8"),
        (Path("\udc80"), "lone surrogate", "UTF-8"),
        ({1: "a"}, "name that isn't a string", "`str(name)`"),
        ({Text("a"): 1}, "name that isn't a string", "`str(name)`"),
        ({"1", Decimal(1)}, "of the same form", "pass `list(x)`"),
        ({(1,), frozenset({1})}, "of the same form", "pass `list(x)`"),
        (Text("a"), "a Text, a class derived from str", "pass `str(x)`"),
        (Whole(1), "a Whole, a class derived from int", "pass `int(x)`"),
        (Real(1), "a Real, a class derived from float", "pass `float(x)`"),
        (Many(), "a Many, a class derived from list", "pass `list(x)`"),
        (Later(2026, 1, 1, tzinfo=dt.UTC), "a Later, a class derived", "pass `x.isoformat()`"),
        (Longer("a"), "a Longer, a class derived from tuple", "pass `tuple(x)`"),
        (Shifting(1), "a Shifting, a class derived from tuple", "pass `tuple(x)`"),
        (Posing((1,)), "a Posing, a class derived from tuple", "pass `tuple(x)`"),
        (Grid(), "a Grid,", "pass `x.tolist()`"),
        (array.array("d", [1]), "a array,", "pass `x.tolist()`"),
        (dt.timedelta(1), "a timedelta,", "pass `x.total_seconds()`"),
        (memoryview(b"a"), "a memoryview,", "pass `bytes(x)`"),
        (MappingProxyType({}), "a mappingproxy,", "pass `dict(x)`"),
        (UserDict(), "a UserDict,", "pass `dict(x)`"),
        (deque([1]), "a deque,", "pass `list(x)`"),
        (range(3), "a range,", "pass `list(x)`"),
        ((_ for _ in ()), "a generator,", "pass `list(x)`"),
        (object(), "a object,", "pass it as a string"),
        (Posed(), "a Posed,", "pass it as a string"),
        (Point, "a type,", "pass it as a string"),
        (len, "a builtin_function_or_method,", "pass it as a string"),
        (1j, "a complex,", "pass it as a string"),
        (Shelf("a"), "state besides its fields", "pass a dict"),
        ([[{"deep": 2**53}]], "integer beyond", "pass `str(x)`"),
        (Point(1, [object()]), "a object,", "pass it as a string"),
    ],
    ids=lambda each: each if type(each) is str else type(each).__name__,
)
def test_what_has_no_canonical_form_is_refused_by_its_argument_with_what_to_pass_instead(
    value, reason, advice
):
    refusal = refusal_of(value)
    assert reason in str(refusal)
    assert advice in refusal.remedy
    assert refusal.remedy.endswith("or list it in `opaque`")


def test_a_refusal_names_the_tool():
    with pytest.raises(DeniedError, match="argument 'it' of list_invoices holds a object"):
        copy_and_encode({"it": object()}, NOTHING, "list_invoices")
    with pytest.raises(DeniedError, match="argument 'n' of pay holds an integer beyond"):
        copy_and_encode({"it": 1, "n": 2**53}, NOTHING, "pay")


def test_a_scalar_of_a_library_that_derives_from_float_is_unwrapped_by_its_own_method():
    """NumPy's float64 derives from float, and `tolist` makes a float of it."""

    class float64(float):  # noqa: N801 - NumPy's spelling
        def tolist(self):
            return float(self)

    assert "pass `x.tolist()`" in refusal_of(float64(1.5)).remedy
    assert form_of(float64(1.5).tolist()) == 1.5


def test_copies_of_containers_keep_their_type_and_share_nothing():
    order, lists = OrderedDict(b=[1], a=[2]), defaultdict(list, a=[1])
    line, raw = Line("a", ["b"]), bytearray(b"abc")
    copied, data = copy_and_encode(
        {"order": order, "lists": lists, "line": line, "raw": raw}, NOTHING
    )
    order["b"].append(9)
    order["c"] = []
    lists["a"].append(9)
    line.tags.append("mallory")
    raw[:] = b"xyz"
    assert [*copied["order"].items()] == [("b", [1]), ("a", [2])]
    assert copied["lists"] == {"a": [1]}
    assert copied["lists"].default_factory is list
    assert copied["line"] == Line("a", ["b"])
    assert type(copied["line"]) is Line
    assert copied["raw"] == bytearray(b"abc")
    assert copy_and_encode(copied, NOTHING)[1] == data


def test_what_another_thread_adds_to_a_defaultdict_meanwhile_is_in_neither_copy_nor_digest():
    stop = threading.Event()
    shared: defaultdict[str, list[int]] = defaultdict(list, a=[1])

    def change() -> None:
        while not stop.is_set():
            shared["late"] = [2]
            shared.pop("late", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            copied, data = copy_and_encode({"it": shared}, NOTHING)
            assert json.loads(data)["it"] == copied["it"]
    finally:
        stop.set()
        thread.join()


@dataclasses.dataclass(frozen=True)
class Box:
    inner: object


class Case(pydantic.BaseModel):
    inner: object


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: [inner],
        lambda inner: {"a": inner},
        lambda inner: (inner,),
        lambda inner: frozenset({inner}),
        Box,
        lambda inner: Case.model_construct(inner=inner),
    ],
)
def test_nesting_ends_at_32_levels(wrap):
    value: object = 1
    for _ in range(31):
        value = wrap(value)
    assert jose.loads(copy_and_encode({"it": value}, NOTHING)[1])
    assert "nested deeper" in str(refusal_of(wrap(value)))


@pytest.mark.parametrize("depth", [900, 20_000])
def test_nesting_without_end_is_no_recursion_error(depth):
    value: object = 1
    for _ in range(depth):
        value = [value]
    assert "nested deeper" in str(refusal_of(value))


def test_a_cycle_is_refused():
    ring: list[object] = []
    ring += [ring, ring, ring]
    assert "in a cycle" in str(refusal_of(ring))


@pytest.mark.parametrize("arguments", [{1: "a"}, {Text("a"): 1}, {b"a": 1}])
def test_arguments_are_named_by_strings(arguments):
    with pytest.raises(DeniedError, match="name that isn't a string"):
        args_digest(arguments)


def test_a_hostile_name_is_escaped_and_cut_in_the_message():
    with pytest.raises(DeniedError) as caught:
        args_digest({"\x1b[31m\ud800" + "a" * 500: object()})
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_a_refusal_holds_no_value():
    refusal = refusal_of(["canary-4711", object()])
    assert "canary" not in repr(refusal.args)
    assert refusal.__cause__ is None


def test_an_opaque_argument_is_passed_through_and_not_looked_at():
    class Handle:
        def __getattribute__(self, name):
            raise AssertionError(name)

    handle = Handle()
    copied, data = copy_and_encode({"handle": handle, "n": 1}, frozenset({"handle"}))
    assert copied["handle"] is handle
    assert data == b'{"handle":{"opaque":true},"n":1}'


def test_an_opaque_argument_stays_opaque_when_it_happens_to_be_plain():
    assert copy_and_encode({"n": 1}, frozenset({"n"})) == ({"n": 1}, b'{"n":{"opaque":true}}')


def test_a_change_after_the_copy_reaches_neither_tool_nor_digest():
    arguments = {
        "to": ["alice"],
        "at": Point(1, ["a"]),
        "order": Order(id=1, lines=["a"]),
        "k": {"n": [1]},
    }
    copied, data = copy_and_encode(arguments, NOTHING)
    arguments["to"].append("mallory")
    arguments["at"].tags.append("b")
    arguments["order"].lines.append("b")
    arguments["k"]["n"][0] = 2
    assert copied["to"] == ["alice"]
    assert copied["at"] == Point(1, ["a"])
    assert copied["order"] == Order(id=1, lines=["a"])
    assert copied["k"] == {"n": [1]}
    assert copy_and_encode(copied, NOTHING)[1] == data


def test_a_mapping_is_read_once_and_what_was_read_counts():
    class Shifty(UserDict):
        reads = 0

        def __getitem__(self, name):
            self.reads += 1
            return self.reads

    copied, data = copy_and_encode(Shifty(a=None), NOTHING)
    assert copied == json.loads(data)
    assert copy_and_encode(MappingProxyType({"a": 1}), NOTHING) == ({"a": 1}, b'{"a":1}')


def test_a_dataclass_copy_keeps_its_state_and_drops_what_was_only_cached():
    @dataclasses.dataclass
    class Cart:
        prices: list[int]

        @cached_property
        def total(self):
            return sum(self.prices)

    cart = Cart([1, 2])
    assert cart.total == 3
    cart.__dict__["total"] = 999
    copied = copy_and_encode({"cart": cart}, NOTHING)[0]["cart"]
    assert copied.total == 3


def test_an_object_that_holds_more_than_its_fields_is_refused():
    point = Point(1, [])
    point.hidden = "not in the digest"
    assert "state besides its fields" in str(refusal_of(point))

    unset = object.__new__(Point)
    assert "state besides its fields" in str(refusal_of(unset))


def test_a_model_that_holds_more_than_its_fields_is_refused():
    order = Order(id=1)
    order.__dict__["hidden"] = "not in the digest"
    assert "state besides its fields" in str(refusal_of(order))


def test_a_model_with_private_state_is_refused():
    class Job(pydantic.BaseModel):
        id: int
        _secret: str = "x"

    assert "state besides its fields" in str(refusal_of(Job(id=1)))


def test_a_model_copy_keeps_its_extras_apart_and_what_was_set():
    order = Order.model_validate({"id": 1, "note": ["a"]})
    copied = copy_and_encode({"order": order}, NOTHING)[0]["order"]
    assert copied.model_fields_set == order.model_fields_set
    assert copied.note == ["a"]
    assert copied.note is not order.note
    assert copied.lines is not order.lines


def test_a_model_copy_drops_what_was_only_cached():
    class Cart(pydantic.BaseModel):
        prices: list[int]

        @cached_property
        def total(self):
            return sum(self.prices)

    cart = Cart(prices=[1, 2])
    cart.__dict__["total"] = 999
    assert copy_and_encode({"cart": cart}, NOTHING)[0]["cart"].total == 3


def test_a_frozen_model_can_be_copied():
    class Fixed(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(frozen=True)
        names: list[str]

    fixed = Fixed(names=["a"])
    copied = copy_and_encode({"it": fixed}, NOTHING)[0]["it"]
    assert copied == fixed
    assert copied.names is not fixed.names


def test_encode_refuses_what_json_has_not():
    nested: object = []
    for _ in range(31):
        nested = [nested]
    assert encode(nested) == b"[" * 32 + b"]" * 32
    with pytest.raises(DeniedError, match="nested deeper"):
        encode([nested])
    with pytest.raises(DeniedError) as caught:
        encode([2**53])
    assert caught.value.code == "undigestible_argument"


def test_importing_it_loads_no_pydantic():
    program = "import sys, agent_identity.canonical; sys.exit('pydantic' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@given(st.binary(max_size=40))
def test_bytes_keep_their_value_in_the_form(data):
    assert unb64url(form_of(data)) == data


def test_a_member_of_an_enum_is_written_as_its_value_is():
    class Kind(enum.Enum):
        RAW = b"\xff\xff"
        DAY = dt.date(2026, 1, 2)
        PAIR = (1.0, Decimal("1.50"))

    assert [form_of(kind) for kind in Kind] == ["__8", "2026-01-02", [1, "1.50"]]
