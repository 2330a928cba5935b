# SPDX-License-Identifier: Apache-2.0
"""Two issuers: the principal's own issues a grant for the issuer of another domain, which issues the token.

ID-JAG (draft-ietf-oauth-identity-assertion-authz-grant-04) and identity chaining (draft-ietf-oauth-identity-chaining-17)
differ in the type of the grant and in its required claims.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlencode

from agent_identity.credentials.oauth.requests import Binding, Issued
from agent_identity.credentials.oauth.responses import check_scope_claim, check_scopes, read_jwt
from agent_identity.credentials.oauth.token_types import (
    ACCESS_TOKEN,
    ID_JAG,
    ID_TOKEN,
    JWT,
    JWT_BEARER,
    REFRESH_TOKEN,
    SAML2,
    TOKEN_EXCHANGE,
)
from agent_identity.credentials.source import Described, Wanted, details_text, target
from agent_identity.credentials.sources.checks import (
    check_answer,
    check_forwarded,
    check_issued_type,
    expect,
)
from agent_identity.errors import CredentialRejectedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.responses import Fields
    from agent_identity.credentials.source import Parameters
    from agent_identity.flow import Flow
    from agent_identity.values import JSON, Secret

_SUBJECT_TYPES: Final = {
    "id-jag": (ID_TOKEN, SAML2, REFRESH_TOKEN),
    "identity-chaining": (ACCESS_TOKEN, JWT, ID_TOKEN),
}
_REQUESTED: Final = {"id-jag": ID_JAG, "identity-chaining": JWT}
_TYP: Final = "oauth-id-jag+jwt"
_N_A: Final = "n_a"


@dataclass(frozen=True, slots=True)
class CrossDomain:
    """Get a grant for `issuer` from the principal's issuer `via`, and exchange it at `issuer`.

    The grant is checked before it is sent: it must name the principal, if their `sub` at `via` is known. It is sent once, and
    only to `issuer`, with the `parameters`.
    """

    kind: Literal["id-jag", "identity-chaining"]
    issuer: Issuer
    via: Issuer
    binding: Literal["dpop", "mtls", "none"] = "dpop"
    audience: str | None = None
    details: Sequence[JSON] = ()
    parameters: Parameters = ()
    client_name: str = ""
    patience: float | None = None

    @property
    def described(self) -> Described:
        return Described(
            self.kind,
            f"{self.via.url} {self.issuer.url}",
            self.client_name,
            f"{self.binding} {self.audience or ''}",
            details_text(self.details),
            urlencode(self.parameters),
        )

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Get the grant, then the token.

        Raises:
            CredentialRejectedError: an issuer refused, or the grant doesn't match the request.
            CredentialUnavailableError: an issuer could not be reached.
        """
        grant = yield from self._grant(wanted, Binding(self.binding, wanted.proof_key))
        expected = yield from expect(
            self.issuer, wanted, self.binding, audience=self.audience, details=self.details
        )
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", JWT_BEARER),
            ("assertion", grant),
            *target(
                wanted,
                details=self.details,
                parameters=self.parameters,
                names_resource=self.issuer.resource_indicators,
            ),
        ]
        answer = yield from self.issuer.token(form, binding=expected.binding, one_use=True)
        return (yield from check_answer(self.issuer, answer, expected))

    def _grant(self, wanted: Wanted, binding: Binding) -> Flow[Secret]:
        if wanted.subject is None:
            raise CredentialRejectedError(
                "subject_token_missing",
                f"{self.via.url} needs the principal's token to issue a grant, and this session has none",
                remedy="open the session with on_behalf_of(SubjectTokens(id_token=…))",
            )
        subject = yield from wanted.subject.token(self.via, _SUBJECT_TYPES[self.kind])
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", TOKEN_EXCHANGE),
            ("requested_token_type", _REQUESTED[self.kind]),
            ("subject_token", subject.token),
            ("subject_token_type", subject.token_type),
            *target(
                wanted,
                audience=self.issuer.url,
                details=self.details,
                names_resource=self.kind == "id-jag",
            ),
        ]
        answer = yield from self.via.token(form, binding=binding)
        check_issued_type(answer, _REQUESTED[self.kind], self.via.url)
        kind = answer.token_type.lower()
        if kind != _N_A and not (kind == "bearer" and self.via.allows.bearer_grants):
            raise CredentialRejectedError(
                "wrong_token_type",
                f"{self.via.url} issued a grant with the type of an access token",
                remedy="if it calls grants bearer tokens, as Okta does, set allow_bearer_grants for it",
            )
        check_scopes(answer, wanted.scopes, self.via.url)
        client = yield from self.issuer.client()
        _check_grant(
            read_jwt(answer.token, typ=_TYP if self.kind == "id-jag" else None),
            wanted,
            self.issuer.url,
            client_id=client.client_id if self.kind == "id-jag" else None,
            binding=binding,
            via=self.via,
        )
        return answer.token


def _check_grant(
    claims: Fields | None,
    wanted: Wanted,
    audience: str,
    *,
    client_id: str | None,
    binding: Binding,
    via: Issuer,
) -> None:
    """Check a grant before it is sent."""
    if claims is None:
        raise CredentialRejectedError("malformed_grant", f"{via.url} sent a malformed grant")
    check_forwarded(claims, via, wanted)
    check_scope_claim(claims, wanted.scopes, via.url)
    if claims.get("aud") not in (audience, [audience]):
        raise CredentialRejectedError(
            "audience_mismatch",
            f"the audience of the grant from {via.url} isn't exactly {audience}",
        )
    if claims.has("resource") and claims.get("resource") not in (
        wanted.resource,
        [wanted.resource],
    ):
        raise CredentialRejectedError(
            "audience_mismatch", f"{via.url} issued a grant for another resource"
        )
    if client_id is not None and claims.text("client_id") != client_id:
        raise CredentialRejectedError(
            "client_mismatch",
            f"{via.url} issued a grant for another client than ours at {audience}",
            remedy=f"register at {via.url} the client_id that this agent has at {audience}",
        )
    key = binding.proof_key
    if (
        client_id is not None
        and binding.kind == "dpop"
        and key is not None
        and claims.confirms("jkt") != key.thumbprint
    ):
        raise CredentialRejectedError(
            "binding_missing", f"{via.url} issued a grant that isn't bound to the agent's key"
        )
