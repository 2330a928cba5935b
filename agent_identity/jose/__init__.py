# SPDX-License-Identifier: Apache-2.0
"""Reads all JSON from outside, and checks every signature.

J1  Limits come first: size and nesting are checked on the bytes, before base64, JSON or a key is read.
J2  JSON has one reading: UTF-8, no repeated name, no NaN, no number or text that two parsers read differently.
J3  Trust comes from the caller, who passes the keys and the allowed algorithms. A header selects among them by `kid` and `alg`;
    its `jwk`, `jku`, `x5u` and `x5c` are never used, and nothing is fetched.
J4  A key is used only for its purpose: type, curve, `alg`, `use` and `key_ops` must all fit. Weak keys are refused.
J5  A signature is checked over the bytes as received, and these bytes are returned.

tests/adversarial/test_signatures.py has the tests of these rules.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

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
    "FittingKeys",
    "Parsed",
    "PreparedCheck",
    "check_lifetime",
    "encode_header",
    "fit_keys",
    "loads",
    "loads_object",
    "numeric_date",
    "read_header",
    "read_typ",
    "unverified",
    "verify",
]

MAX_TOKEN: Final = 16 * 1024
"""Characters of one token, grant or assertion."""

MAX_HEADER: Final = 1024
"""Bytes of the JOSE header of a grant, assertion or proof: their `max_header`."""


def loads(data: bytes, *, error: type[VerificationError] = VerificationError) -> JSON:
    """Read JSON from outside so strictly that all parsers read the same value.

    Numbers are integers within ±(2^53 - 1) or finite floats, of at most 32 characters. Nesting has at most 32 levels, and text
    has no lone surrogates, not even escaped ones.

    Raises:
        VerificationError: the bytes aren't such JSON. `error` names a subclass to raise instead.
    """
    try:
        return strict.read(data)
    except VerificationError as failure:
        raise _convert(error, failure) from None


def loads_object(
    data: bytes, *, error: type[VerificationError] = VerificationError
) -> dict[str, JSON]:
    """Read a JSON object, as strictly as `loads`.

    Raises:
        VerificationError: the bytes aren't such JSON, or not an object. `error` names a subclass to raise instead.
    """
    try:
        return strict.read_object(data)
    except VerificationError as failure:
        raise _convert(error, failure) from None


class Parsed(NamedTuple):
    """A parsed token. `head` is the header as received. Trust none of it before `verify` has checked it."""

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
    """Parse a compact JWS without checking its signature, to find out whose keys to pass to `verify`.

    Limits and header rules are those of `verify`, which takes the result in place of the token, so that nothing is
    parsed twice. `max_token` is for larger documents, such as a signed list.

    Raises:
        VerificationError: `verify` would refuse the token anyway. `error` names a subclass to raise instead.
    """
    try:
        return _parse(compact, max_header, max_token)
    except VerificationError as failure:
        raise _convert(error, failure) from None


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

    A token with a `kid` is checked with the keys of exactly that `kid`, a token without one with any key that fits. `typ` is
    compared exactly; only `at+jwt` has a second spelling (RFC 9068 §4). `EdDSA` means Ed25519, and is accepted unless the key's
    `alg` is `Ed25519`. High s values of ECDSA are accepted, since RFC 7518 has no rule against them: a token can have several
    valid signatures, so never identify it by its signature.

    Raises:
        VerificationError: a rule was broken; `code` says which. `error` names a subclass to raise instead.
    """
    try:
        token = compact if isinstance(compact, Parsed) else _parse(compact, max_header, MAX_TOKEN)
        _fit_keys(token.header, keys, algorithms, typ).prepare(token).check()
    except VerificationError as failure:
        raise _convert(error, failure) from None
    return token.header, token.payload


class FittingKeys(NamedTuple):
    """The keys that fit a header, loaded."""

    keys: tuple[public_keys.Checker, ...]

    def prepare(self, token: Parsed) -> PreparedCheck:
        """Prepare the check of a token with this header."""
        return PreparedCheck(
            tuple([key(token.signature, token.signing_input) for key in self.keys])
        )


