# SPDX-License-Identifier: Apache-2.0
"""An absolute deadline for sync exchanges: each wait on the socket is limited to the time left.

A timeout per read isn't enough: a peer that sends one byte every half second never exceeds it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import httpcore

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Generator, Iterable


_current = threading.local()


@contextlib.contextmanager
def deadline_at(moment: float) -> Generator[None]:
    """In this block, the socket waits of this thread end at `moment` on the monotonic clock."""
    before: float | None = getattr(_current, "moment", None)
    _current.moment = moment
    try:
        yield
    finally:
        _current.moment = before


def _time_left(timeout: float | None) -> float | None:
    moment: float | None = getattr(_current, "moment", None)
    if moment is None:
        return timeout
    left = moment - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left if timeout is None else min(timeout, left)


class DeadlineBackend(httpcore.NetworkBackend):
    """httpcore's sync backend with the exchange's deadline for every wait, name resolution included.

    `find` returns the addresses of a host and port, in the order in which to try them.
    """

    def __init__(self, find: Callable[[str, int], Iterable[str]]) -> None:
        self._inner = httpcore.SyncBackend()
        self._find = find

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        until = None if (left := _time_left(timeout)) is None else time.monotonic() + left
        addresses = self._resolve(host, port, left)
        failure: Exception = httpcore.ConnectError("the host has no address")
        for tried, address in enumerate(addresses):
            # The time left is divided among the remaining addresses, so that an unreachable one can't use it all.
            share = None if until is None else (until - time.monotonic()) / (len(addresses) - tried)
            if share is not None and share <= 0:
                raise httpcore.ConnectTimeout("the deadline has passed")
            try:
                stream = self._inner.connect_tcp(
                    address, port, share, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout, OSError) as error:
                failure = error
            else:
                return _DeadlineStream(stream)
        raise failure

    def _resolve(self, host: str, port: int, seconds: float | None) -> list[str]:
        """Resolve a host in a separate thread, since the system's resolver has no timeout."""
        addresses: Future[list[str]] = Future()

        def look() -> None:
            try:
                addresses.set_result(list(self._find(host, port)))
            except BaseException as error:  # noqa: BLE001 - raised in the waiting thread
                addresses.set_exception(error)

        threading.Thread(target=look, name="agent-identity-resolver", daemon=True).start()
        try:
            return addresses.result(seconds)
        except OSError as error:  # an unknown name, or a timeout
            kind = httpcore.ConnectError if addresses.done() else httpcore.ConnectTimeout
            raise kind(type(error).__name__) from None


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _time_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _time_left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _DeadlineStream(
            self._inner.start_tls(ssl_context, server_hostname, _time_left(timeout))
        )

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
