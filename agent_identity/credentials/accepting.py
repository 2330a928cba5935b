# SPDX-License-Identifier: Apache-2.0
"""The last step of every way to a token: the answer is checked, and what an opaque one doesn't show is asked of its issuer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_identity.credentials.answers import json_object
from agent_identity.credentials.checks import issued_from, seen_through
from agent_identity.errors import CredentialError

if TYPE_CHECKING:
    from agent_identity.credentials.answers import Answer
    from agent_identity.credentials.checks import Expected
    from agent_identity.credentials.issuer import Issuer
    from agent_identity.credentials.oauth import Form, Issued
    from agent_identity.flow import Flow

__all__ = ["accepted"]


def accepted(issuer: Issuer, answer: Answer, expected: Expected) -> Flow[Issued]:
    """The credential that an answer is. One that stays opaque, since nobody says what it holds, says so in `is_opaque`.

    Raises:
        CredentialRejectedError: it isn't what was asked for.
    """
    issued = issued_from(answer, expected)
    if not issued.is_opaque:
        return issued
    endpoints = yield from issuer.endpoints()
    if endpoints.introspection is None:
        return issued
    form: Form = [("token", issued.token), ("token_type_hint", "access_token")]
    try:
        response = yield from issuer.post("introspection", form, "about a token", attempts=1)
        claims = json_object(response, issuer.url)
    except CredentialError:
        return issued  # not every client may ask, and the token is no worse for it
    return seen_through(issued, claims, expected)
