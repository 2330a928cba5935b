# SPDX-License-Identifier: Apache-2.0
"""Clouds: a token of AWS (in an EKS pod), of Azure or of Google Cloud, from a file or the machine's metadata service.

EKS Pod Identity isn't supported: it provides AWS credentials, not tokens for an audience. Nor are Azure's App Service and
Functions (`IDENTITY_ENDPOINT`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from agent_identity.credentials.oauth.responses import failure_of, json_object, send
from agent_identity.credentials.workload.files import firmware_names, token_in_named_file
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

_OK: Final = 200

_AWS_FILE: Final = "AWS_WEB_IDENTITY_TOKEN_FILE"


@dataclass(frozen=True, slots=True)
class AWS:
    """The pod's service account, in a token that EKS signs (IRSA) and the kubelet renews in its file."""

    kind: ClassVar[str] = "aws"

    expect: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def looks_for(self) -> str:
        return _AWS_FILE

    @property
    def setup(self) -> str:
        return "annotate the EKS service account with its role and, for another audience, with eks.amazonaws.com/audience"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        token = yield from token_in_named_file(_AWS_FILE)
        if token is None:
            return None
        return check_token(token, audience, now, who="AWS", expect=self.expect)


_AZURE_FILE: Final = "AZURE_FEDERATED_TOKEN_FILE"
_AZURE_HOST: Final = "169.254.169.254"
_AZURE_TOKEN_URL: Final = (
    f"http://{_AZURE_HOST}/metadata/identity/oauth2/token?api-version=2018-02-01"
)
_AZURE_FIRMWARE: Final = "/sys/class/dmi/id/chassis_asset_tag"
_AZURE_TAG: Final = "7783-7084-3265-9085-8269-3286-77"
"""The asset tag of every Azure virtual machine."""

_AZURE: Final = "Azure"


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
        return f"{_AZURE_FILE} or Azure's tag in {_AZURE_FIRMWARE}"

    @property
    def setup(self) -> str:
        return "label the pod for workload identity, or assign the Azure machine a managed identity"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        resource = quote_audience(audience)
        token = yield from token_in_named_file(_AZURE_FILE)
        if token is not None:
            return check_token(token, audience, now, who=_AZURE, expect=self.expect)
        if not self.certain:
            here = yield from firmware_names(_AZURE_FIRMWARE, _AZURE_TAG)
            if not here:
                return None
        token = yield from self._managed_identity_token(resource, audience, now)
        return check_token(token, audience, now, who=_AZURE, expect=self.expect, opaque=True)

    def _managed_identity_token(self, resource: str, audience: str, now: float) -> Flow[Secret]:
        url = f"{_AZURE_TOKEN_URL}&resource={resource}"
        if self.client_id is not None:
            url += f"&client_id={quote(self.client_id, safe='')}"
        request = HttpRequest("GET", url, {"Metadata": "true"}, plain=_AZURE_HOST)
        answer = yield from send(request, _AZURE)
        if answer.status != _OK:
            raise failure_of(answer, _AZURE, "a token", now)
        fields = json_object(answer, _AZURE)
        if not fields.is_token("access_token"):
            raise malformed_token(_AZURE)
        if fields.get("resource") != audience:
            raise CredentialRejectedError(
                "audience_mismatch",
                "Azure answered for another resource",
                remedy=f"check that {audience} is the identifier of an application in this tenant",
            )
        return Secret(fields.text("access_token") or "")


_GCP_HOST: Final = "metadata.google.internal"
_GCP_TOKEN_URL: Final = (
    f"http://{_GCP_HOST}/computeMetadata/v1/instance/service-accounts/default/identity?format=full"
)
_GCP_FIRMWARE: Final = "/sys/class/dmi/id/product_name"
_GCP: Final = "Google Cloud"


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
        return f"Google in {_GCP_FIRMWARE}"

    @property
    def setup(self) -> str:
        return "attach a service account to the Google Cloud workload"

    def fetch(self, audience: str, now: float, /) -> Flow[WorkloadToken | None]:
        url = f"{_GCP_TOKEN_URL}&audience={quote_audience(audience)}"
        if not self.certain:
            here = yield from firmware_names(_GCP_FIRMWARE, "Google", "Google Compute Engine")
            if not here:
                return None
        request = HttpRequest("GET", url, {"Metadata-Flavor": "Google"}, plain=_GCP_HOST)
        answer = yield from send(request, _GCP)
        if answer.headers.get("metadata-flavor") != "Google":
            raise CredentialRejectedError(
                "foreign_metadata_server",
                f"the server at {_GCP_HOST} isn't Google's metadata server",
                remedy="find out which server answers there: it didn't send Google's header",
            )
        if answer.status != _OK:
            raise failure_of(answer, _GCP, "a token", now)
        token = trim(Secret(answer.body.decode("ascii", "replace")))
        if token is None:
            raise malformed_token(_GCP)
        return check_token(token, audience, now, who=_GCP, expect=self.expect)
