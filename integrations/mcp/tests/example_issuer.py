# SPDX-License-Identifier: Apache-2.0
"""An authorization server made of the handlers of the mcp package, with a provider like the one of its example: all in memory."""

from __future__ import annotations

import secrets
import time
from typing import Any

from mcp.server.auth.provider import (
    AccessToken,
    AuthorizationCode,
    RefreshToken,
    construct_redirect_uri,
)
from mcp.server.auth.settings import AuthSettings, ClientRegistrationOptions, RevocationOptions
from mcp.shared.auth import OAuthToken

SCOPE = "invoices:read"


class ExampleProvider:
    """Everybody who opens the page of the sign-in is signed in, unless `refuses`."""

    def __init__(self) -> None:
        self.clients: dict[str, Any] = {}
        self.requests: list[Any] = []
        self.codes: dict[str, AuthorizationCode] = {}
        self.tokens: dict[str, AccessToken] = {}
        self.refresh_tokens: dict[str, RefreshToken] = {}
        self.resources: dict[str, str | None] = {}
        self.revoked: list[str] = []
        self.refuses = False

    async def get_client(self, client_id: str) -> Any:
        return self.clients.get(client_id)

    async def register_client(self, client_info: Any) -> None:
        self.clients[client_info.client_id] = client_info

    async def authorize(self, client: Any, params: Any) -> str:
        self.requests.append(params)
        place = str(params.redirect_uri)
        if self.refuses:
            return construct_redirect_uri(place, error="access_denied", state=params.state)
        code = AuthorizationCode(
            code=secrets.token_hex(16),
            client_id=client.client_id,
            redirect_uri=params.redirect_uri,
            redirect_uri_provided_explicitly=params.redirect_uri_provided_explicitly,
            expires_at=time.time() + 60,
            scopes=params.scopes or [SCOPE],
            code_challenge=params.code_challenge,
            resource=params.resource,
        )
        self.codes[code.code] = code
        return construct_redirect_uri(place, code=code.code, state=params.state)

    async def load_authorization_code(self, client: Any, authorization_code: str) -> Any:
        return self.codes.get(authorization_code)

    async def exchange_authorization_code(self, client: Any, authorization_code: Any) -> Any:
        self.codes.pop(authorization_code.code)
        return self.issue(client, authorization_code.scopes, authorization_code.resource)

    def issue(self, client: Any, scopes: list[str], resource: str | None) -> OAuthToken:
        token, refresh = f"access-{secrets.token_hex(16)}", f"refresh-{secrets.token_hex(16)}"
        common = {"client_id": client.client_id, "scopes": scopes}
        self.tokens[token] = AccessToken(
            token=token, expires_at=int(time.time()) + 600, resource=resource, **common
        )
        self.refresh_tokens[refresh] = RefreshToken(token=refresh, **common)
        self.resources[refresh] = resource
        return OAuthToken(
            access_token=token,
            token_type="Bearer",
            expires_in=600,
            scope=" ".join(scopes),
            refresh_token=refresh,
        )

    async def load_access_token(self, token: str) -> AccessToken | None:
        return self.tokens.get(token)

    async def load_refresh_token(self, client: Any, refresh_token: str) -> Any:
        return self.refresh_tokens.get(refresh_token)

    async def exchange_refresh_token(
        self, client: Any, refresh_token: Any, scopes: list[str]
    ) -> Any:
        self.refresh_tokens.pop(refresh_token.token)
        return self.issue(client, scopes, self.resources[refresh_token.token])

    async def revoke_token(self, token: Any) -> None:
        self.revoked.append(token.token)
        self.tokens.pop(token.token, None)


def settings(origin: str) -> AuthSettings:
    checks = {"validate_token_resource": True}  # newer releases warn without it
    known = {name: checks[name] for name in checks if name in AuthSettings.model_fields}
    return AuthSettings(
        **known,
        issuer_url=origin,
        resource_server_url=f"{origin}/mcp",
        client_registration_options=ClientRegistrationOptions(
            enabled=True, valid_scopes=[SCOPE, "invoices:pay"], default_scopes=[SCOPE]
        ),
        revocation_options=RevocationOptions(enabled=True),
        required_scopes=[SCOPE],
    )
