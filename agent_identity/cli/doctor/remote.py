# SPDX-License-Identifier: Apache-2.0
"""The checks of `doctor` on servers: issuers with their keys, TLS and clocks, resources, the vault, the SPIFFE Workload API.

No request asks for a credential: only metadata, public keys and health are read.
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

from agent_identity.assembly.issuers import given_endpoints
from agent_identity.cli.doctor.comparison import compare
from agent_identity.cli.doctor.local import (
    FAILED,
    Finding,
    check_expiry,
    failure,
    failure_of,
    ok,
    warning,
)
from agent_identity.config import workload_api
from agent_identity.config.model import OAUTH_SOURCES
from agent_identity.credentials.oauth.metadata import (
    discover,
    endpoints_without_metadata,
    read_keys,
)
from agent_identity.credentials.oauth.protected_resource import discover_resource
from agent_identity.errors import AgentIdentityError
from agent_identity.flow import HttpRequest, HttpResponse, run
from agent_identity.http.network import tls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_identity.cli.doctor.local import Setup
    from agent_identity.config import Configuration
    from agent_identity.config.model import IssuerTable, ResourceTable, VaultTable
    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.credentials.oauth.protected_resource import ProtectedResource
    from agent_identity.flow import Answer, Ask, Flow

SKEW: Final = 30.0
"""Seconds that clocks may differ without a warning."""

_REPLIES: Final = frozenset({200, 429, 472, 473})
_NOT_STARTED: Final = 501
_SEALED: Final = 503


def check_issuer(label: str, table: IssuerTable, setup: Setup, *, is_asked: bool) -> list[Finding]:
    """Whether an issuer answers under the configured name and has keys, and whether the clocks agree."""
    name = f"issuer {label}"
    findings = _check_tls(name, table.issuer, setup)
    if any(finding.status == FAILED for finding in findings):
        return findings
    timed = _TimedWorld(setup)
    place = table.jwks
    try:
        endpoints = run(_endpoints_of(table, setup), timed.answer)
        if table.has_metadata:
            findings.append(ok(name, f"{table.issuer} answers under this name"))
        findings += compare(label, table, endpoints, setup)
        place = place or endpoints.jwks
    except AgentIdentityError as error:
        error_finding = failure_of(name, error)
        if is_asked or place is None:
            return [*findings, error_finding, *timed.check_clock(name)]
        findings.append(error_finding._replace(status="warning"))
    findings.append(_check_keys(name, table, place, setup))
    return [*findings, *timed.check_clock(name)]


def _endpoints_of(table: IssuerTable, setup: Setup) -> Flow[Endpoints]:
    given = given_endpoints(table)
    if not table.has_metadata:
        return endpoints_without_metadata(table.issuer, setup.clock(), given)
    origins = frozenset(table.endpoint_origins)
    return (
        yield from discover(table.issuer, setup.clock, origins, place=table.metadata, given=given)
    )


def _check_keys(name: str, table: IssuerTable, place: str | None, setup: Setup) -> Finding:
    if place is None and not table.trust:
        return ok(name, "it publishes no keys, and none are needed")
    try:
        keys = run(read_keys(table.issuer, place, setup.clock), setup.world.answer)
    except AgentIdentityError as error:
        return failure_of(name, error)
    usable = len(keys.keys) + len(keys.unnamed)
    if not usable:
        return warning(name, "none of its keys can be used", "check its jwks_uri")
    return ok(name, f"{usable} of its keys can be used")


class _TimedWorld:
    """Answers flows, and compares this machine's clock with the `Date` of each response."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._skew: float | None = None

    def answer(self, ask: Ask) -> Answer:
        before = self._setup.clock()
        answer = self._setup.world.answer(ask)
        if isinstance(answer, HttpResponse):
            date = _date(answer.headers.get("date", ""))
            if date is not None:
                self._skew = (before + self._setup.clock()) / 2 - date
        return answer

    def check_clock(self, name: str) -> Iterator[Finding]:
        if self._skew is None:
            return
        seconds = abs(self._skew)
        if seconds <= SKEW:
            yield ok(name, f"its clock and this machine's clock agree within {SKEW:.0f} s")
            return
        way = "ahead of" if self._skew > 0 else "behind"
        yield warning(
            name,
            f"this machine's clock is {seconds:.0f} s {way} its clock",
            "set the clock, for instance by NTP; with such a difference tokens and proofs are refused",
        )


def _date(text: str) -> float | None:
    """A `Date` header in Unix seconds; half a second is added because the header has whole seconds."""
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return parsedate_to_datetime(text).timestamp() + 0.5
    return None


