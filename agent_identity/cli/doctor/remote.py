# SPDX-License-Identifier: Apache-2.0
"""What `doctor` looks at elsewhere: issuers with their keys, their TLS and their clocks, the vault, the SPIFFE Workload API.

Nothing is asked for that would issue a credential: metadata, public keys, and whether anybody answers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity.cli.doctor.local import FAILED, OK, WARNING, Finding, failed_by, lasting
from agent_identity.config import workload_api
from agent_identity.config.model import OAUTH_SOURCES
from agent_identity.credentials.oauth.metadata import discover, read_keys
from agent_identity.credentials.oauth.protected_resource import discover_resource
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import HttpRequest, HttpResponse, run
from agent_identity.http.seams import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.cli.doctor.local import Looked
    from agent_identity.config import Configuration
    from agent_identity.config.model import IssuerTable, ResourceTable, VaultTable
    from agent_identity.credentials.oauth.protected_resource import ProtectedResource
    from agent_identity.flow import Answer, Ask

__all__ = [
    "asked_issuers",
    "check_issuer",
    "check_resource",
    "check_spiffe",
    "check_vault",
    "resources_with_issuers",
    "wants_spiffe",
]

SKEW: Final = 30.0
"""Seconds that clocks may differ before it is worth a warning."""

_REPLIES: Final = frozenset({200, 429, 472, 473})
_NOT_STARTED: Final = 501
_SEALED: Final = 503


# -- issuers ----------------------------------------------------------------------------------------------------------


def asked_issuers(configuration: Configuration) -> set[str]:
    """The names of the issuers that tokens or grants are asked of; of the others only the keys are read."""
    names = {configuration.agent.grants}
    for table in configuration.resources.values():
        names |= {table.issuer, table.via}
        names |= {table.transaction_token.issuer} if table.transaction_token else set()
    return {name for name in names if name is not None}


def check_issuer(
    label: str, table: IssuerTable, looked: Looked, *, is_asked: bool
) -> list[Finding]:
    """Whether an issuer is reached, names itself as the configuration does, and has keys; and how its clock goes."""
    name = f"issuer {label}"
    found: list[Finding] = []
    secured = _tls(name, table.issuer, looked)
    if secured is not None:
        found.append(secured)
        if secured.status == FAILED:
            return found
    listening = _Listening(looked)
    place = table.jwks
    try:
        endpoints = run(
            discover(table.issuer, looked.clock, frozenset(table.endpoint_origins)),
            listening.answer,
        )
        found.append(Finding(name, OK, f"{table.issuer} answers and names itself so"))
        place = place or endpoints.jwks
    except AgentIdentityError as error:
        failure = failed_by(name, error)
        if is_asked or place is None:
            return [*found, failure, *listening.clock_findings(name)]
        found.append(failure._replace(status=WARNING))
    found.append(_keys(name, table, place, looked))
    return [*found, *listening.clock_findings(name)]


def _keys(name: str, table: IssuerTable, place: str | None, looked: Looked) -> Finding:
    if place is None and not table.trust:
        return Finding(name, OK, "it publishes no keys, and nothing here needs them")
    try:
        keys = run(read_keys(table.issuer, place, looked.clock), looked.world.answer).keys
    except AgentIdentityError as error:
        return failed_by(name, error)
    if not keys:
        return Finding(name, WARNING, "none of its keys can be used here", "look at its jwks_uri")
    return Finding(name, OK, f"{len(keys)} of its keys can be used")


class _Listening:
    """Answers flows, and hears what each answer says about the time."""

    def __init__(self, looked: Looked) -> None:
        self._looked = looked
        self._skew: float | None = None

    def answer(self, ask: Ask) -> Answer:
        before = self._looked.clock()
        found = self._looked.world.answer(ask)
        if isinstance(found, HttpResponse):
            date = _date(found.headers.get("date", ""))
            if date is not None:
                self._skew = (before + self._looked.clock()) / 2 - date
        return found

    def clock_findings(self, name: str) -> Iterator[Finding]:
        if self._skew is None:
            return
        seconds = abs(self._skew)
        if seconds <= SKEW:
            yield Finding(name, OK, f"its clock and this one agree within {SKEW:.0f} s")
            return
        way = "ahead of" if self._skew > 0 else "behind"
        yield Finding(
            name,
            WARNING,
            f"this machine's clock is {seconds:.0f} s {way} its clock",
            "set the clock, by NTP for instance; tokens and proofs are refused for less",
        )


def _date(text: str) -> float | None:
    """A `Date` header in Unix seconds; it is cut off to whole ones, so half of one is put back."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(text).timestamp() + 0.5
    return None


# -- connections ------------------------------------------------------------------------------------------------------


