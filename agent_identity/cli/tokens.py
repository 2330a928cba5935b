# SPDX-License-Identifier: Apache-2.0
"""`agent-identity token`: a credential printed, for scripts and for a look at what an issuer gives.

The session is not left when all went well: leaving it would take back what was just printed. It is closed with the process,
and the token lives to its own end.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.cli.granting import binding_of, check_may_act, is_bound, session_for
from agent_identity.config import read_configuration
from agent_identity.errors import ConfigurationError
from agent_identity.identity import AgentIdentity

if TYPE_CHECKING:
    from pathlib import Path

    from agent_identity.cli.granting import Wish
    from agent_identity.http.credential import Credential
    from agent_identity.values import JSON

__all__ = ["Aim", "print_token"]

PURPOSE: Final = "a token for the command line"


class Aim(NamedTuple):
    """The one request that headers are made for."""

    method: str
    url: str


def print_token(
    config: Path, state_dir: Path | None, wish: Wish, aim: Aim | None, *, as_json: bool
) -> None:
    """Get the credential and print it; `state_dir` None is the default one.

    Raises:
        AgentIdentityError: there is none, or it is bound and nobody said to which request.
    """
    # In a context of its own, since the session is never left.
    contextvars.copy_context().run(_print_token, config, state_dir, wish, aim, as_json=as_json)


def _print_token(
    config: Path, state_dir: Path | None, wish: Wish, aim: Aim | None, *, as_json: bool
) -> None:
    configuration = read_configuration(config)
    check_may_act(wish, configuration)
    if aim is None and binding_of(wish.resource, configuration) is not None:
        raise _needs_aim(wish.resource)
    identity = AgentIdentity.from_config(config, state_dir=state_dir)
    with identity, contextlib.ExitStack() as leaving:
        session = leaving.enter_context(session_for(identity, wish, PURPOSE))
        credential = session.credential(wish.resource, wish.wanted_scopes)
        if aim is None and is_bound(credential):
            raise _needs_aim(wish.resource)
        document = _document(credential, aim)
        sys.stdout.write(json.dumps(document, indent=2) + "\n" if as_json else _text(document))
        sys.stdout.flush()
        leaving.pop_all()


def _needs_aim(resource: str) -> ConfigurationError:
    return ConfigurationError(
        "credential_bound",
        f"the credential for {resource} is bound to a key of this process, so the token alone opens nothing",
        remedy="say --method and --url of the request, and get headers that sign it once",
    )


def _document(credential: Credential, aim: Aim | None) -> dict[str, JSON]:
    found: dict[str, JSON] = {
        "resource": credential.resource,
        "token_type": credential.token_type,
    }
    if aim is None:
        found["access_token"] = credential.reveal()
    else:
        found["headers"] = {**credential.headers(aim.method, aim.url)}
    ends = datetime.fromtimestamp(int(credential.expires_at), UTC)
    found["expires_at"] = ends.isoformat().replace("+00:00", "Z")
    found["scopes"] = [*sorted(credential.scopes)]
    return found


def _text(document: dict[str, JSON]) -> str:
    lines: list[str] = []
    for name, value in document.items():
        if isinstance(value, dict):
            lines += [f"{header}: {text}" for header, text in value.items()]
        elif isinstance(value, list):
            lines.append(f"{name}: {' '.join(map(str, value))}".rstrip())
        else:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) + "\n"
