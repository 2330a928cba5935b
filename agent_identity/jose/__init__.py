# SPDX-License-Identifier: Apache-2.0
"""The one door for JSON from outside, and the one door for every signature check.

J1  Limits come first: size and nesting are judged on the bytes, before base64, JSON or a key sees them.
J2  JSON has one reading: UTF-8, no name twice, no NaN, no number or text that two parsers read differently.
J3  Trust comes from the caller: keys are those passed in, algorithms those allowed. A header chooses among them by `kid`
    and `alg` and supplies nothing: its `jwk`, `jku`, `x5u` and `x5c` are never used, and nothing is fetched.
J4  A key is used for what it says of itself: type, curve, `alg`, `use` and `key_ops` all have to fit, and weak keys don't.
J5  A signature is checked over the bytes that came, and it is those that are returned.

tests/adversarial/test_signatures.py holds the tests of these rules.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, overload

import orjson

from agent_identity.errors import VerificationError
from agent_identity.jose import public_keys, strict
from agent_identity.keys.algorithms import ALGORITHMS
from agent_identity.values import b64url, unb64url

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON

__all__ = [
    "MAX_HEADER",
    "MAX_TOKEN",
    "Fitting",
    "Parsed",
    "Prepared",
    "check_lifetime",
    "fitting",
    "header",
    "loads",
    "loads_object",
    "numeric_date",
    "read_header",
    "unverified",
    "verify",
]

MAX_TOKEN: Final = 16 * 1024
"""Characters of one token, grant or assertion."""

MAX_HEADER: Final = 1024
"""Bytes of the JOSE header of a grant, assertion or proof; what `max_header` is for those."""


def loads(data: bytes, *, error: type[VerificationError] = VerificationError) -> JSON:
    """Read JSON from outside so strictly that every value which comes out had one reading.

    Numbers are integers within ±(2^53 - 1) or finite floats, their literals have at most 32 characters, nesting has at
    most 32 levels, and text is free of lone surrogates, escaped ones included.

    Raises:
        VerificationError: the bytes aren't such JSON. `error` names a subclass to raise instead.
    """
    try:
        return strict.read(data)
    except VerificationError as failure:
        raise _as(error, failure) from None


def loads_object(
    data: bytes, *, error: type[VerificationError] = VerificationError
) -> dict[str, JSON]:
    """Read a JSON object, as strictly as `loads`.

    Raises:
        VerificationError: the bytes aren't such JSON, or no object. `error` names a subclass to raise instead.
    """
    try:
        return strict.read_object(data)
    except VerificationError as failure:
        raise _as(error, failure) from None


class Parsed(NamedTuple):
    """A token taken apart; `head` is the header as it came. Nothing in it counts before `verify` took it."""

    head: str
    header: Mapping[str, JSON]
    payload: bytes
    signing_input: bytes
    signature: bytes

    def __repr__(self) -> str:
        return "<Parsed token>"


def unverified(
    compact: str,
    *,
    max_header: int | None = None,
    max_token: int = MAX_TOKEN,
    error: type[VerificationError] = VerificationError,
) -> Parsed:
    """Take a compact JWS apart without checking its signature: to find out whose keys to pass to `verify`.

    Limits and header rules are those of `verify`, which takes the answer in place of the token, so that nothing is
    parsed twice. `max_token` is for what isn't a token of one call, such as a signed list.

    Raises:
        VerificationError: the token can't be one that `verify` accepts. `error` names a subclass to raise instead.
    """
    try:
        return _parsed(compact, max_header, max_token)
    except VerificationError as failure:
        raise _as(error, failure) from None


def verify(
    compact: str | Parsed,
    keys: Sequence[JWK],
    *,
    algorithms: Collection[str],
    typ: str | None = None,
    max_header: int | None = None,
    error: type[VerificationError] = VerificationError,
) -> tuple[Mapping[str, JSON], bytes]:
    """Check a compact JWS (RFC 7515, RFC 8725) and return its header and the payload's bytes.

    A header with `kid` is checked with the keys of exactly that `kid`, one without with any that fits. `typ` is compared
    exactly; only `at+jwt` has a second spelling (RFC 9068 §4). `EdDSA` means Ed25519, and counts unless the key's `alg`
    says `Ed25519`. High s values of ECDSA are accepted, as RFC 7518 has no rule against them: a token has more than one
    valid signature, so its identity is what is signed.

    Raises:
        VerificationError: a rule was broken; `code` says which. `error` names a subclass to raise instead.
    """
    try:
        token = compact if isinstance(compact, Parsed) else _parsed(compact, max_header, MAX_TOKEN)
        _fitting(token.header, keys, algorithms, typ).prepared(token).check()
    except VerificationError as failure:
        raise _as(error, failure) from None
    return token.header, token.payload


class Fitting(NamedTuple):
    """The keys that fit a header: those that may check what comes under it."""

    keys: tuple[public_keys.Checker, ...]

    def prepared(self, token: Parsed) -> Prepared:
        """The check of a token with that very header."""
        return Prepared(tuple([key(token.signature, token.signing_input) for key in self.keys]))


class Prepared(NamedTuple):
    """The check of one token's signature, by keys that fit; it can be made as often as that is asked."""

    checks: tuple[public_keys.Check, ...]

    def check(self, *, error: type[VerificationError] = VerificationError) -> None:
        """Pass where one of the keys signed it.

        Raises:
            VerificationError: `bad_signature`. `error` names a subclass to raise instead.
        """
        for check in self.checks:
            if public_keys.holds(check):
                return
        raise error("bad_signature", "the signature isn't that of the key it should be")

    def __repr__(self) -> str:
        return "<Prepared token>"


