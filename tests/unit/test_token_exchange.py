# SPDX-License-Identifier: Apache-2.0
"""Token exchange, played by hand: what is asked, and which answers are refused (RFC 8693 §2.2.1, RFC 9449 §5)."""

from __future__ import annotations

import json
from dataclasses import replace
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs

import pytest

from agent_identity import jose
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.credentials.oauth.metadata import Endpoints
from agent_identity.credentials.oauth.requests import Issued
from agent_identity.credentials.oauth.responses import Fields, read_answer
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, JWT
from agent_identity.credentials.source import SubjectToken, Wanted
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.credentials.workload.tokens import WorkloadToken
from agent_identity.delegation.grant import mint_root
from agent_identity.errors import (
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import Ask, HttpRequest, HttpResponse, pure
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import KnownIssuer, assert_no_leak, play
from agent_identity.values import Principal, Secret

NOW = 1_795_518_000
BILLING = "https://billing.example"
AGENT = Agent("urn:agent-identity:agent:invoice-bot")
ANCHOR = SigningKey.generate()
ENDPOINTS = Endpoints(
    "https://idp.example", "https://idp.example/token", None, None, None, None, NOW, NOW + 300
)
LEAF = mint_root(
    ANCHOR,
    ANCHOR.thumbprint,
    iss="https://idp.example",
    principal_sub="alice",
    sub_iss="https://idp.example",
    sub_profile="user",
    agent=AGENT.uri,
    jkt=AGENT.key.thumbprint,
    aud=[BILLING],
    scopes=["invoices:read"],
    purpose="close the books",
    task=None,
    txn="ses_1",
    now=NOW,
    expires_at=NOW + 900,
    max_depth=3,
    evidence="issuer",
)
CLAIMS: dict[str, Any] = {
    "iss": "https://idp.example",
    "sub": "alice",
    "aud": BILLING,
    "act": {"sub": AGENT.uri},
    "cnf": {"jkt": AGENT.key.thumbprint},
    "exp": NOW + 300,
    "jti": "tok_1",
}
ANSWER: dict[str, Any] = {
    "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
    "token_type": "DPoP",
    "expires_in": 300,
    "scope": "invoices:read",
}


def token(**changes: Any) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if value is not None}
    return ANCHOR.compact(jose.encode_header("ES256", typ="at+jwt"), json.dumps(claims).encode())


def answered(access_token: str | None = None, **changes: Any) -> HttpResponse:
    members = ANSWER | {"access_token": access_token or token()} | changes
    document = {name: value for name, value in members.items() if value is not None}
    return HttpResponse(200, {"content-type": "application/json"}, json.dumps(document).encode())


class Subject:
    def __init__(self, token: str) -> None:
        self._token = token

    def token(self, issuer: Any, types: Any, /) -> Any:
        return pure(SubjectToken(Secret(self._token), JWT))


def wanted(subject: str = "the-subject-token") -> Wanted:
    return Wanted(
        resource=BILLING,
        scopes=frozenset({"invoices:read"}),
        principal=Principal("alice"),
        subject=Subject(subject),
        chain=(LEAF,),
        agent=AGENT.uri,
        proof_key=AGENT.proof_key,
        txn="ses_1",
        purpose="close the books",
    )


def exchange(*answers: Any, asks: list[Ask] | None = None, **changes: Any) -> Issued:
    client = Client("client-1", PrivateKeyJwt(SigningKey.generate()))
    issuer = KnownIssuer(ENDPOINTS, client, clock=lambda: NOW)
    source = TokenExchange(issuer, **({"actor": "grant", "names_principal": True} | changes))
    return play(source.fetch(wanted()), *answers, asks=asks)


def test_a_good_answer_becomes_a_bound_credential() -> None:
    issued = exchange(answered())
    assert (issued.token_type, issued.resource, issued.scopes) == (
        *("DPoP", BILLING, {"invoices:read"}),
    )
    assert (issued.expires_at, issued.jti) == (NOW + 300, "tok_1")


