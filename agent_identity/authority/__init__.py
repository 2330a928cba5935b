# SPDX-License-Identifier: Apache-2.0
"""The embedded issuer: an OAuth authorization server in small.

`server` answers one request and says which module does; `authentication`, `proofs` and `subjects` say who asks, with which
key and for whom; `exchange` and `token_endpoint` mint; `keyring`, `store` and `state` keep; `asgi` serves.
In front of an organisation's identity providers it has an `organisation`: clients of a configuration, who prove themselves by
`client_proofs` and bring other issuers' `principals`.
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
