# SPDX-License-Identifier: Apache-2.0
"""Resources that take the platform's own token, or its certificate: what is asked for, and what comes of it."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.sources.platform import (
    SpiffeJwtSource,
    SpiffeX509Source,
    WorkloadTokenSource,
)
from agent_identity.credentials.workload import File, GitLab, Kubernetes
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import Svid
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Secret

NOW = 1_795_518_000.0
BILLING = "https://billing.example"


def clock() -> float:
    return NOW


def refused(kind: type[AgentIdentityError], code: str, flow: Any, **options: Any) -> Any:
    with pytest.raises(kind) as caught:
        play(flow, **options)
    assert caught.value.code == code
    return caught.value


def test_a_workload_token_becomes_a_plain_bearer_for_the_resource(jwt, wanted) -> None:
    token = jwt(jti="tok_1")
    source = WorkloadTokenSource(GitLab(), clock=clock)
    issued = play(source.fetch(wanted), secrets={"env:GITLAB_OIDC_TOKEN": Secret(token)})
    assert issued.token.reveal() == token
    assert (issued.header, issued.scheme, issued.token_type) == (
        *("Authorization", "Bearer"),
        "Bearer",
    )
    assert (issued.resource, issued.issuer, issued.jti) == (BILLING, "gitlab", "tok_1")
    assert (issued.issued_at, issued.expires_at) == (NOW, NOW + 600)
    assert not issued.is_bound
    assert not issued.is_opaque
    assert issued.scopes == wanted.scopes
    assert_no_leak([token], issued, source)


def test_a_workload_token_may_be_for_another_audience_than_the_resource(jwt, wanted) -> None:
    secrets = {"env:GITLAB_OIDC_TOKEN": Secret(jwt(aud="billing"))}
    source = WorkloadTokenSource(GitLab(), "billing", clock=clock)
    assert play(source.fetch(wanted), secrets=secrets).resource == BILLING
    default = WorkloadTokenSource(GitLab(), clock=clock)
    refused(CredentialRejectedError, "audience_mismatch", default.fetch(wanted), secrets=secrets)
    empty = WorkloadTokenSource(GitLab(), "", clock=clock)
    refused(ConfigurationError, "audience_missing", empty.fetch(wanted), secrets=secrets)


def test_a_token_that_shows_nothing_is_recorded_as_opaque(wanted) -> None:
    source = WorkloadTokenSource(File("/run/token"), clock=clock)
    issued = play(source.fetch(wanted), secrets={"file:/run/token": Secret("opaque-token")})
    assert issued.is_opaque
    assert issued.expires_at == NOW + 60


def test_a_platform_that_is_not_here_says_what_to_set_up(wanted) -> None:
    source = WorkloadTokenSource(Kubernetes(), clock=clock)
    error = refused(CredentialUnavailableError, "no_workload_identity", source.fetch(wanted))
    assert "kubernetes" in str(error)
    assert "serviceAccountToken" in error.remedy


def test_what_changes_the_answer_is_described() -> None:
    sources = [
        WorkloadTokenSource(GitLab(), clock=clock),
        WorkloadTokenSource(GitLab(variable="OTHER"), clock=clock),
        WorkloadTokenSource(GitLab({"ref": "main"}), clock=clock),
        WorkloadTokenSource(GitLab(), "billing", clock=clock),
        WorkloadTokenSource(Kubernetes(), clock=clock),
        SpiffeJwtSource(clock=clock),
        SpiffeJwtSource("example.org", clock=clock),
        SpiffeX509Source(clock=clock),
        SpiffeX509Source("example.org", clock=clock),
    ]
    assert len({source.described for source in sources}) == len(sources)
    assert [source.described.kind for source in sources[::4]] == [
        *("workload-token", "workload-token", "spiffe-x509"),
    ]
    assert {source.patience for source in sources} == {None}


def test_a_jwt_svid_is_asked_for_to_the_resource(jwt, wanted) -> None:
    asks: list[Any] = []
    svid = jwt(sub="spiffe://example.org/bot", aud=[BILLING])
    source = SpiffeJwtSource("example.org", clock=clock)
    issued = play(source.fetch(wanted), svids={BILLING: Secret(svid)}, asks=asks)
    assert asks == [Svid(BILLING)]
    assert issued.token.reveal() == svid
    assert (issued.scheme, issued.issuer, issued.expires_at) == ("Bearer", "spiffe", NOW + 600)
    assert not issued.is_bound


def test_an_x509_svid_is_the_whole_credential(certificate, wanted) -> None:
    svid = certificate("spiffe://example.org/bot", expires_at=NOW + 900)
    source = SpiffeX509Source("example.org", clock=clock)
    issued = play(source.fetch(wanted), svids={None: svid})
    assert issued.certificate is svid
    assert issued.is_bound
    assert (issued.header, issued.token.reveal()) == ("", "")
    assert issued.expires_at == NOW + 900
    assert_no_leak(["canary-key-7Hq2"], issued)


def test_an_x509_svid_that_has_ended_is_refused(certificate, wanted) -> None:
    svid = certificate("spiffe://example.org/bot", expires_at=NOW)
    source = SpiffeX509Source(clock=clock)
    refused(
        CredentialRejectedError, "certificate_expired", source.fetch(wanted), svids={None: svid}
    )


@pytest.mark.parametrize("make", [SpiffeJwtSource, SpiffeX509Source])
def test_without_a_workload_api_the_error_says_what_to_set(make, wanted) -> None:
    error = refused(ConfigurationError, "no_workload_api", make(clock=clock).fetch(wanted))
    assert "SPIFFE_ENDPOINT_SOCKET" in error.remedy


@pytest.mark.parametrize("make", [SpiffeJwtSource, SpiffeX509Source])
@pytest.mark.parametrize("domain", ["", "Example.org", "spiffe://example.org", "a/b", "a\n"])
def test_a_trust_domain_that_can_be_none_is_refused_at_once(make, domain) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(domain, clock=clock)
    assert caught.value.code == "trust_domain_malformed"