class PreparedCheck(NamedTuple):
    """The check of one token's signature, which can be repeated."""

    checks: tuple[public_keys.Check, ...]

    def check(self, *, error: type[VerificationError] = VerificationError) -> None:
        """Check that one of the keys signed it.

        Raises:
            VerificationError: `bad_signature`. `error` names a subclass to raise instead.
        """
        for check in self.checks:
            if public_keys.is_valid(check):
                return
        raise error("bad_signature", "the signature doesn't match the key")

    def __repr__(self) -> str:
        return "<PreparedCheck>"


def fit_keys(
    head: str,
    keys: Sequence[JWK],
    *,
    algorithms: Collection[str],
    typ: str | None = None,
    error: type[VerificationError] = VerificationError,
) -> FittingKeys:
    """Do all of `verify` except the signature itself, for tokens and headers that are checked repeatedly.

    `head` is the `head` of a token from `unverified`.

    Raises:
        VerificationError: a rule was broken; `code` says which. `error` names a subclass to raise instead.
    """
    try:
        return _fit_keys(read_header(head), keys, algorithms, typ)
    except VerificationError as failure:
        raise _convert(error, failure) from None


def _fit_keys(
    members: Mapping[str, JSON], keys: Sequence[JWK], algorithms: Collection[str], typ: str | None
) -> FittingKeys:
    alg = _check_alg(members, algorithms, typ)
    named = public_keys.find_candidates(keys, alg, members.get("kid"))
    return FittingKeys(tuple([public_keys.load_checker(alg, jwk) for jwk in named]))


def encode_header(alg: str, *, typ: str, kid: str | None = None, jwk: JWK | None = None) -> str:
    """Encode a JOSE header for `SigningKey.compact`. It names the signer's key by `kid`, or carries it as `jwk`."""
    members: dict[str, object] = {"typ": typ, "alg": alg}
    if kid is not None:
        members["kid"] = kid
    if jwk is not None:
        public_keys.refuse_private(jwk)
        members["jwk"] = dict(jwk)
    return b64url(orjson.dumps(members))


def numeric_date(
    claims: Mapping[str, JSON], name: str, *, error: type[VerificationError] = VerificationError
) -> float:
    """Read a NumericDate claim: Unix seconds as an integer or a fraction (RFC 7519 §2), up to the year 9999.

    Raises:
        VerificationError: `missing_claim` or `malformed_claim`. `error` names a subclass to raise instead.
    """
    if name not in claims:
        raise error("missing_claim", f"the claim {name} is missing")
    value = claims[name]
    # exact types, since a bool is an int; a NaN fails any comparison
    if (type(value) is int or type(value) is float) and 0 <= value <= _LAST_SECOND:
        return value
    raise error("malformed_claim", f"the claim {name} is not a time")


_LAST_SECOND: Final = 253402300799
"""9999-12-31T23:59:59Z, the last second that a `datetime` can hold."""


def read_typ(header: Mapping[str, JSON]) -> str | None:
    """The `typ` of another issuer's token in lower case (RFC 7515 §4.1.9): empty where there is none, None where it isn't a string."""
    typ = header.get("typ", "")
    return typ.lower() if isinstance(typ, str) else None


def check_lifetime(
    claims: Mapping[str, JSON],
    *,
    now: float,
    skew: float,
    max_lifetime: float | None,
    error: type[VerificationError] = VerificationError,
) -> float:
    """Check `exp`, `nbf` and `iat` against the clock, and return `exp`. `skew` is allowed once at each end.

    `max_lifetime` is the maximum of `exp` minus `iat` in seconds; `iat` is then required. None means no maximum.

    Raises:
        VerificationError: `expired`, `not_yet_valid`, `lifetime_too_long`, or what `numeric_date` raises.
    """
    expires = numeric_date(claims, "exp", error=error)
    begins = numeric_date(claims, "nbf", error=error) if "nbf" in claims else 0
    issued = numeric_date(claims, "iat", error=error) if "iat" in claims else None
    if now - skew >= expires:
        raise error("expired", "the token has expired")
    if max(begins, issued or 0) > now + skew:
        raise error("not_yet_valid", "the token isn't valid yet")
    if issued is not None and expires <= issued:
        raise error("malformed_claim", "exp isn't after iat")
    if (
        max_lifetime is not None
        and expires - numeric_date(claims, "iat", error=error) > max_lifetime
    ):
        raise error("lifetime_too_long", f"the token's lifetime is longer than {max_lifetime} s")
    return expires


