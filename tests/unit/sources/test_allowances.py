# SPDX-License-Identifier: Apache-2.0
"""What real issuers answer differently: refused by default with the key that would allow it, and accepted with that key."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.responses import STRICT, Allowances
from agent_identity.credentials.sources.authorization_code import AuthorizationCode
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.credentials.sources.refresh_token import RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.errors import CredentialRejectedError
from agent_identity.testing import play

EXCHANGED = {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str, str, Allowances]] = {
    "several audiences": (
        {"aud": ["https://billing.example", "account"]},
        {},
        "audience_mismatch",
        "allow_several_audiences",
        Allowances(several_audiences=True),
    ),
    "no audience": (
        {"aud": None},
        {},
        "audience_mismatch",
        "allow_missing_audience",
        Allowances(missing_audience=True),
    ),
    "the client as audience": (
        {"aud": ["client-1"]},
        {},
        "audience_mismatch",
        "allow_client_audience",
        Allowances(client_audience=True),
    ),
    "more scopes in the answer": (
        {},
        {"scope": "invoices:read email profile"},
        "scope_widened",
        "allow_extra_scopes",
        Allowances(extra_scopes=True),
    ),
    "more scopes in the token": (
        {"scope": "invoices:read email"},
        {},
        "scope_widened",
        "allow_extra_scopes",
        Allowances(extra_scopes=True),
    ),
    "another name of the principal": (
        {"sub": "pairwise-7f3"},
        {},
        "subject_mismatch",
        "allow_other_subject",
        Allowances(other_subject=True),
    ),
}
OTHERS = [
    (name, case[4])
    for name, (*_, own) in CASES.items()
    for case in CASES.values()
    if case[4] != own
]


def exchanged(rig: Any, name: str, allows: Allowances) -> Any:
    claims, members, *_ = CASES[name]
    issuer = rig.issuer()
    issuer.allows = allows
    answer = rig.answered(rig.token(**claims), **EXCHANGED, **members)
    return play(TokenExchange(issuer, names_principal=True).fetch(rig.wanted()), answer)


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_and_the_key_that_would_allow_it_is_named(rig, name: str) -> None:
    _, _, code, key, _ = CASES[name]
    with pytest.raises(CredentialRejectedError) as caught:
        exchanged(rig, name, STRICT)
    assert caught.value.code == code
    assert key in (caught.value.remedy or "")


@pytest.mark.parametrize("name", CASES)
def test_its_key_allows_it(rig, name: str) -> None:
    issued = exchanged(rig, name, CASES[name][4])
    assert issued.scopes == {"invoices:read"}  # the call gets no more than it asked for


@pytest.mark.parametrize(("name", "allows"), OTHERS)
def test_no_other_key_allows_it(rig, name: str, allows: Allowances) -> None:
    with pytest.raises(CredentialRejectedError):
        exchanged(rig, name, allows)


@pytest.mark.parametrize(
    "aud", ["https://other.example", ["https://other.example", "account"], 7, []]
)
def test_an_audience_without_the_resource_is_refused_whatever_is_allowed(rig, aud: Any) -> None:
    allows = Allowances(True, True, True, True, True)
    issuer = rig.issuer()
    issuer.allows = allows
    answer = rig.answered(rig.token(aud=aud), **EXCHANGED)
    with pytest.raises(CredentialRejectedError) as caught:
        play(TokenExchange(issuer).fetch(rig.wanted()), answer)
    assert caught.value.code == "audience_mismatch"


def test_too_few_scopes_are_refused_whatever_is_allowed(rig) -> None:
    issuer = rig.issuer()
    issuer.allows = Allowances(extra_scopes=True)
    answer = rig.answered(rig.token(), scope="email")
    with pytest.raises(CredentialRejectedError) as caught:
        play(ClientCredentials(issuer).fetch(rig.wanted()), answer)
    assert caught.value.code == "scope_narrowed"


@pytest.mark.parametrize(
    ("longest", "expires_in", "life"),
    [(86_400.0, 172_800, 86_400), (259_200.0, 172_800, 172_800), (60.0, 300, 60)],
)
def test_no_token_is_used_longer_than_configured(rig, longest, expires_in, life) -> None:
    issuer = rig.issuer()
    issuer.allows = Allowances(longest_life=longest)
    answer = rig.answered(rig.token(exp=None), expires_in=expires_in)
    issued = play(ClientCredentials(issuer).fetch(rig.wanted()), answer)
    assert issued.expires_at == rig.NOW + life


def test_a_token_that_is_inactive_when_it_was_just_issued_is_unknown(rig) -> None:
    """Servers that introspect tokens of one kind only answer so about all others."""
    issuer = rig.issuer(introspection=f"{rig.IDP}/introspect")
    issued = play(
        ClientCredentials(issuer).fetch(rig.wanted()),
        rig.answered("opaque"),
        rig.json(active=False),
    )
    assert issued.is_opaque


@pytest.mark.parametrize("active", ["true", 1, None, {}])
def test_introspection_that_says_neither_is_refused(rig, active: Any) -> None:
    issuer = rig.issuer(introspection=f"{rig.IDP}/introspect")
    with pytest.raises(CredentialRejectedError) as caught:
        play(
            ClientCredentials(issuer).fetch(rig.wanted()),
            rig.answered("opaque"),
            rig.json(active=active),
        )
    assert caught.value.code == "inactive"


def test_pkce_is_assumed_only_where_the_metadata_says_nothing(rig) -> None:
    def sign_in(methods: Any, assumes: bool) -> str | None:
        issuer = rig.issuer(challenge_methods=methods)
        issuer.assumes_pkce = assumes
        source = AuthorizationCode(SignIn(issuer, tokens=RefreshTokens()))
        with pytest.raises((CredentialRejectedError, AssertionError)) as caught:
            play(source.fetch(rig.wanted()))  # nobody visits: past the check, the player gives up
        return getattr(caught.value, "code", None)

    assert sign_in(None, assumes=False) == "pkce_unsupported"
    assert sign_in(None, assumes=True) is None
    for listed in (frozenset(), frozenset({"plain"})):
        assert sign_in(listed, assumes=True) == "pkce_unsupported"


def test_an_issuer_that_is_not_to_revoke_gets_no_request(rig) -> None:
    issuer = rig.issuer(revocation=f"{rig.IDP}/revoke")
    issued = play(ClientCredentials(issuer).fetch(rig.wanted()), rig.answered())
    issuer.revokes = False
    assert play(issuer.revoke(issued)) is False
