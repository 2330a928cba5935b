# SPDX-License-Identifier: Apache-2.0
"""Whom the HTTP door opens connections to, and what it shows and believes there: addresses, certificates, the environment."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.server
import ipaddress
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from agent_identity import ConfigurationError, TransportError
from agent_identity.flow import HttpRequest, HttpResponse
from agent_identity.http import network
from agent_identity.http.backends import is_public
from agent_identity.http.network import client_context
from agent_identity.http.transport import Transport
from agent_identity.keys.signing import certificate_of, read_certificate
from agent_identity.values import Certificate, Secret

Exchange = Callable[[Transport, HttpRequest], HttpResponse]


def in_sync(transport: Transport, request: HttpRequest, seconds: float = 60.0) -> HttpResponse:
    with contextlib.closing(transport):
        return transport.exchange(request, time.monotonic() + seconds)


def in_async(transport: Transport, request: HttpRequest, seconds: float = 60.0) -> HttpResponse:
    async def exchanged() -> HttpResponse:
        try:
            return await transport.aexchange(request, time.monotonic() + seconds)
        finally:
            await transport.aclose()

    return asyncio.run(exchanged())


@pytest.fixture(params=[in_sync, in_async], ids=["sync", "async"])
def exchange(request: pytest.FixtureRequest) -> Exchange:
    return request.param


class Web:
    """A web server on loopback that says who showed a certificate, and counts who came."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        outer = self
        self.hits = 0

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.hits += 1
                shown = (
                    self.connection.getpeercert()
                    if isinstance(self.connection, ssl.SSLSocket)
                    else None
                )
                body = str(shown and shown.get("serialNumber")).encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, *args: object) -> None:
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        serve = self.server.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


# -- addresses -----------------------------------------------------------------------------------------------------------


PRIVATE = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0"),  # noqa: S104 - an address to refuse
    *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fc00::1", "fe80::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    *("fe80::1%lo", "not an address", "", "198.18.0.1", "192.0.2.1", "2001:db8::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_E05_an_address_inside_a_private_network_is_none_of_the_public_one(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE[:19])
def test_E05_a_discovered_name_that_leads_inside_is_never_connected_to(
    address: str, exchange: Exchange, web: Web
) -> None:
    transport = Transport(resolve=lambda host, port: ["93.184.216.34", address])
    request = HttpRequest("GET", "https://metadata.example/", discovered=True)
    with pytest.raises(TransportError) as caught:
        exchange(transport, request)
    assert caught.value.code == "private_address"
    assert "allow_private" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "017700000001"]
)
def test_E05_every_spelling_of_loopback_is_refused_where_a_peer_named_it(
    host: str, exchange: Exchange, web: Web
) -> None:
    request = HttpRequest("GET", f"https://{host}:{web.port}/", discovered=True)
    with pytest.raises(TransportError):
        exchange(Transport(), request)
    assert web.hits == 0


def test_a_discovered_host_that_the_configuration_allows_is_connected_to(
    exchange: Exchange, web: Web
) -> None:
    transport = Transport(allow_private=frozenset({"localhost"}))
    request = HttpRequest("GET", f"http://localhost:{web.port}/", discovered=True)
    assert exchange(transport, request).status == 200


