# SPDX-License-Identifier: Apache-2.0
"""Real issuers, flow by flow, each by its file in issuers/: what docs/reference/issuers.md says is what happens here.

`AGENT_IDENTITY_WRITE=1` writes what happened into the page instead of comparing.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any, Final

import pytest

from agent_identity import AgentIdentity, Session, current_credential, tool
from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.errors import AgentIdentityError

from .authorization_server import AuthorizationServer
from .conftest import Started
from .real_issuers import Rig, running

pytestmark = pytest.mark.system

PAGE: Final = Path(__file__).parents[3] / "docs" / "reference" / "issuers.md"
NAMES: Final = ("oidc-provider", "glewlwyd", "canaille", "django-oauth-toolkit", "fastmcp")
OF_ISSUERS: Final = frozenset({"issuer", "trust", "audience", "client_id", "client_secret"})
OF_RESOURCES: Final = frozenset({"source", "issuer", "scopes"})
"""Keys that every file has: the others are how an issuer differs."""

NOT_OFFERED: Final = frozenset(
    {
        "access_denied",
        "binding_missing",
        "claim_missing",
        "endpoint_missing",
        "invalid_client_metadata",
        "registration_unsupported",
        "unauthorized_client",
        "unreadable_error",  # glewlwyd answers nothing to a grant type that it doesn't know
        "unsupported_grant_type",
    }
)
"""How an attempt ends where the issuer doesn't have the flow."""

Config = dict[str, Any]


class NotOffered(Exception):  # noqa: N818 - an outcome
    """The attempt went well, but without what it was about."""


@pytest.fixture(scope="module", params=NAMES)
def rig(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    server: AuthorizationServer,
    started: Started,
) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp(request.param)
    with running(request.param, folder, server, started) as one:
        yield one


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INVOICE_BOT_SECRET", "s3cret")
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))


# -- configurations -------------------------------------------------------------------------------------------------------


def config_of(rig: Rig, flow: str) -> Config:
    """Its file, changed as the flow needs it."""
    config: Config = tomllib.loads(rig.text)
    for table, changes in zip(tables(config), rig.changes_for(flow), strict=True):
        apply(table, changes)
    return config


def apply(table: dict[str, Any], changes: Any) -> None:
    for key, value in changes.items():
        table.pop(key, None)
        if value is not None:
            table[key] = value


def tables(config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables of the resource's issuer and of the resource."""
    [resource] = config["resources"].values()
    return config["issuers"][resource.get("issuer", "acme")], resource


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value)


Opened = Callable[[Config], AbstractContextManager[AgentIdentity]]


@pytest.fixture
def opened(rig: Rig, tmp_path: Path) -> Opened:
    """Opens the identity of a configuration; the rig's person answers its prompts."""
    numbers = count()

    def open_one(config: Config) -> AgentIdentity:
        path = tmp_path / f"agent-identity-{next(numbers)}.toml"
        path.write_text("".join(f"{json.dumps(k)} = {toml(v)}\n" for k, v in config.items()))
        path.chmod(0o600)
        return AgentIdentity.from_config(path, on_interaction=rig.answer)

    return open_one


# -- flows -----------------------------------------------------------------------------------------------------------------


def call(rig: Rig, session: Session) -> str:
    """Call a tool, and return the token that it had; the issuer takes it."""

    @tool(resource=resource_of(rig), scopes=[rig.scope])
    def read_invoices() -> str:
        return current_credential().reveal()

    with session:
        token = read_invoices()
        assert rig.is_active(token)
    return token


def resource_of(rig: Rig) -> str:
    [uri] = tomllib.loads(rig.text)["resources"]
    return str(uri)


def for_a_person(rig: Rig, identity: AgentIdentity, tokens: SubjectTokens | None = None) -> str:
    return call(
        rig, identity.on_behalf_of(tokens or rig.subject(), purpose="close the books")
    )


def by_source(source: str, *, has_person: bool = True) -> Flow:
    def flow(rig: Rig, config: Config, opened: Opened) -> None:
        tables(config)[1]["source"] = source
        with opened(config) as identity:
            if has_person:
                for_a_person(rig, identity)
            else:
                call(rig, identity.autonomous(trigger="cron:nightly", purpose="close the books"))

    return flow


def pushed(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        for_a_person(rig, identity)
    if "request_uri=" not in (rig.prompts[-1].authorization_url or ""):
        raise NotOffered


def dpop(rig: Rig, config: Config, opened: Opened) -> None:
    tables(config)[1].pop("binding", None)
    with opened(config) as identity:
        for_a_person(rig, identity)


def registered(rig: Rig, config: Config, opened: Opened) -> None:
    issuer = tables(config)[0]
    apply(issuer, {"client_id": None, "client_secret": None, "registration": "dynamic"})
    if "trust" in issuer:
        issuer["audience"] = "invoice-bot"
    with opened(config) as identity:
        for_a_person(rig, identity)


def refreshed(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        for_a_person(rig, identity)
        asked = len(rig.prompts)
        for_a_person(rig, identity)
    if len(rig.prompts) > asked:
        raise NotOffered


Flow = Callable[[Rig, Config, Opened], str | None]
"""Raises where it doesn't work. May return what else there is to say."""

FLOWS: Final[dict[str, Flow]] = {
    "authorization code": by_source("authorization-code"),
    "pushed authorization request": pushed,
    "DPoP": dpop,
    "registration": registered,
    "refresh token": refreshed,
    "device": by_source("device"),
    "CIBA": by_source("ciba"),
    "client credentials": by_source("client-credentials", has_person=False),
    "token exchange": by_source("token-exchange"),
}


# -- the table -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:client assertions for:UserWarning")
@pytest.mark.parametrize("flow", FLOWS)
def test_the_page_says_what_happens(rig: Rig, flow: str, opened: Opened) -> None:
    happened = outcome(rig, flow, opened)
    if os.environ.get("AGENT_IDENTITY_WRITE") == "1":
        write_cell(flow, rig.name, happened)
    assert cell(flow, rig.name) == happened


def outcome(rig: Rig, flow: str, opened: Opened) -> str:
    """Whether the flow works, and with which keys: those without which it doesn't."""

    def attempt(config: Config) -> bool:
        try:
            FLOWS[flow](rig, deepcopy(config), opened)
        except NotOffered:
            return False
        except AgentIdentityError as error:
            if error.code not in NOT_OFFERED:
                raise
            return False
        return True

    def is_needed(number: int, key: str) -> bool:
        without = deepcopy(config)
        del tables(without)[number][key]
        try:
            return not attempt(without)
        except AgentIdentityError:
            return True

    config = config_of(rig, flow)
    if not attempt(config):
        return "not offered there"
    needed = [
        f"`{key}`"
        for number, plain in enumerate((OF_ISSUERS, OF_RESOURCES))
        for key in tables(config)[number]
        if key not in plain and is_needed(number, key)
    ]
    return f"works with {', '.join(needed)}" if needed else "works"


def rows() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines]


def cell(flow: str, name: str) -> str:
    head, *body = rows()
    [row] = [row for row in body if row[0] == flow]
    return row[head.index(name)]


def write_cell(flow: str, name: str, text: str) -> None:
    head = rows()[0]
    lines = PAGE.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines):
        parts = [part.strip() for part in line.strip().strip("|").split("|")]
        if line.startswith("| ") and parts[0] == flow:
            parts[head.index(name)] = text
            lines[number] = f"| {' | '.join(parts)} |\n"
    PAGE.write_text("".join(lines))
