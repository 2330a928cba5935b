# SPDX-License-Identifier: Apache-2.0
"""Client authentication (RFC 7523 §3, RFC 10070).

A registered client authenticates by `private_key_jwt`, a configured one by its configured `ClientProof`. Shared secrets and
unauthenticated clients are refused like a wrong assertion.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from agent_identity import jose
from agent_identity.authority.client_proofs import (
    JWT_BEARER,
    JWT_SPIFFE,
    SKEW,
    TYPE,
    OneUse,
    check_own_assertion,
)
from agent_identity.authority.requests import OAuthError
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError
from agent_identity.keys.algorithms import PROOF_ALGORITHMS

if TYPE_CHECKING:
    from agent_identity.authority.clients import ClientRecord
    from agent_identity.authority.requests import Form, ParsedRequest
    from agent_identity.flow import Flow
    from agent_identity.verify.replay import Replay, ReplayKey

__all__ = ["SKEW", "Authenticator", "ClientTable", "Drive", "UsedOnce"]

T = TypeVar("T")


class Drive(Protocol):
    """Run a flow to its end, and return its result."""

    def __call__(self, flow: Flow[T], /) -> T: ...


class ClientTable(Protocol):
    """The clients of the authority."""

    def client(self, client_id: str, now: float, /) -> ClientRecord | None: ...


class UsedOnce:
    """Refuses assertions and proofs that were already used. `run` is the id of this run of the authority."""

    def __init__(self, replay: Replay, run: str) -> None:
        self._replay = replay
        self._run = run

    def check(
        self, client: ClientRecord, key: ReplayKey, issued_at: float, until: float, now: float
    ) -> None:
        """Check that `key` wasn't used, and remember it until `until`; times are Unix seconds.

        Raises:
            VerificationError: `replayed`, or `issued_before_start`: an earlier run may have seen it.
        """
        # If the clock was set back after this run registered the client, no earlier run has seen what the client sends.
        is_set_back = now < self._replay.not_before and client.registrar == self._run
        if issued_at + SKEW < self._replay.not_before and not is_set_back:
            raise VerificationError(
                "issued_before_start", "the assertion or proof was issued before this run started"
            )
        if not self._replay.remember(key, until):
            raise VerificationError("replayed", "the assertion or proof was already used")


class Authenticator:
    """Authenticates clients."""

    def __init__(self, issuer: str, table: ClientTable, used: UsedOnce, drive: Drive) -> None:
        self._issuer = issuer
        self._table = table
        self._used = used
        self._drive = drive

    def client(self, request: ParsedRequest, form: Form, now: float) -> ClientRecord:
        """Authenticate the client by the assertion in its request.

        Raises:
            OAuthError: `invalid_client` (401), for every reason.
            CredentialError: the keys of a configured client can't be fetched.
        """
        if "authorization" in request.headers or form.optional("client_secret") is not None:
            raise _client_error("shared_secret_refused")
        assertion = form.optional("client_assertion")
        kind = form.optional("client_assertion_type")
        if assertion is None or kind not in {JWT_BEARER, JWT_SPIFFE}:
            raise _client_error("client_assertion_missing")
        try:
            parsed = jose.unverified(assertion)
            client = self._find_client(form.optional("client_id") or _read_issuer(parsed), now)
            once = self._check_assertion(client, parsed, kind, now)
            if once is not None:
                key = ("client", client.client_id, once.jti)
                self._used.check(client, key, once.issued_at, once.expires_at + SKEW, now)
        except VerificationError as error:
            raise _client_error(error.code) from None
        return client

    def _find_client(self, client_id: str, now: float) -> ClientRecord:
        client = self._table.client(client_id, now)
        if client is None:
            raise VerificationError("client_unknown", "no client has this client_id")
        return client

    def _check_assertion(
        self, client: ClientRecord, parsed: jose.Parsed, kind: str, now: float
    ) -> OneUse | None:
        proof = None if client.configured is None else client.configured.proof
        if kind != (JWT_BEARER if proof is None else proof.assertion_type):
            raise VerificationError(
                "method_mismatch", "the client has to authenticate by another method"
            )
        if proof is None:
            _, payload = jose.verify(parsed, client.keys, algorithms=PROOF_ALGORITHMS, typ=TYPE)
            body = jose.loads_object(payload)
            return check_own_assertion(body, client.client_id, self._issuer, now)
        return self._drive(proof.check(parsed, client.client_id, self._issuer, now))


def _read_issuer(parsed: jose.Parsed) -> str:
    """Read the client that an assertion names. It isn't verified yet: this says whose keys have to verify it."""
    return Claims(jose.loads_object(parsed.payload), VerificationError).text("iss")


def _client_error(reason: str) -> OAuthError:
    return OAuthError("invalid_client", reason, status=401)
