# SPDX-License-Identifier: Apache-2.0
"""A hand-made client of the authority. It signs with PyJWT, not with our own code, and can be told to lie in any claim."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from uuid import uuid4

import jwt
import pytest

from agent_identity.authority import Authority, ClientRecord, Terms
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.keys.signing import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
GRANT = "urn:agent-identity:token-type:grant"
ASSERTION = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
BILLING = "https://billing.example/api"
BOT = "urn:agent-identity:agent:invoice-bot"


class Clock:
    def __init__(self, now: float = 1_795_518_000.25) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sign(key: SigningKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A compact JWS by PyJWT; a claim or header member given as None is left out."""
    alg = "EdDSA" if key.alg == "Ed25519" else key.alg
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key.to_pem(),
        algorithm=alg,
        headers={name: value for name, value in header.items() if value is not None} | {"alg": alg},
    )


class Client:
    """A registered client, its key, and the statements it makes."""

    def __init__(self, rig: Rig, client_id: str, key: SigningKey, agent: str) -> None:
        self.rig = rig
        self.client_id = client_id
        self.key = key
        self.agent = agent

    def assertion(self, *, typ: str | None = "client-authentication+jwt", **claims: Any) -> str:
        now = int(self.rig.clock())
        return sign(
            self.key,
            {"typ": typ, "kid": self.key.thumbprint},
            {
                "iss": self.client_id,
                "sub": self.client_id,
                "aud": self.rig.issuer,
                "iat": now,
                "exp": now + 60,
                "jti": uuid4().hex,
            }
            | claims,
        )

    def subject(self, sub: str = "alice", *, typ: str = "agent-subject+jwt", **claims: Any) -> str:
        now = int(self.rig.clock())
        return sign(
            self.key,
            {"typ": typ, "kid": self.key.thumbprint},
            {
                "iss": self.client_id,
                "sub": sub,
                "sub_profile": "user",
                "aud": self.rig.issuer,
                "iat": now,
                "exp": now + 3600,
                "jti": "sub_" + uuid4().hex,
                "txn": "ses_1",
            }
            | claims,
        )

    def post(
        self,
        path: str,
        form: dict[str, Any],
        *,
        headers: dict[str, str] | None = None,
        proof: str | None = None,
        assertion: str | None = None,
    ) -> HttpResponse:
        fields = {
            "client_id": self.client_id,
            "client_assertion_type": ASSERTION,
            "client_assertion": assertion or self.assertion(),
        } | form
        sent = ({"DPoP": proof} if proof else {}) | (headers or {})
        return self.rig.post(path, fields, sent)

    def grant(
        self, *, key: SigningKey | None = None, subject: str | None = None, **form: Any
    ) -> HttpResponse:
        """Ask for hop 0, bound to `key` (the client's own if none is given)."""
        fields = {
            "grant_type": EXCHANGE,
            "requested_token_type": GRANT,
            "subject_token": subject or self.subject(),
            "subject_token_type": JWT,
            "resource": [BILLING],
            "scope": "invoices:read",
            "purpose": "close the October books",
        } | form
        return self.post("/token", fields, proof=self.rig.proof(key or self.key))

    def root(self, **form: Any) -> str:
        response = self.grant(**form)
        assert response.status == 200, response.body
        return str(body(response)["access_token"])

    def exchange(
        self,
        chain: list[str],
        *,
        key: SigningKey | None = None,
        subject: str | None = None,
        delegation: str | None = None,
        **form: Any,
    ) -> HttpResponse:
        """Trade a chain for an access token; the proof is by `key`."""
        fields = {
            "grant_type": EXCHANGE,
            "subject_token": subject or self.subject(),
            "subject_token_type": JWT,
            "actor_token": chain[0],
            "actor_token_type": JWT,
            "resource": [BILLING],
            "scope": "invoices:read",
        } | form
        headers = {"Agent-Delegation": ", ".join(chain) if delegation is None else delegation}
        return self.post("/token", fields, headers=headers, proof=self.rig.proof(key or self.key))


