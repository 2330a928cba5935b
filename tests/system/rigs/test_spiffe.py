# SPDX-License-Identifier: Apache-2.0
"""SVIDs of a real Workload API, through the official client: as credentials, and as what a client proves itself by."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jwt
import pytest
from cryptography import x509

from agent_identity import AgentIdentity
from agent_identity.errors import CredentialUnavailableError

from .authorization_server import AuthorizationServer, with_tls
from .certificates import Keys
from .conftest import Configured, Started, WorkloadApi

pytestmark = pytest.mark.system

TOOLS = "https://mcp.example.com/tools"
PURPOSE = "close the books"


def resource(source: str, uri: str = TOOLS) -> str:
    return f"""
[resources."{uri}"]
source = "{source}"
scopes = ["tool:read"]
"""


def spiffe(api: WorkloadApi) -> str:
    return f'\n[spiffe]\nsocket = "unix:{api.socket}"\n'


def claims_of(token: str, api: WorkloadApi, audience: str) -> dict[str, object]:
    """What a service reads in a JWT-SVID, once it has checked it by the trust domain's bundle."""
    [key] = json.loads(api.jwks.read_text())["keys"]
    del key["use"]
    return jwt.decode(token, jwt.PyJWK(key).key, algorithms=["ES256"], audience=audience)


def test_a_jwt_svid_is_for_the_resource_alone(
    workload_api: WorkloadApi, configured: Configured
) -> None:
    identity = configured(resource("spiffe-jwt") + spiffe(workload_api))
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        credential = session.credential(TOOLS, ["tool:read"])
        claims = claims_of(credential.reveal(), workload_api, TOOLS)
    assert claims["sub"] == workload_api.spiffe_id
    assert claims["aud"] == [TOOLS]
    assert credential.token_type == "Bearer"


async def test_async_code_gets_svids_too(workload_api: WorkloadApi, configured: Configured) -> None:
    identity = configured(resource("spiffe-jwt") + spiffe(workload_api))
    async with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        token = (await session.acredential(TOOLS, ["tool:read"])).reveal()
    assert claims_of(token, workload_api, TOOLS)["sub"] == workload_api.spiffe_id


