# SPDX-License-Identifier: Apache-2.0
"""An identity with an authority of its own in this process: it signs first grants, and mints a token for any resource."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.assembly import Assembled
from agent_identity.credentials.hop0 import IssuedGrants
from agent_identity.credentials.issuer import Issuer
from agent_identity.credentials.registration import InstanceRegistration
from agent_identity.credentials.token_exchange import TokenExchange
from agent_identity.credentials.token_types import JWT
from agent_identity.parts import Resource, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.registration import Registered
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

__all__ = ["embedded"]


def embedded(
    authority: str,
    *,
    name: str,
    agent: Agent,
    owner: str | None,
    initial_token: Callable[[], Flow[Secret]],
    recorded: Callable[[Registered], Flow[None]],
    scopes: Mapping[str, frozenset[str] | None],
    described: Mapping[str, Resource],
    clock: Callable[[], float],
) -> Assembled:
    """Everything from the authority whose issuer is `authority`.

    `scopes` is the most that may be asked for at a resource, `described` are resources whose credentials come from elsewhere.
    """
    issuer = Issuer(
        authority,
        clients=InstanceRegistration(
            name, agent, owner=owner, initial_token=initial_token, recorded=recorded
        ),
        clock=clock,
    )
    source = TokenExchange(issuer, actor="grant", names_principal=True, subject_types=(JWT,))

    def minted(uri: str, most: frozenset[str] | None = None) -> Resource:
        return Resource(uri, source, most, issuer=issuer)

    reached = {uri: minted(uri, most) for uri, most in scopes.items()}
    return Assembled(
        IssuedGrants(issuer), Resources(reached | dict(described), minted), {"": issuer}, {}
    )
