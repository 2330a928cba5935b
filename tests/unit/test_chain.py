# SPDX-License-Identifier: Apache-2.0
"""What makes grants a chain, rule by rule. Each chain here is signed by the right keys and has one thing wrong with it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_identity import jose
from agent_identity.delegation.carriers import join_chain, split_chain
from agent_identity.delegation.chain import Anchor, holder_key, verify_chain
from agent_identity.delegation.claims import Claims
from agent_identity.delegation.details import TOOL_DETAILS, Details, details_from
from agent_identity.delegation.grant import Grant, mint_child, mint_root, read_grant
from agent_identity.errors import ConfigurationError, InvalidAssertionError, VerificationError
from agent_identity.keys.signing import SigningKey
from agent_identity.values import LOCAL, b64url

NOW = 1_795_518_000
ISSUER = "https://authority.example"
BILLING = "https://billing.example"
MAIL = "https://mail.example"
KEYS = [SigningKey.generate() for _ in range(10)]
"""The anchor's, then that of each agent."""

ANCHOR = Anchor(
    ISSUER, ({**KEYS[0].public_jwk, "kid": "k1"},), evidence="issuer", subjects=frozenset()
)


def agent(depth: int) -> str:
    return f"urn:agent-identity:agent:a{depth}"


def _root() -> dict[str, Any]:
    return {
        "iss": ISSUER,
        "sub": "alice",
        "sub_iss": ISSUER,
        "sub_profile": "user",
        "act": {
            "iss": ISSUER,
            "sub": agent(0),
            "sub_profile": "ai_agent",
            "instance": KEYS[1].thumbprint,
        },
        "cnf": {"jkt": KEYS[1].thumbprint},
        "aud": [BILLING, MAIL, LOCAL],
        "scope": "invoices:read journal:write",
        "purpose": "close the books",
        "txn": "ses_1",
        "iat": NOW,
        "nbf": NOW,
        "exp": NOW + 900,
        "jti": "grant_0",
        "del_depth": 0,
        "del_max_depth": 7,
        "evidence": "issuer",
    }


def _below(parent: dict[str, Any], compact: str, depth: int) -> dict[str, Any]:
    jkt = KEYS[depth + 1].thumbprint
    act = {"iss": agent(depth - 1), "sub": agent(depth), "sub_profile": "ai_agent", "instance": jkt}
    child = {
        **parent,
        "iss": agent(depth - 1),
        "act": act | {"act": parent["act"]},
        "cnf": {"jkt": jkt},
        "jti": f"grant_{depth}",
        "del_depth": depth,
        "par_hash": b64url(hashlib.sha256(compact.rpartition(".")[0].encode()).digest()),
    }
    child.pop("evidence", None)
    return child


