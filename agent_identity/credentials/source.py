# SPDX-License-Identifier: Apache-2.0
"""What every way to get a credential has in common: what it is asked for, who it is asked on behalf of, what it says of itself.

A source is an object with a `fetch` that makes a flow (see flow.py); `token_exchange.py` is the pattern for one. Sources don't
know one another: a cache, or a choice among them, takes them as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from agent_identity.credentials.oauth.dpop import ProofKey
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.values import Principal, Secret

__all__ = [
    "Described",
    "Renewal",
    "Source",
    "StepUp",
    "Subject",
    "SubjectToken",
    "Verified",
    "Wanted",
    "name_at",
    "named_by",
]


class SubjectToken(NamedTuple):
    """A token of the principal, and its type (`token_types.ACCESS_TOKEN` and so on)."""

    token: Secret
    token_type: str


class Subject(Protocol):
    """The principal of a session as its tokens show them."""

    def token(self, issuer: Issuer, types: Collection[str], /) -> Flow[SubjectToken]:
        """A token to show to `issuer`, of one of `types` (the first that there is, in their order).

        Raises:
            CredentialRejectedError: `subject_token_missing`, the session holds none of these types.
            CredentialError: a fresh one could not be had.
        """
        ...


class Verified(NamedTuple):
    """What verifying a principal's token brings: who they are, their tokens, how that is known, from when and until when (Unix seconds).

    `renew` has them verified anew by fresh tokens, and says until when they are proven then; None where no fresh ones come, so
    that a session ends with `proven_until`.
    """

    principal: Principal
    subject: Subject | None
    evidence: str
    proven_until: float
    renew: Callable[[], Flow[float]] | None = None
    issued_at: float | None = None


class StepUp(NamedTuple):
    """What a resource wants of the sign-in behind a token (RFC 9470 §3)."""

    acr_values: tuple[str, ...] = ()
    max_age: int | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """One credential as a session asks for it.

    `chain` is newest first, its leaf is held by `proof_key`. `subject` is None in a session that acts for nobody whose token
    it has. `txn` is the session's transaction.
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


def named_by(issuer: Issuer, wanted: Wanted) -> str | None:
    """How an issuer names the principal in what it issues; None where that isn't known, and for a trigger, which is nobody.

    A `sub` names somebody at its own issuer (OIDC Core §2), and at those that are said to know the same people by it.
    """
    principal = wanted.principal
    knows = principal.iss in (None, issuer.url) or principal.iss in issuer.subjects_of
    return principal.sub if knows and principal.profile != "trigger" else None


def name_at(issuer: Issuer, wanted: Wanted) -> str:
    """The principal's name at an issuer that is to be told whom this is about.

    Raises:
        CredentialRejectedError: `principal_unknown_there`, the same name may be somebody else's there.
    """
    name = named_by(issuer, wanted)
    if name is None and wanted.principal.profile == "trigger":
        raise CredentialRejectedError(
            "principal_unknown_there",
            f"{issuer.url} can't be told whom this is about: the session acts for nobody",
            remedy="open it with on_behalf_of(token), or use client-credentials for this resource",
        )
    if name is None:
        raise CredentialRejectedError(
            "principal_unknown_there",
            f"the principal's name is one of {wanted.principal.iss}, and may be somebody else's at {issuer.url}",
            remedy="if both issuers know the same people by the same sub, say so in subjects_of of this issuer",
        )
    return name


class Renewal(NamedTuple):
    """Why a credential has to be had anew: it expired, or the server wants more scopes or a fresher sign-in."""

    scopes: frozenset[str] | None = None
    step_up: StepUp | None = None


class Described(NamedTuple):
    """What of a source's own set-up changes its answers, as part of the cache key.

    `issuer` and `client` are names, `audience` a text, `details` canonical JSON; each empty where the source has none.
    """

    kind: str
    issuer: str = ""
    client: str = ""
    audience: str = ""
    details: str = ""


class Source(Protocol):
    """One way to get a credential for a resource."""

    @property
    def described(self) -> Described: ...

    @property
    def patience(self) -> float | None:
        """Seconds that a person gets for their part; None where nobody has to do anything."""
        ...

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get what the resource accepts, checked against what was asked for.

        Raises:
            CredentialRejectedError: an issuer refused, or its answer isn't what was asked for.
            CredentialUnavailableError: an issuer could not be reached, or nobody did what they had to in time.
        """
        ...
