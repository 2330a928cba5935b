# SPDX-License-Identifier: Apache-2.0
"""One hop of delegation: the claims of a grant, and how it is minted (DESIGN section 5).

Hop 0 is signed by a trust anchor and names its key by `kid`. Every later hop is signed by the agent above and carries that
agent's public key in its header, where it counts only if the parent's `cnf.jkt` names it. Signed bytes are kept as they
came: nothing is ever serialised again to be hashed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NotRequired, TypedDict, Unpack

import orjson

from agent_identity import jose
from agent_identity.delegation.claims import Claims
from agent_identity.delegation.details import read_details
from agent_identity.errors import InvalidAssertionError
from agent_identity.values import LOCAL, b64url, new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from agent_identity.delegation.details import Details
    from agent_identity.keys.signing import SigningKey
    from agent_identity.values import JSON

GRANT_TYPE: Final = "agent-grant+jwt"
MAX_HOPS: Final = 8
HEADER_LIMIT: Final = 1024
EVIDENCE: Final = ("asserted", "agent", "issuer")
"""The kinds of evidence for a principal, weakest first."""

_HEADER: Final = frozenset({"typ", "alg", "kid", "jwk"})
_CLAIMS: Final = frozenset(
    {
        *("iss", "sub", "sub_iss", "sub_profile", "act", "cnf", "aud", "scope", "purpose", "task"),
        *("txn", "iat", "nbf", "exp", "jti", "del_depth", "del_max_depth", "par_hash", "evidence"),
        *("sub_token_hash", "authorization_details"),
    }
)
_ACTOR: Final = frozenset({"iss", "sub", "sub_profile", "instance", "act"})
_CONFIRMATION: Final = frozenset({"jkt"})


@dataclass(frozen=True, slots=True)
class Grant:
    """One signed hop, read strictly. `compact` is what was signed, byte for byte; times are Unix seconds.

    `agent` (= `act.sub`) holds the grant with the key that `jkt` names; `vouched_by` (= `act.iss`) is who says so.
    """

    compact: str = field(repr=False)
    kid: str | None
    jwk: Mapping[str, JSON] | None = field(repr=False)
    iss: str
    sub: str
    sub_iss: str
    sub_profile: str
    act: Mapping[str, JSON] = field(repr=False)
    agent: str
    vouched_by: str
    jkt: str
    aud: frozenset[str]
    scopes: frozenset[str]
    details: Details | None
    purpose: str
    task: str | None
    txn: str
    iat: int
    nbf: int
    exp: int
    jti: str
    depth: int
    max_depth: int
    par_hash: str | None
    evidence: str | None

    @property
    def instance(self) -> str:
        """The agent instance that holds the grant: its key's thumbprint."""
        return self.jkt

    @property
    def issued_at(self) -> float:
        return self.iat

    @property
    def expires_at(self) -> float:
        return self.exp

    def hash(self) -> str:
        """The `grant_hash` of an assertion below this grant: over the whole compact form."""
        return _grant_hash(self.compact)


def hash_of(text: str) -> str:
    """SHA-256 of a text's ASCII bytes, base64url: `grant_hash` and `ath`."""
    return b64url(hashlib.sha256(text.encode("ascii")).digest())


@lru_cache(256)
def _grant_hash(compact: str) -> str:
    return hash_of(compact)


def signing_input_hash(compact: str) -> str:
    """The `par_hash` of a child: over the parent's signing input, since its payload could be encoded differently."""
    return hash_of(compact.rpartition(".")[0])


def read_grant(compact: str) -> Grant:
    """Read a grant's claims without its signing input; see `read_signed`."""
    return read_signed(compact)[0]


def read_signed(compact: str) -> tuple[Grant, jose.Parsed]:
    """Read a grant's claims, strictly and without checking its signature; `chain.verify_chain` does that.

    Raises:
        InvalidAssertionError: the token is malformed, of another type, or a claim has another type or is unknown.
    """
    token = jose.unverified(compact, max_header=HEADER_LIMIT, error=InvalidAssertionError)
    header = Claims(token.header)
    if header.text("typ") != GRANT_TYPE:
        raise InvalidAssertionError("wrong_typ", "a member of the chain isn't a grant")
    header.check_names(_HEADER)
    payload = jose.loads_object(token.payload, error=InvalidAssertionError)
    kid = header.optional_text("kid")
    jwk = {**header.mapping("jwk")} if header.has("jwk") else None
    return _grant(compact, kid, jwk, payload), token


def _grant(
    compact: str,
    kid: str | None,
    jwk: Mapping[str, JSON] | None,
    payload: Mapping[str, JSON],
) -> Grant:
    claims = Claims(payload)
    claims.check_names(_CLAIMS)
    act = claims.mapping("act")
    actor = Claims(act)
    actor.check_names(_ACTOR)
    if actor.text("sub_profile") != "ai_agent":
        raise InvalidAssertionError("actor_profile", "the actor of a grant isn't an ai_agent")
    confirmation = claims.nested("cnf")
    confirmation.check_names(_CONFIRMATION)
    jkt = confirmation.text("jkt")
    if actor.text("instance") != jkt:
        raise InvalidAssertionError("instance_mismatch", "act.instance isn't the bound key")
    evidence = claims.optional_text("evidence")
    if evidence is not None and evidence not in EVIDENCE:
        raise InvalidAssertionError("evidence_unknown", "a grant has an unknown kind of evidence")
    if claims.optional_text("sub_token_hash") is not None and evidence is None:
        raise InvalidAssertionError("hop_malformed", "only hop 0 has the hash of a token")
    return Grant(
        compact=compact,
        kid=kid,
        jwk=jwk,
        iss=claims.text("iss"),
        sub=claims.text("sub"),
        sub_iss=claims.text("sub_iss"),
        sub_profile=claims.text("sub_profile"),
        act=act,
        agent=actor.text("sub"),
        vouched_by=actor.text("iss"),
        jkt=jkt,
        aud=frozenset(claims.texts("aud")),
        scopes=claims.scopes(),
        details=read_details(payload["authorization_details"])
        if "authorization_details" in payload
        else None,
        purpose=claims.text("purpose"),
        task=claims.optional_text("task"),
        txn=claims.text("txn"),
        iat=claims.integer("iat"),
        nbf=claims.integer("nbf"),
        exp=claims.integer("exp"),
        jti=claims.text("jti"),
        depth=claims.integer("del_depth"),
        max_depth=claims.integer("del_max_depth"),
        par_hash=claims.optional_text("par_hash"),
        evidence=evidence,
    )


