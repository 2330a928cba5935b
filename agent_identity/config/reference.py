# SPDX-License-Identifier: Apache-2.0
"""The page `docs/reference/configuration.md`, made of the models so that it can't say anything else.

python -m agent_identity.config.reference > docs/reference/configuration.md
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Literal, get_args, get_origin

from pydantic_core import PydanticUndefined

from agent_identity.config.model import Configuration, Kind, Table
from agent_identity.config.problems import key_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic.fields import FieldInfo

__all__ = ["configuration_reference"]

_INTRODUCTION: Final = """\
# Configuration

<!-- Made by `python -m agent_identity.config.reference`; a test holds it equal. -->

`AgentIdentity.from_config("agent-identity.toml")` reads this file.
Without a path it is the file that `AGENT_IDENTITY_CONFIG` names; one that merely lies in the working directory is never read.
A file that its group or others may write, or that belongs to another user than this one or root, is refused.
Relative paths in it are relative to its folder.

One issuer and one resource are ten lines:

```toml
[agent]
name = "invoice-bot"
[issuers.acme]
issuer = "https://idp.acme.example"
trust = ["subjects"]
client_id = "invoice-bot"
client_key = "file:keys/client.pem"
[resources."https://billing.example"]
[policy]
engine = "grants-only"
```

## Secrets

The file holds no secret, only references to the places of secrets.

| reference | place |
|---|---|
| `env:NAME` | a variable of the process |
| `file:PATH` | a file that neither its group nor others may write; one line end is stripped |
| `keyring:NAME` | the entry `NAME` of `agent-identity` in the user's keyring, which must not keep plain text |
| `keyring+plaintext:NAME` | the same, and plain text will do |
| `vault:PATH` | Vault or OpenBao, with a `[vault]` table; in `agent.signer` it is `vault:MOUNT/NAME`, a key that signs there |

## What is inferred

A key that is left out has the default of the tables below, unless it follows from others.

| what is written | means |
|---|---|
| `client_key` | `client_auth = "private_key_jwt"` |
| `client_secret` | `client_auth = "client_secret_basic"` |
| `client_certificate` | `client_auth = "tls_client_auth"` |
| an https `client_id` | `registration = "cimd"`, with any other `client_id` it is `"configured"` |
| `trust = ["subjects"]` and `client_id` | `audience` is that `client_id` |
| one table of `[issuers]` | it is the `issuer` of every resource whose source needs one |
| a resource with an issuer | `source = "token-exchange"`, `binding = "dpop"` |
| `api-key`, `basic`, `static`, `client-certificate` | `binding = "none"`, `assertion = "omit"`; with every other source it is `"send"` |
| policy files | `engine = "cedar"` |
| a `signer` in a vault | `signer_id` is `urn:agent-identity:signer:` and a digest of the key's place |

## What is refused

All problems of a file are one `ConfigurationError`, with the line of each and without a value of the file; they are in its `.problems`.
Its `.code` is the first one's.

| code | means |
|---|---|
| `not_configured` | no file is named |
| `config_missing`, `config_unreadable` | it isn't there, or can't be read |
| `config_unsafe` | somebody else may have written it |
| `config_malformed` | it isn't TOML |
| `unknown_key` | no such key, and perhaps which one was meant |
| `value_missing`, `value_malformed` | a key is needed, or holds something else than it may |
| `value_conflict`, `key_unused` | two keys contradict each other, or nothing would read this one |
| `unknown_issuer` | no table of `[issuers]` has that name |
| `resource_malformed` | a resource isn't spelt in the one way that counts |
| `url_insecure` | http beyond this very machine |
| `secret_in_clear` | a secret stands where a reference belongs |
| `reference_malformed`, `vault_unconfigured` | a reference names nothing, or `vault:` without `[vault]` |
| `reference_read_only` | `env:` can't keep a refresh token, which the issuer replaces |
| `policy_missing` | nothing says who decides; `engine = "grants-only"` is the explicit way out |
| `not_supported` | this version can't do that yet |

Not yet supported are the policy engines `cedar`, `authzen` and `opa`, `policy.observe`, `[approval]`, `[signals]`, `[session.budget]`, any `[shared]` but `memory:`, `evidence` of an issuer, and a ledger in PostgreSQL.

`agent.key` in a vault is refused too, and stays so: that key signs every call, in memory.

No key is read and forgotten: one that nothing would act on in its place is refused (`key_unused`).
Some have a condition that no table below shows:

