# SPDX-License-Identifier: Apache-2.0
"""SPIFFE IDs have one spelling each; the parser gives it back, and takes no other (SPIFFE-ID §2)."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.credentials.workload.spiffe import SpiffeId
from agent_identity.errors import VerificationError

LOWER = string.ascii_lowercase + string.digits + ".-_"
SEGMENT = string.ascii_letters + string.digits + ".-_"

trust_domains = st.text(LOWER, min_size=1, max_size=255)
segments = st.text(SEGMENT, min_size=1, max_size=30).filter(lambda text: text not in {".", ".."})
paths = st.lists(segments, max_size=8).map(lambda parts: "".join(f"/{part}" for part in parts))
ids = st.builds(lambda domain, path: f"spiffe://{domain}{path}", trust_domains, paths)


def reads(text: str) -> bool:
    """The rules once more, without the parser's patterns."""
    if not text.startswith("spiffe://") or len(text) > 2048:
        return False
    domain, *parts = text[len("spiffe://") :].split("/")
    return (
        0 < len(domain) <= 255
        and set(domain) <= set(LOWER)
        and all(part not in {"", ".", ".."} and set(part) <= set(SEGMENT) for part in parts)
    )


@given(ids)
def test_an_id_is_given_back_as_it_was_written(text) -> None:
    found = SpiffeId.parse(text)
    assert str(found) == text
    assert SpiffeId(found.trust_domain, found.path) == found


@given(
    ids.flatmap(
        lambda text: st.builds(
            lambda at, length, new: text[:at] + new + text[at + length :],
            st.integers(0, len(text)),
            st.integers(0, 3),
            st.text(max_size=3) | st.sampled_from(["/", "//", "/../", "%61", ":1", "@", "?", "A"]),
        )
    )
)
def test_a_change_anywhere_is_another_id_or_none(text) -> None:
    if reads(text):
        assert str(SpiffeId.parse(text)) == text
    else:
        with pytest.raises(VerificationError):
            SpiffeId.parse(text)


@given(st.text() | st.binary() | st.none() | st.integers() | st.lists(st.text(), max_size=2))
def test_whatever_else_is_refused(value) -> None:
    if not isinstance(value, str) or not reads(value):
        with pytest.raises(VerificationError) as caught:
            SpiffeId.parse(value)
        assert caught.value.code == "spiffe_id_malformed"


@pytest.mark.parametrize("path", ["", "/a", "/a/b.c_d-E", "/...", "/.a", "/a..", "/9"])
def test_a_path_may_be_empty_or_have_plain_segments(path) -> None:
    assert SpiffeId.parse(f"spiffe://example.org{path}") == SpiffeId("example.org", path)


def test_paths_differ_by_case() -> None:
    assert SpiffeId.parse("spiffe://a/B") != SpiffeId.parse("spiffe://a/b")


@pytest.mark.parametrize(("domain", "path"), [("a/b", ""), ("a", "b"), ("a", "/b/"), ("", "/b")])
def test_parts_that_make_no_id_make_none(domain, path) -> None:
    with pytest.raises(VerificationError):
        SpiffeId(domain, path)
