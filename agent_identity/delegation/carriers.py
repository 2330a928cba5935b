# SPDX-License-Identifier: Apache-2.0
"""The headers that carry assertion and chain, and the list form of a chain (leaf first)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError, InvalidAssertionError

if TYPE_CHECKING:
    from collections.abc import Sequence

ASSERTION: Final = "Agent-Assertion"
DELEGATION: Final = "Agent-Delegation"
HANDOVER: Final = "Agent-Handover"
META: Final = "dev.agent-identity/"
"""The prefix of our keys in an MCP request's `_meta`: `assertion`, `delegation`, `handover`."""
DECLARED_SCOPES: Final = f"{META}scopes"
DECLARED_LABELS: Final = f"{META}labels"
"""The keys in the `_meta` of a tool by which an MCP server declares the scopes that it requires, and labels."""

HEADER_LIMIT: Final = 8000
CHAIN_LIMIT: Final = 64 * 1024


def join_chain(compacts: Sequence[str], *, limit: int = HEADER_LIMIT) -> str:
    """The value of `Agent-Delegation`: `<leaf>, …, <root>`.

    Raises:
        ConfigurationError: `chain_too_long` for a header.
    """
    check_chain_size(compacts, limit=limit)
    return ", ".join(compacts)


def check_chain_size(compacts: Sequence[str], *, limit: int) -> None:
    """Check that a chain fits into a header.

    Raises:
        ConfigurationError: `chain_too_long`.
    """
    size = sum(len(compact) + 2 for compact in compacts) - 2
    if size > limit:
        raise ConfigurationError(
            "chain_too_long",
            f"the delegation chain has {size} bytes, a header holds {limit}",
            remedy="shorten agent names and tasks, or delegate less deeply",
        )


def split_chain(value: str) -> list[str]:
    """The grants of an `Agent-Delegation` header, leaf first.

    Raises:
        InvalidAssertionError: it is larger than any chain may be, or a member is empty.
    """
    if len(value) > CHAIN_LIMIT:
        raise InvalidAssertionError("chain_too_large", "the chain is larger than 64 KiB")
    members = [member.strip(" \t") for member in value.split(",")]
    if not all(members):
        raise InvalidAssertionError("chain_malformed", "the chain has an empty member")
    return members
