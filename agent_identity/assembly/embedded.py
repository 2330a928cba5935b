# SPDX-License-Identifier: Apache-2.0
"""Assembles an identity with an authority in this process, which signs first grants and mints a token for any resource."""

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


class OwnClient(Anchor, Source, Revoker, Protocol):
    """What the identity is at the authority of its own process."""


class Minted(NamedTuple):
    """The settings of a resource whose tokens the authority mints; see `Resource`."""

    scopes: frozenset[str] | None = None
    sends_assertion: bool = True
    details: Details | None = None


_DEFAULTS: Final = Minted()


def assemble_embedded(
    client: OwnClient,
    *,
    minted: Mapping[str, Minted],
    described: Mapping[str, Resource],
    discovered: Callable[[str], Resource],
    clock: Callable[[], float],
) -> Assembled:
    """Assemble the parts around the authority of this process. `client` is what the identity is there.

    `minted` describes resources that get its tokens, `described` are resources whose credentials come from elsewhere.
    `discovered` makes a resource whose metadata names its issuer.
    """

    def make_resource(uri: str, settings: Minted = _DEFAULTS) -> Resource:
        return Resource(
            uri,
            client,
            settings.scopes,
            sends_assertion=settings.sends_assertion,
            issuer=client,
            details=settings.details,
            handed=ChainAlone(clock),
        )

    resources = {uri: make_resource(uri, settings) for uri, settings in minted.items()}
    return Assembled(
        client, Resources(resources | dict(described), make_resource, discovered), {}, {}
    )
