# SPDX-License-Identifier: Apache-2.0
"""The loopback address that a browser comes back to: one visit, exactly there, and nothing else counts."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import httpx
import pytest

from agent_identity import ConfigurationError, CredentialRejectedError, CredentialUnavailableError
from agent_identity.flow import Visit, pure, run, show, visit
from agent_identity.http.interaction import Listener
from agent_identity.http.surroundings import Surroundings
from agent_identity.http.world import World
from agent_identity.values import Prompt


def sign_in(url: str) -> Prompt:
    return Prompt("authorization-code", "https://idp.example", 2e9, authorization_url=url)


def test_what_comes_back_is_taken_as_it_came() -> None:
    with closing(Listener()) as listener:
        answer = httpx.get(f"{listener.redirect_uri}?code=a%20b&state=s&code=second&empty=")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        callback = listener.callback.result(1)
    assert callback.redirect_uri == listener.redirect_uri
    assert callback.members == (
        *(("code", "a b"), ("state", "s")),
        *(("code", "second"), ("empty", "")),
    )


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/callback?code=x", {"Host": "evil.example"}, 421),
        ("/callback?code=x", {"Host": "localhost:{port}"}, 421),
        ("/callback?code=x", {"Origin": "https://evil.example"}, 403),
        ("/callback?code=x", {"Origin": "null"}, 403),
        ("/?code=x", {}, 404),
        ("/callback/?code=x", {}, 404),
        ("/callback?code=" + "x" * 9000, {}, 404),
        ("/callback?" + "&".join(f"a{n}=1" for n in range(99)), {}, 400),
        ("/callback?code=x", {"Sec-Fetch-Dest": "image"}, 403),
        ("/callback?code=x", {"Sec-Fetch-Dest": "iframe"}, 403),
    ],
    ids=["host", "localhost", "origin", "null", "root", "slash", "long", "many", "image", "frame"],
)
def test_E11_another_host_origin_or_path_is_refused_and_changes_nothing(
    path: str, headers: dict[str, str], status: int
) -> None:
    with closing(Listener()) as listener:
        place = f"http://{listener.host}"
        port = listener.host.rpartition(":")[2]
        sent = {name: value.format(port=port) for name, value in headers.items()}
        assert httpx.get(place + path, headers=sent).status_code == status
        assert httpx.post(f"{place}/callback?code=x").status_code == 501
        assert not listener.callback.done()
        assert httpx.get(f"{place}/callback?code=real").status_code == 200
        assert listener.callback.result(1).members == (("code", "real"),)


def test_E11_a_second_visit_is_refused_and_changes_nothing() -> None:
    with closing(Listener()) as listener:
        assert httpx.get(f"{listener.redirect_uri}?code=first").status_code == 200
        assert httpx.get(f"{listener.redirect_uri}?code=second").status_code == 410
        assert listener.callback.result(1).members == (("code", "first"),)


def test_E11_what_isnt_the_answer_that_is_awaited_changes_nothing() -> None:
    """Any page can send a browser to this address; it doesn't know the state."""
    with closing(Listener(lambda members: dict(members).get("state") == "real")) as listener:
        assert httpx.get(f"{listener.redirect_uri}?code=evil&state=guess").status_code == 400
        assert httpx.get(f"{listener.redirect_uri}?error=access_denied").status_code == 400
        assert not listener.callback.done()
        assert httpx.get(f"{listener.redirect_uri}?code=c&state=real").status_code == 200
        assert dict(listener.callback.result(1).members)["code"] == "c"


@pytest.mark.parametrize("raised", [ValueError("canary-text"), TimeoutError("canary-text")])
def test_a_prompt_that_fails_is_a_typed_error_and_is_shown_once(raised: Exception) -> None:
    shown: list[Prompt] = []

    def fails(prompt: Prompt) -> None:
        shown.append(prompt)
        raise raised

    with pytest.raises(CredentialUnavailableError) as caught:
        run(show(sign_in("https://idp.example/a")), world(fails).answer)
    assert caught.value.code == "interaction_failed"
    assert "canary" not in f"{caught.value}{caught.value.__cause__}{caught.value.__context__}"
    assert len(shown) == 1


def test_the_port_is_closed_when_it_is_over() -> None:
    with closing(Listener()) as listener:
        pass
    with pytest.raises(httpx.ConnectError):
        httpx.get(listener.redirect_uri)


class FakeBrowser:
    """Goes where it is sent, and comes back at once with a code."""

    def __init__(self, members: str = "code=c&state=s") -> None:
        self.members = members
        self.seen: list[Prompt] = []

    def __call__(self, prompt: Prompt) -> None:
        self.seen.append(prompt)
        back = (prompt.authorization_url or "").partition("?redirect_uri=")[2]
        threading.Thread(target=lambda: httpx.get(f"{back}?{self.members}")).start()


class NoLedger:
    def append(self, draft: object) -> None:
        raise AssertionError

    async def aappend(self, draft: object) -> None:
        raise AssertionError


def world(on_interaction: object) -> World:
    return World(
        lambda: pytest.fail("nothing is to be sent"),
        NoLedger(),
        surroundings=Surroundings(on_interaction=on_interaction),
    )


