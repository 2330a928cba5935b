# SPDX-License-Identifier: Apache-2.0
"""The token endpoint.

It authenticates the client, then checks its DPoP proof, revocations and the request, in this order, and then issues a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from agent_identity import jose
from agent_identity.authority.clients import GRANT_TYPES
from agent_identity.authority.issuance import AccessToken, GrantRequest
from agent_identity.authority.requests import OAuthError, json_response, read_form
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, CLIENT_CREDENTIALS, JWT
from agent_identity.credentials.root_grants import GRANT
from agent_identity.delegation.carriers import DELEGATION, split_chain
from agent_identity.delegation.details import read_details
from agent_identity.errors import VerificationError
from agent_identity.forks import StillLock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.authority.authentication import Authenticator
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.dpop import Proofs
    from agent_identity.authority.issuance import Issuance
    from agent_identity.authority.requests import Form, ParsedRequest
    from agent_identity.authority.subjects import Subject, Subjects
    from agent_identity.delegation.details import Details
    from agent_identity.flow import HttpResponse
    from agent_identity.values import JSON
    from agent_identity.verify.dpop import Proof


class TokenEndpoint:
    """Answers POST /token."""

    def __init__(
        self,
        url: str,
        *,
        authenticator: Authenticator,
        rates: Rates,
        proofs: Proofs,
        subjects: Subjects,
        issuance: Issuance,
    ) -> None:
        self._url = url
        self._authenticator = authenticator
        self._rates = rates
        self._proofs = proofs
        self._subjects = subjects
        self._issuance = issuance

    def answer(self, request: ParsedRequest, now: float) -> HttpResponse:
        """Answer one token request.

        Raises:
            OAuthError: the request is refused.
            CredentialError: an issuer's keys can't be fetched.
        """
        form = read_form(request)
        grant_type = form.text("grant_type")
        client = self._authenticator.client(request, form, now)
        self._rates.check(client, now)
        if grant_type not in GRANT_TYPES:
            raise OAuthError("unsupported_grant_type", "grant_type_unknown")
        if grant_type not in client.grant_types:
            raise OAuthError("unauthorized_client", "grant_type_not_registered")
        proof = self._proofs.check(request, self._url, client, now)
        self._issuance.check_client(client, now)
        if grant_type == CLIENT_CREDENTIALS:
            token = self._issuance.client_token(
                client,
                form.resources,
                form.scopes(),
                jkt=proof.jkt if proof else None,
                now=int(now),
            )
            body = _token_body(token)
        else:
            body = self._exchange(request, form, client, proof, now)
        return json_response(body, headers=self._proofs.headers(now))

    def _exchange(
        self,
        request: ParsedRequest,
        form: Form,
        client: ClientRecord,
        proof: Proof | None,
        now: float,
    ) -> dict[str, JSON]:
        """Answer a token exchange (RFC 8693): for a grant, or for an access token."""
        requested = form.optional("requested_token_type") or ACCESS_TOKEN
        is_detailed = form.optional("authorization_details") is not None
        if form.has_audience or (is_detailed and requested != GRANT):
            raise OAuthError("invalid_request", "parameter_unsupported")
        if requested not in {GRANT, ACCESS_TOKEN}:
            raise OAuthError("invalid_request", "requested_token_type_unsupported")
        if requested != GRANT and client.configured is not None:
            raise OAuthError("unauthorized_client", "grants_only")
        if proof is None:
            raise OAuthError("invalid_dpop_proof", "proof_missing")
        subject = self._subjects.read(
            form.text("subject_token"),
            form.text("subject_token_type"),
            client,
            jkt=proof.jkt,
            now=now,
            txn=form.optional("txn"),
        )
        if requested == GRANT:
            return self._issue_grant(form, client, subject, proof, int(now))
        token = self._issuance.access_token(
            client,
            subject,
            self._issuance.verify_chain(_read_chain(request, form), now),
            form.resources,
            form.scopes(),
            jkt=proof.jkt,
            now=now,
        )
        return _token_body(token, {"issued_token_type": ACCESS_TOKEN})

    def _issue_grant(
        self, form: Form, client: ClientRecord, subject: Subject, proof: Proof, now: int
    ) -> dict[str, JSON]:
        if form.optional("actor_token") is not None:
            raise OAuthError("invalid_request", "actor_token_unsupported")
        request = GrantRequest(
            form.resources,
            form.scopes(),
            proof.jkt,
            purpose=form.optional("purpose"),
            task=form.optional("task"),
            max_depth=form.number("max_depth"),
            lifetime=form.number("requested_expires_in", least=1),
            details=_read_details(form),
        )
        grant = self._issuance.grant(client, subject, request, now)
        body: dict[str, JSON] = {
            "access_token": grant.compact,
            "issued_token_type": GRANT,
            "token_type": "N_A",
            "expires_in": grant.exp - now,
        }
        return body | _scope_member(grant.scopes)


def _token_body(token: AccessToken, kind: Mapping[str, JSON] | None = None) -> dict[str, JSON]:
    body: dict[str, JSON] = {
        "access_token": token.compact,
        **(kind or {}),
        "token_type": "DPoP" if token.is_bound else "Bearer",
        "expires_in": token.expires_at - token.issued_at,
    }
    return body | _scope_member(token.scopes)


def _scope_member(scopes: frozenset[str]) -> dict[str, JSON]:
    """The `scope` member of a response; left out if there is no scope."""
    return {"scope": " ".join(sorted(scopes))} if scopes else {}


def _read_chain(request: ParsedRequest, form: Form) -> tuple[str, ...]:
    """Read the chain of a request, newest first; its leaf is the actor token."""
    actor_token = form.text("actor_token")
    if form.text("actor_token_type") != JWT:
        raise OAuthError("invalid_request", "actor_token_type_unsupported")
    header = request.headers.get(DELEGATION.lower())
    if header is None:
        raise OAuthError("invalid_request", "delegation_missing")
    try:
        chain = split_chain(header)
    except VerificationError as error:
        raise OAuthError("invalid_grant", error.code) from None
    if chain[0] != actor_token:
        raise OAuthError("invalid_grant", "actor_token_mismatch")
    return tuple(chain)


def _read_details(form: Form) -> Details | None:
    """Read the requested authorization details, which limit the grant further (RFC 9396 §2); unknown types are refused (§5)."""
    text = form.optional("authorization_details")
    if text is None:
        return None
    try:
        return read_details(jose.loads(text.encode()), VerificationError)
    except VerificationError as error:
        raise OAuthError("invalid_authorization_details", error.code) from None


_MINUTE: Final = 60.0


class Rates:
    """Rate limits of configured clients, as token buckets; None is no limit. Each process counts for itself."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._still = StillLock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def check(self, client: ClientRecord, now: float) -> None:
        """Count one request of a client; `now` is Unix seconds.

        Raises:
            OAuthError: 429, the limit is reached; `Retry-After` has the seconds to wait.
        """
        if self._per_minute is None or client.configured is None:
            return
        size, interval = float(self._per_minute), _MINUTE / self._per_minute
        with self._still.lock:
            left, filled_at = self._buckets.get(client.client_id, (size, now))
            left = min(size, left + max(0.0, now - filled_at) / interval)
            if left >= 1:
                self._buckets[client.client_id] = (left - 1, now)
                return
            self._buckets[client.client_id] = (left, now)
        wait = {"retry-after": str(int((1 - left) * interval) + 1)}
        raise OAuthError("temporarily_unavailable", "rate_exceeded", status=429, headers=wait)
