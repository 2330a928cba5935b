# SPDX-License-Identifier: Apache-2.0
"""A tree of texts, drawn for a terminal, a notebook or a diagram. Names in it are data, and drawn as nothing else."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WIDTH", "Node", "as_html", "as_mermaid", "as_text", "visible", "wrapped"]

WIDTH: Final = 80
"""Columns of a text whose reader's width isn't known."""


@dataclass(slots=True)
class Node:
    """A text, notes about it, and the nodes below it."""

    text: str
    below: list[Node] = field(default_factory=list["Node"])
    notes: list[str] = field(default_factory=list[str])


def visible(text: str) -> str:
    """A text without the characters that move a cursor, turn the direction of reading or can't be seen: they are spelled out."""
    return text if text.isascii() and text.isprintable() else "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" and category not in {"Zl", "Zp"}:
        return character
    return f"\\u{{{ord(character):x}}}"


def wrapped(text: str, width: int = WIDTH) -> list[str]:
    """A text as lines of at most `width` columns, broken between words only; a longer word has a line of its own.

    All lines but the first are indented, so that none of them passes for the beginning of another text.
    """
    first, *words = text.split() or [""]
    lines = [first]
    for word in words:
        if _columns(f"{lines[-1]} {word}") > width:
            lines.append(f"  {word}")
        else:
            lines[-1] += f" {word}"
    return lines


def _columns(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def as_text(root: Node, width: int = WIDTH) -> str:
    """The tree with box characters, in lines of at most `width` columns as far as its words allow."""
    return "\n".join(_lines(root, "", "", width))


def _lines(node: Node, first: str, rest: str, width: int) -> Iterator[str]:
    after = rest + ("│ " if node.below else "  ") if first else rest
    heading, *more = wrapped(_unboxed(node.text), width - len(after))
    yield first + heading
    for text in [
        *more,
        *(line for note in node.notes for line in wrapped(_unboxed(note), width - len(after))),
    ]:
        yield after + text
    for index, child in enumerate(node.below):
        last = index == len(node.below) - 1
        yield from _lines(
            child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "), width
        )


def _unboxed(text: str) -> str:
    """A text that draws no lines of the tree."""
    return _BOXES.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", visible(text))


_BOXES: Final = re.compile("[\u2500-\u257f]")


def as_html(root: Node) -> str:
    """The tree as nested lists, everything in it escaped."""
    below = "".join(f"<li>{as_html(child)}</li>" for child in root.below)
    text = "<br>".join(html.escape(visible(line)) for line in [root.text, *root.notes])
    return f"{text}<ul>{below}</ul>" if below else text


def as_mermaid(root: Node) -> str:
    """The tree as a Mermaid flowchart, every character of a label that could mean something there spelled out."""
    return "\n".join(["flowchart LR", *_boxes(root, "n")])


def _boxes(node: Node, name: str) -> Iterator[str]:
    label = ", ".join(visible(line) for line in [node.text, *node.notes])
    yield f'  {name}["{_NOT_PLAIN.sub(_entity, label)}"]'
    for number, child in enumerate(node.below):
        below = f"{name}_{number}"
        yield f"  {name} --> {below}"
        yield from _boxes(child, below)


def _entity(match: re.Match[str]) -> str:
    return f"#{ord(match[0])};"


_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9 .,:/_()✔✘…?-]")
