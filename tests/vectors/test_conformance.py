# SPDX-License-Identifier: Apache-2.0
"""The conformance kit in `delegation/`: our verifier and an independent one say of each case what the kit says."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from jwt.utils import base64url_decode

from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.errors import RevokedError, VerificationError
from agent_identity.verify import Revocations, TrustAnchor, UnsafeNoRevocations, Verifier

from .generate import ABOUT, FOLDER, files
from .independent import RefusedError, judge

Case = dict[str, Any]


def written_out(value: Any) -> Any:
    """What the kit gives by a rule: a text that is repeated."""
    if isinstance(value, dict) and value.keys() == {"repeat", "times"}:
        return value["repeat"] * value["times"]
    if isinstance(value, dict):
        return {name: written_out(each) for name, each in value.items()}
    return [written_out(each) for each in value] if isinstance(value, list) else value


def read(path: Path) -> list[Case]:
    said = json.loads(path.read_text(encoding="utf-8"))
    return [written_out(said["defaults"] | case) for case in said["cases"]]


CASES = {case["id"]: case for path in sorted(FOLDER.glob("*ed*.json")) for case in read(path)}
ACCEPTED = [case for case in CASES.values() if case["expect"] == "accepted"]
REFUSED = [case for case in CASES.values() if case["expect"] != "accepted"]


def named(case: Case) -> str:
    return case["id"]


class Memory:
    """A replay store that a test can hand on."""

    not_before = 0

    def __init__(self) -> None:
        self.used: set[Any] = set()

    def remember(self, key: Any, until: float, /) -> bool:
        is_new = key not in self.used
        self.used.add(key)
        return is_new


def trust_anchor(said: Case, case: Case) -> TrustAnchor:
    given = said.get("revocations")
    known: Any = UnsafeNoRevocations()
    if given is not None:
        known = Revocations(
            said["issuer"],
            given["jwks"],
            max_age=given["max_age"],
            skew=case["skew"],
            clock=lambda: case["now"],
        )
        if given["list"] is not None:
            known.update(given["list"])
    return TrustAnchor(
        said["issuer"],
        jwks=said["jwks"],
        revocations=known,
        evidence=said["evidence"],
        subjects=said.get("subjects", ()),
    )


def ours(case: Case, memory: Memory | None = None) -> Case:
    """What our verifier says of a case, in the kit's words."""
    if case["door"] == "chain":
        anchors = [Anchor(a["issuer"], a["jwks"]["keys"], a["evidence"]) for a in case["anchors"]]
        grants = verify_chain(case["chain"], anchors, now=case["now"], evidence=case["evidence"])
        root, leaf = grants[-1], grants[0]
        return {
            "principal": f"{root.sub_profile}:{root.sub_iss}#{root.sub}",
            "evidence": root.evidence,
            "agents": [grant.agent for grant in grants],
            "scopes": sorted(leaf.scopes),
            "token_verified": False,
        }
    verifier = Verifier(
        [trust_anchor(each, case) for each in case["anchors"]],
        audience=case["audience"],
        replay=memory or Memory(),
        evidence=case["evidence"],
        allow=case["allow"],
        public_url=case.get("public_url"),
        skew=case["skew"],
        clock=lambda: case["now"],
    )
    if case["door"] == "call":
        found = verifier.verify_call(
            case["assertion"],
            case["chain"],
            tool=case["tool"],
            args=case["args"],
            scopes=case["scopes"],
            token=case.get("token"),
            handover=case.get("handover", ()),
        )
    else:
        seen = case["request"]
        body = None if seen["body"] is None else seen["body"].encode()
        headers = [(name, value) for name, value in seen["headers"]]
        found = verifier.verify_request(
            seen["method"], seen["url"], headers, body, scopes=case["scopes"]
        )
    return {
        "principal": f"{found.principal.profile}:{found.principal.iss}#{found.principal.sub}",
        "evidence": found.evidence,
        "agents": [actor.agent for actor in found.chain],
        "scopes": sorted(found.scopes),
        "token_verified": found.token_verified,
    }


def test_the_kit_is_whole() -> None:
    """Else an empty folder would pass."""
    assert len(ACCEPTED) >= 60
    assert len(REFUSED) >= 300
    assert {case["rule"] for case in REFUSED} == ABOUT.keys() - {"accepted"}
    listed = [case["id"] for path in FOLDER.glob("*ed*.json") for case in read(path)]
    assert len(listed) == len(CASES)


