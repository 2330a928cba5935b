# SPDX-License-Identifier: Apache-2.0
"""Issuers that lie, fail or were taken over, and what no source of credentials does then (cases of groups C, D and E)."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from email.utils import formatdate
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest

from agent_identity import jose
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.dpop import Nonces
from agent_identity.credentials.oauth.issuer_keys import IssuerKeys
from agent_identity.credentials.oauth.metadata import Endpoints, discover
from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, ID_JAG
from agent_identity.credentials.source import SubjectToken, Wanted
from agent_identity.credentials.sources.authorization_code import AuthorizationCode
from agent_identity.credentials.sources.ciba import Ciba
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.credentials.sources.cross_domain import CrossDomain
from agent_identity.credentials.sources.device import DeviceAuthorization
from agent_identity.credentials.sources.jwt_bearer import JwtBearer
from agent_identity.credentials.sources.refresh_token import RefreshToken, RefreshTokens
from agent_identity.credentials.sources.signing_in import SignIn
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.credentials.workload.tokens import WorkloadToken
from agent_identity.errors import (
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
    LedgerError,
    TransportError,
)
from agent_identity.flow import (
    Callback,
    HttpRequest,
    HttpResponse,
    Keep,
    Pause,
    Read,
    Shared,
    Show,
    Visit,
    pure,
    run,
)
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import KnownIssuer, play
from agent_identity.values import Principal, Prompt, Secret

NOW = 1_795_518_000
IDP = "https://idp.example"
THERE = "https://as.partner.example"
BILLING = "https://billing.example"
AGENT = Agent("urn:agent-identity:agent:invoice-bot")
CLIENT_KEY = SigningKey.generate()
ISSUER_KEY = SigningKey.generate()
JSON_TYPE = {"content-type": "application/json"}
RESET = TransportError("exchange_failed", "the connection was reset")


def endpoints(issuer: str = IDP, **changes: Any) -> Endpoints:
    members: dict[str, Any] = {
        "issuer": issuer,
        "token": f"{issuer}/token",
        "registration": None,
        "revocation": None,
        "introspection": None,
        "jwks": None,
        "issued_at": NOW,
        "expires_at": NOW + 300,
        "authorization": f"{issuer}/authorize",
        "device_authorization": f"{issuer}/device",
        "backchannel_authentication": f"{issuer}/bc-authorize",
        "challenge_methods": frozenset({"S256"}),
    }
    return Endpoints(**(members | changes))


def known(issuer: str = IDP, client_id: str = "client-1", **changes: Any) -> KnownIssuer:
    client = Client(client_id, PrivateKeyJwt(CLIENT_KEY))
    return KnownIssuer(endpoints(issuer, **changes), client, clock=lambda: NOW)


def answer_of(status: int = 200, /, **members: Any) -> HttpResponse:
    return HttpResponse(status, JSON_TYPE, json.dumps(members).encode())


def signed(typ: str = "at+jwt", **claims: Any) -> str:
    present = {name: value for name, value in claims.items() if value is not None}
    return ISSUER_KEY.compact(jose.encode_header("ES256", typ=typ), json.dumps(present).encode())


def token(**changes: Any) -> str:
    claims = {"iss": IDP, "sub": "alice", "aud": BILLING, "exp": NOW + 300, "jti": "tok_1"}
    return signed(**(claims | {"cnf": {"jkt": AGENT.key.thumbprint}} | changes))


def answered(access_token: Any = None, **changes: Any) -> HttpResponse:
    """An access token as asked for; None leaves a member out."""
    members = {
        "access_token": token() if access_token is None else access_token,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "DPoP",
        "expires_in": 300,
        "scope": "invoices:read",
    } | changes
    return answer_of(**{name: value for name, value in members.items() if value is not None})


WORKLOAD = WorkloadToken(Secret(signed("JWT", sub="workload")), NOW, NOW + 300)


class Subject:
    def token(self, issuer: Any, types: Any, /) -> Any:
        return pure(SubjectToken(Secret("alices-token"), next(iter(types))))


def wanted(**changes: Any) -> Wanted:
    members: dict[str, Any] = {
        "resource": BILLING,
        "scopes": frozenset({"invoices:read"}),
        "principal": Principal("alice"),
        "subject": Subject(),
        "chain": (),
        "agent": AGENT.uri,
        "proof_key": AGENT.proof_key,
        "txn": "ses_1",
        "purpose": "close the books",
    }
    return Wanted(**(members | changes))


def query_of(prompt: Prompt) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(prompt.authorization_url or "").query))


def visitor(redirect_uri: str, prompt: Prompt) -> Callback:
    """A person who signs in and comes back."""
    state = query_of(prompt)["state"]
    return Callback(redirect_uri, (("code", "the-code"), ("state", state)))


class Way(NamedTuple):
    """One way to a credential, and what its issuers answer before the answer that a test is about."""

    source: Any
    before: tuple[HttpResponse, ...] = ()
    one_use: bool = False

    def fetched(self, *answers: Any, asks: list[Any] | None = None) -> Any:
        flow = self.source.fetch(wanted())
        return play(flow, *self.before, *answers, asks=asks, visitor=visitor)


def _refreshing() -> Way:
    tokens = RefreshTokens()
    play(tokens.put(wanted(), Secret("r-1")))
    return Way(RefreshToken(known(), tokens), one_use=True)


def _id_jag() -> Way:
    grant = signed(
        "oauth-id-jag+jwt",
        iss=IDP,
        sub="alice",
        exp=NOW + 300,
        aud=THERE,
        client_id="client-there",
        cnf={"jkt": AGENT.key.thumbprint},
    )
    first = answered(grant, issued_token_type=ID_JAG, token_type="N_A")
    source = CrossDomain("id-jag", known(THERE, "client-there"), known())
    return Way(source, (first,), one_use=True)


def _device() -> Way:
    given = answer_of(
        device_code="d", user_code="WDJB-MJHT", verification_uri=f"{IDP}/device", expires_in=30
    )
    return Way(DeviceAuthorization(SignIn(known())), (given,))


def _ciba() -> Way:
    return Way(Ciba(SignIn(known())), (answer_of(auth_req_id="q", expires_in=30),))


WAYS: dict[str, Callable[[], Way]] = {
    "client credentials": lambda: Way(ClientCredentials(known())),
    "token exchange": lambda: Way(TokenExchange(known())),
    "jwt bearer, signed": lambda: Way(
        JwtBearer(known(), key=lambda: pure(CLIENT_KEY)), one_use=True
    ),
    "jwt bearer, subject": lambda: Way(JwtBearer(known(), "subject"), one_use=True),
    "jwt bearer, workload": lambda: Way(
        JwtBearer(known(), "workload", workload=lambda: pure(WORKLOAD)), one_use=True
    ),
    "id-jag": _id_jag,
    "refresh": _refreshing,
    "authorization code": lambda: Way(AuthorizationCode(SignIn(known())), one_use=True),
    "device": _device,
    "ciba": _ciba,
}
every_way = pytest.mark.parametrize("way", WAYS)
RETRIED = ["client credentials", "token exchange"]
ONE_USE = [name for name, make in WAYS.items() if make().one_use]


def requests(asks: list[Any]) -> list[HttpRequest]:
    return [ask for ask in asks if isinstance(ask, HttpRequest)]


def form_of(request: HttpRequest) -> dict[str, str]:
    return dict(parse_qsl(request.body.decode("ascii"), keep_blank_values=True))


def claims_of(compact: str) -> dict[str, Any]:
    return jose.loads_object(jose.unverified(compact).payload)


def refused(way: str, *answers: Any) -> str:
    with pytest.raises(CredentialRejectedError) as caught:
        WAYS[way]().fetched(*answers)
    return caught.value.code


# -- what an answer is held to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"access_token":"a', b'{"access_token":"a"}}', b"\x1f\x8b", b"nul"]
)
@every_way
def test_D05_an_answer_that_is_cut_off_is_no_credential(way: str, body: bytes) -> None:
    assert refused(way, HttpResponse(200, JSON_TYPE, body)) == "malformed_answer"


GOOD_BODY = answered().body


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("text/html", b"<html>sign in</html>"),
        ("text/html", GOOD_BODY),
        ("application/jwt", GOOD_BODY),
        ("application/x-www-form-urlencoded", b"access_token=a&token_type=DPoP"),
        ("text/json", GOOD_BODY),
        ("application/jsonp", GOOD_BODY),
        ("application/json, text/html", GOOD_BODY),
        ("", GOOD_BODY),
    ],
)
@every_way
def test_D06_an_answer_of_another_content_type_is_rejected(way: str, kind: str, body) -> None:
    assert refused(way, HttpResponse(200, {"content-type": kind}, body)) == "not_json"


def without(name: str) -> HttpResponse:
    members = json.loads(GOOD_BODY)
    del members[name]
    return answer_of(**members)


@pytest.mark.parametrize(
    "answer",
    [
        without("access_token"),
        answer_of(**(json.loads(GOOD_BODY) | {"access_token": None})),
        answered([]),
        answered(["a"]),
        answered({}),
        answered(""),
        answered(7),
        answered(True),
        answered("a" * 16_385),
        answered(error="access_denied"),
        answered(error={}),
        answer_of(error="access_denied"),
        without("token_type"),
        answered(token_type=""),
        answered(token_type=["DPoP"]),
        answered(scope=["invoices:read"]),
        answered(scope=7),
        HttpResponse(200, JSON_TYPE, b"[]"),
        HttpResponse(200, JSON_TYPE, b"null"),
        HttpResponse(200, JSON_TYPE, b'"token"'),
    ],
)
@every_way
def test_D07_a_200_without_a_token_is_rejected(way: str, answer: HttpResponse) -> None:
    assert refused(way, answer) == "malformed_answer"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (answered(scope="invoices:read invoices:pay"), "scope_widened"),
        (answered(scope="*"), "scope_widened"),
        (answered(scope="Invoices:read"), "scope_widened"),
        (answered(scope="invoices:read\tinvoices:pay"), "scope_widened"),
        (answered(token(scope="invoices:read invoices:pay"), scope=None), "scope_widened"),
        (answered(token(scope="invoices:read invoices:pay")), "scope_widened"),
        (answered(token(scope=["invoices:pay"])), "scope_widened"),
        (answered(scope=""), "scope_narrowed"),
        (answered(token_type="mac"), "binding_missing"),
        (answered(token_type="N_A"), "binding_missing"),
        (answered(token_type="Bearer"), "binding_missing"),
        (answered(token_type="DPoP "), "binding_missing"),
        (answered(token(cnf=None)), "binding_missing"),
        (answered(token(cnf={})), "binding_missing"),
        (answered(token(cnf={"jkt": "another"})), "binding_missing"),
        (answered(token(cnf=[AGENT.key.thumbprint])), "binding_missing"),
        (answered(token(aud="https://mail.example")), "audience_mismatch"),
        (answered(token(aud=[BILLING, "https://mail.example"])), "audience_mismatch"),
        (answered(authorization_details=[{"type": "admin"}]), "details_widened"),
        (answered("eyJhbGciOiJFUzI1NiJ9.e30x.AAAA"), "malformed_token"),
    ],
)
@every_way
def test_D19_a_token_that_is_wider_or_loose_is_rejected(way: str, answer, code: str) -> None:
    assert refused(way, answer) == code


@every_way
def test_D19_an_absent_scope_means_as_asked(way: str) -> None:
    issued = WAYS[way]().fetched(answered(scope=None))
    assert issued.scopes == {"invoices:read"}


def test_D19_nothing_asked_for_bears_with_nothing_granted_alone() -> None:
    source = ClientCredentials(known())
    nothing = wanted(scopes=frozenset())
    assert play(source.fetch(nothing), answered(scope="")).scopes == frozenset()
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(nothing), answered(scope="invoices:read"))
    assert caught.value.code == "scope_widened"


@pytest.mark.parametrize("kind", ["mac", "DPoP", "N_A", "pop", "bearer2"])
def test_D19_an_unbound_request_takes_a_bearer_token_and_no_other(kind: str) -> None:
    source = ClientCredentials(known(), binding="none")
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), answered(token_type=kind))
    assert caught.value.code == "wrong_token_type"


def raw_life(literal: str, **claims: Any) -> HttpResponse:
    members = json.loads(answered(token(**claims)).body)
    del members["expires_in"]
    text = json.dumps(members)[:-1] + f', "expires_in": {literal}}}'
    return HttpResponse(200, JSON_TYPE, text.encode())


@pytest.mark.parametrize(
    ("literal", "code"),
    [
        ("-5", "already_expired"),
        ("0", "already_expired"),
        ("-0.0", "already_expired"),
        ('"3600.0"', "malformed_answer"),
        ('"-3600"', "malformed_answer"),
        ('"0"', "already_expired"),
        ('""', "malformed_answer"),
        ('"\u0663"', "malformed_answer"),
        (f'"{"9" * 10}"', "malformed_answer"),
        ("true", "malformed_answer"),
        ("[3600]", "malformed_answer"),
        ("{}", "malformed_answer"),
        ("NaN", "malformed_answer"),
        ("Infinity", "malformed_answer"),
        ("1e400", "malformed_answer"),
        ("9" * 4_000, "malformed_answer"),
    ],
)
@every_way
def test_D20_a_life_that_is_none_is_rejected(way: str, literal: str, code: str) -> None:
    assert refused(way, raw_life(literal)) == code


@pytest.mark.parametrize("seconds", [-5, 0, -0.0])
@every_way
def test_D20_an_opaque_token_that_has_expired_is_rejected(way: str, seconds: float) -> None:
    assert refused(way, answered("opaque-token", expires_in=seconds)) == "already_expired"


@every_way
def test_D20_a_life_may_be_digits_in_a_text(way: str) -> None:
    assert WAYS[way]().fetched(raw_life('"600"', exp=None)).expires_at == NOW + 600


@pytest.mark.parametrize("literal", ["1e308", "315360000", "86401"])
@every_way
def test_D20_no_life_is_longer_than_a_day(way: str, literal: str) -> None:
    assert WAYS[way]().fetched(raw_life(literal, exp=None)).expires_at == NOW + 86_400


@pytest.mark.parametrize("literal", ["null", "60"])
@every_way
def test_D20_an_absent_life_is_a_minute(way: str, literal: str) -> None:
    assert WAYS[way]().fetched(raw_life(literal, exp=None)).expires_at == NOW + 60


@pytest.mark.parametrize("exp", [NOW, NOW - 1, 0, -5])
@every_way
def test_D20_a_token_that_says_itself_that_it_expired_is_rejected(way: str, exp: int) -> None:
    assert refused(way, answered(token(exp=exp))) == "already_expired"


@pytest.mark.parametrize("issued", [None, "urn:ietf:params:oauth:token-type:jwt", "access_token"])
def test_D21_an_exchange_that_issues_another_type_is_rejected(issued: str | None) -> None:
    assert refused("token exchange", answered(issued_token_type=issued)) == "wrong_token_type"


@pytest.mark.parametrize("issued", [7, [], {}, [ACCESS_TOKEN]])
@every_way
def test_D21_a_type_that_is_no_text_is_rejected(way: str, issued: Any) -> None:
    assert refused(way, answered(issued_token_type=issued)) == "malformed_answer"


@pytest.mark.parametrize("name", [*RETRIED, "jwt bearer, signed", "id-jag"])
def test_D21_a_refresh_token_that_was_not_requested_is_dropped(name: str) -> None:
    issued = WAYS[name]().fetched(answered(refresh_token="r-unasked"))
    assert "r-unasked" not in [secret.reveal() for secret in issued.secrets]


# -- issuers that fail -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (formatdate(NOW + 7, usegmt=True), 7.0),
        (formatdate(NOW - 7, usegmt=True), 0.0),
        (formatdate(NOW + 86_400, usegmt=True), 3600.0),
        ("1000000000", 3600.0),
        ("9" * 5_000, 3600.0),
    ],
)
def test_D09_retry_after_is_kept_and_capped(status: int, header: str, seconds: float) -> None:
    asks: list[Any] = []
    busy = HttpResponse(status, {"retry-after": header})
    WAYS["client credentials"]().fetched(busy, answered(), asks=asks)
    assert [ask.seconds for ask in asks if isinstance(ask, Pause)] == [seconds]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("header", ["-1", "1e9", "soon", "", "7.5", "٧", "+" + "9" * 20])  # noqa: RUF001 - an Arabic seven
def test_D09_junk_in_retry_after_is_nothing(status: int, header: str) -> None:
    busy = HttpResponse(status, {"retry-after": header})
    with pytest.raises(CredentialUnavailableError) as caught:
        WAYS["client credentials"]().fetched(busy, busy, busy)
    assert (caught.value.code, caught.value.retry_after) == ("issuer_busy", None)


def test_D09_what_has_no_room_in_the_deadline_is_told_and_not_waited_for() -> None:
    asked: list[Any] = []

    def world(ask: Any) -> Any:
        asked.append(ask)
        if isinstance(ask, Pause):
            raise TransportError("deadline_exceeded", "no room")
        return HttpResponse(429, {"retry-after": "3600"})

    with pytest.raises(CredentialUnavailableError) as caught:
        run(ClientCredentials(known()).fetch(wanted()), world)
    assert (caught.value.code, caught.value.retry_after) == ("issuer_busy", 3600.0)
    assert len(requests(asked)) == 1


def test_D09_nobody_waits_for_the_sake_of_another_issuer() -> None:
    with pytest.raises(CredentialUnavailableError):
        WAYS["client credentials"]().fetched(*[HttpResponse(429, {"retry-after": "60"})] * 3)
    asks: list[Any] = []
    play(ClientCredentials(known(THERE)).fetch(wanted()), answered(), asks=asks)
    assert [type(ask) for ask in asks] == [HttpRequest]


@pytest.mark.parametrize("failure", [500, 502, 503, 504, 408, RESET], ids=str)
@pytest.mark.parametrize("way", RETRIED)
def test_D10_an_issuer_that_keeps_failing_is_asked_three_times(way: str, failure: Any) -> None:
    asks: list[Any] = []
    answer = HttpResponse(failure) if isinstance(failure, int) else failure
    with pytest.raises(CredentialUnavailableError) as caught:
        WAYS[way]().fetched(answer, answer, answer, asks=asks)
    assert caught.value.retryable
    assert len(requests(asks)) == 3
    pauses = [ask.seconds for ask in asks if isinstance(ask, Pause)]
    assert all(0 <= pause <= 0.4 * 2**n for n, pause in enumerate(pauses))
    assert len(pauses) == 2


@pytest.mark.parametrize("way", RETRIED)
def test_D10_every_attempt_has_an_assertion_and_a_proof_of_its_own(way: str) -> None:
    asks: list[Any] = []
    WAYS[way]().fetched(HttpResponse(500), RESET, answered(), asks=asks)
    sent = requests(asks)
    proofs = {claims_of(request.headers["DPoP"])["jti"] for request in sent}
    assertions = {claims_of(form_of(request)["client_assertion"])["jti"] for request in sent}
    assert (len(proofs), len(assertions)) == (3, 3)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "invalid_client"),
        (401, "invalid_client"),
        (400, "invalid_grant"),
        (400, "access_denied"),
        (403, "access_denied"),
    ],
)
@every_way
def test_D11_a_refusal_is_final(way: str, status: int, error: str) -> None:
    made = WAYS[way]()
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        made.fetched(answer_of(status, error=error), asks=asks)
    assert (caught.value.code, caught.value.retryable) == (error, False)
    assert len(requests(asks)) == len(made.before) + 1


@every_way
def test_D11_an_issuers_own_words_are_quoted_nowhere(way: str) -> None:
    canary = "canary-echoed-secret"
    answer = answer_of(400, error=canary, error_description=canary, error_uri=canary)
    with pytest.raises(CredentialRejectedError) as caught:
        WAYS[way]().fetched(answer)
    assert caught.value.code == "unknown_error"
    assert canary not in f"{caught.value} {caught.value.args} {caught.value.remedy}"


@pytest.mark.parametrize("way", ["device", "ciba"])
def test_D12_slow_down_adds_five_seconds_each_time(way: str) -> None:
    asks: list[Any] = []
    slow, pending = answer_of(400, error="slow_down"), answer_of(400, error="authorization_pending")
    WAYS[way]().fetched(pending, slow, pending, slow, answered(), asks=asks)
    assert [ask.seconds for ask in asks if isinstance(ask, Pause)] == [5.0, 5.0, 10.0, 10.0, 15.0]


@pytest.mark.parametrize("way", ["device", "ciba"])
@pytest.mark.parametrize(
    ("error", "pauses"),
    [("authorization_pending", [5.0] * 5), ("slow_down", [5.0, 10.0])],
)
def test_D12_nobody_is_asked_past_the_end_of_life(way: str, error: str, pauses: Any) -> None:
    """The life is thirty seconds: after 25, or after 15 at an interval of 15, another question would come too late."""
    clock = [float(NOW)]
    source = WAYS[way]().source
    source.sign_in.issuer.clock = lambda: clock[0]
    waited: list[float] = []
    (first,) = WAYS[way]().before

    def world(ask: Any) -> Any:
        if isinstance(ask, Shared):
            return run(ask.start(), world)
        if isinstance(ask, Pause):
            waited.append(ask.seconds)
            clock[0] += ask.seconds
        if isinstance(ask, HttpRequest):
            return first if not ask.url.endswith("/token") else answer_of(400, error=error)
        return None

    with pytest.raises(CredentialUnavailableError) as caught:
        run(source.fetch(wanted()), world)
    assert caught.value.code == "interaction_timeout"
    assert waited == pauses


CHALLENGED = HttpResponse(400, JSON_TYPE | {"dpop-nonce": "n-1"}, b'{"error":"use_dpop_nonce"}')


@every_way
def test_D16_a_nonce_that_is_new_in_every_answer_is_met_once(way: str) -> None:
    made = WAYS[way]()
    asks: list[Any] = []
    again = HttpResponse(400, JSON_TYPE | {"dpop-nonce": "n-2"}, CHALLENGED.body)
    with pytest.raises(CredentialRejectedError) as caught:
        made.fetched(CHALLENGED, again, asks=asks)
    assert caught.value.code == "use_dpop_nonce"
    first, second = requests(asks)[len(made.before) :]
    one, two = claims_of(first.headers["DPoP"]), claims_of(second.headers["DPoP"])
    assert ("nonce" in one, two["nonce"]) == (False, "n-1")
    assert one["jti"] != two["jti"]
    assertions = [claims_of(form_of(ask)["client_assertion"])["jti"] for ask in (first, second)]
    assert assertions[0] != assertions[1]


def test_D16_a_nonce_is_kept_from_a_good_answer() -> None:
    source = ClientCredentials(known())
    good = answered()
    good.headers = JSON_TYPE | {"dpop-nonce": "n-9"}
    play(source.fetch(wanted()), good)
    asks: list[Any] = []
    play(source.fetch(wanted()), answered(), asks=asks)
    assert claims_of(asks[0].headers["DPoP"])["nonce"] == "n-9"


def test_D16_a_nonce_that_is_too_long_or_no_header_is_not_kept() -> None:
    nonces = Nonces()
    for nonce in ("", "n" * 513, "n\n", "é", None):
        nonces.learn(f"{IDP}/token", nonce)
    assert nonces.get(f"{IDP}/token") is None


def test_D16_the_hundred_and_first_origin_takes_the_place_of_the_oldest() -> None:
    nonces = Nonces()
    places = [f"https://as{number}.example/token" for number in range(101)]
    for place in places:
        nonces.learn(place, f"nonce of {place}")
    assert nonces.get(places[0]) is None
    assert [nonces.get(place) for place in places[1:]] == [f"nonce of {one}" for one in places[1:]]


def test_D16_a_challenge_without_a_nonce_or_without_a_proof_is_no_reason_to_repeat() -> None:
    bare = answer_of(400, error="use_dpop_nonce")
    assert refused("client credentials", bare) == "use_dpop_nonce"
    source = ClientCredentials(known(), binding="none")
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), CHALLENGED)
    assert caught.value.code == "use_dpop_nonce"


@pytest.mark.parametrize("failure", [RESET, TransportError("timeout", "t"), HttpResponse(503)])
@pytest.mark.parametrize("way", ONE_USE)
def test_D22_what_may_have_been_used_is_never_sent_again(way: str, failure: Any) -> None:
    made = WAYS[way]()
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        made.fetched(failure, asks=asks)
    assert len(requests(asks)) == len(made.before) + 1


def test_D22_another_attempt_at_a_sign_in_has_a_code_of_its_own() -> None:
    codes = iter(["first", "second"])

    def with_next_code(redirect_uri: str, prompt: Prompt) -> Callback:
        state = query_of(prompt)["state"]
        return Callback(redirect_uri, (("code", next(codes)), ("state", state)))

    source = AuthorizationCode(SignIn(known()))
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        play(source.fetch(wanted()), RESET, asks=asks, visitor=with_next_code)
    play(source.fetch(wanted()), answered(), asks=asks, visitor=with_next_code)
    forms = [form_of(request) for request in requests(asks)]
    assert [form["code"] for form in forms] == ["first", "second"]
    assert forms[0]["code_verifier"] != forms[1]["code_verifier"]


# -- refresh tokens --------------------------------------------------------------------------------------------------------

PLACE = "keyring:billing"


def holding(text: str = "r-1") -> tuple[RefreshToken, RefreshTokens, dict[str, Secret]]:
    tokens, kept = RefreshTokens(PLACE), {}
    play(tokens.put(wanted(), Secret(text)), kept=kept)
    return RefreshToken(known(), tokens), tokens, kept


def test_C08_a_refresh_token_that_was_taken_back_is_dropped_and_not_asked_with_again() -> None:
    source, _, kept = holding()
    asks: list[Any] = []
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), answer_of(400, error="invalid_grant"), asks=asks, kept=kept)
    assert caught.value.code == "invalid_grant"
    assert kept == {}
    assert [ask.secret for ask in asks if isinstance(ask, Keep)] == [None]
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), kept=kept)
    assert caught.value.code == "refresh_token_missing"


@pytest.mark.parametrize(
    "answer",
    [
        HttpResponse(500),
        HttpResponse(503),
        HttpResponse(429),
        RESET,
        TransportError("timeout", "t"),
        answer_of(400, error="invalid_client"),
        answer_of(400, error="invalid_scope"),
        answer_of(200, error="invalid_grant"),
        HttpResponse(400, {}, b"<html>invalid_grant</html>"),
    ],
)
def test_C08_a_refresh_token_outlives_every_other_failure(answer: Any) -> None:
    source, _, kept = holding()
    with pytest.raises((CredentialRejectedError, CredentialUnavailableError)):
        play(source.fetch(wanted()), answer, kept=kept)
    assert [secret.reveal() for secret in kept.values()] == ["r-1"]


def test_C09_a_rotated_refresh_token_is_kept_before_anything_is_used() -> None:
    source, _, kept = holding()
    with pytest.raises(CredentialRejectedError):  # the token beside it isn't bound
        play(source.fetch(wanted()), answered(token(cnf=None), refresh_token="r-2"), kept=kept)
    assert [secret.reveal() for secret in kept.values()] == ["r-2"]


def test_C09_what_cannot_be_kept_is_not_used() -> None:
    source, _, kept = holding()

    def world(ask: Any) -> Any:
        if isinstance(ask, Shared):
            return run(ask.start(), world)
        if isinstance(ask, Read):
            return kept.get(ask.reference)
        if isinstance(ask, Keep):
            raise LedgerError("disk_full", "no room")
        return answered(refresh_token="r-2")

    with pytest.raises(LedgerError):
        run(source.fetch(wanted()), world)


def test_C09_after_a_crash_between_somebody_has_to_sign_in_and_nothing_is_used_twice() -> None:
    """The issuer rotated, the new token was lost: the old one is tried once, and taken for what it is worth."""
    source, _, kept = holding("r-old")
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), answer_of(400, error="invalid_grant"), kept=kept)
    assert caught.value.code == "invalid_grant"
    for _ in range(3):
        with pytest.raises(CredentialRejectedError) as caught:
            play(source.fetch(wanted()), kept=kept)
        assert caught.value.code == "refresh_token_missing"


# -- keys ------------------------------------------------------------------------------------------------------------------


class Clocked:
    """An issuer whose clocks a test moves, and what it answers for its keys; every look is counted."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.now = float(NOW)
        self.monotonic = 1000.0
        self.answer: Any = answer_of(keys=[*keys])
        self.looks: list[float] = []
        self.issuer = IssuerKeys(
            IDP,
            clock=lambda: self.now,
            jwks=f"{IDP}/jwks",
            monotonic=lambda: self.monotonic,
        )

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.monotonic += seconds

    def key(self, kid: str) -> dict[str, Any]:
        return run(self.issuer.key(kid), self._world)

    def _world(self, ask: Any) -> Any:
        if isinstance(ask, Pause):
            return None
        if not isinstance(ask, HttpRequest):
            return run(ask.start(), self._world)
        if not self.looks or self.looks[-1] != self.now:
            self.looks.append(self.now)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def jwk(kid: Any = "k-1", **changes: Any) -> dict[str, Any]:
    return {**SigningKey.generate().public_jwk, "kid": kid} | changes