def signed(key: SigningKey, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A compact JWS; what is given as None is left out."""
    head, body = (
        json.dumps({name: value for name, value in part.items() if value is not None}).encode()
        for part in (header, claims)
    )
    return key.compact(b64url(head), body)


def chain(
    hops: int = 3,
    change: dict[int, dict[str, Any]] | None = None,
    *,
    header: dict[int, dict[str, Any]] | None = None,
    key: dict[int, SigningKey] | None = None,
) -> list[str]:
    """A chain, newest first. `change` says per depth which claims are other; all hops below follow the changed one."""
    compacts: list[str] = []
    claims: dict[str, Any] = {}
    for depth in range(hops):
        claims = _below(claims, compacts[-1], depth) if compacts else _root()
        claims |= (change or {}).get(depth, {})
        signer = (key or {}).get(depth, KEYS[depth])
        name = {"kid": "k1"} if depth == 0 else {"jwk": signer.public_jwk}
        head = {"typ": "agent-grant+jwt", "alg": signer.alg} | name
        compacts.append(signed(signer, head | (header or {}).get(depth, {}), claims))
    return compacts[::-1]


def check(compacts: list[str], anchor: Anchor = ANCHOR, **options: Any):
    return verify_chain(compacts, (anchor,), **({"now": NOW} | options))


def code(compacts: list[str], anchor: Anchor = ANCHOR, **options: Any) -> str:
    with pytest.raises(InvalidAssertionError) as refused:
        check(compacts, anchor, **options)
    return refused.value.code


def actor(depth: int, **other: Any) -> dict[str, Any]:
    """The `act` of a hop, as it should be but for `other`."""
    nested = {"act": actor(depth - 1)} if depth else {}
    good = {
        "iss": agent(depth - 1) if depth else ISSUER,
        "sub": agent(depth),
        "sub_profile": "ai_agent",
        "instance": KEYS[depth + 1].thumbprint,
    }
    return {name: value for name, value in (good | nested | other).items() if value is not None}


# -- what is good --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", range(1, 9))
def test_a_chain_of_up_to_eight_hops_is_read_newest_first(hops: int) -> None:
    grants = check(chain(hops))
    assert [grant.depth for grant in grants] == [*reversed(range(hops))]
    assert grants[0].agent == agent(hops - 1)
    assert grants[0].instance == KEYS[hops].thumbprint
    assert grants[-1].evidence == "issuer"


def minted_root(*, scopes: list[str], details: Details | None = None) -> Grant:
    return mint_root(
        KEYS[0],
        "k1",
        iss=ISSUER,
        principal_sub="alice",
        sub_iss=ISSUER,
        sub_profile="user",
        agent=agent(0),
        jkt=KEYS[1].thumbprint,
        aud=[BILLING],
        scopes=scopes,
        details=details,
        purpose="p",
        task=None,
        txn="ses_1",
        now=NOW,
        expires_at=NOW + 60,
        max_depth=1,
        evidence="issuer",
    )


def test_what_we_mint_is_a_chain() -> None:
    root = minted_root(scopes=["a", "b"])
    child = mint_child(
        KEYS[1],
        root,
        agent=agent(1),
        jkt=KEYS[2].thumbprint,
        aud=[BILLING],
        scopes=["a"],
        task="t",
        now=NOW + 1,
        expires_at=NOW + 3600,
    )
    leaf, _ = check([child.compact, root.compact], now=NOW + 1)
    assert (leaf.scopes, leaf.aud, leaf.task) == ({"a"}, {BILLING, LOCAL}, "t")
    assert leaf.exp == root.exp  # the parent's end wins


@pytest.mark.parametrize("details", [None, [{"type": TOOL_DETAILS, "tools": ["read"]}]])
def test_a_grant_as_we_mint_it_is_the_one_that_others_read(details: Any) -> None:
    """A grant that was minted here isn't parsed, so what it says has to be what its bytes say."""
    root = minted_root(
        scopes=["b", "a"], details=None if details is None else details_from(details)
    )
    child = mint_child(
        SigningKey.generate(),
        root,
        agent=agent(1),
        jkt="x" * 43,
        aud=["https://billing.example"],
        scopes=["a"],
        task="read \u00e9",
        now=NOW,
        expires_at=NOW + 60,
    )
    for minted in (root, child):
        read = read_grant(minted.compact)
        claims = [each.details and each.details.claim for each in (minted, read)]
        assert claims[0] == claims[1]
        assert replace(minted, details=None) == replace(read, details=None)


def test_a_grant_that_nobody_would_read_is_not_minted() -> None:
    with pytest.raises(InvalidAssertionError) as caught:
        minted_root(scopes=[f"scope:{number:05}" for number in range(2_000)])
    assert caught.value.code == "token_too_large"


def test_a_child_that_names_no_details_has_those_of_its_parent() -> None:
    details = details_from([{"type": TOOL_DETAILS, "tools": ["read"]}])
    root = minted_root(scopes=[], details=details)
    child = mint_child(
        KEYS[1],
        root,
        agent=agent(1),
        jkt=KEYS[2].thumbprint,
        aud=[BILLING],
        scopes=[],
        task=None,
        now=NOW,
        expires_at=NOW + 60,
    )
    leaf, _ = check([child.compact, root.compact], now=NOW)
    assert leaf.details is not None
    assert leaf.details.claim == details.claim


@pytest.mark.parametrize(
    ("claims", "is_within"),
    [
        ({}, True),
        ({"sub": "bot"}, True),
        ({"sub": "bot", "iss": "i"}, True),
        ({"sub": "other"}, False),
        ({"sub": "bot", "more": 1}, False),
    ],
)
def test_claims_are_within_those_that_say_each_of_them(claims, is_within) -> None:
    assert Claims(claims).is_within({"sub": "bot", "iss": "i"}) is is_within


@pytest.mark.parametrize("alg", ["Ed25519", "EdDSA"])
def test_an_ed25519_key_signs_a_hop_under_either_name(alg: str) -> None:
    held = SigningKey.generate("Ed25519")
    root = {"cnf": {"jkt": held.thumbprint}, "act": actor(0, instance=held.thumbprint)}
    assert check(chain(2, {0: root}, key={1: held}, header={1: {"alg": alg}}))


# -- caps ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def signature_checks(monkeypatch) -> list[object]:
    """Every signature that was checked."""
    from agent_identity.jose import public_keys

    checked: list[object] = []
    real = public_keys.is_valid
    monkeypatch.setattr(public_keys, "is_valid", lambda check: checked.append(check) or real(check))
    return checked


def test_B03_a_hop_costs_one_signature_check(signature_checks) -> None:
    check(chain(8))
    assert len(signature_checks) == 8


@pytest.mark.parametrize(
    ("compacts", "expected"),
    [
        ([], "chain_empty"),
        (chain(9, {0: {"del_max_depth": 9}}), "chain_too_deep"),
        (chain(3, {2: {"del_max_depth": 8}}), "depth_exceeded"),
        (chain(3, {0: {"del_max_depth": 1}}), "depth_exceeded"),
    ],
)
def test_B03_a_chain_that_is_too_deep_is_refused_before_any_signature(
    signature_checks, compacts, expected
) -> None:
    assert code(compacts) == expected
    assert signature_checks == []


def test_B20_a_chain_of_64_KiB_and_a_byte_is_refused_before_it_is_parsed(monkeypatch) -> None:
    monkeypatch.setattr("agent_identity.delegation.chain.read_signed", pytest.fail)
    assert code(["x" * 16_384] * 4 + ["x"]) == "chain_too_large"


def test_B20_a_chain_of_exactly_64_KiB_is_read() -> None:
    assert code(["x" * 16_384] * 4) == "malformed_token"


def test_a_grant_larger_than_16_KiB_is_refused() -> None:
    assert code(chain(1, {0: {"task": "x" * 13_000}})) == "token_too_large"


def test_a_grants_header_larger_than_1_KiB_is_refused() -> None:
    assert code(chain(1, header={0: {"kid": "k" * 1024}})) == "header_too_large"


# -- one hop -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"typ": "JWT"}, "wrong_typ"),
        ({"typ": "agent-assertion+jwt"}, "wrong_typ"),
        ({"typ": None}, "claim_missing"),
        ({"cty": "x"}, "claim_unknown"),
        ({"jku": "https://evil.example/jwks"}, "claim_unknown"),
        ({"x5c": ["MIIB"]}, "claim_unknown"),
        ({"crit": ["exp"]}, "header_refused"),
        ({"alg": "HS256"}, "alg_not_allowed"),
        ({"alg": "none"}, "alg_not_allowed"),
        ({"alg": "ES384"}, "alg_not_allowed"),
        ({"alg": "Ed25519"}, "key_mismatch"),
    ],
)
def test_a_grants_header_is_held_to_its_few_members(header, expected) -> None:
    assert code(chain(1, header={0: header})) == expected


