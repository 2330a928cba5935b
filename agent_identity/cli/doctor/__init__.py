# SPDX-License-Identifier: Apache-2.0
"""`agent-identity doctor`: read a configuration, show what was inferred, and check what it names.

    local       secrets, keys, state directory, ledger, policy
    remote      issuers, resources, vault, Workload API
    comparison  an issuer's metadata against the file
    trial       with --resource: a credential for one resource, which is given back

All checks run concurrently. None opens a session or requests a token; only the trial does.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from agent_identity.assembly.configured import secrets_of
from agent_identity.cli.config import inferred_documents
from agent_identity.cli.doctor.local import (
    FAILED,
    Finding,
    Setup,
    check_ledger,
    check_policy,
    check_secret,
    check_state,
)
from agent_identity.cli.doctor.remote import (
    check_issuer,
    check_resource,
    check_spiffe,
    check_vault,
    resources_with_issuers,
    wants_spiffe,
)
from agent_identity.cli.doctor.trial import try_resource
from agent_identity.cli.finding import world_of
from agent_identity.config import read_configuration
from agent_identity.config.model import Kind, values_of
from agent_identity.config.problems import InvalidConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from agent_identity.cli.tokens import TokenRequest
    from agent_identity.config import Configuration

_WORKERS: Final = 16
_COLOURS: Final = {"ok": "green", "warning": "yellow", "failed": "red"}

UNWELL: Final = 1
UNREADABLE: Final = 2


def examine(path: Path, directory: Path, *, as_json: bool) -> int:
    """Run all checks, print their findings, and return the exit code; `directory` is the state directory.

    Raises:
        ConfigurationError: the file doesn't exist, or can't be trusted.
    """
    try:
        configuration = read_configuration(path, needs_policy=False)
    except InvalidConfigurationError as error:
        _print_problems(path, error, as_json=as_json)
        return UNREADABLE
    findings = _findings(configuration, directory)
    members = {"inferred": inferred_documents(configuration)}
    return _report(path, configuration, findings, members, as_json=as_json)


def examine_resource(
    path: Path, state_dir: Path | None, request: TokenRequest, *, as_json: bool
) -> int:
    """Get a credential for one resource, print what it is, give it back, and return the exit code.

    Raises:
        ConfigurationError: the file doesn't exist, or can't be trusted.
    """
    try:
        configuration = read_configuration(path, needs_policy=False)
    except InvalidConfigurationError as error:
        _print_problems(path, error, as_json=as_json)
        return UNREADABLE
    findings, obtained = try_resource(path, state_dir, configuration, request)
    return _report(path, None, findings, {"obtained": obtained}, as_json=as_json)


def _report(
    path: Path,
    configuration: Configuration | None,
    findings: list[Finding],
    members: Mapping[str, object],
    *,
    as_json: bool,
) -> int:
    """Print findings, with `configuration` what was inferred too, and return the exit code."""
    is_well = all(finding.status != FAILED for finding in findings)
    if as_json:
        document = {
            "config": str(path.absolute()),
            "ok": is_well,
            **members,
            "checks": [finding.to_dict() for finding in findings],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        _print(path, configuration, findings)
    return 0 if is_well else UNWELL


def _findings(configuration: Configuration, directory: Path) -> list[Finding]:
    world = world_of(configuration)
    setup = Setup(configuration, secrets_of(configuration, time.time), world, time.time)
    checks: list[Callable[[], list[Finding]]] = [
        partial(check_secret, key, reference, setup)
        for key, reference in values_of(configuration, Kind.REFERENCE)
    ]
    asked = configuration.asked_issuers
    checks += [
        partial(check_issuer, label, table, setup, is_asked=label in asked)
        for label, table in configuration.issuers.items()
    ]
    checks += [
        partial(check_resource, uri, table, setup)
        for uri, table in resources_with_issuers(configuration)
    ]
    if configuration.vault is not None:
        checks.append(partial(check_vault, configuration.vault, setup))
    if wants_spiffe(configuration):
        checks.append(partial(check_spiffe, configuration))
    # In this order: opening a ledger makes its folder private, which check_state should warn of before.
    checks.append(lambda: [*check_state(directory), *check_ledger(configuration, directory)])
    checks.append(partial(check_policy, configuration))
    try:
        return _run(checks)
    finally:
        world.close()


def _run(checks: list[Callable[[], list[Finding]]]) -> list[Finding]:
    """Run all checks concurrently; the findings are in the order of the checks."""
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(_WORKERS, thread_name_prefix="agent-identity-doctor") as pool,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        task = progress.add_task("checking", total=len(checks))
        running: list[Future[list[Finding]]] = [pool.submit(check) for check in checks]
        for _ in as_completed(running):
            progress.advance(task)
    return [finding for each in running for finding in each.result()]


def _print(path: Path, configuration: Configuration | None, findings: list[Finding]) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(escape(str(path.absolute())))
    if configuration is not None and configuration.inferred:
        console.print("\n[bold]inferred[/bold]")
        for key, value, reason in configuration.inferred:
            console.print(f"  {escape(key)} = {escape(value)}  [dim]{escape(reason)}[/dim]")
    console.print("\n[bold]checked[/bold]")
    for finding in findings:
        colour = _COLOURS[finding.status]
        line = f"{escape(finding.check)}: {escape(finding.message)}"
        console.print(f"  [{colour}]{finding.status:<7}[/{colour}]  {line}")
        if finding.detail is not None:
            console.print(f"           the issuer says: {escape(finding.detail)}")
        if finding.remedy is not None:
            console.print(f"           what to do: {escape(finding.remedy)}")


def _print_problems(path: Path, error: InvalidConfigurationError, *, as_json: bool) -> None:
    if as_json:
        document = {
            "config": str(path.absolute()),
            "ok": False,
            "problems": [problem._asdict() for problem in error.problems],
        }
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem, line in zip(error.problems, str(error).split("\n"), strict=True):
        console.print(f"[red]{escape(line)}[/red]  [dim]{escape(problem.code)}[/dim]")
        if problem.remedy is not None:
            console.print(f"  what to do: {escape(problem.remedy)}")
