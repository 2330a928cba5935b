# SPDX-License-Identifier: Apache-2.0
"""The issuer of one resource, found at run time in the resource's own metadata (RFC 9728), and the scopes that it asks for.

The metadata is read each time the resource demands authorization, since it may have moved to another issuer, and at no other time.
Clients and tokens of one issuer are never used at another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.protected_resource import (
    discover_resource,
    is_foreign,
    places_of,
)
from agent_identity.errors import ConfigurationError, CredentialRejectedError
from agent_identity.flow import Shared, shared
from agent_identity.forks import start_over_in_child
from agent_identity.uris import is_safe_link
from agent_identity.values import new_id, scope_set

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.protected_resource import ProtectedResource
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.source import Demand
    from agent_identity.flow import Flow

_SCOPES: Final = 100


class Discovery:
    """The issuer that a resource's metadata names, as a `Revoker`, and what the resource asks for.

    `make_issuer` makes an issuer of its URL; its second argument says whether the URL leads elsewhere than to the resource.
    With `issuer` that one is used, and the metadata only has to name it. `asked` are the scopes that the resource asks for, None if
    it doesn't say; `is_demanded` says whether it has demanded authorization; `version` changes with the issuer.
    """

    def __init__(
        self,
        resource: str,
        clock: Callable[[], float],
        *,
        make_issuer: Callable[[str, bool], Issuer] | None = None,
        issuer: Issuer | None = None,
    ) -> None:
        self.resource = resource
        self.asked: frozenset[str] | None = None
        self.is_demanded: bool = False
        self.version: int = 0
        self._clock = clock
        self._make_issuer = make_issuer
        self._configured = issuer
        self._id = new_id("resource_")
        self._reads = 0
        self._known: ProtectedResource | None = None
        self._issuers: dict[str, Issuer] = {}
        start_over_in_child(self)

    @property
    def url(self) -> str:
        """The URL of the issuer, or of the resource while the issuer isn't known."""
        if self._configured is not None:
            return self._configured.url
        return self.resource if self._known is None else _only(self._known)

    @property
    def scopes(self) -> frozenset[str]:
        """All scopes that the resource has asked for, or lists."""
        listed = None if self._known is None else _readable(self._known.scopes)
        return (self.asked or frozenset()) | (listed or frozenset())

    @property
    def may_learn(self) -> bool:
        """Whether a later refusal is worth another look at the metadata."""
        return self._configured is None or self.is_demanded

    def start_over(self) -> None:
        """In a forked child: the locks of issuers may be held by threads that don't exist there."""
        for issuer in self._issuers.values():
            issuer.start_over()

    def learn(self, demand: Demand) -> Flow[ProtectedResource | None]:
        """Read the metadata because the resource demands authorization; None where it publishes none.

        Raises:
            CredentialRejectedError: it describes another resource, is malformed, or names none or several issuers, or not ours.
            CredentialUnavailableError: the resource could not be reached.
        """
        found = yield from self._read(demand)
        self.asked = demand.scopes
        if self.asked is None and found is not None:
            self.asked = _readable(found.scopes)
        self.is_demanded = True
        return found

    def found(self) -> tuple[ProtectedResource, Issuer]:
        """The resource's metadata and its issuer, after the resource has demanded authorization.

        Raises:
            CredentialRejectedError: `metadata_missing`, it publishes none.
        """
        if self._known is None:
            raise CredentialRejectedError(
                "metadata_missing",
                f"{self.resource} demands authorization, and publishes no metadata that names its issuer",
                remedy="add its issuer to [issuers], and name it as the issuer of the resource",
            )
        return self._known, self._issuer(self._known)

    def revoke(self, issued: Issued, /) -> Flow[bool]:
        """Revoke a token at the issuer that issued it. False where that revokes none.

        Raises:
            CredentialError: the issuer refused, or could not be reached.
        """
        issuer = self._issuers.get(issued.issuer, self._configured)
        return False if issuer is None else (yield from issuer.revoke(issued))

    def _read(self, demand: Demand) -> Flow[ProtectedResource | None]:
        """Read the metadata. Callers at the same time share one read."""
        reads = self._reads
        key = digest_of(("resource", self._id, str(reads), demand.metadata or ""))
        places = places_of(self.resource, demand.metadata)
        read = yield from shared(Shared(key, lambda: self._discover(places)))
        found = read.found
        if found is not None:
            self._issuer(found)
        if reads == self._reads:
            self._reads += 1
            self._settle(found)
        return self._known

    def _discover(self, places: tuple[str, ...]) -> Flow[_Read]:
        return _Read((yield from discover_resource(self.resource, self._clock, places=places)))

    def _settle(self, found: ProtectedResource | None) -> None:
        self.version += _identity_of(found) != _identity_of(self._known)
        self._known = found

    def _issuer(self, found: ProtectedResource) -> Issuer:
        if self._configured is not None:
            if self._configured.url not in found.issuers:
                raise CredentialRejectedError(
                    "issuer_not_named",
                    f"{self.resource} doesn't accept tokens of {self._configured.url}, which is configured for it",
                    remedy="configure an issuer that its metadata names, character by character",
                )
            return self._configured
        url = _only(found)
        issuer = self._issuers.get(url)
        if issuer is None:
            if self._make_issuer is None:
                raise ConfigurationError("no_issuer", f"no issuer is known for {self.resource}")
            issuer = self._issuers[url] = self._make_issuer(url, is_foreign(url, self.resource))
        return issuer


class _Read:
    """What one read found. It isn't cached: each demand reads again."""

    issued_at: float = 0.0
    expires_at: float = 0.0

    def __init__(self, found: ProtectedResource | None) -> None:
        self.found = found


def _only(found: ProtectedResource) -> str:
    """The one issuer that a resource names.

    Raises:
        CredentialRejectedError: `issuer_ambiguous`, it names none or several; `issuer_malformed`, or one without an https URL.
    """
    if len(found.issuers) != 1:
        raise CredentialRejectedError(
            "issuer_ambiguous",
            f"the metadata of {found.resource} names {len(found.issuers)} issuers",
            remedy="add the table of one of them to [issuers], and name it as the issuer of the resource",
        )
    (url,) = found.issuers
    if not is_safe_link(url) or "?" in url or "#" in url:
        raise CredentialRejectedError(
            "issuer_malformed",
            f"the metadata of {found.resource} names an issuer without an https URL",
        )
    return url


def _identity_of(found: ProtectedResource | None) -> tuple[str, frozenset[str]] | None:
    return None if found is None else (found.resource, found.issuers)


def _readable(scopes: frozenset[str] | None) -> frozenset[str] | None:
    """The scopes that a resource lists, None if they can't be requested."""
    if scopes is None or len(scopes) > _SCOPES:
        return None
    try:
        return scope_set(scopes)
    except ConfigurationError:
        return None