def fitting(
    head: str,
    keys: Sequence[JWK],
    *,
    algorithms: Collection[str],
    typ: str | None = None,
    error: type[VerificationError] = VerificationError,
) -> Fitting:
    """All of `verify` but the signature itself: for tokens that are checked again, and headers that come again.

    `head` is a header as `unverified` gave it.

    Raises:
        VerificationError: a rule was broken; `code` says which. `error` names a subclass to raise instead.
    """
    try:
        return _fitting(read_header(head), keys, algorithms, typ)
    except VerificationError as failure:
        raise _as(error, failure) from None


def _fitting(
    members: Mapping[str, JSON], keys: Sequence[JWK], algorithms: Collection[str], typ: str | None
) -> Fitting:
    alg = _checked_alg(members, algorithms, typ)
    named = public_keys.candidates(keys, alg, members.get("kid"))
    return Fitting(tuple([public_keys.checker(alg, jwk) for jwk in named]))


def header(alg: str, *, typ: str, kid: str | None = None, jwk: JWK | None = None) -> str:
    """An encoded JOSE header, for `SigningKey.compact`. It names the signer's key by `kid`, or carries it as `jwk`."""
    members: dict[str, object] = {"typ": typ, "alg": alg}
    if kid is not None:
        members["kid"] = kid
    if jwk is not None:
        public_keys.refuse_private(jwk)
        members["jwk"] = dict(jwk)
    return b64url(orjson.dumps(members))


@overload
def numeric_date(
    claims: Mapping[str, JSON],
    name: str,
    *,
    error: type[VerificationError] = ...,
    required: Literal[True] = ...,
) -> float: ...
@overload
def numeric_date(
    claims: Mapping[str, JSON],
    name: str,
    *,
    error: type[VerificationError] = ...,
    required: Literal[False],
) -> float | None: ...
def numeric_date(
    claims: Mapping[str, JSON],
    name: str,
    *,
    error: type[VerificationError] = VerificationError,
    required: bool = True,
) -> float | None:
    """A NumericDate claim as it stands, in Unix seconds: an integer or a fraction (RFC 7519 §2), up to the year 9999.

    Raises:
        VerificationError: `missing_claim` or `malformed_claim`. `error` names a subclass to raise instead.
    """
    if name not in claims:
        if required:
            raise error("missing_claim", f"there is no {name}")
        return None
    value = claims[name]
    # exact types, since a bool is an int; a NaN fails any comparison
    if (type(value) is int or type(value) is float) and 0 <= value <= _LAST_SECOND:
        return value
    raise error("malformed_claim", f"{name} is no time")


_LAST_SECOND: Final = 253402300799
"""9999-12-31T23:59:59Z: beyond it a `datetime` would raise what no caller expects."""


