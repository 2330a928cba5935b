# SPDX-License-Identifier: Apache-2.0
"""Device authorization: a person enters a code at the issuer, on any device with a browser (RFC 8628)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

from agent_identity.credentials.oauth.responses import json_object
from agent_identity.credentials.oauth.token_types import DEVICE_CODE
from agent_identity.credentials.sources.signing_in import SignInSource, poll, span_of
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import show
from agent_identity.uris import is_safe_link
from agent_identity.values import Prompt, Secret

if TYPE_CHECKING:
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow

_CODE_LIMIT: Final = 64


@dataclass(frozen=True, slots=True)
class DeviceAuthorization(SignInSource):
    """Sign-in on another device."""

    kind: ClassVar[str] = "device"

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Show the person a code and wait, unless there is a refresh token.

        Raises:
            CredentialRejectedError: the person or the issuer refused.
            CredentialUnavailableError: the person didn't sign in in time, or the issuer can't be reached.
        """
        return self.sign_in.fetch(wanted, self._ask)

    def _ask(self, wanted: Wanted) -> Flow[Answer]:
        issuer = self.sign_in.issuer
        client = yield from issuer.client()
        # Some servers need it also from a client that authenticates (RFC 8628 §3.1).
        form = [("client_id", client.client_id), *self.sign_in.form(wanted)]
        response = yield from issuer.post("device_authorization", form, "a device code")
        fields = json_object(response, issuer.url)
        interval, life = span_of(fields, self.patience)
        end = issuer.clock() + life
        device_code = fields.secret("device_code")
        user_code = fields.text("user_code")
        place = fields.text("verification_uri")
        if device_code is None or user_code is None or place is None:
            raise CredentialRejectedError(
                "malformed_answer", f"the answer of {issuer.url} has no device code to enter"
            )
        complete = fields.text("verification_uri_complete")
        if not (_is_plain(user_code) and is_safe_link(place)):
            raise CredentialRejectedError(
                "malformed_answer",
                f"{issuer.url} sent a code or a link that isn't safe to show",
            )
        yield from show(
            Prompt(
                "device",
                issuer.url,
                end,
                verification_uri=place,
                verification_uri_complete=complete if complete and is_safe_link(complete) else None,
                user_code=user_code,
            )
        )
        polled: list[tuple[str, str | Secret]] = [
            ("grant_type", DEVICE_CODE),
            ("device_code", device_code),
            *self.sign_in.parameters,
        ]
        binding = self.sign_in.bound_to(wanted)
        return (yield from poll(issuer, polled, binding=binding, interval=interval, expires_at=end))


def _is_plain(code: str) -> bool:
    return len(code) <= _CODE_LIMIT and code.isascii() and code.isprintable()
