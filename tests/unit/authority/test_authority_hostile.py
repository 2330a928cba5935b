# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent to the authority, the answer is JSON that quotes nothing of it."""

from __future__ import annotations

import asyncio
import json
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_identity.authority import Authority
from agent_identity.flow import HttpRequest

FORM = "application/x-www-form-urlencoded"
CANARY = "canary-5f1d"
AUTHORITY = Authority()
PATHS = ["/token", "/introspect", "/revoke", "/register", "/jwks", "/", "/x"]
NAMES = [
    *("grant_type", "client_assertion", "client_assertion_type", "client_id", "resource", "scope"),
    *("subject_token", "subject_token_type", "actor_token", "token", "purpose", "assertion"),
]
VALUES = st.one_of(
    st.sampled_from(
        [
            "client_credentials",
            "urn:ietf:params:oauth:grant-type:token-exchange",
            "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "eyJhbGciOiJub25lIn0.e30.",
            "eyJhbGciOiJFUzI1NiIsInR5cCI6ImNsaWVudC1hdXRoZW50aWNhdGlvbitqd3QifQ.eyJpc3MiOiJ4In0.AAAA",
            "a.b.c",
        ]
    ),
    st.text(max_size=30),
)


def json_refusal(response) -> dict[str, str]:
    assert 400 <= response.status < 500, response.status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    found = json.loads(response.body)
    assert found.keys() == {"error", "error_description"}
    return found


@given(st.sampled_from(PATHS[:4]), st.binary(max_size=300))
def test_any_bytes_get_a_json_refusal(path, data) -> None:
    for content_type in (FORM, "application/json", "text/plain"):
        url = f"{AUTHORITY.issuer}{path}"
        request = HttpRequest("POST", url, {"Content-Type": content_type}, data)
        json_refusal(AUTHORITY.handle(request))


@given(
    st.sampled_from(PATHS),
    st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8),
    st.dictionaries(
        st.sampled_from(["DPoP", "Agent-Delegation", "Authorization", "Content-Length"]),
        VALUES,
        max_size=3,
    ),
)
def test_any_form_gets_a_json_refusal(path, fields, headers) -> None:
    data = urlencode(fields, errors="replace").encode()
    url = f"{AUTHORITY.issuer}{path}"
    json_refusal(
        AUTHORITY.handle(HttpRequest("POST", url, {"Content-Type": FORM, **headers}, data))
    )


@given(st.text(max_size=20), st.text(max_size=40), st.dictionaries(st.text(max_size=8), st.text()))
def test_any_request_line_gets_a_json_refusal(method, url, headers) -> None:
    for target in (url, AUTHORITY.issuer + url, f"{AUTHORITY.issuer}/{url}"):
        json_refusal(AUTHORITY.handle(HttpRequest(method, target, headers)))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
)
@given(st.data())
def test_a_mangled_request_of_a_real_client_gets_no_token(rig, bot, data) -> None:
    """One changed byte in a token, header or form is a refusal, or the request means the same as before."""
    root, subject = bot.root(), bot.subject()
    place = data.draw(st.sampled_from(["subject", "root", "assertion", "delegation"]))
    mangled = {"subject": subject, "root": root, "assertion": bot.assertion(), "delegation": root}
    text = mangled[place]
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.=, "))
    if letter == text[at]:
        return
    mangled[place] = text[:at] + letter + text[at + 1 :]
    response = bot.post(
        "/token",
        {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token": mangled["subject"],
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "actor_token": mangled["root"],
            "actor_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "resource": "https://billing.example/api",
        },
        headers={"Agent-Delegation": mangled["delegation"]},
        proof=rig.proof(bot.key),
        assertion=mangled["assertion"],
    )
    json_refusal(response)


