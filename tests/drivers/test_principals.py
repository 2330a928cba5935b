# SPDX-License-Identifier: Apache-2.0
"""Who is acted for, end to end: which tokens prove a principal, until when, and whose name goes to whom."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import httpx
import pytest

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    DeniedError,
    InvalidSubjectError,
    current_credential,
    tool,
)
from agent_identity.credentials import SubjectTokens
from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN
from agent_identity.credentials.principal_tokens import Trusted, verify_subject
from agent_identity.flow import run
from agent_identity.jose import loads_object, unverified
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import FakeIssuer, FakeWeb, assert_no_leak
from agent_identity.testing.web import FakeResponse, Received
from agent_identity.values import b64url, scrub

BILLING = "https://billing.example"
Configured = Callable[..., AgentIdentity]


class Clock:
    """Unix seconds that a test moves."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class People(FakeIssuer):
    """An issuer whose refresh and introspection a test says."""

    def __init__(self, **parts: Any) -> None:
        self.introspection: dict[str, Any] | None = None
        self.refreshed: Callable[[dict[str, str]], dict[str, Any]] | None = None
        super().__init__(**parts)

    def metadata(self) -> dict[str, Any]:
        return {
            **super().metadata(),
            **(
                {}
                if self.introspection is None
                else {"introspection_endpoint": f"{self.url}/introspect"}
            ),
        }

    def answer(self, request: Received) -> FakeResponse:
        if request.path == "/introspect":
            return FakeResponse(200, {}, json.dumps(self.introspection).encode())
        return super().answer(request)

    def _issue_access_token(self, sub: str, form: dict[str, str], jkt: str | None) -> FakeResponse:
        if form["grant_type"] != "refresh_token" or self.refreshed is None:
            return super()._issue_access_token(sub, form, jkt)
        said = {"token_type": "Bearer", "expires_in": 300, **self.refreshed(form)}
        return FakeResponse(200, {}, json.dumps(said).encode())

    def left(self, sub: str) -> str:
        """A refresh token of somebody's."""
        return self._issue_refresh_token(sub)

    @property
    def asked(self) -> list[dict[str, str]]:
        """The forms that came to the token endpoint."""
        return [form_of(one) for one in self.received if one.path == "/token"]

    def renews(self) -> None:
        """Its refresh answers are tokens for the agent."""
        self.refreshed = lambda _: {
            "access_token": self.access(),
            "refresh_token": self.left("alice"),
        }

    def access(self, sub: str = "alice", **claims: Any) -> str:
        return self.token(sub, audience="invoice-bot", claims=claims)

    def id(self, sub: str = "alice", **claims: Any) -> str:
        return self.token(
            sub, audience="invoice-bot", typ="JWT", claims={"auth_time": 1, "nonce": "n", **claims}
        )


def form_of(request: Received) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode()))


def claims_of(token: str) -> dict[str, Any]:
    return loads_object(unverified(token).payload)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def idp(clock: Clock) -> Iterator[People]:
    with People(clock=clock) as issuer:
        yield issuer


@pytest.fixture
def other(idp: People, clock: Clock) -> Iterator[People]:
    with People(trusts=[idp], clock=clock) as issuer:
        yield issuer


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as server:
        yield server


@pytest.fixture
def configured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> Iterator[Configured]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    made: list[AgentIdentity] = []
    key = tmp_path / "client.pem"
    key.write_bytes(SigningKey.generate().to_pem())
    key.chmod(0o600)

    def make(text: str, **how: Any) -> AgentIdentity:
        path = tmp_path / "agent-identity.toml"
        rest = '[policy]\nengine = "grants-only"\n[ledger]\nurl = "memory:"\n'
        path.write_text(f'[agent]\nname = "invoice-bot"\n{rest}{text}')
        path.chmod(0o600)
        identity = AgentIdentity.from_config(path, clock=clock, **how)
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()


def table(issuer: FakeIssuer, name: str, *more: str) -> str:
    lines = [f"[issuers.{name}]", f'issuer = "{issuer.url}"', 'client_id = "invoice-bot"']
    return "\n".join([*lines, 'client_key = "file:client.pem"', *more, ""])


def acme(idp: FakeIssuer, *more: str) -> str:
    return table(idp, "acme", 'trust = ["subjects"]', *more)


def resource(uri: str, *lines: str) -> str:
    return "\n".join([f'[resources."{uri}"]', *lines, ""])


def refused(identity: AgentIdentity, subject: Any) -> str:
    with pytest.raises(InvalidSubjectError) as caught:
        identity.on_behalf_of(subject, purpose="p").__enter__()
    return caught.value.code