def test_D17_a_hundred_thousand_tokens_with_unknown_keys_cost_one_look_in_thirty_seconds() -> None:
    issuer = Clocked(jwk())
    issuer.key("k-1")
    for number in range(100_000):
        issuer.passes(0.0009)  # ninety seconds in all
        with pytest.raises(CredentialRejectedError) as caught:
            issuer.key(f"unknown-{number}")
        assert caught.value.code == "unknown_key"
    pauses = [after - before for before, after in zip(issuer.looks, issuer.looks[1:], strict=False)]
    assert len(issuer.looks) <= 5
    assert (
        min(pauses[1:]) >= 30
    )  # the first is between the ordinary reading and a look for a new key


@pytest.mark.parametrize("failure", [HttpResponse(503), RESET], ids=["503", "reset"])
def test_D17_old_keys_serve_until_their_stale_end_and_no_longer(failure: Any) -> None:
    issuer = Clocked(jwk())
    first = issuer.key("k-1")
    issuer.answer = failure
    for seconds in (301, 1800, 1798):  # up to a second before the hour after the end
        issuer.passes(seconds)
        assert issuer.key("k-1") == first
    issuer.passes(2)
    with pytest.raises(CredentialUnavailableError):
        issuer.key("k-1")


def test_D17_an_unknown_key_stays_unknown_while_the_keys_cannot_be_had() -> None:
    issuer = Clocked(jwk())
    issuer.key("k-1")
    issuer.answer = HttpResponse(503)
    issuer.passes(60)
    with pytest.raises(CredentialRejectedError) as caught:
        issuer.key("another")
    assert caught.value.code == "unknown_key"