def check_lifetime(
    claims: Mapping[str, JSON],
    *,
    now: float,
    skew: float,
    max_lifetime: float | None,
    error: type[VerificationError] = VerificationError,
) -> float:
    """Check `exp`, `nbf` and `iat` against the clock, and return `exp`. Only here does `skew` count, once at either end.

    `max_lifetime` is how many seconds `exp` may lie after `iat`, which is then required; None leaves that to the issuer.

    Raises:
        VerificationError: `expired`, `not_yet_valid`, `lifetime_too_long`, or what `numeric_date` raises.
    """
    expires = numeric_date(claims, "exp", error=error)
    begins = numeric_date(claims, "nbf", error=error, required=False)
    issued = numeric_date(claims, "iat", error=error, required=False)
    if now - skew >= expires:
        raise error("expired", "it has expired")
    if max(begins or 0, issued or 0) > now + skew:
        raise error("not_yet_valid", "it isn't valid yet")
    if issued is not None and expires <= issued:
        raise error("malformed_claim", "exp isn't after iat")
    if (
        max_lifetime is not None
        and expires - numeric_date(claims, "iat", error=error) > max_lifetime
    ):
        raise error("lifetime_too_long", f"it lives longer than {max_lifetime} s")
    return expires


def _as(error: type[VerificationError], failure: VerificationError) -> VerificationError:
    if isinstance(failure, error):
        return failure
    return error(failure.code, str(failure), remedy=failure.remedy)


def _parsed(compact: str, max_header: int | None, max_token: int) -> Parsed:
    if type(compact) is not str or not compact.isascii():
        raise VerificationError("malformed_token", "it is no compact JWS")
    if len(compact) > max_token:
        raise VerificationError("token_too_large", f"a token is longer than {max_token} bytes")
    head, _, rest = compact.partition(".")
    body, _, signature = rest.partition(".")
    if not head or not body or not signature or "." in signature:
        raise VerificationError("malformed_token", "it is no compact JWS")
    if max_header is not None and len(head) * 3 // 4 > max_header:
        raise VerificationError("header_too_large", f"a header is longer than {max_header} bytes")
    members = read_header(head)
    signing_input = compact[: len(head) + 1 + len(body)].encode("ascii")
    return Parsed(head, members, unb64url(body), signing_input, unb64url(signature))


def read_header(head: str) -> Mapping[str, JSON]:
    """The members of an encoded header, for reading alone.

    Raises:
        VerificationError: it is no JOSE header, or one that `verify` wouldn't take from anybody.
    """
    # A signer's is the same with everything that it signs, and small; whatever else somebody sends isn't kept.
    return _kept_header(head) if len(head) * 3 // 4 <= MAX_HEADER else _header(head)


def _header(head: str) -> Mapping[str, JSON]:
    members = strict.read_object(unb64url(head))
    if not _REFUSED_MEMBERS.isdisjoint(members):
        raise VerificationError("header_refused", "its header asks for what isn't done here")
    if not isinstance(members.get("kid", ""), str):
        raise VerificationError("malformed_header", "its kid is no string")
    jwk = members.get("jwk")
    if isinstance(jwk, dict):
        public_keys.refuse_private(jwk)
    return MappingProxyType(members)


_kept_header: Final = lru_cache(256)(_header)


# No extension is understood, so that any `crit` is refused, an empty one too (RFC 7515 §4.1.11). `b64` changes what is
# signed (RFC 7797); `zip` and `enc` belong to encryption.
_REFUSED_MEMBERS: Final = frozenset({"crit", "b64", "zip", "enc"})


def _checked_alg(members: Mapping[str, JSON], algorithms: Collection[str], typ: str | None) -> str:
    if typ is not None and members.get("typ") not in _SPELLINGS.get(typ, (typ,)):
        raise VerificationError("wrong_typ", f"it isn't of type {typ}")
    for name, value in members.items():
        if name in _KINDS and type(value) is not _KINDS[name]:
            raise VerificationError("malformed_header", f"its {name} is of another type")
    alg = members.get("alg")
    if not isinstance(alg, str) or alg not in algorithms or alg not in ALGORITHMS:
        raise VerificationError("alg_not_allowed", "its signature algorithm isn't allowed here")
    return alg


_SPELLINGS: Final = {"at+jwt": ("at+jwt", "application/at+jwt")}

_KINDS: Final[Mapping[str, type]] = {
    "jwk": dict,
    "x5c": list,
    **dict.fromkeys(("jku", "x5u", "x5t", "x5t#S256", "typ", "cty"), str),
}
"""The members of RFC 7515 §4.1 apart from `kid`, used here or not: what other readers refuse isn't taken."""
