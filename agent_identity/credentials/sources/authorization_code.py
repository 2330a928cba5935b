# SPDX-License-Identifier: Apache-2.0
"""Authorization code: a person signs in at the issuer in a browser and is redirected to a loopback address.

PKCE uses S256 only (RFC 7636). The request is pushed if the issuer supports that (RFC 9126), `iss` in the response is checked
(RFC 9207), and `state` is bound to this one flow.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlencode

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.responses import (
    issuers_words,
    json_object,
    known_error,
    read_jwt,
)
from agent_identity.credentials.oauth.token_types import AUTHORIZATION_CODE
from agent_identity.credentials.sources.refresh_token import in_turn
from agent_identity.credentials.sources.signing_in import SignInSource
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import visit
from agent_identity.uris import is_safe_link
from agent_identity.values import Prompt, Secret, b64url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.metadata import Endpoints
    from agent_identity.credentials.oauth.requests import Issued
    from agent_identity.credentials.oauth.responses import Answer
    from agent_identity.credentials.source import Wanted
    from agent_identity.flow import Callback, Flow

_CREATED: Final = frozenset({200, 201})
_PLAIN: Final = re.compile(r"[A-Za-z0-9._~:/?&=%@+,\[\]-]+")
"""The characters allowed in an authorization endpoint: none that is special in a shell, and no fragment (RFC 6749 §3.1)."""


@dataclass(frozen=True, slots=True)
class AuthorizationCode(SignInSource):
    """Sign-in in a browser. `random` returns random bytes; tests replace it."""

    kind: ClassVar[str] = "authorization-code"

    random: Callable[[int], bytes] = os.urandom

    def fetch(self, wanted: Wanted, /) -> Flow[Issued]:
        """Have the person sign in, unless there is a refresh token.

        Raises:
            CredentialRejectedError: the issuer doesn't offer S256, refused, or the response doesn't belong to this request.
            CredentialUnavailableError: the person didn't sign in in time, or the issuer can't be reached.
        """
        return self.sign_in.fetch(wanted, self._ask_in_turn)

    def _ask_in_turn(self, wanted: Wanted) -> Flow[Answer]:
        """Ask at once, or after another sign-in that comes back to the same port."""
        redirect_uri = self.sign_in.issuer.redirect_uri
        if redirect_uri is None:
            return self._ask(wanted)
        key = digest_of(("redirect", redirect_uri))
        return in_turn(key, lambda: self._ask(wanted), self.patience)

    def _ask(self, wanted: Wanted) -> Flow[Answer]:
        issuer = self.sign_in.issuer
        endpoints = yield from issuer.endpoints()
        _check_pkce(issuer, endpoints)
        place = endpoints.at("authorization")
        if not (_PLAIN.fullmatch(place) and is_safe_link(place)):
            raise CredentialRejectedError(
                "endpoint_unsafe",
                f"the authorization_endpoint of {issuer.url} isn't safe to open",
            )
        verifier = Secret(b64url(self.random(48)))
        state = Secret(b64url(self.random(24)))
        nonce = b64url(self.random(24)) if self.sign_in.is_openid(wanted) else None
        callback = yield from visit(
            lambda redirect_uri: self._prompt(
                wanted, endpoints, redirect_uri, verifier, state, nonce
            ),
            self.patience,
            accepts=lambda members: _is_answer(members, state),
            redirect_uri=issuer.redirect_uri,
        )
        code = _code(callback, endpoints, state)
        form: list[tuple[str, str | Secret]] = [
            ("grant_type", AUTHORIZATION_CODE),
            ("code", code),
            ("redirect_uri", callback.redirect_uri),
            ("code_verifier", verifier),
            *self.sign_in.parameters,
        ]
        if issuer.resource_indicators:
            form.append(("resource", wanted.resource))
        answer = yield from issuer.token(
            form, binding=self.sign_in.bound_to(wanted), one_use=True, may_refresh=True
        )
        if nonce is not None:
            _check_nonce(answer, nonce, issuer.url)
        return answer

    def _prompt(
        self,
        wanted: Wanted,
        endpoints: Endpoints,
        redirect_uri: str,
        verifier: Secret,
        state: Secret,
        nonce: str | None,
    ) -> Flow[Prompt]:
        """Make the link that the person opens: with the whole request, or with the reference of a pushed one."""
        issuer = self.sign_in.issuer
        client = yield from issuer.client()
        form: list[tuple[str, str | Secret]] = [
            ("response_type", "code"),
            ("redirect_uri", redirect_uri),
            ("state", state),
            ("code_challenge", challenge_of(verifier)),
            ("code_challenge_method", "S256"),
            *self.sign_in.form(wanted),
        ]
        if nonce is not None:
            form.append(("nonce", nonce))
        if self.sign_in.binding == "dpop":
            form.append(("dpop_jkt", wanted.proof_key.thumbprint))
        query: list[tuple[str, str]] = [("client_id", client.client_id)]
        if endpoints.pushed_authorization is not None:
            query.append(("request_uri", (yield from self._push([*query, *form]))))
        elif endpoints.requires_pushed:
            raise CredentialRejectedError(
                "metadata_incomplete",
                f"{issuer.url} requires pushed requests, and its metadata has no endpoint for them",
            )
        else:
            query += [
                (name, value.reveal() if isinstance(value, Secret) else value)
                for name, value in form
            ]
        place = endpoints.at("authorization")
        url = f"{place}{'&' if '?' in place else '?'}{urlencode(query)}"
        end = issuer.clock() + self.patience
        return Prompt("authorization-code", issuer.url, end, authorization_url=url)

    def _push(self, form: Sequence[tuple[str, str | Secret]]) -> Flow[str]:
        issuer = self.sign_in.issuer
        response = yield from issuer.post(
            "pushed_authorization", form, "a pushed request", accepted=_CREATED
        )
        reference = json_object(response, issuer.url).text("request_uri")
        if reference is None:
            raise CredentialRejectedError(
                "malformed_answer", f"{issuer.url} answered a pushed request without a request_uri"
            )
        return reference


def _check_pkce(issuer: Issuer, endpoints: Endpoints) -> None:
    methods = endpoints.challenge_methods
    if methods is None and issuer.assumes_pkce:
        return
    if "S256" not in (methods or ()):
        raise CredentialRejectedError(
            "pkce_unsupported",
            f"{issuer.url} doesn't offer PKCE with S256",
            remedy="ask its operator for S256, or use another source for this resource"
            if methods is not None
            else 'its metadata lists no PKCE methods; if it checks S256 nevertheless, set pkce = "assume" for the issuer',
        )


def _check_nonce(answer: Answer, nonce: str, issuer: str) -> None:
    """Check that an ID token belongs to this sign-in (OIDC Core §3.1.3.7)."""
    claims = None if answer.id_token is None else read_jwt(answer.id_token)
    if claims is None:
        return
    shown = (claims.text("nonce") or "").encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(shown, nonce.encode()):
        raise CredentialRejectedError(
            "nonce_mismatch", f"the ID token from {issuer} doesn't belong to this sign-in"
        )


def challenge_of(verifier: Secret) -> str:
    """The S256 challenge of a verifier (RFC 7636 §4.2)."""
    return b64url(hashlib.sha256(verifier.reveal().encode("ascii")).digest())


def _is_answer(members: Iterable[tuple[str, str]], state: Secret) -> bool:
    """Whether a response belongs to this request: it has its secret `state`."""
    answered = dict(members).get("state", "").encode("utf-8", "surrogatepass")
    return hmac.compare_digest(answered, state.reveal().encode())


def _code(callback: Callback, endpoints: Endpoints, state: Secret) -> Secret:
    """Return the code of a response that belongs to this request and comes from this issuer (RFC 9207 §2.4).

    Nothing else in the response, not even an error, is read before these two checks.
    """
    members = dict(callback.members)
    if len(members) != len(callback.members):
        raise CredentialRejectedError(
            "callback_repeated", "the sign-in response has a repeated parameter"
        )
    if not _is_answer(callback.members, state):
        raise CredentialRejectedError(
            "state_mismatch", "the sign-in response has another state than the request"
        )
    named = members.get("iss")
    if named is None and endpoints.names_itself_in_response:
        raise CredentialRejectedError(
            "issuer_missing", f"the sign-in response has no iss, which {endpoints.issuer} supports"
        )
    if named is not None and named != endpoints.issuer:
        raise CredentialRejectedError(
            "issuer_mismatch", "the sign-in response comes from another issuer"
        )
    if "error" in members:
        code = known_error(members["error"])
        refused = CredentialRejectedError(code, f"{endpoints.issuer} refused the sign-in: {code}")
        refused.detail = issuers_words(members["error"], members.get("error_description"))
        raise refused
    if not members.get("code"):
        raise CredentialRejectedError("malformed_answer", "the sign-in response has no code")
    return Secret(members["code"])