def test_nothing_that_was_sent_comes_back(rig, bot) -> None:
    answers = [
        bot.grant(subject=CANARY),
        bot.grant(purpose=CANARY * 50),
        bot.grant(scope=f'{CANARY}"'),
        bot.grant(resource=CANARY),
        bot.exchange([CANARY]),
        bot.exchange([bot.root()], delegation=CANARY),
        bot.post("/token", {"grant_type": CANARY}),
        bot.post("/token", {"grant_type": "client_credentials", "client_secret": CANARY}),
        bot.post("/token", {"grant_type": "client_credentials"}, proof=CANARY),
        bot.post("/token", {"grant_type": "client_credentials"}, assertion=CANARY),
        rig.registration(bot.key, CANARY),
        rig.get(f"{rig.issuer}/{CANARY}"),
        rig.get(f"https://{CANARY}.example/token"),
        rig.authority.handle(HttpRequest(CANARY, f"{rig.issuer}/token")),
    ]
    for response in answers:
        json_refusal(response)
        assert CANARY.encode() not in response.body
        assert CANARY not in str(response.headers)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/token", 405),
        ("PUT", "/register", 405),
        ("HEAD", "/jwks", 405),
        ("POST", "/jwks", 405),
        ("post", "/token", 405),
        ("GET", "/.well-known/openid-configuration", 404),
        ("GET", "/authorize", 404),
        ("POST", "/token/", 404),
        ("POST", "//token", 404),
        ("POST", "/%74oken", 404),
        ("POST", "/x/../token", 404),
        ("POST", "/TOKEN", 404),
        ("POST", "/token#x", 404),
        ("POST", "/token?client_secret=x", 400),
    ],
)
def test_there_are_six_places_and_no_others(rig, method, path, status) -> None:
    response = rig.authority.handle(HttpRequest(method, rig.issuer + path))
    assert json_refusal(response)
    assert response.status == status
    assert ("allow" in response.headers) == (status == 405)


def test_credentials_in_a_url_are_refused(rig, bot) -> None:
    form = {"grant_type": "client_credentials", "resource": "https://a.example"}
    response = bot.post("/token?scope=a", form)
    assert rig.refusal(response) == (400, "invalid_request", "query_unsupported")


def test_another_origin_is_nobody_here(rig) -> None:
    for url in ("https://other.example/token", rig.issuer.replace("https", "http") + "/token"):
        assert rig.authority.handle(HttpRequest("POST", url)).status == 404


def test_a_body_that_is_too_large_is_not_read(rig) -> None:
    request = HttpRequest("POST", f"{rig.issuer}/token", {"Content-Type": FORM}, b"a" * 1_048_577)
    assert rig.authority.handle(request).status == 413


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"grant_type=a&grant_type=b", "parameter_repeated"),
        (b"grant_type=a&grant_type=a", "parameter_repeated"),
        (b"&", "form_malformed"),
        (b"a", "form_malformed"),
        (b"a=%ff", "form_malformed"),
        (b"grant_type=a&b", "form_malformed"),
        ("a=é".encode(), "form_malformed"),
        (b"&".join(b"a%d=1" % at for at in range(101)), "form_malformed"),
        (b"", "grant_type_missing"),
    ],
)
def test_a_form_that_could_be_read_two_ways_is_refused(rig, data, why) -> None:
    request = HttpRequest("POST", f"{rig.issuer}/token", {"Content-Type": FORM}, data)
    assert rig.refusal(rig.authority.handle(request)) == (400, "invalid_request", why)


@pytest.mark.parametrize("kind", [None, "", "application/json", "multipart/form-data", FORM + "x"])
def test_only_a_form_is_read_as_one(rig, bot, kind) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    request = HttpRequest("POST", f"{rig.issuer}/token", headers, b"grant_type=client_credentials")
    assert rig.refusal(rig.authority.handle(request)) == (400, "invalid_request", "not_a_form")
    form = {"grant_type": "client_credentials", "resource": "https://a.example"}
    spelt = {"Content-Type": "Application/X-WWW-Form-URLencoded; charset=UTF-8"}
    assert bot.post("/token", form, headers=spelt).status == 200


def test_a_header_in_two_spellings_is_refused(rig) -> None:
    headers = {"DPoP": "a", "dpop": "b", "Content-Type": FORM}
    response = rig.authority.handle(HttpRequest("POST", f"{rig.issuer}/token", headers))
    assert rig.refusal(response) == (400, "invalid_request", "header_repeated")


def test_a_parameter_without_value_counts_as_left_out(rig, bot) -> None:
    """RFC 6749 §3.2."""
    form = {"grant_type": "client_credentials", "resource": ["", "https://a.example"], "scope": ""}
    assert bot.post("/token", form).status == 200


# --- ASGI, driven by hand -----------------------------------------------------------------------------------------------


def serve(authority, scope, *messages):
    """What an ASGI application sends, for these messages."""
    sent = []

    async def receive():
        return pending.pop(0)

    async def send(message):
        sent.append(message)

    pending = list(messages)
    asyncio.run(authority.asgi()(scope, receive, send))
    return sent


