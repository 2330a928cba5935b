# SPDX-License-Identifier: Apache-2.0
"""Azure: the federated token of a Kubernetes pod there, or a managed identity's token from the machine's metadata service.

App Service and Functions (`IDENTITY_ENDPOINT`) are no source here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from agent_identity.credentials.oauth.responses import asked, failure_of, json_object
from agent_identity.credentials.workload.places import machine_says, token_in_named_file
from agent_identity.credentials.workload.tokens import accepted, malformed, quoted
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import Flow, HttpRequest
from agent_identity.values import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from agent_identity.credentials.workload.tokens import WorkloadToken

__all__ = ["Azure"]

_FILE: Final = "AZURE_FEDERATED_TOKEN_FILE"
_HOST: Final = "169.254.169.254"
_IDENTITY: Final = f"http://{_HOST}/metadata/identity/oauth2/token?api-version=2018-02-01"
_FIRMWARE: Final = "/sys/class/dmi/id/chassis_asset_tag"
_AZURE: Final = "7783-7084-3265-9085-8269-3286-77"
"""The asset tag of every virtual machine of Azure."""

_WHO: Final = "Azure"
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Azure:
    """The pod's federated identity, else the managed one; `client_id` chooses among several managed ones.

    `certain` says that configuration names this platform; otherwise the machine's firmware has to, before anything is asked.
    """

    kind: ClassVar[str] = "azure"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])
    client_id: str | None = None
    certain: bool = False

    @property
    def looks_for(self) -> str:
        return f"{_FILE} or Azure's tag in {_FIRMWARE}"

    @property
    def setup(self) -> str:
        return "label the pod for workload identity, or assign the Azure machine a managed identity"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        resource = quoted(audience)
        token = yield from token_in_named_file(_FILE)
        if token is not None:
            return accepted(token, audience, now, who=_WHO, expect=self.expect)
        if not self.certain:
            here = yield from machine_says(_FIRMWARE, _AZURE)
            if not here:
                return None
        token = yield from self._managed(resource, audience, now)
        return accepted(token, audience, now, who=_WHO, expect=self.expect, opaque=True)

    def _managed(self, resource: str, audience: str, now: float) -> Flow[Secret]:
        url = f"{_IDENTITY}&resource={resource}"
        if self.client_id is not None:
            url += f"&client_id={quote(self.client_id, safe='')}"
        request = HttpRequest("GET", url, {"Metadata": "true"}, plain=_HOST)
        answer = yield from asked(request, _WHO)
        if answer.status != _OK:
            raise failure_of(answer, _WHO, "a token", now)
        fields = json_object(answer, _WHO)
        if not fields.is_token("access_token"):
            raise malformed(_WHO)
        if fields.get("resource") != audience:
            raise CredentialRejectedError(
                "audience_mismatch",
                "Azure answered for another resource",
                remedy=f"see that {audience} is the identifier of an application in this tenant",
            )
        return Secret(fields.text("access_token") or "")
