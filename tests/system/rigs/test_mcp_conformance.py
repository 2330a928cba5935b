# SPDX-License-Identifier: Apache-2.0
"""The official conformance suite of MCP, whose servers and issuers test our client: integrations/mcp/conformance_client.py.

A scenario passes when its checks do: the exit status of the suite alone says less, since a client that gives up early fails few.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from . import servers

HERE: Final = Path(__file__).parent
CHECKOUT: Final = HERE.parents[2]
CLIENT: Final = CHECKOUT / "integrations/mcp/conformance_client.py"
STATEFUL, STATELESS = "2025-11-25", "2026-07-28"

EXTENSIONS: Final = (
    "auth/client-credentials-jwt",
    "auth/client-credentials-basic",
    "auth/enterprise-managed-authorization",
    "auth/dpop",
    "auth/dpop-nonce",
    "auth/wif-jwt-bearer",
)
BOTH: Final = (
    "tools_call",
    "auth/metadata-default",
    "auth/metadata-var1",
    "auth/metadata-var2",
    "auth/metadata-var3",
    "auth/basic-cimd",
    "auth/scope-from-www-authenticate",
    "auth/scope-from-scopes-supported",
    "auth/scope-omitted-when-undefined",
    "auth/scope-step-up",
    "auth/scope-retry-limit",
    "auth/token-endpoint-auth-basic",
    "auth/token-endpoint-auth-post",
    "auth/token-endpoint-auth-none",
    "auth/pre-registration",
    "json-schema-2020-12-preservation",
)
STATEFUL_ONLY: Final = ("initialize", "elicitation-sep1034-client-defaults", "sse-retry")
STATELESS_ONLY: Final = (
    "request-metadata",
    "auth/resource-mismatch",
    "auth/offline-access-scope",
    "auth/offline-access-not-supported",
    "auth/authorization-server-migration",
    "auth/iss-supported",
    "auth/iss-not-advertised",
    "auth/iss-supported-missing",
    "auth/iss-wrong-issuer",
    "auth/iss-unexpected",
    "auth/iss-normalized",
    "auth/metadata-issuer-mismatch",
    "sep-2322-client-request-state",
    "http-standard-headers",
    "http-custom-headers",
    "http-invalid-tool-headers",
    "json-schema-ref-no-deref",
)
NOT_PASSED: Final = {
    "auth/2025-03-26-oauth-metadata-backcompat": "of a revision that ended in June 2025: no resource metadata",
    "auth/2025-03-26-oauth-endpoint-fallback": "of that revision: endpoints that nobody names",
    "sep-2640-client-no-prefetch": "skills, an extension that this client doesn't use",
    "sep-2640-client-verify-digest": "skills",
    "sep-2640-client-verify-size": "skills",
    "sep-2640-client-verify-frontmatter": "skills",
}
RUNS: Final = [
    *((scenario, STATEFUL) for scenario in (*EXTENSIONS, *STATEFUL_ONLY, *BOTH)),
    *((scenario, STATELESS) for scenario in (*STATELESS_ONLY, *BOTH)),
]


def conformance(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the suite. It would listen on every interface, so each listener is bound to loopback."""
    command = [servers.node(), "--require", HERE / "loopback-listen.cjs"]
    script = servers.node_modules() / "@modelcontextprotocol/conformance/dist/index.js"
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    env = {name: value for name, value in os.environ.items() if name.lower() not in proxies}
    env["PYTHONPATH"] = f"{CHECKOUT}{os.pathsep}{CHECKOUT / 'integrations/mcp/src'}"
    return subprocess.run(
        [str(part) for part in (*command, script, *arguments)],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def checks_of(scenario: str, version: str, folder: Path) -> tuple[list[dict[str, Any]], str]:
    client = shlex.join([str(servers.python("mcp")), str(CLIENT)])
    done = conformance(
        *("client", "--command", client, "--scenario", scenario),
        *(() if scenario in EXTENSIONS else ("--spec-version", version)),
        *("-o", folder),
    )
    (found,) = folder.rglob("checks.json")
    checks: list[dict[str, Any]] = json.loads(found.read_text())
    return checks, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(("scenario", "version"), RUNS)
def test_the_client_passes(scenario: str, version: str, tmp_path: Path) -> None:
    checks, log = checks_of(scenario, version, tmp_path)
    counted = [(each["status"], each["id"]) for each in checks]
    assert "SUCCESS" in dict(counted), log
    assert [name for status, name in counted if status in ("FAILURE", "WARNING")] == [], log


def test_every_scenario_of_the_suite_is_run_or_has_a_reason() -> None:
    lines = conformance("list").stdout.partition("Client scenarios")[2].splitlines()
    listed = {line.split()[1] for line in lines if line.startswith("  - ")}
    assert listed >= {name for name, _ in RUNS} | NOT_PASSED.keys()
    client_scenarios = {name for name in listed if not name.startswith("authorization-")}
    assert client_scenarios == {name for name, _ in RUNS} | NOT_PASSED.keys()
