# SPDX-License-Identifier: Apache-2.0
"""The published JSON Schemas take what verifiers take, and refuse what they refuse for its shape alone."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from .independent import ASSERTION, ASSERTION_MAY, GRANT, GRANT_MAY
from .test_conformance import ACCEPTED, REFUSED

FOLDER = Path(__file__).parents[2] / "docs" / "reference" / "schemas"
SCHEMAS: dict[str, Any] = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text(encoding="utf-8"))
    for path in FOLDER.glob("*.schema.json")
}
REGISTRY: Registry = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()
)
TYPES = {
    "agent-grant+jwt": "grant",
    "agent-assertion+jwt": "assertion",
    "agent-revocations+jwt": "revocations",
}
SHAPES = {
    *("claim_missing", "claim_malformed", "claim_unknown", "digest_unknown", "hop_malformed"),
    *("evidence_unknown", "actor_profile", "detail_type_unknown", "constraint_unknown"),
}
"""Codes of what a schema can see."""


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(SCHEMAS[name], registry=REGISTRY)


def part(compact: str, index: int) -> Any:
    text = compact.split(".")[index]
    return json.loads(urlsafe_b64decode(text + "=" * (-len(text) % 4)))


def statements(case: dict[str, Any]) -> Iterator[str]:
    """All that was signed in a case, but tokens and proofs."""
    if case["door"] == "request":
        for name, value in case["request"]["headers"]:
            if name.lower().startswith("agent-"):
                yield from (each.strip() for each in value.split(","))
    else:
        yield from case["chain"]
        yield from case.get("handover", ())
        yield case["assertion"]
    for anchor in case["anchors"]:
        if anchor.get("revocations", {}).get("list"):
            yield anchor["revocations"]["list"]


def fits(compact: str) -> bool:
    name = TYPES[part(compact, 0)["typ"]]
    return validator(name).is_valid(part(compact, 1))


@pytest.mark.parametrize("name", ["grant", "assertion", "authorization-details", "revocations"])
def test_a_schema_is_one_and_is_closed_and_says_what_everything_means(name: str) -> None:
    Draft202012Validator.check_schema(SCHEMAS[name])
    for found in objects(SCHEMAS[name]):
        if "properties" in found and "type" in found:
            assert found["additionalProperties"] is False
            for member in found["properties"].values():
                assert member["description"].endswith(".")
    assert "RFC" in SCHEMAS[name]["description"]


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for each in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from objects(each)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case["id"])
def test_what_a_verifier_takes_is_of_the_published_shape(case: dict[str, Any]) -> None:
    for compact in statements(case):
        assert fits(compact)


SHAPELESS = [
    case
    for case in REFUSED
    if case["expect"]["refused"] in SHAPES and case["rule"] not in {"jose", "token"}
]
UNSEEN = {
    *("constraint-no-canonical-form", "list-header-unknown", "list-header-jwk", "list-kid-missing")
}
"""A number is a number to a schema, and it sees no header."""


@pytest.mark.parametrize("case", SHAPELESS, ids=lambda case: case["id"])
def test_what_a_verifier_refuses_for_its_shape_is_not_of_the_published_one(
    case: dict[str, Any],
) -> None:
    assert all(map(fits, statements(case))) == (case["id"] in UNSEEN)


def test_there_are_shapes_to_refuse() -> None:
    assert len(SHAPELESS) > 90


def test_a_chain_refused_for_more_than_its_shape_is_of_the_published_one() -> None:
    """Else a schema that refuses everything would pass above."""
    others = [case for case in REFUSED if case["rule"] in {"narrow", "constant", "time", "call"}]
    assert len(others) > 50
    for case in others:
        assert all(map(fits, statements(case))), case["id"]


@pytest.mark.parametrize(
    ("name", "needed", "may"),
    [("grant", GRANT, GRANT_MAY), ("assertion", ASSERTION, ASSERTION_MAY)],
)
def test_a_schema_names_the_claims_that_verifiers_know(name: str, needed: Any, may: Any) -> None:
    assert set(SCHEMAS[name]["required"]) == needed.keys()
    assert SCHEMAS[name]["properties"].keys() == needed.keys() | may.keys()
