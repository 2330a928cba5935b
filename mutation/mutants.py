# SPDX-License-Identifier: Apache-2.0
"""What is changed: one place of a module's tree at a time, each change one that a rule's loss could look like.

Statements go, conditions turn round, operands, keywords and members of literals are left out, comparisons move by one,
numbers by one, texts are others. Messages, docstrings, annotations and what only a type checker sees stay as they are.
"""

from __future__ import annotations

import ast
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.FloorDiv,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.BitOr: (ast.BitAnd,),
    ast.BitAnd: (ast.BitOr,),
    ast.LShift: (ast.RShift,),
}
GONE = (ast.Raise, ast.Continue, ast.Break, ast.AugAssign, ast.Delete)
UNSEEN = (ast.Import, ast.ImportFrom, ast.Pass, ast.Global, ast.Nonlocal)
ANNOTATIONS = frozenset(
    {"annotation", "returns", "decorator_list", "type_params", "ctx", "op", "ops"}
)


class Mutant(NamedTuple):
    """`first` to `last` are the lines whose tests might notice; `where` is a function's name, "" outside of any."""

    module: str
    where: str
    change: str
    first: int
    last: int


class Place(NamedTuple):
    """What is around a node: the function's name, the lines of its statement."""

    where: str = ""
    first: int = 0
    last: int = 0


def mutants(module: str, source: str) -> Iterator[tuple[Mutant, ast.Module]]:
    """Each mutant with its tree, which is changed back when the next one is asked for."""
    tree = ast.parse(source)
    seen: Counter[tuple[str, str]] = Counter()
    for owner, name, index, place, new in edits(tree, Place()):
        held = getattr(owner, name)
        old = held if index is None else held[index]
        change = described(owner, old, new)
        seen[place.where, change] += 1
        if (times := seen[place.where, change]) > 1:
            change += f" ({times})"
        put(owner, name, index, new)
        yield Mutant(module, place.where, change, place.first, place.last), tree
        put(owner, name, index, old)


def put(owner: ast.AST, name: str, index: int | None, value: object) -> None:
    if index is None:
        setattr(owner, name, value)
    else:
        getattr(owner, name)[index] = value


def described(owner: ast.AST, old: object, new: object) -> str:
    if isinstance(old, ast.operator | ast.cmpop):
        return f"{text_of(owner)} [{type(old).__name__} -> {type(new).__name__}]"
    before, after = text_of(old), text_of(new)
    begins = alike(before, after) if after != "pass" else 0
    ends = alike(before[begins:][::-1], after[begins:][::-1])
    head, tail = max(0, begins - 40), min(0, 20 - ends)
    before, after = (
        "…" * (head > 0) + shown[head : len(shown) + tail] + "…" * (tail < 0)
        for shown in (before, after)
    )
    return f"{before[:120]} -> {after[:120]}"


def alike(left: str, right: str) -> int:
    """How many characters two texts have in common from their beginning."""
    same = (a == b for a, b in zip(left, right, strict=False))
    return sum(itertools.takewhile(bool, same))


def text_of(node: object) -> str:
    if isinstance(node, ast.If | ast.While):
        node = node.test
    if isinstance(node, ast.AST):
        return " ".join(ast.unparse(ast.fix_missing_locations(node)).split())
    return repr(node)


Edit = tuple[ast.AST, str, int | None, Place, object]


def edits(node: ast.AST, place: Place) -> Iterator[Edit]:
    """Every change below a node, by the field that it replaces."""
    for name, held in ast.iter_fields(node):
        if name in ANNOTATIONS:
            if name == "op" and not isinstance(node, ast.BoolOp | ast.UnaryOp | ast.AugAssign):
                yield from ((node, name, None, place, new()) for new in SWAPS.get(type(held), ()))
            if name == "ops":
                for index, op in enumerate(held):
                    yield from ((node, name, index, place, new()) for new in SWAPS[type(op)])
            continue
        for index, child in enumerate(held) if isinstance(held, list) else [(None, held)]:
            if is_error(node) and ((name, index) != ("args", 0) or " " in text_of(child)):
                continue  # an error's code is a promise, its words are none
            if isinstance(child, ast.AST) and not is_left_alone(child):
                around = at(child, place)
                for new in replacements(child):
                    yield node, name, index, around, ast.copy_location(new, child)
                yield from edits(child, around)


def at(node: ast.AST, place: Place) -> Place:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return Place(f"{place.where}.{node.name}".lstrip("."), node.lineno, node.lineno)
    if isinstance(node, ast.If | ast.While | ast.For | ast.With | ast.Try):
        head = getattr(node, "test", getattr(node, "iter", node))
        return place._replace(first=node.lineno, last=max(node.lineno, head.lineno))
    if isinstance(node, ast.stmt):
        return place._replace(first=node.lineno, last=node.end_lineno or node.lineno)
    return place


def is_left_alone(node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return True
    if isinstance(node, ast.FunctionDef):
        return any(ast.unparse(found) == "overload" for found in node.decorator_list)
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias":
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {"__all__", "__slots__"}:
        return True
    return isinstance(node, UNSEEN)


def is_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).lower().endswith(
        ("error", "denied")
    )


def replacements(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    if isinstance(node, (ast.Expr, *GONE)):
        yield ast.Pass()
    elif (
        isinstance(node, ast.Return)
        and node.value is not None
        and ast.unparse(node.value) != "None"
    ):
        yield ast.Return(None)
    elif isinstance(node, ast.If | ast.IfExp | ast.While):
        fields = {name: getattr(node, name) for name in node._fields}
        yield type(node)(**fields | {"test": ast.UnaryOp(ast.Not(), node.test)})
    elif isinstance(node, ast.BoolOp):
        for index in range(len(node.values)):
            rest = without(node.values, index)
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant):
        yield from (ast.Constant(value) for value in constants(node.value))
    elif isinstance(node, ast.comprehension) and node.ifs:
        yield ast.comprehension(node.target, node.iter, [], node.is_async)
    elif isinstance(node, ast.Call):
        yield from calls(node)
    elif isinstance(node, ast.Set | ast.List | ast.Tuple) and len(node.elts) > 1:
        if all(isinstance(item, ast.Constant | ast.Starred) for item in node.elts):
            fields = {name: getattr(node, name) for name in node._fields}
            for index in range(len(node.elts)):
                yield type(node)(**fields | {"elts": without(node.elts, index)})
    elif isinstance(node, ast.Dict) and len(node.keys) > 1:
        for index in range(len(node.keys)):
            yield ast.Dict(without(node.keys, index), without(node.values, index))


def constants(value: object) -> Iterator[object]:
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (other for other in (value + 1, value - 1) if other != value)
    elif isinstance(value, str):
        yield f"{value}X"
    elif isinstance(value, bytes):
        yield value + b"X"


def calls(node: ast.Call) -> Iterator[ast.AST]:
    for index, keyword in enumerate(node.keywords):
        if keyword.arg is not None and not is_error(node):
            yield ast.Call(node.func, node.args, without(node.keywords, index))


def without(items: list[Any], index: int) -> list[Any]:
    return [*items[:index], *items[index + 1 :]]
