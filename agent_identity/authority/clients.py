# SPDX-License-Identifier: Apache-2.0
"""The record of a client, and its terms: what a client may ask for is stored here, never read from its request."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import orjson

from agent_identity import jose
from agent_identity.credentials.oauth.token_types import CLIENT_CREDENTIALS, TOKEN_EXCHANGE
from agent_identity.delegation.claims import Claims
from agent_identity.errors import VerificationError

if TYPE_CHECKING:
    from agent_identity.authority.client_proofs import ClientProof
    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON

GRANT_TYPES: Final = (CLIENT_CREDENTIALS, TOKEN_EXCHANGE)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a client may ask for. `directory` True lets it sign assertions that name principals of the authority's directory.

    `resources` and `scopes` None mean any; `lease` is how many seconds a registration lasts.
    """

    directory: bool = True
    resources: frozenset[str] | None = None
    scopes: frozenset[str] | None = None
    max_depth: int = 8
    lease: int = 24 * 3600


@dataclass(frozen=True, slots=True)
class Configured:
    """The configuration of a client beside its terms: how it authenticates, and which principals' tokens it may present.

    `subject_clients` are the clients that a principal's token may have been issued to, `subject_issuers` the URLs of the
    issuers whose tokens are accepted; an empty set accepts none.
    """

    proof: ClientProof
    subject_clients: frozenset[str]
    subject_issuers: frozenset[str]


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One client: the URI of its agent, and its public keys. Times are Unix seconds.

    A `configured` client isn't stored: it is a client for as long as the configuration contains it. `registrar` is the run of
    the authority that registered it, and that has seen everything that the client has sent.
    """

    client_id: str
    agent: str
    keys: tuple[JWK, ...] = field(repr=False)
    issued_at: int
    expires_at: int
    name: str | None = None
    owner: str | None = None
    grant_types: frozenset[str] = frozenset(GRANT_TYPES)
    terms: Terms = Terms()
    configured: Configured | None = None
    registrar: str | None = None


def dump_client(client: ClientRecord) -> bytes:
    terms = client.terms
    record: dict[str, JSON] = {
        "client_id": client.client_id,
        "agent": client.agent,
        "keys": [json_key(key) for key in client.keys],
        "issued_at": client.issued_at,
        "expires_at": client.expires_at,
        "name": client.name,
        "owner": client.owner,
        "grant_types": [*sorted(client.grant_types)],
        "directory": terms.directory,
        "resources": None if terms.resources is None else [*sorted(terms.resources)],
        "scopes": None if terms.scopes is None else [*sorted(terms.scopes)],
        "max_depth": terms.max_depth,
        "lease": terms.lease,
        "registrar": client.registrar,
    }
    return orjson.dumps({name: value for name, value in record.items() if value is not None})


@lru_cache(1024)
def load_client(data: bytes) -> ClientRecord:
    """Read a stored record.

    Raises:
        VerificationError: the record is damaged.
    """
    record = jose.loads_object(data)
    claims = Claims(record, VerificationError)
    keys = record.get("keys")
    return ClientRecord(
        client_id=claims.text("client_id"),
        agent=claims.text("agent"),
        keys=tuple(key for key in keys if isinstance(key, dict)) if isinstance(keys, list) else (),
        issued_at=claims.integer("issued_at"),
        expires_at=claims.integer("expires_at"),
        name=claims.optional_text("name"),
        owner=claims.optional_text("owner"),
        grant_types=frozenset(claims.texts("grant_types")),
        terms=Terms(
            directory=record.get("directory") is True,
            resources=_optional_set(claims, "resources"),
            scopes=_optional_set(claims, "scopes"),
            max_depth=claims.integer("max_depth"),
            lease=claims.integer("lease"),
        ),
        registrar=claims.optional_text("registrar"),
    )


def _optional_set(claims: Claims, name: str) -> frozenset[str] | None:
    return frozenset(claims.texts(name)) if claims.has(name) else None


def json_key(key: JWK) -> dict[str, JSON]:
    """Copy a public key as JSON; all its members are text."""
    return {name: value for name, value in key.items() if isinstance(value, str)}
