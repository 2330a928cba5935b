# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs, read strictly: one spelling each, and what has another is refused, never put right (SPIFFE-ID §2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from agent_identity.errors import VerificationError

__all__ = ["SpiffeId"]

_SCHEME: Final = "spiffe://"
_LONGEST: Final = 2048
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_PATH: Final = re.compile(r"(?:/(?!\.\.?(?:/|\Z))[A-Za-z0-9._-]+)*")  # no segment is "." or ".."


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A workload's name: a trust domain and a path, which is empty or begins with a slash. Paths differ by case."""

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        if (
            not _TRUST_DOMAIN.fullmatch(self.trust_domain)
            or not _PATH.fullmatch(self.path)
            or len(str(self)) > _LONGEST
        ):
            raise _malformed()

    @classmethod
    def parse(cls, text: object) -> SpiffeId:
        """Read a SPIFFE ID as it stands in a claim or a certificate.

        Raises:
            VerificationError: `spiffe_id_malformed`.
        """
        if not isinstance(text, str) or not text.startswith(_SCHEME):
            raise _malformed()
        trust_domain, slash, path = text.removeprefix(_SCHEME).partition("/")
        return cls(trust_domain, slash + path)

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"


def _malformed() -> VerificationError:
    return VerificationError(
        "spiffe_id_malformed",
        "it is no SPIFFE ID in its one spelling",
        remedy="write spiffe://<trust domain>/<path>: the trust domain in lower case, plain segments, nothing else",
    )
