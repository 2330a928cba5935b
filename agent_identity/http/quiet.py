# SPDX-License-Identifier: Apache-2.0
"""Keeps an issuer's headers out of httpcore's DEBUG log, where it would print them whole, with whatever the issuer echoes."""

from __future__ import annotations

import contextlib
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["quiet"]

_ours: ContextVar[bool] = ContextVar("agent_identity_exchange", default=False)


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Within this block, httpcore logs nothing that came back. What a tool's own client does isn't touched."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _allowed(record: logging.LogRecord) -> bool:
    # Also what could not be read: the error says the line that it failed at.
    return not (_ours.get() and "receive_response" in record.getMessage())


for _name in ("http11", "http2"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_allowed)