@pytest.mark.parametrize("case", ACCEPTED, ids=named)
def test_our_verifier_takes_what_is_accepted(case: Case) -> None:
    memory = Memory()
    for earlier in case.get("after", ()):
        ours(CASES[earlier], memory)
    assert ours(case, memory) == case["result"]


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_our_verifier_refuses_with_the_code_that_the_kit_says(case: Case) -> None:
    memory = Memory()
    for earlier in case.get("after", ()):
        ours(CASES[earlier], memory)
    with pytest.raises((VerificationError, RevokedError)) as refused:
        ours(case, memory)
    assert refused.value.code == case["expect"]["refused"]


@pytest.mark.parametrize("case", ACCEPTED, ids=named)
def test_the_independent_verifier_takes_what_is_accepted(case: Case) -> None:
    used: set[tuple[str, ...]] = set()
    for earlier in case.get("after", ()):
        judge(CASES[earlier], used)
    assert judge(case, used) == case["result"]


@pytest.mark.parametrize("case", REFUSED, ids=named)
def test_the_independent_verifier_refuses_by_the_rule_that_the_kit_says(case: Case) -> None:
    used: set[tuple[str, ...]] = set()
    for earlier in case.get("after", ()):
        judge(CASES[earlier], used)
    with pytest.raises(RefusedError) as refused:
        judge(case, used)
    assert refused.value.rule == case["rule"]


def compacts(case: Case) -> list[tuple[str, str]]:
    """What was signed in an accepted case, grants, assertion, proof, and the token of a known issuer."""
    if case["door"] == "request":
        sent = {name.lower(): value for name, value in case["request"]["headers"]}
        chains = [
            re.split(r"[ \t]*,[ \t]*", sent[name])
            for name in ("agent-delegation", "agent-handover")
            if name in sent
        ]
        loose = [sent[name] for name in ("agent-assertion", "dpop") if name in sent]
        token = sent.get("authorization", "").partition(" ")[2]
    else:
        chains = [case[name] for name in ("chain", "handover") if name in case]
        loose = [] if case["door"] == "chain" else [case["assertion"]]
        token = case.get("token", "")
    signed = [each for members in chains for each in members] + loose
    return [*signed, token] if is_known(token, case) else signed


def is_known(token: str, case: Case) -> bool:
    with suppress(jwt.DecodeError):
        claims = jwt.decode(token, options={"verify_signature": False})
        return any(anchor["issuer"] == claims["iss"] for anchor in case["anchors"])
    return False


@pytest.mark.parametrize("case", ACCEPTED, ids=named)
def test_pyjwt_finds_each_accepted_signature_good(case: Case) -> None:
    """A third implementation of JWS; keys by `kid` are the anchors', the others come along and were judged above."""
    known = [key for anchor in case["anchors"] for key in anchor["jwks"]["keys"]]
    signed = compacts(case)
    assert signed
    for compact in signed:
        header = jwt.get_unverified_header(compact)
        keys = (
            [header["jwk"]] if "jwk" in header else [k for k in known if k["kid"] == header["kid"]]
        )
        assert any(is_signed(compact, header["alg"], key) for key in keys), header


def is_signed(compact: str, alg: str, key: Case) -> bool:
    # It has the one name of the algorithm (RFC 8037) for both.
    algorithm = jwt.get_algorithm_by_name({"Ed25519": "EdDSA"}.get(alg, alg))
    members = {name: key[name] for name in ("kty", "crv", "x", "y") if name in key}
    text, _, signature = compact.rpartition(".")
    return algorithm.verify(text.encode(), algorithm.from_jwk(members), base64url_decode(signature))


def test_the_independent_verifier_shares_nothing_with_the_library() -> None:
    folder = Path(__file__).parent
    for name in ("independent.py", "minting.py", "cases_accepted.py", "cases_refused.py"):
        assert not re.search(
            r"^\s*(?:from|import) agent_identity", (folder / name).read_text(), re.MULTILINE
        )
    assert "minting" not in (folder / "independent.py").read_text()


def test_making_the_kit_again_gives_the_same_bytes() -> None:
    for name, text in files().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, name
