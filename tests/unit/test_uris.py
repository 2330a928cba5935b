# SPDX-License-Identifier: Apache-2.0
"""Which URLs a resource covers, what is signed of a URL, and where it leads."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_identity.errors import DeniedError
from agent_identity.uris import covers, htu_of, is_loopback, is_safe_link, origin

API = "https://a.example/api"


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/api",
        "https://a.example/api/",
        "https://a.example/api/x/y",
        "https://a.example/api?q=../..",
        "https://a.example/api/x#part",
        "HTTPS://A.Example:443/api/x",
        "https://a.example:/api",
        "https://a.example/api/a%20b;v=1/@:x",
        "https://a.example/api/.hidden/..more/a..b",
    ],
)
def test_a_resource_covers_itself_and_what_is_below(url: str) -> None:
    assert covers(API, url)


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/apix",
        "https://a.example/",
        "https://a.example",
        "https://a.example/API/x",
        "https://a.example//api/x",
        "https://a.example/%61pi/x",
        "https://a.example/api%2fx",
        "https://a.example/api%2F..%2Fadmin",
        "https://b.example/api/x",
        "https://a.example.evil.example/api/x",
        "https://a.example./api/x",
        "https://a.example:8443/api/x",
        "https://a.example:70000/api/x",
        "http://a.example/api/x",
        "ftp://a.example/api/x",
        "//a.example/api/x",
        "/api/x",
        "",
    ],
)
def test_E16_a_foreign_url_is_not_covered(url: str) -> None:
    assert not covers(API, url)


@pytest.mark.parametrize(
    "rest",
    [
        "/../admin",
        "/x/..",
        "/./x",
        "/.",
        "/..;/admin",
        "/..;v=1/admin",
        "/%2e%2e/x",
        "/%2E./x",
        "/.%2e/x",
        "/x%2ey",
        "/x%2fy",
        "/x%5cy",
        "/x\\..\\y",
        "/%252e%252e/x",
        "/%25252fx",
        "/%c0%ae%c0%ae/x",
        "/%u002e/x",
        "/%zz",
        "/x%",
        "/x%2",
    ],
)
def test_E16_what_a_server_may_read_otherwise_is_not_covered(rest: str) -> None:
    assert not covers(API, API + rest)
    assert not covers("https://a.example", "https://a.example" + rest)


@pytest.mark.parametrize(
    "url",
    [
        "https://user@a.example/api",
        "https://a.example@evil.example/api",
        "https://a.example\\@evil.example/api",
        "https://a.example /api",
        "https://a.example/api\r\nHost: evil.example",
        "https://a.example/api\n",
        "https://a.example/api\x00",
        "https://a.example/api?q=\x7f",
        "https://a.example/api\t/x",
        " https://a.example/api",
        "https://a.example/apí",
        "https://\u0430.example/api",
        "https://a%2eexample/api",
        "http\u017f://a.example/api",
        "https://a.e\u212aample/api",
        "https://a.example:80:443/api",
        "https://a.example:x/api",
        "https:///api",
        "https://[::1/api",
        "https://[:1:]/api",
        "https://[127.0.0.1]/api",
        "https://[1::2::3]/api",
        "https://[.]/api",
    ],
)
def test_E06_userinfo_controls_and_foreign_characters_make_no_url(url: str) -> None:
    assert not covers(API, url)
    assert not covers("https://evil.example/api", url)
    with pytest.raises(DeniedError):
        htu_of(url)
    with pytest.raises(DeniedError):
        origin(url)
    assert not covers(url, url)
    assert not is_safe_link(url)


@pytest.mark.parametrize(
    "host", ["[::1]", "[2001:DB8::1]", "[::ffff:1.2.3.4]", "[2001:db8::1]:8443"]
)
def test_an_address_in_brackets_is_a_place(host: str) -> None:
    assert covers(f"https://{host}", f"https://{host}/x")
    assert htu_of(f"https://{host}") == f"https://{host.lower()}/"
    assert is_safe_link(f"https://{host}")


def test_a_resource_without_a_path_covers_the_whole_origin() -> None:
    for resource in ("https://a.example", "https://a.example/"):
        assert covers(resource, "https://a.example")
        assert covers(resource, "https://a.example/x")
        assert not covers(resource, "https://b.example/x")


def test_a_resource_that_ends_in_a_slash_begins_below_it() -> None:
    assert covers("https://a.example/api/", "https://a.example/api/x")
    assert not covers("https://a.example/api/", "https://a.example/api")


@pytest.mark.parametrize(
    "resource",
    [
        "https://a.example/api?x",
        "https://a.example/api#x",
        "https://a.example/api/../",
        "https://user@a.example/api",
        "urn:agent-identity:local",
        "",
    ],
)
def test_a_resource_that_is_no_plain_url_covers_nothing(resource: str) -> None:
    assert not covers(resource, resource)
    assert not covers(resource, "https://a.example/api")


@pytest.mark.parametrize(
    ("url", "htu"),
    [
        ("https://server.example.com/token", "https://server.example.com/token"),
        ("https://server.example.com", "https://server.example.com/"),
        ("https://server.example.com?q", "https://server.example.com/"),
        ("HTTPS://Server.Example.com:443/Token?q=1#f", "https://server.example.com/Token"),
        ("http://a.example:80/", "http://a.example/"),
        ("http://a.example:0443/", "http://a.example:443/"),
        ("https://a.example:8443/x", "https://a.example:8443/x"),
        ("https://[::1]:8443/x", "https://[::1]:8443/x"),
        ("https://a.example/%7Efoo/%c3%bc/%2f", "https://a.example/~foo/%C3%BC/%2F"),
        ("https://a.example/a/b/c/./../../g", "https://a.example/a/g"),
        ("https://a.example/a/%2e%2e/b", "https://a.example/b"),
        ("https://a.example/a/..", "https://a.example/"),
        ("https://a.example/../../x/.", "https://a.example/x/"),
        ("https://a.example/.../.x", "https://a.example/.../.x"),
        ("https://a.example//x//", "https://a.example//x//"),
    ],
)
def test_htu_is_normalised_and_loses_query_and_fragment(url: str, htu: str) -> None:
    """RFC 9449 §4.2 and §4.3, RFC 3986 §6.2.2 and §6.2.3."""
    assert htu_of(url) == htu
    assert htu_of(htu) == htu


@pytest.mark.parametrize("path", ["%", "%2", "%zz", "x%u0020"])
def test_a_percent_sign_that_begins_no_escape_has_no_htu(path: str) -> None:
    with pytest.raises(DeniedError):
        htu_of(f"https://a.example/{path}")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://A.example/x?y", "https://a.example"),
        ("https://a.example:443", "https://a.example"),
        ("http://a.example:443", "http://a.example:443"),
        ("http://[::1]:80/", "http://[::1]"),
    ],
)
def test_an_origin_is_scheme_host_and_unusual_port(url: str, expected: str) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://LOCALHOST:80/x",
        "http://127.0.0.1:8600",
        "https://127.9.9.9",
        "http://[::1]:1/",
    ],
)
def test_loopback_is_known_by_name_and_address(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:80@evil.example/",
        "http://localhost@evil.example/",
        "http://localhost.evil.example/",
        "http://localhost./",
        "http://127.0.0.1.evil.example/",
        "http://127.1/",
        "http://2130706433/",
        "http://0177.0.0.1/",
        "http://0.0.0.0/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://10.0.0.1/",
        "http://a.example/#@localhost/",
        "http://localhost:99999/",
        "http://[127.0.0.1]/",
        "http://[:1:]/",
        "unix://localhost/",
        "localhost",
        "",
    ],
)
def test_E06_what_only_looks_like_loopback_is_not(url: str) -> None:
    assert not is_loopback(url)


SEGMENT = st.text("abc.~%2eEfF5cC;\\/AZ09 é\x00-_", max_size=6)


@given(st.lists(SEGMENT, max_size=6))
def test_what_is_covered_stays_below_after_normalisation(segments: list[str]) -> None:
    """However a server normalises the path, it doesn't leave the resource."""
    url = API + "/" + "/".join(segments)
    if covers(API, url):
        assert htu_of(url).startswith("https://a.example/api")
        assert covers(API, htu_of(url))


@given(st.text())
def test_no_text_makes_these_raise_anything_but_denied(text: str) -> None:
    for url in (text, f"https://a.example{text}", f"https://{text}/x"):
        covers(url, url)
        is_loopback(url)
        for function in (htu_of, origin):
            with contextlib.suppress(DeniedError):
                function(url)