def test_D18_a_set_of_ten_thousand_keys_is_refused_whole() -> None:
    issuer = Clocked(*[jwk()] * 10_000)
    with pytest.raises(CredentialRejectedError) as caught:
        issuer.key("k-1")
    assert caught.value.code == "malformed_keys"


def test_D18_a_thousand_keys_are_read_and_one_more_is_not() -> None:
    key = jwk()
    many = [key | {"kid": f"k-{number}"} for number in range(1001)]
    assert Clocked(*many[:1000]).key("k-999") == many[999]
    with pytest.raises(CredentialRejectedError):
        Clocked(*many).key("k-999")


def test_D18_a_name_that_two_keys_have_is_nobodys() -> None:
    issuer = Clocked(jwk("k-1"), jwk("k-1"), jwk("k-2"))
    assert issuer.key("k-2")["kid"] == "k-2"
    with pytest.raises(CredentialRejectedError) as caught:
        issuer.key("k-1")
    assert caught.value.code == "unknown_key"


UNUSABLE: dict[str, dict[str, Any]] = {
    "oct": {"kty": "oct", "k": "c2VjcmV0", "kid": "k-1"},
    "for encryption": jwk(use="enc"),
    "not for verifying": jwk(key_ops=["encrypt"]),
    "tiny RSA": {"kty": "RSA", "n": "u1_-" * 21, "e": "AQAB", "kid": "k-1"},
    "exponent 1": {"kty": "RSA", "n": "u1_-" * 86, "e": "AQ", "kid": "k-1"},
    "private": jwk(d="AAAA"),
    "no point of its curve": jwk(x="A" * 43),
    "another curve": jwk(crv="secp256k1"),
    "no members": {"kty": "EC", "crv": "P-256", "kid": "k-1"},
    "Ed25519 of small order": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43, "kid": "k-1"},
    "another kind": {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AAAA", "kid": "k-1"},
}


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_D18_a_key_that_no_signature_is_checked_with_is_no_key(unusable: str) -> None:
    issuer = Clocked(UNUSABLE[unusable], jwk("k-2"))
    assert issuer.key("k-2")["kid"] == "k-2"
    with pytest.raises(CredentialRejectedError) as caught:
        issuer.key("k-1")
    assert caught.value.code == "unknown_key"


