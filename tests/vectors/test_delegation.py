# SPDX-License-Identifier: Apache-2.0
"""Our published grants and assertion, whose bytes never change: what another implementation checks itself with."""

from __future__ import annotations

import hashlib
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from joserfc import jws
from joserfc.jwk import JWKRegistry

from agent_identity import canonical
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.errors import VerificationError
from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, VerifiedCall, Verifier

PUBLISHED: dict[str, Any] = json.loads(
    Path(__file__).with_name("delegation.json").read_text(encoding="utf-8")
)
HOPS = range(len(PUBLISHED["chain"]))


def sha256(data: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def verified(case: dict[str, Any]) -> VerifiedCall:
    """The published request, with what a case names in place of the good."""
    said = PUBLISHED | case
    anchor = TrustAnchor(
        said["issuer"], jwks=said["jwks"], revocations=UnsafeNoRevocations(), evidence="issuer"
    )
    verifier = Verifier([anchor], audience=said["audience"], clock=lambda: said["now"])
    request = said["request"]
    headers = {
        "Agent-Assertion": said["assertion"],
        "Agent-Delegation": ", ".join(said["chain"]),
    }
    body = request["body"].encode()
    return verifier.verify_request(
        request["method"], request["url"], headers, body, scopes=said["scopes"]
    )


def signed_by(name: str, compact: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims, as joserfc reads them with that published key."""
    key = JWKRegistry.import_key(PUBLISHED["keys"][name]["public_jwk"])
    found = jws.deserialize_compact(compact, key, algorithms=["ES256", "Ed25519"])
    return found.headers(), json.loads(found.payload)


def test_our_verifier_takes_the_published_request() -> None:
    call = verified({})
    claims = PUBLISHED["assertion_claims"]
    assert call.principal.sub == claims["sub"]
    assert [actor.depth for actor in call.chain] == [2, 1, 0]
    assert (call.agent, call.call.id) == (claims["iss"], claims["call"]["id"])
    assert (call.scopes, call.evidence) == ({"journal:write"}, "issuer")
    assert (call.call.args_hash, call.token_verified) == (PUBLISHED["args_hash"], False)


@pytest.mark.parametrize("case", PUBLISHED["refused"], ids=lambda case: case["name"])
def test_our_verifier_refuses_each_of_the_wrong_ones_for_its_own_reason(case) -> None:
    with pytest.raises(VerificationError) as refused:
        verified(case)
    assert refused.value.code == case["code"]


def test_the_chain_alone_is_good_too() -> None:
    anchor = Anchor(PUBLISHED["issuer"], PUBLISHED["jwks"]["keys"], evidence="issuer")
    grants = verify_chain(PUBLISHED["chain"], (anchor,), now=PUBLISHED["now"])
    assert [grant.jti for grant in grants] == [hop["claims"]["jti"] for hop in PUBLISHED["hops"]]
    assert grants[0].hash() == PUBLISHED["grant_hash"]


@pytest.mark.parametrize("place", HOPS)
def test_joserfc_reads_the_same_hop_under_the_published_key(place: int) -> None:
    hop, compact = PUBLISHED["hops"][place], PUBLISHED["chain"][place]
    assert signed_by(hop["signer"], compact) == (hop["header"], hop["claims"])
    holder = JWKRegistry.import_key(PUBLISHED["keys"][hop["holder"]]["public_jwk"])
    assert hop["claims"]["cnf"]["jkt"] == holder.thumbprint()
    assert sha256(compact.rpartition(".")[0].encode()) == hop["hash_of_signing_input"]


@pytest.mark.parametrize("place", HOPS[:-1])
def test_a_child_names_its_parents_signing_input(place: int) -> None:
    child, parent = PUBLISHED["hops"][place : place + 2]
    assert child["claims"]["par_hash"] == parent["hash_of_signing_input"]


def test_joserfc_and_rfc8785_read_the_same_assertion() -> None:
    found = signed_by("agent-2", PUBLISHED["assertion"])
    assert found == (PUBLISHED["assertion_header"], PUBLISHED["assertion_claims"])
    claims, request = PUBLISHED["assertion_claims"], PUBLISHED["request"]
    assert claims["grant_hash"] == sha256(PUBLISHED["chain"][0].encode()) == PUBLISHED["grant_hash"]
    assert claims["htq"] == sha256(request["url"].partition("?")[2].encode())
    assert claims["content_digest"] == sha256(request["body"].encode())
    encoded = rfc8785.dumps(PUBLISHED["arguments"])
    assert encoded.decode() == PUBLISHED["canonical_arguments"]
    assert claims["call"]["args_hash"] == f"sha-256:{sha256(encoded)}"
    assert canonical.args_digest(PUBLISHED["arguments"]) == PUBLISHED["args_hash"]


@pytest.mark.parametrize("name", PUBLISHED["keys"])
def test_the_test_keys_are_those_that_everybody_can_work_out(name: str) -> None:
    """So that nobody takes them for somebody's."""
    key = PUBLISHED["keys"][name]
    secret = hashlib.sha256(f"agent_identity test key: {name}".encode()).digest()
    d = key["private_test_key"]["d"]
    assert urlsafe_b64decode(f"{d}=") == secret
    pair = JWKRegistry.import_key(key["public_jwk"] | {"d": d})
    header = {"alg": "Ed25519" if key["public_jwk"]["kty"] == "OKP" else "ES256"}
    compact = jws.serialize_compact(header, b"x", pair, algorithms=["ES256", "Ed25519"])
    public = JWKRegistry.import_key(key["public_jwk"])
    assert jws.deserialize_compact(compact, public, algorithms=["ES256", "Ed25519"]).payload == b"x"
    assert public.thumbprint() == key["thumbprint"]
