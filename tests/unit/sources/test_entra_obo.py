# SPDX-License-Identifier: Apache-2.0
"""Entra's on-behalf-of flow, played by hand: what is asked, whose token may come back, and what `.default` stands for."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.sources.entra_obo import EntraObo
from agent_identity.errors import CredentialRejectedError
from agent_identity.testing import play

API = "api://billing"
DEFAULT = f"{API}/.default"


def fetched(
    rig: Any, *answers: Any, asks: list[Any] | None = None, subject: Any = None, **parts: Any
) -> Any:
    source = EntraObo(rig.issuer(), audience=API, **parts)
    wanted = rig.wanted(
        scopes=frozenset({DEFAULT}), subject=rig.Subject() if subject is None else subject
    )
    return play(source.fetch(wanted), *answers, asks=asks)


def answered(rig: Any, scope: str | None = f"{API}/read", **claims: Any) -> Any:
    token = rig.token("JWT", **({"aud": API, "cnf": None} | claims))
    return rig.answered(token, token_type="Bearer", scope=scope)


def test_the_form_is_that_of_the_flow_and_the_api_is_named_in_the_scope_alone(rig) -> None:
    asks: list[Any] = []
    issued = fetched(rig, answered(rig), asks=asks, parameters=(("claims", "{}"),))
    form = rig.form(asks[0])
    assert {name: value for name, value in form.items() if not name.startswith("client_")} == {
        "grant_type": "urn:ietf:params:oauth:grant-type:jwt-bearer",
        "assertion": "the-subject-token",
        "requested_token_use": "on_behalf_of",
        "scope": DEFAULT,
        "claims": "{}",
    }
    assert "DPoP" not in asks[0].headers
    assert (issued.token_type, issued.scopes) == ("Bearer", {DEFAULT})


def test_only_an_access_token_is_traded(rig) -> None:
    subject = rig.Subject()
    fetched(rig, answered(rig), subject=subject)
    assert "urn:ietf:params:oauth:token-type:id_token" not in subject.asked[0]
    with pytest.raises(CredentialRejectedError) as caught:
        play(EntraObo(rig.issuer()).fetch(rig.wanted(subject=None)))
    assert caught.value.code == "subject_token_missing"


@pytest.mark.parametrize("scope", [None, DEFAULT, f"{API}/read {API}/pay", f"{API}/read"])
def test_default_is_whatever_was_consented_to_for_that_api(rig, scope) -> None:
    assert fetched(rig, answered(rig, scope)).scopes == {DEFAULT}


@pytest.mark.parametrize("scope", ["openid", f"{API}/read api://mail/read", f"{API}2/read"])
def test_a_scope_of_another_api_is_wider(rig, scope) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, answered(rig, scope))
    assert caught.value.code == "scope_widened"


def named(rig: Any, oid: str | None, tid: str = "t") -> Any:
    return rig.Subject(rig.signed({"sub": "alice", "oid": oid, "tid": tid}))


def test_a_person_is_known_by_the_oid_whatever_their_sub_is_there(rig) -> None:
    answer = answered(rig, sub="alice-at-billing", oid="o", tid="t")
    assert fetched(rig, answer, subject=named(rig, "o")).jti == "tok_1"


@pytest.mark.parametrize(
    ("subject", "claims"),
    [
        (("o", "t"), {"sub": "alice", "oid": "other", "tid": "t"}),
        (("o", "t"), {"sub": "alice", "oid": "o", "tid": "other"}),
        (("o", "t"), {"sub": "somebody"}),
        ((None, "t"), {"sub": "somebody", "oid": "o", "tid": "t"}),
        (("o", "t"), {"sub": None}),
    ],
)
def test_another_person_is_refused_and_so_is_a_sub_that_no_oid_explains(
    rig, subject, claims
) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        fetched(rig, answered(rig, **claims), subject=named(rig, *subject))
    assert caught.value.code == "subject_mismatch"
