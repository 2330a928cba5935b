# SPDX-License-Identifier: Apache-2.0
"""A rig for the ways to a credential: one agent, one issuer, one clock, and answers that a test changes member by member."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl

import pytest

from agent_identity import jose
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.metadata import Endpoints
from agent_identity.credentials.oauth.retries import Breaker
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN
from agent_identity.credentials.source import SubjectToken, Wanted
from agent_identity.flow import HttpRequest, HttpResponse, pure
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import KnownIssuer
from agent_identity.values import Certificate, Principal, Secret

NOW = 1_795_518_000
IDP = "https://idp.example"
BILLING = "https://billing.example"
JSON_TYPE = {"content-type": "application/json"}


class Subject:
    """A principal's tokens: it gives the first type that is asked for, and notes what it was asked."""

    def __init__(self, token: str = "the-subject-token", token_type: str | None = None) -> None:
        self._token = token
        self._type = token_type
        self.asked: list[tuple[str, ...]] = []

    def token(self, issuer: Any, types: Any, /) -> Any:
        self.asked.append(tuple(types))
        return pure(SubjectToken(Secret(self._token), self._type or next(iter(types))))


class Rig:
    """What most tests need; `now` and `monotonic` are clocks that a test moves."""

    IDP = IDP
    BILLING = BILLING
    NOW = NOW
    Subject = Subject
    ACCESS_TOKEN = ACCESS_TOKEN

    def __init__(self) -> None:
        self.now: float = NOW
        self.monotonic: float = 1000.0
        self.agent = Agent("urn:agent-identity:agent:invoice-bot")
        self.client_key = SigningKey.generate()
        self.issuer_key = SigningKey.generate()
        self.certificate = Certificate("PEM", Secret("PEM-KEY"), "the-thumbprint", NOW + 9e6)

    def clock(self) -> float:
        return self.now

    def endpoints(self, **changes: Any) -> Endpoints:
        members: dict[str, Any] = {
            "issuer": IDP,
            "token": f"{IDP}/token",
            "registration": None,
            "revocation": None,
            "introspection": None,
            "jwks": None,
            "issued_at": NOW,
            "expires_at": NOW + 300,
            "authorization": f"{IDP}/authorize",
            "device_authorization": f"{IDP}/device",
            "backchannel_authentication": f"{IDP}/bc-authorize",
            "challenge_methods": frozenset({"S256"}),
        }
        return Endpoints(**(members | changes))

    def issuer(
        self, authentication: Any = None, *, certificate: Any = None, **changes: Any
    ) -> KnownIssuer:
        issuer = KnownIssuer(
            self.endpoints(**changes),
            Client("client-1", authentication or PrivateKeyJwt(self.client_key)),
            clock=self.clock,
            certificate=certificate,
        )
        issuer.breaker = Breaker(lambda: self.monotonic)
        return issuer

    def wanted(self, **changes: Any) -> Wanted:
        members: dict[str, Any] = {
            "resource": BILLING,
            "scopes": frozenset({"invoices:read"}),
            "principal": Principal("alice"),
            "subject": Subject(),
            "chain": (),
            "agent": self.agent.uri,
            "proof_key": self.agent.proof_key,
            "txn": "ses_1",
            "purpose": "close the books",
        }
        return Wanted(**(members | changes))

    def signed(self, claims: dict[str, Any], typ: str = "at+jwt") -> str:
        return self.issuer_key.compact(
            jose.encode_header("ES256", typ=typ), json.dumps(claims).encode()
        )

    def token(self, typ: str = "at+jwt", **changes: Any) -> str:
        """A JWT access token that holds all that was asked for; None leaves a claim out."""
        claims = {
            "iss": IDP,
            "sub": "alice",
            "aud": BILLING,
            "cnf": {"jkt": self.agent.key.thumbprint},
            "exp": NOW + 300,
            "jti": "tok_1",
        } | changes
        return self.signed(
            {name: value for name, value in claims.items() if value is not None}, typ
        )

    def answered(self, access_token: Any = None, **changes: Any) -> HttpResponse:
        """A token answer; None leaves a member out."""
        members = {
            "access_token": self.token() if access_token is None else access_token,
            "token_type": "DPoP",
            "expires_in": 300,
            "scope": "invoices:read",
        } | changes
        return self.json(**{name: value for name, value in members.items() if value is not None})

    @staticmethod
    def json(status: int = 200, /, **members: Any) -> HttpResponse:
        return HttpResponse(status, JSON_TYPE, json.dumps(members).encode())

    def refused(self, error: str, status: int = 400) -> HttpResponse:
        return self.json(status, error=error)

    @staticmethod
    def requests(asks: list[Any]) -> list[HttpRequest]:
        return [ask for ask in asks if isinstance(ask, HttpRequest)]

    @staticmethod
    def form(request: Any) -> dict[str, str]:
        """A request's form, in which no member stands twice."""
        pairs = parse_qsl(request.body.decode("ascii"), keep_blank_values=True, strict_parsing=True)
        assert len(dict(pairs)) == len(pairs), "a member stands twice"
        return dict(pairs)

    @staticmethod
    def claims(compact: str) -> dict[str, Any]:
        return jose.loads_object(jose.unverified(compact).payload)


@pytest.fixture
def rig() -> Rig:
    return Rig()
