# SPDX-License-Identifier: Apache-2.0
"""Transaction tokens, played by hand: what is asked, and what is none (draft-ietf-oauth-transaction-tokens-10)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_TOKEN,
    JWT,
    TOKEN_EXCHANGE,
    TXN_TOKEN,
)
from agent_identity.credentials.sources.transaction import (
    HEADER,
    TransactionToken,
    TransactionTokens,
)
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import HttpResponse
from agent_identity.testing import play
from agent_identity.values import Principal

DOMAIN = "trust.example"


def txn_token(rig: Any, typ: str = "txntoken+jwt", **changes: Any) -> str:
    claims = {
        "aud": DOMAIN,
        "sub": "alice",
        "txn": "their-txn",
        "scope": "invoices:read",
        "req_wl": "gateway",
        "iat": rig.NOW,
        "exp": rig.NOW + 15,
    } | changes
    return rig.signed({name: value for name, value in claims.items() if value is not None}, typ)


def answer(rig: Any, compact: str | None = None, **changes: Any) -> HttpResponse:
    members = {"issued_token_type": TXN_TOKEN, "token_type": "N_A"} | changes
    return rig.answered(compact or txn_token(rig), **members)


def fetched(
    rig: Any, answer: Any, asks: list[Any] | None = None, **changes: Any
) -> TransactionToken:
    flow = TransactionTokens(rig.issuer(), DOMAIN).fetch(
        rig.wanted(**changes), tool="pay_invoice", trace_id="4bf92f3577b34da6a3ce929d0e0e4736"
    )
    return play(flow, answer, asks=asks)


def test_the_trust_domain_is_its_audience_and_the_call_its_details(rig) -> None:
    asks: list[Any] = []
    subject = rig.Subject("alices-token")
    fetched(rig, answer(rig), asks, subject=subject)
    form = rig.form(asks[0])
    assert (form["grant_type"], form["requested_token_type"]) == (TOKEN_EXCHANGE, TXN_TOKEN)
    assert (form["audience"], form["scope"]) == (DOMAIN, "invoices:read")
    assert (form["subject_token"], form["subject_token_type"]) == ("alices-token", ACCESS_TOKEN)
    assert json.loads(form["request_details"]) == {
        "tool": "pay_invoice",
        "purpose": "close the books",
    }
    assert json.loads(form["request_context"]) == {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    assert "resource" not in form


def test_a_refresh_token_is_never_shown_for_one(rig) -> None:
    subject = rig.Subject()
    fetched(rig, answer(rig), subject=subject)
    assert subject.asked == [(ACCESS_TOKEN, JWT, ID_TOKEN)]


def test_the_services_own_transaction_is_what_is_told(rig) -> None:
    compact = txn_token(rig)
    found = fetched(rig, answer(rig, compact))
    assert (found.txn, found.token.reveal()) == ("their-txn", compact)
    assert compact not in repr(found)


def test_it_has_a_header_of_its_own() -> None:
    assert HEADER == "Txn-Token"


def test_a_token_type_is_read_without_its_case(rig) -> None:
    """RFC 6749 §5.1: the value is case insensitive."""
    assert fetched(rig, answer(rig, token_type="n_a")).txn == "their-txn"


@pytest.mark.parametrize(
    ("claims", "members", "code"),
    [
        ({}, {"issued_token_type": ACCESS_TOKEN}, "wrong_token_type"),
        ({}, {"issued_token_type": None}, "wrong_token_type"),
        ({}, {"token_type": "Bearer"}, "wrong_token_type"),
        ({}, {"token_type": "DPoP"}, "wrong_token_type"),
        ({}, {"scope": "invoices:read invoices:pay"}, "scope_widened"),
        ({"scope": "invoices:read invoices:pay"}, {"scope": None}, "scope_widened"),
        ({"typ": "JWT"}, {}, "malformed_txn_token"),
        ({"typ": "at+jwt"}, {}, "malformed_txn_token"),
        ({"aud": "other.example"}, {}, "malformed_txn_token"),
        ({"aud": [DOMAIN, "other.example"]}, {}, "malformed_txn_token"),
        ({"aud": None}, {}, "malformed_txn_token"),
        ({"txn": None}, {}, "malformed_txn_token"),
        ({"txn": ""}, {}, "malformed_txn_token"),
        ({"txn": 7}, {}, "malformed_txn_token"),
        ({"sub": "bob"}, {}, "subject_mismatch"),
        ({"iss": "https://other.example"}, {}, "issuer_mismatch"),
        ({"exp": 1_795_518_000}, {}, "already_expired"),
        ({"exp": None}, {}, "already_expired"),
    ],
)
def test_whatever_is_no_transaction_token_of_this_domain_is_refused(
    rig, claims: dict[str, Any], members: dict[str, Any], code: str
) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, answer(rig, txn_token(rig, **claims), **members))
    assert caught.value.code == code


def test_a_service_may_name_neither_itself_nor_the_principal(rig) -> None:
    assert fetched(rig, answer(rig, txn_token(rig, sub=None, iss=None))).txn == "their-txn"


def test_within_its_domain_a_foreign_principal_may_have_another_name(rig) -> None:
    principal = Principal("4711", iss="https://other-idp.example")
    assert fetched(rig, answer(rig), principal=principal).txn == "their-txn"


def test_an_opaque_one_is_none(rig) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, answer(rig, "opaque"))
    assert caught.value.code == "malformed_txn_token"


def test_without_a_token_of_the_principal_nothing_is_asked(rig) -> None:
    asks: list[Any] = []
    flow = TransactionTokens(rig.issuer(), DOMAIN).fetch(
        rig.wanted(subject=None), tool="pay_invoice", trace_id=""
    )
    with pytest.raises(CredentialRejectedError) as caught:
        play(flow, asks=asks)
    assert caught.value.code == "subject_token_missing"
    assert asks == []
