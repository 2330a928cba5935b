# SPDX-License-Identifier: Apache-2.0
"""The ways out that a configuration opens: the HTTP door with its limits, and the Workload API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.config import workload_api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.assembly.settings import Settings
    from agent_identity.config import Configuration
    from agent_identity.http.surroundings import Svids
    from agent_identity.http.transport import Handler, Transport

__all__ = ["svids_of", "transport_of"]


def transport_of(settings: Settings, in_process: Mapping[str, Handler]) -> Transport:
    """The HTTP door; `in_process` are servers of this process, by their origins."""
    from agent_identity.http.transport import Transport  # noqa: PLC0415 - httpx loads on first use

    return Transport(
        in_process,
        body_limit=settings.body_limit,
        allow_private=settings.allow_private,
        authorities=settings.authorities,
    )


def svids_of(configuration: Configuration | None) -> Svids | None:
    """The Workload API, None where neither configuration nor environment say where it is."""
    table = None if configuration is None else configuration.spiffe
    socket = workload_api(None if table is None else table.socket)
    if socket is None:
        return None
    from agent_identity.http.svids import WorkloadApi  # noqa: PLC0415 - for those who have one

    return WorkloadApi(socket, trust_domain=None if table is None else table.trust_domain)
