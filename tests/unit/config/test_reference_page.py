# SPDX-License-Identifier: Apache-2.0
"""The schema and the page say what the models are."""

from __future__ import annotations

import json
import runpy
import tomllib
from pathlib import Path

from agent_identity.config import Configuration, configuration_schema

GENERATOR = Path(__file__).parents[3] / "docs/reference/generate_configuration.py"
PAGE = GENERATOR.with_name("configuration.md").read_text(encoding="utf-8")


def test_the_page_is_made_of_the_models() -> None:
    generator = runpy.run_path(str(GENERATOR))
    assert generator["MARKER"] in PAGE
    assert generator["with_tables"](PAGE) == PAGE, (
        "run: python docs/reference/generate_configuration.py"
    )


def test_the_example_of_the_page_is_read(read) -> None:
    example = PAGE.partition("```toml\n")[2].partition("```")[0]
    assert len(tomllib.loads(example)) == 4
    assert len(example.splitlines()) <= 10
    assert read(example, needs_policy=True).agent.name == "invoice-bot"


def test_every_key_of_the_schema_says_what_it_is_for() -> None:
    schema = configuration_schema()
    tables = [schema, *schema["$defs"].values()]
    keys = [key for table in tables for key in table.get("properties", {}).values()]
    told = [key | schema["$defs"].get(key.get("$ref", "").rpartition("/")[2], {}) for key in keys]
    assert len(keys) > 80
    assert [key for key in told if not key.get("description", "").endswith(".")] == []


def test_the_schema_knows_no_null() -> None:
    assert '"null"' not in json.dumps(configuration_schema())
    assert ": null" not in json.dumps(configuration_schema())


def test_the_schema_is_of_2020_12_and_takes_no_other_key() -> None:
    schema = configuration_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["title"] == "agent-identity.toml"
    tables = [schema, *(table for table in schema["$defs"].values() if "properties" in table)]
    assert all(table["additionalProperties"] is False for table in tables)


def test_every_key_has_its_row() -> None:
    for name in Configuration.model_fields:
        assert f"## `[{name}" in PAGE
    for key in ("client_assertion_audience", "interaction_timeout", "kv_mount", "login_hint_from"):
        assert f"| `{key}` |" in PAGE
