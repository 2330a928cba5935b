# SPDX-License-Identifier: Apache-2.0
"""Hop 0: the principal's token becomes the first grant of a chain, signed by a trust anchor (DESIGN section 5, Anchors)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity.credentials.answers import check_scopes
from agent_identity.credentials.oauth import JWT, TOKEN_EXCHANGE, token_request
from agent_identity.delegation.grant import Grant, read_grant
from agent_identity.errors import CredentialRejectedError, VerificationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from agent_identity.credentials.answers import Answer
    from agent_identity.credentials.metadata import Endpoints
    from agent_identity.credentials.oauth import Client
    from agent_identity.credentials.proofs import Nonces, ProofKey
    from agent_identity.flow import Flow
    from agent_identity.values import Principal, Secret

__all__ = ["GRANT", "first_grant"]

_SKEW: Final = 60
GRANT: Final = "urn:agent-identity:token-type:grant"


def first_grant(
    endpoints: Endpoints,
    client: Client,
    *,
    subject: Secret,
    principal: Principal,
    agent: str,
    resources: Iterable[str],
    scopes: frozenset[str],
    purpose: str,
    task: str | None,
    txn: str,
    max_depth: int,
    lifetime: float,
    proof_key: ProofKey,
    nonces: Nonces,
    clock: Callable[[], float],
) -> Flow[Grant]:
    """Ask the anchor for a grant to the key that proves itself on this request; `lifetime` is seconds.

    Raises:
        CredentialRejectedError: the anchor refused, or granted something else than was asked for.
        CredentialUnavailableError: it could not be reached.
    """
    form: list[tuple[str, str | Secret]] = [
        ("grant_type", TOKEN_EXCHANGE),
        ("requested_token_type", GRANT),
        ("subject_token", subject),
        ("subject_token_type", JWT),
        ("purpose", purpose),
        ("max_depth", str(max_depth)),
        ("requested_expires_in", str(int(lifetime))),
        *(("resource", resource) for resource in sorted(resources)),
    ]
    if scopes:
        form.append(("scope", " ".join(sorted(scopes))))
    if task is not None:
        form.append(("task", task))
    answer = yield from token_request(
        endpoints, client, form, proof_key=proof_key, nonces=nonces, clock=clock
    )
    if answer.issued_token_type != GRANT or answer.token_type != "N_A":  # noqa: S105 - a type
        raise CredentialRejectedError(
            "wrong_token_type", f"{endpoints.issuer} answered with something other than a grant"
        )
    check_scopes(answer, scopes, endpoints.issuer)
    grant = _read(answer, endpoints.issuer)
    as_asked = (
        grant.jkt == proof_key.thumbprint
        and grant.txn == txn
        and grant.depth == 0
        and grant.scopes <= scopes
        and grant.aud >= frozenset(resources)
        and grant.purpose == purpose
        and (grant.sub, grant.sub_profile) == (principal.sub, principal.profile)
        and grant.agent == agent
        and grant.exp <= clock() + lifetime + _SKEW
    )
    if not as_asked:
        raise CredentialRejectedError(
            "grant_mismatch", f"{endpoints.issuer} issued a grant for something else"
        )
    return grant


def _read(answer: Answer, issuer: str) -> Grant:
    try:
        return read_grant(answer.token.reveal())
    except VerificationError as error:
        code = error.code
    # Raised here and not in `except`: the frames below hold what the issuer sent.
    raise CredentialRejectedError(
        "malformed_grant", f"{issuer} issued a grant that is refused: {code}"
    )
