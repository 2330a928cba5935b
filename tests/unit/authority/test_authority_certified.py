# SPDX-License-Identifier: Apache-2.0
"""Clients whose proof is the certificate of their connection, and what stands in for it: nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509

from agent_identity.authority import Authority, Organisation, configured_client
from agent_identity.authority.client_proofs import Certified, OwnAssertion, SanDns, SanUri
from agent_identity.authority.organisation import alone
from agent_identity.flow import HttpRequest, pure
from agent_identity.keys.certificates import ShownCertificate
from agent_identity.keys.signing import SigningKey, public_signing_jwk

ANCHOR = "https://agents.acme.example"
BOT = "spiffe://acme.example/bot"
EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
PROVEN = "grants_only"
"""What a client is told once it is proven: it asked for no grant."""


class Desk:
    """An anchor with a client of each kind; its clock is the certificates' own."""

    def __init__(self, make_rig: Callable[..., Any], client: type, clock: Any, ca: Any) -> None:
        clock.now = time.time()
        self.clock = clock
        self.key = SigningKey.generate()
        keys = SimpleNamespace(key=lambda _: pure(public_signing_jwk(self.key)))
        common: dict[str, Any] = {"resources": ["https://billing.example"]}
        clients = [
            configured_client("bot", "urn:x:bot", Certified(SanUri(BOT)), **common),
            configured_client("other", "urn:x:other", Certified(SanUri(f"{BOT}2")), **common),
            configured_client("signer", "urn:x:signer", OwnAssertion(keys), **common),
        ]
        organisation = Organisation(
            {each.client_id: each for each in clients}, {}, [ANCHOR], alone, registers=True
        )
        self.rig = make_rig(issuer=ANCHOR, organisation=organisation)
        self.authority: Authority = self.rig.authority
        self.signer = client(self.rig, "signer", self.key, "urn:x:signer")
        self.registered = self.rig.client()
        self.ca = ca
        self.certificate = ca.issue("bot", x509.UniformResourceIdentifier(BOT)).read_text()

    def said(
        self,
        client_id: str | None = "bot",
        certificate: str | None = None,
        path: str = "/token",
        headers: dict[str, str] | None = None,
        **form: Any,
    ) -> tuple[int, str, str]:
        fields = {"grant_type": EXCHANGE, "client_id": client_id, "token": "x"} | form
        given = urlencode({name: value for name, value in fields.items() if value is not None})
        sent = {"Content-Type": "application/x-www-form-urlencoded"} | (headers or {})
        request = HttpRequest("POST", f"{ANCHOR}{path}", sent, given.encode())
        response = self.authority.handle(request, certificate)
        found = json.loads(response.body)
        return response.status, found.get("error"), found.get("error_description")


@pytest.fixture
def desk(make_rig: Callable[..., Any], bot: Any, clock: Any, make_ca: Any) -> Desk:
    return Desk(make_rig, type(bot), clock, make_ca())


def invalid(why: str) -> tuple[int, str, str]:
    return 401, "invalid_client", why


def test_a_certificate_with_the_clients_name_proves_it(desk: Desk) -> None:
    assert desk.said(certificate=desk.certificate)[2] == PROVEN


def test_no_certificate_proves_nobody(desk: Desk) -> None:
    assert desk.said() == invalid("client_certificate_missing")
    assert desk.said(certificate="x") == invalid("client_certificate_missing")


def test_another_clients_certificate_proves_nobody(desk: Desk) -> None:
    assert desk.said("other", desk.certificate) == invalid("client_mismatch")
    assert desk.said("nobody", desk.certificate) == invalid("client_unknown")


def test_a_certificate_alone_does_not_say_which_client_it_is(desk: Desk) -> None:
    assert desk.said(None, desk.certificate) == invalid("client_assertion_missing")


@pytest.mark.parametrize(
    ("seconds", "why"),
    [(3590, PROVEN), (3602, "expired"), (-3590, PROVEN), (-3602, "not_yet_valid")],
)
def test_a_certificate_is_looked_at_with_each_request(desk: Desk, seconds: int, why: str) -> None:
    """A connection may outlive what it was made with."""
    desk.clock.now += seconds
    assert desk.said(certificate=desk.certificate)[2] == why


def test_a_certificate_is_no_assertion(desk: Desk) -> None:
    assert desk.said("signer", desk.certificate) == invalid("method_mismatch")
    registered = desk.registered.client_id
    assert desk.said(registered, desk.certificate) == invalid("method_mismatch")
    assert desk.said("signer") == invalid("client_assertion_missing")


def assertion(desk: Desk, **claims: Any) -> dict[str, str]:
    kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
    return {
        "client_assertion": desk.signer.assertion(**claims),
        "client_assertion_type": kind,
    }


def test_an_assertion_is_no_certificate(desk: Desk) -> None:
    own = assertion(desk, iss="bot", sub="bot")
    for certificate in (None, desk.certificate):
        assert desk.said("bot", certificate, **own) == invalid("method_mismatch")


