# SPDX-License-Identifier: Apache-2.0
"""Which client a request comes from (RFC 7523 §3, RFC 10070).

A client that registered proves itself by `private_key_jwt`, one that is configured in the way of its table. There is no shared
secret to steal and no client without proof; an attempt at either is refused like a wrong assertion.
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
    from agent_identity.authority.requests import Asked, Form
    from agent_identity.flow import Flow
    from agent_identity.verify.replay import Replay

__all__ = ["SKEW", "Authenticator", "Drive", "Table"]

T = TypeVar("T")


class Drive(Protocol):
    """Drives a flow to its end, and waits for it."""

    def __call__(self, flow: Flow[T], /) -> T: ...


class Table(Protocol):
    """Who is a client here."""

    def client(self, client_id: str, now: float, /) -> ClientRecord | None: ...


class Authenticator:
    """Tells which client a request comes from. `run` is what registers clients since `replay` remembers."""

    def __init__(self, issuer: str, table: Table, replay: Replay, drive: Drive, run: str) -> None:
        self._issuer = issuer
        self._table = table
        self._replay = replay
        self._drive = drive
        self._run = run

    def client(self, asked: Asked, form: Form, now: float) -> ClientRecord:
        """The client that the request's assertion proves.

        Raises:
            OAuthError: `invalid_client` (401), whatever is wrong.
            CredentialError: the keys of a configured client can't be had.
        """
        if "authorization" in asked.headers or form.optional("client_secret") is not None:
            raise _invalid("shared_secret_refused")
        assertion = form.optional("client_assertion")
        kind = form.optional("client_assertion_type")
        if assertion is None or kind not in {JWT_BEARER, JWT_SPIFFE}:
            raise _invalid("client_assertion_missing")
        try:
            parsed = jose.unverified(assertion)
            client = self._named(form.optional("client_id") or _claimed(parsed), now)
            self._check_unused(client, self._proven(client, parsed, kind, now), now)
        except VerificationError as error:
            raise _invalid(error.code) from None
        return client

    def _named(self, client_id: str, now: float) -> ClientRecord:
        client = self._table.client(client_id, now)
        if client is None:
            raise VerificationError("client_unknown", "nobody is registered under that name")
        return client

    def _proven(
        self, client: ClientRecord, parsed: jose.Parsed, kind: str, now: float
    ) -> OneUse | None:
        proof = None if client.configured is None else client.configured.proof
        if kind != (JWT_BEARER if proof is None else proof.assertion_type):
            raise VerificationError("method_mismatch", "the client authenticates in another way")
        if proof is None:
            _, payload = jose.verify(parsed, client.keys, algorithms=PROOF_ALGORITHMS, typ=TYPE)
            body = jose.loads_object(payload)
            return check_own_assertion(body, client.client_id, self._issuer, now)
        return self._drive(proof.check(parsed, client.client_id, self._issuer, now))

    def _check_unused(self, client: ClientRecord, once: OneUse | None, now: float) -> None:
        if once is None:
            return
        if once.issued_at + SKEW < self._replay.not_before and not self._is_set_back(client, now):
            raise VerificationError("issued_before_start", "older than what is remembered")
        if not self._replay.remember(
            ("client", client.client_id, once.jti), once.expires_at + SKEW
        ):
            raise VerificationError("replayed", "the assertion was used already")

    def _is_set_back(self, client: ClientRecord, now: float) -> bool:
        """Whether the clock was set back to before this run, of which the client is: so nobody used what it sends in another."""
        return now < self._replay.not_before and client.registrar == self._run


def _claimed(parsed: jose.Parsed) -> str:
    """The client that an assertion names. It is read before it is verified, only to learn whose keys have to verify it."""
    return Claims(jose.loads_object(parsed.payload), VerificationError).text("iss")


def _invalid(why: str) -> OAuthError:
    return OAuthError("invalid_client", why, status=401)