def test_subject_actor_resource_and_scope_are_what_is_asked_with() -> None:
    asks: list[Ask] = []
    exchange(answered(), asks=asks)
    (request,) = asks
    assert isinstance(request, HttpRequest)
    form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:token-exchange"
    assert form["subject_token"] == "the-subject-token"
    assert form["actor_token"] == LEAF.compact
    assert form["actor_token_type"] == "urn:ietf:params:oauth:token-type:jwt"
    assert (form["resource"], form["scope"]) == (BILLING, "invoices:read")
    assert request.headers["Agent-Delegation"] == LEAF.compact
    assertion = jose.loads_object(jose.unverified(form["client_assertion"]).payload)
    assert (assertion["iss"], assertion["sub"], assertion["aud"]) == (
        *("client-1", "client-1", "https://idp.example"),
    )
    proof = jose.unverified(request.headers["DPoP"])
    assert jose.loads_object(proof.payload)["htu"] == "https://idp.example/token"
    assert proof.header["jwk"] == AGENT.key.public_jwk


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answered(token_type="Bearer"), "binding_missing"),
        (answered(token_type="N_A"), "binding_missing"),
        (answered(issued_token_type=None), "wrong_token_type"),
        (answered(issued_token_type="urn:ietf:params:oauth:token-type:jwt"), "wrong_token_type"),
        (answered(scope="invoices:read invoices:pay"), "scope_widened"),
        (answered(scope="invoices:other"), "scope_widened"),
        (answered(scope=""), "scope_narrowed"),
        (answered(token(cnf=None)), "binding_missing"),
        (answered(token(cnf={"jkt": "another"})), "binding_missing"),
        (answered(token(cnf="x")), "binding_missing"),
        (answered(token(aud="https://mail.example")), "audience_mismatch"),
        (answered(token(aud=[BILLING, "https://mail.example"])), "audience_mismatch"),
        (answered(token(aud=None)), "audience_mismatch"),
        (answered(token(sub="bob")), "subject_mismatch"),
        (answered(token(act={"sub": "urn:agent-identity:agent:other"})), "subject_mismatch"),
        (answered(token(act=None)), "subject_mismatch"),
    ],
)
def test_an_answer_for_anything_else_is_refused(answer: HttpResponse, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        exchange(answer)
    assert caught.value.code == code


def test_an_absent_scope_means_as_asked_and_an_absent_life_a_minute() -> None:
    issued = exchange(answered(token(exp=None), scope=None, expires_in=None))
    assert (issued.scopes, issued.expires_at) == ({"invoices:read"}, NOW + 60)


def test_the_earlier_of_two_ends_counts() -> None:
    assert exchange(answered(token(exp=NOW + 30))).expires_at == NOW + 30
    assert exchange(answered(expires_in=20)).expires_at == NOW + 20
    assert exchange(answered(token(exp=None), expires_in=10**9)).expires_at == NOW + 86_400


def test_an_opaque_token_is_taken_at_its_issuers_word() -> None:
    issued = exchange(answered("opaque-token-0123456789"))
    assert (issued.jti, issued.token_type) == (None, "DPoP")


@pytest.mark.parametrize(
    ("answer", "expected", "code"),
    [
        (
            HttpResponse(400, {}, b'{"error":"invalid_target"}'),
            CredentialRejectedError,
            "invalid_target",
        ),
        (
            HttpResponse(400, {}, b'{"error":"something new"}'),
            CredentialRejectedError,
            "unknown_error",
        ),
        (HttpResponse(403, {}, b"<html>"), CredentialRejectedError, "unreadable_error"),
        (HttpResponse(429), CredentialUnavailableError, "issuer_busy"),
        (HttpResponse(500), CredentialUnavailableError, "issuer_busy"),
        (HttpResponse(307), CredentialRejectedError, "redirected"),
        (
            TransportError("exchange_failed", "down"),
            CredentialUnavailableError,
            "issuer_unreachable",
        ),
    ],
)
def test_a_refusal_is_final_and_an_outage_is_not(answer: Any, expected: type, code: str) -> None:
    with pytest.raises(expected) as caught:
        exchange(*([answer] * (3 if expected is CredentialUnavailableError else 1)))
    assert caught.value.code == code
    assert caught.value.retryable is (expected is CredentialUnavailableError)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("1000000000", 3600.0),
        ("99999", 3600.0),
        (formatdate(NOW + 7, usegmt=True), 7.0),
        (formatdate(NOW - 7, usegmt=True), 0.0),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
        ("-1", None),
        ("soon", None),
        (None, None),
    ],
)
def test_an_issuers_word_on_when_to_come_back_is_kept_and_capped(header: Any, seconds: Any) -> None:
    headers = {} if header is None else {"retry-after": header}
    with pytest.raises(CredentialUnavailableError) as caught:
        exchange(*[HttpResponse(503, headers)] * 3)
    assert caught.value.retry_after == seconds


def test_a_nonce_is_met_with_a_new_assertion_and_a_new_proof() -> None:
    asks: list[Any] = []
    challenge = HttpResponse(
        400,
        {"content-type": "application/json", "dpop-nonce": "n-1"},
        b'{"error":"use_dpop_nonce"}',
    )
    exchange(challenge, answered(), asks=asks)
    first, second = asks
    assert jose.loads_object(jose.unverified(second.headers["DPoP"]).payload)["nonce"] == "n-1"
    one, two = (parse_qs(ask.body.decode())["client_assertion"] for ask in (first, second))
    assert one != two


