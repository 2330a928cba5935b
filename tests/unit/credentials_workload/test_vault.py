# SPDX-License-Identifier: Apache-2.0
"""OpenBao and Vault, played by hand; the answers are those of a real OpenBao 2.7 in dev mode."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity.credentials.vault.secrets import Reference, Vault, parse_reference
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Pause, Shared, pure, run
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Secret

NOW = 1_795_518_000.0
ADDRESS = "https://vault.example:8200"
WORKLOAD, LOGIN, CANARY = "canary-workload-4Tz", "canary-login-8Bn", "canary-secret-6Yk"
DATA = f"{ADDRESS}/v1/secret/data/billing/api"


def vault(**options: Any) -> Vault:
    settings: dict[str, Any] = {"clock": lambda: NOW, "role": "agent"} | options
    return Vault(ADDRESS, lambda: pure(Secret(WORKLOAD)), **settings)


def answer(document: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps(document).encode())


def logged_in(token: str = LOGIN, lease: Any = 60, **more: Any) -> HttpResponse:
    return answer({"auth": {"client_token": token, "lease_duration": lease, **more}})


def version(number: int, data: Any, status: int = 200) -> HttpResponse:
    return answer({"data": {"data": data, "metadata": {"version": number}}}, status)


NOTHING = answer({"errors": []}, 404)
FORBIDDEN = answer({"errors": ["permission denied"]}, 403)
CONFLICT = answer({"errors": ["check-and-set parameter did not match the current version"]}, 400)
WRITTEN = answer({"data": {"version": 8}})


def requests(asks: list[Any]) -> list[HttpRequest]:
    return [ask for ask in asks if isinstance(ask, HttpRequest)]


class Server:
    """A world with a clock of its own, and a cache: a login serves until it ends. It answers what a test lines up."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.now = NOW
        self.cache: dict[bytes, Any] = {}
        self.sent: list[HttpRequest] = []
        self.pauses: list[float] = []

    def __call__(self, ask: Any) -> Any:
        self.now += 1
        if isinstance(ask, Shared):
            found = self.cache.get(ask.key)
            if found is None or found.expires_at <= self.now:
                found = self.cache[ask.key] = run(ask.start(), self)
            return found
        if isinstance(ask, Pause):
            self.pauses.append(ask.seconds)
            return None
        self.sent.append(ask)
        reply = self.answers.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def run(self, flow: Any) -> Any:
        found = run(flow, self)
        assert self.answers == []
        return found.reveal() if isinstance(found, Secret) else found

    @property
    def methods(self) -> list[str]:
        return [
            "LOGIN" if request.url.endswith("/login") else request.method for request in self.sent
        ]


# -- reading ---------------------------------------------------------------------------------------------------------


def test_the_workload_s_token_logs_in_and_reads_one_field() -> None:
    asks: list[Any] = []
    flow = vault().read("vault:billing/api#key")
    found = play(flow, logged_in(), version(3, {"key": CANARY, "value": "other"}), asks=asks)
    assert found == Secret(CANARY)
    login, read = requests(asks)
    assert (login.method, login.url) == ("POST", f"{ADDRESS}/v1/auth/jwt/login")
    assert json.loads(login.body) == {"role": "agent", "jwt": WORKLOAD}
    assert "X-Vault-Token" not in login.headers
    assert (read.method, read.url, read.body) == ("GET", DATA, b"")
    assert read.headers["X-Vault-Token"] == LOGIN
    assert {request.headers["X-Vault-Request"] for request in (login, read)} == {"true"}
    assert "X-Vault-Namespace" not in {**login.headers, **read.headers}


def test_mounts_and_namespace_are_where_they_are_configured() -> None:
    asks: list[Any] = []
    made = vault(auth_mount="ci/jwt", kv_mount="kv/team", namespace="admin/eu")
    play(made.read("vault:a"), logged_in(), version(1, {"value": "x"}), asks=asks)
    assert [request.url for request in requests(asks)] == [
        f"{ADDRESS}/v1/auth/ci/jwt/login",
        f"{ADDRESS}/v1/kv/team/data/a",
    ]
    assert {request.headers["X-Vault-Namespace"] for request in requests(asks)} == {"admin/eu"}


