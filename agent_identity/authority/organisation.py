# SPDX-License-Identifier: Apache-2.0
"""An authority that is the anchor of an organisation, in front of its identity providers: whom it knows beyond its own store.

Its clients are those of its configuration. They are asked for hop 0 alone, and bring principals of the identity providers;
nobody speaks for a principal in his own words, as clients of an authority in the agent's process do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from agent_identity.authority.clients import TOKEN_EXCHANGE, ClientRecord, Configured, Terms
from agent_identity.errors import ConfigurationError
from agent_identity.flow import run

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.authority.authentication import Drive, Table
    from agent_identity.authority.client_proofs import ClientProof
    from agent_identity.authority.subjects import IdentityProvider
    from agent_identity.flow import Ask, Flow


T = TypeVar("T")

_FOREVER: Final = 2**53 - 1


@dataclass(frozen=True, slots=True)
class Organisation:
    """What a configuration says of an authority beside its issuer.

    `providers` is by issuer URL, `audiences` what their principals' tokens may be for. `drive` answers what is to be asked of
    the world: keys, over HTTP or from files. `registers` lets agents register themselves too, for principals of the
    authority's own directory alone. `requests_per_minute` is what one client may ask.
    """

    clients: Mapping[str, ClientRecord]
    providers: Mapping[str, IdentityProvider]
    audiences: Collection[str]
    drive: Drive
    registers: bool = False
    requests_per_minute: int = 600


class Clients:
    """Who is a client: those of the configuration, and those that registered where that is allowed."""

    def __init__(self, organisation: Organisation | None, store: Table) -> None:
        self._configured: Mapping[str, ClientRecord] = organisation.clients if organisation else {}
        self._store = store if organisation is None or organisation.registers else None

    def client(self, client_id: str, now: float) -> ClientRecord | None:
        found = self._configured.get(client_id)
        if found is not None or self._store is None:
            return found
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
    """A client as a configuration has it: it gets hop 0, for these resources and scopes, and nothing else."""
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


def alone(flow: Flow[T], /) -> T:
    """Drive a flow of an authority that asks nobody: it has all the keys that it needs."""
    return run(flow, _nobody)


def _nobody(ask: Ask) -> NoReturn:
    raise ConfigurationError(
        "nobody_to_ask",
        f"this authority has nobody to ask for {type(ask).__name__}",
        remedy="give it an Organisation whose drive reaches the world",
    )
