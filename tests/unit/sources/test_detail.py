# SPDX-License-Identifier: Apache-2.0
"""An issuer's own words about a refusal: the error's `.detail`, cleaned, and nowhere else."""

from __future__ import annotations

import json
import logging
import pickle
import re

import pytest

from agent_identity.credentials.oauth.responses import failure_of, issuers_words
from agent_identity.errors import AgentIdentityError, CredentialUnavailableError
from agent_identity.flow import HttpResponse
from agent_identity.testing import assert_no_leak
from agent_identity.values import Secret

IDP = "https://idp.example"
WORDS = "the client may not use this grant"


def refusal(status: int, *, as_client: bool = True, **members: object) -> AgentIdentityError:
    response = HttpResponse(
        status, {"content-type": "application/json"}, json.dumps(members).encode()
    )
    return failure_of(response, IDP, "a token", 0.0, as_client=as_client)


def test_the_words_of_an_issuer_are_the_detail_and_nothing_else_of_the_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        error = refusal(400, error="unauthorized_client", error_description=WORDS)
    assert error.detail == WORDS
    assert_no_leak([WORDS], error)
    assert_no_leak([WORDS], pickle.dumps(error))
    assert_no_leak([WORDS], caplog.text)


def test_the_debug_log_shows_the_words(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "agent_identity"):
        refusal(400, error="unauthorized_client", error_description=WORDS)
    assert caplog.messages == [f"{IDP} about a token: {WORDS}"]


def test_a_copy_keeps_the_words_and_a_pickle_does_not() -> None:
    error = refusal(400, error="invalid_scope", error_description=WORDS)
    assert error.copy().detail == WORDS
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (again.code, again.detail) == ("invalid_scope", None)
    assert AgentIdentityError("code", "message").detail is None


def test_an_unavailable_issuer_can_say_why() -> None:
    error = refusal(503, error="temporarily_unavailable", error_description="back at noon")
    assert isinstance(error, CredentialUnavailableError)
    assert error.detail == "back at noon"


def test_known_secrets_are_taken_out_of_the_words() -> None:
    secret = Secret("hunter2 of the house")
    told = f"the secret {secret.reveal()} is wrong"
    assert issuers_words("invalid_client", told) == "the secret <secret> is wrong"


@pytest.mark.parametrize(
    "token",
    [
        "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLWl0",
        "8xLOxBtZp8Jq0k3TSw9VfA",
        "f3b5a1c2d4e6f708192a3b4c5d6e7f8091a2b3c4",
        "ZYXWVUTSRQponmlkjihgfedcba",
        "ya29.a0AfH6SMBx%2Fabc%3D%3D",
    ],
)
def test_what_looks_like_a_token_is_taken_out_of_the_words(token: str) -> None:
    told = issuers_words("invalid_grant", f"The token {token} isn't ours.")
    assert told is not None
    assert token not in told
    assert re.fullmatch(r"The token [<\[]token[>\]]\.? ?isn't ours\.", told), told


@pytest.mark.parametrize(
    "words",
    [
        "AADSTS65001: consent is missing. Trace ID: 7f3b6a2e-1c5d-4a0e-9f5e-123456789abc",
        "see https://idp.example/realms/acme/protocol/openid-connect/token",
        "insufficient_user_authentication required for urn:ietf:params:oauth:grant-type:token-exchange",
        "2026-11-29T17:25:26.123Z: no such scope invoices:read",
    ],
)
def test_words_addresses_and_numbers_of_traces_stay(words: str) -> None:
    assert issuers_words("invalid_grant", words) == words


def test_control_characters_and_more_than_200_characters_are_cut() -> None:
    told = issuers_words("x", "a\x00b\nc\x1b[31m\u202ed " + "word " * 100)
    assert told is not None
    assert told.startswith("x: a b c [31m d word")
    assert len(told) <= 200
    assert told.isprintable()


def test_a_code_that_no_standard_defines_is_part_of_the_words() -> None:
    error = refusal(400, error="E4711", error_description="no")
    assert (error.code, error.detail) == ("unknown_error", "E4711: no")
    assert "E4711" not in str(error)


@pytest.mark.parametrize(
    "body", [b"", b"no", b"[]", b'{"error_description": 5}', b'{"error": ["x"]}']
)
def test_an_answer_without_words_has_no_detail(body: bytes) -> None:
    assert failure_of(HttpResponse(400, {}, body), IDP, "a token", 0.0).detail is None


@pytest.mark.parametrize(
    ("status", "code", "key"),
    [
        (400, "invalid_request", "parameter"),
        (401, "invalid_client", "client_auth"),
        (400, "unauthorized_client", "source"),
        (400, "invalid_grant", "fresh token"),
        (400, "invalid_target", "audience"),
        (400, "invalid_scope", "scopes"),
        (400, "unsupported_grant_type", "source"),
        (401, None, "client_auth"),
        (403, None, "at the issuer"),
    ],
)
def test_each_refusal_says_what_to_check(status: int, code: str | None, key: str) -> None:
    error = refusal(status, **({} if code is None else {"error": code}))
    assert error.remedy is not None
    assert key in error.remedy
    assert "issuer" in error.remedy


def test_a_refusal_that_no_client_asked_for_has_no_remedy_about_the_client() -> None:
    """Metadata and keys are read without a client."""
    assert refusal(403, as_client=False).remedy is None
