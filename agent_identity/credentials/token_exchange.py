# SPDX-License-Identifier: Apache-2.0
"""Token exchange: the principal's token and the agent's grant become a token that the resource accepts (RFC 8693)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.answers import Answer, ath_of, check_binding, check_scopes, read_jwt
from agent_identity.credentials.oauth import (
    ACCESS_TOKEN,
    JWT,
    TOKEN_EXCHANGE,
    Issued,
    token_request,
)
from agent_identity.delegation.carriers import DELEGATION, join_chain
from agent_identity.errors import CredentialRejectedError
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.answers import Fields
    from agent_identity.credentials.metadata import Endpoints
    from agent_identity.credentials.oauth import Client
    from agent_identity.credentials.proofs import Nonces, ProofKey
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow

__all__ = ["exchange_token"]

_UNSTATED_LIFE: Final = 60.0
"""Seconds that a token is used whose issuer says nothing of its life."""


def exchange_token(
    endpoints: Endpoints,
    client: Client,
    *,
    subject: Secret,
    chain: Sequence[Grant],
    resource: str,
    scopes: frozenset[str],
    proof_key: ProofKey,
    nonces: Nonces,
    clock: Callable[[], float],
) -> Flow[Issued]:
    """Trade the principal's token for one bound to the acting agent's key (RFC 8693 §2.1, RFC 9449 §5).

    `chain` is newest first: its leaf is the `actor_token`, all of it goes along for the issuer to check.

    Raises:
        CredentialRejectedError: the issuer refused, or its answer isn't what was asked for.
        CredentialUnavailableError: it could not be reached.
    """
    leaf = chain[0]
    asked_at = clock()
    form: list[tuple[str, str | Secret]] = [
        ("grant_type", TOKEN_EXCHANGE),
        ("requested_token_type", ACCESS_TOKEN),
        ("subject_token", subject),
        ("subject_token_type", JWT),
        ("actor_token", Secret(leaf.compact)),
        ("actor_token_type", JWT),
        ("resource", resource),
    ]
    if scopes:
        form.append(("scope", " ".join(sorted(scopes))))
    answer = yield from token_request(
        endpoints,
        client,
        form,
        proof_key=proof_key,
        nonces=nonces,
        clock=clock,
        headers=((DELEGATION, join_chain([grant.compact for grant in chain])),),
    )
    return _checked(answer, endpoints.issuer, leaf, resource, scopes, proof_key, asked_at)


def _checked(
    answer: Answer,
    issuer: str,
    leaf: Grant,
    resource: str,
    scopes: frozenset[str],
    proof_key: ProofKey,
    asked_at: float,
) -> Issued:
    if answer.issued_token_type != ACCESS_TOKEN:
        raise CredentialRejectedError(
            "wrong_token_type", f"{issuer} answered with something other than an access token"
        )
    if answer.token_type.lower() != "dpop":
        raise CredentialRejectedError(
            "binding_missing", f"{issuer} dropped the binding to the agent's key"
        )
    life = _UNSTATED_LIFE if answer.expires_in is None else answer.expires_in
    issued = Issued(
        token=answer.token,
        token_type="DPoP",  # noqa: S106 - a type
        resource=resource,
        issuer=issuer,
        scopes=check_scopes(answer, scopes, issuer),
        issued_at=asked_at,
        expires_at=asked_at + life,
        ath=ath_of(answer.token),
    )
    claims = read_jwt(answer.token)
    return issued if claims is None else _matching(issued, claims, leaf, proof_key)


def _matching(issued: Issued, claims: Fields, leaf: Grant, proof_key: ProofKey) -> Issued:
    """A JWT shows what it is for, so it is held to it; an opaque token can't be."""
    check_binding(claims, proof_key, issued.issuer)
    if claims.get("aud") not in (issued.resource, [issued.resource]):
        raise CredentialRejectedError(
            "audience_mismatch",
            f"{issued.issuer} issued a token for another resource",
            remedy=f"register {issued.resource} at {issued.issuer}",
        )
    if claims.get("sub") != leaf.sub or claims.actor() != leaf.agent:
        raise CredentialRejectedError(
            "subject_mismatch", f"{issued.issuer} issued a token for another principal or agent"
        )
    expiry = claims.get("exp")
    end = float(expiry) if isinstance(expiry, int | float) else issued.expires_at
    return replace(issued, expires_at=min(issued.expires_at, end), jti=claims.text("jti"))
