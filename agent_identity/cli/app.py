# SPDX-License-Identifier: Apache-2.0
"""The commands, and the exit codes of errors.

Exit codes: 0 success, 1 refused (an unsound ledger, an unknown reference, a refused credential), 2 error.
With --json an error is one JSON document on standard error, and standard output is one JSON document or empty.
`exec` returns the exit code of the program that it runs. Each command loads its own module when it is run.
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, ParamSpec, TypeVar

import typer
from typer.core import TyperGroup

import agent_identity
from agent_identity.config import state_directory
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    DeniedError,
    VerificationError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.cli.tokens import TokenRequest
    from agent_identity.lifecycle import Revocation

P = ParamSpec("P")
R = TypeVar("R")

_USAGE_ERROR: Final = typer.BadParameter.__mro__[1]
"""The base class of all usage errors, which Typer doesn't export."""


class _Commands(TyperGroup):
    """The commands; with --json a usage error is JSON too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        given = [*(sys.argv[1:] if args is None else args)]
        options = given[: given.index("--")] if "--" in given else given
        is_json = standalone_mode and "--json" in options
        try:
            answer = super().main(
                args,
                prog_name,
                complete_var,
                standalone_mode and not is_json,
                windows_expand_args,
                **extra,
            )
        except typer.Abort:
            if not is_json:
                raise
            raise SystemExit(UNSOUND) from None
        except Exception as error:
            if not (is_json and isinstance(error, _USAGE_ERROR)):
                raise
            _print_error("usage", _message(error), "run the command with --help")
            raise SystemExit(UNREADABLE) from None
        if is_json:
            raise SystemExit(answer if isinstance(answer, int) else 0)
        return answer


def _message(error: Exception) -> str:
    """Typer's message of a usage error."""
    words = getattr(error, "format_message", error.__str__)
    return str(words())


app: typer.Typer = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Credentials, delegation and provenance for every tool call of an AI agent.",
)
ledger_app: typer.Typer = typer.Typer(no_args_is_help=True, help="Check the ledger.")
authority_app: typer.Typer = typer.Typer(no_args_is_help=True, help="The embedded authority.")
app.add_typer(ledger_app, name="ledger")
app.add_typer(authority_app, name="authority")
config_app: typer.Typer = typer.Typer(
    no_args_is_help=True, help="Show the schema and the effective values of agent-identity.toml."
)
app.add_typer(config_app, name="config")
mcp_app: typer.Typer = typer.Typer(
    no_args_is_help=True, help="Show and accept the definitions of MCP servers' tools."
)
app.add_typer(mcp_app, name="mcp")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"agent-identity {agent_identity.__version__}")
        raise typer.Exit


