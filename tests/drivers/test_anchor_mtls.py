# SPDX-License-Identifier: Apache-2.0
"""The anchor's port with TLS: agents that prove themselves by certificates, over real sockets, and who gets no answer."""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from agent_identity import AgentIdentity, CredentialRejectedError, current_credential, tool
from agent_identity.cli.app import app
from agent_identity.cli.authority.configured import organisations_authority
from agent_identity.cli.authority.serve import listening, server_of, serving
from agent_identity.cli.listener import _context, listener_context
from agent_identity.config import read_configuration
from agent_identity.errors import ConfigurationError
from agent_identity.keys.signing import SigningKey, public_signing_jwk, read_certificate
from agent_identity.testing import FakeIssuer
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier

AUDIENCE = "https://agents.acme.example"
BILLING = "https://billing.example"
BOT = "spiffe://acme.example/invoice-bot"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
PROVEN = "grants_only"
"""What a client is told once it is proven: it asked for no grant."""
CLIENTS = ("by-uri", "by-dns", "by-subject")
NO_ANSWER = (ssl.SSLError, ConnectionError, http.client.HTTPException)


class Clock:
    """The real time, which a test can move on for the authority."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def tables(idp: FakeIssuer) -> str:
    """The anchor's configuration: a client by each name in a certificate, and one that signs assertions."""
    names = ('san_uri = "' + BOT + '"', 'san_dns = "bot.acme.example"', 'subject_dn = "CN=bot,O=A"')
    ways = {
        name: f'auth = "tls_client_auth"\n{way}' for name, way in zip(CLIENTS, names, strict=True)
    }
    ways |= {
        "other": 'auth = "tls_client_auth"\nsan_uri = "spiffe://acme.example/other"',
        "signer": 'jwks = "file:signer.jwks.json"',
    }
    clients = [
        f'[authority.clients.{name}]\nagent = "bot"\n{way}\nsubject_clients = ["web-app"]\n'
        f'resources = ["{BILLING}"]\nscopes = ["invoices:read"]\n'
        for name, way in ways.items()
    ]
    return f"""\
[authority]
audiences = ["{AUDIENCE}"]
[authority.tls]
certificate = "file:anchor.pem"
key = "file:anchor.pem"
client_ca = "file:clients.pem"
{"".join(clients)}\
[issuers.idp]
issuer = "{idp.url}"
jwks = "file:idp.jwks.json"
trust = ["subjects"]
"""