def test_D15_the_address_that_was_checked_is_the_one_that_is_connected_to(
    exchange: Exchange, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name resolves to loopback for whoever looks again."""
    looked: list[str] = []
    connected: list[object] = []

    def resolve(host: str, port: int) -> list[str]:
        looked.append(host)
        return ["93.184.216.34"] if len(looked) == 1 else ["127.0.0.1"]

    def to_nowhere(address: object, *args: object, **how: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    async def ato_nowhere(remote_host: str, remote_port: int, **how: object) -> None:
        connected.append((remote_host, remote_port))
        raise OSError

    monkeypatch.setattr(socket, "create_connection", to_nowhere)
    monkeypatch.setattr("anyio.connect_tcp", ato_nowhere)
    request = HttpRequest("GET", f"http://localhost:{web.port}/", discovered=True)
    with pytest.raises(TransportError) as caught:
        exchange(Transport(resolve=resolve), request)
    assert caught.value.code == "exchange_failed"
    assert looked == ["localhost"]
    assert connected == [("93.184.216.34", web.port)]
    assert web.hits == 0


@pytest.mark.parametrize(
    "url",
    [
        *("https://user@idp.example/", "https://idp.example\\@evil.example/"),
        *("https://idp.example/\r\nHost: evil.example", "http://localhost:80@evil.example/"),
        *("https://xn--80ak6aa92e.com@evil/", "https://id\u0440.example/", "ftp://idp.example/"),
        *("http://evil.example/", "http://127.0.0.1.evil.example/", "https://", "//idp.example/"),
    ],
)
def test_E06_a_url_that_can_be_read_in_two_ways_is_asked_in_none(
    url: str, exchange: Exchange
) -> None:
    with pytest.raises(TransportError) as caught:
        exchange(Transport(resolve=lambda host, port: pytest.fail(host)), HttpRequest("GET", url))
    assert caught.value.code in ("url_malformed", "insecure_url")


@pytest.mark.parametrize("host", ["metadata.google.internal", "169.254.169.254"])
def test_plain_http_is_spoken_to_the_named_metadata_host_alone(host: str) -> None:
    place = Transport()._pool_for
    assert place(HttpRequest("GET", f"http://{host}/x", plain=host)) == "issuers"
    for url, plain in (
        (f"http://{host}/x", None),
        (f"http://{host}.evil.example/x", host),
        (f"http://{host}:8080/x", host),
        ("http://evil.example/x", "evil.example"),
    ):
        with pytest.raises(TransportError) as caught:
            place(HttpRequest("GET", url, plain=plain))
        assert caught.value.code == "insecure_url"


# -- deadlines -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def served(talk: Callable[[socket.socket], object], backlog: int = 5) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as listening:
        stopped = threading.Event()

        def serve() -> None:
            while not stopped.is_set():
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):
                    talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        stopped.set()
        with contextlib.suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)


def drip(text: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        connection.recv(4096)
        for at in range(len(text)):
            connection.sendall(text[at : at + 1])
            time.sleep(0.05)

    return talk


def test_D01_a_black_hole_is_left_at_the_deadline(exchange: Exchange) -> None:
    """A server that accepts and never says anything; and one whose queue is full, so that it doesn't even accept."""
    is_over = threading.Event()
    with served(lambda connection: is_over.wait(60)) as port:
        with pytest.raises(TransportError) as caught:
            exchange(Transport(), HttpRequest("GET", f"http://127.0.0.1:{port}/"), 0.3)
        assert caught.value.code == "deadline_exceeded"
        is_over.set()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        with pytest.raises(TransportError) as caught:
            exchange(Transport(), HttpRequest("GET", url), 0.3)
        assert caught.value.code == "deadline_exceeded"
        for each in waiting:
            each.close()


def test_D03_headers_that_drip_are_cut_at_the_deadline(exchange: Exchange) -> None:
    with served(drip(b"HTTP/1.1 200 OK\r\n" + b"x-slow: y\r\n" * 50)) as port:
        with pytest.raises(TransportError) as caught:
            exchange(Transport(), HttpRequest("GET", f"http://127.0.0.1:{port}/"), 0.4)
    assert caught.value.code == "deadline_exceeded"


# -- certificates --------------------------------------------------------------------------------------------------------


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


class FakeAuthority:
    """A certification authority of a test, and the certificates that it gives."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
        self.certificate = self.issue(self.key, self.name, is_authority=True)

    def issue(
        self,
        key: ec.EllipticCurvePrivateKey,
        name: x509.Name,
        *,
        host: str = "127.0.0.1",
        days: float = 1,
        is_authority: bool = False,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        try:
            other: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            other = x509.DNSName(host)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=10))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([other]), critical=False)
            # What Python 3.13 checks by itself (RFC 5280 §4.2.1).
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
            .add_extension(_usage(is_authority=is_authority), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def leaf(
        self, host: str = "127.0.0.1", days: float = 1
    ) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
        return self.issue(key, name, host=host, days=days), key

    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()


@pytest.fixture(scope="module")
def authority() -> FakeAuthority:
    return FakeAuthority()


@pytest.fixture
def trusting(authority: FakeAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's own trust is the test's authority."""
    real = network._context

    def context(authorities: str | None = None) -> ssl.SSLContext:
        made = real(authorities)
        made.load_verify_locations(cadata=authority.pem())
        return made

    monkeypatch.setattr(network, "_context", context)
    network.tls.cache_clear()
    yield
    network.tls.cache_clear()


@contextlib.contextmanager
def secure(
    authority: FakeAuthority,
    tmp_path: Path,
    *,
    host: str = "127.0.0.1",
    days: float = 1,
    version: ssl.TLSVersion | None = None,
    asks: bool = False,
) -> Iterator[Web]:
    leaf, key = authority.leaf(host, days)
    file = tmp_path / "server.pem"
    file.write_bytes(
        leaf.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    if version is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=authority.pem())
    web = Web(context)
    try:
        yield web
    finally:
        web.close()


@pytest.mark.usefixtures("trusting")
def test_a_certificate_of_a_trusted_authority_is_believed(
    authority: FakeAuthority, tmp_path: Path, exchange: Exchange
) -> None:
    with secure(authority, tmp_path) as web:
        request = HttpRequest("GET", f"https://127.0.0.1:{web.port}/")
        assert exchange(Transport(), request).status == 200


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    "how",
    [{"days": -1}, {"host": "evil.example"}, {"version": ssl.TLSVersion.TLSv1_1}],
    ids=["expired", "wrong host", "TLS 1.1"],
)
def test_D13_a_server_that_cant_prove_itself_gets_nothing(
    authority: FakeAuthority, tmp_path: Path, exchange: Exchange, how: dict[str, object]
) -> None:
    with secure(authority, tmp_path, **how) as web:
        with pytest.raises(TransportError) as caught:
            exchange(Transport(), HttpRequest("GET", f"https://127.0.0.1:{web.port}/"))
        assert caught.value.code == "exchange_failed"
        assert web.hits == 0


