# SPDX-License-Identifier: Apache-2.0
"""A failing `assert_no_leak` doesn't put the secret into the report that tells of the leak."""

from __future__ import annotations

import pytest

from agent_identity.testing import assert_no_leak
from agent_identity.testing.leaks import LeakError

pytest_plugins = ["pytester"]

KEY = "canary-key-7Hq2x9Wk"
TOKEN = f"eyJhbGciOiJFUzI1NiJ9.{'eyJzdWIiOiJhbGljZSJ9' * 20}.{'c2lnbmF0dXJl' * 10}"

SUITE = """
import os
import pytest
from agent_identity.testing import assert_no_leak

KEY, TOKEN = os.environ["CANARY_KEY"], os.environ["CANARY_TOKEN"]


class Shown:
    def __init__(self, text):
        self.text = text

    def __repr__(self):
        return f"<Shown {self.text}>"


def check(secrets, *places, note=None):
    assert_no_leak(secrets, *places)


@pytest.fixture
def token():
    return TOKEN


@pytest.fixture
def checked():
    held = Shown(KEY)
    yield held
    assert_no_leak([KEY], held)


def test_text():
    key, text = KEY, f"sent {KEY} to somebody"
    assert_no_leak([key], text)


def test_long(token):
    headers = {"authorization": f"DPoP {token}"}
    print(headers)
    check([token], headers, note=token)


def test_object(token):
    place = Shown(token)
    assert assert_no_leak((secret for secret in [token]), "innocent", place) is None


def test_hex():
    place = KEY.encode().hex()
    assert_no_leak({KEY}, place)


def test_during_another():
    key = KEY
    try:
        raise ValueError(key)
    except ValueError as error:
        assert_no_leak([key], error)


def test_in_a_group():
    failures = []
    try:
        assert_no_leak([KEY], KEY)
    except AssertionError as error:
        failures.append(error)
    raise ExceptionGroup(f"checks of {KEY}", failures)


def test_teardown(checked):
    pass


def test_a_repr_that_fails():
    class Broken(Shown):
        def __repr__(self):
            raise RuntimeError("no words")

    broken = Broken("x")
    assert_no_leak([KEY], broken, KEY)
"""


@pytest.mark.parametrize(
    "options",
    [
        ["-l", "-vv", "-rA"],
        ["-l", "--full-trace", "--junitxml=report.xml"],
        ["--tb=native"],
    ],
    ids=" ".join,
)
def test_a_report_of_a_leak_shows_no_secret_whatever_pytest_is_asked_to_show(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("CANARY_KEY", KEY)
    monkeypatch.setenv("CANARY_TOKEN", TOKEN)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    pytester.makepyfile(test_suite=SUITE)
    result = pytester.runpytest_inprocess(*options, "-p", "no:cacheprovider")
    result.assert_outcomes(failed=7, passed=1, errors=1)
    written = "".join(file.read_text() for file in pytester.path.glob("report.xml"))
    text = result.stdout.str() + result.stderr.str() + written
    assert "a secret shows in the" in text
    assert_no_leak([KEY, TOKEN], text)
    assert TOKEN[:60] not in text
    assert TOKEN[-60:] not in text
    assert KEY.encode().hex() not in text


def test_the_frame_of_a_failed_check_holds_no_secret() -> None:
    """For crash reporters, and for a pytest that doesn't load the plugin."""
    with pytest.raises(LeakError) as caught:
        assert_no_leak([KEY], "innocent", f"sent {KEY}")
    assert str(caught.value) == "a secret shows in the text of place 1 (str)"
    frame = caught.traceback[-1].frame
    assert frame.f_locals["__tracebackhide__"]
    assert KEY not in "".join(map(repr, frame.f_locals.values()))
    assert_no_leak([KEY], caught.value)
