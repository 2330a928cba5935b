# SPDX-License-Identifier: Apache-2.0
"""A request outside a tool asserts no call: a service that verifies refuses it, and both sides say why."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity import AgentIdentity, InvalidAssertionError, VerificationError, tool
from agent_identity.verify import problem

HINT = "which asserts no call"


@pytest.fixture
def strict(service: Any) -> Any:
    """The service, which answers a refusal as `verify.problem` says."""

    def answer(method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str]]:
        try:
            service.verifier.verify_request(
                method, f"{service.origin}{path}", headers.items(), body, scopes=()
            )
        except VerificationError as error:
            status, said, _ = problem(error)
            return status, {"www-authenticate": said["WWW-Authenticate"]}
        return 200, {}

    service.answer = answer
    return service


def hints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if HINT in record.getMessage()]


def test_a_request_outside_a_tool_is_refused_and_both_logs_say_why(
    bot: AgentIdentity, strict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session, session.http(strict.url) as client:
        assert client.get("/").status_code == 401
        assert client.get("/again").status_code == 401
    (hint,) = hints(caplog)
    assert strict.url in hint
    assert "inside a tool" in hint
    assert "unasserted" in hint
    assert "(assertion_missing)" in caplog.text
    assert 'allow={"unasserted"}, which accepts such requests' in caplog.text


async def test_an_async_request_outside_a_tool_is_refused_and_the_log_says_why(
    bot: AgentIdentity, strict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with bot.on_behalf_of("user:alice", purpose="p") as session:
        async with session.ahttp(strict.url) as client:
            assert (await client.get("/")).status_code == 401
    assert len(hints(caplog)) == 1


def test_a_client_of_plain_headers_is_told_when_it_shows_the_answer(
    bot: AgentIdentity, service: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        credential = session.credential(service.url)
        assert credential.observe(401, {}) is False
    assert len(hints(caplog)) == 1


def test_inside_a_tool_the_same_client_asserts_the_call_and_nothing_is_logged(
    bot: AgentIdentity, strict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session, session.http(strict.url) as client:

        @tool(resource=strict.url)
        def asks() -> int:
            return client.get("/").status_code

        assert asks() == 200
    assert hints(caplog) == []


@pytest.mark.parametrize(
    ("status", "challenge"),
    [
        (200, ""),
        (403, ""),
        (401, 'DPoP error="invalid_token"'),
        (401, 'DPoP error="use_dpop_nonce"'),
        (401, 'Bearer realm="x", DPoP error="invalid_token", algs="ES256"'),
    ],
)
def test_an_answer_that_has_another_reason_is_no_hint(
    bot: AgentIdentity,
    service: Any,
    caplog: pytest.LogCaptureFixture,
    status: int,
    challenge: str,
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        session.credential(service.url).observe(status, {"www-authenticate": challenge})
    assert hints(caplog) == []


def test_the_verifier_says_what_to_do_about_a_request_that_asserts_no_call(
    bot: AgentIdentity, service: Any
) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        headers = session.credential(service.url).headers("GET", service.url)
    with pytest.raises(InvalidAssertionError) as caught:
        service.verifier.verify_request("GET", service.url, headers, scopes=())
    assert caught.value.code == "assertion_missing"
    assert "inside a tool" in caught.value.remedy
    assert 'allow={"unasserted"}' in caught.value.remedy