@pytest.mark.parametrize("unusable", UNUSABLE)
def test_D18_a_key_that_is_none_takes_no_name_from_one_that_is(unusable: str) -> None:
    good = jwk("k-1")
    assert Clocked(UNUSABLE[unusable], good).key("k-1") == good


@pytest.mark.parametrize("kid", ["../../etc/passwd", "' OR 1=1 --", "https://evil.example", "\0"])
def test_D18_a_name_is_looked_up_and_nothing_more(kid: str) -> None:
    issuer = Clocked(jwk())
    with pytest.raises(CredentialRejectedError):
        issuer.key(kid)
    assert len(issuer.looks) == 1


# -- discovery and mix-up --------------------------------------------------------------------------------------------------


def discovered(
    origins: frozenset[str] = frozenset(), issuer: str = IDP, **changes: Any
) -> Endpoints:
    members = {"issuer": issuer, "token_endpoint": f"{IDP}/token"} | changes
    return play(discover(issuer, lambda: NOW, origins), answer_of(**members))


@pytest.mark.parametrize(
    "named",
    [
        "https://evil.example",
        f"{IDP}/",
        "https://IDP.example",
        "https://idp.example:443",
        f"{IDP}/tenant",
        "http://idp.example",
        " https://idp.example",
        "",
        None,
        [IDP],
        {"url": IDP},
    ],
)
def test_E01_metadata_that_names_another_issuer_is_rejected(named: Any) -> None:
    members = {"issuer": named, "token_endpoint": f"{IDP}/token"}
    with pytest.raises(CredentialRejectedError) as caught:
        play(discover(IDP, lambda: NOW), *[answer_of(**members)] * 2)
    assert caught.value.code == "issuer_mismatch"


