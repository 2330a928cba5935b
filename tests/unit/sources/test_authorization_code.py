# SPDX-License-Identifier: Apache-2.0
"""Sign-in in a browser, played by hand: what the person opens, and what becomes of what comes back (RFC 7636, 9126, 9207)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent_identity.credentials.oauth.client import NoProof, SecretBasic
from agent_identity.credentials.source import StepUp
from agent_identity.credentials.sources.authorization_code import AuthorizationCode, challenge_of
from agent_identity.credentials.sources.refresh_token import RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Callback, pure
from agent_identity.testing import play
from agent_identity.values import Prompt, Secret

PAR = {"pushed_authorization": "https://idp.example/par"}
REFERENCE = "urn:ietf:params:oauth:request_uri:abc"


class Visitor:
    """A person who signs in: they send back the state that they were shown, and a code."""

    def __init__(self, change: Callable[[dict[str, str]], Any] | None = None) -> None:
        self._change = change
        self.prompts: list[Prompt] = []

    def __call__(self, redirect_uri: str, prompt: Prompt) -> Callback:
        self.prompts.append(prompt)
        members = {"code": "the-code", "state": self.query.get("state", "")}
        if self._change is not None:
            members = self._change(members)
        pairs = tuple(members.items() if isinstance(members, dict) else members)
        return Callback(redirect_uri, pairs)

    @property
    def query(self) -> dict[str, str]:
        url = self.prompts[-1].authorization_url or ""
        pairs = parse_qsl(urlsplit(url).query, strict_parsing=True)
        assert len(dict(pairs)) == len(pairs), "a member stands twice"
        return dict(pairs)


def source(issuer: Any, *, random: Any = None, **parts: Any) -> AuthorizationCode:
    sign_in = SignIn(issuer, **parts)
    return AuthorizationCode(sign_in) if random is None else AuthorizationCode(sign_in, random)


def test_the_request_in_the_link_holds_all_that_is_wanted(rig) -> None:
    visitor = Visitor()
    play(source(rig.issuer()).fetch(rig.wanted()), rig.answered(), visitor=visitor)
    query = visitor.query
    assert (query["response_type"], query["client_id"]) == ("code", "client-1")
    assert query["redirect_uri"] == "http://127.0.0.1:1/callback"
    assert (query["resource"], query["scope"]) == (rig.BILLING, "invoices:read")
    assert query["dpop_jkt"] == rig.agent.key.thumbprint
    assert query["code_challenge_method"] == "S256"
    assert (visitor.prompts[0].authorization_url or "").startswith(f"{rig.IDP}/authorize?")
    assert visitor.prompts[0].expires_at == rig.NOW + 300


def test_the_code_is_traded_with_the_verifier_of_its_challenge(rig) -> None:
    asks: list[Any] = []
    visitor = Visitor()
    play(source(rig.issuer()).fetch(rig.wanted()), rig.answered(), visitor=visitor, asks=asks)
    (request,) = rig.requests(asks)
    form = rig.form(request)
    assert (form["grant_type"], form["code"]) == ("authorization_code", "the-code")
    assert form["redirect_uri"] == visitor.query["redirect_uri"]
    assert form["resource"] == rig.BILLING
    assert challenge_of(Secret(form["code_verifier"])) == visitor.query["code_challenge"]
    assert 43 <= len(form["code_verifier"]) <= 128
    assert "code_verifier" not in visitor.query


def test_the_challenge_is_that_of_the_rfc() -> None:
    """RFC 7636, appendix B."""
    verifier = Secret("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
    assert challenge_of(verifier) == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"


def test_every_sign_in_has_a_state_and_a_verifier_of_its_own(rig) -> None:
    visitor = Visitor()
    seen = []
    for _ in range(3):
        play(source(rig.issuer()).fetch(rig.wanted()), rig.answered(), visitor=visitor)
        seen.append((visitor.query["state"], visitor.query["code_challenge"]))
    assert len({state for state, _ in seen}) == len({code for _, code in seen}) == 3


def test_state_and_verifier_have_all_their_bits_from_the_source_of_randomness(rig) -> None:
    drawn: list[int] = []

    def random(size: int) -> bytes:
        drawn.append(size)
        return bytes(size)

    play(
        source(rig.issuer(), random=random).fetch(rig.wanted()),
        rig.answered(),
        visitor=Visitor(),
    )
    assert len(drawn) == 2
    assert min(drawn) >= 16


def test_where_requests_can_be_pushed_the_link_holds_a_reference_alone(rig) -> None:
    asks: list[Any] = []
    visitor = Visitor(lambda members: members | {"state": rig.form(rig.requests(asks)[0])["state"]})
    play(
        source(rig.issuer(**PAR)).fetch(rig.wanted()),
        *(rig.json(201, request_uri=REFERENCE, expires_in=60), rig.answered()),
        visitor=visitor,
        asks=asks,
    )
    pushed, traded = rig.requests(asks)
    assert visitor.query == {"client_id": "client-1", "request_uri": REFERENCE}
    assert (pushed.url, traded.url) == (PAR["pushed_authorization"], f"{rig.IDP}/token")
    form = rig.form(pushed)
    assert (form["code_challenge_method"], form["resource"]) == ("S256", rig.BILLING)
    assert rig.claims(form["client_assertion"])["aud"] == rig.IDP


@pytest.mark.parametrize(
    "authentication", [NoProof(), SecretBasic(lambda: pure(Secret("s")))], ids=["none", "basic"]
)
def test_a_pushed_request_names_the_client_however_it_proves_itself(rig, authentication) -> None:
    """RFC 9126 §2.1: `client_id` is required, whatever the client authentication; once (RFC 6749 §3.2)."""
    asks: list[Any] = []
    visitor = Visitor(lambda members: members | {"state": rig.form(rig.requests(asks)[0])["state"]})
    play(
        source(rig.issuer(authentication, **PAR)).fetch(rig.wanted()),
        *(rig.json(201, request_uri=REFERENCE), rig.answered()),
        visitor=visitor,
        asks=asks,
    )
    assert rig.form(rig.requests(asks)[0])["client_id"] == "client-1"


def test_where_pushing_is_required_and_impossible_nothing_is_shown(rig) -> None:
    visitor = Visitor()
    issuer = rig.issuer(requires_pushed=True)
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(issuer).fetch(rig.wanted()), visitor=visitor)
    assert (caught.value.code, visitor.prompts) == ("metadata_incomplete", [])


@pytest.mark.parametrize("members", [{}, {"request_uri": ""}, {"request_uri": 7}])
def test_a_pushed_request_without_a_reference_shows_nothing(rig, members: Any) -> None:
    visitor = Visitor()
    with pytest.raises(CredentialRejectedError) as caught:
        play(
            source(rig.issuer(**PAR)).fetch(rig.wanted()),
            rig.json(201, **members),
            visitor=visitor,
        )
    assert (caught.value.code, visitor.prompts) == ("malformed_answer", [])


def test_a_refused_push_shows_nothing(rig) -> None:
    visitor = Visitor()
    with pytest.raises(CredentialRejectedError) as caught:
        play(
            source(rig.issuer(**PAR)).fetch(rig.wanted()),
            rig.refused("invalid_request"),
            visitor=visitor,
        )
    assert (caught.value.code, visitor.prompts) == ("invalid_request", [])


def test_an_endpoint_with_a_query_keeps_it(rig) -> None:
    visitor = Visitor()
    issuer = rig.issuer(authorization=f"{rig.IDP}/authorize?tenant=1")
    play(source(issuer).fetch(rig.wanted()), rig.answered(), visitor=visitor)
    assert visitor.query["tenant"] == "1"
    assert visitor.query["client_id"] == "client-1"


@pytest.mark.parametrize(
    ("error", "code"),
    [("access_denied", "access_denied"), ("<script>", "unknown_error"), ("", "unknown_error")],
)
def test_a_refusal_that_is_the_answer_to_this_request_is_told_by_its_code_alone(
    rig, error: str, code: str
) -> None:
    visitor = Visitor(
        lambda members: {"state": members["state"], "error": error, "error_description": "canary"}
    )
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig.issuer()).fetch(rig.wanted()), visitor=visitor)
    assert caught.value.code == code
    assert "canary" not in str(caught.value)
    assert "<script>" not in str(caught.value)


@pytest.mark.parametrize("code", [None, ""])
def test_a_callback_without_a_code_trades_nothing(rig, code: str | None) -> None:
    visitor = Visitor(
        lambda members: {"state": members["state"]} | ({} if code is None else {"code": code})
    )
    with pytest.raises(CredentialRejectedError) as caught:
        play(source(rig.issuer()).fetch(rig.wanted()), visitor=visitor)
    assert caught.value.code == "malformed_answer"


def test_the_refresh_token_of_a_sign_in_serves_the_next_call(rig) -> None:
    asks: list[Any] = []
    tokens = RefreshTokens()
    visitor = Visitor()
    browser = source(rig.issuer(), tokens=tokens)
    play(browser.fetch(rig.wanted()), rig.answered(refresh_token="r-1"), visitor=visitor)
    play(browser.fetch(rig.wanted()), rig.answered(), asks=asks)
    assert rig.form(rig.requests(asks)[0])["refresh_token"] == "r-1"
    assert len(visitor.prompts) == 1


def test_a_refresh_token_of_a_sign_in_that_is_refused_is_not_kept(rig) -> None:
    tokens = RefreshTokens()
    answer = rig.answered(rig.token(sub="bob"), refresh_token="bobs")
    with pytest.raises(CredentialRejectedError) as caught:
        play(
            source(rig.issuer(), tokens=tokens, names_principal=True).fetch(rig.wanted()),
            answer,
            visitor=Visitor(),
        )
    assert caught.value.code == "subject_mismatch"
    assert play(tokens.get(rig.wanted())) is None


@pytest.mark.parametrize("code", ["invalid_grant", "invalid_scope"])
def test_where_the_refresh_token_is_worth_nothing_the_person_signs_in_again(rig, code) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    visitor = Visitor()
    play(
        source(rig.issuer(), tokens=tokens).fetch(rig.wanted()),
        *(rig.refused(code), rig.answered(refresh_token="r-2")),
        visitor=visitor,
    )
    assert len(visitor.prompts) == 1
    held = play(tokens.get(rig.wanted()))
    assert held is not None
    assert held.reveal() == "r-2"


def test_a_step_up_is_about_the_sign_in_and_no_refresh_token_serves_it(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    visitor = Visitor()
    asks: list[Any] = []
    wanted = rig.wanted(step_up=StepUp(("phr",), 60))
    play(
        source(rig.issuer(), tokens=tokens).fetch(wanted),
        rig.answered(),
        visitor=visitor,
        asks=asks,
    )
    assert (visitor.query["acr_values"], visitor.query["max_age"]) == ("phr", "60")
    assert rig.form(rig.requests(asks)[0])["grant_type"] == "authorization_code"
