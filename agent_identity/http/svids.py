# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API, by the `spiffe` package (extra `spiffe`): the newest X.509-SVID, and JWT-SVIDs by audience.

The X.509-SVID is watched: the API pushes the next one long before this one ends, and what is asked for is the last that came.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agent_identity.credentials.workload.spiffe import (
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

__all__ = ["WorkloadApi"]

_SECONDS: Final = 5.0
_WHO: Final = "the SPIFFE Workload API"


class WorkloadApi:
    """The Workload API on a socket (`unix:/run/…` or `tcp://127.0.0.1:…`). Connected to when first asked.

    An SVID that isn't of `trust_domain`, where that is given, is handed to nobody.
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
        """A JWT-SVID for exactly one audience.

        Raises:
            CredentialRejectedError: `trust_domain_mismatch` or `spiffe_id_malformed`, whom it names.
            CredentialUnavailableError: `workload_api`, it can't be reached or has no identity for this workload.
            ConfigurationError: the package isn't there, or the socket's address is none.
        """
        client = self._connected()
        svid: Secret | str
        try:
            svid = Secret(client.fetch_jwt_svid({audience}, timeout=self._seconds).token)
        except Exception as error:
            if is_interrupt(error):
                raise
            svid = type(error).__name__
        if isinstance(svid, str):
            raise _unavailable(svid)
        check_jwt_svid(svid, self._trust_domain, who=_WHO)
        return svid

    def certificate(self) -> Certificate | None:
        """The X.509-SVID as it is now, with the authorities of its trust domain.

        Raises:
            CredentialRejectedError: `trust_domain_mismatch` or `spiffe_id_malformed`, whom it names.
            CredentialUnavailableError: `workload_api`, it can't be reached or has no identity for this workload.
            ConfigurationError: the package isn't there, or the socket's address is none.
        """
        client = self._connected()
        shown: Certificate | str
        source: Any = None
        try:
            source = self._source(client)
            found = source.get_x509_context()
            svid = found.default_svid
            domain = svid.spiffe_id.trust_domain
            bundle = found.x509_bundle_set.get_bundle_for_trust_domain(domain)
            trusted = () if bundle is None else bundle.x509_authorities
            shown = certificate_of(svid.cert_chain, svid.private_key, trusted)
        except Exception as error:
            if is_interrupt(error):
                raise
            shown = type(error).__name__
        if isinstance(shown, str):
            self._let_go(source)  # one that failed stays so; the next one asks anew
            raise _unavailable(shown)
        check_x509_svid(shown, self._trust_domain, who=_WHO)
        return shown

    def close(self) -> None:
        with self._lock:
            watched, self._watched = self._watched, None
            client, self._client = self._client, None
        for each in (watched, client):
            if each is not None:
                each.close()

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = _client(self._socket)
            return self._client

    def _source(self, client: Any) -> Any:
        """What watches the X.509-SVID; made without the lock, since it waits for the first one."""
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

    def _let_go(self, source: Any) -> None:
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
        if _is_absent(socket):  # the agent of this machine starts when it starts
            raise _unavailable("no socket there") from None
        kind = "ArgumentError"
    except Exception as error:  # noqa: BLE001 - the seam: it says what is wrong with the address
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