# -- whose name goes to whom -----------------------------------------------------------------------------------------------


def test_a_trigger_is_never_signed_for_as_if_it_were_somebody(
    configured: Configured, idp: People
) -> None:
    """`trigger` is whatever set the run off: "alice" among it would be alice's token."""
    identity = configured(
        table(idp, "acme") + resource(BILLING, 'source = "jwt-bearer"', 'issuer = "acme"')
    )
    with identity.autonomous(trigger="alice", purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["x"])
    assert caught.value.code == "principal_unknown_there"
    assert idp.asked == []


def test_a_principal_of_one_issuer_is_not_signed_for_at_another(
    configured: Configured, idp: People, other: People
) -> None:
    text = acme(idp) + table(other, "other")
    identity = configured(text + resource(BILLING, 'source = "jwt-bearer"', 'issuer = "other"'))
    with identity.on_behalf_of(idp.access("admin"), purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["x"])
    assert caught.value.code == "principal_unknown_there"
    assert "subjects_of" in str(caught.value.remedy)
    assert other.asked == []


def test_a_refresh_token_that_was_left_for_all_gives_nobody_alices_access(
    configured: Configured, idp: People, tmp_path: Path
) -> None:
    place = tmp_path / "rt"
    lines = ('source = "refresh-token"', 'issuer = "acme"', 'refresh_token = "file:rt"')
    identity = configured(acme(idp) + resource(BILLING, *lines))

    def left() -> None:
        place.write_text(idp.left("alice"))
        place.chmod(0o600)

    left()
    with identity.on_behalf_of(idp.access("bob"), purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["x"])
        assert caught.value.code == "subject_mismatch"
    left()
    with identity.on_behalf_of(idp.access("alice"), purpose="p") as session:
        assert claims_of(session.credential(BILLING, ["x"]).reveal())["sub"] == "alice"
    with identity.autonomous(trigger="cron:x", purpose="p") as session:
        assert claims_of(session.credential(BILLING, ["x"]).reveal())["sub"] == "alice"


@pytest.mark.parametrize("source", ["id-jag", "identity-chaining"])
def test_a_grant_about_somebody_else_never_reaches_the_other_domain(
    configured: Configured, idp: People, other: People, source: str, monkeypatch: Any
) -> None:
    between = FakeIssuer._issue_for_domain
    monkeypatch.setattr(
        idp, "_issue_for_domain", lambda kind, sub, form, jkt: between(idp, kind, "bob", form, jkt)
    )
    text = acme(idp) + table(other, "other")
    lines = (f'source = "{source}"', 'via = "acme"', 'issuer = "other"')
    identity = configured(text + resource(BILLING, *lines))
    tokens = SubjectTokens(access_token=idp.access(), id_token=idp.id())
    with identity.on_behalf_of(tokens, purpose="p") as session:
        with pytest.raises(CredentialRejectedError) as caught:
            session.credential(BILLING, ["x"])
    assert caught.value.code == "subject_mismatch"
    assert other.asked == []


def test_a_session_that_acts_for_nobody_asks_nobody_to_sign_in(
    configured: Configured, idp: People
) -> None:
    shown: list[Any] = []
    lines = ('source = "authorization-code"', 'issuer = "acme"')
    identity = configured(acme(idp) + resource(BILLING, *lines), on_interaction=shown.append)
    with identity.autonomous(trigger="cron:night", purpose="p") as session:
        with pytest.raises(DeniedError) as caught:
            session.credential(BILLING, ["x"])
    assert (caught.value.code, shown) == ("interaction_without_principal", [])


# -- until when ------------------------------------------------------------------------------------------------------------


def key_resource(web: FakeWeb, tmp_path: Path) -> str:
    (tmp_path / "k").write_text("key-1")
    (tmp_path / "k").chmod(0o600)
    return resource(web.url, 'source = "api-key"', 'secret = "file:k"', 'assertion = "send"')


def brief(idp: People, clock: Clock, refresh_token: str) -> SubjectTokens:
    """Tokens of alice's that prove her for forty seconds."""
    return SubjectTokens(
        access_token=idp.access(exp=int(clock.now) + 40), refresh_token=refresh_token
    )