@pytest.mark.parametrize("name", sorted(_root().keys() - {"scope", "evidence"}))
def test_a_grant_without_a_claim_it_needs_is_refused(name: str) -> None:
    assert code(chain(1, {0: {name: None}})) == "claim_missing"


@pytest.mark.parametrize(
    ("claim", "value"),
    [
        *((name, 1) for name in ("iss", "sub", "sub_iss", "sub_profile", "purpose", "txn", "jti")),
        *((name, "") for name in ("iss", "sub", "purpose", "task", "scope", "sub_token_hash")),
        *((name, "x") for name in ("act", "cnf", "aud", "iat", "nbf", "exp", "del_depth")),
        *(("exp", value) for value in (True, -1, 2**53 - 0.5, 1.5)),
        *(("aud", value) for value in ([BILLING, BILLING], [BILLING, 1], [""], {})),
        *(("scope", value) for value in ("a  b", " a", 'a"b', "a\\b", "a\tb", "ä", ["a"])),
        *((name, 5) for name in ("task", "par_hash", "evidence", "sub_token_hash")),
        ("del_max_depth", "3"),
        ("cnf", {"jkt": 1}),
        ("act", actor(0, iss=1)),
    ],
)
def test_a_claim_of_another_type_or_form_is_refused(claim, value) -> None:
    assert code(chain(1, {0: {claim: value}})) == "claim_malformed"


def test_an_integer_that_parsers_read_differently_is_refused() -> None:
    assert code(chain(1, {0: {"exp": 2**53}})) == "json_number"


@pytest.mark.parametrize(
    "change",
    [
        {"may_act": {"sub": "x"}},
        {"cnf": {"jkt": KEYS[1].thumbprint, "x5t#S256": "x"}},
        {"act": actor(0, role="admin")},
    ],
)
def test_B19_a_claim_without_a_rule_is_refused_and_never_skipped(change) -> None:
    assert code(chain(1, {0: change})) == "claim_unknown"


def test_a_name_that_comes_twice_in_a_grant_is_refused() -> None:
    body = json.dumps(_root())[:-1] + ',"scope":"everything"}'
    head = b64url(b'{"typ":"agent-grant+jwt","alg":"ES256","kid":"k1"}')
    assert code([KEYS[0].compact(head, body.encode())]) == "json_duplicate_name"


def test_only_an_ai_agent_holds_a_grant() -> None:
    assert code(chain(1, {0: {"act": actor(0, sub_profile="user")}})) == "actor_profile"


def test_the_actors_instance_is_the_bound_key() -> None:
    act = actor(0, instance=KEYS[2].thumbprint)
    assert code(chain(1, {0: {"act": act}})) == "instance_mismatch"


def test_evidence_of_an_unknown_kind_is_refused() -> None:
    assert code(chain(1, {0: {"evidence": "certain"}})) == "evidence_unknown"


@pytest.mark.parametrize(
    ("depth", "change"),
    [
        (0, {"evidence": None}),
        (0, {"par_hash": "x"}),
        (1, {"evidence": "asserted"}),
        (1, {"par_hash": None}),
        (1, {"sub_token_hash": "x"}),
    ],
)
def test_only_hop_0_has_evidence_and_no_parent(depth, change) -> None:
    assert code(chain(2, {depth: change})) == "hop_malformed"


def test_hop_0_may_say_which_token_there_was() -> None:
    assert check(chain(1, {0: {"sub_token_hash": "x"}}))


# -- how hops hang together ----------------------------------------------------------------------------------------------


def test_B04_a_hop_that_is_missing_is_missed() -> None:
    leaf, _, root = chain(3)
    assert code([leaf, root]) == "depth_mismatch"
    assert code(chain(3)[:2]) == "depth_mismatch"


def test_B04_hops_in_another_order_or_twice_are_refused() -> None:
    leaf, middle, root = chain(3)
    for wrong in ([middle, leaf, root], [root, middle, leaf], [leaf, middle, middle, root]):
        assert code(wrong) == "depth_mismatch"