class Rig:
    """Three authorities of certificates: the anchor's own, the one for its clients, and a stranger's; and what they signed."""

    def __init__(self, folder: Path, make: Callable[[Path, str], Any], idp: FakeIssuer) -> None:
        self.folder, self.idp, self.clock = folder, idp, Clock()
        self.servers, self.clients, self.strangers = (
            make(folder, name) for name in ("servers", "clients", "strangers")
        )
        self.servers.issue("anchor", x509.IPAddress(ip_address("127.0.0.1")))
        uri, dns = x509.UniformResourceIdentifier(BOT), x509.DNSName("Bot.acme.example")
        self.certificates = {
            "by-uri": self.clients.issue("by-uri", uri),
            "by-dns": self.clients.issue("by-dns", dns),
            "by-subject": self.clients.issue("by-subject", subject="CN=bot,O=A"),
            "other": self.clients.issue("other", dns, x509.UniformResourceIdentifier(f"{BOT}2")),
        }
        signer = SigningKey.from_pem(self.certificates["by-uri"].read_bytes())
        keys = json.dumps({"keys": [public_signing_jwk(signer)]})
        self.put("signer.jwks.json", keys)
        self.put("idp.jwks.json", httpx.get(f"{idp.url}/jwks", trust_env=False).text)
        self.config = self.put("anchor.toml", tables(idp))

    def put(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def serve(self) -> Any:
        """Serve it here, for as long as a block lasts."""
        configuration = read_configuration(self.config, needs_policy=False)
        server = listening()
        self.port = server.getsockname()[1]
        self.url = f"https://127.0.0.1:{self.port}"
        authority = organisations_authority(configuration, None, self.url, self.clock)
        self.authority = authority
        return serving(authority.asgi(), server, listener_context(configuration))

    def context(self, certificate: Path | str | None = None) -> ssl.SSLContext:
        """A client's context: it trusts the anchor's authority, and shows a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.servers.file)
        if isinstance(certificate, str):
            certificate = self.certificates[certificate]
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context

    def connection(self, certificate: Path | str | None = None) -> http.client.HTTPSConnection:
        context = self.context(certificate)
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)

    def ask(
        self,
        client_id: str,
        certificate: Path | str | None = None,
        *,
        path: str = "/token",
        **more: Any,
    ) -> str:
        """What a client is told on a connection of its own."""
        connection = self.connection(certificate)
        try:
            return told(connection, client_id, path, **more)
        finally:
            connection.close()


def told(
    connection: http.client.HTTPSConnection,
    client_id: str,
    path: str = "/token",
    *,
    headers: dict[str, str] | None = None,
    **form: str,
) -> str:
    given = urlencode({"grant_type": EXCHANGE, "client_id": client_id, "token": "x"} | form)
    sent = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
    connection.request("POST", path, given, sent)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    return str(found.get("error_description", answer.status))


def answered(connection: http.client.HTTPSConnection) -> int:
    connection.request("GET", "/jwks")
    return connection.getresponse().status


@pytest.fixture(scope="module")
def rig(tmp_path_factory: Any, ca_in: Callable[[Path, str], Any]) -> Iterator[Rig]:
    with FakeIssuer() as idp:
        made = Rig(tmp_path_factory.mktemp("anchor"), ca_in, idp)
        with made.serve():
            yield made
        made.authority.close()


Agents = Callable[..., AgentIdentity]


@pytest.fixture
def agent(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agents]:
    """An agent's own configuration, which trusts the anchor's authority of certificates beside the public ones."""
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(rig.folder / "agent-state"))
    made: list[AgentIdentity] = []

    def make(
        client_id: str, certificate: str | None = None, *more: str, url: str = ""
    ) -> AgentIdentity:
        path = rig.put(
            "agent.toml",
            f"""\
[agent]
name = "bot"
grants = "anchor"
[issuers.anchor]
issuer = "{url or rig.url}"
trust = ["grants"]
client_id = "{client_id}"
client_certificate = "file:{certificate or client_id}.pem"
{chr(10).join(more) or 'client_auth = "tls_client_auth"'}
[issuers.idp]
issuer = "{rig.idp.url}"
trust = ["subjects"]
audience = "{AUDIENCE}"
client_id = "bot"
client_key = "file:by-uri.pem"
[resources."{BILLING}"]
issuer = "idp"
scopes = ["invoices:read"]
[http]
ca = "servers.pem"
[policy]
engine = "grants-only"
[ledger]
url = "memory:"
""",
        )
        made.append(AgentIdentity.from_config(path))
        return made[-1]

    yield make
    for identity in made:
        identity.close()


def alices(rig: Rig) -> str:
    return rig.idp.token("alice", audience=AUDIENCE, claims={"azp": "web-app"})


def sent_headers(identity: AgentIdentity, rig: Rig) -> dict[str, str]:
    """What an agent sends with one call: its chain, which the anchor began, among it."""

    @tool(resource=BILLING, scopes=["invoices:read"])
    def read() -> dict[str, str]:
        return dict(current_credential().headers("GET", f"{BILLING}/invoices", b""))

    with identity.on_behalf_of(alices(rig), purpose="close the books"):
        return read()


def principal_in(headers: dict[str, str], url: str, jwks: Any, rig: Rig) -> str:
    anchor = TrustAnchor(
        url, jwks=jwks, evidence="issuer", subjects=[rig.idp.url], revocations=UnsafeNoRevocations()
    )
    verifier = Verifier([anchor], audience=BILLING)
    call = verifier.verify_request(
        "GET", f"{BILLING}/invoices", list(headers.items()), b"", scopes=["invoices:read"]
    )
    return call.principal.sub


# -- who is proven ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client_id", CLIENTS)
def test_an_agent_gets_its_first_grant_by_its_certificate(
    agent: Agents, rig: Rig, client_id: str
) -> None:
    before = rig.authority.issued["grant"]
    headers = sent_headers(agent(client_id), rig)
    assert principal_in(headers, rig.url, rig.authority.jwks(), rig) == "alice"
    assert rig.authority.issued["grant"] == before + 1


async def test_in_async_code_it_is_the_same(agent: Agents, rig: Rig) -> None:
    identity = agent("by-uri")
    async with identity.on_behalf_of(alices(rig), purpose="close the books") as session:
        credential = await session.acredential(BILLING, ["invoices:read"])
        assert credential.scopes == {"invoices:read"}
    await identity.aclose()


def test_E15_another_clients_certificate_gets_no_grant(agent: Agents, rig: Rig) -> None:
    before = rig.authority.issued["grant"]
    with pytest.raises(CredentialRejectedError) as caught:
        sent_headers(agent("by-uri", "other"), rig)
    assert caught.value.code == "invalid_client"
    assert rig.authority.issued["grant"] == before


@pytest.mark.parametrize(
    ("client_id", "certificate", "said"),
    [
        ("by-uri", "by-uri", PROVEN),
        ("by-uri", None, "client_certificate_missing"),
        ("by-uri", "other", "client_mismatch"),
        ("by-dns", "other", PROVEN),  # it has that name too
        ("by-subject", "by-uri", "client_mismatch"),
        ("signer", "by-uri", "method_mismatch"),
        ("signer", None, "client_assertion_missing"),
        ("nobody", "by-uri", "client_unknown"),
    ],
)
def test_a_certificate_proves_who_has_its_name_and_nobody_else(
    rig: Rig, client_id: str, certificate: str | None, said: str
) -> None:
    assert rig.ask(client_id, certificate) == said


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
def test_it_does_so_wherever_clients_prove_themselves(rig: Rig, path: str) -> None:
    assert rig.ask("by-uri", "by-uri", path=path) == "200"
    assert rig.ask("by-uri", "other", path=path) == "client_mismatch"


HEADERS = ("Client-Cert", "X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "SSL_CLIENT_CERT")


def test_a_header_that_tells_of_a_certificate_proves_nobody(rig: Rig) -> None:
    pem = rig.certificates["by-uri"].read_text().partition("-----BEGIN PRIVATE")[0]
    value = pem.replace("\n", "")
    for given in (value, f":{value}:", f"By=x;Cert={value};URI={BOT}"):
        headers = dict.fromkeys(HEADERS, given) | {"X-Forwarded-Proto": "https"}
        assert rig.ask("by-uri", headers=headers) == "client_certificate_missing"
    assert rig.ask("by-uri", "other", headers=headers) == "client_mismatch"


def test_an_assertion_does_not_replace_the_certificate(agent: Agents, rig: Rig) -> None:
    key = 'client_auth = "private_key_jwt"\nclient_key = "file:by-uri.pem"'
    with pytest.raises(CredentialRejectedError) as caught:
        sent_headers(agent("by-uri", "by-uri", key), rig)
    assert caught.value.code == "invalid_client"


def test_who_signs_goes_on_doing_so_where_a_mesh_shows_a_certificate(
    agent: Agents, rig: Rig
) -> None:
    key = 'client_auth = "private_key_jwt"\nclient_key = "file:by-uri.pem"'
    headers = sent_headers(agent("signer", "by-uri", key), rig)
    assert principal_in(headers, rig.url, rig.authority.jwks(), rig) == "alice"


def test_a_shared_secret_is_refused_beside_a_certificate(rig: Rig) -> None:
    assert rig.ask("by-uri", "by-uri", client_secret="s") == "shared_secret_refused"
    basic = {"Authorization": "Basic Ynk6cw=="}
    assert rig.ask("by-uri", "by-uri", headers=basic) == "shared_secret_refused"


def test_a_certificate_that_ends_proves_nobody_on_a_connection_that_it_opened(rig: Rig) -> None:
    connection = rig.connection("by-uri")
    try:
        assert told(connection, "by-uri") == PROVEN
        opened = connection.sock
        rig.clock.ahead = 3700
        assert told(connection, "by-uri") == "expired"
        rig.clock.ahead = -3700
        assert told(connection, "by-uri") == "not_yet_valid"
        assert connection.sock is opened
    finally:
        rig.clock.ahead = 0
        connection.close()


# -- who gets no answer ----------------------------------------------------------------------------------------------------

URI = x509.UniformResourceIdentifier(BOT)
FOR_SERVERS = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


@pytest.mark.parametrize(
    ("authority", "said"),
    [
        ("strangers", {}),
        ("servers", {}),
        ("clients", {"hours": (-2, -1)}),
        ("clients", {"hours": (1, 2)}),
        ("clients", {"more": (FOR_SERVERS,)}),
    ],
    ids=["unknown authority", "the anchor's authority", "expired", "not yet", "for servers"],
)
def test_D13_a_certificate_that_does_not_count_gets_no_connection(
    rig: Rig, authority: str, said: Any
) -> None:
    shown = getattr(rig, authority).issue("refused", URI, **said)
    with pytest.raises(NO_ANSWER):
        rig.ask("by-uri", shown)
    connection = rig.connection(shown)
    with pytest.raises(NO_ANSWER):  # nor anything that needs no proof
        answered(connection)
    connection.close()


def test_an_authority_of_clients_is_no_client_itself(rig: Rig) -> None:
    shown = rig.clients.issue("sub-ca", URI, is_ca=True)
    assert rig.ask("by-uri", shown) == "client_certificate_missing"


@pytest.mark.parametrize("more", [{"key_cert_sign": True}, {"crl_sign": True}])
def test_whoever_may_sign_for_others_is_no_client_either(rig: Rig, more: dict[str, bool]) -> None:
    names = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    no = dict.fromkeys(
        (*names, "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"), False
    )
    usage = x509.KeyUsage(digital_signature=True, **(no | more))
    assert rig.ask("by-uri", rig.clients.issue("signs", URI, more=(usage,))) == (
        "client_certificate_missing"
    )


def test_an_intermediate_that_is_named_counts_without_its_root(
    rig: Rig, ca_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuing = ca_in(rig.folder, "issuing", rig.strangers)
    context = _context(
        read_certificate(*[(rig.folder / "anchor.pem").read_bytes()] * 2), issuing.pem
    )
    server = listening()
    url = f"https://127.0.0.1:{server.getsockname()[1]}"
    authority = organisations_authority(
        read_configuration(rig.config, needs_policy=False), None, url
    )
    monkeypatch.setattr(rig, "port", server.getsockname()[1])
    with serving(authority.asgi(), server, context):
        assert rig.ask("by-uri", issuing.issue("below", URI)) == PROVEN
        for other in (rig.strangers, ca_in(rig.folder, "another", rig.strangers)):
            with pytest.raises(NO_ANSWER):
                rig.ask("by-uri", other.issue("beside", URI))
    authority.close()


def test_no_authority_of_the_system_counts(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(rig.strangers.file))
    found = listener_context(read_configuration(rig.config, needs_policy=False))
    assert found is not None
    subjects = [each["subject"] for each in found.make().get_ca_certs()]  # type: ignore[attr-defined]  # of our own subclass
    assert subjects == [((("commonName", "clients"),),)]


def test_plain_http_gets_no_answer(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.port), 10) as plain:
        plain.sendall(b"GET /jwks HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        try:
            answer = plain.recv(1000)
        except ConnectionError:
            answer = b""
    assert not answer.startswith(b"HTTP")


def test_D13_old_tls_is_refused(rig: Rig) -> None:
    context = rig.context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with socket.create_connection(("127.0.0.1", rig.port), 10) as plain:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            context.wrap_socket(plain, server_hostname="127.0.0.1")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", rig.port), 10) as plain:
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as secured:
            assert secured.version() == "TLSv1.2"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_no_session_is_taken_up_again(rig: Rig, version: ssl.TLSVersion) -> None:
    """What is taken up again shows no certificate, and TLS would verify none."""
    context, session = rig.context("by-uri"), None
    context.minimum_version = context.maximum_version = version
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", rig.port), 10) as plain:
            secured = context.wrap_socket(plain, server_hostname="127.0.0.1", session=session)
            head = f"GET /jwks HTTP/1.1\r\nHost: 127.0.0.1:{rig.port}\r\nConnection: close\r\n\r\n"
            secured.sendall(head.encode())
            assert b"".join(iter(lambda: secured.recv(4096), b"")).startswith(b"HTTP/1.1 200")  # noqa: B023 - read at once
            assert not secured.session_reused
            session = secured.session
            assert session is None or not session.has_ticket
            secured.unwrap().close()


# -- what an application is told -------------------------------------------------------------------------------------------


class Recorder:
    """An application that keeps the scopes that it is called with."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def test_scopes_have_the_tls_extension_of_their_own_connection(rig: Rig) -> None:
    recorder, server = Recorder(), listening()
    url = f"https://127.0.0.1:{server.getsockname()[1]}"
    context = listener_context(read_configuration(rig.config, needs_policy=False))
    with serving(recorder, server, context):
        for certificate, version in (("by-subject", "TLSv1_3"), (None, "TLSv1_2")):
            verify = rig.context(certificate)
            verify.maximum_version = ssl.TLSVersion[version]
            with httpx.Client(verify=verify, trust_env=False) as client:
                assert client.get(url).status_code == 204
    with_one, without = (scope["extensions"]["tls"] for scope in recorder.scopes)
    (leaf,) = with_one["client_cert_chain"]
    assert rig.certificates["by-subject"].read_text().startswith(leaf)
    assert (with_one["client_cert_name"], with_one["tls_version"]) == ("CN=bot,O=A", 0x0304)
    assert with_one["cipher_suite"] in range(0x1301, 0x1306)
    assert (without["client_cert_chain"], without["client_cert_name"]) == ([], None)
    assert (without["tls_version"], without["cipher_suite"] >> 8) == (0x0303, 0xC0)
    for tls in (with_one, without):
        assert (tls["client_cert_error"], tls["server_cert"]) == (None, None)


@pytest.mark.parametrize("ends", ["shutdown", "timeout_keep_alive_handler"])
def test_an_idle_connection_ends_without_the_other_ends_goodbye(rig: Rig, ends: str) -> None:
    """A client that keeps a connection for later doesn't look at it; TLS would wait for it, and count the connection."""
    server = listening()
    port = server.getsockname()[1]
    runner = server_of(
        Recorder(), listener_context(read_configuration(rig.config, needs_policy=False))
    )
    runner.config.timeout_keep_alive = 60
    thread = threading.Thread(target=runner.run, args=([server],))
    thread.start()
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=rig.context())
    try:
        assert answered(connection) == 204
        (idle,) = runner.server_state.connections
        idle.loop.call_soon_threadsafe(getattr(idle, ends))
        limit = time.monotonic() + 60
        while runner.server_state.connections and time.monotonic() < limit:
            time.sleep(0.01)  # nothing tells
        assert not runner.server_state.connections
    finally:
        connection.close()
        runner.should_exit = True
        thread.join(10)