def test_B30_a_session_ends_with_the_principals_token_however_long_it_was_to_last(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    identity = configured(acme(idp) + key_resource(web, tmp_path))
    late = identity.on_behalf_of(idp.access(exp=int(clock.now) - 61), purpose="p")
    with pytest.raises(InvalidSubjectError) as expired:
        late.__enter__()
    assert expired.value.code == "expired"
    ending = idp.access(exp=int(clock.now) + 60)
    with identity.on_behalf_of(ending, purpose="p", expires_in=3600) as session:
        assert session.expires_at == int(clock.now) + 60
        with session.http(web.url) as client:
            client.get("")
            assert claims_of(web.received[-1].headers["agent-delegation"])["exp"] <= clock.now + 60
            clock.now += 61
            with pytest.raises(DeniedError) as ended:
                client.get("")
    assert ended.value.code == "session_expired"
    assert len(web.received) == 1


def test_a_refresh_token_that_is_none_proves_nobody_beyond_their_token(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    identity = configured(acme(idp) + key_resource(web, tmp_path))
    ran: list[str] = []

    @tool()
    def local() -> None:
        ran.append("local")

    with identity.on_behalf_of(brief(idp, clock, "junk"), purpose="p") as session:
        local()
        held = session.credential(web.url)
        with session.http(web.url) as client:
            assert client.get("").status_code == 200
            clock.now += 41
            for act in (
                local,
                lambda: client.get(""),
                lambda: session.credential(web.url),
                lambda: session.delegate("sub").__enter__().credential(web.url),
            ):
                with pytest.raises(CredentialRejectedError) as caught:
                    act()
                assert caught.value.code in ("invalid_grant", "refresh_token_missing")
        with pytest.raises(DeniedError) as denied:
            held.headers("GET", web.url)
        assert denied.value.code == "principal_outdated"
    assert (len(web.received), ran) == (1, ["local"])


def test_tokens_of_the_principal_that_were_renewed_are_scrubbed_while_the_session_lasts(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    idp.renews()
    identity = configured(acme(idp) + key_resource(web, tmp_path))
    tokens = brief(idp, clock, idp.left("alice"))
    given = [tokens.access_token.reveal(), tokens.refresh_token.reveal()]
    with identity.on_behalf_of(tokens, purpose="p") as session:
        clock.now += 1800
        session.credential(web.url)
        assert tokens.access_token.reveal() != given[0]
        gc.collect()
        for token in given:
            assert scrub(f"it was {token.rpartition('.')[2]}!") == "it was <secret>!"


def test_a_session_with_a_refresh_token_goes_on_by_fresh_tokens_that_were_verified(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    idp.renews()
    identity = configured(acme(idp) + key_resource(web, tmp_path))
    tokens = brief(idp, clock, idp.left("alice"))
    with identity.on_behalf_of(tokens, purpose="p") as session:
        assert session.expires_at == clock.now + 3600
        with session.http(web.url) as client:
            client.get("")
            first = claims_of(web.received[-1].headers["agent-delegation"])
            assert first["exp"] <= clock.now + 40
            assert idp.asked == []
            clock.now += 1800
            assert client.get("").status_code == 200
        second = claims_of(web.received[-1].headers["agent-delegation"])
        assert (second["sub"], second["evidence"]) == ("alice", "issuer")
        assert clock.now < second["exp"] <= clock.now + 300
        assert [form["grant_type"] for form in idp.asked] == ["refresh_token"]
        assert session._state.proof.until > clock.now
        with session.delegate("sub") as below:
            assert below._state.proof.until == session._state.proof.until


async def test_in_async_code_it_is_the_same(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    idp.renews()
    identity = configured(acme(idp) + key_resource(web, tmp_path))

    @tool()
    async def local() -> str:
        return session.principal.sub

    tokens = brief(idp, clock, idp.left("alice"))
    async with identity.on_behalf_of(tokens, purpose="p") as session:
        assert await local() == "alice"
        clock.now += 1800
        assert await local() == "alice"
        assert len(idp.asked) == 1
        idp.refreshed = lambda _: {"access_token": idp.access("bob")}
        clock.now += 1000
        with pytest.raises(InvalidSubjectError) as caught:
            await local()
    assert caught.value.code == "subject_mismatch"


def test_shortly_before_the_end_fresh_tokens_are_asked_for_once_and_missed_by_nobody(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp))

    @tool()
    def local() -> None:
        pass

    with identity.on_behalf_of(brief(idp, clock, "junk"), purpose="p") as session:
        local()
        clock.now += 39 - 1
        for _ in range(3):
            session._state.reaches.clear()
            local()
        assert len(idp.asked) == 1


def test_a_session_without_fresh_tokens_ends_with_the_first_of_its_tokens(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp))
    now = int(clock.now)
    tokens = SubjectTokens(access_token=idp.access(exp=now + 40), id_token=idp.id(exp=now + 3000))
    with identity.on_behalf_of(tokens, purpose="p") as session:
        assert session.expires_at == now + 40


def test_an_id_token_that_still_lasts_proves_nobody_beyond_the_access_token_beside_it(
    configured: Configured, idp: People, clock: Clock
) -> None:
    """Nor the other way round: what was verified at the start ends with the first of it, and then it takes fresh tokens."""
    identity = configured(acme(idp))

    @tool()
    def local() -> None:
        pass

    for ends in ((40, 3000), (3000, 40)):
        now = int(clock.now)
        tokens = SubjectTokens(
            access_token=idp.access(exp=now + ends[0]),
            id_token=idp.id(exp=now + ends[1]),
            refresh_token="junk",
        )
        with identity.on_behalf_of(tokens, purpose="p") as session:
            local()
            clock.now += 41
            with pytest.raises(CredentialRejectedError) as caught:
                local()
            assert caught.value.code == "invalid_grant"
            assert session._state.proof.until < clock.now


def test_what_another_session_renewed_serves_this_one_without_a_refresh_of_its_own(
    configured: Configured, idp: People, clock: Clock
) -> None:
    idp.renews()
    identity = configured(acme(idp))

    @tool()
    def local() -> None:
        pass

    given = brief(idp, clock, idp.left("alice"))
    with identity.on_behalf_of(given, purpose="p"):
        with identity.on_behalf_of(given, purpose="p"):
            clock.now += 41
            local()
        local()
        assert len(idp.asked) == 1
        clock.now += 400
        with identity.on_behalf_of(brief(idp, clock, "r"), purpose="p"):
            local()
        local()
    assert len(idp.asked) == 2


def test_a_token_source_is_asked_again_and_held_to_the_same_principal(
    configured: Configured, idp: People, clock: Clock
) -> None:
    class Source:
        who = "alice"

        def token(self, token_type: str, /) -> str | None:
            return idp.access(self.who) if token_type == ACCESS_TOKEN else None

    identity = configured(acme(idp))
    source = Source()

    @tool()
    def local() -> str:
        return session.principal.sub

    with identity.on_behalf_of(source, purpose="p") as session:
        clock.now += 1000
        assert local() == "alice"
        source.who = "bob"
        clock.now += 1000
        with pytest.raises(InvalidSubjectError) as caught:
            local()
    assert caught.value.code == "subject_mismatch"


@pytest.mark.parametrize("given", [b"bytes", 7, ""])
def test_a_token_source_that_gives_no_text_says_so(
    configured: Configured, idp: People, given: Any
) -> None:
    class Source:
        def token(self, token_type: str, /) -> Any:
            return given

    with pytest.raises(ConfigurationError) as caught:
        configured(acme(idp)).on_behalf_of(Source(), purpose="p").__enter__()
    assert caught.value.code == "subject_malformed"


def test_an_outage_of_the_issuer_is_none_while_the_principal_is_proven(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp))

    @tool()
    def local() -> None:
        pass

    with identity.on_behalf_of(brief(idp, clock, "r"), purpose="p") as session:
        idp.scripts["/token"] = lambda request, write: None
        clock.now += 38
        local()
        clock.now += 5
        session._state.reaches.clear()
        with pytest.raises(CredentialUnavailableError):
            local()


# -- tokens that are renewed -----------------------------------------------------------------------------------------------


def exchanged(session: Any) -> str:
    return str(claims_of(session.credential(BILLING, ["x"]).reveal())["sub"])


def test_a_refresh_that_changes_the_person_changes_nothing_of_the_callers(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp) + resource(BILLING))
    given = SubjectTokens(
        access_token=idp.access(exp=int(clock.now) + 3), refresh_token=idp.left("alice")
    )
    before = given.access_token
    idp.refreshed = lambda _: {"access_token": idp.access("bob"), "refresh_token": "r-2"}
    with identity.on_behalf_of(given, purpose="p") as session:
        with pytest.raises(InvalidSubjectError) as caught:
            exchanged(session)
    assert caught.value.code == "subject_mismatch"
    assert given.access_token is before
    assert given.refresh_token is not None
    assert given.refresh_token.reveal() == "r-2"  # the old one is worth nothing any more


def test_an_id_token_of_somebody_else_is_refused_with_all_that_came(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp) + resource(BILLING))
    given = SubjectTokens(
        access_token=idp.access(exp=int(clock.now) + 3), refresh_token=idp.left("alice")
    )
    before = given.access_token
    idp.refreshed = lambda _: {"access_token": idp.access(), "id_token": idp.id("bob")}
    with identity.on_behalf_of(given, purpose="p") as session:
        with pytest.raises(InvalidSubjectError):
            exchanged(session)
    assert (given.access_token, given.id_token) == (before, None)