def going() -> object:
    return visit(
        lambda back: pure(sign_in(f"https://idp.example/authorize?redirect_uri={back}")), 5.0
    )


def test_a_visit_shows_where_to_go_and_brings_what_came_back() -> None:
    browser = FakeBrowser()
    callback = run(going(), world(browser).answer)
    assert dict(callback.members) == {"code": "c", "state": "s"}
    assert callback.redirect_uri.startswith("http://127.0.0.1:")
    assert len(browser.seen) == 1


async def test_a_visit_in_async_code_does_the_same_with_an_async_prompt() -> None:
    browser = FakeBrowser()

    async def shows(prompt: Prompt) -> None:
        await asyncio.sleep(0)
        browser(prompt)

    found = await world(shows).aanswer(
        Visit(lambda back: pure(sign_in(f"https://idp.example/authorize?redirect_uri={back}")), 5.0)
    )
    assert dict(found.members) == {"code": "c", "state": "s"}


def test_an_async_prompt_under_sync_code_runs_too() -> None:
    browser = FakeBrowser()

    async def shows(prompt: Prompt) -> None:
        await asyncio.sleep(0)
        browser(prompt)

    assert dict(run(going(), world(shows).answer).members)["code"] == "c"


async def test_nobody_who_comes_back_in_time_is_an_error_in_both_colours() -> None:
    asked = Visit(lambda back: pure(sign_in("https://idp.example/authorize")), 0.05)
    silent = world(lambda prompt: None)
    for answer in (lambda: asyncio.to_thread(silent.answer, asked), lambda: silent.aanswer(asked)):
        with pytest.raises(CredentialUnavailableError) as caught:
            await answer()
        assert caught.value.code == "interaction_timeout"


@pytest.mark.parametrize(
    "url",
    [
        *("file:///etc/passwd", "javascript:alert(1)", "$(calc)", "-oProxyCommand=x", "data:,x"),
        *("http://idp.example/authorize", "https://idp.example/\u202e", "https://a@evil.example/"),
        *("https://idp.example/a b", 'https://idp.example/"', "HTTPS:\\\\evil", "calc.exe", ""),
        "https://idp.example/\x1b[2J",
    ],
)
def test_E09_nothing_but_a_web_page_reaches_a_person_or_a_browser_opener(url: str) -> None:
    shown: list[Prompt] = []
    for prompt in (
        sign_in(url),
        Prompt("device", "https://idp.example", 2e9, verification_uri=url, user_code="A"),
        Prompt(
            "device",
            "https://idp.example",
            2e9,
            verification_uri="https://idp.example/",
            verification_uri_complete=url,
        ),
    ):
        if '"' in url:
            continue  # a quote is allowed in a path by our pattern, and harmless
        with pytest.raises(CredentialRejectedError) as caught:
            run(show(prompt), world(shown.append).answer)
        assert caught.value.code == "unsafe_link"
    assert shown == []


def test_without_a_terminal_a_prompt_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        run(show(sign_in("https://idp.example/authorize")), world(None).answer)
    assert caught.value.code == "no_terminal"
    assert "on_interaction" in (caught.value.remedy or "")
    assert capsys.readouterr().err == ""


def redirect_to(uri: str) -> str:
    with closing(Listener(redirect_uri=uri)) as listener:
        httpx.get(f"{listener.redirect_uri}?code=c")
        return listener.callback.result(1).redirect_uri


def free_port() -> int:
    with closing(Listener()) as listener:
        return int(listener.host.rpartition(":")[2])


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "127.0.0.2"])
def test_a_redirect_uri_with_a_port_is_used_as_it_is(name: str) -> None:
    uri = f"http://{name}:{free_port()}/signed/in"
    assert redirect_to(uri) == uri


def test_a_redirect_uri_without_a_port_gets_a_free_one() -> None:
    uri = redirect_to("http://localhost/back")
    assert uri.startswith("http://localhost:")
    assert uri.endswith("/back")


def test_the_path_of_the_redirect_uri_is_the_only_one() -> None:
    with closing(Listener(redirect_uri="http://127.0.0.1/back")) as listener:
        assert httpx.get(f"http://{listener.host}/callback?code=c").status_code == 404


def test_a_port_that_is_taken_is_an_error_that_says_so() -> None:
    with closing(Listener()) as taken, pytest.raises(CredentialUnavailableError) as caught:
        Listener(redirect_uri=taken.redirect_uri)
    assert caught.value.code == "redirect_port_taken"
    assert taken.host.rpartition(":")[2] in str(caught.value)


def test_a_sign_in_that_times_out_names_the_redirect_uri_to_register() -> None:
    uri = f"http://127.0.0.1:{free_port()}/callback"
    surroundings = Surroundings(on_interaction=lambda _: None)
    ask = Visit(lambda _: pure(sign_in("https://idp.example/authorize")), 0.05, uri)
    with pytest.raises(CredentialUnavailableError) as caught:
        surroundings.visit(ask, lambda _: None, float("inf"))
    assert caught.value.code == "interaction_timeout"
    assert uri in str(caught.value)
    with pytest.raises(CredentialUnavailableError) as late:
        asyncio.run(surroundings.avisit(ask, never))
    assert uri in str(late.value)


async def never(_: object) -> None:
    raise AssertionError("a prompt asks for nothing")