@pytest.mark.parametrize("ends", ["shutdown", "timeout_keep_alive_handler"])
def test_an_answer_that_is_still_on_its_way_is_sent_to_its_end(rig: Rig, ends: str) -> None:
    server, size = listening(), 16 * 1024 * 1024  # more than sockets hold
    context = listener_context(read_configuration(rig.config, needs_policy=False))

    async def long(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(size)})

    runner = server_of(long, context)
    runner.config.timeout_keep_alive = 60
    thread = threading.Thread(target=runner.run, args=([server],))
    thread.start()
    port = server.getsockname()[1]
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=rig.context())
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        (sending,) = runner.server_state.connections
        ended = threading.Event()
        sending.loop.call_soon_threadsafe(
            lambda: (sending.cycle.response_complete and getattr(sending, ends)(), ended.set())
        )
        assert ended.wait(10)
        assert len(answer.read()) == size
    finally:
        connection.close()
        runner.should_exit = True
        thread.join(10)


def test_keys_show_nowhere(agent: Agents, rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    identity = agent("by-uri")
    sent_headers(identity, rig)
    rig.ask("by-uri", "other")
    configuration = read_configuration(rig.config, needs_policy=False)
    context = listener_context(configuration)
    shown = [caplog.text, repr(configuration), repr(context), repr(vars(context)), repr(identity)]
    for name in ("anchor.pem", "by-uri.pem", "other.pem"):
        key = (rig.folder / name).read_text().partition("PRIVATE KEY-----\n")[2][:60]
        assert key
        assert not [text for text in shown if key in text]


# -- the command -----------------------------------------------------------------------------------------------------------


def test_the_command_says_where_it_is_and_serves_there(agent: Agents, rig: Rig) -> None:
    run = "from agent_identity.cli import main; main()"
    options = ["--config", rig.config, "--state-dir", rig.folder / "state", "--port", 0]
    process = subprocess.Popen(
        [sys.executable, "-c", run, "authority", "serve", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline().split() for _ in range(3)]
        url = lines[0][1]
        assert url.startswith("https://127.0.0.1:")
        assert lines[1] == ["metadata", f"{url}/.well-known/oauth-authorization-server"]
        assert lines[2] == ["client", "by-dns", "(tls_client_auth)"]
        with httpx.Client(verify=rig.context(), trust_env=False) as client:
            metadata, jwks = client.get(lines[1][1]).json(), client.get(f"{url}/jwks").json()
        assert (metadata["issuer"], metadata["token_endpoint"]) == (url, f"{url}/token")
        assert "tls_client_auth" in metadata["token_endpoint_auth_methods_supported"]
        headers = sent_headers(agent("by-uri", url=url), rig)
        assert principal_in(headers, url, jwks, rig) == "alice"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)


@pytest.mark.parametrize(
    ("key", "place", "code"),
    [
        ("certificate", "nowhere.pem", "secret_missing"),
        ("certificate", "clients.pem", "certificate_unusable"),
        ("key", "by-uri.pem", "certificate_unusable"),
        ("key", "clients.pem", "certificate_unusable"),
        ("client_ca", "by-uri.pem", "authorities_unusable"),
        ("client_ca", "anchor.toml", "authorities_unusable"),
        ("client_ca", "open.pem", "secret_unsafe"),
    ],
)
def test_what_cannot_be_used_shows_before_anything_is_served(
    rig: Rig, key: str, place: str, code: str
) -> None:
    rig.put("open.pem", rig.clients.pem).chmod(0o622)
    before, _, after = tables(rig.idp).partition(f'{key} = "file:')
    config = rig.put("wrong.toml", f'{before}{key} = "file:{place}"{after.partition(chr(34))[2]}')
    options = ["--config", str(config), "--state-dir", str(rig.folder / "none"), "--port", "0"]
    done = CliRunner().invoke(app, ["authority", "serve", *options])
    assert (done.exit_code, done.output.partition(":")[0]) == (2, code)
    assert "BEGIN" not in done.output


def test_what_openssl_does_not_take_shows_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is too short for it, for one."""
    monkeypatch.setattr("agent_identity.cli.listener.shows", lambda *_: False)
    with pytest.raises(ConfigurationError) as caught:
        listener_context(read_configuration(rig.config, needs_policy=False))
    assert caught.value.code == "certificate_unusable"


def test_doctor_looks_at_the_certificate_its_key_and_the_authorities(rig: Rig) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json", "--config", str(rig.config)])
    found = {each["check"]: each["status"] for each in json.loads(done.stdout)["checks"]}
    for key in ("certificate", "key", "client_ca"):
        assert found[f"authority.tls.{key}"] in {"ok", "warning"}  # they end within the hour
    config = rig.put(
        "wrong.toml", tables(rig.idp).replace('key = "file:anchor', 'key = "file:other')
    )
    done = CliRunner().invoke(app, ["doctor", "--json", "--config", str(config)])
    found = {each["check"]: each["status"] for each in json.loads(done.stdout)["checks"]}
    assert found["authority.tls.certificate"] == "failed"
