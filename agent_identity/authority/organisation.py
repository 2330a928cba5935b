# SPDX-License-Identifier: Apache-2.0
"""The authority as the anchor of an organisation, in front of its identity providers.

Its clients come from its configuration. They get hop 0 and nothing else, and present a principal's token from one of the
identity providers. They can't name a principal themselves, as registered clients can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from agent_identity.authority.clients import ClientRecord, Configured, Terms
from agent_identity.credentials.oauth.token_types import TOKEN_EXCHANGE
from agent_identity.errors import ConfigurationError
from agent_identity.flow import run

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.authority.authentication import ClientTable, Drive
    from agent_identity.authority.client_proofs import ClientProof
    from agent_identity.authority.subjects import IdentityProvider
    from agent_identity.flow import Ask, Flow

T = TypeVar("T")

_FOREVER: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Organisation:
    """The configuration of an organisation's anchor.

    `providers` are the identity providers by issuer URL, `audiences` the audiences that their tokens may have. `drive` fetches
    their keys, over HTTP or from files. `registers` also lets agents register themselves, for principals of the authority's own
    directory only. `requests_per_minute` limits each client, None is no limit.
    """

    clients: Mapping[str, ClientRecord]
    providers: Mapping[str, IdentityProvider]
    audiences: Collection[str]
    drive: Drive
    registers: bool = False
    requests_per_minute: int | None = 600


class Clients:
    """All clients: those of the configuration, and the registered ones where registration is allowed."""

    def __init__(self, organisation: Organisation, store: ClientTable) -> None:
        self._configured = organisation.clients
        self._store = store if organisation.registers else None

    def client(self, client_id: str, now: float) -> ClientRecord | None:
        configured = self._configured.get(client_id)
        if configured is not None or self._store is None:
            return configured
        return self._store.client(client_id, now)


def configured_client(
    client_id: str,
    agent: str,
    proof: ClientProof,
    *,
    resources: Collection[str],
    scopes: Collection[str] = (),
    max_depth: int = 3,
    subject_clients: Collection[str] = (),
    subject_issuers: Collection[str] = (),
) -> ClientRecord:
    """Make a configured client: it gets hop 0 for these resources and scopes, and nothing else."""
    return ClientRecord(
        client_id=client_id,
        agent=agent,
        keys=(),
        issued_at=0,
        expires_at=_FOREVER,
        grant_types=frozenset({TOKEN_EXCHANGE}),
        terms=Terms(
            directory=False,
            resources=frozenset(resources),
            scopes=frozenset(scopes),
            max_depth=max_depth,
        ),
        configured=Configured(proof, frozenset(subject_clients), frozenset(subject_issuers)),
    )


def run_offline(flow: Flow[T], /) -> T:
    """Run a flow of an authority that has all keys and needs no network."""
    return run(flow, _refuse_ask)


def _refuse_ask(ask: Ask) -> NoReturn:
    raise ConfigurationError(
        "nobody_to_ask",
        f"this authority runs without network, and can't answer {type(ask).__name__}",
        remedy="pass an Organisation whose drive does the I/O",
    )


STANDALONE: Final = Organisation(
    clients={},
    providers={},
    audiences=(),
    drive=run_offline,
    registers=True,
    requests_per_minute=None,
)
"""An authority in the agent's process: it has registered clients and its own directory, and no identity providers."""
