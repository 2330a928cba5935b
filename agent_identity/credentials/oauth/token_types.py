# SPDX-License-Identifier: Apache-2.0
"""The names of token types and grant types on the wire (RFC 6749, 7523, 8628, 8693; drafts as of November 2026)."""

from __future__ import annotations

from typing import Final

_TYPE: Final = "urn:ietf:params:oauth:token-type:"
_GRANT: Final = "urn:ietf:params:oauth:grant-type:"

ACCESS_TOKEN: Final = f"{_TYPE}access_token"
ID_TOKEN: Final = f"{_TYPE}id_token"
REFRESH_TOKEN: Final = f"{_TYPE}refresh_token"
JWT: Final = f"{_TYPE}jwt"
SAML2: Final = f"{_TYPE}saml2"
ID_JAG: Final = f"{_TYPE}id-jag"
"""draft-ietf-oauth-identity-assertion-authz-grant-04."""
TXN_TOKEN: Final = f"{_TYPE}txn_token"
"""draft-ietf-oauth-transaction-tokens-10."""
AUTH0_FEDERATED: Final = "http://auth0.com/oauth/token-type/federated-connection-access-token"
"""A token of another provider, kept in Auth0's Token Vault."""


def named_type(name: str) -> str:
    """The token type of a short name of RFC 8693 §3, for instance `id_token`; any other type is a URI already."""
    return name if ":" in name else f"{_TYPE}{name}"


AUTHORIZATION_CODE: Final = "authorization_code"
CLIENT_CREDENTIALS: Final = "client_credentials"
REFRESH: Final = "refresh_token"
TOKEN_EXCHANGE: Final = f"{_GRANT}token-exchange"
JWT_BEARER: Final = f"{_GRANT}jwt-bearer"
DEVICE_CODE: Final = f"{_GRANT}device_code"
AUTH0_VAULT: Final = (
    "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"
)
CIBA: Final = "urn:openid:params:grant-type:ciba"
