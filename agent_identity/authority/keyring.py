# SPDX-License-Identifier: Apache-2.0
"""The authority's signing keys: the newest signs, the one before it verifies until all that it signed has expired.

On disk a key is `authority-keys/<generation>.pem` (0600 in 0700), its first line the Unix second in which it was made; the
generation is taken by an exclusive create, so that two processes that start, or rotate, together end up with one key.
A key that verifies no more is deleted with the next rotation, and not by the clock, which may be wrong for a while.
"""

from __future__ import annotations

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
"""Nanoseconds after which a folder's own time tells every change to it."""


@dataclass(frozen=True, slots=True)
class _Generation:
    number: int
    made_at: int
    key: SigningKey
    jwk: JWK = field(compare=False)


class Keyring:
    """The keys in force, newest first. `path` None keeps them in memory."""

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._folder_time: int | None = None
        self._generations: tuple[_Generation, ...] = ()
        self._keep(self._made(1) if path is None else self._found() or self._made(1))

    @property
    def signing(self) -> SigningKey:
        """The key that signs now; its thumbprint is its `kid`."""
        self._refresh()
        return self._generations[0].key

    @property
    def jwks(self) -> tuple[JWK, ...]:
        """The public keys that verify now, the signing one first."""
        self._refresh()
        now = self._clock()
        return tuple(each.jwk for each in _verifying(self._generations, now))

    def rotate(self) -> None:
        """Let a new key sign from now on."""
        self._refresh()
        self._keep(self._made(self._generations[0].number + 1))

    def _refresh(self) -> None:
        """See what another process rotated."""
        if self._path is not None and self._folder_time != self._path.stat().st_mtime_ns:
            self._keep(self._found())

    def _made(self, number: int) -> tuple[_Generation, ...]:
        if self._path is not None:
            read_or_make(self._path / f"{number:08}.pem", self._new_file)
            return self._found()
        generation = _generation(number, int(self._clock()), SigningKey.generate())
        return (generation, *self._generations)

    def _new_file(self) -> bytes:
        return b"%d\n%b" % (int(self._clock()), SigningKey.generate().to_pem())

    def _found(self) -> tuple[_Generation, ...]:
        assert self._path is not None  # noqa: S101 - only called where there is one
        changed = self._path.stat().st_mtime_ns
        known = {generation.number: generation for generation in self._generations}
        files = sorted(self._path.glob("????????.pem"), reverse=True)
        found = (known.get(_number(file)) or _read(file) for file in files)
        # A folder changed a moment ago may change again without its time showing it.
        self._folder_time = changed if changed < time.time_ns() - _SETTLED else None
        return tuple(generation for generation in found if generation is not None)

    def _keep(self, generations: tuple[_Generation, ...]) -> None:
        """Keep the keys that verified when the newest was made, and drop those before them."""
        kept = generations and _verifying(generations, generations[0].made_at)
        if self._path is not None:
            for dropped in set(generations) - set(kept):
                (self._path / f"{dropped.number:08}.pem").unlink(missing_ok=True)
        self._generations = kept


def open_keyring(state_dir: Path | None, clock: Callable[[], float]) -> Keyring:
    """The keyring of a state directory, with a first key where there is none yet.

    Raises:
        ConfigurationError: a key file is damaged, or the folder can't be private.
    """
    if state_dir is None:
        return Keyring(None, clock)
    return Keyring(make_private_directory(state_dir / "authority-keys"), clock)


def _generation(number: int, made_at: int, key: SigningKey) -> _Generation:
    jwk: JWK = {**key.public_jwk, "kid": key.thumbprint, "use": "sig", "alg": key.alg}
    return _Generation(number, made_at, key, jwk)


def _verifying(generations: tuple[_Generation, ...], now: float) -> tuple[_Generation, ...]:
    """The newest, and those that another took over from less than `GRACE` seconds before `now`."""
    return generations[:1] + tuple(
        older for newer, older in pairwise(generations) if newer.made_at + GRACE > now
    )


def _number(file: Path) -> int:
    if not file.stem.isdigit():
        raise ConfigurationError("state_unusable", f"{file} is no key of the authority's")
    return int(file.stem)


def _read(file: Path) -> _Generation | None:
    """None for a key that another process has dropped since the folder was listed."""
    try:
        made_at, _, pem = read_private(file).partition(b"\n")
    except FileNotFoundError:
        return None
    if not made_at.isdigit():
        raise ConfigurationError("state_unusable", f"{file} is no key of the authority's")
    return _generation(_number(file), int(made_at), SigningKey.from_pem(pem))