ENDPOINTS = [
    *("token_endpoint", "registration_endpoint", "revocation_endpoint", "introspection_endpoint"),
    *("jwks_uri", "authorization_endpoint", "pushed_authorization_request_endpoint"),
    *("device_authorization_endpoint", "backchannel_authentication_endpoint"),
]
FOREIGN = [
    "https://evil.example/token",
    "http://idp.example/token",
    "https://idp.example:8443/token",
    "https://idp.example.evil.example/token",
    "https://idp.example@evil.example/token",
    "https://evil.example\\@idp.example/token",
    "http://127.0.0.1/token",
    "//idp.example/token",
    "file:///etc/passwd",
    "",
]


@pytest.mark.parametrize("url", FOREIGN)
@pytest.mark.parametrize("name", ENDPOINTS)
def test_E02_an_endpoint_of_a_foreign_origin_is_rejected(name: str, url: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        discovered(**{name: url})
    assert caught.value.code == "endpoint_origin"


ALIASED = [
    *("token_endpoint", "revocation_endpoint", "introspection_endpoint"),
    *("pushed_authorization_request_endpoint", "device_authorization_endpoint"),
    "backchannel_authentication_endpoint",
]


@pytest.mark.parametrize("name", ALIASED)
def test_E02_an_alias_of_a_foreign_origin_is_rejected_where_it_is_needed(name: str) -> None:
    """Whoever shows no certificate never goes there, and isn't troubled."""
    place = "https://idp.example/there"
    found = discovered(**{name: place}, mtls_endpoint_aliases={name: "https://evil.example/token"})
    field = name.removesuffix("_endpoint").removesuffix("_request")
    assert found.at(field) == place
    with pytest.raises(CredentialRejectedError) as caught:
        found.at(field, certificate=True)
    assert caught.value.code == "endpoint_origin"


def test_E02_a_pinned_origin_is_taken_and_no_other() -> None:
    pinned = frozenset({"https://login.example"})
    assert discovered(pinned, token_endpoint="https://login.example/t").token == (
        "https://login.example/t"
    )
    with pytest.raises(CredentialRejectedError):
        discovered(pinned, token_endpoint="https://login.example.evil.example/t")


def test_E02_an_issuer_on_this_machine_may_speak_http() -> None:
    local = "http://127.0.0.1:8400"
    found = discovered(issuer=local, token_endpoint=f"{local}/token")
    assert found.token == f"{local}/token"


def refused_callback(change: Callable[[dict[str, str]], Any], **known_of: Any) -> str:
    """How a sign-in is refused whose callback is `change` of an honest one, once it is sure that no code was traded."""

    def visit(redirect_uri: str, prompt: Prompt) -> Callback:
        members = change({"code": "the-code", "state": query_of(prompt)["state"]})
        pairs = tuple(members.items()) if isinstance(members, dict) else tuple(members)
        return Callback(redirect_uri, pairs)

    asks: list[Any] = []
    source = AuthorizationCode(SignIn(known(**known_of)))
    with pytest.raises(CredentialRejectedError) as caught:
        play(source.fetch(wanted()), asks=asks, visitor=visit)
    assert requests(asks) == []
    return caught.value.code


@pytest.mark.parametrize(
    "named",
    [
        "https://evil.example",
        f"{IDP}/",
        "https://IDP.example",
        "https://idp.example:443",
        f"{IDP}#",
        f"{IDP}%20",
        "",
    ],
)
@pytest.mark.parametrize("advertised", [True, False])
def test_E07_a_response_that_names_another_issuer_is_rejected(named: str, advertised) -> None:
    code = refused_callback(
        lambda members: members | {"iss": named}, names_itself_in_response=advertised
    )
    assert code == "issuer_mismatch"


def test_E07_a_response_without_the_issuer_that_it_promised_is_rejected() -> None:
    assert refused_callback(lambda members: members, names_itself_in_response=True) == (
        "issuer_missing"
    )


@pytest.mark.parametrize("second", [IDP, "https://evil.example"])
def test_E07_an_issuer_that_is_named_twice_is_rejected(second: str) -> None:
    code = refused_callback(
        lambda members: [*members.items(), ("iss", IDP), ("iss", second)],
        names_itself_in_response=True,
    )
    assert code == "callback_repeated"


@pytest.mark.parametrize("advertised", [True, False])
def test_E07_an_error_counts_only_once_its_issuer_is_known(advertised: bool) -> None:
    code = refused_callback(
        lambda members: {
            "state": members["state"],
            "error": "access_denied",
            "iss": "https://evil.example",
        },
        names_itself_in_response=advertised,
    )
    assert code == "issuer_mismatch"


@pytest.mark.parametrize("advertised", [True, False])
def test_E07_the_right_issuer_is_taken(advertised: bool) -> None:
    source = AuthorizationCode(SignIn(known(names_itself_in_response=advertised)))

    def visit(redirect_uri: str, prompt: Prompt) -> Callback:
        state = query_of(prompt)["state"]
        return Callback(redirect_uri, (("code", "c"), ("state", state), ("iss", IDP)))

    assert play(source.fetch(wanted()), answered(), visitor=visit).issuer == IDP


@pytest.mark.parametrize("methods", [None, (), ("plain",), ("s256",), ("S256 ",), ("plain", "")])
def test_E08_without_s256_nobody_is_sent_anywhere(methods: Any) -> None:
    asks: list[Any] = []
    issuer = known(challenge_methods=None if methods is None else frozenset(methods))
    with pytest.raises(CredentialRejectedError) as caught:
        play(AuthorizationCode(SignIn(issuer)).fetch(wanted()), asks=asks)
    assert (caught.value.code, requests(asks)) == ("pkce_unsupported", [])


UNSAFE = [
    "file:///etc/passwd",
    "file:/c:/windows/system32/calc.exe",
    "javascript:alert(1)",
    "data:text/html,x",
    "vscode://evil",
    "-https://idp.example/authorize",
    "--new-window",
    "$(calc)",
    "a:$(calc)?response_type=code",
    "https://idp.example/$(calc)",
    "https://idp.example/`calc`",
    "https://idp.example/a;calc",
    "https://idp.example/a|calc",
    "https://idp.example/a'calc'",
    'https://idp.example/"calc"',
    "https://idp.example/authorize#x",
    "http://idp.example/authorize",
    "https://user@idp.example/authorize",
    " https://idp.example/authorize",
    "https://idp.example/\nauthorize",
    "",
]


@pytest.mark.parametrize("pushed", [None, f"{IDP}/par"], ids=["in the link", "pushed"])
@pytest.mark.parametrize("place", UNSAFE)
def test_E09_a_link_that_is_more_than_a_link_is_never_shown(place: str, pushed: Any) -> None:
    asks: list[Any] = []
    issuer = known(authorization=place, pushed_authorization=pushed)
    with pytest.raises(CredentialRejectedError) as caught:
        play(AuthorizationCode(SignIn(issuer)).fetch(wanted()), asks=asks)
    assert caught.value.code == "endpoint_unsafe"
    assert not [ask for ask in asks if isinstance(ask, Visit | Show | HttpRequest)]


@pytest.mark.parametrize("place", [one for one in UNSAFE if not one.startswith(IDP) and one])
def test_E09_an_issuer_that_publishes_one_is_not_asked_for_anything(place: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        discovered(authorization_endpoint=place)
    assert caught.value.code == "endpoint_origin"


def flipped(state: str) -> str:
    return state[:-1] + chr(ord(state[-1]) ^ 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda members: {"code": members["code"]},
        lambda members: members | {"state": ""},
        lambda members: members | {"state": flipped(members["state"])},
        lambda members: members | {"state": members["state"][:-1]},
        lambda members: members | {"state": members["state"] + "A"},
        lambda members: members | {"state": members["state"].swapcase()},
        lambda members: members | {"state": members["state"] + "\0"},
        lambda members: members | {"state": "\ud800"},
        lambda members: members | {"state": "é"},
        lambda members: {"State": members["state"], "code": "c"},
        lambda members: {"error": "access_denied"},
    ],
    ids=[
        *("missing", "empty", "one bit off", "shorter", "longer", "other case", "NUL"),
        *("surrogate", "foreign", "other name", "an error without one"),
    ],
)
def test_E10_a_callback_without_the_state_of_this_sign_in_is_rejected(change: Any) -> None:
    assert refused_callback(change) == "state_mismatch"


def test_E10_a_state_that_comes_back_twice_is_rejected() -> None:
    code = refused_callback(lambda members: [*members.items(), ("state", members["state"])])
    assert code == "callback_repeated"


def test_E10_the_state_of_an_earlier_sign_in_or_of_another_session_is_rejected() -> None:
    seen: list[str] = []

    def remembered(redirect_uri: str, prompt: Prompt) -> Callback:
        seen.append(query_of(prompt)["state"])
        return visitor(redirect_uri, prompt)

    source = AuthorizationCode(SignIn(known()))
    play(source.fetch(wanted()), answered(), visitor=remembered)
    assert refused_callback(lambda members: members | {"state": seen[0]}) == "state_mismatch"


def test_E10_the_state_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def spy(one: Any, two: Any) -> bool:
        compared.append((one, two))
        return compare(one, two)

    monkeypatch.setattr(hmac, "compare_digest", spy)
    refused_callback(lambda members: members | {"state": flipped(members["state"])})
    assert len(compared) == 1


@every_way
def test_E13_a_client_assertion_is_for_the_issuer_alone(way: str) -> None:
    made = WAYS[way]()
    asks: list[Any] = []
    made.fetched(answered(), asks=asks)
    for request in requests(asks):
        assertion = form_of(request)["client_assertion"]
        place = urlsplit(request.url)
        claims = claims_of(assertion)
        assert claims["aud"] == f"{place.scheme}://{place.netloc}"
        assert claims["exp"] - claims["iat"] <= 60
        assert jose.unverified(assertion).header["typ"] == "client-authentication+jwt"


def test_E13_the_token_endpoint_is_an_audience_by_configuration_alone() -> None:
    client = Client("client-1", PrivateKeyJwt(CLIENT_KEY, audience="token-endpoint"))
    issuer = KnownIssuer(endpoints(), client, clock=lambda: NOW)
    asks: list[Any] = []
    play(ClientCredentials(issuer).fetch(wanted()), answered(), asks=asks)
    assert claims_of(form_of(asks[0])["client_assertion"])["aud"] == f"{IDP}/token"


@every_way
def test_no_foreign_exception_leaves_a_source(way: str) -> None:
    """Whatever an issuer answers, what comes out is ours."""
    for body in (b'{"access_token":"\\ud800","token_type":"DPoP"}', b"\xff", b"[" * 1_000):
        with pytest.raises(AgentIdentityError):
            WAYS[way]().fetched(HttpResponse(200, JSON_TYPE, body))
