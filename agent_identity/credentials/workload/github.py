# SPDX-License-Identifier: Apache-2.0
"""GitHub Actions: a token for an audience of our choice, from the job's own token service."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.credentials.workload.places import refuse_inside
from agent_identity.credentials.workload.tokens import (
    check_token,
    malformed_token,
    quote_audience,
    trim,
)
from agent_identity.errors import ConfigurationError, CredentialUnavailableError, DeniedError
from agent_identity.flow import Flow, HttpRequest, read
from agent_identity.uris import origin
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken

__all__ = ["GitHub"]

_URL: Final = "ACTIONS_ID_TOKEN_REQUEST_URL"
_TOKEN: Final = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"  # noqa: S105 - the name of a variable
_HOSTS: Final = ".actions.githubusercontent.com"
_WHO: Final = "GitHub Actions"
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class GitHub:
    """The job's identity. `token_host` is the token service of a GitHub Enterprise Server: `host` or `host:port`."""

    kind: ClassVar[str] = "github"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    token_host: str | None = None

    def __post_init__(self) -> None:
        if self.token_host is not None and _origin(f"https://{self.token_host}") != (
            f"https://{self.token_host}"
        ):
            raise ConfigurationError(
                "token_host_malformed",
                "the configured token host isn't a host name",
                remedy="write it in lower case without https:// and without a path, for instance token.ghe.example",
            )

    @property
    def looks_for(self) -> str:
        return _URL

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
        url = yield from read(f"env:{_URL}")
        if url is None:
            yield from refuse_inside("GITHUB_ACTIONS", _URL, self.setup)
            return None
        if not self._trusts(url):
            raise ConfigurationError(
                "foreign_token_url",
                f"{_URL} points neither to GitHub nor to the configured token host",
                remedy="find out who set it; for a GitHub Enterprise Server configure token_host",
            )
        bearer = yield from read(f"env:{_TOKEN}")
        if bearer is None:
            raise CredentialUnavailableError(
                "token_variable_missing", f"{_URL} is set and {_TOKEN} isn't", remedy=self.setup
            )
        answer = yield from send(_request(url, bearer, query), _WHO)
        if answer.status != _OK:
            raise failure_of(answer, _WHO, "a token", now)
        fields = json_object(answer, _WHO)
        if not fields.is_token("value"):
            raise malformed_token(_WHO)
        return check_token(
            Secret(fields.text("value") or ""), audience, now, who=_WHO, expect=self.expect
        )

    def _trusts(self, url: Secret) -> bool:
        """Whether the job's token may be sent there: https, a known host, and no fragment that would hide the audience."""
        place = _origin(url.reveal())
        if place is None or "#" in url.reveal():
            return False
        if self.token_host is not None:
            return place == f"https://{self.token_host}"
        return place.startswith("https://") and place.endswith(_HOSTS)


def _origin(url: str) -> str | None:
    try:
        return origin(url)
    except DeniedError:
        return None


def _request(url: Secret, bearer: Secret, query: str) -> HttpRequest:
    token = trim(bearer)
    if token is None:
        raise malformed_token(_TOKEN)
    separator = "&" if "?" in url.reveal() else "?"
    headers = {"Authorization": f"bearer {token.reveal()}", "Accept": "application/json"}
    return HttpRequest("GET", f"{url.reveal()}{separator}{query}", headers)
