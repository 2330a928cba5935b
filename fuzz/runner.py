# SPDX-License-Identifier: Apache-2.0
"""What every target shares: seeds on disk, limits, a count of what got through, and libFuzzer below."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import atheris

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
FINDINGS = HERE / "findings"
EVERY = 500
LIMITS = {"-timeout": "10", "-rss_limit_mb": "2048", "-max_len": "20000"}


def instrumented() -> AbstractContextManager[object]:
    """Import the library within this, so that each of its branches is a coverage point."""
    atheris.enabled_hooks.add("str")  # not "RegEx", which fails on patterns of bytes
    return atheris.instrument_imports(include=["agent_identity"])


def fuzz(
    name: str,
    one: Callable[[bytes], bool],
    seeds: Iterable[bytes],
    words: Iterable[str] = (),
) -> None:
    """Hand over to libFuzzer, which ends the process.

    `one` says whether the library took the input; what it raises apart from the library's own errors is a finding. `seeds`
    is what mutation begins with, `words` what it likes to insert.
    """
    from agent_identity.errors import AgentIdentityError  # instrumented by then

    seen = took = 0
    count = CORPUS / f"{name}.taken"

    def once(data: bytes) -> None:
        nonlocal seen, took
        seen += 1
        if seen % EVERY == 0:  # libFuzzer ends the process without a word to Python
            count.write_text(str(took))
        try:
            took += one(data)
        except AgentIdentityError:
            return

    atheris.Setup([*sys.argv, *_options(name, seeds, words)], once)
    atheris.Fuzz()


def _options(name: str, seeds: Iterable[bytes], words: Iterable[str]) -> list[str]:
    """What the command line leaves out. Given a file, libFuzzer runs it once: that is how a finding is reproduced."""
    if any(not given.startswith("-") for given in sys.argv[1:]):
        return []
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    dictionary = CORPUS / f"{name}.dict"
    dictionary.write_text("".join(f"{_quoted(word)}\n" for word in words))
    options = LIMITS | {
        "-artifact_prefix": f"{FINDINGS}/{name}-",
        "-dict": str(dictionary),
        "-print_final_stats": "1",
    }
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    return [f"{flag}={value}" for flag, value in options.items() if flag not in given] + [
        str(corpus)
    ]


def _quoted(word: str) -> str:
    """A word as a line of libFuzzer's dictionaries."""
    return '"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"'
