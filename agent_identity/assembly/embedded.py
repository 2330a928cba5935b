# SPDX-License-Identifier: Apache-2.0
"""An identity with an authority of its own in this process: it signs first grants, and mints a token for any resource."""

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

__all__ = ["Minted", "embedded"]


class Minted(NamedTuple):
    """What is said of a resource whose tokens the authority mints: see `Resource`."""

    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    details: Details | None = None


_NOTHING_SAID: Final = Minted()


def embedded(
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
    """Everything from the authority whose issuer is `authority`.

    `minted` is what is said of resources that get its tokens, `described` are resources whose credentials come from elsewhere.
    """
    issuer = Issuer(
        authority,
        clients=InstanceRegistration(
            name, agent, owner=owner, initial_token=initial_token, recorded=recorded
        ),
        clock=clock,
    )
    source = TokenExchange(issuer, actor="grant", names_principal=True, subject_types=(JWT,))

    def reached(uri: str, said: Minted = _NOTHING_SAID) -> Resource:
        return Resource(
            uri,
            source,
            said.scopes,
            sends_assertion=said.sends_assertion,
            issuer=issuer,
            details=said.details,
            handed=ChainAlone(clock),
        )

    resources = {uri: reached(uri, said) for uri, said in minted.items()}
    return Assembled(
        IssuedGrants(issuer), Resources(resources | dict(described), reached), {"": issuer}, {}
    )