def test_an_id_token_stays_while_it_lasts_where_a_refresh_brings_none(
    configured: Configured, idp: People, clock: Clock
) -> None:
    identity = configured(acme(idp) + resource(BILLING))
    now = int(clock.now)
    given = SubjectTokens(
        access_token=idp.access(exp=now + 3),
        id_token=idp.id(exp=now + 200),
        refresh_token=idp.left("alice"),
    )
    first, kept = given.access_token, given.id_token
    idp.renews()
    with identity.on_behalf_of(given, purpose="p") as session:
        clock.now += 3
        assert exchanged(session) == "alice"
        assert given.access_token is not first
        assert given.id_token is kept
        with identity.on_behalf_of(given, purpose="p") as second:
            clock.now += 400
            assert exchanged(second) == "alice"
        assert given.id_token is None
        session._state.reaches.clear()
        assert exchanged(session) == "alice"


# -- what a token is -------------------------------------------------------------------------------------------------------

TYPES = "urn:ietf:params:oauth:token-type:"


def sent_type(identity: AgentIdentity, idp: People, subject: Any) -> str:
    """The `subject_token_type` with which the principal's token was exchanged."""
    with identity.on_behalf_of(subject, purpose="p") as session:
        exchanged(session)
    return idp.asked[-1]["subject_token_type"].removeprefix(TYPES)