@pytest.mark.parametrize(
    "reply",
    [
        NOTHING,
        HttpResponse(404, {"content-type": "text/html"}, b"<html>"),
        version(2, None, 404),
        version(2, None),
        version(2, {"other": "x"}),
        version(2, {"value": None}),
        version(2, {}),
    ],
)
def test_what_is_not_there_is_none(reply) -> None:
    assert play(vault().read("vault:billing"), logged_in(), reply) is None


@pytest.mark.parametrize("value", ["", 3, True, [CANARY], {"x": CANARY}])
def test_a_field_that_holds_no_text_is_broken_and_not_absent(value) -> None:
    with pytest.raises(ConfigurationError) as caught:
        play(vault().read("vault:billing"), logged_in(), version(2, {"value": value}))
    assert caught.value.code == "secret_unreadable"
    assert_no_leak([CANARY, LOGIN, WORKLOAD], caught.value)


# -- logins ----------------------------------------------------------------------------------------------------------


def test_a_login_is_shared_while_its_lease_lasts() -> None:
    server = Server(logged_in(), version(1, {"value": "x"}), version(1, {"value": "y"}))
    made = vault(clock=lambda: server.now)
    assert run(made.read("vault:a"), server) == Secret("x")
    assert run(made.read("vault:b"), server) == Secret("y")
    assert server.methods == ["LOGIN", "GET", "GET"]


def test_after_its_lease_there_is_another_login() -> None:
    server = Server(logged_in(lease=60), version(1, {"value": "x"}))
    made = vault(clock=lambda: server.now)
    server.run(made.read("vault:a"))
    server.now += 60
    server.answers += [logged_in(), version(1, {"value": "x"})]
    server.run(made.read("vault:a"))
    assert server.methods == ["LOGIN", "GET", "LOGIN", "GET"]


@pytest.mark.parametrize(("lease", "life"), [(60, 60), (0, 300), (10**7, 86_400)])
def test_a_login_lives_as_long_as_its_lease_within_reason(lease, life) -> None:
    server = Server(logged_in(lease=lease), NOTHING)
    server.run(vault().read("vault:a"))
    (login,) = server.cache.values()
    assert (login.issued_at, login.expires_at) == (NOW, NOW + life)
    assert_no_leak([LOGIN], login)


def test_a_cached_login_that_is_refused_is_replaced_once() -> None:
    server = Server(logged_in(), version(1, {"value": "x"}))
    made = vault(clock=lambda: server.now)
    server.run(made.read("vault:a"))
    server.answers += [FORBIDDEN, logged_in("second-login"), version(1, {"value": CANARY})]
    assert server.run(made.read("vault:a")) == CANARY
    assert server.methods == ["LOGIN", "GET", "GET", "LOGIN", "GET"]
    assert server.sent[-1].headers["X-Vault-Token"] == "second-login"
    server.answers.append(version(1, {"value": "y"}))
    server.run(made.read("vault:a"))
    assert server.sent[-1].headers["X-Vault-Token"] == "second-login"


def test_a_login_that_is_refused_twice_is_the_end_of_it() -> None:
    server = Server(logged_in(), version(1, {"value": "x"}))
    made = vault(clock=lambda: server.now)
    server.run(made.read("vault:a"))
    server.answers += [FORBIDDEN, logged_in(), FORBIDDEN]
    with pytest.raises(CredentialRejectedError) as caught:
        server.run(made.read("vault:a"))
    assert caught.value.code == "vault_forbidden"
    assert server.methods == ["LOGIN", "GET", "GET", "LOGIN", "GET"]


def test_a_fresh_login_that_is_refused_is_not_replaced() -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        play(vault().read("vault:a"), logged_in(), FORBIDDEN)
    assert caught.value.code == "vault_forbidden"
    assert "data/" in (caught.value.remedy or "")