@app.callback()
def agent(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Options of all commands."""


StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir", help="Folder of keys and ledger; default: AGENT_IDENTITY_STATE_DIR."
    ),
]
NoStateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Ignored: this command uses no state directory."),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The configuration; default: AGENT_IDENTITY_CONFIG. A file in the working directory is not used by itself.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Resource = Annotated[str, typer.Option("--resource", help="The resource's URI, as configured.")]
Scopes = Annotated[
    list[str] | None,
    typer.Option(
        "--scope", help="A scope to request; repeat it for more; default: the configured scopes."
    ),
]
SubjectToken = Annotated[
    str | None,
    typer.Option(
        "--subject-token",
        metavar="REF",
        help="Reference to the principal's token: env:NAME, file:PATH or keyring:NAME. Without it: autonomous.",
    ),
]

UNSOUND = 1
UNREADABLE = 2


def _report_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print an error of the library with its remedy, and exit with 1 if something was refused, otherwise with 2."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except AgentIdentityError as error:
            if kwargs.get("as_json"):
                _print_error(error.code, str(error), error.remedy, error.detail)
            else:
                typer.secho(f"{error.code}: {error}", err=True, fg=typer.colors.RED)
                if error.detail:
                    typer.echo(f"the issuer says: {error.detail}", err=True)
                if error.remedy:
                    typer.echo(f"what to do: {error.remedy}", err=True)
            raise typer.Exit(UNSOUND if _is_refusal(error) else UNREADABLE) from None

    return run


def _print_error(code: str, message: str, remedy: str | None, detail: str | None = None) -> None:
    document = {"code": code, "message": message, "remedy": remedy}
    if detail is not None:
        document["detail"] = detail
    typer.echo(json.dumps(document), err=True)


def _is_refusal(error: AgentIdentityError) -> bool:
    refusals = (DeniedError, CredentialRejectedError, VerificationError)
    return error.code == "unknown_reference" or isinstance(error, refusals)


def _token_request(resource: str, scopes: list[str] | None, subject: str | None) -> TokenRequest:
    from agent_identity.cli.tokens import TokenRequest

    return TokenRequest(resource, scopes or [], subject)


@app.command()
@_report_errors
def demo(
    langchain: Annotated[
        bool,
        typer.Option(
            "--langchain",
            help="A LangChain agent with MCP tools and a sub-agent, and a restart in the middle.",
        ),
    ] = False,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Close the October books for Alice, over real HTTP, in a few seconds: no account, no network."""
    from agent_identity.cli.demo.frameworks import run_framework_demo
    from agent_identity.cli.demo.story import run_demo

    if langchain:
        raise typer.Exit(run_framework_demo("langchain", state_dir, as_json=as_json))
    raise typer.Exit(run_demo(state_dir, as_json=as_json))


@app.command()
@_report_errors
def billing(
    state_dir: StateDir = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0 picks one.")] = 8600,
    as_json: Json = False,
) -> None:
    """Serve the demo's billing API on loopback, for a first program of your own; it verifies every request.

    It trusts the authority in the state directory, which `AgentIdentity.embedded` uses too. Stop it with Ctrl-C.
    """
    from agent_identity.cli.demo.billing import serve_billing

    serve_billing(state_directory(state_dir), port, as_json=as_json)


@app.command()
@_report_errors
def why(
    ref: Annotated[
        str | None,
        typer.Argument(
            help="Id of a call, session, trace or span, a tool call id, or any jti; its beginning is enough."
        ),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The newest session.")] = False,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show who triggered a call: for whom, through which agents, by which rule, and how it ended."""
    from agent_identity.cli.finding import newest_session, opened_ledger, whole_reference
    from agent_identity.provenance.signatures import SignatureCheck
    from agent_identity.provenance.trace import trace_of

    if (ref is None) != last:
        raise ConfigurationError("reference_missing", "why takes either REF or --last")
    with opened_ledger(state_dir, config) as ledger:
        whole = newest_session(ledger) if ref is None else whole_reference(ledger, ref)
        trace = trace_of(ledger, whole, check=SignatureCheck(ledger))
    width = shutil.get_terminal_size().columns
    typer.echo(json.dumps(trace.to_dict(), indent=2) if as_json else trace.to_text(width))


@app.command()
@_report_errors
def init(
    kind: Annotated[
        str | None,
        typer.Option(
            help="embedded, oidc, keycloak, okta, entra, auth0, spiffe, github-actions or kubernetes."
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("agent-identity.toml"),
    name: Annotated[str, typer.Option(help="The agent's name.")] = "my-agent",
    issuer: Annotated[str | None, typer.Option(help="The issuer's URL.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    state_dir: StateDir = None,
    as_json: Json = False,
) -> None:
    """Write a commented agent-identity.toml for one kind of issuer."""
    from agent_identity.cli.init import choose_kind, write_configuration

    write_configuration(
        choose_kind(kind),
        output,
        name=name,
        issuer=issuer,
        force=force,
        state_dir=state_dir,
        as_json=as_json,
    )


@app.command()
@_report_errors
def doctor(
    resource: Annotated[
        str | None,
        typer.Option(
            "--resource", help="Only get a credential for this resource, and give it back."
        ),
    ] = None,
    subject_token: SubjectToken = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Check configuration, secrets, keys, issuers, clocks and stores. Exit 0: no check failed, 1: a check failed, 2: unreadable."""
    from agent_identity.cli.doctor import examine, examine_resource
    from agent_identity.cli.finding import needed_configuration

    if resource is not None:
        request = _token_request(resource, None, subject_token)
        path = needed_configuration(config)
        raise typer.Exit(examine_resource(path, state_dir, request, as_json=as_json))
    if subject_token is not None:
        raise ConfigurationError("request_incomplete", "--subject-token needs --resource")
    directory = state_directory(state_dir)
    raise typer.Exit(examine(needed_configuration(config), directory, as_json=as_json))


@app.command()
@_report_errors
def token(
    resource: Resource,
    scope: Scopes = None,
    subject_token: SubjectToken = None,
    method: Annotated[str | None, typer.Option(help="The request's method, for headers.")] = None,
    url: Annotated[str | None, typer.Option(help="The request's URL, for headers.")] = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Print a credential for one resource; a bound credential as the headers of one request."""
    from agent_identity.cli.finding import needed_configuration
    from agent_identity.cli.tokens import RequestLine, print_token

    if (method is None) != (url is None):
        raise ConfigurationError("request_incomplete", "--method and --url belong together")
    line = None if method is None or url is None else RequestLine(method, url)
    request = _token_request(resource, scope, subject_token)
    print_token(needed_configuration(config), state_dir, request, line, as_json=as_json)


@app.command("exec")
@_report_errors
def exec_(
    command: Annotated[list[str], typer.Argument(help="The program and its arguments, after --.")],
    resource: Resource,
    scope: Scopes = None,
    subject_token: SubjectToken = None,
    env: Annotated[
        str, typer.Option(metavar="NAME", help="The variable that holds the token.")
    ] = "AGENT_IDENTITY_TOKEN",
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON about the run to standard error, after the program has ended.",
        ),
    ] = False,
) -> None:
    """Run a program with a just-in-time token in its environment; the token is revoked when the program has ended."""
    from agent_identity.cli.exec import run_with_token
    from agent_identity.cli.finding import needed_configuration

    request = _token_request(resource, scope, subject_token)
    path = needed_configuration(config)
    raise typer.Exit(run_with_token(path, state_dir, request, env, command, as_json=as_json))


@config_app.command("schema")
@_report_errors
def config_schema(
    state_dir: NoStateDir = None,  # noqa: ARG001 - every command takes it
    as_json: Json = False,  # noqa: ARG001 - it prints JSON anyway
) -> None:
    """Print the JSON Schema of agent-identity.toml, for editors."""
    from agent_identity.cli.config import show_schema

    show_schema()


@config_app.command("show")
@_report_errors
def config_show(state_dir: StateDir = None, config: Config = None, as_json: Json = False) -> None:
    """Print the effective configuration: its values, what was inferred and why, and the defaults."""
    from agent_identity.cli.config import show_configuration
    from agent_identity.cli.finding import needed_configuration

    directory = state_directory(state_dir)
    show_configuration(needed_configuration(config), directory, as_json=as_json)


@config_app.command("client-document")
@_report_errors
def config_client_document(
    issuer: Annotated[str, typer.Argument(help=r"Name of the table of \[issuers].")],
    state_dir: NoStateDir = None,  # noqa: ARG001 - every command takes it
    config: Config = None,
    as_json: Json = False,  # noqa: ARG001 - it prints JSON anyway
) -> None:
    """Print the metadata document to publish at a client_id that is an https URL (CIMD)."""
    from agent_identity.cli.config import show_client_document
    from agent_identity.cli.finding import needed_configuration

    show_client_document(needed_configuration(config), issuer)


@app.command()
@_report_errors
def adapters(
    state_dir: NoStateDir = None,  # noqa: ARG001 - every command takes it
    as_json: Json = False,
) -> None:
    """List the installed adapters for frameworks, with the framework's version and the versions they were tested with."""
    from agent_identity.cli.adapters import describe_adapters

    typer.echo(describe_adapters(as_json=as_json))


@ledger_app.command("verify")
@_report_errors
def ledger_verify(state_dir: StateDir = None, config: Config = None, as_json: Json = False) -> None:
    """Recompute every hash, link and signature. Exit 0: sound, 1: unsound, 2: unreadable."""
    from agent_identity.cli.finding import opened_ledger
    from agent_identity.provenance.signatures import SignatureCheck

    with opened_ledger(state_dir, config) as ledger:
        report = ledger.verify(SignatureCheck(ledger))
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2))
    elif report.ok:
        typer.echo(
            f"sound: {report.records} records of {report.writers} writers, every link is intact"
        )
        typer.echo("records cut off at the end can be detected only with an external checkpoint")
    else:
        typer.secho(f"unsound: {report.first_bad}", fg=typer.colors.RED)
    raise typer.Exit(0 if report.ok else UNSOUND)


Revoked = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="user:<sub>, user:<iss>#<sub>, service:…, trigger:…, ses_…, grant_…, agent:<name>, an agent's URI, client:<id>, or *.",
    ),
]


@app.command("revoke")
@_report_errors
def revoke(
    ref: Revoked,
    reason: Annotated[
        str, typer.Option(help="The reason, in one line; it is recorded.")
    ] = "revoked by an operator",
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Revoke a principal, session, grant, agent or everything, with all that was delegated, for good.

    Agents that share the state directory notice it within a second. `reinstate` allows new work.
    """
    from agent_identity.cli.authority import serve

    _answer(serve.revoke(ref, reason, state_dir, config), as_json=as_json)


@app.command("reinstate")
@_report_errors
def reinstate(
    ref: Revoked,
    reason: Annotated[
        str | None, typer.Option(help="The reason, in one line; it is recorded.")
    ] = None,
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Allow what is issued from the next second on; what was issued before stays revoked."""
    from agent_identity.cli.authority import serve

    _answer(serve.reinstate(ref, reason, state_dir, config), as_json=as_json)


@mcp_app.command("pins")
@_report_errors
def mcp_pins(state_dir: StateDir = None, as_json: Json = False) -> None:
    """List the known tools of MCP servers: which definition is accepted, and which other one the server offers."""
    from agent_identity.cli.pins import list_pins

    typer.echo(list_pins(state_dir, as_json=as_json))


@mcp_app.command("pin")
@_report_errors
def mcp_pin(
    server: Annotated[str, typer.Argument(help="The server's URI, as the agent names it.")],
    tool: Annotated[str, typer.Argument(help="The tool's name at the server.")],
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Accept the definition of a tool that its server offers now. Running agents use it from the next call on."""
    from agent_identity.cli.pins import accept_pin

    typer.echo(accept_pin(server, tool, state_dir, config, as_json=as_json))


def _answer(revocation: Revocation, *, as_json: bool) -> None:
    typer.echo(json.dumps(revocation.to_dict(), indent=2) if as_json else str(revocation))


@authority_app.command("serve")
@_report_errors
def authority_serve(
    state_dir: StateDir = None,
    port: Annotated[int, typer.Option(help="Port on the loopback interface; 0 picks one.")] = 8700,
    config: Config = None,
    as_json: Json = False,
) -> None:
    r"""Serve the authority on loopback: for agents in other processes, or with \[authority] as an organisation's anchor.

    Stop it with Ctrl-C.
    """
    from agent_identity.cli.authority.serve import serve_authority
    from agent_identity.cli.finding import named_configuration

    serve_authority(state_directory(state_dir), port, named_configuration(config), as_json=as_json)


@authority_app.command("rotate")
@_report_errors
def authority_rotate(state_dir: StateDir = None, as_json: Json = False) -> None:
    """Rotate the signing key; the old key stays published for a while. A running authority uses the new key at once."""
    from agent_identity.cli.authority.serve import rotate_key

    issuer, kid = rotate_key(state_directory(state_dir))
    if as_json:
        typer.echo(json.dumps({"issuer": issuer, "kid": kid}, indent=2))
    else:
        typer.echo(f"{issuer} signs with the new key {kid}")


@authority_app.command("jwks")
@_report_errors
def authority_jwks(
    state_dir: StateDir = None,
    config: Config = None,
    as_json: Json = False,  # noqa: ARG001 - it prints JSON anyway
) -> None:
    """Print the public keys of first grants as a JWK set: of the configured signer, otherwise of the authority."""
    from agent_identity.cli.authority.serve import anchor_keys
    from agent_identity.cli.finding import named_configuration

    path = named_configuration(config) if state_dir is None else config
    keys = anchor_keys(path, state_directory(state_dir))
    sys.stdout.write(json.dumps(keys, indent=2) + "\n")
