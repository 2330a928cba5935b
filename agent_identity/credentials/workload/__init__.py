# SPDX-License-Identifier: Apache-2.0
"""Workload identity: what the platform that runs us says we are, for one audience, instead of a stored secret.

One file per platform. `fetch` answers None where the platform isn't here, and raises where it is here but broken; nobody
falls back from a broken one to the next. Variables and files are asked for, never read.
"""

from __future__ import annotations

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
    from collections.abc import Mapping

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
    if name not in _OPTIONS:
        raise ConfigurationError(
            "unknown_provider",
            "no provider of workload identity has that name",
            remedy=f"name one of {', '.join(sorted(_OPTIONS))}",
        )
    _check_options(
        name, path=path, trust_domain=trust_domain, token_host=token_host, client_id=client_id
    )
    claims = dict(expect or {})
    match name:
        case "github":
            return GitHub(claims, token_host)
        case "gitlab":
            return GitLab(claims) if path is None else GitLab(claims, path)
        case "kubernetes":
            return Kubernetes(claims) if path is None else Kubernetes(claims, path)
        case "aws":
            return AWS(claims)
        case "gcp":
            return GCP(claims, certain=True)
        case "azure":
            return Azure(claims, client_id, certain=True)
        case "file":
            return File(path or "", claims, trust_domain)
        case "spiffe":
            return Spiffe(claims, trust_domain)
        case _:
            return _ambient(claims, trust_domain, token_host, client_id)


def _ambient(
    claims: Mapping[str, str],
    trust_domain: str | None,
    token_host: str | None,
    client_id: str | None,
) -> Ambient:
    """What is most particular to this very job comes first; the pod's token, which nearly every pod has, comes last."""
    return Ambient(
        (
            GitHub(claims, token_host),
            GitLab(claims),
            Spiffe(claims, trust_domain),
            AWS(claims),
            Azure(claims, client_id),
            GCP(claims),
            Kubernetes(claims),
        )
    )


def _check_options(name: str, **options: str | None) -> None:
    for option, value in options.items():
        if value is not None and option not in _OPTIONS[name]:
            raise ConfigurationError(
                "provider_option",
                f"provider {name} has no option {option}",
                remedy=f"leave {option} out",
            )
