# SPDX-License-Identifier: Apache-2.0
"""What readers of the house rely on: its names, its tree of errors, how light it is, what is in the wheel."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import agent_identity
from agent_identity import errors

ROOT = Path(__file__).parents[2]


def test_the_public_names_are_those_of_the_contract() -> None:
    assert sorted(agent_identity.__all__) == [
        *("AgentIdentity", "AgentIdentityError", "Approval", "ApprovalRequiredError"),
        *("ConfigurationError", "Credential", "CredentialError", "CredentialRejectedError"),
        *("CredentialUnavailableError", "Decision", "DeniedError", "InvalidAssertionError"),
        *("InvalidSubjectError", "LedgerError", "NoSessionError", "Principal", "RevokedError"),
        *("Session", "Trace", "TransportError", "VerificationError", "current_credential"),
        *("current_session", "on_behalf_of", "tool"),
    ]
    assert all(getattr(agent_identity, name) is not None for name in agent_identity.__all__)


def test_a_name_that_is_not_public_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        agent_identity.nothing  # noqa: B018 - asking is the test


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert agent_identity.__version__ == importlib.metadata.version("agent-identity-sdk")
    assert "__version__" not in agent_identity.__all__


def test_the_version_is_read_when_it_is_asked_for_and_not_with_the_import() -> None:
    code = (
        "import sys; before = 'importlib.metadata' in sys.modules; import agent_identity;"
        "print(before or 'importlib.metadata' not in sys.modules, agent_identity.__version__)"
    )
    told = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert told.split() == ["True", agent_identity.__version__]


def test_the_tree_drawn_in_errors_is_the_tree_that_exists() -> None:
    drawn: dict[str, str | None] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"([ │├└─]*)(\w+Error)\b", line)
        if found is None:
            continue
        depth = len(found[1]) // 3 - 1 if "─" in found[1] else 0
        path[depth:] = [found[2]]
        drawn[found[2]] = path[depth - 1] if depth else None
    real = {
        name: next((base.__name__ for base in kind.__bases__ if base is not Exception), None)
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, errors.AgentIdentityError)
    }
    assert drawn == real


def test_nothing_says_to_install_a_distribution_that_no_index_has() -> None:
    told = re.compile(r"(?:pip install|uv add|uvx|pipx)\b[^\n]*\bagent[-_]identity(?!/|\[)[-\w]*")
    places = [*ROOT.glob("*.md"), ROOT / "pyproject.toml"]
    for folder in ("agent_identity", "docs", "examples", "integrations"):
        places += [
            path for path in (ROOT / folder).rglob("*") if path.suffix in {".py", ".md", ".toml"}
        ]
    found = [str(path) for path in places if told.search(path.read_text("utf-8"))]
    assert found == []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert not [
        name for names in extras.values() for name in names if name.startswith("agent-identity")
    ]


def test_importing_loads_nothing_heavy() -> None:
    """No HTTP client, no pydantic, no PyJWT, no tracing SDK, no framework: not even for the names most programs use."""
    code = (
        "import json, sys; from agent_identity import AgentIdentity, tool, current_credential;"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    heavy = {"httpx", "httpcore", "pydantic", "jwt", "rich", "typer", "uvicorn", "langchain"}
    assert not heavy & set(loaded)
    sdk = "import sys, agent_identity; from agent_identity import tool; print('opentelemetry.sdk' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", sdk], text=True).strip() == "False"


def test_the_installed_distribution_is_typed_and_holds_the_library_alone() -> None:
    files = [str(file) for file in importlib.metadata.files("agent-identity-sdk") or []]
    assert "agent_identity/py.typed" in files
    assert "agent_identity/cli/templates/oidc.toml" in files
    assert not [name for name in files if name.startswith(("tests", "integrations", "benchmarks"))]
    assert Path(agent_identity.__file__).resolve().parent != ROOT / "agent_identity"


def test_every_locked_environment_begins_with_what_the_distribution_needs() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    core = (ROOT / "requirements/core.in").read_text().splitlines()
    assert set(declared) == {
        line for line in core if line and not line.startswith(("#", "hatchling"))
    }


def test_no_lock_file_names_a_host() -> None:
    for lock in (ROOT / "requirements").glob("*.txt"):
        lines = lock.read_text().splitlines()
        assert not [line for line in lines if "://" in line], lock.name
        assert any("--hash=sha256:" in line for line in lines), lock.name


def test_every_dependency_has_its_reason_written_down() -> None:
    reasons = (ROOT / "docs/explanation/dependencies.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    every = [*project["dependencies"], *extras["cli"], *extras["server"]]
    names = [re.split(r"[><=\[]", requirement)[0] for requirement in every]
    assert [name for name in names if f"**{name}**" not in reasons] == []


def test_the_picture_of_the_house_is_drawn_from_its_imports() -> None:
    drawn = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "draw_house.py")],
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert drawn == (ROOT / "docs" / "house.svg").read_text(encoding="utf-8"), (
        "run: python docs/draw_house.py > docs/house.svg"
    )


def test_users_find_what_they_call_on_a_session_and_nothing_else() -> None:
    names = {name for name in dir(agent_identity.Session) if not name.startswith("_")}
    settled = {"policy", "approver", "authorization_details", "budget", "expires_in"}
    assert names - settled - {"resources", "scopes"} == {
        *("acredential", "adelegate", "agent", "ahttp", "arevoke", "bind", "call", "call_id"),
        *("chain", "credential", "delegate", "depth", "expires_at", "http", "id", "inject"),
        *("is_open", "principal", "purpose", "records", "revoke", "task", "txn"),
    }


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("adapters", "Tool refuse arefuse scrubbed scrubs tool_of within wrap"),
        ("authority", "Authority"),
        ("canonical", "args_digest"),
        ("credentials", "SubjectTokens TokenSource"),
        ("errors", "AgentIdentityError"),
        ("flow", "HttpRequest http"),
        ("http", "aiohttp_middleware httpx2_auth requests_auth"),
        ("jose", "loads loads_object unverified verify"),
        ("keys", "SigningKey public_key_of"),
        ("testing", "FakeIssuer FakeWeb assert_no_leak"),
        ("testing.hostile", "redirects floods drips"),
        ("verify", "TrustAnchor UnsafeNoRevocations VerifiedCall Verifier problem"),
        ("verify.asgi", "VerifyMiddleware require verified_call"),
    ],
)
def test_what_the_contract_and_the_pages_import_stays_where_it_is(module: str, names: str) -> None:
    found = importlib.import_module(f"agent_identity.{module}")
    lazy = getattr(found, "__all__", ())  # their packages may be missing here
    assert [name for name in names.split() if name not in lazy and not hasattr(found, name)] == []