- `agent.grants` names an issuer with `trust = ["grants"]`, and `agent.id` is no issuer's URL.
- `audience`, `algorithms` and `token_type` of an issuer are about principals' tokens, so they need `trust = ["subjects"]`, which one table of an issuer has at most; `subjects_of` names tables with it.
- `registration = "dynamic"` uses the agent's own key, so it goes with no `client_id`, `client_auth`, key, secret or certificate.
- `client_key` signs (`private_key_jwt`, `jwt-bearer`), or is the key of `client_certificate`; `client_key_id` is the name of one that signs.
- `resource_indicators = false` needs an `audience` at each resource of that issuer.
- `binding = "mtls"` needs a `client_certificate`, or `[spiffe]`, whose SVID is shown then.
- With `[authority]` an issuer with `trust = ["subjects"]` needs no `audience`, since `authority.audiences` says what its tokens may be for, and no `[agent]` is needed.
- `authority.clients.NAME`: `private_key_jwt` needs `jwks`, `spiffe_jwt` that and `subject`, `workload_token` an `issuer` and a `subject` or `claims`, `tls_client_auth` an `[authority.tls]` and one of `san_uri`, `san_dns` and `subject_dn`; none uses anything else of those.
- A resource of the embedded authority says `scopes` and `assertion`, and nothing else.
"""


def configuration_reference() -> str:
    """The whole page."""
    return "\n".join((_INTRODUCTION, *_sections(Configuration, ())))


def _sections(model: type[Table], path: tuple[str, ...]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = _table_in(field)
        if below is None:
            continue
        here = (*path, name, *_named_by(name))
        yield _section(below, here, field)
        yield from _sections(below, here)


def _named_by(name: str) -> tuple[str, ...]:
    return ("URI",) if name == "resources" else ("NAME",) if name in _NAMED else ()


_NAMED: Final = frozenset({"issuers", "signals", "clients"})
"""Tables of tables that have names."""


def _section(model: type[Table], path: tuple[str, ...], field: FieldInfo) -> str:
    heading = key_text(path).replace("URI", '"URI"')
    rows = "\n".join(_row(name, of) for name, of in model.model_fields.items() if not _is_apart(of))
    return (
        f"## `[{heading}]`\n\n{field.description}\n\n"
        f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"
    )


def _is_apart(field: FieldInfo) -> bool:
    return _table_in(field) is not None


def _row(name: str, field: FieldInfo) -> str:
    return f"| `{name}` | {_type(field)} | {_default(field)} | {field.description} |"


def _default(field: FieldInfo) -> str:
    value: object = field.default
    if value is PydanticUndefined:
        return "needed"
    if value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else _toml(value)}`"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _table_in(field: FieldInfo) -> type[Table] | None:
    for part in _parts(field.annotation):
        if isinstance(part, type) and issubclass(part, Table):
            return part
    return None


def _parts(annotation: object) -> Iterator[object]:
    yield annotation
    for part in get_args(annotation):
        yield from _parts(part)


_KINDS: Final = {
    Kind.REFERENCE: "reference",
    Kind.ISSUER: "name of an issuer",
    Kind.URL: "URL",
    Kind.ORIGIN: "list of origins",
    Kind.PATTERN: "list of paths",
    Kind.PATH: "path",
    Kind.KEYS: "URL or `file:PATH`",
    Kind.LEDGER: "URL",
}
_WORDS: Final[tuple[tuple[object, str], ...]] = (
    (bool, "`true` or `false`"),
    (int, "whole number"),
    (float, "number"),
    (str, "text"),
)


def _type(field: FieldInfo) -> str:
    parts = list(_parts(field.annotation))
    if Kind.ISSUER in field.metadata and tuple in map(get_origin, parts):
        return "list of names of issuers"
    kind = next((_KINDS[known] for known in field.metadata if isinstance(known, Kind)), None)
    return kind or _type_of(parts)


def _type_of(parts: list[object]) -> str:
    origins = [get_origin(part) for part in parts]
    words = next((_choice(part) for part in parts if get_origin(part) is Literal), None)
    if words is None:
        words = next((word for kind, word in _WORDS if kind in parts), "anything")
    if dict in origins:
        words = "table"
    return f"list of {words}s".replace("`s", "`") if tuple in origins else words


def _choice(literal: object) -> str:
    return ", ".join(f'`"{choice}"`' for choice in get_args(literal))


if __name__ == "__main__":
    sys.stdout.write(configuration_reference())
