# SPDX-License-Identifier: Apache-2.0
"""Platforms of workload identity, played by hand: not here is None, here is a token, here and broken is an error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent_identity.credentials.oauth.token_types import ACCESS_TOKEN, JWT
from agent_identity.credentials.workload import (
    AWS,
    GCP,
    Ambient,
    Azure,
    File,
    GitHub,
    GitLab,
    Kubernetes,
    Spiffe,
    WorkloadToken,
    provider,
)
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Pause, Read, Svid, run
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Secret

NOW = 1_795_518_000.0
BILLING = "https://billing.example"
TOKEN_URL = "https://run.actions.githubusercontent.com/7/idtoken?api-version=2.0"
POD_TOKEN = "file:/var/run/secrets/kubernetes.io/serviceaccount/token"
AZURE_FIRMWARE = "file:/sys/class/dmi/id/chassis_asset_tag"
GOOGLE_FIRMWARE = "file:/sys/class/dmi/id/product_name"
AZURE_TAG = "7783-7084-3265-9085-8269-3286-77\n"
GITHUB = {"env:ACTIONS_ID_TOKEN_REQUEST_URL": TOKEN_URL, "env:ACTIONS_ID_TOKEN_REQUEST_TOKEN": "rt"}
FLAVOR = {"metadata-flavor": "Google", "content-type": "text/html"}
CANARY = "canary-request-token-9fKx"


def fetch(platform: Any, *answers: Any, has: dict[str, str] | None = None, **options: Any) -> Any:
    secrets = {name: Secret(text) for name, text in (has or {}).items()}
    audience = options.pop("audience", BILLING)
    return play(platform.fetch(audience, NOW), *answers, secrets=secrets, **options)


def refused(
    kind: type[AgentIdentityError], code: str, platform: Any, *answers: Any, **options: Any
) -> AgentIdentityError:
    with pytest.raises(kind) as caught:
        fetch(platform, *answers, **options)
    assert caught.value.code == code
    assert caught.value.remedy or isinstance(caught.value, CredentialUnavailableError)
    return caught.value


def answer(document: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(
        status, {"content-type": "application/json; charset=utf-8"}, json.dumps(document).encode()
    )


def requests(asks: list[Any]) -> list[HttpRequest]:
    return [ask for ask in asks if isinstance(ask, HttpRequest)]


# -- not here --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platform",
    [GitHub(), GitLab(), Spiffe(), AWS(), Azure(), GCP(), Kubernetes(), File("/run/token")],
    ids=lambda platform: platform.kind,
)
def test_a_platform_that_is_not_here_gives_none_and_nothing_is_sent(platform) -> None:
    asks: list[Any] = []
    assert fetch(platform, asks=asks) is None
    assert requests(asks) == []
    assert asks


@pytest.mark.parametrize(
    ("platform", "has"),
    [
        (GCP(), {GOOGLE_FIRMWARE: "Standard PC (Q35)\n"}),
        (Azure(), {AZURE_FIRMWARE: "No Asset Tag\n"}),
        (GitHub(), {"env:GITHUB_ACTIONS": "false"}),
    ],
    ids=["gcp", "azure", "github"],
)
def test_another_machine_is_not_the_platform(platform, has) -> None:
    asks: list[Any] = []
    assert fetch(platform, has=has, asks=asks) is None
    assert requests(asks) == []


# -- here ------------------------------------------------------------------------------------------------------------


def test_github_is_asked_for_a_token_to_exactly_this_audience(jwt) -> None:
    asks: list[Any] = []
    token = jwt(repository="acme/app")
    found = fetch(GitHub(), answer({"value": token, "count": 9}), has=GITHUB, asks=asks)
    (request,) = requests(asks)
    assert found == WorkloadToken(Secret(token), NOW, NOW + 600, JWT)
    assert (request.method, request.url) == (
        "GET",
        f"{TOKEN_URL}&audience=https%3A%2F%2Fbilling.example",
    )
    assert request.headers["Authorization"] == "bearer rt"
    assert request.plain is None


def test_a_token_service_without_a_query_gets_one(jwt) -> None:
    asks: list[Any] = []
    has = GITHUB | {"env:ACTIONS_ID_TOKEN_REQUEST_URL": TOKEN_URL.partition("?")[0]}
    fetch(GitHub(), answer({"value": jwt()}), has=has, asks=asks)
    assert requests(asks)[0].url.endswith("/idtoken?audience=https%3A%2F%2Fbilling.example")


def test_a_github_enterprise_server_is_asked_where_it_is_configured(jwt) -> None:
    has = GITHUB | {"env:ACTIONS_ID_TOKEN_REQUEST_URL": "https://token.ghe.example:8443/x?y=1"}
    assert fetch(GitHub(token_host="token.ghe.example:8443"), answer({"value": jwt()}), has=has)


@pytest.mark.parametrize("variable", ["GITLAB_OIDC_TOKEN", "BILLING_TOKEN"])
def test_gitlab_gives_the_token_in_its_variable(jwt, variable) -> None:
    token = jwt()
    found = fetch(GitLab(variable=variable), has={f"env:{variable}": f"{token}\n"})
    assert found == WorkloadToken(Secret(token), NOW, NOW + 600, JWT)


def test_kubernetes_gives_the_token_in_its_file_and_reads_it_each_time(jwt) -> None:
    platform = Kubernetes(path="/var/run/tokens/billing")
    for life in (600, 700):
        token = jwt(exp=NOW + life)
        found = fetch(platform, has={"file:/var/run/tokens/billing": token + "\n"})
        assert found.token.reveal() == token
        assert found.expires_at == NOW + life


def test_an_eks_pod_has_its_token_in_the_file_that_a_variable_names(jwt) -> None:
    has = {"env:AWS_WEB_IDENTITY_TOKEN_FILE": "/eks/token", "file:/eks/token": jwt(aud=[BILLING])}
    assert fetch(AWS(), has=has).token.reveal() == has["file:/eks/token"]


def test_a_pod_on_azure_has_its_token_in_the_file_that_a_variable_names(jwt) -> None:
    audience = "api://AzureADTokenExchange"
    has = {"env:AZURE_FEDERATED_TOKEN_FILE": "/azure/token", "file:/azure/token": jwt(aud=audience)}
    asks: list[Any] = []
    assert fetch(Azure(), has=has, audience=audience, asks=asks).token_type == JWT
    assert requests(asks) == []


def test_google_cloud_gives_an_identity_token_as_text(jwt) -> None:
    asks: list[Any] = []
    token = jwt()
    found = fetch(
        GCP(),
        HttpResponse(200, FLAVOR, token.encode()),
        has={GOOGLE_FIRMWARE: "Google Compute Engine\n"},
        asks=asks,
    )
    (request,) = requests(asks)
    assert found.token.reveal() == token
    assert request.headers["Metadata-Flavor"] == "Google"
    assert request.url == (
        "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/identity"
        "?format=full&audience=https%3A%2F%2Fbilling.example"
    )


@pytest.mark.parametrize("client_id", [None, "6f1c/…&resource=x"])
def test_azure_gives_a_managed_identity_s_token(jwt, client_id) -> None:
    asks: list[Any] = []
    found = fetch(
        Azure(client_id=client_id),
        answer({"access_token": jwt(), "resource": BILLING, "expires_in": "86399"}),
        has={AZURE_FIRMWARE: AZURE_TAG},
        asks=asks,
    )
    (request,) = requests(asks)
    assert found.expires_at == NOW + 600
    assert request.headers == {"Metadata": "true"}
    chosen = "" if client_id is None else "&client_id=6f1c%2F%E2%80%A6%26resource%3Dx"
    assert request.url == (
        "http://169.254.169.254/metadata/identity/oauth2/token?api-version=2018-02-01"
        f"&resource=https%3A%2F%2Fbilling.example{chosen}"
    )


def test_a_cloud_that_configuration_names_is_asked_without_a_look_at_the_machine(jwt) -> None:
    google = HttpResponse(200, FLAVOR, jwt().encode())
    assert fetch(provider("gcp"), google)
    assert fetch(provider("azure"), answer({"access_token": jwt(), "resource": BILLING}))


def test_an_opaque_token_is_used_for_a_minute_and_says_what_it_is() -> None:
    found = fetch(File("/run/token"), has={"file:/run/token": "opaque-token\n"})
    assert (found.token_type, found.expires_at) == (ACCESS_TOKEN, NOW + 60)


def test_the_workload_api_is_asked_for_this_audience(jwt) -> None:
    asks: list[Any] = []
    svid = jwt(sub="spiffe://example.org/billing-bot", aud=[BILLING])
    found = fetch(Spiffe(trust_domain="example.org"), svids={BILLING: Secret(svid)}, asks=asks)
    assert found.token.reveal() == svid
    assert asks == [Svid(BILLING)]


def test_a_file_of_spiffe_helper_is_held_to_being_an_svid(jwt) -> None:
    platform = File("/run/svid", trust_domain="example.org")
    svid = jwt(sub="spiffe://example.org/bot")
    assert fetch(platform, has={"file:/run/svid": svid}).token.reveal() == svid
    refused(CredentialRejectedError, "spiffe_id_malformed", platform, has={"file:/run/svid": jwt()})
    foreign = jwt(sub="spiffe://evil.example/bot")
    refused(
        CredentialRejectedError, "trust_domain_mismatch", platform, has={"file:/run/svid": foreign}
    )


# -- here but broken -------------------------------------------------------------------------------------------------


def test_a_job_of_github_s_that_may_have_no_token_is_broken_and_not_absent() -> None:
    """A pull request from a fork on a machine of ours must not become that machine."""
    error = refused(
        CredentialUnavailableError,
        "token_variable_missing",
        GitHub(),
        has={"env:GITHUB_ACTIONS": "true"},
    )
    assert "ACTIONS_ID_TOKEN_REQUEST_URL" in str(error)
    assert "id-token: write" in (error.remedy or "")


def test_a_job_of_gitlab_s_without_its_token_is_broken_and_not_absent() -> None:
    error = refused(
        CredentialUnavailableError,
        "token_variable_missing",
        GitLab(),
        has={"env:GITLAB_CI": "true"},
    )
    assert "GITLAB_OIDC_TOKEN" in str(error)


def test_a_url_without_its_request_token_names_the_missing_variable() -> None:
    has = {"env:ACTIONS_ID_TOKEN_REQUEST_URL": TOKEN_URL}
    error = refused(
        CredentialUnavailableError, "token_variable_missing", GitHub(), has=has, asks=[]
    )
    assert "ACTIONS_ID_TOKEN_REQUEST_TOKEN isn't" in str(error)


@pytest.mark.parametrize("bearer", ["", "two words", "line\nbreak", "r\r\nHost: evil", "ü"])
def test_a_request_token_that_can_be_none_is_not_sent(bearer) -> None:
    has = GITHUB | {"env:ACTIONS_ID_TOKEN_REQUEST_TOKEN": bearer}
    asks: list[Any] = []
    refused(CredentialRejectedError, "malformed_token", GitHub(), has=has, asks=asks)
    assert requests(asks) == []


@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (answer({"message": CANARY}, 403), CredentialRejectedError, "unknown_error"),
        (answer({}, 503), CredentialUnavailableError, "issuer_busy"),
        (
            HttpResponse(302, {"location": "https://evil.example"}),
            CredentialRejectedError,
            "redirected",
        ),
        (
            HttpResponse(200, {"content-type": "text/html"}, b"<html>"),
            CredentialRejectedError,
            "not_json",
        ),
        (answer({"count": 1}), CredentialRejectedError, "malformed_token"),
        (answer({"value": 7}), CredentialRejectedError, "malformed_token"),
        (answer({"value": CANARY}), CredentialRejectedError, "malformed_token"),
        (
            TransportError("connect_failed", "no route"),
            CredentialUnavailableError,
            "issuer_unreachable",
        ),
    ],
)
def test_a_token_service_that_answers_otherwise_is_an_error(reply, kind, code) -> None:
    has = GITHUB | {"env:ACTIONS_ID_TOKEN_REQUEST_TOKEN": CANARY}
    with pytest.raises(kind) as caught:
        fetch(GitHub(), reply, has=has)
    assert caught.value.code == code
    assert_no_leak([CANARY], caught.value)


def test_a_busy_metadata_service_says_when_to_come_back() -> None:
    busy = HttpResponse(429, {**FLAVOR, "retry-after": "7"})
    with pytest.raises(CredentialUnavailableError) as caught:
        fetch(GCP(certain=True), busy)
    assert caught.value.retry_after == 7
    with pytest.raises(CredentialUnavailableError) as caught:
        fetch(Azure(certain=True), HttpResponse(503, {"retry-after": "9"}))
    assert caught.value.retry_after == 9


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ({"access_token": "", "resource": BILLING}, "malformed_token"),
        ({"access_token": "opaque", "resource": "https://mail.example"}, "audience_mismatch"),
        ({"access_token": "opaque"}, "audience_mismatch"),
        ({"access_token": "eyJhbGciOi", "resource": BILLING}, "malformed_token"),
    ],
)
def test_a_managed_identity_that_answers_otherwise_is_refused(document, code) -> None:
    refused(CredentialRejectedError, code, Azure(certain=True), answer(document))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"exp": NOW}, "token_expired"),
        ({"exp": NOW - 5}, "token_expired"),
        ({"exp": None}, "malformed_token"),
        ({"exp": "tomorrow"}, "malformed_token"),
        ({"exp": True}, "malformed_token"),
        ({"aud": None}, "audience_mismatch"),
        ({"aud": "https://mail.example"}, "audience_mismatch"),
        ({"aud": [BILLING, "https://mail.example"]}, "audience_mismatch"),
        ({"aud": []}, "audience_mismatch"),
        ({"aud": f"{BILLING}/"}, "audience_mismatch"),
    ],
)
@pytest.mark.parametrize(
    ("platform", "place"),
    [
        (GitLab(), "env:GITLAB_OIDC_TOKEN"),
        (Kubernetes(), POD_TOKEN),
        (File("/run/token"), "file:/run/token"),
    ],
    ids=["gitlab", "kubernetes", "file"],
)
def test_a_token_that_is_not_what_was_asked_for_is_refused(
    jwt, platform, place, changes, code
) -> None:
    if platform.kind == "file" and changes == {"exp": None}:
        assert fetch(platform, has={place: jwt(**changes)}).expires_at == NOW + 60
        return
    refused(CredentialRejectedError, code, platform, has={place: jwt(**changes)})


@pytest.mark.parametrize("text", ["", "   ", "two words", "eyJhbGciOi.x", "ein-ü"])
def test_a_file_without_a_whole_token_is_read_once_more(text) -> None:
    asks: list[Any] = []
    with pytest.raises(CredentialUnavailableError) as caught:
        fetch(Kubernetes(), has={POD_TOKEN: text}, asks=asks)
    assert caught.value.code == "token_file_unreadable"
    assert [type(ask) for ask in asks] == [Read, Pause, Read]


def test_a_file_that_was_met_half_written_gives_its_token_at_the_second_look(jwt) -> None:
    token = jwt()
    contents = iter([Secret(token[:40]), None, Secret(token)])
    found = run(Kubernetes().fetch(BILLING, NOW), lambda _: next(contents))
    assert found is not None
    assert found.token.reveal() == token


def test_a_file_that_is_half_written_when_no_time_is_left_is_an_error_of_the_file(jwt) -> None:
    def world(ask: Any) -> Any:
        if isinstance(ask, Pause):
            raise TransportError("deadline_exceeded", "no time left")
        return Secret(jwt()[:40])

    with pytest.raises(CredentialUnavailableError) as caught:
        run(Kubernetes().fetch(BILLING, NOW), world)
    assert caught.value.code == "token_file_unreadable"


def test_a_variable_that_names_no_file_says_so() -> None:
    has = {"env:AWS_WEB_IDENTITY_TOKEN_FILE": "/eks/token"}
    error = refused(CredentialUnavailableError, "token_file_missing", AWS(), has=has)
    assert "AWS_WEB_IDENTITY_TOKEN_FILE" in str(error)


@pytest.mark.parametrize("path", ["token", "./token", "../token", ""])
def test_a_path_that_depends_on_the_working_directory_is_refused(path) -> None:
    has = {"env:AZURE_FEDERATED_TOKEN_FILE": path}
    asks: list[Any] = []
    refused(ConfigurationError, "token_path", Azure(), has=has, asks=asks)
    assert len(asks) == 1
    for make in (File, lambda found: Kubernetes(path=found)):
        with pytest.raises(ConfigurationError, match="absolute"):
            make(path)


def test_a_workload_api_that_gives_an_empty_svid_is_broken() -> None:
    refused(CredentialRejectedError, "malformed_token", Spiffe(), svids={BILLING: Secret("")})


@pytest.mark.parametrize(
    "platform", [GitHub(), Spiffe(), GCP(certain=True), Azure(certain=True)], ids=lambda p: p.kind
)
def test_nobody_is_asked_for_a_token_to_nobody(platform) -> None:
    asks: list[Any] = []
    refused(ConfigurationError, "audience_missing", platform, audience="", has=GITHUB, asks=asks)
    assert requests(asks) == []
    assert not [ask for ask in asks if isinstance(ask, Svid)]


# -- ambient ---------------------------------------------------------------------------------------------------------


def test_the_first_platform_that_is_here_speaks(jwt) -> None:
    asks: list[Any] = []
    token = jwt()
    has = {"env:GITLAB_OIDC_TOKEN": token, POD_TOKEN: jwt(sub="pod")}
    assert fetch(provider("ambient"), has=has, asks=asks).token.reveal() == token
    assert Read(POD_TOKEN) not in asks


def test_the_pod_s_own_token_comes_last(jwt) -> None:
    asks: list[Any] = []
    token = jwt()
    assert fetch(provider("ambient"), has={POD_TOKEN: token}, asks=asks).token.reveal() == token
    assert asks[-1] == Read(POD_TOKEN)


@pytest.mark.parametrize(
    "broken",
    [
        {"env:GITLAB_OIDC_TOKEN": "not a token"},
        {"env:GITHUB_ACTIONS": "true"},
        {"env:ACTIONS_ID_TOKEN_REQUEST_URL": "https://evil.example/"},
        {"env:AWS_WEB_IDENTITY_TOKEN_FILE": "/gone"},
    ],
)
def test_a_broken_platform_is_never_passed_over(jwt, broken) -> None:
    asks: list[Any] = []
    with pytest.raises(AgentIdentityError):
        fetch(provider("ambient"), has={POD_TOKEN: jwt(), **broken}, asks=asks)
    assert Read(POD_TOKEN) not in asks


def test_no_platform_at_all_says_where_it_looked() -> None:
    asks: list[Any] = []
    error = refused(
        CredentialUnavailableError, "no_workload_identity", provider("ambient"), asks=asks
    )
    for place in ("ACTIONS_ID_TOKEN_REQUEST_URL", "SPIFFE_ENDPOINT_SOCKET", "serviceaccount/token"):
        assert place in str(error)
    assert requests(asks) == []


# -- by name ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "made"),
    [
        ("github", {"token_host": "token.ghe.example"}, GitHub({}, "token.ghe.example")),
        ("gitlab", {"path": "BILLING_TOKEN"}, GitLab({}, "BILLING_TOKEN")),
        ("gitlab", {}, GitLab()),
        ("kubernetes", {"path": "/run/t"}, Kubernetes({}, "/run/t")),
        ("kubernetes", {}, Kubernetes()),
        ("aws", {"expect": {"sub": "x"}}, AWS({"sub": "x"})),
        ("gcp", {}, GCP(certain=True)),
        ("azure", {"client_id": "c"}, Azure(client_id="c", certain=True)),
        ("file", {"path": "/t", "trust_domain": "example.org"}, File("/t", {}, "example.org")),
        ("spiffe", {"trust_domain": "example.org"}, Spiffe({}, "example.org")),
    ],
)
def test_a_configured_name_makes_its_provider(name, options, made) -> None:
    assert provider(name, **options) == made
    assert made.kind == name


def test_ambient_hands_its_options_to_those_that_know_them() -> None:
    chain = provider(
        "ambient",
        expect={"sub": "x"},
        token_host="token.ghe.example",
        client_id="c",
        trust_domain="example.org",
    )
    assert isinstance(chain, Ambient)
    expected = {"sub": "x"}
    assert chain.providers == (
        GitHub(expected, "token.ghe.example"),
        GitLab(expected),
        Spiffe(expected, "example.org"),
        AWS(expected),
        Azure(expected, "c"),
        GCP(expected),
        Kubernetes(expected),
    )


@pytest.mark.parametrize("name", ["", "GitHub", "jenkins"])
def test_an_unknown_name_is_refused(name) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(name)
    assert caught.value.code == "unknown_provider"
    assert "kubernetes" in (caught.value.remedy or "")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("github", {"path": "/x"}),
        ("aws", {"path": "/x"}),
        ("kubernetes", {"client_id": "c"}),
        ("gcp", {"trust_domain": "example.org"}),
        ("ambient", {"path": "/x"}),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(name, options) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(name, **options)
    assert caught.value.code == "provider_option"


@pytest.mark.parametrize(
    ("name", "options", "code"),
    [
        ("file", {}, "token_path"),
        ("kubernetes", {"path": ""}, "token_path"),
        ("gitlab", {"path": ""}, "variable_malformed"),
        ("gitlab", {"path": "A-B"}, "variable_malformed"),
        ("gitlab", {"path": "A\n"}, "variable_malformed"),
        ("spiffe", {"trust_domain": "Example.org"}, "trust_domain_malformed"),
        ("spiffe", {"trust_domain": ""}, "trust_domain_malformed"),
        ("spiffe", {"trust_domain": "spiffe://example.org"}, "trust_domain_malformed"),
        ("github", {"token_host": ""}, "token_host_malformed"),
        ("github", {"token_host": "https://ghe.example"}, "token_host_malformed"),
        ("github", {"token_host": "GHE.example"}, "token_host_malformed"),
        ("github", {"token_host": "me@ghe.example"}, "token_host_malformed"),
        ("github", {"token_host": "ghe.example/path"}, "token_host_malformed"),
        ("github", {"token_host": "ghe.example:443"}, "token_host_malformed"),
    ],
)
def test_an_option_that_can_t_work_is_refused_at_once(name, options, code) -> None:
    with pytest.raises(ConfigurationError) as caught:
        provider(name, **options)
    assert caught.value.code == code
    assert caught.value.remedy


def test_a_token_shows_in_no_readable_form(jwt) -> None:
    found = fetch(GitLab(), has={"env:GITLAB_OIDC_TOKEN": jwt()})
    assert_no_leak([found.token.reveal()], found)