def test_the_environments_socket_is_found(
    workload_api: WorkloadApi, configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", f"unix:{workload_api.socket}")
    identity = configured(resource("spiffe-jwt"))
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        token = session.credential(TOOLS, ["tool:read"]).reveal()
    assert claims_of(token, workload_api, TOOLS)["aud"] == [TOOLS]


@pytest.mark.usefixtures("workload_api")  # asked for what it needs to be installed
@pytest.mark.parametrize("source", ["spiffe-jwt", "spiffe-x509"])
def test_an_agent_that_is_gone_is_worth_another_try(configured: Configured, source: str) -> None:
    """The socket's file outlives who listened there."""
    with tempfile.TemporaryDirectory(prefix="wl") as folder:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/s")
        identity = configured(resource(source) + f'\n[spiffe]\nsocket = "unix:{folder}/s"\n')
        refuses(identity)


@pytest.mark.usefixtures("workload_api")
def test_an_agent_that_isnt_there_yet_is_worth_another_try(configured: Configured) -> None:
    """A pod may start before the SPIRE agent beside it: its socket's file comes later."""
    with tempfile.TemporaryDirectory(prefix="wl") as folder:
        text = resource("spiffe-jwt") + f'\n[spiffe]\nsocket = "unix:{folder}/s"\n'
        refuses(configured(text))


def refuses(identity: AgentIdentity) -> None:
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        with pytest.raises(CredentialUnavailableError) as refused:
            session.credential(TOOLS, ["tool:read"])
        assert (refused.value.code, refused.value.retryable) == ("workload_api", True)


def test_an_x509_svid_chains_to_the_trust_domains_bundle(
    workload_api: WorkloadApi, configured: Configured
) -> None:
    identity = configured(resource("spiffe-x509") + spiffe(workload_api))
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        credential = session.credential(TOOLS, ["tool:read"])
        leaf = x509.load_pem_x509_certificate(credential.certificate_chain.encode())
    bundle = x509.load_pem_x509_certificate(workload_api.bundle.read_bytes())
    leaf.verify_directly_issued_by(bundle)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [workload_api.spiffe_id]


def test_a_rotated_svid_is_the_one_that_is_used(
    workload_api: WorkloadApi, configured: Configured
) -> None:
    identity = configured(resource("spiffe-x509") + spiffe(workload_api))

    def serial() -> int:
        with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
            chain = session.credential(TOOLS, ["tool:read"]).certificate_chain
        return x509.load_pem_x509_certificate(chain.encode()).serial_number

    first, patience = serial(), time.monotonic() + 2 * workload_api.seconds
    while serial() == first:
        assert time.monotonic() < patience
        time.sleep(0.1)


@pytest.mark.usefixtures("trusting_the_rig")
def test_a_session_shows_its_svid_in_tls(
    workload_api: WorkloadApi, configured: Configured, keys: Keys
) -> None:
    with mutual_tls(keys, workload_api) as (origin, shown):
        identity = configured(resource("spiffe-x509", origin) + spiffe(workload_api))
        with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
            answer = session.http(origin).get("/")
    assert answer.status_code == 204
    assert shown == [workload_api.spiffe_id]


@pytest.mark.usefixtures("trusting_the_rig")
async def test_an_async_session_shows_its_svid_in_tls(
    workload_api: WorkloadApi, configured: Configured, keys: Keys
) -> None:
    with mutual_tls(keys, workload_api) as (origin, shown):
        identity = configured(resource("spiffe-x509", origin) + spiffe(workload_api))
        async with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
            answer = await session.ahttp(origin).get("/")
        await identity.aclose()
    assert answer.status_code == 204
    assert shown == [workload_api.spiffe_id]


@contextmanager
def mutual_tls(keys: Keys, api: WorkloadApi) -> Iterator[tuple[str, list[str]]]:
    """A service that wants a certificate of the trust domain: where it is, and the names that it saw."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    shown: list[str] = []

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            certificate = self.connection.getpeercert()
            shown.extend(value for kind, value in certificate["subjectAltName"] if kind == "URI")
            self.send_response(204)
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(api.bundle))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(keys.server.certificate, keys.server.key)
    service = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    service.socket = context.wrap_socket(service.socket, server_side=True)
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://127.0.0.1:{service.server_port}", shown
    finally:
        service.shutdown()
        service.server_close()
        thread.join()


# -- as what a client proves itself by ------------------------------------------------------------------------------------


def issuer(server: AuthorizationServer, client_id: str, *lines: str, binding: str = "dpop") -> str:
    return "\n".join(
        (
            "[issuers.acme]",
            f'issuer = "{server.issuer}"',
            f'client_id = "{client_id}"',
            *lines,
            f'[resources."{TOOLS}"]',
            'source = "client-credentials"',
            f'binding = "{binding}"',
            'scopes = ["tool:read"]',
        )
    )


def token_of(identity: AgentIdentity) -> str:
    with identity.autonomous(trigger="cron:nightly", purpose=PURPOSE) as session:
        return session.credential(TOOLS, ["tool:read"]).reveal()


def test_a_client_proves_itself_by_a_jwt_svid(
    workload_api: WorkloadApi, started: Started, configured: Configured
) -> None:
    """draft-ietf-oauth-spiffe-client-auth: the SVID's audience is the issuer."""
    known = {"svid": workload_api.spiffe_id}
    spiffe_clients = json.dumps({"jwks": str(workload_api.jwks), "clients": known})
    with started(SPIFFE=spiffe_clients) as server:
        text = issuer(server, "svid", 'client_auth = "spiffe_jwt"') + spiffe(workload_api)
        identity = configured(text)
        assert server.claims(token_of(identity), TOOLS)["client_id"] == "svid"
        [svid] = server.seen("/svid")
    assert (svid["form"]["sub"], svid["form"]["aud"]) == (workload_api.spiffe_id, [server.issuer])


@pytest.mark.usefixtures("trusting_the_rig")
def test_a_client_proves_itself_by_an_x509_svid(
    workload_api: WorkloadApi, started: Started, configured: Configured, keys: Keys
) -> None:
    """RFC 8705 §2.1 with the SPIFFE ID as the certificate's URI; the token is bound to the SVID."""
    with started(**with_tls(keys, workload_api.bundle)) as server:
        lines = ('client_auth = "tls_client_auth"', f'endpoint_origins = ["{server.mtls}"]')
        text = issuer(server, "of-a-ca", *lines, binding="mtls") + spiffe(workload_api)
        claims = server.claims(token_of(configured(text)), TOOLS)
    assert claims["client_id"] == "of-a-ca"
    assert set(claims["cnf"]) == {"x5t#S256"}
