# SPDX-License-Identifier: Apache-2.0
"""The embedded issuer: an OAuth authorization server in small.

`server` answers one request and says which module does; `authentication`, `proofs` and `subjects` say who asks, with which
key and for whom; `exchange` and `token_endpoint` mint; `keyring`, `store` and `state` keep; `asgi` serves.
"""

from agent_identity.authority.clients import ClientRecord, Terms
from agent_identity.authority.server import Authority

__all__ = ["Authority", "ClientRecord", "Terms"]
