# SPDX-License-Identifier: Apache-2.0
"""What headers and URLs are read with: `challenges_of`, `wanted_by`, `split_chain`, `read_request`, `url_of`, `htu_of`, `covers`.

The parts of an input are separated by NUL: a header's value, a method, a URL, a resource. What an ASGI server hands on is made of
the same parts: the method is its scheme, the URL its path and query, the resource its `Host`.
"""

from __future__ import annotations

import re
import string
from urllib.parse import unquote, urlsplit

import runner

with runner.instrumented():
    from agent_identity.delegation.carriers import split_chain
    from agent_identity.errors import AgentIdentityError
    from agent_identity.http.challenges import challenges_of, wanted_by
    from agent_identity.uris import check_resource, covers, htu_of, is_loopback, is_safe_link
    from agent_identity.verify.asgi import headers_of, path_of, url_of
    from agent_identity.verify.request import read_request

import world

TOKEN = frozenset(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")


def check_challenges(header: str) -> bool:
    found = challenges_of(header)
    assert wanted_by(200, header) is None
    wanted = wanted_by(401, header)
    assert wanted is None or wanted in found
    for scheme, parameters in found:
        assert scheme == scheme.lower()
        assert set(scheme) <= TOKEN
        assert scheme in header.lower()
        for name, value in parameters.items():
            assert name == name.lower()
            assert set(name) <= TOKEN
            assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", value)
    assert challenges_of(written(found)) == found or len(written(found)) > 8000
    return bool(found)


def written(found: list[tuple[str, dict[str, str]]]) -> str:
    """The same challenges in their plainest spelling; one without parameters needs a comma after it."""
    quoted = str.maketrans({'"': '\\"', "\\": "\\\\"})
    return ", ".join(
        f"{scheme} "
        + ", ".join(f'{name}="{value.translate(quoted)}"' for name, value in said.items())
        for scheme, said in found
    )


def check_members(value: str) -> bool:
    members = split_chain(value)
    assert all(member == member.strip(" \t") and "," not in member for member in members)
    assert split_chain(", ".join(members)) == members or len(", ".join(members)) > len(value)
    return True


def check_request(value: str, method: str, url: str) -> bool:
    headers = [("Authorization", value), ("X-Other", value), ("x-other", method)]
    seen = read_request(method, url, headers, None, public_url=None)
    assert (seen.method, seen.url, seen.headers["authorization"]) == (method, url, value)
    split = urlsplit(url)
    read = urlsplit(seen.htu)
    assert (read.scheme, read.hostname, read.port or default(read.scheme)) == (
        split.scheme,
        split.hostname,
        split.port or default(split.scheme),
    )
    assert not read.query
    assert not read.fragment
    assert htu_of(seen.htu) == seen.htu
    sent = [segment.partition(";")[0] for segment in unquote(split.path).split("/")]
    assert not {".", ".."} & {*sent}, "a server could route it by another path"
    assert "#" not in url
    assert not {".", ".."} & set(read.path.split("/"))
    read_request(method, url, headers, None, public_url="https://public.example/")
    try:
        read_request(method, url, [*headers, ("AUTHORIZATION", "")], None, public_url=None)
    except AgentIdentityError:
        return True
    raise AssertionError("a repeated header")


def check_received(target: str, scheme: str, host: str, *, is_raw: bool) -> bool:
    """A request as servers hand it on: `raw_path` as it came or left out, and `path` as they decode that."""
    raw, _, query = target.partition("?")
    scope = {
        "type": "http",
        "scheme": scheme or "https",
        "path": unquote(raw),
        "query_string": query.encode("latin-1", "replace"),
        "headers": [(b"HOST", host.encode("latin-1", "replace")), (b"x-other", b"1")],
    }
    if is_raw:
        scope["raw_path"] = raw.encode("latin-1", "replace")
    url = url_of(scope)
    seen = read_request("GET", url, headers_of(scope), None, public_url=None)
    split = urlsplit(url)
    assert split.scheme in {"http", "https"}
    assert split.netloc == host
    assert split.path == path_of(scope)
    assert split.query.encode() == scope["query_string"]
    assert not split.fragment
    assert unquote(split.path) == scope["path"], "routed by another path than was signed"
    again = urlsplit(seen.htu)
    assert unquote(again.path, "latin-1") == unquote(split.path, "latin-1")
    assert not {".", ".."} & set(re.split(r"[/\\]", unquote(again.path)))
    scope["headers"] += [(b"host", host.encode("latin-1"))]
    try:
        url_of(scope)
    except AgentIdentityError:
        return True
    raise AssertionError("a repeated Host")


def default(scheme: str) -> int:
    return {"http": 80, "https": 443}[scheme]


def check_covers(resource: str, url: str) -> bool:
    if not covers(resource, url):
        return False
    base, below = urlsplit(htu_of(resource)), urlsplit(htu_of(url))
    assert (base.scheme, base.netloc) == (below.scheme, below.netloc)
    assert f"{below.path}/".startswith(base.path.rstrip("/") + "/")
    assert not re.search(r"%2e|%2f|%5c", urlsplit(url).path, re.IGNORECASE)
    return True


def one(data: bytes) -> bool:
    parts = data.decode("utf-8", "surrogateescape").split("\0")
    value, method, url, resource = (*parts, "", "", "", "")[:4]
    took = check_challenges(value)
    if is_loopback(url):
        host = urlsplit(url).hostname or ""
        assert host in {"localhost", "::1", "0:0:0:0:0:0:0:1"} or host.startswith(
            ("127.", "0", ":")
        )
    if is_safe_link(url):
        assert urlsplit(url).scheme == "https" or is_loopback(url)
    for check in (
        lambda: check_members(value),
        lambda: check_request(value, method, url),
        lambda: check_received(url, method, resource, is_raw=True),
        lambda: check_received(url, method, resource, is_raw=False),
        lambda: check_covers(resource, url),
        lambda: check_resource(resource) == resource,
    ):
        try:
            took |= check()
        except AgentIdentityError:
            continue
    return took


def seeds() -> list[bytes]:
    challenges = [
        'Bearer realm="a", error="invalid_token", scope="x y"',
        'DPoP error="use_dpop_nonce", algs="ES256 EdDSA", Basic YWJj==, Bearer',
        'Bearer resource_metadata="https://a.example/.well-known/x", error=insufficient_scope',
        'Negotiate a87421000492aa874209af8bc028, Bearer error_description="\\"quoted\\\\\\""',
    ]
    request = world.PUBLISHED["request"]
    urls = [request["url"], "http://127.0.0.1:80/a/./b/../%7ec%2F", "https://[::1]:8443?q#f"]
    texts = [f"{said}\0GET\0{urls[0]}\0https://a.example/b" for said in challenges]
    texts += [f"a, b ,c\0{request['method']}\0{url}\0{url.partition('?')[0]}" for url in urls]
    texts += [
        f"\0{scheme}\0{target}\0{host}"
        for scheme, host in (("https", "a.example"), ("ws", "[::1]:8443"), ("http", "127.0.0.1:80"))
        for target in ("/", "/a/b?c=d&e", "/a%2Fb/%7ec", "//x/..%2f", "/\u00e9?%c3%a9", "/a;b/.;/c")
    ]
    return [text.encode() for text in texts]


if __name__ == "__main__":
    words = ["Bearer ", "DPoP ", "error=", 'error="', "\\", "%2e", "%2f", "/../", "/./", "\\\\"]
    runner.fuzz(
        "headers",
        one,
        seeds(),
        [*words, "https://", "http://", "wss", "@", "%5c", ";", ":443", "localhost"],
    )
