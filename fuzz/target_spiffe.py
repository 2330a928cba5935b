# SPDX-License-Identifier: Apache-2.0
"""`SpiffeId.parse`: it takes exactly what SPIFFE-ID §2 allows, read here character by character, and changes nothing."""

from __future__ import annotations

import string

import atheris
import runner

with runner.instrumented():
    from agent_identity.credentials.workload.spiffe import SpiffeId
    from agent_identity.errors import VerificationError

DOMAIN = {*string.ascii_lowercase, *string.digits, *".-_"}
SEGMENT = DOMAIN | {*string.ascii_uppercase}


@atheris.instrument_func
def is_allowed(text: str) -> bool:
    if text[:9] != "spiffe://" or len(text) > 2048:
        return False
    domain, *segments = text[9:].split("/")
    return (
        0 < len(domain) <= 255
        and all(character in DOMAIN for character in domain)
        and all(
            segment not in {"", ".", ".."} and all(character in SEGMENT for character in segment)
            for segment in segments
        )
    )


def one(data: bytes) -> bool:
    text = data.decode("utf-8", "surrogateescape")
    try:
        found = SpiffeId.parse(text)
    except VerificationError:
        assert not is_allowed(text)
        return False
    assert is_allowed(text)
    assert str(found) == text
    return True


def seeds() -> list[bytes]:
    names = ["a", "prod.example/payments/web-1", "a_b/c.d/..e", "a/" + "b" * 2036, "d" * 255]
    return [f"spiffe://{name}".encode() for name in names]


if __name__ == "__main__":
    runner.fuzz("spiffe", one, seeds(), ["spiffe://", "/..", "/.", "%2e", "\n", "@", ":443"])