@pytest.mark.parametrize("token_type", [JWT, ACCESS_TOKEN])
def test_a_workloads_token_goes_as_the_type_that_it_is(token_type: str) -> None:
    asks: list[Any] = []
    given = WorkloadToken(Secret("the-workload-token"), NOW, NOW + 60, token_type)
    exchange(answered(), asks=asks, actor="workload", workload=lambda: pure(given))
    form = {name: values[0] for name, values in parse_qs(asks[0].body.decode()).items()}
    assert (form["actor_token"], form["actor_token_type"]) == ("the-workload-token", token_type)


def form_of(request: Any) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(request.body.decode()).items()}


def test_the_clients_own_access_token_can_be_the_actor() -> None:
    """Zitadel takes an access token or an ID token as actor_token, and no JWT of ours."""
    asks: list[Any] = []
    own = HttpResponse(
        200,
        {"content-type": "application/json"},
        json.dumps({"access_token": "the-clients-token", "token_type": "Bearer"}).encode(),
    )
    exchange(own, answered(), asks=asks, actor="client")
    first, second = map(form_of, asks)
    assert first["grant_type"] == "client_credentials"
    assert not {"resource", "scope", "subject_token"} & first.keys()
    assert (second["actor_token"], second["actor_token_type"]) == (
        *("the-clients-token", ACCESS_TOKEN),
    )


def test_a_token_goes_as_the_type_that_is_configured() -> None:
    asks: list[Any] = []
    exchange(answered(), asks=asks, sent_as="urn:acme:legacy-token")
    assert form_of(asks[0])["subject_token_type"] == "urn:acme:legacy-token"
    assert form_of(asks[0])["grant_type"].endswith(":token-exchange")


FEDERATED = "http://auth0.com/oauth/token-type/federated-connection-access-token"
VAULT: dict[str, Any] = {
    "kind": "auth0-token-vault",
    "actor": "none",
    "names_principal": False,
    "binding": "none",
    "parameters": (("connection", "google-oauth2"),),
}


def test_a_token_of_the_vault_is_asked_for_by_its_connection_alone() -> None:
    asks: list[Any] = []
    answer = answered("ya29.a0", token_type="Bearer", issued_token_type=FEDERATED)
    issued = exchange(answer, asks=asks, audience="https://other.example", **VAULT)
    form = form_of(asks[0])
    grant = "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token"
    assert (form["grant_type"], form["requested_token_type"]) == (grant, FEDERATED)
    assert (form["connection"], form["subject_token"]) == ("google-oauth2", "the-subject-token")
    assert not {"resource", "audience"} & form.keys()
    assert (issued.token_type, issued.is_opaque) == ("Bearer", True)


def test_the_vault_is_asked_for_another_providers_token_and_takes_no_other() -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        exchange(answered("ya29.a0", token_type="Bearer"), **VAULT)
    assert caught.value.code == "wrong_token_type"


UNSENDABLE = {
    "a line break": "abc\r\nX-Injected: 1",
    "a foreign character": "abc\u00e9",
    "a space": "abc def",
    "a control character": "abc\x7f",
    "nothing but space": " ",
}


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE)
@pytest.mark.parametrize("member", ["access_token", "token_type", "issued_token_type"])
def test_what_an_issuer_calls_a_token_is_visible_ascii_without_spaces(text, member) -> None:
    """It becomes a header; a line break would begin another one."""
    with pytest.raises(CredentialRejectedError) as caught:
        exchange(answered(**{member: text}))
    expected = {"token_type": "binding_missing", "issued_token_type": "wrong_token_type"}
    assert caught.value.code == expected.get(member, "malformed_token")
    assert_no_leak([text], caught.value)


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE)
@pytest.mark.parametrize("member", ["refresh_token", "id_token"])
def test_the_tokens_beside_it_are_held_to_the_same(text, member) -> None:
    fields = Fields({"access_token": "a", "token_type": "Bearer", member: text})
    with pytest.raises(CredentialRejectedError) as caught:
        read_answer(fields, "https://idp.example", may_refresh=True)
    assert caught.value.code == "malformed_token"
    assert_no_leak([text], caught.value)


@pytest.mark.parametrize("text", UNSENDABLE.values(), ids=UNSENDABLE)
def test_no_source_brings_what_no_header_carries(text) -> None:
    if text == "abc def":
        return  # an API key may hold a space
    with pytest.raises(CredentialRejectedError) as caught:
        Issued(Secret(text), "Bearer", BILLING, "mine", frozenset(), 0.0, 1e12)
    assert caught.value.code == "malformed_token"
    assert_no_leak([text], caught.value)
    issued = Issued(Secret("a"), "Bearer", BILLING, "mine", frozenset(), 0.0, 1e12)
    with pytest.raises(CredentialRejectedError):
        replace(issued, txn_token=Secret(text))


@pytest.mark.parametrize("nonce", ["a\r\nb", "a\tb", "\u00e9", "", "a" * 513])
def test_a_nonce_that_is_none_is_not_kept(nonce) -> None:
    nonces = Nonces()
    nonces.learn(BILLING, nonce)
    assert nonces.get(BILLING) is None
