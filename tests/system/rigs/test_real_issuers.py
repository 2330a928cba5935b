# SPDX-License-Identifier: Apache-2.0
"""Real issuers, flow by flow, each by its file in issuers/: what docs/reference/issuers.md says is what happens here.

`AGENT_IDENTITY_WRITE=1` writes what happened into the page instead of comparing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
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


class NotNeeded(Exception):  # noqa: N818 - an outcome
    """There is nothing to attempt: the issuer's tokens are JWTs."""


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
    uri = tables(config)[1].pop("uri", None)
    if uri is not None:
        config["resources"] = {uri: tables(config)[1]}
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


def call(rig: Rig, config: Config, session: Session) -> str:
    """Call a tool, and return the token that it had; the issuer takes it."""
    [uri] = config["resources"]
    is_own = "client_id" in tables(config)[0]

    @tool(resource=uri, scopes=[rig.scope])
    def read_invoices() -> str:
        return current_credential().reveal()

    with session:
        token = read_invoices()
        if is_own or not rig.tells_its_clients_only:
            assert rig.is_active(token)
    return token


def act(
    rig: Rig, config: Config, identity: AgentIdentity, tokens: SubjectTokens | None = None
) -> tuple[str, Session]:
    """A session in which a tool is called, for a person where the source takes one. It has ended when this returns."""
    if tables(config)[1]["source"] == "client-credentials":
        session = identity.autonomous(trigger="cron:nightly", purpose="close the books")
    else:
        session = identity.on_behalf_of(tokens or rig.subject(), purpose="close the books")
    return call(rig, config, session), session


def by_source(source: str | None = None) -> Flow:
    def flow(rig: Rig, config: Config, opened: Opened) -> None:
        if source is not None:
            tables(config)[1]["source"] = source
        with opened(config) as identity:
            act(rig, config, identity)

    return flow


def pushed(rig: Rig, config: Config, opened: Opened) -> None:
    by_source()(rig, config, opened)
    if "request_uri=" not in (rig.prompts[-1].authorization_url or ""):
        raise NotOffered


def dpop(rig: Rig, config: Config, opened: Opened) -> None:
    tables(config)[1].pop("binding", None)
    by_source()(rig, config, opened)


def registered(rig: Rig, config: Config, opened: Opened) -> None:
    issuer = tables(config)[0]
    apply(issuer, {"client_id": None, "client_secret": None, "registration": "dynamic"})
    if "trust" in issuer:
        issuer["audience"] = "invoice-bot"
    by_source()(rig, config, opened)


def refreshed(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        act(rig, config, identity)
        asked = len(rig.prompts)
        wait_for_the_next_second()
        act(rig, config, identity)
    if len(rig.prompts) > asked:
        raise NotOffered


def wait_for_the_next_second() -> None:
    """Canaille's tokens differ by their second only, and using a refresh token revokes the access token of before."""
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


def introspected(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        token, session = act(rig, config, identity)
        if is_jwt(token):
            raise NotNeeded
        [acquired] = [each for each in session.records() if each.kind == "credential.acquired"]
        if acquired.to_dict()["opaque"]:
            raise NotOffered


def revoked(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        token, _ = act(rig, config, identity)
    if rig.is_active(token):
        raise NotOffered


def by_access_token(rig: Rig, config: Config, opened: Opened) -> None:
    with opened(config) as identity:
        act(rig, config, identity, rig.sign_in())


def is_jwt(token: str) -> bool:
    return token.count(".") == 2


Flow = Callable[[Rig, Config, Opened], None]
"""Raises where it doesn't work."""

FLOWS: Final[dict[str, Flow]] = {
    "authorization code": by_source("authorization-code"),
    "pushed authorization request": pushed,
    "DPoP": dpop,
    "registration": registered,
    "refresh token": refreshed,
    "device": by_source("device"),
    "CIBA": by_source("ciba"),
    "client credentials": by_source("client-credentials"),
    "token exchange": by_source("token-exchange"),
    "introspection": introspected,
    "a person's access token": by_access_token,
    "revocation": revoked,
}


# -- doctor ----------------------------------------------------------------------------------------------------------------


def test_doctor_has_nothing_against_the_file(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "agent-identity.toml"
    path.write_text(rig.text)
    path.chmod(0o600)
    command = [sys.executable, "-c", "from agent_identity.cli import main; main()"]
    done = subprocess.run(
        [*command, "doctor", "--config", path, "--json"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    found = json.loads(done.stdout)["checks"]
    assert done.returncode == 0, found
    assert [each for each in found if each["status"] == "failed"] == []


def test_init_writes_a_file_that_takes_only_the_keys_that_it_mentions(
    rig: Rig, tmp_path: Path, opened: Opened
) -> None:
    """`init`, then a first call: the keys of the page's file are in the new one already, if only as comments."""
    path = tmp_path / "new.toml"
    page = tomllib.loads(rig.text)
    command = [sys.executable, "-c", "from agent_identity.cli import main; main()", "init"]
    named = ["--kind", "sign-in", "--name", "invoice-bot", "--issuer", tables(page)[0]["issuer"]]
    subprocess.run([*command, *named, "--output", path], check=True, timeout=60)
    text = path.read_text()
    config: Config = tomllib.loads(text)
    [issuer], [resource] = config["issuers"].values(), config["resources"].values()
    assert tables(page)[0]["issuer"] == issuer["issuer"]
    for mine, theirs in ((issuer, tables(page)[0]), (resource, tables(page)[1])):
        for key in mine.keys() | theirs.keys():
            assert f"\n{key} = " in text or f"\n# {key} = " in text
        mine.clear()
        mine.update(theirs)
    label = resource.get("issuer", "acme")
    config["issuers"] = {**page["issuers"], label: issuer}
    config["resources"] = dict.fromkeys(page["resources"], resource)
    FLOWS["authorization code"](rig, config, opened)


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
    try:
        if not attempt(config):
            return "not offered there"
    except NotNeeded:
        return "not needed there"
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
