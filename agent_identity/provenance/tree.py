# SPDX-License-Identifier: Apache-2.0
"""A tree of lines, drawn for a terminal, a notebook or a diagram. Names in it are data, and drawn as nothing else."""

from __future__ import annotations

import html
import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Node", "as_html", "as_mermaid", "as_text", "visible"]


@dataclass(slots=True)
class Node:
    """A line and what is below it."""

    text: str
    below: list[Node] = field(default_factory=list["Node"])


def visible(text: str) -> str:
    """A text without the characters that move a cursor, turn the direction of reading or can't be seen: they are spelled out."""
    return text if text.isascii() and text.isprintable() else "".join(map(_spelled, text))


def _spelled(character: str) -> str:
    category = unicodedata.category(character)
    if category[0] != "C" and category not in {"Zl", "Zp"}:
        return character
    return f"\\u{{{ord(character):x}}}"


def as_text(root: Node) -> str:
    """The tree with box characters, one line a node."""
    return "\n".join(_lines(root, "", ""))


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    yield first + visible(node.text)
    for index, child in enumerate(node.below):
        last = index == len(node.below) - 1
        yield from _lines(
            child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  ")
        )


def as_html(root: Node) -> str:
    """The tree as nested lists, everything in it escaped."""
    below = "".join(f"<li>{as_html(child)}</li>" for child in root.below)
    text = html.escape(visible(root.text))
    return f"{text}<ul>{below}</ul>" if below else text


def as_mermaid(root: Node) -> str:
    """The tree as a Mermaid flowchart, every character of a label that could mean something there spelled out."""
    return "\n".join(["flowchart LR", *_boxes(root, "n")])


def _boxes(node: Node, name: str) -> Iterator[str]:
    yield f'  {name}["{_NOT_PLAIN.sub(_entity, visible(node.text))}"]'
    for number, child in enumerate(node.below):
        below = f"{name}_{number}"
        yield f"  {name} --> {below}"
        yield from _boxes(child, below)


def _entity(match: re.Match[str]) -> str:
    return f"#{ord(match[0])};"


_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9 .,:/_()✔✘?-]")