@pytest.mark.parametrize("depth", [1, 3])
def test_B04_a_depth_that_is_not_its_place_is_refused(depth: int) -> None:
    assert code(chain(3, {2: {"del_depth": depth}})) == "depth_mismatch"


def test_B04_a_hop_from_another_valid_chain_is_refused() -> None:
    """The parent has everything alike but its `jti`; only `par_hash` tells."""
    leaf, middle, _ = chain(3)
    other = chain(1, {0: {"jti": "grant_other"}})[0]
    assert code([leaf, middle, other]) == "parent_mismatch"


def test_the_parents_hash_is_of_its_signing_input_so_another_signature_of_it_is_the_same_parent() -> (
    None
):
    leaf, _ = chain(2)
    again = chain(1)[0]
    assert check([leaf, again])


def test_B25_a_hop_is_issued_by_the_agent_above_it_and_by_nobody_else() -> None:
    for other in (ISSUER, agent(1), "https://authority.example/"):
        assert code(chain(2, {1: {"iss": other}})) == "issuer_mismatch"


def test_B25_a_hop_below_the_root_is_not_vouched_for_by_an_anchor() -> None:
    assert code(chain(2, {1: {"act": actor(1, iss=ISSUER)}})) == "actor_mismatch"


def test_B03_a_ceiling_never_grows() -> None:
    grown = chain(3, {0: {"del_max_depth": 5}, 1: {"del_max_depth": 3}, 2: {"del_max_depth": 4}})
    assert code(grown) == "depth_exceeded"


@pytest.mark.parametrize("claim", ["sub", "sub_iss", "sub_profile", "purpose", "txn"])
def test_B04_principal_purpose_and_transaction_are_the_roots(claim: str) -> None:
    for depth in (1, 2):
        assert code(chain(3, {depth: {claim: "another"}})) == "constant_changed"


@pytest.mark.parametrize(
    "act",
    [
        actor(1, act=None),
        actor(1, act=actor(0, sub="urn:agent-identity:agent:somebody")),
        actor(1, act=actor(0, instance="x")),
        actor(1, act=actor(0, act=actor(0))),
        actor(1, act="a0"),
    ],
)
def test_B07_act_nests_exactly_the_hops_that_are_signed(act) -> None:
    assert code(chain(2, {1: {"act": act}})) == "actor_mismatch"


@pytest.mark.parametrize("nested", [actor(0), {}, "x"])
def test_B07_hop_0_brings_no_actors_of_its_own(nested) -> None:
    assert code(chain(1, {0: {"act": actor(0, act=nested)}})) == "actor_mismatch"


def test_B07_a_null_actor_at_hop_0_is_one_too() -> None:
    claims = _root() | {"act": actor(0) | {"act": None}}
    head = {"typ": "agent-grant+jwt", "alg": "ES256", "kid": "k1"}
    assert code([signed(KEYS[0], head, claims)]) == "actor_mismatch"


def test_B26_the_first_actor_is_vouched_for_by_its_anchor_itself() -> None:
    act = actor(0, iss="https://partner.example")
    assert code(chain(1, {0: {"act": act}})) == "actor_mismatch"


# -- only narrower -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        "invoices:read journal:write invoices:pay",
        *("*", "invoices:*", "invoices", "Invoices:read", "invoices:read:all"),
    ],
)
def test_B01_a_hop_never_has_a_scope_that_the_one_above_lacks(scope: str) -> None:
    for depth in (1, 2):
        assert code(chain(3, {depth: {"scope": scope}})) == "scope_widened"


def test_B01_no_scope_means_none_and_not_all() -> None:
    assert check(chain(2, {1: {"scope": None}}))[0].scopes == frozenset()
    below_none = chain(2, {0: {"scope": None}, 1: {"scope": "invoices:read"}})
    assert code(below_none) == "scope_widened"


@pytest.mark.parametrize("further", ["https://files.example", f"{BILLING}/", f"{BILLING}/v1", "*"])
def test_B01_a_hop_never_reaches_further_than_the_one_above(further: str) -> None:
    assert code(chain(2, {1: {"aud": [BILLING, further]}})) == "audience_widened"


def test_B01_no_audience_means_nowhere() -> None:
    assert code(chain(3, {1: {"aud": []}, 2: {"aud": [BILLING]}})) == "audience_widened"


TOOL = {"type": "urn:agent-identity:tool", "tools": ["book"], "arguments": {"n": {"maximum": 5}}}


def test_B01_details_narrow_hop_by_hop() -> None:
    narrower = TOOL | {"arguments": {"n": {"maximum": 4}}}
    changes = {0: {"authorization_details": [TOOL]}, 1: {"authorization_details": [narrower]}}
    leaf = check(chain(3, changes))[0]
    assert leaf.details is not None
    assert leaf.details.claim == (narrower,)
    assert check(chain(2, {1: {"authorization_details": [TOOL]}}))[1].details is None