@pytest.mark.parametrize(
    ("typ", "claims", "expected"),
    [
        ("at+jwt", {}, "access_token"),
        ("AT+JWT", {}, "access_token"),
        ("application/at+jwt", {"nonce": "n"}, "access_token"),
        ("JWT", {"typ": "Bearer", "auth_time": 1}, "access_token"),
        ("jwt", {"typ": "Bearer", "nonce": "n"}, "access_token"),
        ("JWT", {"nonce": "n"}, "id_token"),
        ("JWT", {"at_hash": "h"}, "id_token"),
        ("JWT", {"typ": "ID"}, "id_token"),
        ("JWT", {"auth_time": 1}, "access_token"),
        ("JWT", {}, "access_token"),
    ],
    ids=str,
)
def test_a_bare_string_is_what_it_shows(
    configured: Configured, idp: People, typ: str, claims: dict[str, Any], expected: str
) -> None:
    identity = configured(acme(idp) + resource(BILLING))
    token = idp.token("alice", audience="invoice-bot", typ=typ, claims=claims)
    assert sent_type(identity, idp, token) == expected


@pytest.mark.parametrize(
    ("configured_type", "claims", "expected"),
    [
        ("id_token", {}, "id_token"),
        ("jwt", {}, "jwt"),
        ("jwt", {"nonce": "n"}, "id_token"),
        ("id_token", {"typ": "Bearer"}, "access_token"),
    ],
    ids=str,
)
def test_the_configured_type_is_for_bare_strings_that_show_none(
    configured: Configured, idp: People, configured_type: str, claims: dict[str, Any], expected: str
) -> None:
    identity = configured(acme(idp, f'token_type = "{configured_type}"') + resource(BILLING))
    token = idp.token("alice", audience="invoice-bot", typ="JWT", claims=claims)
    assert sent_type(identity, idp, token) == expected
    named = SubjectTokens(access_token=token)
    assert sent_type(identity, idp, named) == "access_token"


def test_subject_tokens_are_what_the_caller_says(configured: Configured, idp: People) -> None:
    identity = configured(acme(idp) + resource(BILLING))
    plain = idp.token("alice", audience="invoice-bot", typ="JWT")
    assert sent_type(identity, idp, SubjectTokens(id_token=plain)) == "id_token"
    assert sent_type(identity, idp, SubjectTokens(access_token=idp.id())) == "access_token"
    both = SubjectTokens(access_token=plain, id_token=idp.id())
    assert sent_type(identity, idp, both) == "access_token"


@pytest.mark.parametrize("typ", ["logout+jwt", "dpop+jwt", "agent-grant+jwt", "JOSE"])
def test_a_token_of_another_kind_opens_no_session(
    configured: Configured, idp: People, typ: str
) -> None:
    token = idp.token("alice", audience="invoice-bot", typ=typ)
    assert refused(configured(acme(idp)), token) == "wrong_typ"


