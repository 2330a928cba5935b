# SPDX-License-Identifier: Apache-2.0
"""The protocol of a credential source, the request that it answers, and the principal's tokens that it may use.

A source is an object whose `fetch` returns a flow (see flow.py); `token_exchange.py` is the pattern. Sources don't import one
another: a cache, or a choice among sources, takes them as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import orjson

from agent_identity.credentials.oauth.responses import read_jwt
from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from agent_identity.credentials.oauth.dpop import ProofKey
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.oauth.responses import Fields
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Principal, Secret


@dataclass(frozen=True)
class SubjectToken:
    """A token of the principal, and its type (`token_types.ACCESS_TOKEN` and so on)."""

    token: Secret = field(repr=False)
    token_type: str

    @cached_property
    def claims(self) -> Fields | None:
        """The claims of a JWT, which were verified when the session was opened; None for an opaque token."""
        return read_jwt(self.token)


def may_act(claims: Fields, agent: str, client_id: str | None) -> bool:
    """Whether a principal's token lets this agent, or its client, act (RFC 8693 §4.4). Without a `may_act` it doesn't say.

    It may name the actor by `sub`, by `client_id`, or by both; then both must be ours.
    """
    if "may_act" not in claims.members:
        return True
    actor = claims.nested("may_act")
    if actor is None or not (actor.has("sub") or actor.has("client_id")):
        return False
    is_named = not actor.has("sub") or actor.text("sub") in (agent, client_id)
    return is_named and (not actor.has("client_id") or actor.text("client_id") == client_id)


class Subject(Protocol):
    """Hands out the principal's tokens for one session."""

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:
        """Return a token for `issuer`, of the first type in `types` that is available.

        Raises:
            CredentialRejectedError: `subject_token_missing`, the session holds none of these types.
            CredentialError: a fresh token could not be obtained.
        """
        ...


class Verified(NamedTuple):
    """The result of verifying a principal's tokens. Times are Unix seconds.

    `renew` verifies fresh tokens and returns the new `proven_until`. It is None where no fresh tokens can be obtained; the
    session then ends at `proven_until`.
    """

    principal: Principal
    subject: Subject | None
    evidence: str
    proven_until: float
    renew: Callable[[], Flow[float]] | None = None
    issued_at: float | None = None


class Revoker(Protocol):
    """What revokes the tokens of a source: their issuer, named by its `url`."""

    @property
    def url(self) -> str: ...

    def revoke(self, issued: Issued, /) -> Flow[bool]:
        """Revoke a token. False where the issuer revokes none.

        Raises:
            CredentialError: the issuer refused, or could not be reached.
        """
        ...


class StepUp(NamedTuple):
    """What a resource requires of the sign-in behind a token (RFC 9470 §3)."""

    acr_values: tuple[str, ...] = ()
    max_age: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """A session's request for one credential.

    `chain` is newest first; its leaf names `proof_key`. `subject` is None where the session has no token of the principal.
    `txn` is the session's transaction.
    """

    resource: str
    scopes: frozenset[str]
    principal: Principal
    subject: Subject | None
    chain: tuple[Grant, ...] = field(repr=False)
    agent: str
    proof_key: ProofKey
    txn: str
    purpose: str
    step_up: StepUp | None = None


def sub_at(issuer: Issuer, wanted: Wanted) -> str | None:
    """Return the principal's `sub` at an issuer; None where it isn't known, and for a trigger.

    A `sub` is unique at its own issuer (OIDC Core §2). It also holds at issuers whose configuration lists that issuer in
    `subjects_of`. A principal without issuer is known at the configured issuers.
    """
    principal = wanted.principal
    is_known = principal.iss == issuer.url or principal.iss in issuer.subjects_of
    is_known = is_known or (principal.iss is None and not issuer.is_discovered)
    return principal.sub if is_known and principal.profile != "trigger" else None


def required_sub_at(issuer: Issuer, wanted: Wanted) -> str:
    """Return the principal's `sub` at an issuer that has to be told who the principal is.

    Raises:
        CredentialRejectedError: `principal_unknown_there`, the `sub` may belong to another person there.
    """
    sub = sub_at(issuer, wanted)
    if sub is None and wanted.principal.profile == "trigger":
        raise CredentialRejectedError(
            "principal_unknown_there",
            f"{issuer.url} needs the name of a principal, and an autonomous session has none",
            remedy="open the session with on_behalf_of(token), or use client-credentials for this resource",
        )
    if sub is None:
        raise CredentialRejectedError(
            "principal_unknown_there",
            f"the principal's sub is from {wanted.principal.iss}, and may name another person at {issuer.url}",
            remedy="if both issuers use the same sub for the same person, list the first in subjects_of of the second",
        )
    return sub


class Demand(NamedTuple):
    """A resource's demand for authorization: where its metadata is (RFC 9728 §5.1), and the scopes that it asks for."""

    metadata: str | None = None
    scopes: frozenset[str] | None = None


class Renewal(NamedTuple):
    """Why a credential is renewed: it expired, or the server requires more scopes, a fresher sign-in, or another issuer's token."""

    scopes: frozenset[str] | None = None
    step_up: StepUp | None = None
    demand: Demand | None = None


class Described(NamedTuple):
    """The settings of a source that change its answers, as part of the cache key.

    `details` is canonical JSON, `parameters` an encoded form. A setting that the source doesn't have is empty.
    """

    kind: str
    issuer: str = ""
    client: str = ""
    audience: str = ""
    details: str = ""
    parameters: str = ""


class Source(Protocol):
    """One way to get a credential for a resource."""

    @property
    def described(self) -> Described: ...

    @property
    def patience(self) -> float | None:
        """Seconds that a person has to sign in or decide; None where no person is involved."""
        ...

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get a credential that the resource accepts, checked against the request.

        Raises:
            CredentialRejectedError: an issuer refused, or its answer doesn't match the request.
            CredentialUnavailableError: an issuer could not be reached, or no person acted in time.
        """
        ...


Parameters: TypeAlias = "tuple[tuple[str, str], ...]"
"""Further form members that are configured for a resource, none of which the library sends itself."""


def target(
    wanted: Wanted,
    *,
    audience: str | None = None,
    details: Sequence[JSON] = (),
    parameters: Parameters = (),
    names_resource: bool = True,
) -> list[tuple[str, str]]:
    """Return the form members for a request, the configured `parameters` last.

    `resource` is sent even if an issuer ignores it; `names_resource=False` is for issuers that refuse it.
    """
    form = [("resource", wanted.resource)] if names_resource else []
    if audience is not None:
        form.append(("audience", audience))
    if wanted.scopes:
        form.append(("scope", " ".join(sorted(wanted.scopes))))
    if details:
        form.append(("authorization_details", details_text(details)))
    if wanted.step_up is not None and wanted.step_up.acr_values:
        form.append(("acr_values", " ".join(wanted.step_up.acr_values)))
    if wanted.step_up is not None and wanted.step_up.max_age is not None:
        form.append(("max_age", str(wanted.step_up.max_age)))
    return [*form, *parameters]


def details_text(details: Sequence[JSON]) -> str:
    """Authorization details as JSON text, for the wire and the cache key; empty for none."""
    return orjson.dumps([*details], option=orjson.OPT_SORT_KEYS).decode() if details else ""