def test_two_that_find_a_login_refused_share_the_new_one() -> None:
    """Each leaves with the login that both had; the second to come back asks for no third."""
    server = Server(logged_in(), version(1, {"value": "x"}))
    made = vault(clock=lambda: server.now)
    server.run(made.read("vault:a"))
    slow = made.read("vault:b")
    login = server(next(slow))
    slow.send(login)
    server.answers += [FORBIDDEN, logged_in("second-login"), version(1, {"value": "x"})]
    server.run(made.read("vault:a"))
    again = slow.send(FORBIDDEN)
    assert isinstance(again, Shared)
    assert slow.send(server(again)).headers["X-Vault-Token"] == "second-login"
    slow.close()
    assert server.methods.count("LOGIN") == 2


def test_two_vaults_never_share_a_login() -> None:
    server = Server(logged_in(), NOTHING, logged_in(), NOTHING)
    for made in (vault(), vault()):
        run(made.read("vault:a"), server)
    assert server.methods == ["LOGIN", "GET"] * 2


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_refused_login_names_the_role_and_quotes_nothing(status) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        play(vault().read("vault:a"), answer({"errors": [f"no {WORKLOAD}"]}, status))
    assert caught.value.code == "vault_login_refused"
    assert "agent" in (caught.value.remedy or "")
    assert_no_leak([WORKLOAD], caught.value)


@pytest.mark.parametrize(
    "auth",
    [
        None,
        {},
        {"client_token": LOGIN},
        {"client_token": "", "lease_duration": 60},
        {"client_token": f"{LOGIN}\r\nX-Evil: 1", "lease_duration": 60},
        {"client_token": 7, "lease_duration": 60},
        {"client_token": LOGIN, "lease_duration": "60"},
        {"client_token": LOGIN, "lease_duration": -1},
        {"client_token": LOGIN, "lease_duration": True},
    ],
)
def test_a_login_that_can_t_be_read_is_refused(auth) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        play(vault().read("vault:a"), answer({"auth": auth}))
    assert caught.value.code == "malformed_answer"
    assert_no_leak([LOGIN, WORKLOAD], caught.value)


# -- when the server fails -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("replies", "kind", "code"),
    [
        ([answer({"errors": [CANARY]}, 503)] * 3, CredentialUnavailableError, "issuer_busy"),
        (
            [TransportError("connect_failed", "no route")] * 3,
            CredentialUnavailableError,
            "issuer_unreachable",
        ),
        (
            [HttpResponse(307, {"location": "https://evil.example"})],
            CredentialRejectedError,
            "redirected",
        ),
        ([answer({"errors": [CANARY]}, 400)], CredentialRejectedError, "unknown_error"),
        ([HttpResponse(200, {}, CANARY.encode())], CredentialRejectedError, "not_json"),
        (
            [HttpResponse(200, {"content-type": "application/json"}, CANARY.encode())],
            CredentialRejectedError,
            "malformed_answer",
        ),
        ([answer({"data": {"value": CANARY}})], CredentialRejectedError, "malformed_answer"),
        ([answer({"data": [CANARY]})], CredentialRejectedError, "malformed_answer"),
    ],
)
def test_a_reading_that_fails_is_typed_and_quotes_nothing(replies, kind, code) -> None:
    server = Server(logged_in(), *replies)
    with pytest.raises(kind) as caught:
        server.run(vault(clock=lambda: server.now).read("vault:a"))
    assert caught.value.code == code
    assert server.answers == []
    assert_no_leak([CANARY, LOGIN, WORKLOAD], caught.value)


def test_a_busy_server_is_asked_three_times_and_waited_for() -> None:
    busy = HttpResponse(429, {"retry-after": "2"})
    server = Server(busy, logged_in(), busy, version(1, {"value": CANARY}))
    assert server.run(vault(clock=lambda: server.now).read("vault:a")) == CANARY
    assert server.pauses == [2, 2]


