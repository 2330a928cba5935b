# SPDX-License-Identifier: Apache-2.0
"""The file in, a `Configuration` or one error out.

    1. the file is found where somebody named it, never in the working directory by itself
    2. nobody else may have written it
    3. TOML, then shapes; what is misshapen is put aside, so that the rest is looked at too
    4. relative paths become absolute, what was left out is inferred
    5. everything is checked; all problems are one error, in the order of their lines

Values of the file never get into an error. Errors of the parsers carry them, so each is read where it is caught, and what
is raised is raised outside, where Python attaches nothing.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from agent_identity.config.anchoring import anchored
from agent_identity.config.checks import check, check_policy
from agent_identity.config.inference import infer
from agent_identity.config.lines import Lines
from agent_identity.config.environment import CONFIG, configuration_file
from agent_identity.config.problems import (
    Fault,
    InvalidConfigurationError,
    Problem,
    key_text,
    telling,
)
from agent_identity.config.shapes import shaped
from agent_identity.config.unsupported import unsupported
from agent_identity.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from agent_identity.config.model import Configuration
    from agent_identity.config.shapes import Toml

__all__ = ["read_configuration"]

_LIMIT: Final = 1024 * 1024
_READING: Final = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH


def read_configuration(
    path: str | Path | None = None, *, needs_policy: bool = True
) -> Configuration:
    """Read `agent-identity.toml`, with everything that it leaves out written out.

    Without a path it is the file that `AGENT_IDENTITY_CONFIG` names. `needs_policy=False` is for callers that bring a policy.

    Raises:
        InvalidConfigurationError: all that is wrong with it, in `.problems`.
        ConfigurationError: no file is named, or it can't be read or trusted.
    """
    file = _named(path)
    text = _decoded(_bytes_of(file))
    if text is None:
        raise _malformed(file, None, "isn't UTF-8")
    data = _parsed(text)
    if not isinstance(data, dict):
        raise _malformed(file, data, "isn't TOML from here on")
    configuration, faults = shaped(data)
    if configuration is not None:
        configuration = infer(anchored(configuration, file.absolute().parent))
        faults += check(configuration)
        faults += unsupported(configuration)
        faults += check_policy(configuration) if needs_policy else ()
    if configuration is None or faults:
        raise InvalidConfigurationError(str(file), _located(telling(faults), text))
    return configuration


def _located(faults: Iterable[Fault], text: str) -> list[Problem]:
    lines = Lines(text)
    problems = [
        Problem(fault.code, key_text(fault.path), lines.of(fault.path), fault.message, fault.remedy)
        for fault in faults
    ]
    return sorted(problems, key=lambda problem: problem.line or len(text) + 1)


# -- the file ---------------------------------------------------------------------------------------------------------


def _named(path: str | Path | None) -> Path:
    found = configuration_file() if path is None else Path(path)
    if found is None:
        raise ConfigurationError(
            "not_configured",
            f"no configuration is named, neither by the caller nor by {CONFIG}",
            remedy=f"set {CONFIG} to the path of agent-identity.toml",
        )
    return found


def _bytes_of(file: Path) -> bytes:
    try:
        descriptor = os.open(file, _READING)
        with os.fdopen(descriptor, "rb") as opened:
            _check_safe(file, os.fstat(opened.fileno()))
            data = opened.read(_LIMIT + 1)
    except FileNotFoundError as error:
        raise ConfigurationError(
            "config_missing", f"{file} isn't there", remedy=f"look at --config and {CONFIG}"
        ) from error
    except OSError as error:
        raise ConfigurationError("config_unreadable", f"{file} can't be read") from error
    if len(data) > _LIMIT:
        raise ConfigurationError("config_unreadable", f"{file} is larger than 1 MiB")
    return data


def _check_safe(file: Path, status: os.stat_result) -> None:
    """Whoever writes this file says where secrets go, so nobody else may (POSIX; elsewhere nothing shows it)."""
    if not stat.S_ISREG(status.st_mode):
        raise ConfigurationError("config_unreadable", f"{file} is no file")
    if os.name != "posix":
        return
    if status.st_mode & _WRITABLE_BY_OTHERS:
        raise ConfigurationError(
            "config_unsafe",
            f"{file} may be written by its group or by everybody",
            remedy=f"chmod go-w {file}",
        )
    if status.st_uid not in {0, os.getuid()}:
        raise ConfigurationError(
            "config_unsafe",
            f"{file} belongs to another user",
            remedy="make a copy that belongs to this user or to root",
        )


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:  # it carries all the bytes
        return None


_AT_LINE: Final = re.compile(r"\(at line ([0-9]+), column [0-9]+\)\Z")


def _parsed(text: str) -> Toml | int | None:
    """The tables of a text, or the line from which on it can't be read (None where that isn't known)."""
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Numbers beyond all bounds and lists beyond all depth are no TOMLDecodeError.
        at = _AT_LINE.search(str(error))
    if at is not None:
        return int(at[1])
    return text.count("\n") + 1


def _malformed(file: Path, line: int | None, what: str) -> InvalidConfigurationError:
    remedy = "mind the quotes and brackets there"
    return InvalidConfigurationError(
        str(file), [Problem("config_malformed", "", line, what, remedy)]
    )