def _check_size(compact: str) -> str:
    """Refuse to mint what no verifier reads."""
    if len(compact) > jose.MAX_TOKEN:
        raise InvalidAssertionError(
            "token_too_large", f"a grant is longer than {jose.MAX_TOKEN} bytes"
        )
    return compact


class RootClaims(TypedDict):
    """What hop 0 says. `expires_at` is Unix seconds; `evidence` says how the principal was known: issuer, agent or asserted."""

    iss: str
    principal_sub: str
    sub_iss: str
    sub_profile: str
    agent: str
    jkt: str
    aud: Iterable[str]
    scopes: Iterable[str]
    details: NotRequired[Details | None]
    purpose: str
    task: str | None
    txn: str
    now: int
    expires_at: int
    max_depth: int
    evidence: str
    jti: NotRequired[str]


def root_signing_input(alg: str, kid: str, **claims: Unpack[RootClaims]) -> bytes:
    """The signing input of hop 0, for the key that `kid` names. `aud` always includes local tools."""
    return _signing_input(alg, kid, _root_claims(**claims))


def _signing_input(alg: str, kid: str, claims: dict[str, JSON]) -> bytes:
    header = jose.encode_header(alg, typ=GRANT_TYPE, kid=kid)
    return f"{header}.{b64url(orjson.dumps(claims))}".encode("ascii")


def _root_claims(
    *,
    iss: str,
    principal_sub: str,
    sub_iss: str,
    sub_profile: str,
    agent: str,
    jkt: str,
    aud: Iterable[str],
    scopes: Iterable[str],
    details: Details | None = None,
    purpose: str,
    task: str | None,
    txn: str,
    now: int,
    expires_at: int,
    max_depth: int,
    evidence: str,
    jti: str | None = None,
) -> dict[str, JSON]:
    claims: dict[str, JSON] = {
        "iss": iss,
        "sub": principal_sub,
        "sub_iss": sub_iss,
        "sub_profile": sub_profile,
        "act": {"iss": iss, "sub": agent, "sub_profile": "ai_agent", "instance": jkt},
        "del_depth": 0,
        "del_max_depth": max_depth,
        "evidence": evidence,
        "txn": txn,
    }
    hop = _hop(jkt, aud, scopes, details, purpose, task, now, expires_at)
    if jti is not None:
        hop["jti"] = jti
    return claims | hop


def mint_root(key: SigningKey, kid: str, **claims: Unpack[RootClaims]) -> Grant:
    """Mint hop 0 with a key in memory and its `kid`."""
    payload = _root_claims(**claims)
    compact = _check_size(key.complete(_signing_input(key.alg, kid, payload)))
    return _grant(compact, kid, None, payload)


def mint_child(
    key: SigningKey,
    parent: Grant,
    *,
    agent: str,
    jkt: str,
    aud: Iterable[str],
    scopes: Iterable[str],
    details: Details | None = None,
    task: str | None,
    now: int,
    expires_at: int,
) -> Grant:
    """Mint the hop below `parent`, with the key of `parent`'s agent.

    The caller has checked that the child only narrows; `chain.verify_chain` checks it again, as any verifier will.
    The parent's end wins over `expires_at`.
    """
    claims: dict[str, JSON] = {
        "iss": parent.agent,
        "sub": parent.sub,
        "sub_iss": parent.sub_iss,
        "sub_profile": parent.sub_profile,
        "act": {
            "iss": parent.agent,
            "sub": agent,
            "sub_profile": "ai_agent",
            "instance": jkt,
            "act": dict(parent.act),
        },
        "del_depth": parent.depth + 1,
        "del_max_depth": parent.max_depth,
        "par_hash": signing_input_hash(parent.compact),
        "txn": parent.txn,
    }
    header = jose.encode_header(key.alg, typ=GRANT_TYPE, jwk=key.public_jwk)
    start = max(now, parent.nbf)
    end = min(expires_at, parent.exp)
    hop = _hop(jkt, aud, scopes, details or parent.details, parent.purpose, task, start, end)
    payload = claims | hop
    compact = _check_size(key.compact(header, orjson.dumps(payload)))
    return _grant(compact, None, key.public_jwk, payload)


def _hop(
    jkt: str,
    aud: Iterable[str],
    scopes: Iterable[str],
    details: Details | None,
    purpose: str,
    task: str | None,
    now: int,
    expires_at: int,
) -> dict[str, JSON]:
    claims: dict[str, JSON] = {
        "cnf": {"jkt": jkt},
        "aud": [*sorted(set(aud) | {LOCAL})],
        "purpose": purpose,
        "iat": now,
        "nbf": now,
        "exp": expires_at,
        "jti": new_id("grant_"),
    }
    if scope := " ".join(sorted(scopes)):
        claims["scope"] = scope
    if details is not None:
        claims["authorization_details"] = [*details.claim]
    if task is not None:
        claims["task"] = task
    return claims
