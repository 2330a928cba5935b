# SPDX-License-Identifier: Apache-2.0
"""A hand-over: what a verifier takes beside a good call, the second reader takes as a chain one hop below that very caller.

An input that begins with `t` is a header's value. Any other one is a recipe of the chain's target, for what is handed over, and
says whose call it goes with. What was taken opens for its leaf's key alone.
"""

from __future__ import annotations

import orjson
import reader
import runner
import target_chain
from target_chain import GOOD, ISSUER, JWKS, KEYS, NOW

with runner.instrumented():
    from agent_identity.delegation.carriers import split_chain
    from agent_identity.errors import AgentIdentityError, InvalidAssertionError
    from agent_identity.runtime.handover import read_handover
    from agent_identity.values import b64url
    from agent_identity.verify import (
        TrustAnchor,
        UnsafeNoReplayCheck,
        UnsafeNoRevocations,
        VerifiedCall,
        Verifier,
    )

AUDIENCE, TOOL = "https://b.example", "archive"
ANCHOR = TrustAnchor(
    ISSUER, jwks={"keys": JWKS}, revocations=UnsafeNoRevocations(), evidence="issuer"
)
VERIFIER = Verifier(
    [ANCHOR], audience=AUDIENCE, replay=UnsafeNoReplayCheck(), clock=lambda: float(NOW)
)


def asserted(members: list[str]) -> str:
    """A call with no arguments by whoever holds a chain."""
    leaf, key = reader.part(members[0], 1), KEYS[len(members)]
    header = {"typ": "agent-assertion+jwt", "alg": key.alg, "jwk": key.public_jwk}
    call = {"id": "call_1", "tool": TOOL, "args_hash": f"sha-256:{reader.sha256('{}')}"}
    claims = {name: leaf[name] for name in ("sub", "txn")} | {
        "iss": leaf["act"]["sub"],
        "aud": AUDIENCE,
        "grant_hash": reader.sha256(members[0]),
        "iat": NOW,
        "exp": NOW + 60,
        "jti": "call_1",
        "call": call | {"canon": "jcs"},
    }
    return key.compact(b64url(orjson.dumps(header)), orjson.dumps(claims))


CALLERS = [(members, asserted(members)) for members in GOOD]


def verified(caller: int, handed: list[str]) -> VerifiedCall:
    chain, assertion = CALLERS[caller]
    return VERIFIER.verify_call(assertion, chain, tool=TOOL, args={}, scopes=(), handover=handed)


def check_handed(caller: int, handed: list[str]) -> None:
    """Fail for what the second reader doesn't take beside that caller's call."""
    reader.check(handed, JWKS, now=NOW, issuer=ISSUER, most="issuer", least="issuer")
    chain, _ = CALLERS[caller]
    above, leaf = reader.part(chain[0], 1), reader.part(handed[0], 1)
    assert who_acts(handed[1:]) == who_acts(chain)
    assert all(leaf[name] == above[name] for name in reader.CONSTANT)


def who_acts(members: list[str]) -> list[tuple[str, str]]:
    hops = [reader.part(member, 1) for member in members]
    return [(hop["act"]["sub"], hop["cnf"]["jkt"]) for hop in hops]


def check_taken(call: VerifiedCall, handed: list[str]) -> None:
    """The recipient's key opens it, as it came, and the caller's doesn't."""
    jkt = reader.part(handed[0], 1)["cnf"]["jkt"]
    taken = read_handover(call, jkt=jkt, now=NOW)
    assert [grant.compact for grant in taken.grants] == handed
    assert taken.anchor_key in JWKS
    assert reader.part(handed[-1], 0)["kid"] == taken.anchor_key["kid"]
    try:
        read_handover(call, jkt=call.chain[0].instance, now=NOW)
    except InvalidAssertionError:
        return
    raise AssertionError("a caller takes over what it hands over")


def one(data: bytes) -> bool:
    is_good = False
    if data[:1] == b"t":
        caller, handed = 1, split_chain(data[1:].decode("utf-8", "surrogateescape"))
    else:
        recipe = target_chain.Recipe(data)
        handed = target_chain.made(recipe)
        caller = recipe.of((max(recipe.hops - 2, 0), *range(len(CALLERS))))
        is_good = not recipe.changes and recipe.details is None and caller == recipe.hops - 2
    if not handed:  # then nothing is
        return False
    try:
        call = verified(caller, handed)
    except AgentIdentityError as refused:
        if is_good:
            raise AssertionError("a good hand-over is refused") from refused
        raise
    check_handed(caller, handed)
    check_taken(call, handed)
    return True


def seeds() -> list[bytes]:
    texts = [b"t" + ", ".join(members).encode() for members in GOOD]
    return texts + [seed for seed in target_chain.seeds() if seed[:1] not in {b"t", b"d"}]


if __name__ == "__main__":
    runner.fuzz("handover", one, seeds(), [", ", ",", "eyJ", "."])
