# SPDX-License-Identifier: Apache-2.0
"""The first grant of a chain, signed by a trust anchor (DESIGN section 5, Anchors): an issuer, or a signer of our own.

A verifier decides how far it trusts an anchor: one in the agent's own process can claim any principal.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from agent_identity import jose
from agent_identity.credentials.oauth.requests import Binding
from agent_identity.credentials.oauth.responses import check_scopes
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_TOKEN, JWT, TOKEN_EXCHANGE
from agent_identity.credentials.source import details_text
from agent_identity.delegation.grant import (
    EVIDENCE,
    GRANT_TYPE,
    Grant,
    read_grant,
    root_signing_input,
)
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.signers import public_keys_of, sign_compact
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.credentials.oauth.dpop import ProofKey
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Subject
    from agent_identity.delegation.details import Details
    from agent_identity.flow import Flow
    from agent_identity.signers import Signer
    from agent_identity.values import JSON, Principal, Secret

_SKEW: Final = 60
GRANT: Final = "urn:agent-identity:token-type:grant"


@dataclass(frozen=True, slots=True)
class RootWanted:
    """A session's request for hop 0. `lifetime` is seconds; `evidence` says how the principal was verified here."""

    principal: Principal
    subject: Subject | None
    agent: str
    resources: frozenset[str]
    scopes: frozenset[str]
    purpose: str
    task: str | None
    txn: str
    max_depth: int
    lifetime: float
    evidence: str
    proof_key: ProofKey = field(repr=False)
    details: Details | None = None


class Anchor(Protocol):
    """Signs hop 0. `name` is its `iss`."""

    @property
    def name(self) -> str: ...

    def grant(self, wanted: RootWanted, /) -> Flow[Grant]:
        """Make hop 0 for the requesting key.

        Raises:
            CredentialError: the anchor refused, issued a grant that doesn't match the request, or can't be reached.
        """
        ...

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        """Return its public key with this `kid`."""
        ...

    def keys(self) -> Flow[list[dict[str, JSON]]]:
        """Return all public keys that verify its grants, if this identity publishes them.

        Raises:
            ConfigurationError: `anchor_keys`, the anchor publishes its keys itself.
        """
        ...


class SignedGrants:
    """Hop 0 signed by this identity's own signer. Verifiers know the signer as `iss`, whichever of its keys signs."""

    def __init__(self, signer: Signer, iss: str, clock: Callable[[], float]) -> None:
        self.name: str = iss
        self._signer = signer
        self._clock = clock
        self._seen: dict[str, dict[str, JSON]] = {}
        """Public keys by `kid`, rotated ones included: grants that they signed may still be valid."""

    def grant(self, wanted: RootWanted, /) -> Flow[Grant]:
        key, *_ = yield from self.keys()
        now = self._clock()
        principal = wanted.principal
        signing_input = root_signing_input(
            str(key["alg"]),
            str(key["kid"]),
            iss=self.name,
            principal_sub=principal.sub,
            sub_iss=principal.iss or self.name,
            sub_profile=principal.profile,
            agent=wanted.agent,
            jkt=wanted.proof_key.thumbprint,
            aud=wanted.resources,
            scopes=wanted.scopes,
            details=wanted.details,
            purpose=wanted.purpose,
            task=wanted.task,
            txn=wanted.txn,
            now=int(now),
            expires_at=int(now + wanted.lifetime),
            max_depth=wanted.max_depth,
            evidence=wanted.evidence,
        )
        return read_grant((yield from sign_compact(self._signer, signing_input, key)))

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        if kid not in self._seen:
            yield from self.keys()
        if kid not in self._seen:
            raise CredentialRejectedError("unknown_key", f"{self.name} has no key with this kid")
        return self._seen[kid]

    def keys(self) -> Flow[list[dict[str, JSON]]]:
        keys = yield from public_keys_of(self._signer)
        self._seen.update((str(key["kid"]), key) for key in keys)
        return keys


