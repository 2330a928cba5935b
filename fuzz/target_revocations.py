# SPDX-License-Identifier: Apache-2.0
"""`Revocations`: what it takes, the second reader takes, and nothing but the newest list that it took counts.

An input that begins with `t` is a whole list, one with `s` is header, NUL and claims, to be signed by the right key. Any other
one is a recipe: lists one after the other at moments of a clock, each with changes before the right key signs it.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import atheris
import reader
import runner
from joserfc.errors import JoseError

with runner.instrumented():
    from agent_identity.errors import VerificationError
    from agent_identity.values import b64url
    from agent_identity.verify.revocations import Revocations, revocation_claims

import world

NOW, KEYS = world.NOW, world.KEYS
ISSUER = "https://authority.example"
JWKS = [{**KEYS[0].public_jwk, "kid": "k1"}, {**KEYS[2].public_jwk, "kid": "k2"}]
REFERENCES = ("user:alice", "user:https://idp.example#alice", "ses_1", "grant_1", "urn:a", "*", "")
AGES = (0, 1, -1, 29, 30, 31, -29, -30, -31, 600, 3569, 3600, 3629, 3630, 3631, 7200, -7200)
CLAIMS = ("iss", "iat", "exp", "seq", "revoked", "nbf", "other")
HEADER = ("typ", "alg", "kid", "jwk", "crit", "other")
VALUES = (None, True, 0, 1, -1, 1.5, "", "k1", "k2", "ES256", "agent-grant+jwt", ISSUER, [], {})
VALUES += (2**53 - 1, 2**53, 253402300799, 253402300800, 1e308, ["*"], [{}], [{"ref": "*"}])
VALUES += ([{"ref": "*", "at": -1}], [{"ref": "*", "at": NOW, "other": 1}], NOW, NOW + 0.5)


class Recipe:
    def __init__(self, data: bytes) -> None:
        self._said = atheris.FuzzedDataProvider(data)

    def upto(self, most: int) -> int:
        return self._said.ConsumeIntInRange(0, most)

    def of(self, values: Any) -> Any:
        return values[self.upto(len(values) - 1)]

    def time(self) -> int:
        return NOW + self.of(AGES)

    def claims(self) -> dict[str, Any]:
        revoked = [
            {"ref": self.of(REFERENCES[:-1]), "at": self.time()} for _ in range(self.upto(3))
        ]
        start = self.time()
        end = start + self.of((600, 3600, 86400, 1))
        return {"iss": ISSUER, "iat": start, "exp": end, "seq": self.upto(5), "revoked": revoked}


def signed(header: bytes, claims: bytes, key: int = 0) -> str:
    start = f"{b64url(header)}.{b64url(claims)}"
    return f"{start}.{b64url(KEYS[key].sign(start.encode()))}"


def made(recipe: Recipe) -> str:
    claims, kind = recipe.claims(), recipe.upto(11)
    key = recipe.of((0, 0, 2))
    header = {"typ": "agent-revocations+jwt", "alg": KEYS[key].alg, "kid": "k2" if key else "k1"}
    if kind == 11:
        claims[recipe.of(CLAIMS)] = copy.deepcopy(recipe.of(VALUES))
    elif kind == 10:
        del claims[recipe.of([*claims])]
    elif kind == 9:
        header[recipe.of(HEADER)] = recipe.of(VALUES)
    elif kind == 8:
        key = recipe.of((1, 2, 3, 0))
    elif kind == 7 and claims["revoked"]:
        recipe.of(claims["revoked"])[recipe.of(("ref", "at", "other"))] = recipe.of(VALUES)
    return signed(json.dumps(header).encode(), json.dumps(claims).encode(), key)


class Model:
    """What is known by the rules alone."""

    def __init__(self) -> None:
        self.seq = -1
        self.revoked: dict[str, int] = {}
        self.counts = range(0)

    def update(self, compact: str, now: int) -> bool | None:
        """None is a refusal."""
        try:
            seq, revoked, counts = reader.revoked(compact, JWKS, now=now, issuer=ISSUER)
        except (AssertionError, ArithmeticError, JoseError, LookupError, TypeError, ValueError):
            return None
        if seq <= self.seq:
            return False
        self.seq, self.revoked, self.counts = seq, revoked, counts
        return True

    def is_revoked(self, references: list[str], issued_at: float, now: int) -> bool | None:
        if now not in self.counts:
            return None
        return any(
            ref in self.revoked and self.revoked[ref] >= issued_at for ref in (*references, "*")
        )


def agreed(compacts: list[str], recipe: Recipe) -> bool:
    moment = [NOW]
    library, model = Revocations(ISSUER, JWKS, clock=lambda: moment[0]), Model()
    took, refusals = False, set()
    for compact in compacts:
        moment[0] = recipe.time()
        wanted = model.update(compact, moment[0])
        try:
            answer = library.update(compact)
        except VerificationError as refused:
            if wanted is not None:
                raise AssertionError("a good list is refused") from refused
        else:
            assert answer is wanted, "a list that is none, or an older one, is taken"
            took = True
        for _ in range(2):
            moment[0] += recipe.of((0, 1, 600, 3600, -600))
            references = [recipe.of(REFERENCES) for _ in range(recipe.upto(3))]
            issued_at = recipe.time()
            expected = model.is_revoked(references, issued_at, moment[0])
            try:
                revoked = library.is_revoked(references, issued_at)
            except VerificationError as refused:
                revoked = None
                refusals.add(refused.code)
            assert revoked is expected
    assert refusals <= {"revocations_missing", "revocations_stale"}
    return took


def one(data: bytes) -> bool:
    kind = data[:1]
    if kind in {b"t", b"s"}:
        compact = data[1:].decode("utf-8", "surrogateescape")
        if kind == b"s":
            header, _, claims = data[1:].partition(b"\0")
            compact = signed(header, claims)
        model, library = Model(), Revocations(ISSUER, JWKS, clock=lambda: NOW)
        took = library.update(compact)
        assert model.update(compact, NOW) is took
        return took
    recipe = Recipe(data)
    return agreed([made(recipe) for _ in range(1 + recipe.upto(3))], recipe)


def seeds() -> list[bytes]:
    header = b'{"typ":"agent-revocations+jwt","alg":"ES256","kid":"k1"}'
    claims = [
        revocation_claims(ISSUER, revoked, seq=seq, now=NOW, lifetime=3600)
        for seq, revoked in enumerate(({}, {"*": NOW}, {"user:alice": NOW - 1, "ses_1": NOW}))
    ]
    texts = [b"s" + header + b"\0" + said for said in claims]
    texts += [b"t" + signed(header, said).encode() for said in claims]
    recipes = [
        bytes([0, *(place * step % 251 for place in range(1, 60)), count])
        for step in range(1, 25)
        for count in range(4)
    ]
    return texts + recipes


if __name__ == "__main__":
    runner.fuzz("revocations", one, seeds(), [f'"{name}":' for name in (*CLAIMS, "ref", "at")])
