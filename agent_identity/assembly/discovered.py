# SPDX-License-Identifier: Apache-2.0
"""Makes resources whose issuer is found at run time, in the resource's own metadata: our client there, and the source for it."""

from __future__ import annotations

from dataclasses import dataclass
from secrets import randbelow
from typing import TYPE_CHECKING, Final

from agent_identity.assembly.issuers import GRANT_TYPES
from agent_identity.credentials.oauth.client import Client, NoProof, PrivateKeyJwt
from agent_identity.credentials.oauth.discovery import Discovery
from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.registration import FoundClient, InstanceRegistration
from agent_identity.values import scope_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.assembly.secrets import Secrets
    from agent_identity.config.model import McpTable, ResourceTable
    from agent_identity.credentials.agent import Agent
    from agent_identity.flow import Flow


_PORTS: Final = 20_000, 12_000
"""The first of the ports to come back to from a sign-in, and their number: below those that systems give to connections."""


@dataclass(frozen=True, slots=True)
class Registrant:
    """What an identity is when it registers at an issuer. `recorded` writes the registration to the ledger."""

    name: str
    agent: Agent
    owner: str | None
    recorded: Callable[[], Flow[None]]


def discovery_of(
    uri: str,
    table: ResourceTable,
    client: McpTable,
    registrant: Registrant,
    secrets: Secrets,
    clock: Callable[[], float],
) -> Discovery:
    """What finds the issuer of a resource. `client` is our client at such an issuer, if that can know it."""
    scopes = None if table.scopes is None else scope_set(table.scopes)
    registration = InstanceRegistration(
        registrant.name,
        registrant.agent,
        owner=registrant.owner,
        initial_token=None,
        recorded=registrant.recorded,
        grant_types=GRANT_TYPES[table.source or ""],
        scopes=lambda: discovery.scopes if scopes is None else scopes,
    )
    clients = FoundClient(_known_client(client, secrets), registration)
    # Not every issuer lets a client come back to another port than the registered one, so it is chosen beforehand.
    port = _PORTS[0] + randbelow(_PORTS[1])
    redirect_uri = client.redirect_uri or f"http://127.0.0.1:{port}/callback"

    def make_issuer(url: str, is_foreign: bool) -> Issuer:  # noqa: FBT001 - called by position, as `Discovery` declares it
        return Issuer(
            url,
            clients=clients,
            clock=clock,
            redirect_uri=redirect_uri,
            is_discovered=True,
            may_be_private=not is_foreign,
        )

    discovery = Discovery(uri, clock, make_issuer=make_issuer)
    return discovery


def _known_client(table: McpTable, secrets: Secrets) -> Client | None:
    if table.client_id is None:
        return None
    if table.client_key is None:
        return Client(table.client_id, NoProof())
    key = secrets.key(table.client_key, "client key of [mcp]")
    return Client(table.client_id, PrivateKeyJwt(key, kid=table.client_key_id))
