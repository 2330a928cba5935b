# SPDX-License-Identifier: Apache-2.0
"""Workload identity: what the platform that runs us says we are, for one audience, instead of a stored secret.

One file per platform. `fetch` answers None where the platform isn't here, and raises where it is here but broken; nobody
falls back from a broken one to the next. Variables and files are asked for, never read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from agent_identity.credentials.workload.ambient import Ambient
from agent_identity.credentials.workload.aws import AWS
from agent_identity.credentials.workload.azure import Azure
from agent_identity.credentials.workload.file import File
from agent_identity.credentials.workload.gcp import GCP
from agent_identity.credentials.workload.github import GitHub
from agent_identity.credentials.workload.gitlab import GitLab
from agent_identity.credentials.workload.kubernetes import Kubernetes
from agent_identity.credentials.workload.spiffe import Spiffe
from agent_identity.credentials.workload.tokens import Provider, WorkloadToken
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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


@dataclass(frozen=True, slots=True)
class _Given:
    """What configuration says of a provider."""

    expect: Mapping[str, str]
    path: str | None = None
    trust_domain: str | None = None
    token_host: str | None = None
    client_id: str | None = None


def _github(given: _Given) -> Provider:
    return GitHub(given.expect, given.token_host)


def _gitlab(given: _Given) -> Provider:
    return GitLab(given.expect) if given.path is None else GitLab(given.expect, given.path)


def _kubernetes(given: _Given) -> Provider:
    return Kubernetes(given.expect) if given.path is None else Kubernetes(given.expect, given.path)


def _aws(given: _Given) -> Provider:
    return AWS(given.expect)


def _gcp(given: _Given) -> Provider:
    return GCP(given.expect, certain=True)


def _azure(given: _Given) -> Provider:
    return Azure(given.expect, given.client_id, certain=True)


def _file(given: _Given) -> Provider:
    return File(given.path or "", given.expect, given.trust_domain)


def _spiffe(given: _Given) -> Provider:
    return Spiffe(given.expect, given.trust_domain)


def _ambient(given: _Given) -> Provider:
    """What is most particular to this very job comes first; the pod's token, which nearly every pod has, comes last."""
    return Ambient(
        (
            GitHub(given.expect, given.token_host),
            GitLab(given.expect),
            Spiffe(given.expect, given.trust_domain),
            AWS(given.expect),
            Azure(given.expect, given.client_id),
            GCP(given.expect),
            Kubernetes(given.expect),
        )
    )


_PROVIDERS: Final[Mapping[str, tuple[Callable[[_Given], Provider], frozenset[str]]]] = {
    "github": (_github, frozenset({"token_host"})),
    "gitlab": (_gitlab, frozenset({"path"})),
    "kubernetes": (_kubernetes, frozenset({"path"})),
    "aws": (_aws, frozenset()),
    "gcp": (_gcp, frozenset()),
    "azure": (_azure, frozenset({"client_id"})),
    "file": (_file, frozenset({"path", "trust_domain"})),
    "spiffe": (_spiffe, frozenset({"trust_domain"})),
    "ambient": (_ambient, frozenset({"token_host", "client_id", "trust_domain"})),
}
"""How each provider is made, and the options that it has beside `expect`."""


def provider(
    name: str,
    *,
    path: str | None = None,
    expect: Mapping[str, str] | None = None,
    trust_domain: str | None = None,
    token_host: str | None = None,
    client_id: str | None = None,
) -> Provider:
    """The provider of a configured name.

    `path` is a token file, or for `gitlab` the variable's name; `expect` are claims that the token has to have. Named alone,
    a cloud is asked without looking first whether it is there.

    Raises:
        ConfigurationError: no provider has that name, or it doesn't know an option.
    """
    if name not in _PROVIDERS:
        raise ConfigurationError(
            "unknown_provider",
            "no provider of workload identity has that name",
            remedy=f"name one of {', '.join(sorted(_PROVIDERS))}",
        )
    make, options = _PROVIDERS[name]
    given = _Given(dict(expect or {}), path, trust_domain, token_host, client_id)
    for option in ("path", "trust_domain", "token_host", "client_id"):
        if getattr(given, option) is not None and option not in options:
            raise ConfigurationError(
                "provider_option",
                f"provider {name} has no option {option}",
                remedy=f"leave {option} out",
            )
    return make(given)
