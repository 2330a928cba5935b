# SPDX-License-Identifier: Apache-2.0
"""`agent-identity exec`: run a program with a just-in-time token in its environment.

    1. check everything that can be checked before any request is sent
    2. open the session, get the credential, and run the program with the token in one environment variable
    3. forward signals to the program; when it has ended, leave the session, which revokes the token

The token is in no command line. A signal before the program starts ends this process through its `with` blocks.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Final, Self

from agent_identity.cli.tokens import binding_of, check_may_act, is_bound, session_for
from agent_identity.config import read_configuration
from agent_identity.errors import ConfigurationError
from agent_identity.identity import AgentIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import FrameType

    from agent_identity.cli.tokens import TokenRequest

VARIABLE: Final = "AGENT_IDENTITY_TOKEN"
PURPOSE: Final = "a token for one program of the command line"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_FOUND: Final = 127
_NOT_RUNNABLE: Final = 126
_BY_SIGNAL: Final = 128
_FORWARDED: Final = ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")
_FROM_KEYS: Final = frozenset({signal.SIGINT, signal.SIGQUIT})


def run_with_token(
    config: Path,
    state_dir: Path | None,
    request: TokenRequest,
    variable: str,
    command: Sequence[str],
    *,
    as_json: bool,
) -> int:
    """Run the program and return its exit code, or 128 plus the signal that ended it.

    With `as_json` the last line on standard error tells what was run, and in which session.

    Raises:
        AgentIdentityError: the program was not run.
    """
    configuration = read_configuration(config)
    if not _NAME.fullmatch(variable):
        raise ConfigurationError(
            "variable_malformed",
            "--env takes the name of a variable",
            remedy=f"without --env, the token is in {VARIABLE}",
        )
    check_may_act(request, configuration)
    if binding_of(request.resource, configuration) is not None:
        raise _bound_error(request.resource)
    program = shutil.which(command[0])
    if program is None:
        return _not_run(_NotRunError(_NOT_FOUND, f"{command[0]}: no such program"), as_json=as_json)
    signals = _Signals()
    with (
        signals,
        AgentIdentity.from_config(config, state_dir=state_dir) as identity,
        session_for(identity, request, PURPOSE) as session,
    ):
        credential = session.credential(request.resource, request.wanted_scopes)
        if is_bound(credential):
            raise _bound_error(request.resource)
        environment = {**os.environ, variable: credential.reveal()}
        try:
            code = signals.run([*command], program, environment)
        except _NotRunError as error:
            return _not_run(error, as_json=as_json)
    if as_json:
        document = {
            "program": program,
            "exit_code": code,
            "session": session.id,
            "resource": credential.resource,
            "scopes": [*sorted(credential.scopes)],
        }
        sys.stderr.write(json.dumps(document) + "\n")
    return code


class _NotRunError(Exception):
    """The program was not started; the arguments are the exit code and the reason."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, what)
        self.code: int = code
        self.what: str = what


def _not_run(error: _NotRunError, *, as_json: bool) -> int:
    if as_json:
        document = {"code": "program_not_run", "message": error.what, "remedy": None}
        sys.stderr.write(json.dumps(document) + "\n")
    else:
        sys.stderr.write(f"agent-identity: {error.what}\n")
    return error.code


def _bound_error(resource: str) -> ConfigurationError:
    return ConfigurationError(
        "credential_bound",
        f"the credential for {resource} is bound to a key of this process, so another program can't use it",
        remedy='use `agent-identity token` with --method and --url, or set binding = "none" if the issuer allows that',
    )


class _Signals:
    """Forwards signals to the program while it runs; this process goes on until the program has ended."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped_by: int | None = None
        self._is_starting = False
        self._pending: list[int] = []
        self._before: dict[int, signal.Handlers] = {}

    def __enter__(self) -> Self:
        for name in _FORWARDED:
            number = getattr(signal, name, None)
            # A signal that is ignored, for instance by nohup, stays ignored for the program too.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._receive)  # type: ignore[assignment]  # None is a handler that C set; Python has none here
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._child is None and self._stopped_by is not None:
            raise SystemExit(_BY_SIGNAL + self._stopped_by)  # hides any other error

    def run(self, command: list[str], program: str, environment: dict[str, str]) -> int:
        """Run the program to its end; after a signal it isn't started any more."""
        self._is_starting = True
        if self._stopped_by is not None:
            raise SystemExit(_BY_SIGNAL + self._stopped_by)
        try:
            self._child = subprocess.Popen(command, executable=program, env=environment)  # noqa: S603 - what the user asked to run
        except OSError as error:
            code = _NOT_FOUND if error.errno == errno.ENOENT else _NOT_RUNNABLE
            raise _NotRunError(code, f"{command[0]}: {error.strerror}") from error
        self._is_starting = False
        for number in self._pending:
            self._child.send_signal(number)
        code = self._child.wait()
        return _BY_SIGNAL - code if code < 0 else code

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._is_starting:
            self._pending.append(number)
        elif self._child is None:
            # Only noted: interrupting a token request would lose the token, and nothing could revoke it.
            self._stopped_by = self._stopped_by or number
        elif not (number in _FROM_KEYS and _has_terminal()):
            self._child.send_signal(number)  # does nothing when the program has ended


def _has_terminal() -> bool:
    """Whether this process is in the foreground of a terminal, which sends signals of keys to the program itself."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
