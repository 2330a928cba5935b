# SPDX-License-Identifier: Apache-2.0
"""An absolute deadline for sync exchanges: each wait on the socket gets what is left of it, and no more.

A timeout a read wouldn't do: a peer that sends one byte every half second keeps every single read short.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Generator, Iterable

__all__ = ["DeadlineBackend", "deadline_at"]

_current = threading.local()


@contextlib.contextmanager
def deadline_at(moment: float) -> Generator[None]:
    """Within this block, this thread's socket waits end at `moment` on the monotonic clock."""
    before: float | None = getattr(_current, "moment", None)
    _current.moment = moment
    try:
        yield
    finally:
        _current.moment = before


def _left(asked: float | None) -> float | None:
    moment: float | None = getattr(_current, "moment", None)
    if moment is None:
        return asked
    left = moment - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left if asked is None else min(asked, left)


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's own sync backend, with the deadline of the exchange in every wait."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, _left(timeout), local_address, socket_options)
        return _DeadlineStream(stream)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(self._inner.start_tls(ssl_context, server_hostname, _left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
