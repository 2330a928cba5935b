# SPDX-License-Identifier: Apache-2.0
"""The file that `init --kind keycloak` writes, against a fake realm whose tokens have the claims of Keycloak's source.

After `AccessToken`, `IDToken` and `StandardTokenExchangeProvider` (Keycloak 26): who may exchange which token, and what comes
back. Nothing here is Keycloak's own code.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from agent_identity import AgentIdentity, CredentialRejectedError, InvalidSubjectError, jose
from agent_identity.cli.init import write_configuration
from agent_identity.keys.signing import SigningKey, public_signing_jwk
from agent_identity.testing import FakeIssuer
from agent_identity.testing.web import FakeResponse, Received
from agent_identity.verify.dpop import verify_proof

BILLING = "https://billing.example"
PATH = "/realms/acme"
TOKEN = f"{PATH}/protocol/openid-connect/token"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


class FakeKeycloak(FakeIssuer):
    """A realm with the clients `web`, where people sign in, `invoice-bot` and `billing`; default client scopes as in a new realm."""

    def __init__(self, client_key: SigningKey) -> None:
        self.client_key = client_key
        self.default_scopes: tuple[str, ...] = ("email", "profile")
        self.takes_exchanges = True
        super().__init__()

    @property
    def realm(self) -> str:
        return f"{self.url}{PATH}"

    def answer(self, request: Received) -> FakeResponse:
        if request.path == f"{PATH}/.well-known/openid-configuration":
            return _json(200, self.metadata())
        if request.path == f"{PATH}/protocol/openid-connect/certs":
            return _json(200, {"keys": [public_signing_jwk(self.key)]})
        if request.path == f"{PATH}/protocol/openid-connect/revoke":
            return FakeResponse(200, {}, b"")
        if request.path == TOKEN:
            return self._exchange(request, dict(parse_qsl(request.body.decode())))
        return FakeResponse(404, {}, b'{"error":"Unable to find matching target resource method"}')

    def metadata(self) -> dict[str, Any]:
        oidc = f"{self.realm}/protocol/openid-connect"
        return {
            "issuer": self.realm,
            "authorization_endpoint": f"{oidc}/auth",
            "token_endpoint": f"{oidc}/token",
            "introspection_endpoint": f"{oidc}/token/introspect",
            "revocation_endpoint": f"{oidc}/revoke",
            "jwks_uri": f"{oidc}/certs",
            "grant_types_supported": ["authorization_code", "client_credentials", EXCHANGE],
            "token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_basic"],
            "code_challenge_methods_supported": ["plain", "S256"],
        }

    def access_token(self, **claims: Any) -> str:
        """A person's access token after a sign-in at `web`; the default client scope `roles` adds `account` to `aud`."""
        now = int(time.time())
        return self._signed(
            {
                "exp": now + 300,
                "iat": now,
                "auth_time": now - 20,
                "jti": "onrtac:5b9c0f1e",
                "iss": self.realm,
                "aud": ["invoice-bot", "account"],
                "sub": "4f2b6f2e-alice",
                "typ": "Bearer",
                "azp": "web",
                "sid": "a-session",
                "session_state": "a-session",
                "acr": "1",
                "allowed-origins": ["https://web.example.com"],
                "realm_access": {"roles": ["offline_access", "uma_authorization"]},
                "resource_access": {"account": {"roles": ["manage-account", "view-profile"]}},
                "scope": "openid email profile",
                "email_verified": False,
                "preferred_username": "alice",
            }
            | claims
        )

    def _signed(self, claims: dict[str, Any]) -> str:
        header = jose.encode_header(self.key.alg, typ="JWT", kid=self.key.thumbprint)
        return self.key.compact(header, json.dumps(claims).encode())

    def _exchange(self, request: Received, form: dict[str, str]) -> FakeResponse:
        if not self._is_client(form):
            return _json(401, {"error": "invalid_client"})
        if not self.takes_exchanges or {"requested_issuer", "subject_issuer"} & form.keys():
            return _json(400, {"error": "invalid_request"})
        if (form["grant_type"], form.get("subject_token_type")) != (EXCHANGE, ACCESS_TOKEN):
            return _json(
                400, {"error": "invalid_request", "error_description": "access tokens only"}
            )
        subject = jose.loads_object(jose.unverified(form["subject_token"]).payload)
        audience = subject["aud"] if isinstance(subject["aud"], list) else [subject["aud"]]
        if subject["azp"] != "invoice-bot" and "invoice-bot" not in audience:
            return _json(403, {"error": "access_denied"})
        return _json(200, self._exchanged(request, form, subject))

    def _is_client(self, form: dict[str, str]) -> bool:
        jwk = public_signing_jwk(self.client_key)
        parsed = jose.unverified(form["client_assertion"])
        jose.verify(parsed, [jwk], algorithms={"ES256"}, typ=str(parsed.header.get("typ")))
        claims = jose.loads_object(parsed.payload)
        return claims["sub"] == "invoice-bot" and claims["aud"] == self.realm

    def _exchanged(
        self, request: Received, form: dict[str, str], subject: dict[str, Any]
    ) -> dict[str, Any]:
        scope = " ".join([*form.get("scope", "").split(), *self.default_scopes])
        proof = request.headers.get("dpop")
        jkt = (
            None
            if proof is None
            else verify_proof(proof, method="POST", url=f"{self.url}{TOKEN}", now=time.time()).jkt
        )
        kept = ("sub", "auth_time", "sid", "acr", "realm_access", "preferred_username", "typ")
        now = int(time.time())
        claims = {name: subject[name] for name in kept} | {
            "exp": now + 300,
            "iat": now,
            "iss": self.realm,
            "jti": "trrtte:7c1d",
            "aud": form["audience"],
            "azp": "invoice-bot",
            "scope": scope,
            **({} if jkt is None else {"cnf": {"jkt": jkt}}),
        }
        return {
            "access_token": self._signed(claims),
            "expires_in": 300,
            "refresh_expires_in": 0,
            "token_type": "Bearer" if jkt is None else "DPoP",
            "not-before-policy": 0,
            "session_state": "a-session",
            "scope": scope,
            "issued_token_type": ACCESS_TOKEN,
        }


