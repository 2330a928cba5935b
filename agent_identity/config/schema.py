# SPDX-License-Identifier: Apache-2.0
"""A JSON Schema of `agent-identity.toml`, for editors and for `agent-identity config schema`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

from agent_identity.config.model import Configuration

if TYPE_CHECKING:
    from pydantic_core import core_schema

__all__ = ["configuration_schema"]


def configuration_schema() -> dict[str, Any]:
    """The schema of the file (JSON Schema 2020-12), each key with what it is for."""
    return {
        "$schema": _TomlSchema.schema_dialect,
        **Configuration.model_json_schema(schema_generator=_TomlSchema),
        "title": "agent-identity.toml",
        "description": "Who an agent is, whom it asks for credentials, and who decides what it may do.",
    }


class _TomlSchema(GenerateJsonSchema):
    """TOML has no null: a key that says nothing is left out."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        found = super().default_schema(schema)
        return {key: value for key, value in found.items() if key != "default" or _is_said(value)}

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - a key is its title
        return False


def _is_said(default: object) -> bool:
    return default is not None and not isinstance(default, dict)
