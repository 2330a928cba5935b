# SPDX-License-Identifier: Apache-2.0
"""`split_chain` and `verify_chain`: what they take, a second reader takes too, hop by hop.

An input that begins with `t` is a header's value, and nothing but what was published may be taken. Any other one is a
recipe: a good chain, with changes to claims, headers and keys before the right keys sign it, and to its members afterwards.
With `d` before it only authorization details are changed: then the second reader's refusals are the library's too.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from typing import Any

import atheris
import orjson
import reader
import runner
from joserfc.errors import JoseError

with runner.instrumented():
    from agent_identity.delegation.carriers import split_chain
    from agent_identity.delegation.chain import Anchor, verify_chain
    from agent_identity.errors import AgentIdentityError
    from agent_identity.values import LOCAL, b64url

import world

NOW, KEYS = world.NOW, world.KEYS
ISSUER = "https://authority.example"
PUBLISHED_ANCHOR = Anchor(
    world.PUBLISHED["issuer"], world.PUBLISHED["jwks"]["keys"], evidence="issuer"
)
JWKS = [{**KEYS[0].public_jwk, "kid": "k1"}, {**KEYS[10].public_jwk, "kid": "k2"}]
SWAPPED = [{**KEYS[10].public_jwk, "kid": "k1"}, {**KEYS[0].public_jwk, "kid": "k2"}]
KNOWN = {compact.rpartition(".")[0] for compact in world.compacts()}
CLAIMS = ("iss", "sub", "sub_iss", "sub_profile", "act", "cnf", "aud", "scope", "purpose", "task")
CLAIMS += ("txn", "iat", "nbf", "exp", "jti", "del_depth", "del_max_depth", "par_hash", "evidence")
CLAIMS += ("sub_token_hash", "authorization_details", "other")
ACTOR = ("iss", "sub", "sub_profile", "instance", "act", "other")
HEADER = ("typ", "alg", "kid", "jwk", "crit", "other")
AMOUNTS = (1, -1, 29, 30, 31, -29, -30, -31, 900, -900, 60, -60)
TEXTS = ("issuer", "agent", "asserted", "trigger", "user", "ai_agent", "*", "", " ", "a b", "a  b")
TEXTS += ("k1", "k2", "ES256", "EdDSA", "Ed25519", "none", "agent-grant+jwt", LOCAL, ISSUER)
ODD = (None, True, 0, 1, -1, 2**53, 1.5, [], {}, [""], ["a", "a"], [1], {"a": 1})


def agent(depth: int) -> str:
    return f"urn:agent-identity:agent:a{depth}"


def hop(above: dict[str, Any] | None, depth: int, compact: str) -> dict[str, Any]:
    jkt = KEYS[depth + 1].thumbprint
    who = ISSUER if above is None else agent(depth - 1)
    act = {"iss": who, "sub": agent(depth), "sub_profile": "ai_agent", "instance": jkt}
    own: dict[str, Any] = {"iss": who, "act": act, "cnf": {"jkt": jkt}, "jti": f"grant_{depth}"}
    if above is None:
        constant = {"sub": "alice", "sub_iss": ISSUER, "sub_profile": "user", "purpose": "p"}
        times = {"txn": "ses_1", "iat": NOW, "nbf": NOW, "exp": NOW + 900}
        reach = {"aud": ["https://b.example", LOCAL], "scope": "a b c", "del_max_depth": 7}
        return {**constant, **times, **reach, **own, "del_depth": 0, "evidence": "issuer"}
    passed = {name: value for name, value in above.items() if name != "evidence"}
    own["act"] = {**act, "act": above.get("act")}
    return {**passed, **own, "del_depth": depth, "par_hash": reader.sha256(start(compact))}


def start(compact: str) -> str:
    return compact.rpartition(".")[0]


class Recipe:
    """The choices that an input makes; one that is used up chooses the first of everything, and changes nothing."""

    def __init__(self, data: bytes) -> None:
        self._said = atheris.FuzzedDataProvider(data)
        self.hops = 1 + self.upto(7)
        self.changes = [(self.upto(9), self.upto(self.hops - 1)) for _ in range(self.upto(3))]
        self.details = self.of((None, 1, 2))

    def upto(self, most: int) -> int:
        return self._said.ConsumeIntInRange(0, most) if most > 0 else 0

    def of(self, values: Any) -> Any:
        return values[self.upto(len(values) - 1)]

    def text(self) -> str:
        return self._said.ConsumeUnicode(self.upto(12))

    def value(self, others: list[dict[str, Any]]) -> Any:
        kind = self.upto(5)
        if kind == 0 and others:
            return copy.deepcopy(self.of(others).get(self.of(CLAIMS)))
        if kind == 1:
            return self.of(ODD)
        if kind == 2:
            return agent(self.upto(9))
        if kind == 3:
            return KEYS[self.upto(10)].thumbprint
        return self.text() if kind == 4 else self.of(TEXTS)

    def objects(self, count: int) -> list[dict[str, Any]]:
        """That many objects of details, good ones for the most part."""
        return [self._object() for _ in range(count)]

    def _object(self) -> dict[str, Any]:
        said: dict[str, Any] = {"type": world.TOOL}
        for _ in range(self.upto(3)):
            self._change_object(said)
        return said

    def change_details(self, claims: dict[str, Any], others: list[dict[str, Any]]) -> None:
        """Narrow them, or widen them: by one member, one object, or altogether."""
        details, what = claims.get(reader.DETAILS), self.upto(7)
        if what <= 4 and isinstance(details, list) and details:
            self._change_object(self.of(details))
        elif what == 5 and isinstance(details, list):
            details.insert(self.upto(len(details)), self.objects(1)[0])
        elif what == 6 and isinstance(details, list) and details:
            del details[self.upto(len(details) - 1)]
        elif self.upto(3) == 3:
            claims.pop(reader.DETAILS, None)
        elif what == 7 and others and self.upto(3) == 3:
            claims[reader.DETAILS] = copy.deepcopy(self.of(others).get(reader.DETAILS))
        else:
            claims[reader.DETAILS] = self.objects(1 + self.upto(2))

    def _change_object(self, said: dict[str, Any]) -> None:
        what = self.upto(7)
        if what == 0:
            names = self.of((("tools", world.TOOLS), ("resources", world.RESOURCES)))
            said[names[0]] = [self.of(names[1]) for _ in range(1 + self.upto(1))]
        elif what == 1:
            said.pop(self.of(("tools", "resources", "arguments", "type")), None)
        elif what == 2 and self.upto(7) == 7:
            said[self.of(("type", "tools", "resources", "arguments", "other"))] = self.of(ODD)
        else:
            rules = said.setdefault("arguments", {})
            if isinstance(rules, dict):
                self._change_rules(rules)

    def _change_rules(self, rules: dict[str, Any]) -> None:
        name = self.of(world.ARGUMENTS)
        rule = rules.setdefault(name, {})
        if self.upto(7) == 7:
            del rules[name]
        elif isinstance(rule, dict):
            word = self.of([*world.WORDS])
            if word in rule and self.upto(3) == 3:
                del rule[word]
            else:
                rule[word] = copy.deepcopy(self.of(world.WORDS[word]))

    def change_members(self, members: list[str]) -> None:
        """What anybody on the way can do."""
        at, what = self.upto(len(members) - 1), self.upto(5)
        if what == 0:
            members.insert(self.upto(len(members)), members[at])
        elif what == 1:
            del members[at]
        elif what == 2:
            other = self.upto(len(members) - 1)
            members[at], members[other] = members[other], members[at]
        elif what == 3:
            members[at] = self.of(OTHERS)[0]
        elif what == 4:
            place = self.upto(len(members[at]))
            members[at] = members[at][:place] + self.text() + members[at][place + 1 :]
        else:
            members[:] = ", ".join(members).split(self.of([",", ", ", ".", " "]))

    def change_header(self, head: dict[str, Any], others: list[dict[str, Any]]) -> None:
        head[self.of(HEADER)] = self.value(others)
        if isinstance(head.get("jwk"), dict) and self.upto(1):  # a key of that very name
            head["jwk"] = {**head["jwk"], "kid": head.get("kid", "")}

    def change_claims(self, claims: dict[str, Any], others: list[dict[str, Any]]) -> None:
        """What a signer can do who doesn't keep to the rules."""
        what = self.upto(7)
        if what == 0:
            claims[self.of(CLAIMS)] = self.value(others)
        elif what == 1:
            claims.pop(self.of(CLAIMS), None)
        elif what == 2:
            self._change_number(claims, ("exp", "nbf", "iat"), self.of(AMOUNTS))
        elif what == 3:
            self._change_number(claims, ("del_depth", "del_max_depth"), self.of((1, -1, 7, -7)))
        elif what == 4 and isinstance(claims.get("act"), dict):
            claims["act"][self.of(ACTOR)] = self.value(others)
        elif what == 5:
            claims["scope"] = self.of(("a", "a b", "a b c", "a b c d", "A", "b a", "a:b", "*"))
        elif what == 6:
            more = self.of((["https://b.example"], [LOCAL], ["https://c.example"], []))
            claims["aud"] = [*more, *self.of(((), (LOCAL,), ("https://B.example",)))]
        else:
            jkt = KEYS[self.upto(10)].thumbprint
            claims["cnf"] = {"jkt": jkt}
            if isinstance(claims.get("act"), dict):
                claims["act"]["instance"] = jkt

    def _change_number(self, claims: dict[str, Any], names: tuple[str, ...], amount: int) -> None:
        name = self.of(names)
        value = claims.get(name)
        if isinstance(value, int):
            claims[name] = value + amount