@pytest.mark.parametrize(
    "wider",
    [
        None,
        [{"type": "urn:agent-identity:tool"}],
        [TOOL, {"type": "urn:agent-identity:tool", "tools": ["cancel"]}],
        [TOOL | {"arguments": {"n": {"maximum": 6}}}],
        [TOOL | {"arguments": {"n": {"minimum": 1}}}],
        [TOOL | {"tools": ["book", "cancel"]}],
    ],
)
def test_B01_details_never_widen(wider: object) -> None:
    changes = {0: {"authorization_details": [TOOL]}, 2: {"authorization_details": wider}}
    assert code(chain(3, changes)) == "details_widened"


@pytest.mark.parametrize("change", [{"exp": NOW + 901}, {"nbf": NOW - 1}, {"iat": NOW - 1}])
def test_B02_a_hop_lives_within_the_life_of_the_one_above(change) -> None:
    for depth in (1, 2):
        assert code(chain(3, {depth: change})) == "lifetime_widened"


def test_B13_no_agent_acts_twice() -> None:
    assert code(chain(3, {2: {"act": actor(2, sub=agent(0))}})) == "actor_repeated"


def test_B13_no_key_acts_twice() -> None:
    jkt = KEYS[1].thumbprint
    change = {2: {"cnf": {"jkt": jkt}, "act": actor(2, instance=jkt)}}
    assert code(chain(3, change)) == "actor_repeated"


# -- time ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hops", [1, 8])
def test_B17_one_skew_is_allowed_for_the_whole_chain_and_not_a_second_more(hops: int) -> None:
    compacts = chain(hops, {0: {"exp": NOW + 100}})
    assert check(compacts, now=NOW + 129.9)
    assert code(compacts, now=NOW + 130) == "expired"
    assert check(compacts, now=NOW - 30)
    assert code(compacts, now=NOW - 30.1) == "not_yet_valid"


def test_B17_the_leaf_ends_its_chain() -> None:
    compacts = chain(2, {1: {"exp": NOW + 10}})
    assert code(compacts, now=NOW + 40) == "expired"


def test_a_hop_begins_when_it_says() -> None:
    compacts = chain(2, {1: {"nbf": NOW + 100}})
    assert code(compacts, now=NOW + 60) == "not_yet_valid"
    assert check(compacts, now=NOW + 70)


def test_a_hop_from_the_future_is_refused_wherever_it_stands() -> None:
    assert code(chain(2, {0: {"iat": NOW + 31}, 1: {"iat": NOW}})) == "not_yet_valid"


@pytest.mark.parametrize("exp", [NOW, NOW - 5])
def test_a_hop_that_ends_before_it_begins_is_refused_within_the_skew_too(exp: int) -> None:
    assert code(chain(1, {0: {"exp": exp}})) == "lifetime_empty"


# -- who is believed -----------------------------------------------------------------------------------------------------


def test_a_root_of_nobody_who_is_trusted_is_refused() -> None:
    assert code(chain(2), Anchor("https://other.example", ANCHOR.keys)) == "unknown_anchor"


def test_an_error_of_a_refused_anchor_says_where_trust_is_given() -> None:
    with pytest.raises(InvalidAssertionError) as refused:
        check(chain(1), Anchor(ISSUER, ANCHOR.keys))
    assert refused.value.code == "evidence_exceeded"
    assert refused.value.remedy is not None
    assert "TrustAnchor" in refused.value.remedy


@pytest.mark.parametrize(
    ("given", "claimed"), [("asserted", "agent"), ("asserted", "issuer"), ("agent", "issuer")]
)
def test_B06_an_anchor_gives_no_more_evidence_than_it_may(given, claimed) -> None:
    anchor = Anchor(ISSUER, ANCHOR.keys, evidence=given)
    assert code(chain(1, {0: {"evidence": claimed}}), anchor) == "evidence_exceeded"


def test_B26_an_anchor_of_which_nothing_is_said_may_only_assert() -> None:
    anchor = Anchor(ISSUER, ANCHOR.keys)
    assert code(chain(1, {0: {"evidence": "agent"}}), anchor) == "evidence_exceeded"
    assert check(chain(1, {0: {"evidence": "asserted"}}), anchor)


@pytest.mark.parametrize(
    ("asked", "claimed"), [("issuer", "agent"), ("issuer", "asserted"), ("agent", "asserted")]
)
def test_B06_less_evidence_than_is_asked_for_is_refused(asked, claimed) -> None:
    assert code(chain(2, {0: {"evidence": claimed}}), evidence=asked) == "evidence_too_low"


def test_B26_an_anchor_speaks_for_its_own_principals_and_those_named() -> None:
    foreign = chain(1, {0: {"sub_iss": "https://idp.example"}})
    assert code(foreign) == "subject_not_vouched"
    subjects = frozenset({"https://idp.example"})
    assert check(foreign, Anchor(ISSUER, ANCHOR.keys, "issuer", subjects))


def test_B26_a_trigger_is_declared_by_its_own_agent_alone() -> None:
    trigger = {"sub_profile": "trigger", "sub_iss": agent(0), "evidence": "agent"}
    assert check(chain(2, {0: trigger}))
    assert code(chain(1, {0: trigger | {"sub_iss": agent(1)}})) == "subject_not_vouched"
    assert code(chain(1, {0: trigger | {"sub_profile": "user"}})) == "subject_not_vouched"


