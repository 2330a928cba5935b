# SPDX-License-Identifier: Apache-2.0
"""Google Cloud: an identity token for an audience of our choice, from the machine's metadata server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import asked, failure_of
from agent_identity.credentials.workload.places import machine_says
from agent_identity.credentials.workload.tokens import accepted, malformed, quoted, trimmed
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken
    from agent_identity.flow import HttpResponse

__all__ = ["GCP"]

_HOST: Final = "metadata.google.internal"
_IDENTITY: Final = (
    f"http://{_HOST}/computeMetadata/v1/instance/service-accounts/default/identity?format=full"
)
_FIRMWARE: Final = "/sys/class/dmi/id/product_name"
_WHO: Final = "Google Cloud"
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class GCP:
    """The service account of the machine, pod or function.

    `certain` says that configuration names this platform; otherwise the machine's firmware has to, before anything is asked.
    """

    kind: ClassVar[str] = "gcp"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    certain: bool = False

    @property
    def looks_for(self) -> str:
        return f"Google in {_FIRMWARE}"

    @property
    def setup(self) -> str:
        return "attach a service account to the Google Cloud workload"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        url = f"{_IDENTITY}&audience={quoted(audience)}"
        if not self.certain:
            here = yield from machine_says(_FIRMWARE, "Google", "Google Compute Engine")
            if not here:
                return None
        request = HttpRequest("GET", url, {"Metadata-Flavor": "Google"}, plain=_HOST)
        answer = yield from asked(request, _WHO)
        if answer.headers.get("metadata-flavor") != "Google":
            raise CredentialRejectedError(
                "foreign_metadata_server",
                f"what answers at {_HOST} isn't Google's metadata server",
                remedy="find out who answers for it: it has neither Google's header nor a token to trust",
            )
        if answer.status != _OK:
            raise failure_of(answer, _WHO, "a token", now)
        token = _token(answer)
        if token is None:
            raise malformed(_WHO)
        return accepted(token, audience, now, who=_WHO, expect=self.expect)


def _token(answer: HttpResponse) -> Secret | None:
    """The answer is the token, as text."""
    return trimmed(Secret(answer.body.decode("ascii", "replace")))
