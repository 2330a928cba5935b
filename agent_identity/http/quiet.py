# SPDX-License-Identifier: Apache-2.0
"""Keeps response headers of issuers out of httpcore's DEBUG log: they may echo our secrets."""

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
    """In this block, httpcore logs no responses. Other clients in the process aren't affected."""
    token = _ours.set(True)
    try:
        yield
    finally:
        _ours.reset(token)


def _may_log(record: logging.LogRecord) -> bool:
    # A parse error is a response event, too: it quotes the line that failed.
    return not (_ours.get() and "receive_response" in record.getMessage())


for _name in ("http11", "http2"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_may_log)