class IssuedGrants:
    """Hop 0 from an issuer of grants (RFC 8693 with our own token type), for the key that signs the request's DPoP proof."""

    def __init__(self, issuer: Issuer) -> None:
        self.name: str = issuer.url
        self._issuer = issuer

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        return self._issuer.key(kid)

    def keys(self) -> Flow[list[dict[str, JSON]]]:
        yield from ()
        raise ConfigurationError(
            "anchor_keys",
            f"{self.name} signs the first grants and publishes its keys itself",
            remedy="make a Verifier with a TrustAnchor that has that issuer's jwks",
        )

    def grant(self, wanted: RootWanted, /) -> Flow[Grant]:
        """See `Anchor`.

        Raises:
            CredentialRejectedError: the anchor refused, or issued a grant that doesn't match the request.
            CredentialUnavailableError: the anchor could not be reached.
        """
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                "the issuer needs the principal's token to issue a grant, and this session has none",
                remedy="open the session with on_behalf_of(token), or sign hop 0 with a signer of your own",
            )
        issuer = self._issuer
        subject = yield from wanted.subject.token(issuer, (JWT, ACCESS_TOKEN, ID_TOKEN))
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", TOKEN_EXCHANGE),
            ("requested_token_type", GRANT),
            ("subject_token", subject.token),
            ("subject_token_type", subject.token_type),
            ("purpose", wanted.purpose),
            ("txn", wanted.txn),
            ("max_depth", str(wanted.max_depth)),
            ("requested_expires_in", str(int(wanted.lifetime))),
            *(("resource", resource) for resource in sorted(wanted.resources)),
        ]
        if wanted.scopes:
            form.append(("scope", " ".join(sorted(wanted.scopes))))
        if wanted.task is not None:
            form.append(("task", wanted.task))
        if wanted.details is not None:
            form.append(("authorization_details", details_text(wanted.details.claim)))
        answer = yield from issuer.token(form, binding=Binding("dpop", wanted.proof_key))
        if answer.issued_token_type != GRANT or answer.token_type != "N_A":  # noqa: S105 - a type
            raise CredentialRejectedError(
                "wrong_token_type", f"{issuer.url} didn't answer with a grant"
            )
        check_scopes(answer, wanted.scopes, issuer.url)
        grant = _grant_in(answer, issuer.url)
        yield from self._check_signature(grant)
        if not _matches(grant, wanted, issuer):
            raise CredentialRejectedError(
                "grant_mismatch", f"{issuer.url} issued a grant that doesn't match the request"
            )
        return grant

    def _check_signature(self, grant: Grant) -> Flow[None]:
        """Refuse a grant that no verifier would accept: it names the principal, so it isn't passed on."""
        key = yield from self._issuer.key(grant.kid or "", at_once=True)
        try:
            jose.verify(grant.compact, [key], algorithms=ALGORITHMS, typ=GRANT_TYPE)
        except VerificationError as error:
            code = error.code
        else:
            return
        raise CredentialRejectedError(
            "malformed_grant", f"{self.name} issued an invalid grant: {code}"
        )


def _matches(grant: Grant, wanted: RootWanted, issuer: Issuer) -> bool:
    principal = wanted.principal
    return (
        (grant.iss, grant.vouched_by) == (issuer.url, issuer.url)
        and grant.jkt == wanted.proof_key.thumbprint
        and grant.txn == wanted.txn
        and grant.depth == 0
        and grant.max_depth <= wanted.max_depth
        and grant.scopes <= wanted.scopes
        and _text_of(grant.details) == _text_of(wanted.details)
        and grant.aud | {LOCAL} == wanted.resources | {LOCAL}
        and grant.purpose == wanted.purpose
        and (grant.sub, grant.sub_iss) == (principal.sub, principal.iss or issuer.url)
        and grant.sub_profile == principal.profile
        and grant.agent == wanted.agent
        and grant.exp <= issuer.clock() + wanted.lifetime + _SKEW
        and grant.evidence is not None
        and EVIDENCE.index(grant.evidence) <= EVIDENCE.index(wanted.evidence)
    )


def _text_of(details: Details | None) -> str:
    return "" if details is None else details_text(details.claim)


def _grant_in(answer: Answer, issuer: str) -> Grant:
    try:
        return read_grant(answer.token.reveal())
    except VerificationError as error:
        code = error.code
    # Raised here and not in `except`: the frames below hold what the issuer sent.
    raise CredentialRejectedError("malformed_grant", f"{issuer} issued an invalid grant: {code}")