class Detailed(Recipe):
    """Choices of details alone, some at each hop."""

    def __init__(self, data: bytes) -> None:
        self._said = atheris.FuzzedDataProvider(data)
        self.hops = 1 + self.upto(3)
        self.details = 1 + self.upto(2)
        self.changes = [
            (9, depth) for depth in range(1, self.hops) for _ in range(self.of((1, 0, 2)))
        ]


def made(recipe: Recipe) -> list[str]:
    members: list[str] = []
    hops: list[dict[str, Any]] = []
    for depth in range(recipe.hops):
        claims = copy.deepcopy(hop(hops[-1] if hops else None, depth, (members or [""])[-1]))
        if depth == 0 and recipe.details is not None:
            claims[reader.DETAILS] = recipe.objects(recipe.details)
        signer = KEYS[depth]
        head: dict[str, Any] = {"typ": "agent-grant+jwt", "alg": signer.alg}
        head |= {"jwk": signer.public_jwk} if depth else {"kid": "k1"}
        for kind in [kind for kind, at in recipe.changes if at == depth]:
            if kind <= 4:
                recipe.change_claims(claims, hops)
            elif kind == 5:
                recipe.change_header(head, hops)
            elif kind == 6:
                signer = recipe.of(KEYS)
                head |= {"alg": signer.alg} | ({"jwk": signer.public_jwk} if depth else {})
            elif kind == 9:
                recipe.change_details(claims, hops)
        with contextlib.suppress(TypeError, orjson.JSONEncodeError):  # else it stays as it was
            members.append(signer.compact(b64url(orjson.dumps(head)), orjson.dumps(claims)))
            hops.append(claims)
    members.reverse()
    for kind, _ in recipe.changes:
        if kind in (7, 8) and members:
            recipe.change_members(members)
    return members