def _tls(name: str, url: str, looked: Looked) -> Finding | None:
    """How a TLS connection to a place goes; None for plain http on this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return None
    try:
        with (
            socket.create_connection(
                (host, parts.port or 443), looked.configuration.http.deadline
            ) as plain,
            tls(looked.configuration.http.ca).wrap_socket(plain, server_hostname=host) as secured,
        ):
            shown = secured.getpeercert() or {}
            version = secured.version() or "TLS"
    except (OSError, ValueError) as error:
        return Finding(name, FAILED, f"{host}: {_said(error)}", _remedy(error))
    ends = ssl.cert_time_to_seconds(str(shown.get("notAfter", "")))
    return lasting(
        name,
        f"{version.replace('TLSv', 'TLS ')}, the certificate of {host} is trusted",
        ends,
        looked.clock(),
    )


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "no TLS could be agreed on"
    if isinstance(error, socket.gaierror):
        return "this name isn't known here"
    if isinstance(error, TimeoutError):
        return "it doesn't answer in time"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no connection"


def _remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "have it show a certificate of a public authority, or name its own in [http] ca"
    return "check the URL, and what stands between this machine and it"


def check_vault(table: VaultTable, looked: Looked) -> list[Finding]:
    """Whether a vault answers and is open; its secrets are checked where the configuration names them."""
    name = "vault"
    secured = _tls(name, table.address, looked)
    found = [] if secured is None else [secured]
    if secured is not None and secured.status == FAILED:
        return found
    request = HttpRequest("GET", f"{table.address.rstrip('/')}/v1/sys/health")
    deadline = time.monotonic() + looked.configuration.http.deadline
    try:
        status = looked.world.transport.exchange(request, deadline).status
    except AgentIdentityError as error:
        remedy = error.remedy or "check vault.address, and what stands between this machine and it"
        return [*found, failed_by(name, error)._replace(remedy=remedy)]
    if status in _REPLIES:
        return [*found, Finding(name, OK, f"{table.address} answers and is open")]
    what = {_SEALED: "is sealed", _NOT_STARTED: "was never initialised"}
    message = f"{table.address} {what.get(status, f'answers {status}, unlike OpenBao and Vault')}"
    return [*found, Finding(name, FAILED, message, "look at the server's own state")]


# -- SPIFFE -----------------------------------------------------------------------------------------------------------


def wants_spiffe(configuration: Configuration) -> bool:
    """Whether a configuration has to do with SPIFFE."""
    return (
        "spiffe" in configuration.model_fields_set
        or any(table.client_auth == "spiffe_jwt" for table in configuration.issuers.values())
        or any(
            table.provider == "spiffe" or (table.source or "").startswith("spiffe-")
            for table in configuration.resources.values()
        )
    )


def check_spiffe(configuration: Configuration) -> list[Finding]:
    """Whether the socket of the Workload API takes connections; no SVID is asked for."""
    name = "spiffe"
    if importlib.util.find_spec("spiffe") is None:
        remedy = "install it: pip install spiffe"
        return [Finding(name, FAILED, "the package spiffe isn't installed", remedy)]
    address = workload_api(configuration.spiffe.socket)
    if address is None:
        remedy = "set [spiffe] socket, or SPIFFE_ENDPOINT_SOCKET"
        return [Finding(name, FAILED, "nothing says where the Workload API is", remedy)]
    try:
        _connect(address, configuration.http.deadline)
    except (OSError, ValueError) as error:
        remedy = "see that the SPIRE agent runs, and that its socket is mounted here"
        return [Finding(name, FAILED, f"{address}: {_said(error)}", remedy)]
    return [Finding(name, OK, f"{address} takes connections")]


def _connect(address: str, seconds: float) -> None:
    parts = urlsplit(address)
    if parts.scheme == "tcp":
        socket.create_connection((parts.hostname or "", parts.port or 0), seconds).close()
        return
    if parts.scheme != "unix":
        raise ValueError
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(seconds)
        client.connect(parts.path)


def resources_with_issuers(configuration: Configuration) -> Iterator[tuple[str, ResourceTable]]:
    """The resources that take an issuer's tokens, and are reached over HTTP."""
    for uri, table in configuration.resources.items():
        if table.source in OAUTH_SOURCES and uri.startswith(("https://", "http://")):
            yield uri, table


def check_resource(uri: str, table: ResourceTable, looked: Looked) -> list[Finding]:
    """Whether a resource names our issuer, and takes tokens that are bound as ours; most resources publish nothing."""
    name = f"resource {uri}"
    try:
        found = run(discover_resource(uri, looked.clock), looked.world.answer)
    except AgentIdentityError as error:
        return [failed_by(name, error)._replace(status=WARNING)]
    if found is None:
        return [Finding(name, OK, "it publishes nothing of itself, so nothing speaks against it")]
    differing = [*_differing(name, found, table, looked.configuration)]
    return differing or [Finding(name, OK, "what it publishes of itself fits")]


def _differing(
    name: str, found: ProtectedResource, table: ResourceTable, configuration: Configuration
) -> Iterator[Finding]:
    issuer = configuration.issuers[table.issuer or ""].issuer
    if found.issuers and issuer not in found.issuers:
        yield Finding(
            name,
            WARNING,
            f"it doesn't name {issuer} among the issuers whose tokens it takes",
            "check resources.issuer, letter by letter; a trailing slash counts",
        )
    if found.wants_dpop and table.binding != "dpop":
        yield Finding(
            name, WARNING, "it takes none but DPoP-bound tokens", 'set binding = "dpop" for it'
        )
    if found.wants_certificate and table.binding != "mtls":
        yield Finding(
            name,
            WARNING,
            "it takes none but certificate-bound tokens",
            'set binding = "mtls" for it',
        )
    unknown = set(table.scopes or ()) - (found.scopes or set(table.scopes or ()))
    if unknown:
        yield Finding(
            name,
            WARNING,
            f"it doesn't know the scope {min(unknown)}",
            "check resources.scopes against what it publishes",
        )