@pytest.mark.parametrize("sub_iss", [agent(0), ISSUER])
def test_B26_a_trigger_is_evidence_agent_at_most_whatever_hop_0_says(sub_iss: str) -> None:
    trigger = {"sub_profile": "trigger", "sub_iss": sub_iss}
    for evidence in ("asserted", "agent"):
        assert check(chain(2, {0: trigger | {"evidence": evidence}}))
        assert code(chain(2, {0: trigger | {"evidence": "issuer"}}), evidence=evidence) == (
            "evidence_exceeded"
        )
    assert code(chain(2, {0: trigger | {"evidence": "agent"}}), evidence="issuer") == (
        "evidence_too_low"
    )


@pytest.mark.parametrize(
    "name", [ISSUER, "https://idp.example", "https://partner.example", "https://theirs.example"]
)
def test_B26_an_agent_with_an_issuers_name_declares_no_trigger(name: str) -> None:
    """`trigger:https://idp.example#alice` would read like that issuer's word about a principal of its own."""
    actor = {"iss": ISSUER, "sub": name, "sub_profile": "ai_agent", "instance": KEYS[1].thumbprint}
    trigger = {"sub_profile": "trigger", "evidence": "agent", "sub_iss": name, "act": actor}
    own = Anchor(ISSUER, ANCHOR.keys, "issuer", frozenset({"https://idp.example"}))
    partner = Anchor("https://partner.example", (), "issuer", frozenset({"https://theirs.example"}))
    for anchors in ((own, partner), (partner, own)):
        with pytest.raises(InvalidAssertionError) as refused:
            verify_chain(chain(1, {0: trigger}), anchors, now=NOW)
        assert refused.value.code == "agent_is_issuer"


def test_hop_0_is_signed_by_the_anchor() -> None:
    assert code(chain(2, key={0: KEYS[5]})) == "bad_signature"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"kid": None}, "key_missing"),
        ({"kid": None, "jwk": KEYS[0].public_jwk}, "key_missing"),
        ({"jwk": KEYS[0].public_jwk}, "key_missing"),
        ({"kid": "k2"}, "unknown_key"),
    ],
)
def test_hop_0_names_its_anchors_key_and_brings_none(header, expected) -> None:
    assert code(chain(1, header={0: header})) == expected


def test_an_anchors_key_without_kid_is_never_tried() -> None:
    nameless = Anchor(ISSUER, (KEYS[0].public_jwk,), evidence="issuer")
    assert code(chain(1), nameless) == "unknown_key"


def test_B06_a_hop_is_signed_by_the_key_that_its_parent_names() -> None:
    for depth in (1, 2):
        assert code(chain(3, key={depth: KEYS[8]})) == "key_mismatch"


def test_B06_naming_the_right_key_is_not_signing_with_it() -> None:
    stolen = {1: {"jwk": KEYS[1].public_jwk}}
    assert code(chain(2, key={1: KEYS[8]}, header=stolen)) == "bad_signature"


@pytest.mark.parametrize(
    ("jwk", "expected"),
    [
        (None, "key_missing"),
        ({}, "key_malformed"),
        ({"kty": "oct", "k": "AAAA"}, "key_private"),
        ({"kty": "EC", "crv": "P-256", "x": 1, "y": "y"}, "key_malformed"),
        (KEYS[1].public_jwk | {"d": "AAAA"}, "key_private"),
        (KEYS[1].public_jwk | {"use": "enc"}, "key_mismatch"),
        (KEYS[1].public_jwk | {"key_ops": ["sign"]}, "key_mismatch"),
    ],
)
def test_a_hop_carries_its_signers_public_key(jwk, expected) -> None:
    assert code(chain(2, header={1: {"jwk": jwk}})) == expected


def test_a_hop_below_the_root_is_not_looked_up_by_kid() -> None:
    assert code(chain(2, header={1: {"kid": "k1"}})) == "unknown_key"
    same = {"kid": "k1", "jwk": KEYS[1].public_jwk | {"kid": "k1"}}
    assert code(chain(2, header={1: same})) == "unknown_key"
    assert code(chain(2, key={1: KEYS[0]}, header={1: {"kid": "k1", "jwk": None}})) == "key_missing"


def test_a_holders_key_is_the_one_that_the_grant_is_bound_to() -> None:
    assert holder_key(KEYS[1].public_jwk, KEYS[1].thumbprint) == KEYS[1].public_jwk
    with pytest.raises(InvalidAssertionError, match="isn't the one that the grant above names"):
        holder_key(KEYS[2].public_jwk, KEYS[1].thumbprint)


# -- carriers and claims -------------------------------------------------------------------------------------------------


def test_a_chain_travels_as_one_header_leaf_first() -> None:
    compacts = chain(3)
    assert split_chain(join_chain(compacts)) == compacts
    assert split_chain("a ,\tb,c") == ["a", "b", "c"]
    assert split_chain("XaX, \t-b_") == ["XaX", "-b_"]


@pytest.mark.parametrize("value", ["", " ", "a,", ",a", "a,,b", "a, ,b"])
def test_a_chain_with_an_empty_member_is_refused(value: str) -> None:
    with pytest.raises(InvalidAssertionError) as refused:
        split_chain(value)
    assert refused.value.code == "chain_malformed"


