# SPDX-License-Identifier: Apache-2.0
"""A credential of the issuer that the resource's own metadata names, by another source that is made for that issuer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from agent_identity.credentials.source import Described

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.discovery import Discovery
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Source, Wanted
    from agent_identity.flow import Flow


@dataclass(frozen=True, slots=True)
class Discovered:
    """Find the issuer, and get the credential from it.

    `make` makes the source of a kind for an issuer; its second argument says whether the token is bound by DPoP. It is bound
    where the resource or the issuer's metadata says that it can be. Until the resource demands authorization, it gets the
    credential of `otherwise`.
    """

    kind: str
    discovery: Discovery
    make: Callable[[Issuer, bool], Source]
    otherwise: Source
    patience: float | None = None
    _made: dict[tuple[str, bool], Source] = field(
        default_factory=dict[tuple[str, bool], "Source"], init=False, repr=False, compare=False
    )
    """The sources by issuer: each has the refresh tokens of its issuer."""

    @property
    def described(self) -> Described:
        return Described(self.kind, "discovered", audience=str(self.discovery.version))

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Find the issuer, and get the credential.

        Raises:
            CredentialRejectedError: the metadata can't be used, or the issuer refused.
            CredentialUnavailableError: the resource or the issuer could not be reached, or no person signed in in time.
        """
        if not self.discovery.is_demanded:
            return (yield from self.otherwise.fetch(wanted))
        metadata, issuer = self.discovery.found()
        endpoints = yield from issuer.endpoints()
        key = issuer.id, bool(metadata.wants_dpop or endpoints.proof_algorithms)
        source = self._made.get(key)
        if source is None:
            source = self._made.setdefault(key, self.make(issuer, key[1]))
        issued = yield from source.fetch(replace(wanted, resource=metadata.resource))
        return replace(issued, resource=wanted.resource)