def _json(status: int, document: dict[str, Any]) -> FakeResponse:
    return FakeResponse(status, {}, json.dumps(document).encode())


@pytest.fixture
def client_key(tmp_path: Path) -> SigningKey:
    key = SigningKey.generate()
    (tmp_path / "client.pem").touch(mode=0o600)
    (tmp_path / "client.pem").write_bytes(key.to_pem())
    return key


@pytest.fixture
def keycloak(client_key: SigningKey) -> Iterator[FakeKeycloak]:
    with FakeKeycloak(client_key) as realm:
        yield realm


Started = Callable[..., AgentIdentity]


@pytest.fixture
def started(
    keycloak: FakeKeycloak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Started]:
    """Makes an identity of the file that `init` writes, with texts of it replaced."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    made: list[AgentIdentity] = []

    def start(**changes: str) -> AgentIdentity:
        file = tmp_path / "agent-identity.toml"
        write_configuration(
            "keycloak",
            file,
            name="invoice-bot",
            issuer=keycloak.realm,
            force=True,
            state_dir=None,
            as_json=True,
        )
        text = file.read_text().replace('client_id = "my-agent"', 'client_id = "invoice-bot"')
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        file.write_text(text)
        made.append(AgentIdentity.from_config(file))
        return made[-1]

    yield start
    for identity in made:
        identity.close()


def exchanged(identity: AgentIdentity, token: str) -> Any:
    with identity.on_behalf_of(token, purpose="close the books") as session:
        return session.credential(BILLING, ["invoices:read"])


def test_the_file_of_init_opens_a_session_with_an_access_token_and_exchanges_it(
    started: Started, keycloak: FakeKeycloak
) -> None:
    with started().on_behalf_of(keycloak.access_token(), purpose="close the books") as session:
        assert session.principal.sub == "4f2b6f2e-alice"
        credential = session.credential(BILLING, ["invoices:read"])
        assert (credential.token_type, set(credential.scopes)) == ("Bearer", {"invoices:read"})
        claims = jose.loads_object(jose.unverified(credential.reveal()).payload)
    assert (claims["aud"], claims["azp"]) == ("billing", "invoice-bot")
    (form,) = [
        dict(parse_qsl(request.body.decode()))
        for request in keycloak.received
        if request.path == TOKEN
    ]
    assert form["subject_token_type"] == ACCESS_TOKEN
    assert form["audience"] == "billing"


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "invoice-bot"},
        {"aud": ["account", "invoice-bot", "broker"]},
        {"azp": "invoice-bot"},
        {"acr": "0", "auth_time": 1_700_000_000},
        {"resource_access": {}, "realm_access": {"roles": []}, "allowed-origins": ["/*"]},
    ],
)
def test_access_tokens_of_every_client_are_taken(
    started: Started, keycloak: FakeKeycloak, claims: dict[str, Any]
) -> None:
    credential = exchanged(started(), keycloak.access_token(**claims))
    assert credential.token_type == "Bearer"


@pytest.mark.parametrize("audience", ["account", ["account", "billing"]])
def test_a_token_for_others_opens_no_session(
    started: Started, keycloak: FakeKeycloak, audience: Any
) -> None:
    identity = started()
    with pytest.raises(InvalidSubjectError) as caught:
        exchanged(identity, keycloak.access_token(aud=audience))
    assert caught.value.code == "audience_mismatch"


def test_without_the_keys_both_differences_are_refused_by_name(
    started: Started, keycloak: FakeKeycloak
) -> None:
    strict = {"allow_several_audiences": "# allow_several_audiences"}
    with pytest.raises(InvalidSubjectError) as several:
        exchanged(started(**strict), keycloak.access_token())
    assert "allow_several_audiences" in str(several.value.remedy)
    with pytest.raises(CredentialRejectedError) as extra:
        exchanged(
            started(**strict, allow_extra_scopes="# allow_extra_scopes"),
            keycloak.access_token(aud="invoice-bot"),
        )
    assert extra.value.code == "scope_widened"
    assert "allow_extra_scopes" in str(extra.value.remedy)


def test_a_client_without_default_scopes_needs_no_key(
    started: Started, keycloak: FakeKeycloak
) -> None:
    keycloak.default_scopes = ()
    identity = started(allow_="# allow_")
    credential = exchanged(identity, keycloak.access_token(aud="invoice-bot"))
    assert credential.token_type == "Bearer"


def test_with_a_proof_the_exchanged_token_is_bound(
    started: Started, keycloak: FakeKeycloak
) -> None:
    identity = started(**{'binding = "none"': 'binding = "dpop"'})
    credential = exchanged(identity, keycloak.access_token())
    assert credential.token_type == "DPoP"


def test_where_standard_token_exchange_is_off_the_refusal_is_keycloaks(
    started: Started, keycloak: FakeKeycloak
) -> None:
    keycloak.takes_exchanges = False
    identity = started()
    with pytest.raises(CredentialRejectedError) as caught:
        exchanged(identity, keycloak.access_token())
    assert caught.value.code == "invalid_request"
