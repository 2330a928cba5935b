# SPDX-License-Identifier: Apache-2.0
"""The authorization server of as.mjs: whom it knows, how it is started, and what its operator and services see."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import jwt
from cryptography.hazmat.primitives import serialization
from joserfc.jwk import ECKey

from . import servers
from .certificates import Keys

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:"
AGENT: Final = "https://agent.example/"
"""What principals' tokens are made for."""

_HERE: Final = Path(__file__).parent


class AuthorizationServer:
    """One running server, as its operator and the services behind it see it."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self.issuer: str = said["issuer"]
        self.mtls: str | None = said["mtls"]
        self.http = httpx.Client(base_url=self.issuer, trust_env=False)
        place = "/.well-known/oauth-authorization-server"
        self.metadata: dict[str, Any] = self.http.get(place).raise_for_status().json()

    def claims(self, token: str, audience: str) -> dict[str, Any]:
        """What a service of this audience reads in a token, once it has checked it by the server's keys."""
        found = self.http.get(self.metadata["jwks_uri"]).raise_for_status().json()
        kid = jwt.get_unverified_header(token)["kid"]
        key = jwt.PyJWKSet.from_dict(found)[kid].key
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=["ES256"], audience=audience, issuer=self.issuer
        )
        return claims

    def introspected(self, token: str) -> dict[str, Any]:
        """What it says about a token."""
        return self.post("introspection_endpoint", {"token": token}, ("inspector", "look")).json()

    def post(
        self, endpoint: str, form: Mapping[str, str], auth: tuple[str, str] | None = None
    ) -> httpx.Response:
        return self.http.post(self.metadata[endpoint], data=dict(form), auth=auth)

    def seen(self, path: str = "/token") -> list[dict[str, Any]]:
        """What was posted there, the newest last: `form`, `dpop`, `status`."""
        entries = self.http.get("/_test/seen").raise_for_status().json()
        return [entry for entry in entries if entry["path"] == path]

    def answer_device(self, user_code: str, answer: str = "approve") -> None:
        """The person enters their code, and says yes or no."""
        query = {"user_code": user_code, "do": answer}
        self.http.get("/_test/device", params=query).raise_for_status()

    def sign_in(
        self,
        *,
        scope: str = "openid tool:read tool:write",
        resource: str = AGENT,
        login_hint: str = "alice",
    ) -> dict[str, Any]:
        """What the agent's front end holds when a person has signed in there: tokens for the agent."""
        verifier, redirect = "v" * 43, "http://127.0.0.1:9/callback"
        digest = hashlib.sha256(verifier.encode()).digest()
        form = {
            "client_id": "front-end",
            "response_type": "code",
            "redirect_uri": redirect,
            "scope": scope,
            "resource": resource,
            "login_hint": login_hint,
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        url = str(httpx.URL(self.metadata["authorization_endpoint"], params=form))
        code = httpx.URL(follow(url, until=redirect)).params["code"]
        form = {
            "grant_type": "authorization_code",
            "client_id": "front-end",
            "code": code,
            "redirect_uri": redirect,
            "code_verifier": verifier,
            "resource": resource,
        }
        answer = self.post("token_endpoint", form)
        assert answer.status_code == httpx.codes.OK, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens


def follow(url: str, *, until: str, and_path: str = "") -> str:
    """Where a browser is sent in the end: the first address that begins so, at a path that begins so."""
    with httpx.Client(trust_env=False) as browser:
        for _ in range(10):
            answer = browser.get(url)
            assert answer.is_redirect, answer.text
            url = str(httpx.URL(url).join(answer.headers["location"]))
            if url.startswith(until) and httpx.URL(url).path.startswith(and_path):
                return url
    raise AssertionError(f"the browser was never sent to {until}")


def proof_of(keys: Keys, client_id: str, issuer: str) -> dict[str, str]:
    """What a thief with the client's key would prove itself by (RFC 7523 §2.2)."""
    now = int(time.time())
    claims = {"iss": client_id, "sub": client_id, "aud": issuer, "iat": now, "exp": now + 60}
    key = keys.assertion_file.read_text()
    header = {"kid": keys.assertion.thumbprint()}
    return {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": jwt.encode(claims | {"jti": uuid4().hex}, key, "ES256", headers=header),
    }


def _clients(keys: Keys) -> list[dict[str, Any]]:
    """Everybody whom the authorization server knows."""
    machine = {
        "grant_types": [
            "client_credentials",
            f"{GRANT_TYPE}token-exchange",
            f"{GRANT_TYPE}jwt-bearer",
        ],
        "redirect_uris": [],
        "response_types": [],
        "authorization_details_types": ["urn:example:calls"],
    }
    person = {"redirect_uris": [], "response_types": [], "application_type": "native"}
    browser = {
        "redirect_uris": ["http://127.0.0.1/callback"],
        "response_types": ["code"],
        "application_type": "native",
        "id_token_signed_response_alg": "ES256",
        "authorization_details_types": ["urn:example:calls"],
        "grant_types": ["authorization_code", "refresh_token"],
    }
    public = {"token_endpoint_auth_method": "none"}
    bound = {"tls_client_certificate_bound_access_tokens": True}
    der = keys.own.leaf.public_bytes(serialization.Encoding.DER)
    own = ECKey.import_key(keys.own.key.read_bytes()).as_dict(private=False)
    own |= {"kid": "own", "x5c": [base64.b64encode(der).decode()]}
    assertion = keys.assertion.as_dict(private=False)
    assertion |= {"kid": keys.assertion.thumbprint(), "alg": "ES256", "use": "sig"}
    return [
        {"client_id": "basic", "client_secret": "s3cret %&+:", **machine},
        {
            "client_id": "post",
            "client_secret": "s3cret %&+:",
            "token_endpoint_auth_method": "client_secret_post",
            **machine,
        },
        {
            "client_id": "key",
            "token_endpoint_auth_method": "private_key_jwt",
            "token_endpoint_auth_signing_alg": "ES256",
            "jwks": {"keys": [assertion]},
            **machine,
        },
        {
            "client_id": "self-signed",
            "token_endpoint_auth_method": "self_signed_tls_client_auth",
            "jwks": {"keys": [own]},
            **bound,
            **machine,
        },
        {
            "client_id": "of-a-ca",
            "token_endpoint_auth_method": "tls_client_auth",
            "tls_client_auth_san_uri": "spiffe://example.org/agent",
            **bound,
            **machine,
        },
        {
            "client_id": "svid",
            "client_secret": "stands-in",
            "token_endpoint_auth_method": "client_secret_post",
            **machine,
        },
        {"client_id": "inspector", "client_secret": "look", **machine},
        {
            "client_id": "limited",
            "client_secret": "s3cret %&+:",
            "scope": "tool:read",
            **machine,
        },
        {
            "client_id": "inspector-only",
            "client_secret": "s3cret %&+:",
            **machine,
            "grant_types": [f"{GRANT_TYPE}jwt-bearer"],
        },
        {
            "client_id": "device",
            "grant_types": [f"{GRANT_TYPE}device_code", "refresh_token"],
            **public,
            **person,
        },
        {
            "client_id": "ciba",
            "client_secret": "s3cret",
            "backchannel_token_delivery_mode": "poll",
            "grant_types": ["urn:openid:params:grant-type:ciba"],
            **person,
        },
        {
            "client_id": "invoice-bot",
            "client_secret": "s3cret",
            "backchannel_token_delivery_mode": "poll",
            **machine,
            **browser,
            "grant_types": [
                *browser["grant_types"],
                *machine["grant_types"],
                f"{GRANT_TYPE}device_code",
                "urn:openid:params:grant-type:ciba",
            ],
        },
        {
            "client_id": "app",
            "require_pushed_authorization_requests": True,
            **public,
            **browser,
        },
        {"client_id": "front-end", **public, **browser},
    ]


@contextmanager
def running(folder: Path, keys: Keys, **variables: str) -> Iterator[AuthorizationServer]:
    """One server while the block runs; `variables` are those of as.mjs."""
    (folder / "clients.json").write_text(json.dumps(_clients(keys)))
    said: dict[str, Any] = {}
    env = {
        "CLIENTS": str(folder / "clients.json"),
        "NODE_MODULES": str(servers.node_modules()),
        **variables,
    }
    command = [servers.node(), _HERE / "as.mjs"]
    with servers.process(command, ready=servers.says(said), log=folder / "log", env=env):
        server = AuthorizationServer(said)
        with closing(server.http):
            yield server


def with_tls(keys: Keys, authority: Path) -> dict[str, str]:
    """The variables of a server that has aliases for clients with a certificate of this authority, or a self-signed one."""
    return {
        "TLS_CERT": str(keys.server.certificate),
        "TLS_KEY": str(keys.server.key),
        "TLS_CA": str(authority),
    }
