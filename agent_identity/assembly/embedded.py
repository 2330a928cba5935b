# SPDX-License-Identifier: Apache-2.0
"""Assembles an identity with an authority in this process, which signs first grants and mints a token for any resource."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.assembly import Assembled
from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.registration import InstanceRegistration
from agent_identity.credentials.oauth.token_types import JWT
from agent_identity.credentials.root_grants import IssuedGrants
from agent_identity.credentials.sources.chain_alone import ChainAlone
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.runtime.parts import Resource, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.credentials.agent import Agent
    from agent_identity.credentials.oauth.registration import Registered
    from agent_identity.delegation.details import Details
    from agent_identity.flow import Flow
    from agent_identity.values import Secret

__all__ = ["Minted", "assemble_embedded"]


class Minted(NamedTuple):
    """The settings of a resource whose tokens the authority mints; see `Resource`."""

    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    details: Details | None = None


_DEFAULTS: Final = Minted()


def assemble_embedded(
    authority: str,
    *,
    name: str,
    agent: Agent,
    owner: str | None,
    initial_token: Callable[[], Flow[Secret]],
    recorded: Callable[[Registered], Flow[None]],
    minted: Mapping[str, Minted],
    described: Mapping[str, Resource],
    clock: Callable[[], float],
) -> Assembled:
    """Assemble the parts around the authority whose issuer is `authority`.

    `minted` are the settings of resources that get its tokens, `described` the resources whose credentials come from elsewhere.
    """
    issuer = Issuer(
        authority,
        clients=InstanceRegistration(
            name, agent, owner=owner, initial_token=initial_token, recorded=recorded
        ),
        clock=clock,
    )
    source = TokenExchange(issuer, actor="grant", names_principal=True, subject_types=(JWT,))

    def make_resource(uri: str, settings: Minted = _DEFAULTS) -> Resource:
        return Resource(
            uri,
            source,
            settings.scopes,
            sends_assertion=settings.sends_assertion,
            issuer=issuer,
            details=settings.details,
            handed=ChainAlone(clock),
        )

    resources = {uri: make_resource(uri, settings) for uri, settings in minted.items()}
    known = Resources(resources | dict(described), make_resource)
    return Assembled(IssuedGrants(issuer), known, {"": issuer}, {})
