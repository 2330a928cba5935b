# SPDX-License-Identifier: Apache-2.0
"""Whoever signs in is the principal, and something in the answer has to show it, before anything is kept."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent_identity.credentials.source import StepUp
from agent_identity.credentials.sources.authorization_code import AuthorizationCode
from agent_identity.credentials.sources.ciba import Ciba
from agent_identity.credentials.sources.device import DeviceAuthorization
from agent_identity.credentials.sources.refresh_token import RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.errors import CredentialRejectedError, DeniedError
from agent_identity.flow import Callback, Shared
from agent_identity.testing import play
from agent_identity.values import Principal, Prompt, Secret, b64url

WAYS = {"browser": AuthorizationCode, "device": DeviceAuthorization, "ciba": Ciba}
every_way = pytest.mark.parametrize("way", WAYS)


NONCE = b64url(bytes(24))
"""The `nonce` of a sign-in whose random bytes are all zero."""


def visitor(redirect_uri: str, prompt: Prompt) -> Callback:
    """A person who signs in and comes back."""
    state = dict(parse_qsl(urlsplit(prompt.authorization_url or "").query))["state"]
    return Callback(redirect_uri, (("code", "the-code"), ("state", state)))


def before(rig: Any, way: str) -> list[Any]:
    return {
        "browser": [],
        "device": [
            rig.json(
                device_code="d",
                user_code="WDJB-MJHT",
                verification_uri=f"{rig.IDP}/device",
                expires_in=60,
            )
        ],
        "ciba": [rig.json(auth_req_id="q", expires_in=60)],
    }[way]


def signed_in(
    rig: Any, way: str, *answers: Any, tokens: RefreshTokens | None = None, **known: Any
) -> Any:
    sign_in = SignIn(rig.issuer(**known), names_principal=True, tokens=tokens or RefreshTokens())
    source = AuthorizationCode(sign_in, bytes) if way == "browser" else WAYS[way](sign_in)
    flow = source.fetch(rig.wanted())
    return play(flow, *before(rig, way), *answers, visitor=visitor)


def id_token(rig: Any, **changes: Any) -> str:
    claims = {"iss": rig.IDP, "sub": "alice", "aud": "client-1", "exp": rig.NOW + 60}
    claims |= {"nonce": NONCE} | changes
    return rig.signed({name: value for name, value in claims.items() if value is not None}, "JWT")


@every_way
def test_a_token_that_shows_nobody_is_no_proof_of_who_signed_in(rig, way: str) -> None:
    for token in ("opaque", rig.token(sub=None)):
        tokens = RefreshTokens()
        with pytest.raises(CredentialRejectedError) as caught:
            signed_in(rig, way, rig.answered(token, refresh_token="r-1"), tokens=tokens)
        assert caught.value.code == "subject_unproven"
        assert play(tokens.get(rig.wanted())) is None


@every_way
@pytest.mark.parametrize("aud", ["client-1", ["client-1"]])
def test_the_id_token_beside_it_says_who_signed_in(rig, way: str, aud: Any) -> None:
    answer = rig.answered("opaque", id_token=id_token(rig, aud=aud), refresh_token="r-1")
    tokens = RefreshTokens()
    assert signed_in(rig, way, answer, tokens=tokens).is_opaque
    assert play(tokens.get(rig.wanted())) is not None


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"sub": "mallory"}, "subject_mismatch"),
        ({"sub": None}, "subject_unproven"),
        ({"sub": ["alice"]}, "subject_mismatch"),
        ({"iss": "https://other.example"}, "subject_unproven"),
        ({"iss": None}, "subject_unproven"),
        ({"aud": "client-2"}, "subject_unproven"),
        ({"aud": ["client-1", "client-2"]}, "subject_unproven"),
        ({"aud": None}, "subject_unproven"),
    ],
    ids=str,
)
def test_an_id_token_of_somebody_else_proves_nothing(rig, claims: Any, code: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        signed_in(rig, "browser", rig.answered("opaque", id_token=id_token(rig, **claims)))
    assert caught.value.code == code


@pytest.mark.parametrize("nonce", [None, "another", 7])
def test_an_id_token_of_another_sign_in_is_refused(rig, nonce: Any) -> None:
    """OIDC Core §3.1.3.7: also where the access token shows who signed in."""
    for token in ("opaque", rig.token()):
        answer = rig.answered(token, id_token=id_token(rig, nonce=nonce), refresh_token="r-1")
        tokens = RefreshTokens()
        with pytest.raises(CredentialRejectedError) as caught:
            signed_in(rig, "browser", answer, tokens=tokens)
        assert caught.value.code == "nonce_mismatch"
        assert play(tokens.get(rig.wanted())) is None


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"sub": "alice"}, None),
        ({"sub": "mallory"}, "subject_mismatch"),
        ({}, "subject_unproven"),
    ],
    ids=str,
)
def test_introspection_may_say_who_signed_in(rig, said: Any, code: str | None) -> None:
    bound = {"cnf": {"jkt": rig.agent.key.thumbprint}, "aud": rig.BILLING}
    answers = [rig.answered("opaque"), rig.json(active=True, **bound, **said)]
    known = {"introspection": f"{rig.IDP}/introspect"}
    if code is None:
        assert signed_in(rig, "browser", *answers, **known).is_bound
        return
    with pytest.raises(CredentialRejectedError) as caught:
        signed_in(rig, "browser", *answers, **known)
    assert caught.value.code == code


def test_a_refresh_token_that_is_kept_was_proven_and_its_answers_may_be_silent(rig) -> None:
    tokens = RefreshTokens()
    play(tokens.put(rig.wanted(), Secret("r-1")))
    source = AuthorizationCode(SignIn(rig.issuer(), names_principal=True, tokens=tokens))
    assert play(source.fetch(rig.wanted()), rig.answered("opaque")).is_opaque
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(rig.wanted()), rig.answered(rig.token(sub="mallory")))
    assert caught.value.code == "subject_mismatch"


@every_way
@pytest.mark.parametrize("is_own", [True, False])
def test_openid_is_asked_for_where_it_has_to_show_who_signs_in(rig, way: str, is_own) -> None:
    iss = rig.IDP if is_own else "https://other-idp.example"
    wanted = rig.wanted(principal=Principal("alice", iss=iss))
    asks: list[Any] = []
    shown: list[str] = []

    def visit(redirect_uri: str, prompt: Prompt) -> Callback:
        shown.append(prompt.authorization_url or "")
        return visitor(redirect_uri, prompt)

    hint = {"login_hint_from": "id-token"} if way == "ciba" else {}
    source = WAYS[way](SignIn(rig.issuer(), names_principal=True), **hint)
    answer = rig.answered(scope="invoices:read openid" if is_own or way == "ciba" else None)
    issued = play(source.fetch(wanted), *before(rig, way), answer, asks=asks, visitor=visit)
    assert issued.scopes == {"invoices:read"}
    form = (
        dict(parse_qsl(urlsplit(shown[0]).query))
        if way == "browser"
        else rig.form(rig.requests(asks)[0])
    )
    expected = ["invoices:read", "openid"] if is_own or way == "ciba" else ["invoices:read"]
    assert form["scope"].split(" ") == expected


@every_way
def test_a_session_that_acts_for_nobody_has_nobody_who_could_sign_in(rig, way: str) -> None:
    """Nobody is asked, and no refresh token is used that somebody may have left under the trigger's name."""
    nobody = rig.wanted(principal=Principal("cron:x", iss=rig.agent.uri, profile="trigger"))
    tokens = RefreshTokens()
    play(tokens.put(nobody, Secret("r-1")))
    asks: list[Any] = []
    with pytest.raises(DeniedError) as caught:
        play(WAYS[way](SignIn(rig.issuer(), tokens=tokens)).fetch(nobody), asks=asks)
    assert (caught.value.code, asks) == ("interaction_without_principal", [])


def test_a_step_up_takes_no_turn_and_so_keeps_nobody_waiting(rig) -> None:
    """It uses no refresh token; a person may take minutes, and others need no more than theirs."""
    turns: list[bool] = []
    for step_up in (None, StepUp(("phr",))):
        asks: list[Any] = []
        source = DeviceAuthorization(SignIn(rig.issuer(device_authorization=None)))
        with pytest.raises(CredentialRejectedError):
            play(source.fetch(rig.wanted(step_up=step_up)), asks=asks)
        turns.append(any(isinstance(ask, Shared) and ask.once for ask in asks))
    assert turns == [True, False]
