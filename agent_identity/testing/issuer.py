# SPDX-License-Identifier: Apache-2.0
"""A light authorization server on loopback, for tests and examples: real HTTP, real signatures, real proofs of possession.

It accepts every client and every scope, so it protects nothing. Its tokens follow the standards, are bound to the key of a DPoP
proof if there is one, and are kept for the test to inspect. `scripts` make it misbehave.
"""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlencode, urlsplit

from agent_identity import jose
from agent_identity.errors import AgentIdentityError
from agent_identity.keys.signing import SigningKey, public_signing_jwk
from agent_identity.testing.web import FakeResponse, FakeWeb, Received
from agent_identity.values import b64url, new_id
from agent_identity.verify.dpop import verify_proof

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_identity.values import JSON

_GRANTS: Final = "urn:ietf:params:oauth:grant-type:"
_TYPES: Final = "urn:ietf:params:oauth:token-type:"
_ID_JAG: Final = f"{_TYPES}id-jag"
_TXN: Final = f"{_TYPES}txn_token"


class FakeIssuer(FakeWeb):
    """One issuer. `trusts` are the issuers whose assertions it accepts, `lifetime` is that of its tokens in seconds.

    `issued` counts access tokens, `tokens` holds their claims, `revoked` the revoked tokens.
    """

    def __init__(
        self,
        *,
        trusts: Sequence[FakeIssuer] = (),
        lifetime: int = 300,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key: SigningKey = SigningKey.generate()
        self.lifetime = lifetime
        self.tokens: list[dict[str, JSON]] = []
        self.revoked: list[str] = []
        self._trusts = (self, *trusts)
        self._clock = clock
        self._lock = threading.Lock()
        self._codes: dict[str, dict[str, str]] = {}
        self._pushed: dict[str, dict[str, str]] = {}
        self._refresh: dict[str, str] = {}
        self.sub: str = "alice"
        super().__init__()

    @property
    def issued(self) -> int:
        """How many access tokens were issued."""
        return len(self.tokens)

    def token(
        self,
        sub: str,
        /,
        *,
        audience: str,
        typ: str = "at+jwt",
        claims: Mapping[str, JSON] | None = None,
    ) -> str:
        """Issue a token about a person, as after a sign-in. `claims` adds or replaces claims."""
        now = int(self._clock())
        body: dict[str, JSON] = {
            "iss": self.url,
            "sub": sub,
            "aud": audience,
            "iat": now,
            "exp": now + self.lifetime,
            "jti": new_id(""),
            **(claims or {}),
        }
        header = jose.encode_header(self.key.alg, typ=typ, kid=self.key.thumbprint)
        return self.key.compact(header, json.dumps(body).encode())

    def metadata(self) -> dict[str, JSON]:
        """The issuer's metadata."""
        return {
            "issuer": self.url,
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "revocation_endpoint": f"{self.url}/revoke",
            "authorization_endpoint": f"{self.url}/authorize",
            "pushed_authorization_request_endpoint": f"{self.url}/par",
            "device_authorization_endpoint": f"{self.url}/device",
            "code_challenge_methods_supported": ["S256"],
            "authorization_response_iss_parameter_supported": True,
        }

    def answer(self, request: Received) -> FakeResponse:
        parts = urlsplit(request.path)
        if parts.path.startswith("/.well-known/"):
            return _respond(200, self.metadata())
        if parts.path == "/jwks":
            return _respond(200, {"keys": [public_signing_jwk(self.key)]})
        if parts.path == "/token":
            return self._token(request, _members(request.body.decode()))
        form = {**_members(parts.query), **_members(request.body.decode())}
        places = {
            "/authorize": self._authorize,
            "/par": self._push_request,
            "/device": self._start_device,
            "/revoke": self._revoke,
        }
        if parts.path in places:
            return places[parts.path](form)
        return _respond(404, {"error": "not_found"})

    def _revoke(self, form: dict[str, str]) -> FakeResponse:
        self.revoked.append(form["token"])
        return _respond(200, {})

    def _token(self, request: Received, form: dict[str, str]) -> FakeResponse:
        try:
            jkt = self._check_proof(request)
            sub = self._subject_of(form)
        except (AgentIdentityError, KeyError):
            return _respond(400, {"error": "invalid_grant"})
        kind = form.get("requested_token_type")
        if kind in (_ID_JAG, f"{_TYPES}jwt", _TXN):
            return self._issue_for_domain(kind, sub, form, jkt)
        return self._issue_access_token(sub, form, jkt)

    def _check_proof(self, request: Received) -> str | None:
        proof = request.headers.get("dpop")
        if proof is None:
            return None
        return verify_proof(proof, method="POST", url=f"{self.url}/token", now=self._clock()).jkt

    def _subject_of(self, form: dict[str, str]) -> str:
        grant = form["grant_type"]
        if grant == "client_credentials":
            return form.get("client_id", "client")
        if grant == f"{_GRANTS}token-exchange":
            return self._read(form["subject_token"])
        if grant == f"{_GRANTS}jwt-bearer":
            return self._read(form["assertion"])
        with self._lock:
            if grant == "authorization_code":
                return self._codes.pop(form["code"])["sub"]
            if grant == f"{_GRANTS}device_code":
                return self._codes.pop(form["device_code"])["sub"]
            return self._refresh.pop(form["refresh_token"])

    def _read(self, token: str) -> str:
        """The `sub` of an assertion: from a trusted issuer, or signed by the client itself (RFC 7523)."""
        parsed = jose.unverified(token)
        claims = jose.loads_object(parsed.payload)
        for issuer in self._trusts:
            if claims.get("iss") == issuer.url:
                jose.verify(
                    parsed,
                    [public_signing_jwk(issuer.key)],
                    algorithms={"ES256"},
                    typ=str(parsed.header.get("typ")),
                )
        return str(claims["sub"])

    def _issue_access_token(self, sub: str, form: dict[str, str], jkt: str | None) -> FakeResponse:
        bound: dict[str, JSON] = {} if jkt is None else {"cnf": {"jkt": jkt}}
        audience = form.get("audience") or form.get("resource") or self.url
        more: dict[str, JSON] = {"scope": form.get("scope", ""), **bound}
        more["client_id"] = form.get("client_id", "client")
        token = self.token(sub, audience=audience, claims=more)
        with self._lock:
            self.tokens.append({"sub": sub, "aud": audience, **more})
        document: dict[str, JSON] = {
            "access_token": token,
            "token_type": "Bearer" if jkt is None else "DPoP",
            "expires_in": self.lifetime,
        }
        if form["grant_type"] == f"{_GRANTS}token-exchange":
            document["issued_token_type"] = f"{_TYPES}access_token"
        if form["grant_type"] in ("authorization_code", "refresh_token", f"{_GRANTS}device_code"):
            document["refresh_token"] = self._issue_refresh_token(sub)
        return _respond(200, document)

    def _issue_refresh_token(self, sub: str) -> str:
        token = new_id("refresh_")
        with self._lock:
            self._refresh[token] = sub
        return token

    def _issue_for_domain(
        self, kind: str, sub: str, form: dict[str, str], jkt: str | None
    ) -> FakeResponse:
        """A grant for another domain, or a transaction token."""
        typ = {_ID_JAG: "oauth-id-jag+jwt", _TXN: "txntoken+jwt"}.get(kind, "JWT")
        more: dict[str, JSON] = {"scope": form.get("scope", "")}
        if kind == _ID_JAG:
            more |= {"client_id": form.get("client_id", "client"), "resource": form["resource"]}
            more |= {} if jkt is None else {"cnf": {"jkt": jkt}}
        if kind == _TXN:
            more["txn"] = new_id("")
        document: dict[str, JSON] = {
            "access_token": self.token(sub, audience=form["audience"], typ=typ, claims=more),
            "issued_token_type": kind,
            "token_type": "N_A",
            "expires_in": self.lifetime,
        }
        return _respond(200, document)

    def _push_request(self, form: dict[str, str]) -> FakeResponse:
        uri = f"urn:ietf:params:oauth:request_uri:{new_id('')}"
        self._pushed[uri] = form
        return _respond(201, {"request_uri": uri, "expires_in": 60})

    def _authorize(self, members: dict[str, str]) -> FakeResponse:
        """Sign in as `sub`, and consent."""
        request = self._pushed.pop(members.get("request_uri", ""), members)
        if "redirect_uri" not in request:  # a pushed request is good once (RFC 9126 §4)
            return _respond(400, {"error": "invalid_request_uri"})
        code = new_id("code_")
        with self._lock:
            self._codes[code] = {"sub": self.sub}
        back = {"code": code, "state": request["state"], "iss": self.url}
        return FakeResponse(302, {"Location": f"{request['redirect_uri']}?{urlencode(back)}"}, b"")

    def _start_device(self, form: dict[str, str]) -> FakeResponse:
        del form
        code = new_id("device_")
        with self._lock:
            self._codes[code] = {"sub": self.sub}
        document: dict[str, JSON] = {
            "device_code": code,
            "user_code": b64url(code.encode())[:8],
            "verification_uri": f"{self.url}/activate",
            "expires_in": 60,
            "interval": 1,
        }
        return _respond(200, document)


def _members(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text, keep_blank_values=True).items()}


def _respond(status: int, document: dict[str, Any]) -> FakeResponse:
    return FakeResponse(status, {"Cache-Control": "no-store"}, json.dumps(document).encode())
