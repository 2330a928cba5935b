# SPDX-License-Identifier: Apache-2.0
"""Google Cloud: an identity token for an audience of our choice, from the machine's metadata server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import failure_of, send
from agent_identity.credentials.workload.places import machine_says
from agent_identity.credentials.workload.tokens import (
    check_token,
    malformed_token,
    quote_audience,
    trim,
)
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

    `certain` says that the platform is configured; otherwise the firmware must name it before a request is sent.
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
        url = f"{_IDENTITY}&audience={quote_audience(audience)}"
        if not self.certain:
            here = yield from machine_says(_FIRMWARE, "Google", "Google Compute Engine")
            if not here:
                return None
        request = HttpRequest("GET", url, {"Metadata-Flavor": "Google"}, plain=_HOST)
        answer = yield from send(request, _WHO)
        if answer.headers.get("metadata-flavor") != "Google":
            raise CredentialRejectedError(
                "foreign_metadata_server",
                f"the server at {_HOST} isn't Google's metadata server",
                remedy="find out which server answers there: it didn't send Google's header",
            )
        if answer.status != _OK:
            raise failure_of(answer, _WHO, "a token", now)
        token = _token_in(answer)
        if token is None:
            raise malformed_token(_WHO)
        return check_token(token, audience, now, who=_WHO, expect=self.expect)


def _token_in(answer: HttpResponse) -> Secret | None:
    return trim(Secret(answer.body.decode("ascii", "replace")))
