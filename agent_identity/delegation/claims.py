# SPDX-License-Identifier: Apache-2.0
"""Reads the claims of our own signed statements strictly: a claim of the wrong type is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.errors import InvalidAssertionError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.values import JSON

_LARGEST = 2**53 - 1


class Claims:
    """The claims of one statement, read by type. A missing claim is an error unless the reader's name says that it is optional.

    Raises:
        InvalidAssertionError: `claim_missing` or `claim_malformed`; the message names the claim, never its value.
    """

    __slots__ = ("_claims", "_error")

    def __init__(
        self, claims: Mapping[str, JSON], error: type[VerificationError] = InvalidAssertionError
    ) -> None:
        self._claims = claims
        self._error = error

    def text(self, name: str) -> str:
        value = self._claims.get(name)
        if type(value) is str and value:
            return value
        raise self._wrong(name)

    def optional_text(self, name: str) -> str | None:
        return self.text(name) if name in self._claims else None

    def integer(self, name: str) -> int:
        """An integer from 0 to 2^53 - 1; `true` isn't one."""
        value = self._claims.get(name)
        if type(value) is int and 0 <= value <= _LARGEST:
            return value
        raise self._wrong(name)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of distinct non-empty strings. It may be empty, but not missing."""
        value = self._claims.get(name)
        if not isinstance(value, list):
            raise self._wrong(name)
        texts = tuple(item for item in value if isinstance(item, str) and item)
        if len(texts) != len(value) or len(set(texts)) != len(texts):
            raise self._wrong(name)
        return texts

    def scopes(self, name: str = "scope") -> frozenset[str]:
        """Scope tokens (RFC 6749 §3.3), one space between them; an absent claim is none."""
        value = self.optional_text(name)
        if value is None:
            return frozenset()
        tokens = value.split(" ")
        if not all(tokens) or not all("!" <= c <= "~" and c not in '"\\' for c in "".join(tokens)):
            raise self._wrong(name)
        return frozenset(tokens)

    def nested(self, name: str) -> Claims:
        value = self.mapping(name)
        return Claims(value, self._error)

    def mapping(self, name: str) -> dict[str, JSON]:
        value = self._claims.get(name)
        if isinstance(value, dict):
            return value
        raise self._wrong(name)

    def has(self, name: str) -> bool:
        return name in self._claims

    def is_within(self, known: Mapping[str, JSON]) -> bool:
        """Whether every claim is in `known`, with the same value."""
        return all(name in known and known[name] == value for name, value in self._claims.items())

    def check_names(self, names: frozenset[str]) -> None:
        """Refuse other claims: an unknown claim is never ignored."""
        if not names.issuperset(self._claims):
            raise self._error(
                "claim_unknown", "the statement has a claim that this version doesn't know"
            )

    def _wrong(self, name: str) -> VerificationError:
        if name not in self._claims:
            return self._error("claim_missing", f"the claim {name} is missing")
        return self._error("claim_malformed", f"the claim {name} has the wrong type or form")