OTHERS = [[compact] for compact in world.PUBLISHED["chain"]]
GOOD = [made(Recipe(bytes([0, hops]))) for hops in range(8)]
OTHERS += [[member] for member in GOOD[-1]]


def one(data: bytes) -> bool:
    if data[:1] == b"t":
        members = split_chain(data[1:].decode("utf-8", "surrogateescape"))
        grants = verify_chain(members, [PUBLISHED_ANCHOR], now=NOW)
        assert {start(member) for member in members} <= KNOWN
        reader.check(
            members,
            [*PUBLISHED_ANCHOR.keys],
            now=NOW,
            issuer=PUBLISHED_ANCHOR.issuer,
            most="issuer",
            least="asserted",
        )
        return bool(grants)
    if data[:1] == b"d":
        return judged(Detailed(data[1:]))
    recipe = Recipe(data)
    members = made(recipe)
    if not recipe.changes and recipe.details is None:
        verify_as_good(members)
    most, least = recipe.of(reader.EVIDENCE[::-1]), recipe.of(reader.EVIDENCE)
    now = NOW + recipe.of((0, *AMOUNTS))
    anchor = Anchor(ISSUER, JWKS, evidence=most)
    grants = verify_chain(members, [anchor], now=now, evidence=least)
    reader.check(members, JWKS, now=now, issuer=ISSUER, most=most, least=least)
    check_kept(recipe, members)
    claims = [reader.part(member, 1) for member in members]
    assert [grant.agent for grant in grants] == [said["act"]["sub"] for said in claims]
    assert [grant.exp for grant in grants] == [said["exp"] for said in claims]
    assert [{*grant.scopes} for grant in grants] == [
        {*said.get("scope", "").split()} for said in claims
    ]
    return True