def test_B20_a_header_larger_than_64_KiB_is_refused_before_it_is_split() -> None:
    with pytest.raises(InvalidAssertionError) as refused:
        split_chain("," * (64 * 1024 + 1))
    assert refused.value.code == "chain_too_large"
    assert split_chain("x" * 64 * 1024)


def test_a_chain_too_long_for_a_header_is_the_callers_error_and_says_the_way_out() -> None:
    assert join_chain(["x" * 8000])
    with pytest.raises(ConfigurationError) as refused:
        join_chain(["x" * 8001])
    assert refused.value.code == "chain_too_long"
    assert refused.value.remedy is not None


def test_claims_raise_the_error_that_their_reader_names_and_never_quote_a_value() -> None:
    claims = Claims({"a": "secret-value", "b": {"c": 1}}, VerificationError)
    with pytest.raises(VerificationError) as refused:
        claims.integer("a")
    assert type(refused.value) is VerificationError
    assert "secret-value" not in str(refused.value)
    with pytest.raises(VerificationError) as refused:
        claims.nested("b").text("c")
    assert type(refused.value) is VerificationError


# -- properties ----------------------------------------------------------------------------------------------------------

GOOD = chain(3)


@settings(max_examples=300)
@given(
    member=st.integers(0, 2),
    place=st.floats(0, 1, exclude_max=True),
    other=st.integers(1, 255),
)
def test_B04_any_flipped_byte_of_any_member_is_refused(member, place, other) -> None:
    text = bytearray(GOOD[member].encode())
    text[int(place * len(text))] ^= other
    changed = [*GOOD]
    changed[member] = text.decode("latin-1")
    with pytest.raises(InvalidAssertionError):
        check(changed)


WORDS = st.text("abcdefghij:/.", min_size=1, max_size=12)
WIDENINGS = st.one_of(
    st.tuples(st.just("scope"), WORDS.map(lambda word: f"invoices:read {word}")),
    st.tuples(st.just("aud"), WORDS.map(lambda word: [BILLING, word])),
    st.tuples(st.just("exp"), st.integers(NOW + 901, 2**53 - 1)),
    st.tuples(st.sampled_from(["nbf", "iat"]), st.integers(0, NOW - 1)),
    st.tuples(st.just("del_max_depth"), st.integers(8, 2**53 - 1)),
    st.tuples(st.just("del_depth"), st.integers(3, 2**53 - 1)),
    st.tuples(
        st.sampled_from(["iss", "sub", "sub_iss", "sub_profile", "purpose", "txn", "par_hash"]),
        WORDS,
    ),
    st.tuples(st.just("evidence"), st.sampled_from(["asserted", "agent", "issuer"])),
    st.tuples(st.just("cnf"), WORDS.map(lambda word: {"jkt": word})),
    st.tuples(
        st.just("act"), WORDS.map(lambda word: actor(1, act=actor(0, sub=f"urn:agent:{word}")))
    ),
    st.tuples(WORDS.map(lambda word: f"x_{word}"), WORDS),
)


@settings(max_examples=150)
@given(widening=WIDENINGS)
def test_B01_any_claim_that_widens_is_refused_although_the_right_key_signed_it(widening) -> None:
    claim, value = widening
    with pytest.raises(InvalidAssertionError):
        check(chain(3, {1: {claim: value}}))


FEW = st.sets(st.sampled_from(["a", "b", "c"]))
PLACES = st.sets(st.sampled_from([BILLING, MAIL, LOCAL]))
SPAN = st.tuples(st.integers(NOW - 3, NOW), st.integers(NOW + 10, NOW + 13))


@settings(max_examples=200)
@given(scopes=st.tuples(FEW, FEW), places=st.tuples(PLACES, PLACES), lives=st.tuples(SPAN, SPAN),
       ceilings=st.tuples(st.integers(1, 4), st.integers(1, 4)))  # fmt: skip
def test_B02_a_child_has_never_more_scope_audience_depth_or_life_than_its_parent(
    scopes, places, lives, ceilings
) -> None:
    def hop(which: int) -> dict[str, Any]:
        begins, ends = lives[which]
        return {
            "scope": " ".join(sorted(scopes[which])) or None,
            "aud": sorted(places[which]),
            "del_max_depth": ceilings[which],
            "iat": begins,
            "nbf": begins,
            "exp": ends,
        }

    is_narrower = (
        scopes[1] <= scopes[0]
        and places[1] <= places[0]
        and ceilings[1] <= ceilings[0]
        and lives[1][0] >= lives[0][0]
        and lives[1][1] <= lives[0][1]
    )
    compacts = chain(2, {0: hop(0), 1: hop(1)})
    if is_narrower:
        child, parent = check(compacts)
        assert child.scopes <= parent.scopes
    else:
        assert code(compacts) in {
            *("scope_widened", "audience_widened", "depth_exceeded", "lifetime_widened")
        }