class Unnamed(People):
    """An issuer that gives its keys no `kid`, nor its tokens."""

    def __init__(self, **parts: Any) -> None:
        self.more: list[SigningKey] = []
        super().__init__(**parts)

    def answer(self, request: Received) -> FakeResponse:
        if request.path != "/jwks":
            return super().answer(request)
        keys = [dict(key.public_jwk) for key in (self.key, *self.more)]
        return FakeResponse(
            200, {"content-type": "text/plain"}, json.dumps({"keys": keys}).encode()
        )

    def unnamed(self, key: SigningKey | None = None) -> str:
        """A token without `kid`."""
        parsed = unverified(self.access())
        header = {name: value for name, value in parsed.header.items() if name != "kid"}
        return (key or self.key).compact(b64url(json.dumps(header).encode()), parsed.payload)


@pytest.fixture
def unnamed(clock: Clock) -> Iterator[Unnamed]:
    with Unnamed(clock=clock) as issuer:
        yield issuer


def test_a_token_without_a_kid_is_verified_by_the_only_key_that_fits(
    configured: Configured, unnamed: Unnamed
) -> None:
    identity = configured(acme(unnamed))
    with identity.on_behalf_of(unnamed.unnamed(), purpose="p") as session:
        assert session.principal.sub == "alice"
    assert refused(identity, unnamed.unnamed(SigningKey.generate())) == "bad_signature"


@pytest.mark.parametrize("alg", ["none", "HS256", "ES257", None, 7])
def test_without_a_kid_an_algorithm_that_no_key_has_is_refused(
    configured: Configured, unnamed: Unnamed, alg: Any
) -> None:
    header = b64url(json.dumps({"typ": "at+jwt", "alg": alg}).encode())
    token = unnamed.key.compact(header, unverified(unnamed.access()).payload)
    code = refused(configured(acme(unnamed)), token)
    assert code in {"alg_not_allowed", "key_unknown", "header_malformed", "malformed_header"}


def test_with_two_such_keys_it_is_refused(configured: Configured, unnamed: Unnamed) -> None:
    unnamed.more.append(SigningKey.generate())
    assert refused(configured(acme(unnamed)), unnamed.unnamed()) == "key_unknown"


@pytest.mark.parametrize(
    ("claims", "code", "key"),
    [
        (
            {"aud": ["invoice-bot", "account"]},
            "audience_mismatch",
            "allow_several_audiences = true",
        ),
        ({"aud": None}, "audience_mismatch", "allow_missing_audience = true"),
        ({"exp": 10**11}, "lifetime_too_long", "longest_life = 1e12"),
    ],
    ids=str,
)
def test_what_is_refused_by_default_has_a_key_that_the_remedy_names(
    configured: Configured, idp: People, claims: dict[str, Any], code: str, key: str
) -> None:
    token = idp.access(**claims)
    with pytest.raises(InvalidSubjectError) as caught:
        configured(acme(idp)).on_behalf_of(token, purpose="p").__enter__()
    assert caught.value.code == code
    assert key.partition(" ")[0] in (caught.value.remedy or "")
    with configured(acme(idp, key)).on_behalf_of(token, purpose="p") as session:
        assert session.principal.sub == "alice"


def test_no_key_makes_another_audience_ours(configured: Configured, idp: People) -> None:
    keys = ("allow_several_audiences = true", "allow_missing_audience = true")
    identity = configured(acme(idp, *keys, "allow_other_subject = true"))
    for aud in ("account", ["account", "other"], [], {"invoice-bot": 1}):
        assert refused(identity, idp.access(aud=aud)) == "audience_mismatch"


# -- what is no token of a principal ---------------------------------------------------------------------------------------

LOGOUT = {"http://schemas.openid.net/event/backchannel-logout": {}}


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"events": LOGOUT}, "wrong_typ"),
        ({"azp": "evil-client"}, "client_mismatch"),
        ({"cnf": {"jkt": "somebody-elses"}}, "subject_bound"),
        ({"cnf": {"x5t#S256": "somebody-elses"}}, "subject_bound"),
        ({"cnf": "odd"}, "subject_bound"),
    ],
    ids=str,
)
def test_a_token_that_is_something_else_opens_no_session(
    configured: Configured, idp: People, claims: dict[str, Any], code: str
) -> None:
    identity = configured(acme(idp))
    assert refused(identity, idp.id(**claims)) == code
    assert refused(identity, SubjectTokens(id_token=idp.id(**claims))) == code
    if "azp" not in claims:
        assert refused(identity, idp.access(**claims)) == code


