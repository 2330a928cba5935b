# SPDX-License-Identifier: Apache-2.0
"""Workload identity: the platform's own token for this workload and one audience, instead of a stored secret.

One file per platform. `fetch` returns None where this isn't the platform, and raises where it is but fails; a failure never
falls back to the next platform. Environment variables and files are read by the flow's driver.
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
class _Options:
    """The configured options of a provider."""

    expect: Mapping[str, str]
    path: str | None = None
    trust_domain: str | None = None
    token_host: str | None = None
    client_id: str | None = None


def _github(options: _Options) -> Provider:
    return GitHub(options.expect, options.token_host)


def _gitlab(options: _Options) -> Provider:
    return GitLab(options.expect) if options.path is None else GitLab(options.expect, options.path)


def _kubernetes(options: _Options) -> Provider:
    return (
        Kubernetes(options.expect)
        if options.path is None
        else Kubernetes(options.expect, options.path)
    )


def _aws(options: _Options) -> Provider:
    return AWS(options.expect)


def _gcp(options: _Options) -> Provider:
    return GCP(options.expect, certain=True)


def _azure(options: _Options) -> Provider:
    return Azure(options.expect, options.client_id, certain=True)


def _file(options: _Options) -> Provider:
    return File(options.path or "", options.expect, options.trust_domain)


def _spiffe(options: _Options) -> Provider:
    return Spiffe(options.expect, options.trust_domain)


def _ambient(options: _Options) -> Provider:
    """The most specific platform comes first; Kubernetes is last, since nearly every pod has a token."""
    return Ambient(
        (
            GitHub(options.expect, options.token_host),
            GitLab(options.expect),
            Spiffe(options.expect, options.trust_domain),
            AWS(options.expect),
            Azure(options.expect, options.client_id),
            GCP(options.expect),
            Kubernetes(options.expect),
        )
    )


_PROVIDERS: Final[Mapping[str, tuple[Callable[[_Options], Provider], frozenset[str]]]] = {
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
"""The constructor of each provider, and its options beside `expect`."""


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
    if name not in _PROVIDERS:
        raise ConfigurationError(
            "unknown_provider",
            "there is no workload identity provider with that name",
            remedy=f"use one of {', '.join(sorted(_PROVIDERS))}",
        )
    make, known = _PROVIDERS[name]
    options = _Options(dict(expect or {}), path, trust_domain, token_host, client_id)
    for option in ("path", "trust_domain", "token_host", "client_id"):
        if getattr(options, option) is not None and option not in known:
            raise ConfigurationError(
                "provider_option",
                f"provider {name} has no option {option}",
                remedy=f"leave {option} out",
            )
    return make(options)