def _convert(error: type[VerificationError], failure: VerificationError) -> VerificationError:
    if isinstance(failure, error):
        return failure
    return error(failure.code, str(failure), remedy=failure.remedy)


def _parse(compact: str, max_header: int | None, max_token: int) -> Parsed:
    if type(compact) is not str or not compact.isascii():
        raise VerificationError("malformed_token", "the token is not a compact JWS")
    if len(compact) > max_token:
        raise VerificationError("token_too_large", f"a token is longer than {max_token} bytes")
    head, _, rest = compact.partition(".")
    body, _, signature = rest.partition(".")
    if not head or not body or not signature or "." in signature:
        raise VerificationError("malformed_token", "the token is not a compact JWS")
    if max_header is not None and len(head) * 3 // 4 > max_header:
        raise VerificationError("header_too_large", f"a header is longer than {max_header} bytes")
    members = read_header(head)
    signing_input = compact[: len(head) + 1 + len(body)].encode("ascii")
    return Parsed(head, members, unb64url(body), signing_input, unb64url(signature))


def read_header(head: str) -> Mapping[str, JSON]:
    """The members of an encoded header, read-only.

    Raises:
        VerificationError: it isn't a JOSE header, or it is one that `verify` always refuses.
    """
    # A signer uses the same small header for everything that it signs. Larger ones aren't cached.
    return _read_header_cached(head) if len(head) * 3 // 4 <= MAX_HEADER else _read_header(head)


def _read_header(head: str) -> Mapping[str, JSON]:
    members = strict.read_object(unb64url(head))
    if not _REFUSED_MEMBERS.isdisjoint(members):
        raise VerificationError(
            "header_refused", "the header has crit, b64, zip or enc, which are refused"
        )
    if not isinstance(members.get("kid", ""), str):
        raise VerificationError("malformed_header", "the header's kid is not a string")
    jwk = members.get("jwk")
    if isinstance(jwk, dict):
        public_keys.refuse_private(jwk)
    return MappingProxyType(members)


_read_header_cached: Final = lru_cache(256)(_read_header)


# No extension is supported, so any `crit` is refused, even an empty one (RFC 7515 §4.1.11). `b64` changes what is signed
# (RFC 7797); `zip` and `enc` belong to encryption.
_REFUSED_MEMBERS: Final = frozenset({"crit", "b64", "zip", "enc"})


def _check_alg(members: Mapping[str, JSON], algorithms: Collection[str], typ: str | None) -> str:
    if typ is not None and members.get("typ") not in _SPELLINGS.get(typ, (typ,)):
        raise VerificationError("wrong_typ", f"the token's typ is not {typ}")
    for name, value in members.items():
        if name in _KINDS and type(value) is not _KINDS[name]:
            raise VerificationError("malformed_header", f"the header's {name} has the wrong type")
    alg = members.get("alg")
    if not isinstance(alg, str) or alg not in algorithms or alg not in ALGORITHMS:
        raise VerificationError(
            "alg_not_allowed", "the token's signature algorithm isn't allowed here"
        )
    return alg


_SPELLINGS: Final = {"at+jwt": ("at+jwt", "application/at+jwt")}

_KINDS: Final[Mapping[str, type]] = {
    "jwk": dict,
    "x5c": list,
    **dict.fromkeys(("jku", "x5u", "x5t", "x5t#S256", "typ", "cty"), str),
}
"""The types of the members of RFC 7515 §4.1 apart from `kid`, unused ones too, since other readers check them."""
