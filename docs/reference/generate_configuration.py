# SPDX-License-Identifier: Apache-2.0
"""Write the tables of `configuration.md` from the models, so that the page and the code agree. The text above stays.

python docs/reference/generate_configuration.py
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from agent_identity.config.model import Configuration, Kind, Table
from agent_identity.config.problems import key_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

PAGE: Final = Path(__file__).with_name("configuration.md")
MARKER: Final = (
    "<!-- Everything below is written by `python docs/reference/generate_configuration.py`. -->\n"
)


def with_tables(page: str) -> str:
    """The page with new tables below the marker."""
    text, marker, _ = page.partition(MARKER)
    return text + marker + "\n" + "\n".join(_sections(Configuration, ()))


def _sections(model: type[Table], path: tuple[str, ...]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = _table_in(field)
        if below is None:
            continue
        here = (*path, name, *_named_by(name))
        yield _section(below, here, field)
        yield from _sections(below, here)


def _named_by(name: str) -> tuple[str, ...]:
    return ("URI",) if name == "resources" else ("NAME",) if name in _NAMED else ()


_NAMED: Final = frozenset({"issuers", "signals", "clients"})
"""Tables of tables that have names."""


def _section(model: type[Table], path: tuple[str, ...], field: FieldInfo) -> str:
    heading = key_text(path).replace("URI", '"URI"')
    rows = "\n".join(_row(name, of) for name, of in model.model_fields.items() if not _is_apart(of))
    return (
        f"## `[{heading}]`\n\n{field.description}\n\n"
        f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _is_apart(field: FieldInfo) -> bool:
    return _table_in(field) is not None


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value: object = field.default
    if value is PydanticUndefined:
        return "needed"
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else _toml(value)}`"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table_in(field: FieldInfo) -> type[Table] | None:
    for part in _parts(field.annotation):
        if isinstance(part, type) and issubclass(part, Table):
            return part
    return None


def _parts(annotation: object) -> Iterator[object]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


_KINDS: Final = {
    Kind.REFERENCE: "reference",
    Kind.ISSUER: "name of an issuer",
    Kind.URL: "URL",
    Kind.ORIGIN: "list of origins",
    Kind.PATTERN: "list of paths",
    Kind.PATH: "path",
    Kind.KEYS: "URL or `file:PATH`",
    Kind.METADATA: 'URL or `"none"`',
    Kind.REDIRECT: "URI",
    Kind.LEDGER: "URL",
}
_WORDS: Final[tuple[tuple[object, str], ...]] = (
    (bool, "`true` or `false`"),
    (int, "whole number"),
    (float, "number"),
    (str, "text"),
)


def _type(field: FieldInfo) -> str:
    parts = list(_parts(field.annotation))
    if Kind.ISSUER in field.metadata and tuple in map(get_origin, parts):
        return "list of names of issuers"
    kind = next((_KINDS[known] for known in field.metadata if isinstance(known, Kind)), None)
    return kind or _type_of(parts)


def _type_of(parts: list[object]) -> str:
    origins = [get_origin(part) for part in parts]
    words = next((_choice(part) for part in parts if get_origin(part) is Literal), None)
    if words is None:
        words = next((word for kind, word in _WORDS if kind in parts), "anything")
    if dict in origins:
        words = "table"
    return f"list of {words}s".replace("`s", "`") if tuple in origins else words


def _choice(literal: object) -> str:
    return ", ".join(f'`"{choice}"`' for choice in get_args(literal))


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