def http(authority, *, headers=(), path="/jwks", method="GET", **scope):
    host = authority.issuer.partition("://")[2].partition("/")[0].encode()
    names = {name for name, _ in headers}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [*headers, *([] if b"host" in names else [(b"host", host)])],
    } | scope


EMPTY = {"type": "http.request", "body": b""}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200),
        ([(b"host", b"127.0.0.1:8600")], 200),
        ([(b"host", b"127.0.0.1:8600"), (b"host", b"127.0.0.1:8600")], 400),
        ([(b"host", b"localhost:8600")], 421),
        ([(b"host", b"127.0.0.1")], 421),
        ([(b"host", b"127.0.0.1:8600.evil.example")], 421),
        ([(b"host", b"evil.example")], 421),
        ([(b"host", b"")], 421),
        ([(b"origin", b"http://127.0.0.1:8600")], 200),
        ([(b"origin", b"http://evil.example")], 403),
        ([(b"origin", b"null")], 403),
    ],
)
def test_E11_on_loopback_only_its_own_name_is_answered(make_rig, headers, status) -> None:
    authority = make_rig(issuer="http://127.0.0.1:8600").authority
    sent = serve(authority, http(authority, headers=headers), EMPTY)
    assert sent[0]["status"] == status


def test_E11_a_wrong_host_changes_nothing(make_rig) -> None:
    rig = make_rig(issuer="http://127.0.0.1:8600")
    bot = rig.client()
    form = {
        "grant_type": "client_credentials",
        "resource": "https://a.example",
        "client_assertion": bot.assertion(),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
    }
    message = {"type": "http.request", "body": urlencode(form).encode()}
    kind = (b"content-type", FORM.encode())
    for host, status in ((b"evil.example", 421), (b"127.0.0.1:8600", 200)):
        scope = http(rig.authority, method="POST", path="/token", headers=[kind, (b"host", host)])
        assert serve(rig.authority, scope, message)[0]["status"] == status


def test_a_public_authority_leaves_names_to_its_proxy(make_rig) -> None:
    authority = make_rig(issuer="https://as.example").authority
    sent = serve(authority, http(authority, headers=[(b"host", b"10.0.0.7:8080")]), EMPTY)
    assert sent[0]["status"] == 200


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([(b"content-length", b"1048577")], b"", 413),
        ([(b"content-length", b"9" * 30)], b"", 413),
        ([(b"content-length", b"-1")], b"", 413),
        ([], b"a" * 1_048_577, 413),
        ([(b"x", b"a" * 98_304)], b"", 431),
        ([(b"x", b"a")] * 101, b"", 431),
        ([(b"dpop", b"a"), (b"DPoP", b"b")], b"", 400),
        ([(b"accept", b"a"), (b"accept", b"b"), (b"content-type", FORM.encode())], b"", 400),
    ],
)
def test_limits_come_before_everything(rig, headers, body, status) -> None:
    scope = http(rig.authority, method="POST", path="/token", headers=headers)
    half = len(body) // 2
    messages = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:]},
    ]
    start, finish = serve(rig.authority, scope, *messages)
    assert start["status"] == status
    assert json.loads(finish["body"])["error"] == "invalid_request"


def test_a_body_without_end_is_cut_off_at_the_limit(rig) -> None:
    chunk = {"type": "http.request", "body": b"a" * 65_536, "more_body": True}
    scope = http(rig.authority, method="POST", path="/token")
    assert serve(rig.authority, scope, *[chunk] * 17)[0]["status"] == 413


def test_who_hangs_up_gets_no_answer(rig) -> None:
    scope = http(rig.authority, method="POST", path="/token")
    assert serve(rig.authority, scope, {"type": "http.disconnect"}) == []


def test_a_websocket_is_closed_and_a_lifespan_kept(rig) -> None:
    (closed,) = serve(rig.authority, {"type": "websocket"})
    assert closed["type"] == "websocket.close"
    sent = serve(
        rig.authority,
        {"type": "lifespan"},
        {"type": "lifespan.startup"},
        {"type": "lifespan.shutdown"},
    )
    assert [m["type"] for m in sent] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


def test_a_path_is_taken_as_it_was_sent(rig) -> None:
    scope = http(rig.authority, path="/jwks") | {"raw_path": b"/%6awks"}
    assert serve(rig.authority, scope, EMPTY)[0]["status"] == 404
