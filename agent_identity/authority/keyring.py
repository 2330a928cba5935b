# SPDX-License-Identifier: Apache-2.0
"""The authority's signing keys: the newest signs, and an older one verifies until everything that it signed has expired.

A key is stored in `authority-keys/<generation>.pem` (0600 in 0700); the first line is the Unix second in which it was made.
An exclusive create reserves the generation, so that two processes that start or rotate together get the same key.
An expired key is deleted at the next rotation, not by the clock, which may be wrong for a while.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from agent_identity.errors import ConfigurationError
from agent_identity.keys.private_files import make_private_directory, read_or_make, read_private
from agent_identity.keys.signing import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_identity.keys.signing import JWK

GRACE: Final = 3600
"""Seconds a key verifies after another took over: longer than any token or grant lives."""

_SETTLED: Final = 2_000_000_000
"""Nanoseconds after which the folder's modification time shows each later change."""


@dataclass(frozen=True, slots=True)
class _Generation:
    number: int
    made_at: int
    key: SigningKey
    jwk: JWK = field(compare=False)


class Keyring:
    """The keys that are in use, newest first. `path` None keeps them in memory."""

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self._path = path
        self._folder = str(path)
        self._clock = clock
        self._folder_time: int | None = None
        self._generations: tuple[_Generation, ...] = ()
        self._keep_verifying(
            self._create(1) if path is None else self._read_folder() or self._create(1)
        )

    @property
    def signing(self) -> SigningKey:
        """The key that signs now; its thumbprint is its `kid`."""
        self._refresh()
        return self._generations[0].key

    @property
    def jwks(self) -> tuple[JWK, ...]:
        """The public keys that verify now, the signing key first."""
        self._refresh()
        now = self._clock()
        return tuple(each.jwk for each in _select_verifying(self._generations, now))

    def rotate(self) -> None:
        """Sign with a new key from now on."""
        self._refresh()
        self._keep_verifying(self._create(self._generations[0].number + 1))

    def _refresh(self) -> None:
        """Read the folder again if another process has changed it."""
        if self._path is not None and self._folder_time != os.stat(self._folder).st_mtime_ns:  # noqa: PTH116 - for each grant
            self._keep_verifying(self._read_folder())

    def _create(self, number: int) -> tuple[_Generation, ...]:
        if self._path is not None:
            read_or_make(self._path / f"{number:08}.pem", self._new_file)
            return self._read_folder()
        generation = _make_generation(number, int(self._clock()), SigningKey.generate())
        return (generation, *self._generations)

    def _new_file(self) -> bytes:
        return b"%d\n%b" % (int(self._clock()), SigningKey.generate().to_pem())

    def _read_folder(self) -> tuple[_Generation, ...]:
        assert self._path is not None  # noqa: S101 - only called with a folder
        changed = self._path.stat().st_mtime_ns
        cached = {generation.number: generation for generation in self._generations}
        files = sorted(self._path.glob("????????.pem"), reverse=True)
        generations = (cached.get(_read_number(file)) or _read_file(file) for file in files)
        # Right after a change, another one may leave the folder's modification time as it is.
        self._folder_time = changed if changed < time.time_ns() - _SETTLED else None
        return tuple(generation for generation in generations if generation is not None)

    def _keep_verifying(self, generations: tuple[_Generation, ...]) -> None:
        """Keep the keys that verified when the newest was made, and delete the older ones."""
        verifying = generations and _select_verifying(generations, generations[0].made_at)
        if self._path is not None:
            for dropped in set(generations) - set(verifying):
                (self._path / f"{dropped.number:08}.pem").unlink(missing_ok=True)
        self._generations = verifying


def open_keyring(state_dir: Path | None, clock: Callable[[], float]) -> Keyring:
    """Open the keyring of a state directory; an empty one gets a first key.

    Raises:
        ConfigurationError: a key file is damaged, or the folder can't be made private.
    """
    if state_dir is None:
        return Keyring(None, clock)
    return Keyring(make_private_directory(state_dir / "authority-keys"), clock)


def _make_generation(number: int, made_at: int, key: SigningKey) -> _Generation:
    jwk: JWK = {**key.public_jwk, "kid": key.thumbprint, "use": "sig", "alg": key.alg}
    return _Generation(number, made_at, key, jwk)


def _select_verifying(generations: tuple[_Generation, ...], now: float) -> tuple[_Generation, ...]:
    """Select the newest key, and those that were replaced less than `GRACE` seconds before `now`."""
    return generations[:1] + tuple(
        older for newer, older in pairwise(generations) if newer.made_at + GRACE > now
    )


def _read_number(file: Path) -> int:
    if not file.stem.isdigit():
        raise _unusable(file)
    return int(file.stem)


def _read_file(file: Path) -> _Generation | None:
    """Read a key file; None if another process has deleted it since the folder was listed."""
    try:
        made_at, _, pem = read_private(file).partition(b"\n")
    except FileNotFoundError:
        return None
    if not made_at.isdigit():
        raise _unusable(file)
    return _make_generation(_read_number(file), int(made_at), SigningKey.from_pem(pem))


def _unusable(file: Path) -> ConfigurationError:
    return ConfigurationError("state_unusable", f"{file} isn't a key file of the authority")