def test_reading_a_grant_checks_no_signature_and_says_so() -> None:
    """`read_grant` is for those who were handed the grant by its issuer; nobody else may call it alone."""
    forged = chain(1, key={0: KEYS[9]})[0]
    assert read_grant(forged).kid == "k1"
    with pytest.raises(VerificationError):
        jose.verify(forged, ANCHOR.keys, algorithms={"ES256"})


# -- a grant alone -------------------------------------------------------------------------------------------------------


def test_A07_a_token_of_another_type_is_read_as_no_grant() -> None:
    for typ in ("at+jwt", "agent-assertion+jwt", "agent-grant+jwt "):
        with pytest.raises(InvalidAssertionError) as refused:
            read_grant(chain(1, header={0: {"typ": typ}})[0])
        assert refused.value.code == "wrong_typ"


def test_A12_a_grants_header_has_a_kilobyte_and_no_byte_more() -> None:
    room = 1024 - len(json.dumps({"typ": "agent-grant+jwt", "alg": "ES256", "kid": ""}))
    read_grant(chain(1, header={0: {"kid": "k" * room}})[0])
    with pytest.raises(InvalidAssertionError) as refused:
        read_grant(chain(1, header={0: {"kid": "k" * (room + 1)}})[0])
    assert refused.value.code == "header_too_large"


def test_a_grant_shows_neither_its_token_nor_its_key() -> None:
    leaf = read_grant(chain(2)[0])
    shown = repr(leaf)
    assert leaf.compact not in shown
    assert KEYS[1].public_jwk["x"] not in shown
    assert "'sub_profile': 'ai_agent'" not in shown


def test_an_id_of_a_grant_says_that_it_is_one() -> None:
    root = read_grant(chain(1)[0])
    child = mint_child(
        KEYS[1],
        root,
        agent=agent(1),
        jkt=KEYS[2].thumbprint,
        aud=[BILLING],
        scopes=[],
        task=None,
        now=NOW,
        expires_at=NOW + 60,
    )
    prefix, _, rest = child.jti.partition("_")
    assert (prefix, len(rest)) == ("grant", 32)


def test_every_character_of_a_scope_token_is_one_of_rfc_6749() -> None:
    for number in range(256):
        scope = f"a{chr(number)}"
        if 0x21 <= number <= 0x7E and scope[1] not in '"\\':
            assert Claims({"scope": scope}).scopes() == {scope}
        else:
            with pytest.raises(InvalidAssertionError, match="claim scope"):
                Claims({"scope": scope}).scopes()


def test_a_whole_number_ends_where_json_ends_to_be_exact() -> None:
    assert Claims({"iat": 2**53 - 1}).integer("iat") == 2**53 - 1
    assert Claims({"iat": 0}).integer("iat") == 0
    for number in (2**53, -1, True, 1.0):
        with pytest.raises(InvalidAssertionError, match="claim iat"):
            Claims({"iat": number}).integer("iat")


def test_a_chain_that_was_taken_is_read_once_and_checked_each_time(monkeypatch) -> None:
    compacts = chain(3)
    check(compacts)
    with monkeypatch.context() as reading:
        reading.setattr("agent_identity.delegation.chain.read_signed", pytest.fail)
        assert [grant.depth for grant in check(compacts)] == [2, 1, 0]
        assert code(compacts, now=NOW + 1000) == "expired"
        stranger = Anchor(ISSUER, ({**KEYS[9].public_jwk, "kid": "k1"},), evidence="issuer")
        assert code(compacts, stranger) == "bad_signature"


def test_a_key_that_changes_in_place_under_its_name_counts_at_once() -> None:
    compacts = chain(3)
    key = {**ANCHOR.keys[0]}
    anchor = Anchor(ISSUER, [key], evidence="issuer")
    check(compacts, anchor)
    key.update(KEYS[9].public_jwk)
    assert code(compacts, anchor) == "bad_signature"


def test_a_key_that_changes_within_a_member_counts_at_once_too() -> None:
    compacts = chain(3)
    key: dict[str, Any] = {**ANCHOR.keys[0], "key_ops": ["verify"]}
    anchor = Anchor(ISSUER, [key], evidence="issuer")
    check(compacts, anchor)
    key["key_ops"].remove("verify")
    assert code(compacts, anchor) == "key_mismatch"


def test_a_chain_whose_signatures_dont_hold_isnt_kept(monkeypatch) -> None:
    forged = chain(2, key={0: KEYS[9]})
    kept: dict[tuple[str, ...], object] = {}
    monkeypatch.setattr("agent_identity.delegation.chain._cache", kept)
    assert code(forged) == "bad_signature"
    assert kept == {}


CHAINS_OF_ONE = [chain(1, {0: {"jti": f"grant_{number}"}}) for number in range(5)]


def test_no_more_chains_are_kept_than_there_is_room_for(monkeypatch) -> None:
    kept: dict[tuple[str, ...], object] = {}
    monkeypatch.setattr("agent_identity.delegation.chain._cache", kept)
    monkeypatch.setattr("agent_identity.delegation.chain._KEPT", 3)
    sizes: list[int] = []
    for number in (0, 1, 0, 1, 2, 0, 3, 4):
        check(CHAINS_OF_ONE[number])
        sizes.append(len(kept))
    assert sizes == [1, 2, 2, 2, 3, 3, 1, 2]  # one that is kept already takes no room
