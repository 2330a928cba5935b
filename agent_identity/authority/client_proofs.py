# SPDX-License-Identifier: Apache-2.0
"""How a configured client authenticates: by an assertion of its own, a JWT-SVID, or its platform's token.

Each way is a small class whose `check` is a flow that checks one `client_assertion`. A client's own assertion is accepted
once. A JWT-SVID or a platform's token comes from another issuer and is accepted until it expires. A stolen one is of no use:
its only audience is this authority, and a grant is bound to the key of the DPoP proof in the same request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.errors import CredentialRejectedError, VerificationError
from agent_identity.keys.algorithms import ALGORITHMS

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from agent_identity.flow import Flow
    from agent_identity.values import JSON

JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
TYPE: Final = "client-authentication+jwt"
SKEW: Final = 30.0
_LONGEST: Final = 300.0
_LONGEST_OF_OTHERS: Final = 24 * 3600.0
_PLAIN: Final = frozenset({"", "jwt", "jose"})


class KeySource(Protocol):
    """Published keys, found by `kid`."""

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        """Fetch the public key with this `kid`.

        Raises:
            CredentialRejectedError: `unknown_key`, no key has it.
        """
        ...


class OneUse(NamedTuple):
    """Identifies an assertion that is accepted once; times are Unix seconds."""

    jti: str
    issued_at: float
    expires_at: float


class ClientProof(Protocol):
    """A way to authenticate: `assertion_type` is its `client_assertion_type`, `method` its registered name."""

    @property
    def assertion_type(self) -> str: ...

    @property
    def method(self) -> str: ...

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        """Check an assertion for `issuer`; return its id if it may be used only once, else None.

        Raises:
            VerificationError: the assertion is invalid, or another client's.
            CredentialError: the keys can't be fetched.
        """
        ...


@dataclass(frozen=True, slots=True)
class OwnAssertion:
    """`private_key_jwt`: signed by the client's key, accepted once (RFC 7523 §3, RFC 10070)."""

    keys: KeySource = field(repr=False)
    assertion_type: str = JWT_BEARER
    method: str = "private_key_jwt"

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        body = yield from verify_claims(self.keys, parsed, typs={TYPE})
        return check_own_assertion(body, client_id, issuer, now)


@dataclass(frozen=True, slots=True)
class SpiffeSvid:
    """A JWT-SVID of one SPIFFE ID, signed by a key of its trust domain (draft-ietf-oauth-spiffe-client-auth-02)."""

    subject: str
    keys: KeySource = field(repr=False)
    assertion_type: str = JWT_SPIFFE
    method: str = "spiffe_jwt"

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        del client_id  # an SVID names the workload, not the client
        body = yield from verify_claims(self.keys, parsed, typs=_PLAIN)
        if Claims(body, VerificationError).text("sub") != self.subject:
            raise VerificationError("client_mismatch", "the SVID belongs to another workload")
        _check_sole_audience(body, issuer)
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=None)
        return None


@dataclass(frozen=True, slots=True)
class PlatformToken:
    """A platform's token for a job or pod, with this authority as its only audience.

    `claims` are the claims that it has to contain, for example `sub`; each is compared exactly, as text.
    """

    platform: str
    claims: Mapping[str, str]
    keys: KeySource = field(repr=False)
    algorithms: Collection[str] = ALGORITHMS
    assertion_type: str = JWT_BEARER
    method: str = "workload_token"

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        del client_id  # the platform's token doesn't contain it
        body = yield from verify_claims(self.keys, parsed, typs=_PLAIN, algorithms=self.algorithms)
        if body.get("iss") != self.platform:
            raise VerificationError("issuer_mismatch", "the token comes from another platform")
        if not self.claims or any(body.get(name) != wanted for name, wanted in self.claims.items()):
            raise VerificationError("client_mismatch", "the token belongs to another job or pod")
        _check_sole_audience(body, issuer)
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST_OF_OTHERS)
        return None


def check_own_assertion(
    body: Mapping[str, JSON], client_id: str, issuer: str, now: float
) -> OneUse:
    """Check the claims of a client's own assertion.

    Raises:
        VerificationError: it has another issuer, subject or audience, or isn't valid now.
    """
    claims = Claims(body, VerificationError)
    if (claims.text("iss"), claims.text("sub")) != (client_id, client_id):
        raise VerificationError("client_mismatch", "the assertion is another client's")
    # One string: a list or a token URL could be meant for another issuer.
    if body.get("aud") != issuer:
        raise VerificationError("audience_mismatch", "the assertion is for another audience")
    expires = jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST)
    return OneUse(claims.text("jti"), jose.numeric_date(body, "iat"), expires)


def verify_claims(
    keys: KeySource,
    parsed: jose.Parsed,
    *,
    typs: Collection[str],
    algorithms: Collection[str] = ALGORITHMS,
) -> Flow[dict[str, JSON]]:
    """Verify the signature of a token by one of `keys`, and return its claims; `typs` are the accepted header types in lower case.

    Raises:
        VerificationError: the token has another type, no key or an unknown key, or an invalid signature.
        CredentialError: the keys can't be fetched.
    """
    typ, kid = jose.read_typ(parsed.header), parsed.header.get("kid")
    if typ not in typs:
        raise VerificationError("wrong_typ", "the token has another type")
    if not isinstance(kid, str):
        raise VerificationError("key_unknown", "the token has no kid")
    key = yield from _fetch_key(keys, kid)
    _, payload = jose.verify(parsed, [key], algorithms=algorithms)
    return jose.loads_object(payload)


def _fetch_key(keys: KeySource, kid: str) -> Flow[dict[str, JSON]]:
    try:
        return (yield from keys.key(kid))
    except CredentialRejectedError as error:
        if error.code != "unknown_key":
            raise
    raise VerificationError("key_unknown", "the token's kid isn't among its issuer's keys")


def _check_sole_audience(body: Mapping[str, JSON], issuer: str) -> None:
    """Check that this authority is the only audience: another one could replay the token here. Platforms write a list of one."""
    if body.get("aud") not in (issuer, [issuer]):
        raise VerificationError(
            "audience_mismatch", "this authority isn't the token's only audience"
        )