def _check_tls(name: str, url: str, setup: Setup) -> list[Finding]:
    """Whether a TLS connection works; nothing for plain http on loopback."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme != "https":
        return []
    try:
        with (
            socket.create_connection(
                (host, parts.port or 443), setup.configuration.http.deadline
            ) as plain,
            tls(setup.configuration.http.ca).wrap_socket(plain, server_hostname=host) as secured,
        ):
            certificate = secured.getpeercert() or {}
            version = secured.version() or "TLS"
    except (OSError, ValueError) as error:
        return [failure(name, f"{host}: {_reason(error)}", _remedy(error))]
    ends = ssl.cert_time_to_seconds(str(certificate.get("notAfter", "")))
    what = f"{version.replace('TLSv', 'TLS ')}, the certificate of {host} is trusted"
    return [check_expiry(name, what, ends, setup.clock())]


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return "the TLS handshake failed"
    if isinstance(error, socket.gaierror):
        return "the host name can't be resolved"
    if isinstance(error, TimeoutError):
        return "the connection timed out"
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno).lower()
    return "the connection failed"


def _remedy(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (
            "use a certificate of a public authority, or name the server's authority in [http] ca"
        )
    return "check the URL, and the network between this machine and the server"


def check_vault(table: VaultTable, setup: Setup) -> list[Finding]:
    """Whether a vault answers and is unsealed; its secrets are checked with the other references."""
    name = "vault"
    findings = _check_tls(name, table.address, setup)
    if any(finding.status == FAILED for finding in findings):
        return findings
    request = HttpRequest("GET", f"{table.address.rstrip('/')}/v1/sys/health")
    deadline = time.monotonic() + setup.configuration.http.deadline
    try:
        status = setup.world.transport.exchange(request, deadline).status
    except AgentIdentityError as error:
        remedy = (
            error.remedy
            or "check vault.address, and the network between this machine and the vault"
        )
        return [*findings, failure_of(name, error)._replace(remedy=remedy)]
    if status in _REPLIES:
        return [*findings, ok(name, f"{table.address} answers and is unsealed")]
    what = {_SEALED: "is sealed", _NOT_STARTED: "is not initialised"}
    state = what.get(status, f"answers {status}, unlike OpenBao and Vault")
    message = f"{table.address} {state}"
    return [*findings, failure(name, message, "check the state of the server")]


def wants_spiffe(configuration: Configuration) -> bool:
    """Whether a configuration uses SPIFFE."""
    return (
        "spiffe" in configuration.model_fields_set
        or any(table.client_auth == "spiffe_jwt" for table in configuration.issuers.values())
        or any(
            table.provider == "spiffe" or (table.source or "").startswith("spiffe-")
            for table in configuration.resources.values()
        )
    )


def check_spiffe(configuration: Configuration) -> list[Finding]:
    """Whether the Workload API accepts connections; no SVID is requested."""
    name = "spiffe"
    if importlib.util.find_spec("spiffe") is None:
        remedy = "install it: pip install spiffe"
        return [failure(name, "the package spiffe isn't installed", remedy)]
    address = workload_api(configuration.spiffe.socket)
    if address is None:
        remedy = "set [spiffe] socket, or SPIFFE_ENDPOINT_SOCKET"
        return [failure(name, "the socket of the Workload API isn't configured", remedy)]
    try:
        _connect(address, configuration.http.deadline)
    except (OSError, ValueError) as error:
        remedy = "check that the SPIRE agent runs, and that its socket is mounted here"
        return [failure(name, f"{address}: {_reason(error)}", remedy)]
    return [ok(name, f"{address} accepts connections")]


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
    """The HTTP resources that take an issuer's tokens."""
    for uri, table in configuration.resources.items():
        if table.source in OAUTH_SOURCES and uri.startswith(("https://", "http://")):
            yield uri, table


def check_resource(uri: str, table: ResourceTable, setup: Setup) -> list[Finding]:
    """Whether a resource's metadata fits its table; most resources publish no metadata."""
    name = f"resource {uri}"
    try:
        metadata = run(discover_resource(uri, setup.clock), setup.world.answer)
    except AgentIdentityError as error:
        return [failure_of(name, error)._replace(status="warning")]
    if metadata is None:
        return [ok(name, "it publishes no metadata to compare with")]
    differences = [*_differences(name, metadata, table, setup.configuration)]
    return differences or [ok(name, "its metadata fits the configuration")]


def _differences(
    name: str, metadata: ProtectedResource, table: ResourceTable, configuration: Configuration
) -> Iterator[Finding]:
    named = configuration.issuers.get(table.issuer or "")
    issuer = None if named is None else named.issuer
    if issuer is not None and metadata.issuers and issuer not in metadata.issuers:
        yield warning(
            name,
            f"it doesn't name {issuer} among the issuers whose tokens it accepts",
            "check resources.issuer, character by character, including a trailing slash",
        )
    if metadata.wants_dpop and table.binding not in ("dpop", "offered"):
        yield warning(name, "it accepts only DPoP-bound tokens", 'set binding = "dpop" for it')
    if metadata.wants_certificate and table.binding != "mtls":
        yield warning(
            name, "it accepts only certificate-bound tokens", 'set binding = "mtls" for it'
        )
    unknown = set(table.scopes or ()) - (metadata.scopes or set(table.scopes or ()))
    if unknown:
        yield warning(
            name,
            f"it doesn't know the scope {min(unknown)}",
            "check resources.scopes against what it publishes",
        )
