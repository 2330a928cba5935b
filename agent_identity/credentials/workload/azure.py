# SPDX-License-Identifier: Apache-2.0
"""Azure: the federated token of a Kubernetes pod, or a managed identity's token from the machine's metadata service.

App Service and Functions (`IDENTITY_ENDPOINT`) aren't supported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.credentials.workload.places import machine_says, token_in_named_file
from agent_identity.credentials.workload.tokens import check_token, malformed_token, quote_audience
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
"""The asset tag of every Azure virtual machine."""

_WHO: Final = "Azure"
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Azure:
    """The pod's federated identity, else the managed identity. `client_id` chooses among several managed identities.

    `certain` says that the platform is configured; otherwise the firmware must name it before a request is sent.
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
        resource = quote_audience(audience)
        token = yield from token_in_named_file(_FILE)
        if token is not None:
            return check_token(token, audience, now, who=_WHO, expect=self.expect)
        if not self.certain:
            here = yield from machine_says(_FIRMWARE, _AZURE)
            if not here:
                return None
        token = yield from self._managed_identity_token(resource, audience, now)
        return check_token(token, audience, now, who=_WHO, expect=self.expect, opaque=True)

    def _managed_identity_token(self, resource: str, audience: str, now: float) -> Flow[Secret]:
        url = f"{_IDENTITY}&resource={resource}"
        if self.client_id is not None:
            url += f"&client_id={quote(self.client_id, safe='')}"
        request = HttpRequest("GET", url, {"Metadata": "true"}, plain=_HOST)
        answer = yield from send(request, _WHO)
        if answer.status != _OK:
            raise failure_of(answer, _WHO, "a token", now)
        fields = json_object(answer, _WHO)
        if not fields.is_token("access_token"):
            raise malformed_token(_WHO)
        if fields.get("resource") != audience:
            raise CredentialRejectedError(
                "audience_mismatch",
                "Azure answered for another resource",
                remedy=f"check that {audience} is the identifier of an application in this tenant",
            )
        return Secret(fields.text("access_token") or "")
