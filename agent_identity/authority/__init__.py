# SPDX-License-Identifier: Apache-2.0
"""The embedded issuer: a small OAuth authorization server.

`server` routes each request. `authentication`, `dpop` and `subjects` check the client, its key and the principal.
`token_endpoint` reads a token request, `issuance` signs what it asks for, and `own_client` does the same without HTTP.
`keyring` and `store` hold the state, and `asgi` serves it.
As the anchor of an organisation it has an `organisation`: configured clients, which authenticate by `client_proofs` and bring
tokens of other identity providers.
"""

from agent_identity.authority.clients import ClientRecord, Terms
from agent_identity.authority.organisation import Organisation, configured_client
from agent_identity.authority.server import Authority
from agent_identity.authority.subjects import IdentityProvider

__all__ = [
    "Authority",
    "ClientRecord",
    "IdentityProvider",
    "Organisation",
    "Terms",
    "configured_client",
]