def test_an_id_token_that_was_given_to_this_client_opens_one(
    configured: Configured, idp: People
) -> None:
    with configured(acme(idp)).on_behalf_of(idp.id(azp="invoice-bot"), purpose="p") as session:
        assert session.principal.sub == "alice"


def test_a_token_that_has_ended_within_the_skew_opens_no_session(
    configured: Configured, idp: People, clock: Clock
) -> None:
    now = int(clock.now)
    identity = configured(acme(idp))
    assert refused(identity, idp.access(iat=now - 100, exp=now - 1)) == "expired"


def test_an_access_token_is_one_whatever_is_configured(configured: Configured, idp: People) -> None:
    identity = configured(acme(idp, 'token_type = "jwt"'))
    assert refused(identity, SubjectTokens(id_token=idp.access())) == "wrong_typ"


def test_may_act_is_heard_before_a_session_opens(idp: People, clock: Clock) -> None:
    issuer = Issuer(idp.url, clients=None, clock=clock, jwks=f"{idp.url}/jwks")
    trusted = {idp.url: Trusted(issuer, "invoice-bot", client_id="client-1")}

    def opened(agent: str | None, may_act: Any) -> str:
        given = SubjectTokens(access_token=idp.access(may_act=may_act))
        return run(verify_subject(given, trusted, agent=agent), world).principal.sub

    def world(ask: Any) -> Any:
        if hasattr(ask, "start"):
            return run(ask.start(), world)
        answer = httpx.get(ask.url)
        from agent_identity.flow import HttpResponse

        return HttpResponse(answer.status_code, dict(answer.headers), answer.content)

    assert opened("urn:agent:me", {"sub": "urn:agent:me"}) == "alice"
    assert opened("urn:agent:me", {"sub": "client-1"}) == "alice"
    assert opened("urn:agent:me", {"client_id": "client-1"}) == "alice"
    assert opened("urn:agent:me", {"sub": "urn:agent:me", "client_id": "client-1"}) == "alice"
    others = (
        *({"sub": "other-agent"}, {}, "urn:agent:me", {"sub": ["urn:agent:me"]}),
        *({"client_id": "client-2"}, {"client_id": "urn:agent:me"}, {"client_id": ["client-1"]}),
        {"sub": "other-agent", "client_id": "client-1"},
        {"sub": "urn:agent:me", "client_id": "client-2"},
    )
    for named in others:
        with pytest.raises(InvalidSubjectError) as caught:
            opened("urn:agent:me", named)
        assert caught.value.code == "may_act"


def test_the_agent_of_an_identity_is_who_may_act(configured: Configured, idp: People) -> None:
    identity = configured(acme(idp))
    assert refused(identity, idp.access(may_act={"sub": "other-agent"})) == "may_act"
    with identity.on_behalf_of(
        idp.access(may_act={"sub": "urn:agent-identity:agent:invoice-bot"}), purpose="p"
    ) as session:
        assert session.principal.sub == "alice"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"token_type": "refresh_token"}, "wrong_typ"),
        ({"typ": "Refresh"}, "wrong_typ"),
        ({"events": LOGOUT}, "wrong_typ"),
        ({"nbf": 9_999_999_999}, "not_yet_valid"),
        ({"exp": 9_999_999_999}, "lifetime_too_long"),
        ({"exp": 1}, "expired"),
        ({"exp": None}, "claim_missing"),
        ({"cnf": {"jkt": "x"}}, "subject_bound"),
        ({"token_type": "DPoP"}, "subject_bound"),
        ({"may_act": {"sub": "other-agent"}}, "may_act"),
        ({"aud": "another"}, "audience_mismatch"),
        ({"iss": "https://evil.example"}, "issuer_mismatch"),
        ({"active": "true"}, "inactive"),
    ],
    ids=str,
)
def test_what_an_issuer_says_of_an_opaque_token_is_held_to_the_same_rules(
    configured: Configured, idp: People, clock: Clock, said: dict[str, Any], code: str
) -> None:
    good = {"active": True, "aud": "invoice-bot", "sub": "alice", "exp": int(clock.now) + 300}
    members = good | said
    idp.introspection = {name: value for name, value in members.items() if value is not None}
    assert refused(configured(acme(idp)), "opaque-token") == code


def test_any_client_may_have_been_given_an_opaque_token_and_an_id_token_is_none(
    configured: Configured, idp: People, clock: Clock
) -> None:
    good = {"active": True, "aud": "invoice-bot", "sub": "alice", "exp": int(clock.now) + 300}
    idp.introspection = {**good, "client_id": "front-end"}
    identity = configured(acme(idp))
    with identity.on_behalf_of("opaque-token", purpose="p") as session:
        assert session.principal.sub == "alice"
    assert refused(identity, SubjectTokens(id_token="opaque-token")) == "wrong_typ"


