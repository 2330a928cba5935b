# SPDX-License-Identifier: Apache-2.0
"""The last step of every way to a token: the answer is checked, and what an opaque one doesn't show is asked of its issuer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from agent_identity.credentials.oauth.responses import json_object, read_jwt
from agent_identity.credentials.sources.checks import check_shown, issued_from, seen_through
from agent_identity.errors import CredentialError

if TYPE_CHECKING:
    from agent_identity.credentials.oauth.responses import Answer, Fields
    from agent_identity.credentials.sources.checks import Expected
    from agent_identity.credentials.oauth.issuer import Issuer
    from agent_identity.credentials.oauth.requests import Form, Issued
    from agent_identity.flow import Flow

__all__ = ["accepted"]


def accepted(issuer: Issuer, answer: Answer, expected: Expected) -> Flow[Issued]:
    """The credential that an answer is. One that stays opaque, since nobody says what it holds, says so in `is_opaque`.

    Raises:
        CredentialRejectedError: it isn't what was asked for.
    """
    issued = issued_from(answer, expected)
    claims = read_jwt(answer.token)
    if issued.is_opaque:
        claims = yield from _introspected(issuer, answer)
        issued = issued if claims is None else seen_through(issued, claims, expected)
    elif expected.shown_by == "kept" and expected.sub is not None and not _names(claims):
        issued = replace(issued, is_opaque=True)
    if expected.shown_by == "sign-in" and expected.sub is not None:
        client = yield from issuer.client()
        check_shown(answer, claims, expected, client.client_id)
    return issued


def _names(claims: Fields | None) -> bool:
    return claims is not None and claims.has("sub")


def _introspected(issuer: Issuer, answer: Answer) -> Flow[Fields | None]:
    """What the issuer says of a token, None where it says nothing: not every client may ask, and the token is no worse for it."""
    endpoints = yield from issuer.endpoints()
    if endpoints.introspection is None:
        return None
    form: Form = [("token", answer.token), ("token_type_hint", "access_token")]
    try:
        response = yield from issuer.post("introspection", form, "about a token", attempts=1)
        return json_object(response, issuer.url)
    except CredentialError:
        return None
