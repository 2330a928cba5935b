# SPDX-License-Identifier: Apache-2.0
"""What every table of `agent-identity.toml` is, and what a text in it may stand for beyond being text."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, ClassVar, Final, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

__all__ = [
    "MAX_DEPTH",
    "Bytes",
    "IssuerName",
    "Kind",
    "Reference",
    "Seconds",
    "Table",
    "Text",
    "Texts",
    "Url",
]


class Kind(Enum):
    """What a text of the file stands for, beyond being text."""

    REFERENCE = "the place of a secret"
    ISSUER = "the name of a table of [issuers]"
    URL = "an address that we connect to: https, or http on this machine"
    ORIGIN = "the origin of such an address"
    PATTERN = "files, by a path with * and ?"
    PATH = "a file"
    KEYS = "public keys, by an address or a file: reference"
    LEDGER = "a ledger"


Text: TypeAlias = Annotated[str, StringConstraints(min_length=1)]
Texts: TypeAlias = Annotated[tuple[Text, ...], Field(strict=False)]
Reference: TypeAlias = Annotated[Text | None, Kind.REFERENCE]
IssuerName: TypeAlias = Annotated[Text | None, Kind.ISSUER]
Url: TypeAlias = Annotated[Text | None, Kind.URL]
Seconds: TypeAlias = Annotated[float, Field(gt=0)]
Bytes: TypeAlias = Annotated[int, Field(gt=0)]

MAX_DEPTH: Final = 7


class Table(BaseModel):
    """One table: known keys alone, the types that TOML gives, and no value in an error."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )
