# SPDX-License-Identifier: Apache-2.0
"""CIBA: the issuer asks the person on their own device while the agent waits (OpenID CIBA Core 1.0, poll mode)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from agent_identity.credentials.oauth.responses import json_object
from agent_identity.credentials.oauth.token_types import CIBA, ID_TOKEN
from agent_identity.credentials.source import required_sub_at
from agent_identity.credentials.sources.signing_in import OPENID, SignInSource, poll, span_of
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import show
from agent_identity.values import Prompt, Secret

if TYPE_CHECKING:
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Flow

_MESSAGE: Final = 60


@dataclass(frozen=True, slots=True)
class Ciba(SignInSource):
    """Sign-in through the issuer's own channel to the person. The hint is the principal's `sub` or their ID token."""

    kind: ClassVar[str] = "ciba"

    login_hint_from: Literal["sub", "id-token"] = "sub"

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Have the issuer ask the person, unless there is a refresh token.

        Raises:
            CredentialRejectedError: the person or the issuer refused.
            CredentialUnavailableError: the person didn't decide in time, or the issuer can't be reached.
        """
        return self.sign_in.fetch(wanted, self._ask, extra_scopes=OPENID)

    def _ask(self, wanted: Wanted) -> Flow[Answer]:
        issuer = self.sign_in.issuer
        form = self.sign_in.form(wanted, extra_scopes=OPENID)
        form += [
            ("binding_message", wanted.purpose[:_MESSAGE]),
            ("requested_expiry", str(int(self.patience))),
            (yield from self._hint(wanted)),
        ]
        # One attempt: each request would ask the person again.
        response = yield from issuer.post(
            "backchannel_authentication", form, "a decision", attempts=1
        )
        fields = json_object(response, issuer.url)
        interval, life = span_of(fields, self.patience)
        end = issuer.clock() + life
        request_id = fields.secret("auth_req_id")
        if request_id is None:
            raise CredentialRejectedError(
                "malformed_answer", f"the answer of {issuer.url} has no auth_req_id"
            )
        yield from show(Prompt("ciba", issuer.url, end))
        polled: list[tuple[str, str | Secret]] = [
            ("grant_type", CIBA),
            ("auth_req_id", request_id),
            *self.sign_in.parameters,
        ]
        binding = self.sign_in.bound_to(wanted)
        return (yield from poll(issuer, polled, binding=binding, interval=interval, expires_at=end))

    def _hint(self, wanted: Wanted) -> Flow[tuple[str, str | Secret]]:
        if self.login_hint_from == "sub":
            return "login_hint", required_sub_at(self.sign_in.issuer, wanted)
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing", "this session has no ID token of the principal as a hint"
            )
        id_token = yield from wanted.subject.token(self.sign_in.issuer, (ID_TOKEN,))
        return "id_token_hint", id_token.token