# -- writing ---------------------------------------------------------------------------------------------------------


def written(server: Server) -> list[Any]:
    return [
        json.loads(request.body)
        for request in server.sent
        if request.method == "POST" and request.url == DATA
    ]


@pytest.mark.parametrize(
    ("found", "secret", "data", "cas"),
    [
        (NOTHING, CANARY, {"key": CANARY}, 0),
        (version(7, {"key": "old", "n": 3}), CANARY, {"key": CANARY, "n": 3}, 7),
        (version(5, None, 404), CANARY, {"key": CANARY}, 5),
        (version(7, {"key": "old", "n": 3}), None, {"n": 3}, 7),
        (version(7, {"key": "old"}), None, {}, 7),
    ],
)
def test_one_field_is_written_over_the_version_that_was_read(found, secret, data, cas) -> None:
    kept = None if secret is None else Secret(secret)
    server = Server(logged_in(), found, WRITTEN)
    server.run(vault(namespace="eu").keep("vault:billing/api#key", kept))
    assert written(server) == [{"data": data, "options": {"cas": cas}}]
    assert server.sent[-1].headers["X-Vault-Token"] == LOGIN
    assert server.sent[-1].headers["X-Vault-Namespace"] == "eu"


@pytest.mark.parametrize("found", [NOTHING, version(2, {"other": "x"}), version(2, None, 404)])
def test_what_is_not_there_is_not_taken_away(found) -> None:
    server = Server(logged_in(), found)
    server.run(vault().keep("vault:billing/api#key", None))
    assert written(server) == []


def test_what_somebody_else_wrote_beside_it_is_kept() -> None:
    server = Server(
        *(logged_in(), version(7, {"key": "old"}), CONFLICT),
        *(version(8, {"key": "old", "theirs": "x"}), WRITTEN),
    )
    server.run(vault().keep("vault:billing/api#key", Secret("new")))
    assert written(server)[-1] == {"data": {"key": "new", "theirs": "x"}, "options": {"cas": 8}}


def test_what_somebody_else_wrote_in_its_place_is_not_overwritten() -> None:
    server = Server(
        *(logged_in(), version(7, {"key": "old"}), CONFLICT, version(8, {"key": CANARY})),
    )
    with pytest.raises(CredentialRejectedError) as caught:
        server.run(vault().keep("vault:billing/api#key", Secret("new")))
    assert caught.value.code == "vault_conflict"
    assert len(written(server)) == 1
    assert_no_leak([CANARY, LOGIN], caught.value)


def test_a_place_that_others_never_leave_alone_is_given_up() -> None:
    rounds = [
        reply for number in (8, 9, 10) for reply in (CONFLICT, version(number, {"key": "old"}))
    ]
    server = Server(logged_in(), version(7, {"key": "old"}), *rounds)
    with pytest.raises(CredentialRejectedError) as caught:
        server.run(vault().keep("vault:billing/api#key", Secret("new")))
    assert caught.value.code == "vault_conflict"
    assert server.answers == []


def test_a_writing_that_is_refused_for_another_reason_is_no_conflict() -> None:
    server = Server(
        logged_in(), *[version(7, {"key": "old"}), CONFLICT, version(7, {"key": "old"})]
    )
    with pytest.raises(CredentialRejectedError) as caught:
        server.run(vault().keep("vault:billing/api#key", Secret(CANARY)))
    assert caught.value.code == "unknown_error"
    assert_no_leak([CANARY, LOGIN], caught.value)


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (FORBIDDEN, CredentialRejectedError, "vault_forbidden"),
        (answer({}, 503), CredentialUnavailableError, "issuer_busy"),
        (TransportError("reset", "gone"), CredentialUnavailableError, "issuer_unreachable"),
    ],
)
def test_a_writing_that_fails_is_not_repeated(reply, kind, code) -> None:
    """Nobody knows whether it was done."""
    server = Server(logged_in(), version(7, {"key": "old"}), reply)
    with pytest.raises(kind) as caught:
        server.run(vault().keep("vault:billing/api#key", Secret(CANARY)))
    assert caught.value.code == code
    assert len(written(server)) == 1
    assert_no_leak([CANARY, LOGIN, WORKLOAD], caught.value)


