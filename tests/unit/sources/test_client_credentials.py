# SPDX-License-Identifier: Apache-2.0
"""Client credentials, played by hand: what is asked, how it is bound, and what of a step-up goes along (RFC 6749 §4.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity.credentials.source import StepUp
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import pure
from agent_identity.testing import play

DETAIL = {"type": "payment", "actions": ["read", "pay"], "locations": ["https://billing.example"]}


def fetched(rig: Any, answer: Any, *, asks: list[Any] | None = None, **parts: Any) -> Any:
    wanted = parts.pop("wanted", None) or rig.wanted()
    issuer = parts.pop("issuer", None) or rig.issuer()
    return play(ClientCredentials(issuer, **parts).fetch(wanted), answer, asks=asks)


def test_resource_and_scope_are_asked_for_and_nobodys_token_goes_along(rig) -> None:
    asks: list[Any] = []
    fetched(rig, rig.answered(), asks=asks)
    form = rig.form(asks[0])
    assert form["grant_type"] == "client_credentials"
    assert (form["resource"], form["scope"]) == (rig.BILLING, "invoices:read")
    assert not {"subject_token", "actor_token", "audience"} & form.keys()


def test_no_scope_is_asked_for_where_none_is_wanted(rig) -> None:
    asks: list[Any] = []
    fetched(rig, rig.answered(scope=None), asks=asks, wanted=rig.wanted(scopes=frozenset()))
    assert "scope" not in rig.form(asks[0])


def test_a_configured_audience_is_asked_for_and_insisted_on(rig) -> None:
    asks: list[Any] = []
    fetched(rig, rig.answered(rig.token(aud="billing")), asks=asks, audience="billing")
    assert rig.form(asks[0])["audience"] == "billing"
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, rig.answered(), audience="billing")
    assert caught.value.code == "audience_mismatch"


def test_a_step_up_is_asked_for_in_the_form(rig) -> None:
    asks: list[Any] = []
    wanted = rig.wanted(step_up=StepUp(("phr", "mfa"), 300))
    fetched(rig, rig.answered(), asks=asks, wanted=wanted)
    form = rig.form(asks[0])
    assert (form["acr_values"], form["max_age"]) == ("phr mfa", "300")


def test_a_token_without_binding_is_sent_as_a_bearer(rig) -> None:
    asks: list[Any] = []
    answer = rig.answered(rig.token(cnf=None), token_type="Bearer")
    issued = fetched(rig, answer, asks=asks, binding="none")
    assert (issued.scheme, issued.is_bound) == ("Bearer", False)
    assert "DPoP" not in asks[0].headers


def test_a_token_bound_to_the_certificate_is_taken_with_it(rig) -> None:
    asks: list[Any] = []
    answer = rig.answered(rig.token(cnf={"x5t#S256": "the-thumbprint"}), token_type="Bearer")
    issuer = rig.issuer(certificate=lambda: pure(rig.certificate))
    issued = fetched(rig, answer, asks=asks, binding="mtls", issuer=issuer)
    assert (issued.certificate, issued.is_bound) == (rig.certificate, True)
    assert asks[0].certificate == rig.certificate


@pytest.mark.parametrize(
    "cnf", [None, {"x5t#S256": "another"}, {"jkt": "the-thumbprint"}, "the-thumbprint"]
)
def test_a_token_bound_to_another_certificate_is_refused(rig, cnf: Any) -> None:
    issuer = rig.issuer(certificate=lambda: pure(rig.certificate))
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(
            rig,
            rig.answered(rig.token(cnf=cnf), token_type="Bearer"),
            binding="mtls",
            issuer=issuer,
        )
    assert caught.value.code == "binding_missing"


def test_a_certificate_binding_without_a_certificate_is_never_dropped_in_silence(rig) -> None:
    """An opaque token shows nothing of its binding, so that what was shown in TLS is all that is known."""
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, rig.answered("opaque-token", token_type="Bearer"), binding="mtls")
    assert caught.value.code == "binding_missing"


def test_details_are_asked_for_as_json(rig) -> None:
    asks: list[Any] = []
    fetched(rig, rig.answered(authorization_details=[DETAIL]), asks=asks, details=(DETAIL,))
    assert json.loads(rig.form(asks[0])["authorization_details"]) == [DETAIL]


@pytest.mark.parametrize(
    "granted",
    [[DETAIL], [DETAIL | {"actions": ["read"]}], [DETAIL | {"actions": ["pay"]}] * 2],
    ids=["as asked", "narrower", "in two parts"],
)
def test_details_as_asked_or_narrower_are_taken(rig, granted: Any) -> None:
    answer = rig.answered(authorization_details=granted)
    assert fetched(rig, answer, details=(DETAIL,)).resource == rig.BILLING


@pytest.mark.parametrize(
    ("asked", "granted", "code"),
    [
        ((DETAIL,), None, "details_missing"),
        ((DETAIL,), [], "details_missing"),
        ((DETAIL,), "all", "details_missing"),
        ((DETAIL,), {"type": "payment"}, "details_missing"),
        ((DETAIL,), [DETAIL | {"actions": ["read", "pay", "refund"]}], "details_widened"),
        ((DETAIL,), [DETAIL | {"actions": []}], "details_widened"),
        ((DETAIL,), [DETAIL | {"actions": "read"}], "details_widened"),
        ((DETAIL,), [DETAIL | {"locations": ["https://mail.example"]}], "details_widened"),
        ((DETAIL,), [DETAIL | {"type": "Payment"}], "details_widened"),
        ((DETAIL,), [DETAIL | {"privileges": ["admin"]}], "details_widened"),
        ((DETAIL,), [{"type": "payment", "actions": ["read"]}], "details_widened"),
        ((DETAIL,), [DETAIL, {"type": "admin"}], "details_widened"),
        ((DETAIL,), [None], "details_widened"),
        (({"type": "t", "n": [1]},), [{"type": "t", "n": [True]}], "details_widened"),
        (({"type": "t", "n": {"m": 1}},), [{"type": "t", "n": {"m": True}}], "details_widened"),
        ((), [DETAIL], "details_widened"),
        ((), "all", "details_widened"),
    ],
)
def test_details_that_are_absent_or_wider_are_refused(rig, asked, granted, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, rig.answered(authorization_details=granted), details=asked)
    assert caught.value.code == code


def test_what_a_source_says_of_itself_changes_with_every_part(rig) -> None:
    issuer = rig.issuer()
    parts: list[dict[str, Any]] = [
        {},
        {"binding": "none"},
        {"audience": "billing"},
        {"details": (DETAIL,)},
        {"client_name": "other"},
    ]
    described = {ClientCredentials(issuer, **part).described for part in parts}
    assert len(described) == len(parts)
