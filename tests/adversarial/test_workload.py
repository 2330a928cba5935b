# SPDX-License-Identifier: Apache-2.0
"""What somebody wants who shares a platform with us: another's name, another's token, or ours sent to them.

Cases A25, A26, D23 and D24. Each is tried at the parser and through everything that takes such a thing.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from agent_identity import jose
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.source import Wanted
from agent_identity.credentials.sources.platform import (
    SpiffeJwtSource,
    SpiffeX509Source,
    WorkloadTokenSource,
)
from agent_identity.credentials.workload import (
    GCP,
    Azure,
    File,
    GitHub,
    GitLab,
    Kubernetes,
    Spiffe,
    provider,
)
from agent_identity.credentials.workload.spiffe import SpiffeId
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    VerificationError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Read
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Certificate, Principal, Secret

NOW = 1_795_518_000.0
BILLING = "https://billing.example"
KEY = SigningKey.generate()
AGENT = Agent("urn:agent-identity:agent:invoice-bot")
WANTED = Wanted(
    resource=BILLING,
    scopes=frozenset({"invoices:read"}),
    principal=Principal("alice"),
    subject=None,
    chain=(),
    agent=AGENT.uri,
    proof_key=AGENT.proof_key,
    txn="ses_1",
    purpose="close the books",
)
CANARY = "canary-request-token-3Vd7"
URL_VARIABLE, TOKEN_VARIABLE = (
    *("env:ACTIONS_ID_TOKEN_REQUEST_URL", "env:ACTIONS_ID_TOKEN_REQUEST_TOKEN"),
)
TOKEN_URL = "https://run.actions.githubusercontent.com/7/idtoken?api-version=2.0"
FLAVOR = {"metadata-flavor": "Google"}


def clock() -> float:
    return NOW


def jwt(**changes: Any) -> str:
    claims = {"sub": "job-1", "aud": BILLING, "exp": NOW + 600} | changes
    members = {name: value for name, value in claims.items() if value is not None}
    return KEY.compact(jose.encode_header("ES256", typ="JWT"), json.dumps(members).encode())


def certificate(*uris: str) -> Certificate:
    return Certificate("-----BEGIN CERTIFICATE-----", Secret("key"), "tp", NOW + 3600, uris)


def refused(code: str, flow: Any, *answers: Any, **options: Any) -> AgentIdentityError:
    with pytest.raises(AgentIdentityError) as caught:
        play(flow, *answers, **options)
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value


def answer(document: Any) -> HttpResponse:
    return HttpResponse(200, {"content-type": "application/json"}, json.dumps(document).encode())


# -- A25: a name that somebody reads otherwise -----------------------------------------------------------------------

IN_TRUST_DOMAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789.-_")
IN_SEGMENT = IN_TRUST_DOMAIN | frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ")

MISREAD = [
    "spiffe://example.org/a\n",
    "spiffe://example.org\n",
    "spiffe://example.org\n/a",
    " spiffe://example.org/a",
    "spiffe://example.org/a ",
    "Spiffe://example.org/a",
    "SPIFFE://example.org/a",
    "spiffe://Example.org/a",
    "spiffe://EXAMPLE.ORG/a",
    "spiffe://example.org/%61",
    "spiffe://ex%61mple.org/a",
    "spiffe://example.org/..",
    "spiffe://example.org/../evil.example/a",
    "spiffe://example.org/a/../b",
    "spiffe://example.org/a/..",
    "spiffe://example.org/.",
    "spiffe://example.org/./a",
    "spiffe://example.org/%2e%2e/b",
    "spiffe://example.org:443/a",
    "spiffe://example.org:/a",
    "spiffe://admin@example.org/a",
    "spiffe://admin:pass@example.org/a",
    "spiffe://@example.org/a",
    "spiffe://example.org/a?admin",
    "spiffe://example.org/a?",
    "spiffe://example.org?a",
    "spiffe://example.org/a#x",
    "spiffe://example.org/a#",
    "spiffe://example.org/a/",
    "spiffe://example.org/",
    "spiffe://example.org//a",
    "spiffe://example.org/a//b",
    "spiffe:///a",
    "spiffe://",
    "spiffe:/example.org/a",
    "spiffe:example.org/a",
    "spiffe:\\\\example.org\\a",
    "spiffe://example.org\\a",
    "spiffe://[::1]/a",
    "spiffe://exаmple.org/a",  # noqa: RUF001 - with a Cyrillic letter, on purpose
    "spiffe://example.org/٣",
    "spiffe://example.org/ﬁ",
    "spiffe://example.org/a\0",
    "https://example.org/a",
    "//example.org/a",
    "example.org/a",
    "",
    "spiffe://" + "a" * 256 + "/x",
    "spiffe://" + "a" * 256,
    "spiffe://example.org/" + "a" * (2049 - len("spiffe://example.org/")),
]


def expect_id(text: str, *, accepted: bool) -> None:
    if accepted:
        assert str(SpiffeId.parse(text)) == text
    else:
        with pytest.raises(VerificationError) as caught:
            SpiffeId.parse(text)
        assert caught.value.code == "spiffe_id_malformed"


@pytest.mark.parametrize("byte", range(256), ids=lambda byte: f"{byte:02x}")
def test_A25_only_the_bytes_of_a_trust_domain_stand_in_one(byte) -> None:
    """A slash ends it, and is the one other byte that may stand there."""
    for form in (
        "spiffe://ex{}ample.org/a",
        "spiffe://{}example.org/a",
        "spiffe://example.org{}/a",
    ):
        text = form.format(chr(byte))
        slash = byte == ord("/") and form.startswith("spiffe://ex{}")
        expect_id(text, accepted=byte in IN_TRUST_DOMAIN or slash)


@pytest.mark.parametrize("byte", range(256), ids=lambda byte: f"{byte:02x}")
def test_A25_only_the_bytes_of_a_segment_stand_in_one(byte) -> None:
    for form in (
        "spiffe://example.org/a{}b",
        "spiffe://example.org/{}a",
        "spiffe://example.org/a{}",
    ):
        text = form.format(chr(byte))
        slash = byte == ord("/") and form.endswith("a{}b")
        expect_id(text, accepted=byte in IN_SEGMENT or slash)


@pytest.mark.parametrize("text", MISREAD)
def test_A25_a_name_with_another_spelling_is_refused_and_never_put_right(text) -> None:
    expect_id(text, accepted=False)


@pytest.mark.parametrize(
    "value", [None, b"spiffe://example.org/a", 7, ["spiffe://example.org/a"], {}]
)
def test_A25_a_name_that_is_no_text_is_refused(value) -> None:
    with pytest.raises(VerificationError):
        SpiffeId.parse(value)


def test_A25_the_longest_names_are_still_names() -> None:
    expect_id("spiffe://" + "a" * 255 + "/x", accepted=True)
    expect_id("spiffe://example.org/" + "a" * (2048 - len("spiffe://example.org/")), accepted=True)


@pytest.mark.parametrize("text", [*MISREAD, "spiffe://example.org"])
def test_A25_an_svid_with_such_a_name_is_not_used(text) -> None:
    """Without a path it names a trust domain, which no workload is (X509-SVID §3.1)."""
    svids: dict[str | None, Secret | Certificate] = {BILLING: Secret(jwt(sub=text))}
    svids[None] = certificate(text)
    refused("spiffe_id_malformed", Spiffe().fetch(BILLING, NOW), svids=svids)
    refused("spiffe_id_malformed", SpiffeJwtSource(clock=clock).fetch(WANTED), svids=svids)
    refused("spiffe_id_malformed", SpiffeX509Source(clock=clock).fetch(WANTED), svids=svids)
    helper = File("/run/svid", trust_domain="example.org")
    secrets = {"file:/run/svid": Secret(jwt(sub=text))}
    refused("spiffe_id_malformed", helper.fetch(BILLING, NOW), secrets=secrets)


@pytest.mark.parametrize("sub", [None, 7, ["spiffe://example.org/a"], True])
def test_A25_an_svid_whose_subject_is_no_text_is_not_used(sub) -> None:
    svids = {BILLING: Secret(jwt(sub=sub))}
    refused("spiffe_id_malformed", Spiffe().fetch(BILLING, NOW), svids=svids)


# -- A26: somebody else's SVID ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "spiffe://evil.example/bot",
        "spiffe://example.org.evil.example/bot",
        "spiffe://sub.example.org/bot",
        "spiffe://example.or/bot",
        "spiffe://example.orgg/bot",
        "spiffe://evil.example/example.org/bot",
    ],
)
def test_A26_an_svid_of_another_trust_domain_is_refused(name) -> None:
    svids: dict[str | None, Secret | Certificate] = {BILLING: Secret(jwt(sub=name))}
    svids[None] = certificate(name)
    for source in (
        SpiffeJwtSource("example.org", clock=clock),
        SpiffeX509Source("example.org", clock=clock),
        WorkloadTokenSource(Spiffe({}, "example.org"), clock=clock),
        WorkloadTokenSource(provider("ambient", trust_domain="example.org"), clock=clock),
    ):
        refused("trust_domain_mismatch", source.fetch(WANTED), svids=svids)


@pytest.mark.parametrize(
    "aud",
    [
        *("https://mail.example", "", "https://billing.example/", "https://BILLING.example"),
        *([BILLING, "https://mail.example"], [], [BILLING, BILLING], ["https://mail.example"]),
        *(None, 7, {BILLING: 1}, [[BILLING]]),
    ],
)
def test_A26_a_jwt_svid_for_another_audience_or_one_more_is_refused(aud) -> None:
    svids = {BILLING: Secret(jwt(sub="spiffe://example.org/bot", aud=aud))}
    refused("audience_mismatch", SpiffeJwtSource(clock=clock).fetch(WANTED), svids=svids)


@pytest.mark.parametrize(
    "uris",
    [
        (),
        ("spiffe://example.org/bot", "spiffe://example.org/other"),
        ("spiffe://example.org/bot", "spiffe://example.org/bot"),
        ("spiffe://example.org/bot", "https://example.org"),
        ("https://example.org", "spiffe://example.org/bot"),
        ("https://example.org",),
        ("",),
    ],
)
def test_A26_a_certificate_with_no_or_two_names_is_refused(uris) -> None:
    source = SpiffeX509Source("example.org", clock=clock)
    refused("spiffe_id_malformed", source.fetch(WANTED), svids={None: certificate(*uris)})
    good = certificate("spiffe://example.org/bot")
    assert play(source.fetch(WANTED), svids={None: good}).certificate is good


# -- D23: our token sent to somebody else ----------------------------------------------------------------------------

FOREIGN = [
    "https://evil.example/idtoken?api-version=2.0",
    "https://actions.githubusercontent.com.evil.example/x",
    "https://evilactions.githubusercontent.com/x",
    "https://actions.githubusercontent.com@evil.example/x",
    "https://run.actions.githubusercontent.com@evil.example/x",
    "https://evil.example/.actions.githubusercontent.com",
    "https://evil.example?.actions.githubusercontent.com",
    "https://evil.example#.actions.githubusercontent.com",
    "https://evil.example\\.actions.githubusercontent.com/x",
    "https://run.actions.githubusercontent.com:8443/x",
    "https://run.actions.githubusercontent.com./x",
    "https://run.actions.githubusercontent.com/x#",
    "https://run.actions.githubusercontent.com/x#y",
    "http://run.actions.githubusercontent.com/x",
    "http://169.254.169.254/latest/meta-data",
    "http://localhost/x",
    "https://githubusercontent.com/x",
    "https://raw.githubusercontent.com/x",
    "https://run.actions.githubusercontent.com/\r\nHost: evil.example",
    "https://run.actions.githubusercontent.com\n.evil.example/x",
    "ftp://run.actions.githubusercontent.com/x",
    "//run.actions.githubusercontent.com/x",
    "",
]


@pytest.mark.parametrize("url", FOREIGN)
@pytest.mark.parametrize(
    "platform",
    [GitHub(), provider("github"), provider("ambient")],
    ids=["class", "name", "ambient"],
)
def test_D23_a_token_url_that_leads_elsewhere_gets_nothing(platform, url) -> None:
    asks: list[Any] = []
    secrets = {URL_VARIABLE: Secret(url), TOKEN_VARIABLE: Secret(CANARY)}
    error = refused("foreign_token_url", platform.fetch(BILLING, NOW), secrets=secrets, asks=asks)
    assert isinstance(error, ConfigurationError)
    assert asks == [Read(URL_VARIABLE)]  # the job's request token wasn't even read
    assert_no_leak([CANARY], error)


@pytest.mark.parametrize(
    "url",
    [
        TOKEN_URL,
        "https://token.ghe.example.evil.example/x",
        "https://token.ghe.example:8443/x",
        "http://token.ghe.example/x",
        "https://me@token.ghe.example/x",
    ],
)
def test_D23_a_configured_token_host_is_the_only_one(url) -> None:
    asks: list[Any] = []
    secrets = {URL_VARIABLE: Secret(url), TOKEN_VARIABLE: Secret(CANARY)}
    flow = GitHub(token_host="token.ghe.example").fetch(BILLING, NOW)
    refused("foreign_token_url", flow, secrets=secrets, asks=asks)
    assert asks == [Read(URL_VARIABLE)]


def test_D23_a_token_service_that_redirects_is_not_followed() -> None:
    asks: list[Any] = []
    secrets = {URL_VARIABLE: Secret(TOKEN_URL), TOKEN_VARIABLE: Secret(CANARY)}
    away = HttpResponse(302, {"location": "https://evil.example/"})
    error = refused_without_remedy("redirected", GitHub().fetch(BILLING, NOW), away, secrets, asks)
    assert_no_leak([CANARY], error)
    assert [ask.url for ask in asks if isinstance(ask, HttpRequest)] == [
        f"{TOKEN_URL}&audience=https%3A%2F%2Fbilling.example"
    ]


def refused_without_remedy(code: str, flow: Any, reply: Any, secrets: Any, asks: Any) -> Any:
    with pytest.raises(CredentialRejectedError) as caught:
        play(flow, reply, secrets=secrets, asks=asks)
    assert caught.value.code == code
    return caught.value


@pytest.mark.parametrize(
    ("platform", "host"),
    [(GCP(certain=True), "metadata.google.internal"), (Azure(certain=True), "169.254.169.254")],
    ids=["gcp", "azure"],
)
def test_D23_no_variable_moves_a_metadata_service(platform, host) -> None:
    """What other libraries read to find it elsewhere is never asked for, and only the exact host may be without TLS."""
    asks: list[Any] = []
    secrets = {
        f"env:{name}": Secret("evil.example")
        for name in (
            *("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT", "IDENTITY_ENDPOINT"),
            *("MSI_ENDPOINT", "IDENTITY_HEADER", "AZURE_POD_IDENTITY_AUTHORITY_HOST"),
            *("AWS_EC2_METADATA_SERVICE_ENDPOINT", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
            *("HTTP_PROXY", "http_proxy"),
        )
    }
    reply = HttpResponse(200, FLAVOR, jwt().encode())
    if platform.kind == "azure":
        reply = answer({"access_token": jwt(), "resource": BILLING})
    assert play(platform.fetch(BILLING, NOW), reply, secrets=secrets, asks=asks)
    (request,) = (ask for ask in asks if isinstance(ask, HttpRequest))
    assert (urlsplit(request.url).netloc, request.plain) == (host, host)
    assert not [ask for ask in asks if isinstance(ask, Read) and ask.reference in secrets]


@pytest.mark.parametrize(
    "audience", ["x&format=none", "x#", "x y", "x\r\nHost: evil", "x/../y", "é"]
)
@pytest.mark.parametrize("platform", [GCP(certain=True), Azure(certain=True)], ids=["gcp", "azure"])
def test_D23_an_audience_can_t_change_what_is_asked_for(platform, audience) -> None:
    asks: list[Any] = []
    with pytest.raises(AgentIdentityError):
        play(platform.fetch(audience, NOW), HttpResponse(500, FLAVOR), asks=asks)
    (request,) = (ask for ask in asks if isinstance(ask, HttpRequest))
    assert request.url.isascii()
    assert not set(request.url) & set(" \r\n#")
    assert request.url.count("&") == 1


@pytest.mark.parametrize(
    "headers", [{}, {"metadata-flavor": "google"}, {"metadata-flavor": "Evil"}]
)
def test_D23_a_foreign_server_at_the_metadata_address_is_not_believed(headers) -> None:
    reply = HttpResponse(200, headers, jwt().encode())
    refused("foreign_metadata_server", GCP(certain=True).fetch(BILLING, NOW), reply)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_D23_a_metadata_service_that_redirects_is_not_followed(status) -> None:
    away = HttpResponse(status, FLAVOR | {"location": "http://evil.example/"})
    for platform in (GCP(certain=True), Azure(certain=True)):
        asks: list[Any] = []
        refused_without_remedy("redirected", platform.fetch(BILLING, NOW), away, {}, asks)
        assert len([ask for ask in asks if isinstance(ask, HttpRequest)]) == 1


def test_D23_a_machine_that_is_no_cloud_s_sends_nothing_to_a_metadata_address() -> None:
    """On another network that address may be anybody's."""
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError):
        play(provider("ambient").fetch(BILLING, NOW), asks=asks)
    assert [ask for ask in asks if isinstance(ask, HttpRequest)] == []


