# SPDX-License-Identifier: Apache-2.0
"""An identity with an authority of its own in this process: it signs first grants, and mints a token for any resource."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from agent_identity.assembly import Assembled
from agent_identity.credentials.root_grants import Anchor
from agent_identity.credentials.source import Revoker, Source
from agent_identity.credentials.sources.chain_alone import ChainAlone
from agent_identity.runtime.parts import Resource, Resources

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.delegation.details import Details

__all__ = ["Minted", "OwnClient", "embedded"]


class OwnClient(Anchor, Source, Revoker, Protocol):
    """What the identity is at the authority of its own process."""


class Minted(NamedTuple):
    """The description of a resource whose tokens the authority mints; see `Resource`."""

    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    details: Details | None = None


_UNDESCRIBED: Final = Minted()


def embedded(
    client: OwnClient,
    *,
    minted: Mapping[str, Minted],
    described: Mapping[str, Resource],
    clock: Callable[[], float],
) -> Assembled:
    """Everything from the authority of this process, as whose `client` the identity acts.

    `minted` describes resources that get its tokens, `described` are resources whose credentials come from elsewhere.
    """

    def reached(uri: str, each: Minted = _UNDESCRIBED) -> Resource:
        return Resource(
            uri,
            client,
            each.scopes,
            sends_assertion=each.sends_assertion,
            issuer=client,
            details=each.details,
            handed=ChainAlone(clock),
        )

    resources = {uri: reached(uri, each) for uri, each in minted.items()}
    return Assembled(client, Resources(resources | dict(described), reached), {}, {})
