# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API, by the `spiffe` package (extra `spiffe`): the newest X.509-SVID, and JWT-SVIDs by audience.

The API pushes a new X.509-SVID long before the current one expires; the newest is used.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent_identity.credentials.workload.spiffe import (
    WORKLOAD_API,
    check_jwt_svid,
    check_trust_domain,
    check_x509_svid,
)
from agent_identity.errors import ConfigurationError, CredentialUnavailableError, is_interrupt
from agent_identity.forks import start_over_in_child
from agent_identity.keys.signing import certificate_of
from agent_identity.values import Secret

if TYPE_CHECKING:
    from agent_identity.values import Certificate

_SECONDS: Final = 5.0


class WorkloadApi:
    """The Workload API on a socket (`unix:/run/…` or `tcp://127.0.0.1:…`), connected on first use.

    If `trust_domain` is set, SVIDs from other trust domains are refused.
    """

    def __init__(
        self, socket: str, *, trust_domain: str | None = None, seconds: float = _SECONDS
    ) -> None:
        check_trust_domain(trust_domain)
        self._socket = socket
        self._trust_domain = trust_domain
        self._seconds = seconds
        self.start_over()
        start_over_in_child(self)

    def start_over(self) -> None:
        """In a forked child: the connection and its threads are the parent's."""
        self._lock = threading.Lock()
        self._client: Any = None
        self._watched: Any = None

    def jwt(self, audience: str) -> Secret | None:
        """Get a JWT-SVID for exactly one audience.

        Raises:
            CredentialRejectedError: `trust_domain_mismatch` or `spiffe_id_malformed`.
            CredentialUnavailableError: `workload_api`, it can't be reached or has no identity for this workload.
            ConfigurationError: the package isn't installed, or the socket's address is invalid.
        """
        client = self._connect()
        svid: Secret | str
        try:
            svid = Secret(client.fetch_jwt_svid({audience}, timeout=self._seconds).token)
        except Exception as error:
            if is_interrupt(error):
                raise
            svid = type(error).__name__
        if isinstance(svid, str):
            raise _unavailable(svid)
        check_jwt_svid(svid, self._trust_domain, who=WORKLOAD_API)
        return svid

    def certificate(self) -> Certificate | None:
        """Get the current X.509-SVID, with the authorities of its trust domain.

        Raises:
            CredentialRejectedError: `trust_domain_mismatch` or `spiffe_id_malformed`.
            CredentialUnavailableError: `workload_api`, it can't be reached or has no identity for this workload.
            ConfigurationError: the package isn't installed, or the socket's address is invalid.
        """
        client = self._connect()
        certificate: Certificate | str
        source: Any = None
        try:
            source = self._source(client)
            context = source.get_x509_context()
            svid = context.default_svid
            domain = svid.spiffe_id.trust_domain
            bundle = context.x509_bundle_set.get_bundle_for_trust_domain(domain)
            trusted = () if bundle is None else bundle.x509_authorities
            certificate = certificate_of(svid.cert_chain, svid.private_key, trusted)
        except Exception as error:
            if is_interrupt(error):
                raise
            certificate = type(error).__name__
        if isinstance(certificate, str):
            self._discard(source)  # a failed source never recovers; the next call makes another
            raise _unavailable(certificate)
        check_x509_svid(certificate, self._trust_domain, who=WORKLOAD_API)
        return certificate

    def close(self) -> None:
        with self._lock:
            watched, self._watched = self._watched, None
            client, self._client = self._client, None
        for each in (watched, client):
            if each is not None:
                each.close()

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _client(self._socket)
            return self._client

    def _source(self, client: Any) -> Any:
        """The watcher of the X.509-SVID. It is made without the lock, since it waits for the first SVID."""
        from spiffe import X509Source  # noqa: PLC0415 - an extra

        with self._lock:
            if self._watched is not None:
                return self._watched
        fresh = X509Source(client, timeout_in_seconds=self._seconds)
        with self._lock:
            if self._watched is None:
                self._watched = fresh
                return fresh
            watched = self._watched
        fresh.close()
        return watched

    def _discard(self, source: Any) -> None:
        if source is None:
            return
        with self._lock:
            if self._watched is source:
                self._watched = None
        source.close()


def _client(socket: str) -> Any:
    try:
        from spiffe import WorkloadApiClient  # noqa: PLC0415 - an extra
        from spiffe.errors import ArgumentError  # noqa: PLC0415 - an extra
    except ImportError:
        raise ConfigurationError(
            "spiffe_missing",
            "the SPIFFE Workload API needs the package spiffe",
            remedy="install it: pip install spiffe",
        ) from None
    try:
        return WorkloadApiClient(socket)
    except ArgumentError:
        if _is_absent(socket):  # this machine's SPIFFE agent may start later
            raise _unavailable("the socket doesn't exist") from None
        kind = "ArgumentError"
    except Exception as error:  # noqa: BLE001 - the seam: foreign errors are wrapped here
        kind = type(error).__name__
    raise ConfigurationError(
        "spiffe_socket",
        f"the address of the SPIFFE Workload API can't be used ({kind})",
        remedy="set [spiffe] socket, or SPIFFE_ENDPOINT_SOCKET, to unix:/path/to/agent.sock",
    )


def _is_absent(socket: str) -> bool:
    path = socket.removeprefix("unix:")
    return path != socket and path.startswith("/") and not Path(path.replace("//", "/")).exists()


def _unavailable(kind: str) -> CredentialUnavailableError:
    return CredentialUnavailableError(
        "workload_api",
        f"the SPIFFE Workload API gave no SVID ({kind})",
        remedy="check its socket, and that this workload is registered there",
    )
