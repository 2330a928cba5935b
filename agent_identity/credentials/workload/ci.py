# SPDX-License-Identifier: Apache-2.0
"""CI: the identity of a job of GitHub Actions, for an audience of our choice, or of GitLab, for the one configured there."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.credentials.workload.files import check_job_has_token, token_in_variable
from agent_identity.credentials.workload.tokens import (
    check_token,
    malformed_token,
    quote_audience,
    trim,
)
from agent_identity.errors import ConfigurationError, CredentialUnavailableError
from agent_identity.flow import Flow, HttpRequest, read
from agent_identity.uris import origin_or_none
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken

_SERVICE_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
_SERVICE_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable
_HOSTS: Final = ".actions.githubusercontent.com"
_GITHUB: Final = "GitHub Actions"
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class GitHub:
    """The job's identity. `token_host` is the token service of a GitHub Enterprise Server: `host` or `host:port`."""

    kind: ClassVar[str] = "github"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    token_host: str | None = None

    def __post_init__(self) -> None:
        if self.token_host is not None and origin_or_none(f"https://{self.token_host}") != (
            f"https://{self.token_host}"
        ):
            raise ConfigurationError(
                "token_host_malformed",
                "the configured token host isn't a host name",
                remedy="write it in lower case without https:// and without a path, for instance token.ghe.example",
            )

    @property
    def looks_for(self) -> str:
        return _SERVICE_URL

    @property
    def setup(self) -> str:
        return "give the GitHub Actions job `permissions: id-token: write`"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """Get a token from the service that the runner names, if it is GitHub's own or the configured one.

        Raises:
            ConfigurationError: `foreign_token_url`; nothing was sent.
            CredentialUnavailableError: `token_variable_missing`, this GitHub job isn't allowed to get tokens.
        """
        query = f"audience={quote_audience(audience)}"
        url = yield from read(f"env:{_SERVICE_URL}")
        if url is None:
            yield from check_job_has_token("GITHUB_ACTIONS", _SERVICE_URL, self.setup)
            return None
        if not self._trusts(url):
            raise ConfigurationError(
                "foreign_token_url",
                f"{_SERVICE_URL} points neither to GitHub nor to the configured token host",
                remedy="find out who set it; for a GitHub Enterprise Server configure token_host",
            )
        bearer = yield from read(f"env:{_SERVICE_TOKEN}")
        if bearer is None:
            raise CredentialUnavailableError(
                "token_variable_missing",
                f"{_SERVICE_URL} is set and {_SERVICE_TOKEN} isn't",
                remedy=self.setup,
            )
        answer = yield from send(_request(url, bearer, query), _GITHUB)
        if answer.status != _OK:
            raise failure_of(answer, _GITHUB, "a token", now)
        fields = json_object(answer, _GITHUB)
        if not fields.is_token("value"):
            raise malformed_token(_GITHUB)
        return check_token(
            Secret(fields.text("value") or ""), audience, now, who=_GITHUB, expect=self.expect
        )

    def _trusts(self, url: Secret) -> bool:
        """Whether the job's token may be sent there: https, a known host, and no fragment that would hide the audience."""
        place = origin_or_none(url.reveal())
        if place is None or "#" in url.reveal():
            return False
        if self.token_host is not None:
            return place == f"https://{self.token_host}"
        return place.startswith("https://") and place.endswith(_HOSTS)


def _request(url: Secret, bearer: Secret, query: str) -> HttpRequest:
    token = trim(bearer)
    if token is None:
        raise malformed_token(_SERVICE_TOKEN)
    separator = "&" if "?" in url.reveal() else "?"
    headers = {"Authorization": f"bearer {token.reveal()}", "Accept": "application/json"}
    return HttpRequest("GET", f"{url.reveal()}{separator}{query}", headers)


_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_GITLAB: Final = "GitLab"


@dataclass(frozen=True, slots=True)
class GitLab:
    """The job's identity; `variable` is the name under `id_tokens`."""

    kind: ClassVar[str] = "gitlab"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    variable: str = "GITLAB_OIDC_TOKEN"

    def __post_init__(self) -> None:
        if not _VARIABLE.fullmatch(self.variable):
            raise ConfigurationError(
                "variable_malformed",
                "the path of provider gitlab isn't a valid variable name",
                remedy="use the name under id_tokens",
            )

    @property
    def looks_for(self) -> str:
        return self.variable

    @property
    def setup(self) -> str:
        return f"give the GitLab job `id_tokens: {self.variable}: aud: <audience>`"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        """Read the job's token.

        Raises:
            CredentialUnavailableError: `token_variable_missing`, this is a GitLab job without a token.
        """
        token = yield from token_in_variable(self.variable, _GITLAB)
        if token is None:
            yield from check_job_has_token("GITLAB_CI", self.variable, self.setup)
            return None
        return check_token(token, audience, now, who=_GITLAB, expect=self.expect)
