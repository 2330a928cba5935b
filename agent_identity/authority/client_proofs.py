# SPDX-License-Identifier: Apache-2.0
"""What proves a client that a configuration names: an assertion of its own, a JWT-SVID, or what its platform says of it.

Each way is a small object with one method, a flow that checks one `client_assertion`. An assertion of the client's own is
good once. A JWT-SVID and a platform's token are made by somebody else and shown until they end: what keeps a stolen one from
being of use is that its only audience is this authority, and that a grant is bound to the key of the proof beside it.
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
_PLAIN: Final = frozenset({None, "JWT", "JOSE"})


class KeySource(Protocol):
    """Whoever publishes keys, found by `kid`."""

    def key(self, kid: str, /) -> Flow[dict[str, JSON]]:
        """The public key of that name.

        Raises:
            CredentialRejectedError: `unknown_key`, there is none.
        """
        ...


class OneUse(NamedTuple):
    """What an assertion that is good once is remembered by; times are Unix seconds."""

    jti: str
    issued_at: float
    expires_at: float


class ClientProof(Protocol):
    """One way in which a client proves itself; `assertion_type` is its `client_assertion_type`, `method` its registered name."""

    @property
    def assertion_type(self) -> str: ...

    @property
    def method(self) -> str: ...

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        """Check an assertion for `issuer`; returns what to remember of one that is good once.

        Raises:
            VerificationError: it proves nothing, or another client.
            CredentialError: the keys can't be fetched.
        """
        ...


@dataclass(frozen=True, slots=True)
class OwnAssertion:
    """`private_key_jwt`: signed by a key of the client's, good once (RFC 7523 §3, RFC 10070)."""

    keys: KeySource = field(repr=False)
    assertion_type: str = JWT_BEARER
    method: str = "private_key_jwt"

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        body = yield from signed_by(self.keys, parsed, typs={TYPE})
        return check_own_assertion(body, client_id, issuer, now)


@dataclass(frozen=True, slots=True)
class SpiffeSvid:
    """A JWT-SVID of one SPIFFE ID, by the keys of its trust domain (draft-ietf-oauth-spiffe-client-auth-02)."""

    subject: str
    keys: KeySource = field(repr=False)
    assertion_type: str = JWT_SPIFFE
    method: str = "spiffe_jwt"

    def check(
        self, parsed: jose.Parsed, client_id: str, issuer: str, now: float, /
    ) -> Flow[OneUse | None]:
        del client_id  # an SVID knows the workload alone
        body = yield from signed_by(self.keys, parsed, typs=_PLAIN)
        if Claims(body, VerificationError).text("sub") != self.subject:
            raise VerificationError("client_mismatch", "the SVID is of another workload")
        _check_alone(body, issuer)
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=None)
        return None


@dataclass(frozen=True, slots=True)
class PlatformToken:
    """What a platform says of the job or pod that runs there, in a token for this authority alone.

    `claims` are all that it has to say, `sub` among them where that is enough; each is compared as text, exactly.
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
        del client_id  # the platform doesn't know it
        body = yield from signed_by(self.keys, parsed, typs=_PLAIN, algorithms=self.algorithms)
        if body.get("iss") != self.platform:
            raise VerificationError("issuer_mismatch", "the token is of another platform")
        if not self.claims or any(body.get(name) != wanted for name, wanted in self.claims.items()):
            raise VerificationError("client_mismatch", "the token is of another job or pod")
        _check_alone(body, issuer)
        jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST_OF_OTHERS)
        return None


def check_own_assertion(
    body: Mapping[str, JSON], client_id: str, issuer: str, now: float
) -> OneUse:
    """Hold the claims of a client's own assertion to what they have to be.

    Raises:
        VerificationError: it is another's, for another audience, or not of now.
    """
    claims = Claims(body, VerificationError)
    if (claims.text("iss"), claims.text("sub")) != (client_id, client_id):
        raise VerificationError("client_mismatch", "the assertion speaks for another client")
    if body.get("aud") != issuer:  # one string: a list, or a token URL, could be meant for another
        raise VerificationError("audience_mismatch", "the assertion is for another audience")
    expires = jose.check_lifetime(body, now=now, skew=SKEW, max_lifetime=_LONGEST)
    return OneUse(claims.text("jti"), jose.numeric_date(body, "iat"), expires)


def signed_by(
    keys: KeySource,
    parsed: jose.Parsed,
    *,
    typs: Collection[str | None],
    algorithms: Collection[str] = ALGORITHMS,
) -> Flow[dict[str, JSON]]:
    """The claims of a token, once a key of `keys` has verified it; `typs` are the header types that it may have.

    Raises:
        VerificationError: it has another type, names no key or an unknown one, or its signature isn't good.
        CredentialError: the keys can't be had.
    """
    typ, kid = parsed.header.get("typ"), parsed.header.get("kid")
    if not (typ is None or isinstance(typ, str)) or typ not in typs:
        raise VerificationError("wrong_typ", "a token of another kind")
    if not isinstance(kid, str):
        raise VerificationError("key_unknown", "the token doesn't name its key")
    key = yield from _named(keys, kid)
    _, payload = jose.verify(parsed, [key], algorithms=algorithms)
    return jose.loads_object(payload)


def _named(keys: KeySource, kid: str) -> Flow[dict[str, JSON]]:
    try:
        return (yield from keys.key(kid))
    except CredentialRejectedError as error:
        if error.code != "unknown_key":
            raise
    raise VerificationError("key_unknown", "signed by a key that nobody publishes")


def _check_alone(body: Mapping[str, JSON], issuer: str) -> None:
    """Platforms write even one audience as a list; a second one could show the token here too."""
    if body.get("aud") not in (issuer, [issuer]):
        raise VerificationError("audience_mismatch", "the token isn't for this authority alone")