# -- D24: another job's token ----------------------------------------------------------------------------------------

OURS = {
    "repository": "acme/app",
    "repository_id": "74",
    "ref": "refs/heads/main",
    "environment": "production",
    "event_name": "push",
}
THEIRS = [
    {"repository": "mallory/app"},
    {"repository": "acme/app2"},
    {"repository": "acme/ap"},
    {"repository": "Acme/App"},
    {"repository_id": "75"},  # a repository that took the name of one that is gone
    {"repository_id": 74},
    {"ref": "refs/pull/7/merge"},
    {"ref": "refs/heads/main2"},
    {"ref": "refs/tags/main"},
    {"environment": "staging"},
    {"environment": None},
    {"environment": ["production"]},
    {"environment": True},
    {"event_name": "pull_request"},
    {"event_name": "pull_request_target"},
    {"repository": "mallory/app", "repository_id": "99", "ref": "refs/heads/main"},  # a fork
]


def github(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    secrets = {URL_VARIABLE: Secret(TOKEN_URL), TOKEN_VARIABLE: Secret(CANARY)}
    return GitHub(expect), [answer({"value": token})], {"secrets": secrets}


def gitlab(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    return GitLab(expect), [], {"secrets": {"env:GITLAB_OIDC_TOKEN": Secret(token)}}


def ambient(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    _, answers, options = github(token, expect)
    return provider("ambient", expect=expect), answers, options


def kubernetes(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    place = "file:/run/token"
    return Kubernetes(expect, "/run/token"), [], {"secrets": {place: Secret(token)}}


def gcp(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    return GCP(expect, certain=True), [HttpResponse(200, FLAVOR, token.encode())], {}


def azure(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    document = {"access_token": token, "resource": BILLING}
    return Azure(expect, certain=True), [answer(document)], {}


def file(token: str, expect: dict[str, str]) -> tuple[Any, list[Any], dict[str, Any]]:
    return File("/run/token", expect), [], {"secrets": {"file:/run/token": Secret(token)}}


EVERYWHERE = pytest.mark.parametrize(
    "here", [github, gitlab, ambient, kubernetes, gcp, azure, file], ids=lambda here: here.__name__
)


@EVERYWHERE
@pytest.mark.parametrize("changes", THEIRS, ids=str)
def test_D24_another_repository_ref_or_environment_or_a_fork_is_refused(here, changes) -> None:
    token = jwt(**OURS | changes)
    platform, answers, options = here(token, OURS)
    error = refused("claim_mismatch", platform.fetch(BILLING, NOW), *answers, **options)
    assert_no_leak([token, CANARY], error)


@EVERYWHERE
def test_D24_our_own_job_is_accepted(here) -> None:
    token = jwt(**OURS)
    platform, answers, options = here(token, OURS)
    assert play(platform.fetch(BILLING, NOW), *answers, **options).token.reveal() == token


@EVERYWHERE
@pytest.mark.parametrize("aud", ["https://mail.example", [BILLING, "https://mail.example"], None])
def test_D24_a_token_for_another_audience_is_refused(here, aud) -> None:
    platform, answers, options = here(jwt(**OURS | {"aud": aud}), OURS)
    refused("audience_mismatch", platform.fetch(BILLING, NOW), *answers, **options)


@pytest.mark.parametrize("here", [azure, file], ids=lambda here: here.__name__)
def test_D24_a_token_that_shows_no_claims_doesn_t_pass_for_the_expected_workload(here) -> None:
    platform, answers, options = here("opaque-token", {"sub": "job-1"})
    refused("claim_mismatch", platform.fetch(BILLING, NOW), *answers, **options)


def test_D24_a_fork_s_job_on_our_own_machine_doesn_t_become_that_machine() -> None:
    """GitHub gives a fork's pull request no token; the machine's own identity, next in the row, isn't asked."""
    asks: list[Any] = []
    secrets = {
        "env:GITHUB_ACTIONS": Secret("true"),
        "file:/sys/class/dmi/id/product_name": Secret("Google Compute Engine\n"),
    }
    flow = provider("ambient").fetch(BILLING, NOW)
    refused("token_variable_missing", flow, secrets=secrets, asks=asks)
    assert [ask for ask in asks if isinstance(ask, HttpRequest)] == []