def judged(recipe: Recipe) -> bool:
    """Both readers of details are of one mind, and a call that the leaf allows is one that every hop above allows."""
    members = made(recipe)
    hops = [reader.part(member, 1) for member in reversed(members)]
    good = all(reader.is_details(hop[reader.DETAILS]) for hop in hops if reader.DETAILS in hop)
    good = good and all(itertools.starmap(reader.is_covered, itertools.pairwise(hops)))
    try:
        grants = verify_chain(members, [Anchor(ISSUER, JWKS, evidence="issuer")], now=NOW)
    except AgentIdentityError as refused:
        if good:
            raise AssertionError("narrower details are refused") from refused
        return False
    assert good, "wider details are taken"
    for _ in range(4):
        tool, resource = recipe.of(world.TOOLS), recipe.of(world.RESOURCES)
        values = {name: recipe.of(world.SMALL) for name in world.ARGUMENTS if recipe.upto(3) < 3}
        allowed = [
            grant.details is None or grant.details.allows(tool, resource, values)
            for grant in reversed(grants)
        ]
        assert allowed == [reader.allows(hop, tool, resource, values) for hop in hops]
        assert allowed == sorted(allowed, reverse=True), "a hop allows more than the one above"
    return True


def check_kept(recipe: Recipe, members: list[str]) -> None:
    """The same chain again, which the library has read before: time, trust and keys count as they did the first time."""
    most, least = recipe.of(reader.EVIDENCE[::-1]), recipe.of(reader.EVIDENCE)
    now, jwks = NOW + recipe.of((0, *AMOUNTS, 10**6)), recipe.of((JWKS, JWKS[::-1], SWAPPED, []))
    issuer = recipe.of((ISSUER, ISSUER, "https://other.example"))
    good = True
    try:
        reader.check(members, jwks, now=now, issuer=issuer, most=most, least=least)
    except (AssertionError, ValueError, JoseError):
        good = False
    try:
        verify_chain(members, [Anchor(issuer, jwks, evidence=most)], now=now, evidence=least)
    except AgentIdentityError as refused:
        if good:
            raise AssertionError("a chain that is known is refused") from refused
    else:
        assert good, "taken because it was known"


def verify_as_good(members: list[str]) -> None:
    try:
        verify_chain(members, [Anchor(ISSUER, JWKS, evidence="issuer")], now=NOW)
    except AgentIdentityError as refused:
        raise AssertionError("a good chain is refused") from refused


def seeds() -> list[bytes]:
    chains = [
        world.PUBLISHED["chain"],
        *(case.get("chain", []) for case in world.PUBLISHED["refused"]),
    ]
    texts = [b"t" + ", ".join(chain).encode() for chain in chains if chain]
    # integers are taken from the end: hops first, then how many changes, then what each one is
    recipes = [
        bytes([place, *range(what), what, kind, 1, 2])
        for place in range(3)
        for what in range(8)
        for kind in range(8)
    ]
    recipes += [
        b"d" + bytes([*(place * step % 251 for place in range(1, 60)), count, hops])
        for step in range(1, 25)
        for count in range(3)
        for hops in range(4)
    ]
    return texts + recipes + [bytes([0, hops]) for hops in range(8)]


if __name__ == "__main__":
    runner.fuzz("chain", one, seeds(), [", ", ",", "eyJ", "."])
