# SPDX-License-Identifier: Apache-2.0
"""How principals and agents are named: one reference names one of them, and nobody can choose another's."""

from __future__ import annotations

import pytest

from agent_identity.errors import ConfigurationError
from agent_identity.values import Principal, agent_uri

IDP = "https://idp.example"


@pytest.mark.parametrize(
    "sub",
    [
        f"{IDP}#bob",
        "HTTPS://idp.example#bob",
        "http://idp.example#bob",
        "urn:example:idp#bob",
        "spiffe://idp.example/x#bob",
        "mailto:idp#bob",
        f"{IDP}#a#bob",
        f"{IDP}#",
    ],
)
@pytest.mark.parametrize("profile", ["user", "service", "ai_agent"])
def test_a_directorys_own_principal_has_no_name_that_reads_like_anothers(
    sub: str, profile: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Principal(sub, profile=profile)
    assert refused.value.code == "principal_malformed"


@pytest.mark.parametrize(
    "sub", ["alice", "alice#1", "#1", "a b#c", "alice@example.com", IDP, "a:b"]
)
def test_other_names_are_a_directorys_own(sub: str) -> None:
    assert str(Principal(sub)) == f"user:{sub}"
    assert Principal.parse(f"user:{sub}") == Principal(sub)


@pytest.mark.parametrize("sub", ["bob", "bob#1", f"{IDP}#bob", "#", "a b"])
def test_a_foreign_principals_reference_says_whose_it_is(sub: str) -> None:
    principal = Principal(sub, iss=IDP)
    assert Principal.parse(str(principal)) == principal


@pytest.mark.parametrize(
    "name",
    ["user:bob", "service:x", "trigger:cron", "User:bob", "SERVICE:x", "agent:bob", "Client:x"],
)
def test_an_agent_is_not_named_like_another_reference(name: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        agent_uri(name)
    assert refused.value.code == "agent_name"


@pytest.mark.parametrize(
    "name", ["urn:x:bob", "https://agents.example/a", "userx:bob", "spiffe://a/b"]
)
def test_an_agent_is_named_by_any_other_uri(name: str) -> None:
    assert agent_uri(name) == name