def test_D13_a_certificate_of_an_unknown_authority_is_refused(
    authority: FakeAuthority, tmp_path: Path, exchange: Exchange
) -> None:
    with secure(authority, tmp_path) as web:
        with pytest.raises(TransportError):
            exchange(Transport(), HttpRequest("GET", f"https://127.0.0.1:{web.port}/"))
        assert web.hits == 0


def test_D13_a_key_that_isnt_the_certificates_is_refused_before_anything_is_sent(
    authority: FakeAuthority,
) -> None:
    leaf, _ = authority.leaf()
    _, other = authority.leaf()
    mismatched = certificate_of([leaf], other)
    with pytest.raises(ConfigurationError) as caught:
        client_context(mismatched)
    assert caught.value.code == "certificate_unusable"
    with pytest.raises(ConfigurationError):
        read_certificate(mismatched.chain.encode(), mismatched.key.reveal().encode())


@pytest.mark.usefixtures("trusting")
def test_each_request_shows_the_certificate_that_it_names(
    authority: FakeAuthority, tmp_path: Path
) -> None:
    """Connections are pooled by certificate: one identity's is never shown for another's."""
    made = [authority.leaf() for _ in range(3)]
    certificates = [certificate_of([leaf], key) for leaf, key in made]
    serials = [f"{leaf.serial_number:X}" for leaf, _ in made]
    with secure(authority, tmp_path, asks=True) as web:
        url = f"https://127.0.0.1:{web.port}/"
        transport = Transport()

        def shown(certificate: Certificate | None) -> str:
            request = HttpRequest("GET", url, certificate=certificate)
            body = transport.exchange(request, time.monotonic() + 5).body.decode()
            return body.lstrip("0")

        with contextlib.closing(transport):
            assert [shown(each) for each in certificates * 2] == serials * 2
            with pytest.raises(TransportError):
                shown(None)


def test_authorities_that_the_configuration_names_are_trusted_beside_the_public_ones(
    authority: FakeAuthority, tmp_path: Path, exchange: Exchange
) -> None:
    file = tmp_path / "authorities.pem"
    file.write_text(authority.pem())
    with secure(authority, tmp_path) as web:
        request = HttpRequest("GET", f"https://127.0.0.1:{web.port}/")
        assert exchange(Transport(authorities=str(file)), request).status == 200
        with pytest.raises(TransportError):
            exchange(Transport(), request)
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(ConfigurationError) as caught:
        Transport(authorities=str(empty)).context(None)
    assert caught.value.code == "authorities_unusable"


def test_the_authorities_that_come_with_a_certificate_are_trusted_where_it_is_shown(
    authority: FakeAuthority, tmp_path: Path, exchange: Exchange
) -> None:
    leaf, key = authority.leaf()
    svid = certificate_of([leaf], key, [authority.certificate])
    with secure(authority, tmp_path, asks=True) as web:
        request = HttpRequest("GET", f"https://127.0.0.1:{web.port}/", certificate=svid)
        assert exchange(Transport(), request).status == 200


@pytest.mark.usefixtures("trusting")
def test_connections_of_certificates_that_rotated_are_let_go(authority: FakeAuthority) -> None:
    transport = Transport()
    for _ in range(20):
        leaf, key = authority.leaf()
        transport.pools.get("issuers", certificate_of([leaf], key))
    assert len(transport.pools._sync) == 16
    transport.close()


def test_a_certificate_shows_no_key_and_leaves_no_file(
    authority: FakeAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    leaf, key = authority.leaf()
    certificate = certificate_of([leaf], key)
    assert isinstance(certificate.key, Secret)
    assert "PRIVATE" not in repr(certificate)
    client_context(certificate)
    assert list(tmp_path.iterdir()) == []


def test_D14_proxies_and_authorities_of_the_environment_have_no_effect(
    exchange: Exchange, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificates")
    monkeypatch.setenv("SSL_CERT_FILE", str(bad))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login alice password canary")
    monkeypatch.setenv("NETRC", str(netrc))
    network.tls.cache_clear()
    request = HttpRequest("GET", f"http://127.0.0.1:{web.port}/")
    assert exchange(Transport(), request).status == 200
    assert web.hits == 1
