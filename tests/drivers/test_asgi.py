# SPDX-License-Identifier: Apache-2.0
"""The middleware before a bare ASGI application: what reaches it, and what is answered in its place."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    RevokedError,
    VerificationError,
)
from agent_identity.http.challenges import wanted_by
from agent_identity.verify import MemoryReplay, problem
from agent_identity.verify.asgi import (
    CALL,
    RefusedError,
    VerifyMiddleware,
    require,
    verified_call,
)

BILLING = "https://billing.example"
INSTANCE = re.compile(rb'"instance":"urn:uuid:[0-9a-f-]{36}"')


@dataclass
class Answer:
    """What the client got."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def kind(self) -> str:
        assert self.headers["content-type"] == "application/problem+json"
        said = json.loads(self.body)
        assert said["status"] == self.status
        return said["type"].removeprefix("urn:agent-identity:problem:")

    @property
    def alike(self) -> tuple[int, dict[str, str], bytes]:
        """All but the id of the log line."""
        return self.status, self.headers, INSTANCE.sub(b"", self.body)


class App:
    """An application that tells what reached it."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.bodies: list[bytes] = []
        self.after: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            assert (await receive())["type"] == "websocket.connect"
            await send({"type": "websocket.accept"})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.after.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def scope_of(method: str, target: str, headers: Iterable[tuple[str, str]], **more: Any) -> Any:
    path, _, query = target.partition("?")
    from urllib.parse import unquote

    pairs = [(n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers]
    if "host" not in dict(headers) and more.pop("host", True):
        pairs.insert(0, (b"host", b"billing.example"))
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": method,
        "scheme": "https",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": pairs,
        "server": ("10.0.0.1", 8000),
    } | more


async def ask(
    app: Any,
    method: str,
    target: str,
    headers: Any = (),
    body: Iterable[bytes] = (b"",),
    **more: Any,
) -> Answer:
    """One request; `body` comes in pieces, and then the client goes."""
    pieces: list[bytes] = list(body)
    answer = Answer()

    async def receive() -> Any:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert answer.status == 0
            answer.status = message["status"]
            answer.headers = {n.decode(): v.decode() for n, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    pairs = list(headers.items()) if isinstance(headers, dict) else list(headers)
    await app(scope_of(method, target, pairs, **more), receive, send)
    return answer


@pytest.fixture
def caller(calling) -> Iterator[Any]:
    with calling(BILLING) as made:
        yield made


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def guarded(app: App, caller) -> VerifyMiddleware:
    return VerifyMiddleware(app, caller.verifier(), public={"/healthz"}, body_limit=64)


# -- what reaches the application ---------------------------------------------------------------------------------------


async def test_a_verified_call_is_in_the_scope_and_the_body_comes_once_more(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("POST", "/pay?to=ACME", b'{"total":1}')
    answer = await ask(guarded, "POST", "/pay?to=ACME", headers, [b'{"tot', b"", b'al":1}'])
    assert (answer.status, answer.body) == (200, b"done")
    assert (app.bodies, app.after) == ([b'{"total":1}'], ["http.disconnect"])
    call = verified_call(app.scopes[0])
    assert call is app.scopes[0][CALL]
    assert (call.principal.sub, call.call.tool, call.scopes) == ("alice", "sign", {"read"})


async def test_without_credentials_nothing_reaches_the_application_and_no_body_is_read(
    app: App, guarded: VerifyMiddleware
) -> None:
    async def receive() -> Any:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await guarded(scope_of("POST", "/pay", []), receive, send)
    assert sent[0]["status"] == 401
    assert b"credentials_required" in sent[1]["body"]
    assert app.scopes == []


@pytest.mark.parametrize(
    ("left_out", "kind"),
    [
        ("Agent-Delegation", "credentials_required"),
        ("Agent-Assertion", "credentials_required"),
        ("Authorization", "refused"),
        ("DPoP", "refused"),
    ],
)
async def test_what_is_left_out_allows_nothing(
    caller, app: App, guarded: VerifyMiddleware, left_out: str, kind: str
) -> None:
    headers = caller.headers("GET", "/invoices")
    del headers[left_out]
    answer = await ask(guarded, "GET", "/invoices", headers)
    assert (answer.status, answer.kind, app.scopes) == (401, kind, [])


@pytest.mark.parametrize("name", ["Agent-Assertion", "Agent-Delegation", "Authorization", "DPoP"])
async def test_a_header_that_comes_twice_is_refused(
    caller, app: App, guarded: VerifyMiddleware, name: str, caplog
) -> None:
    headers = caller.headers("GET", "/invoices")
    answer = await ask(
        guarded, "GET", "/invoices", [*headers.items(), (name.lower(), headers[name])]
    )
    assert (answer.kind, app.scopes) == ("refused", [])
    assert "(header_repeated)" in caplog.text


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({"target": "/pay?to=MALLORY"}, "query_mismatch"),
        ({"target": "/pay"}, "query_mismatch"),
        ({"target": "/other?to=ACME"}, "url_mismatch"),
        ({"target": "/pay/?to=ACME"}, "url_mismatch"),
        ({"target": "//pay?to=ACME"}, "url_mismatch"),
        ({"target": "/%2Fpay?to=ACME"}, "url_mismatch"),
        ({"method": "PUT"}, "method_mismatch"),
        ({"body": [b'{"total":9}']}, "body_mismatch"),
        ({"body": [b""]}, "body_mismatch"),
        ({"scheme": "http"}, "url_mismatch"),
        ({"headers": {"host": "mail.example"}}, "url_mismatch"),
    ],
)
async def test_another_request_than_the_one_that_was_signed_is_refused(
    caller, app: App, guarded: VerifyMiddleware, sent: Any, code: str, caplog
) -> None:
    asked = {"method": "POST", "target": "/pay?to=ACME", "body": [b'{"total":1}']} | sent
    headers = caller.headers("POST", "/pay?to=ACME", b'{"total":1}') | asked.pop("headers", {})
    answer = await ask(guarded, asked.pop("method"), asked.pop("target"), headers, **asked)
    assert (answer.kind, app.scopes) == ("refused", [])
    assert f"({code})" in caplog.text


@pytest.mark.parametrize("target", ["/a%2Fb", "/a%20b", "//a//b", "/a;v=1/b", "/%C3%A9", "/a%2520"])
async def test_a_path_is_compared_as_it_was_sent(
    caller, app: App, guarded: VerifyMiddleware, target: str
) -> None:
    headers = caller.signed_anyhow("GET", target)
    assert (await ask(guarded, "GET", target, headers)).status == 200
    assert app.scopes[0]["raw_path"] == target.encode()


@pytest.mark.parametrize("target", ["/a/b", "/a%252Fb"])
async def test_a_slash_in_a_segment_is_no_other_spelling_of_a_slash(
    caller, app: App, guarded: VerifyMiddleware, target: str
) -> None:
    answer = await ask(guarded, "GET", target, caller.signed_anyhow("GET", "/a%2Fb"))
    assert (answer.kind, app.scopes) == ("refused", [])


@pytest.mark.parametrize(
    "target",
    ["/x/../pay", "/./pay", "/x/%2e%2e/pay", "/x/.%2E/pay", "/%2e/pay", "/pay/x/..", "/x/..%2fpay"],
)
async def test_a_dot_segment_is_refused_since_the_application_would_route_it_otherwise(
    caller, app: App, guarded: VerifyMiddleware, target: str
) -> None:
    """What is signed of `/x/../pay` is `/pay`: the verifier alone would let it pass."""
    answer = await ask(guarded, "GET", target, caller.signed_anyhow("GET", target))
    assert (answer.kind, app.scopes) == ("refused", [])


@pytest.mark.parametrize("target", ["/pay?to=ACME#&to=MALLORY", "/pay?to=ACME#"])
async def test_nothing_can_be_added_to_a_signed_query_behind_a_fragment(
    caller, app: App, guarded: VerifyMiddleware, target: str
) -> None:
    answer = await ask(guarded, "GET", target, caller.headers("GET", "/pay?to=ACME"))
    assert (answer.kind, app.scopes) == ("refused", [])


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("billing.example/pay#", "/admin"),
        ("billing.example/pay?", "/admin"),
        ("billing.example/pay", "/"),
        ("alice@billing.example", "/pay"),
        ("billing.example:", "/pay"),
        ("billing.example\\", "/pay"),
        ("", "/pay"),
    ],
)
async def test_a_host_header_that_is_more_than_a_host_is_refused(
    caller, app: App, guarded: VerifyMiddleware, host: str, target: str
) -> None:
    headers = caller.headers("GET", "/pay") | {"host": host}
    assert (await ask(guarded, "GET", target, headers)).kind == "refused"
    assert app.scopes == []


async def test_a_host_header_that_is_missing_or_comes_twice_is_refused(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/pay")
    assert (await ask(guarded, "GET", "/pay", headers, host=False)).kind == "refused"
    twice = [*headers.items(), ("Host", "billing.example"), ("Host", "billing.example")]
    scope = scope_of("GET", "/pay", twice, host=False)
    assert len([1 for name, _ in scope["headers"] if name == b"host"]) == 2
    assert (await ask(guarded, "GET", "/pay", twice, host=False)).kind == "refused"
    assert app.scopes == []


@pytest.mark.parametrize("target", ["*", "https://billing.example/pay", "pay", ""])
async def test_a_target_that_is_no_path_is_refused(
    caller, app: App, guarded: VerifyMiddleware, target: str
) -> None:
    answer = await ask(guarded, "GET", target, caller.headers("GET", "/pay"))
    assert (answer.kind, app.scopes) == ("refused", [])


@pytest.mark.parametrize(("raw_path", "path"), [(b"/pay", "/x/../pay"), (b"/x/../pay", "/pay")])
async def test_a_dot_segment_is_refused_wherever_a_server_shows_it(
    caller, app: App, guarded: VerifyMiddleware, raw_path: bytes, path: str
) -> None:
    headers = caller.headers("GET", "/pay")
    answer = await ask(guarded, "GET", "/pay", headers, raw_path=raw_path, path=path)
    assert (answer.kind, app.scopes) == ("refused", [])


async def test_host_and_path_are_no_one_text_to_be_cut_elsewhere(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/pay") | {"host": "billing"}
    assert (await ask(guarded, "GET", ".example/pay", headers)).kind == "refused"
    headers = caller.headers("GET", "/pay?to=ACME")
    more = {"raw_path": b"/pay?to=ACME", "query_string": b""}
    assert (await ask(guarded, "GET", "/pay", headers, **more)).kind == "refused"
    assert app.scopes == []


async def test_a_server_that_tells_no_raw_path_is_believed_its_path(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/a%20b/~c")
    answer = await ask(guarded, "GET", "/a%20b/~c", headers, raw_path=None)
    assert answer.status == 200


async def test_a_path_that_nobody_could_have_sent_is_refused(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/pay")
    answer = await ask(guarded, "GET", "/pay", headers, raw_path=None, path="/\udcff")
    assert answer.kind == "refused"
    assert app.scopes == []


async def test_a_proxys_own_address_does_not_count_where_public_url_is_given(
    caller, app: App
) -> None:
    guarded = VerifyMiddleware(app, caller.verifier(public_url=BILLING))
    more = {"scheme": "http"}
    headers = caller.headers("GET", "/pay") | {"host": "10.0.0.1:8000"}
    assert (await ask(guarded, "GET", "/pay", headers, **more)).status == 200
    headers = caller.headers("GET", "/pay")
    assert (await ask(guarded, "GET", "/pay", headers, scheme="gopher")).kind == "refused"


async def test_one_request_is_let_in_once_of_fifty(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/pay")
    answers = await asyncio.gather(*(ask(guarded, "GET", "/pay", headers) for _ in range(50)))
    assert sorted(answer.status for answer in answers) == [200] + [401] * 49
    assert len(app.scopes) == 1


# -- bodies ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "length", ["65", "065", "99999999999999999999999", "9" * 5000, "-1", "1e9"]
)
async def test_a_body_that_says_it_is_too_large_is_not_read(
    caller, app: App, guarded: VerifyMiddleware, length: str
) -> None:
    headers = caller.headers("POST", "/pay", b"x") | {"content-length": length}

    async def receive() -> Any:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await guarded(scope_of("POST", "/pay", headers.items()), receive, send)
    assert (sent[0]["status"], app.scopes) == (413, [])


async def test_a_body_that_lies_about_its_length_is_cut_while_it_is_read(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("POST", "/pay", b"x" * 6400) | {"content-length": "1"}
    read: list[int] = []

    def pieces() -> Iterator[bytes]:
        for number in range(100):
            read.append(number)
            yield b"x" * 64

    feed = pieces()
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": next(feed), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    await guarded(scope_of("POST", "/pay", headers.items()), receive, send)
    assert (sent[0]["status"], b"too_large" in sent[1]["body"], app.scopes) == (413, True, [])
    assert len(read) == 2


async def test_a_body_of_just_the_limit_passes(caller, app: App, guarded: VerifyMiddleware) -> None:
    body = b"x" * 64
    for length in ("64", "00000064"):
        headers = caller.headers("POST", "/pay", body) | {"content-length": length}
        assert (await ask(guarded, "POST", "/pay", headers, [body])).status == 200
    assert app.bodies == [body] * 2


async def test_a_body_that_is_not_bound_passes_only_where_that_is_allowed(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("POST", "/pay", None)
    assert (await ask(guarded, "POST", "/pay", headers, [b"any"])).kind == "refused"
    lenient = VerifyMiddleware(app, caller.verifier(allow={"unbound_body"}))
    assert (await ask(lenient, "POST", "/pay", headers, [b"any"])).status == 200
    assert app.bodies == [b"any"]


async def test_a_client_that_goes_while_its_body_comes_harms_nothing(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("POST", "/pay", b"whole")
    pieces = [
        {"type": "http.request", "body": b"who", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return pieces.pop(0)

    async def send(message: Any) -> None:
        raise AssertionError(message)

    await guarded(scope_of("POST", "/pay", headers.items()), receive, send)
    assert (pieces, app.scopes) == ([], [])


# -- public paths ---------------------------------------------------------------------------------------------------------


async def test_a_public_path_needs_nothing_and_nothing_is_verified_there(
    app: App, guarded: VerifyMiddleware
) -> None:
    assert (await ask(guarded, "GET", "/healthz?deep=1")).status == 200
    assert app.scopes[0][CALL] is None
    with pytest.raises(RefusedError) as caught:
        verified_call(app.scopes[0])
    assert caught.value.code == "chain_missing"


@pytest.mark.parametrize(
    "target",
    [
        *("/healthz/", "/healthz/x", "/healthzz", "/health", "//healthz", "/Healthz"),
        *("/%68ealthz", "/healthz%2F", "/healthz;x", "/x/../healthz", "/healthz%00", "/healthz%3F"),
    ],
)
async def test_a_public_path_is_that_one_path_alone(
    app: App, guarded: VerifyMiddleware, target: str
) -> None:
    assert (await ask(guarded, "GET", target)).kind == "credentials_required"
    assert app.scopes == []


async def test_a_path_that_was_rewritten_before_us_is_not_public(
    app: App, guarded: VerifyMiddleware
) -> None:
    assert (await ask(guarded, "GET", "/healthz", path="/pay")).status == 401
    assert (await ask(guarded, "GET", "/pay", path="/healthz")).status == 401
    assert app.scopes == []


@pytest.mark.parametrize(
    "public", ["/", "/healthz", ["healthz"], ["/a b"], ["/%7E"], ["/a?b"], [""]]
)
def test_a_public_path_that_could_be_meant_otherwise_is_refused_at_once(caller, public) -> None:
    with pytest.raises(ConfigurationError) as caught:
        VerifyMiddleware(App(), caller.verifier(), public=public)
    assert caught.value.code == "public"


def test_a_limit_below_nothing_is_refused_at_once(caller) -> None:
    with pytest.raises(ConfigurationError, match="bytes"):
        VerifyMiddleware(App(), caller.verifier(), body_limit=-1)


# -- other protocols ------------------------------------------------------------------------------------------------------


async def test_lifespan_passes_through(caller) -> None:
    seen: list[Any] = []

    async def app(*given: Any) -> None:
        seen.append(given)

    given = ({"type": "lifespan"}, object(), object())
    await VerifyMiddleware(app, caller.verifier())(*given)  # type: ignore[arg-type]
    assert seen == [given]
    assert given[0] == {"type": "lifespan"}


async def test_a_protocol_that_nobody_verifies_reaches_nobody(
    app: App, guarded: VerifyMiddleware
) -> None:
    with pytest.raises(ConfigurationError, match="verified"):
        await guarded({"type": "telepathy"}, None, None)  # type: ignore[arg-type]
    assert app.scopes == []


async def shake(guarded: Any, headers: Any, **more: Any) -> list[Any]:
    scope = scope_of("GET", "/feed", headers.items(), type="websocket", scheme="wss", **more)
    del scope["method"]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await guarded(scope, receive, send)
    return sent


async def test_a_websockets_handshake_is_verified(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    headers = caller.headers("GET", "/feed")
    assert await shake(guarded, headers) == [{"type": "websocket.accept"}]
    assert verified_call(app.scopes[0]).principal.sub == "alice"
    assert await shake(guarded, headers) == [{"type": "websocket.close", "code": 1008}]
    assert len(app.scopes) == 1


async def test_a_websocket_is_told_the_problem_where_the_server_can(
    app: App, guarded: VerifyMiddleware
) -> None:
    start, body = await shake(guarded, {}, extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
    assert b"credentials_required" in body["body"]
    assert app.scopes == []


async def test_an_applications_own_error_is_its_own(caller) -> None:
    """Also one of ours, from a call that the application made itself."""
    for error in (
        ZeroDivisionError("own"),
        DeniedError("policy_denied", "own"),
        RefusedError("a", "b"),
    ):

        async def app(*_: Any, error: Exception = error) -> None:
            raise error

        guarded = VerifyMiddleware(app, caller.verifier())
        with pytest.raises(type(error)) as caught:
            await ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))
        assert caught.value is error


async def test_a_refusal_in_a_task_group_is_a_refusal_and_another_failure_beside_it_is_not(
    caller,
) -> None:
    for others in ([], [ZeroDivisionError()]):

        async def app(scope: Any, *_: Any, others: Any = others) -> None:
            try:
                require(scopes=["pay"])(Request(scope))
            except RefusedError as error:
                raise ExceptionGroup("tasks", [ExceptionGroup("inner", [error]), *others]) from None

        guarded = VerifyMiddleware(app, caller.verifier())
        asked = ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))
        if others:
            with pytest.raises(ExceptionGroup):
                await asked
        else:
            assert (await asked).kind == "insufficient_scope"


@pytest.mark.parametrize("kind", [RefusedError, ExceptionGroup])
async def test_what_is_refused_after_the_answer_began_ends_the_answer(caller, kind: Any) -> None:
    async def app(scope: Any, _: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            require(scopes=["pay"])(Request(scope))
        except RefusedError as error:
            raise (error if kind is RefusedError else ExceptionGroup("tasks", [error])) from None

    guarded = VerifyMiddleware(app, caller.verifier())
    with pytest.raises(kind):
        await ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))


# -- require --------------------------------------------------------------------------------------------------------------


class Request:
    """What every framework has: a request with a scope."""

    def __init__(self, scope: Any) -> None:
        self.scope = scope


class Handling:
    """An application of one handler; `swallows` makes of every exception an answer of its own."""

    def __init__(self, handler: Any, *, swallows: bool = False) -> None:
        self._handler = handler
        self._swallows = swallows

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 200
        try:
            await self._handler(Request(scope))
        except RefusedError:
            if not self._swallows:
                raise
            status = 299
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("swallows", [False, True])
@pytest.mark.parametrize(
    ("wanted", "status", "kind"),
    [
        ({}, 200, None),
        ({"scopes": ["read"]}, 200, None),
        ({"scopes": ["read"], "tool": "sign"}, 200, None),
        ({"scopes": ["pay"]}, 403, "insufficient_scope"),
        ({"scopes": ["read", "pay"]}, 403, "insufficient_scope"),
        ({"tool": "Sign"}, 403, "forbidden"),
        ({"tool": ""}, 403, "forbidden"),
    ],
)
async def test_require_holds_a_call_to_scopes_and_tool(
    caller, wanted: Any, status: int, kind: str | None, swallows: bool
) -> None:
    @require(**wanted)
    async def handler(request: Any) -> None:
        pass

    guarded = VerifyMiddleware(Handling(handler, swallows=swallows), caller.verifier())
    answer = await ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))
    assert answer.status == status
    if kind is not None:
        assert answer.kind == kind


async def test_missing_scopes_are_told_so_that_our_own_client_steps_up(caller) -> None:
    @require(scopes=["pay", "read", *"fedcba"])
    async def handler(request: Any) -> None:
        pass

    guarded = VerifyMiddleware(Handling(handler), caller.verifier())
    answer = await ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))
    challenge = wanted_by(answer.status, answer.headers["www-authenticate"])
    assert challenge is not None
    assert challenge.parameters["error"] == "insufficient_scope"
    assert challenge.parameters["scope"] == "a b c d e f pay read"
    assert json.loads(answer.body)["scope"] == "a b c d e f pay read"


async def test_a_tool_is_required_of_a_request_that_asserts_none(caller) -> None:
    @require(tool="sign")
    async def handler(request: Any) -> None:
        pass

    lenient = VerifyMiddleware(Handling(handler), caller.verifier(allow={"unasserted"}))
    headers = caller.headers("GET", "/pay")
    del headers["Agent-Assertion"]
    assert (await ask(lenient, "GET", "/pay", headers)).kind == "forbidden"


async def test_on_a_public_path_require_refuses(caller) -> None:
    @require()
    async def handler(request: Any) -> None:
        raise AssertionError

    guarded = VerifyMiddleware(Handling(handler), caller.verifier(), public={"/healthz"})
    assert (await ask(guarded, "GET", "/healthz")).kind == "credentials_required"


@pytest.mark.parametrize("left", [{}, {CALL: "alice"}, {CALL: {"scopes": ["pay"]}}])
def test_without_the_middleware_require_refuses(left: Any, caplog) -> None:
    with pytest.raises(RefusedError) as caught:
        require()(Request(scope_of("GET", "/pay", []) | left))
    assert caught.value.code == "chain_missing"
    assert "VerifyMiddleware isn't installed" in caplog.text


def test_a_synchronous_handler_is_not_run_either() -> None:
    ran: list[str] = []

    class View:
        @require()
        def get(self, request: Any) -> None:
            ran.append("ran")

    with pytest.raises(RefusedError):
        View().get(Request(scope_of("GET", "/pay", [])))
    with pytest.raises(RefusedError):
        View().get(request=Request(scope_of("GET", "/pay", [])))
    assert ran == []


@pytest.mark.parametrize("thing", [Request, Request({}), "pay", None, require])
def test_require_decorates_functions_and_nothing_else(thing: Any) -> None:
    if thing is require:
        assert require()(thing).__wrapped__ is require
        return
    with pytest.raises(ConfigurationError) as caught:
        require()(thing)
    assert caught.value.code == "endpoint_malformed"


def test_a_handler_that_is_given_no_request_does_not_run() -> None:
    @require()
    def handler(scopes: Any) -> None:
        raise AssertionError

    with pytest.raises(ConfigurationError, match="without a request"):
        handler({"scope": {"type": "http"}})


def test_require_takes_a_list_of_scopes() -> None:
    with pytest.raises(ConfigurationError):
        require(scopes="pay")


# -- what is answered -----------------------------------------------------------------------------------------------------


class FullReplay:
    not_before = 0

    def remember(self, key: object, until: float, /) -> bool:
        raise DeniedError("replay_store_full", "full")


class Everything:
    def is_revoked(self, references: Any, issued_at: float, /) -> bool:
        return True


class Unknown:
    def is_revoked(self, references: Any, issued_at: float, /) -> bool:
        raise VerificationError("revocations_stale", "old")


@pytest.mark.parametrize(
    ("options", "status", "kind", "code"),
    [
        ({"replay": FullReplay()}, 503, "busy", "replay_store_full"),
        ({"revocations": Unknown()}, 503, "busy", "revocations_stale"),
        ({"revocations": Everything()}, 403, "revoked", "revoked"),
    ],
)
async def test_what_is_not_the_requests_own_fault_is_told_apart(
    caller, app: App, options: Any, status: int, kind: str, code: str, caplog
) -> None:
    guarded = VerifyMiddleware(app, caller.verifier(**options))
    answer = await ask(guarded, "GET", "/pay", caller.headers("GET", "/pay"))
    assert (answer.status, answer.kind, app.scopes) == (status, kind, [])
    assert ("retry-after" in answer.headers) == (status == 503)
    assert f"({code})" in caplog.text


async def test_what_has_expired_or_was_before_the_start_is_to_be_signed_anew(
    caller, app: App, clock
) -> None:
    headers = caller.headers("GET", "/pay")
    clock.now += 100
    late = await ask(VerifyMiddleware(app, caller.verifier()), "GET", "/pay", headers)
    clock.now += 4000
    later = await ask(VerifyMiddleware(app, caller.verifier()), "GET", "/pay", headers)
    clock.now -= 4100
    store = MemoryReplay(clock=lambda: clock() + 40)
    early = await ask(VerifyMiddleware(app, caller.verifier(replay=store)), "GET", "/pay", headers)
    assert {late.kind, later.kind, early.kind} == {"expired"}
    assert late.alike == later.alike == early.alike
    assert app.scopes == []


async def test_an_attacker_sees_the_same_bytes_whatever_rule_stops_them(
    caller, app: App, guarded: VerifyMiddleware
) -> None:
    good = caller.headers("GET", "/pay")
    await ask(guarded, "GET", "/pay", good)
    fresh = caller.headers("GET", "/pay")
    attempts = [
        (good, "/pay"),  # replayed
        (fresh, "/other"),
        (fresh, "/pay?x=1"),
        (fresh | {"host": "mail.example"}, "/pay"),
        (fresh | {"Agent-Assertion": good["Agent-Assertion"][:-4] + "AAAA"}, "/pay"),
        (fresh | {"Agent-Assertion": "x"}, "/pay"),
        (fresh | {"Agent-Delegation": "a, b"}, "/pay"),
        (fresh | {"Agent-Delegation": "é, " * 9}, "/pay"),
        (fresh | {"Agent-Delegation": fresh["Agent-Delegation"][:-4] + "AAAA"}, "/pay"),
        (fresh | {"Authorization": "DPoP x"}, "/pay"),
        (fresh | {"Authorization": fresh["Authorization"].replace("DPoP", "Bearer")}, "/pay"),
        (fresh | {"DPoP": good["DPoP"][:-4] + "AAAA"}, "/pay"),
        (fresh | {"Agent-Handover": fresh["Agent-Delegation"]}, "/pay"),
    ]
    answers = [await ask(guarded, "GET", target, headers) for headers, target in attempts]
    assert {answer.kind for answer in answers} == {"refused"}
    assert all(answer.alike == answers[0].alike for answer in answers)
    assert len({answer.body for answer in answers}) == len(answers)
    assert len(app.scopes) == 1
    assert (await ask(guarded, "GET", "/pay", fresh)).status == 200


async def test_the_exact_code_is_in_the_log_under_the_answers_id_and_no_claim_is(
    caller, app: App, guarded: VerifyMiddleware, caplog
) -> None:
    headers = caller.headers("GET", "/pay")
    with caplog.at_level(logging.DEBUG, "agent_identity"):
        caplog.clear()
        answer = await ask(guarded, "GET", "/other", headers)
    (record,) = caplog.records
    said = json.loads(answer.body)
    instance = said["instance"]
    assert record.getMessage() == f"a request was answered with refused (url_mismatch): {instance}"
    assert set(said) == {"type", "title", "status", "detail", "instance"}
    assert "mismatch" not in answer.body.decode()


@pytest.mark.parametrize(
    ("error", "status", "challenge"),
    [
        (InvalidAssertionError("chain_missing", "x"), 401, None),
        (VerificationError("bad_signature", "x"), 401, "invalid_token"),
        (VerificationError("expired", "x"), 401, "invalid_token"),
        (VerificationError("insufficient_scope", "x"), 403, "insufficient_scope"),
        (InvalidAssertionError("details_unseen", "x"), 403, None),
        (RevokedError("revoked", "x"), 403, None),
        (RevokedError("expired", "x"), 403, None),
        (DeniedError("body_too_large", "x"), 413, None),
        (DeniedError("replay_store_full", "x"), 503, None),
        (DeniedError("store_away", "x"), 503, None),
        (VerificationError("anchor_unavailable", "x"), 503, None),
        (VerificationError("a_rule_of_tomorrow", "x"), 401, "invalid_token"),
    ],
)
def test_any_server_can_answer_with_a_problem(error: Any, status: int, challenge: Any) -> None:
    got, headers, body = problem(error, scopes=["pay"])
    assert (got, json.loads(body)["status"]) == (status, status)
    assert headers["Content-Type"] == "application/problem+json"
    assert headers["Content-Length"] == str(len(body))
    assert headers["Cache-Control"] == "no-store"
    assert (b"pay" in body) == (challenge == "insufficient_scope")
    if status == 401:
        assert headers["WWW-Authenticate"].startswith("DPoP ")
        assert "ES256" in headers["WWW-Authenticate"]
    wanted = wanted_by(status, headers.get("WWW-Authenticate", ""))
    assert (None if wanted is None else wanted.parameters["error"]) == challenge