def test_a_text_that_has_no_bytes_is_not_written() -> None:
    with pytest.raises(ConfigurationError) as caught:
        play(vault().keep("vault:a", Secret(CANARY + "\ud800")))
    assert caught.value.code == "secret_unreadable"
    assert_no_leak([CANARY], caught.value)


# -- what it is given ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("vault:a", Reference("a", "value")),
        ("vault:a/b#c", Reference("a/b", "c")),
        ("vault:team-1/x.y_z~/@me#api.key-1_b", Reference("team-1/x.y_z~/@me", "api.key-1_b")),
        ("vault:.../..a/b..", Reference(".../..a/b..", "value")),
    ],
)
def test_a_reference_is_a_path_and_a_field(text, found) -> None:
    assert parse_reference(text) == found


@pytest.mark.parametrize(
    "text",
    [
        *("", "vault", "vault:", "vault:#", "vault:a#", "vault:#a", "env:A", "VAULT:a", "a#b"),
        *("vault:/a", "vault:a/", "vault:a//b", "vault:a/../b", "vault:..", "vault:.", "vault:a/."),
        *(
            "vault:a?version=1",
            "vault:a#b?c",
            "vault:a#b#c",
            "vault:a%2f..",
            "vault:a b",
            "vault:a\\b",
        ),
        *("vault:a\n", "vault:a#b\n", "vault:ä", "vault:a#ä", "vault:https://x", "vault:a#b/c"),
    ],
)
def test_a_reference_with_another_reading_is_refused_and_nothing_is_asked(text) -> None:
    for flow in (vault().read(text), vault().keep(text, None)):
        with pytest.raises(ConfigurationError) as caught:
            play(flow)
        assert caught.value.code == "reference_malformed"


@pytest.mark.parametrize(
    "address",
    [
        *("", "vault.example", "http://vault.example:8200", "https://vault.example/"),
        *("https://vault.example/v1", "https://Vault.example", "https://me@vault.example"),
        *("https://vault.example?x", "ftp://vault.example", "https://vault.example:443"),
    ],
)
def test_an_address_that_is_no_safe_origin_is_refused(address) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Vault(address, lambda: pure(Secret("")), clock=lambda: NOW, role="agent")
    assert caught.value.code == "vault_malformed"


def test_a_vault_on_this_very_machine_may_do_without_tls() -> None:
    assert Vault("http://127.0.0.1:8200", lambda: pure(Secret("")), clock=lambda: NOW, role="a")


@pytest.mark.parametrize("option", ["auth_mount", "kv_mount", "namespace"])
@pytest.mark.parametrize("value", ["", "/a", "a/", "a/../b", "a?b", "a\r\nX: y", "a b"])
def test_a_mount_that_leads_elsewhere_is_refused(option, value) -> None:
    with pytest.raises(ConfigurationError) as caught:
        vault(**{option: value})
    assert caught.value.code == "vault_malformed"
    assert option in str(caught.value)


def test_a_vault_has_no_readable_secrets() -> None:
    server = Server(logged_in(), version(1, {"value": CANARY}))
    made = vault()
    found = server.run(made.read("vault:a"))
    assert found == CANARY
    assert_no_leak([CANARY, LOGIN, WORKLOAD], made, *map(repr, server.sent), *server.cache.values())


def test_an_error_of_the_workload_s_login_is_passed_on() -> None:
    def no_token() -> Any:
        raise CredentialRejectedError("malformed_token", "the platform is broken")
        yield

    made = Vault(ADDRESS, no_token, clock=lambda: NOW, role="agent")
    with pytest.raises(AgentIdentityError) as caught:
        play(made.read("vault:a"))
    assert caught.value.code == "malformed_token"