# -- how a token is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled",
    [
        lambda head, rest: f"{b64url(b' ' + head)}.{rest}",
        lambda head, rest: f"{b64url(b'{ ' + head[1:])}.{rest}",
        lambda head, rest: f"{b64url(head)}=.{rest}",
        lambda head, rest: f"\n{b64url(head)}.{rest}\n",
        lambda head, rest: f"{b64url(head)}.{rest}.a.b",
        lambda head, rest: f"{b64url(head)}.{rest[:-3]}!!!",
        lambda head, rest: f"{b64url(b'{')}.{rest}",
    ],
)
def test_a_jwt_of_somebody_elses_issuer_is_shown_to_nobody_however_it_is_spelled(
    configured: Configured, idp: People, other: People, spelled: Callable[[bytes, str], str]
) -> None:
    idp.introspection = {"active": False}
    head, _, rest = other.access().partition(".")
    raw = json.dumps(dict(unverified(other.access()).header)).encode()
    assert head
    code = refused(configured(acme(idp)), spelled(raw, rest))
    assert code != "inactive"
    assert not any(one.path == "/introspect" for one in idp.received)


def test_three_parts_alone_make_no_jwt(configured: Configured, idp: People, clock: Clock) -> None:
    idp.introspection = {
        "active": True,
        "aud": "invoice-bot",
        "sub": "alice",
        "exp": int(clock.now) + 300,
    }
    with configured(acme(idp)).on_behalf_of("v2.local.opaque", purpose="p") as session:
        assert session.principal.sub == "alice"


@pytest.mark.parametrize(
    "changed",
    [
        lambda token: token[:-6] + "AAAAAA",
        lambda token: token.replace(".", ".!", 1),
        lambda token: token.rpartition(".")[0] + ".",
        lambda token: f"{b64url(b'{')}.{token.partition('.')[2]}",
        lambda token: token + "A" * 20_000,
    ],
    ids=["signature", "payload", "unsigned", "header", "length"],
)
def test_no_frame_that_refuses_a_token_holds_it(
    configured: Configured, idp: People, changed: Callable[[str], str]
) -> None:
    token = changed(idp.access())
    session = configured(acme(idp)).on_behalf_of(token, purpose="p")
    with pytest.raises(InvalidSubjectError) as caught:
        session.__enter__()
    assert_no_leak([token], caught.value)


@pytest.mark.parametrize(
    "made",
    [
        lambda idp: idp.token("alice", audience="somebody-else"),
        lambda idp: idp.access(exp=1),
        lambda idp: idp.access(iss="https://evil.example"),
        lambda idp: idp.access(events=LOGOUT),
        lambda idp: idp.token("alice", audience="invoice-bot", typ="dpop+jwt"),
    ],
    ids=["audience", "expired", "issuer", "events", "typ"],
)
def test_nor_does_one_that_refuses_what_it_says(
    configured: Configured, idp: People, made: Callable[[People], str]
) -> None:
    token = made(idp)
    session = configured(acme(idp)).on_behalf_of(token, purpose="p")
    with pytest.raises(InvalidSubjectError) as caught:
        session.__enter__()
    assert_no_leak([token], caught.value)


def test_an_issuers_own_fault_is_not_called_an_unknown_key(
    configured: Configured, idp: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = idp.metadata() | {"issuer": "https://else.example"}
    monkeypatch.setattr(idp, "metadata", lambda: wrong)
    with pytest.raises(AgentIdentityError) as caught:
        configured(acme(idp)).on_behalf_of(idp.access(), purpose="p").__enter__()
    assert caught.value.code == "issuer_mismatch"


def test_a_tool_that_outlasts_the_proof_signs_nothing_more(
    configured: Configured, idp: People, web: FakeWeb, clock: Clock, tmp_path: Path
) -> None:
    identity = configured(acme(idp) + key_resource(web, tmp_path))

    @tool(resource=web.url)
    def slow() -> None:
        credential = current_credential()
        httpx.get(web.url, auth=credential)
        clock.now += 41
        httpx.get(web.url, auth=credential)

    with identity.on_behalf_of(brief(idp, clock, "junk"), purpose="p"):
        with pytest.raises(DeniedError) as caught:
            slow()
    assert (caught.value.code, len(web.received)) == ("principal_outdated", 1)
