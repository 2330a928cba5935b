# SPDX-License-Identifier: Apache-2.0
"""Drivers of flows, the HTTP transport, single flight, and the credential that signs requests.

Only this package imports httpx, and only on first use. For other HTTP clients, `httpx2_auth(credential)`,
`requests_auth(credential)` and `aiohttp_middleware(credential)` adapt the credential; each imports its client on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from agent_identity.http.for_aiohttp import aiohttp_middleware
    from agent_identity.http.for_httpx2 import httpx2_auth
    from agent_identity.http.for_requests import requests_auth

__all__ = ["aiohttp_middleware", "httpx2_auth", "requests_auth"]

_PLACES: Final = {
    "aiohttp_middleware": "for_aiohttp",
    "httpx2_auth": "for_httpx2",
    "requests_auth": "for_requests",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
