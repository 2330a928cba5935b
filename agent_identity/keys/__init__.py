# SPDX-License-Identifier: Apache-2.0
"""Keys: signing, certificates, sealing, and the files that hold them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agent_identity.keys.signing import SigningKey, public_key_of

__all__ = ["SigningKey", "public_key_of"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.signing"), name)
