# SPDX-License-Identifier: Apache-2.0
"""What an operator does to an authority that may be served at the same time: both work on its state directory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from agent_identity.authority import Authority
from agent_identity.errors import ConfigurationError
from agent_identity.values import agent_uri

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

__all__ = ["operated", "reference"]


@contextlib.contextmanager
def operated(state_dir: Path) -> Generator[Authority]:
    """The authority of a state directory, for as long as the block lasts.

    Raises:
        ConfigurationError: `no_authority`, none was ever served there.
    """
    folder = state_dir / "authority"
    if not folder.is_dir():  # a slip in the folder's name must not look like a revocation
        raise ConfigurationError(
            "no_authority",
            f"there is no authority in {state_dir}",
            remedy="name the --state-dir that it is served with",
        )
    authority = Authority(folder)
    try:
        yield authority
    finally:
        authority.close()


def reference(text: str) -> str:
    """A reference as the authority keeps it: what stands behind `agent:` is an agent's name or URI."""
    kind, colon, name = text.partition(":")
    return agent_uri(name) if kind == "agent" and colon else text
