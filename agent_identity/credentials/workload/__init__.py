# SPDX-License-Identifier: Apache-2.0
"""Workload identity: the platform's own token for this workload and one audience, instead of a stored secret.

`ci`, `clouds`, `files` and `spiffe` have the platforms. `fetch` returns None where this isn't the platform, and raises where it
is but fails; a failure never falls back to the next platform. Environment variables and files are read by the flow's driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.workload.ci import GitHub, GitLab
from agent_identity.credentials.workload.clouds import AWS, GCP, Azure
from agent_identity.credentials.workload.files import File, Kubernetes
from agent_identity.credentials.workload.spiffe import Spiffe
from agent_identity.credentials.workload.tokens import Provider, WorkloadToken
from agent_identity.errors import ConfigurationError, CredentialUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from agent_identity.flow import Flow

__all__ = [
    "AWS",
    "GCP",
    "Ambient",
    "Azure",
    "File",
    "GitHub",
    "GitLab",
    "Kubernetes",
    "Provider",
    "Spiffe",
    "WorkloadToken",
    "provider",
]


_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "github": frozenset({"token_host"}),
    "gitlab": frozenset({"path"}),
    "kubernetes": frozenset({"path"}),
    "aws": frozenset(),
    "gcp": frozenset(),
    "azure": frozenset({"client_id"}),
    "file": frozenset({"path", "trust_domain"}),
    "spiffe": frozenset({"trust_domain"}),
    "ambient": frozenset({"token_host", "client_id", "trust_domain"}),
}
"""The options of each provider beside `expect`."""


@dataclass(frozen=True, slots=True)
class Ambient:
    """The first provider that has a token for this workload, in this order. If none has one, that is an error."""

    kind: ClassVar[str] = "ambient"

    providers: tuple[Provider, ...]

    @property
    def looks_for(self) -> str:
        return ", ".join(provider.looks_for for provider in self.providers)

    @property
    def setup(self) -> str:
        return "; or ".join(provider.setup for provider in self.providers)

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken]:
        """Return the first token.

        Raises:
            CredentialUnavailableError: `no_workload_identity`, none of the platforms was detected.
            CredentialError: a detected platform failed; the next isn't tried.
        """
        for provider in self.providers:
            token = yield from provider.fetch(audience, now)
            if token is not None:
                return token
        raise CredentialUnavailableError(
            "no_workload_identity",
            f"this workload has no identity of any platform: looked for {self.looks_for}",
            remedy=self.setup,
        )


def provider(
    name: str,
    *,
    path: str | None = None,
    expect: Mapping[str, str] | None = None,
    trust_domain: str | None = None,
    token_host: str | None = None,
    client_id: str | None = None,
) -> Provider:
    """Make the provider with a configured name.

    `path` is a token file, or for `gitlab` the variable's name. `expect` are claims that the token must have. A configured
    cloud is asked at once; `ambient` first checks that it is there.

    Raises:
        ConfigurationError: there is no provider with that name, or it doesn't have an option.
    """
    if name not in _OPTIONS:
        raise ConfigurationError(
            "unknown_provider",
            "there is no workload identity provider with that name",
            remedy=f"use one of {', '.join(sorted(_OPTIONS))}",
        )
    given = {
        "path": path,
        "trust_domain": trust_domain,
        "token_host": token_host,
        "client_id": client_id,
    }
    for option, value in given.items():
        if value is not None and option not in _OPTIONS[name]:
            raise ConfigurationError(
                "provider_option",
                f"provider {name} has no option {option}",
                remedy=f"leave {option} out",
            )
    claims = dict(expect or {})
    makers: dict[str, Callable[[], Provider]] = {
        "github": lambda: GitHub(claims, token_host),
        "gitlab": lambda: GitLab(claims) if path is None else GitLab(claims, path),
        "kubernetes": lambda: Kubernetes(claims) if path is None else Kubernetes(claims, path),
        "aws": lambda: AWS(claims),
        "gcp": lambda: GCP(claims, certain=True),
        "azure": lambda: Azure(claims, client_id, certain=True),
        "file": lambda: File(path or "", claims, trust_domain),
        "spiffe": lambda: Spiffe(claims, trust_domain),
        # The most specific platform comes first; Kubernetes is last, since nearly every pod has a token.
        "ambient": lambda: Ambient(
            (
                GitHub(claims, token_host),
                GitLab(claims),
                Spiffe(claims, trust_domain),
                AWS(claims),
                Azure(claims, client_id),
                GCP(claims),
                Kubernetes(claims),
            )
        ),
    }
    return makers[name]()