class Rig:
    """An authority under a clock of its own. (Test modules can't import from here, so that helpers hang on it too.)"""

    sign = staticmethod(sign)

    def __init__(self, authority: Authority, clock: Clock) -> None:
        self.authority = authority
        self.clock = clock
        self.issuer = authority.issuer

    def get(self, url: str) -> HttpResponse:
        return self.authority.handle(HttpRequest("GET", url))

    def post(
        self, path: str, form: dict[str, Any], headers: dict[str, str] | None = None
    ) -> HttpResponse:
        sent = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
        pairs = {name: value for name, value in form.items() if value is not None}
        encoded = urlencode(pairs, doseq=True).encode()
        return self.authority.handle(HttpRequest("POST", f"{self.issuer}{path}", sent, encoded))

    def proof(self, key: SigningKey, path: str = "/token", **claims: Any) -> str:
        return sign(
            key,
            {"typ": "dpop+jwt", "jwk": key.public_jwk},
            {
                "jti": uuid4().hex,
                "htm": "POST",
                "htu": f"{self.issuer}{path}",
                "iat": int(self.clock()),
            }
            | claims,
        )

    def registration(self, key: SigningKey, agent: str = BOT, **members: Any) -> HttpResponse:
        document = {
            "client_name": "invoice bot",
            "agent_id": agent,
            "owner": "team-finance@example.com",
            "jwks": {"keys": [key.public_jwk | {"kid": key.thumbprint}]},
            "token_endpoint_auth_method": "private_key_jwt",
        } | members
        return self.authority.handle(
            HttpRequest(
                "POST",
                f"{self.issuer}/register",
                {
                    "Content-Type": "application/json",
                    "Authorization": f"Bearer {self.authority.registration_token().reveal()}",
                },
                json.dumps({k: v for k, v in document.items() if v is not None}).encode(),
            )
        )

    def client(self, agent: str = BOT, *, alg: str = "ES256") -> Client:
        """Register a new instance of an agent."""
        key = SigningKey.generate(alg)
        response = self.registration(key, agent)
        assert response.status == 201, response.body
        return Client(self, str(body(response)["client_id"]), key, agent)

    def configured(self, terms: Terms, agent: str = BOT) -> Client:
        """Enter a client on terms of its own."""
        key = SigningKey.generate()
        client_id = f"cli_{uuid4().hex}"
        now = int(self.clock())
        jwk = key.public_jwk | {"kid": key.thumbprint}
        self.authority.add_client(
            ClientRecord(client_id, agent, (jwk,), now, now + 3600, terms=terms)
        )
        return Client(self, client_id, key, agent)

    def claims(self, token: str, *, typ: str, aud: str | None = BILLING) -> dict[str, Any]:
        """Verify a token with PyJWT against the published JWKS, and give back its claims."""
        header = jwt.get_unverified_header(token)
        assert header["typ"] == typ
        keys = {key["kid"]: key for key in self.authority.jwks()["keys"]}
        return jwt.decode(
            token,
            jwt.PyJWK(keys[header["kid"]]),
            algorithms=["ES256"],
            audience=aud,
            issuer=self.issuer,
            options={"verify_exp": False, "verify_iat": False, "verify_nbf": False},
        )


def body(response: HttpResponse) -> dict[str, Any]:
    assert response.headers["content-type"] == "application/json"
    found = json.loads(response.body)
    assert isinstance(found, dict)
    return found


def b64(digest: bytes) -> str:
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def refusal(response: HttpResponse) -> tuple[int, str, str]:
    """Status, error and our code of a refusal."""
    found = body(response)
    return response.status, found["error"], found["error_description"]


def child(parent: str, parent_key: SigningKey, **claims: Any) -> str:
    """A hop below `parent`, written out by hand from DESIGN section 5."""
    above = jwt.decode(parent, options={"verify_signature": False})
    key = claims.pop("key")
    jkt = key.thumbprint
    agent = claims.pop("agent", "urn:agent-identity:agent:archive-bot")
    hop = {
        **{name: above[name] for name in ("sub", "sub_iss", "sub_profile", "purpose", "txn")},
        "iss": above["act"]["sub"],
        "act": {
            "iss": above["act"]["sub"],
            "sub": agent,
            "sub_profile": "ai_agent",
            "instance": jkt,
            "act": above["act"],
        },
        "cnf": {"jkt": jkt},
        "aud": above["aud"],
        "scope": above.get("scope"),
        "iat": above["iat"],
        "nbf": above["nbf"],
        "exp": above["exp"],
        "jti": "grant_" + uuid4().hex,
        "del_depth": above["del_depth"] + 1,
        "del_max_depth": above["del_max_depth"],
        "par_hash": b64(hashlib.sha256(parent.rpartition(".")[0].encode()).digest()),
    } | claims
    return sign(parent_key, {"typ": "agent-grant+jwt", "jwk": parent_key.public_jwk}, hop)


Rig.body = staticmethod(body)
Rig.refusal = staticmethod(refusal)
Rig.child = staticmethod(child)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_rig(clock: Clock) -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(state_dir: Path | None = None, **options: Any) -> Rig:
        made.append(Rig(Authority(state_dir, clock=clock, **options), clock))
        return made[-1]

    yield make
    for rig in made:
        rig.authority.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def bot(rig: Rig) -> Client:
    return rig.client()