def test_a_meshs_certificate_changes_nothing_for_who_signs(desk: Desk) -> None:
    assert desk.said("signer", desk.certificate, **assertion(desk))[2] == PROVEN
    forged = assertion(desk, aud="https://other.example")
    assert desk.said("signer", desk.certificate, **forged) == invalid("audience_mismatch")


def test_a_shared_secret_beside_a_certificate_is_refused(desk: Desk) -> None:
    refused = invalid("shared_secret_refused")
    assert desk.said("bot", desk.certificate, client_secret="s") == refused
    basic = {"Authorization": "Basic Ym90OnM="}
    assert desk.said("bot", desk.certificate, headers=basic) == refused


@pytest.mark.parametrize("path", ["/introspect", "/revoke"])
def test_it_proves_the_client_wherever_clients_prove_themselves(desk: Desk, path: str) -> None:
    assert desk.said("bot", desk.certificate, path)[0] == 200
    assert desk.said("bot", None, path) == invalid("client_certificate_missing")


def test_the_metadata_names_the_method(desk: Desk) -> None:
    found = desk.rig.body(desk.rig.get(f"{ANCHOR}/.well-known/oauth-authorization-server"))
    for endpoint in ("token", "introspection", "revocation"):
        assert found[f"{endpoint}_endpoint_auth_methods_supported"] == [
            "private_key_jwt",
            "tls_client_auth",
        ]


# -- where the certificate comes from --------------------------------------------------------------------------------------

HEADERS = ("client-cert", "client-cert-chain", "x-ssl-client-cert", "x-forwarded-client-cert")


async def asked(desk: Desk, tls: Any, headers: tuple[tuple[str, str], ...] = ()) -> str:
    """The refusal that a request by ASGI gets."""
    form = urlencode({"grant_type": EXCHANGE, "client_id": "bot"}).encode()
    pairs = [("content-type", "application/x-www-form-urlencoded"), *headers]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/token",
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in pairs],
    } | ({} if tls is None else {"extensions": {"tls": tls}})
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": form}

    async def send(message: Any) -> None:
        sent.append(message)

    await desk.authority.asgi()(scope, receive, send)
    return str(json.loads(sent[-1]["body"])["error_description"])


async def test_the_servers_tls_extension_brings_the_leaf(desk: Desk) -> None:
    chain = (each for each in (desk.certificate, desk.ca.pem))  # any iterable
    assert await asked(desk, {"client_cert_chain": chain}) == PROVEN
    mine_second = {"client_cert_chain": [desk.ca.pem, desk.certificate]}
    assert await asked(desk, mine_second) == "client_certificate_missing"


@pytest.mark.parametrize(
    "tls",
    [
        None,
        {},
        {"client_cert_chain": []},
        {"client_cert_chain": None, "client_cert_name": "CN=bot"},
        {"client_cert_chain": ["-----BEGIN CERTIFICATE-----"]},
        {"client_cert_chain": [b"x"]},
        {"client_cert_chain": 5},
        {"client_cert_chain": "x"},
        {"client_cert_name": "CN=bot"},
        "x",
        5,
    ],
    ids=str,
)
async def test_a_connection_without_a_certificate_has_none(desk: Desk, tls: Any) -> None:
    assert await asked(desk, tls) == "client_certificate_missing"


async def test_a_certificate_that_the_server_found_wrong_counts_as_none(desk: Desk) -> None:
    for error in ("self-signed", ""):
        tls = {"client_cert_chain": [desk.certificate], "client_cert_error": error}
        assert await asked(desk, tls) == "client_certificate_missing"


@pytest.mark.parametrize("name", HEADERS)
async def test_a_header_that_tells_of_a_certificate_is_nobodys_proof(desk: Desk, name: str) -> None:
    """RFC 9440 and its likes: whoever can reach the port can write one."""
    plain = desk.certificate.replace("\n", "")
    for tls in (None, {"client_cert_chain": []}):
        for value in (plain, f":{plain}:", f"Hash=0;Cert={plain};URI={BOT}"):
            assert await asked(desk, tls, ((name, value),)) == "client_certificate_missing"


def test_what_was_shown_is_in_no_readable_form(desk: Desk) -> None:
    from agent_identity.authority.client_proofs import Shown
    from agent_identity.authority.requests import read_request

    request = HttpRequest("POST", f"{ANCHOR}/token", {}, b"")
    assert "BEGIN" not in repr(read_request(request, desk.certificate))
    assert "BEGIN" not in repr(Shown(certificate=desk.certificate))


def test_a_name_of_other_letters_is_another_name() -> None:
    """The Kelvin sign is no k, although it is in lower case."""
    names = ("\u212aot.acme.example",)
    shown = ShownCertificate((), names, x509.Name([]), not_before=0, not_after=1)
    assert not SanDns("kot.acme.example").is_in(shown)
    assert SanDns("kot.acme.example").is_in(
        dataclasses.replace(shown, dns_names=("KOT.acme.example",))
    )
