# SPDX-License-Identifier: Apache-2.0
"""Vendors' documented requests and answers, replayed against the files of their pages in docs/how-to.

`vendors/*.json` holds them: members and values as documented, tokens made here. A fake on loopback checks the members that the
documentation requires. An answer is accepted, or refused with a remedy that names the key which then allows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from agent_identity import AgentIdentity, CredentialRejectedError
from agent_identity.credentials import SubjectTokens
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import FakeIssuer
from agent_identity.testing.web import FakeResponse, Received

ROOT = Path(__file__).parents[2]
DATA = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parent.glob("vendors/*")}
CASES = {
    f"{vendor}: {case['name']}": case for vendor, data in DATA.items() for case in data["cases"]
}
NOW = 1_790_000_000
CLIENT_MEMBERS = {"client_id", "client_secret", "client_assertion", "client_assertion_type"}


class Vendor(FakeIssuer):
    """One issuer of a page, at any path of its URL. It answers a case's exchanges one after the other."""

    def __init__(self, exchanges: list[dict[str, Any]], names: dict[str, str]) -> None:
        self.exchanges = exchanges
        self.names = names
        self.place = ""
        self.introspection: dict[str, Any] | None = None
        self.faults: list[str] = []
        super().__init__(clock=lambda: NOW)

    def answer(self, request: Received) -> FakeResponse:
        if "/.well-known/" in request.path:
            return _json(200, self.metadata() | {"issuer": self.place})
        if request.path == "/introspect":
            return _json(200, self.introspection or {})
        if "/token" not in request.path:
            return super().answer(request)
        exchange = self.exchanges.pop(0)
        faults = list(self._faults(request, exchange))
        self.faults += faults
        return _json(400, {"error": "invalid_request"}) if faults else self._documented(exchange)

    def metadata(self) -> dict[str, Any]:
        more = {} if self.introspection is None else {"introspection": f"{self.url}/introspect"}
        return super().metadata() | {f"{name}_endpoint": url for name, url in more.items()}

    def _faults(self, request: Received, exchange: dict[str, Any]) -> Iterator[str]:
        pairs = parse_qsl(request.body.decode(), strict_parsing=True)
        form = dict(pairs)
        if len(form) < len(pairs):
            yield "a member stands twice"
        for name, value in exchange["request"].items():
            if form.get(name) != self.names.get(value, value) and (
                value != "*" or not form.get(name)
            ):
                yield f"{name} is {form.get(name)}"
        known = {*exchange["request"], *(() if exchange.get("only") else form)}
        yield from (f"{name} isn't documented" for name in {*form} - known)
        yield from (f"{name} is sent" for name in exchange.get("absent", ()) if name in form)

    def _documented(self, exchange: dict[str, Any]) -> FakeResponse:
        answer = dict(exchange["answer"])
        if answer["access_token"] == "CLAIMS":
            claims = {
                name: self.names.get(value, value) if isinstance(value, str) else value
                for name, value in exchange["claims"].items()
            }
            absent = {"iss": None, "sub": None, "aud": None} | claims
            token = self.token(
                "", audience="", typ=exchange.get("typ", "JWT"), claims=absent | {"exp": NOW + 300}
            )
            answer["access_token"] = token
        return _json(200, answer)


def _json(status: int, document: dict[str, Any]) -> FakeResponse:
    return FakeResponse(status, {}, json.dumps(document).encode())


class Replay:
    """A case's page, with its issuers on loopback."""

    def __init__(self, case: dict[str, Any], folder: Path) -> None:
        self.case = case
        self.folder = folder
        page = (ROOT / "docs" / "how-to" / f"{case['page']}.md").read_text(encoding="utf-8")
        self.text = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[
            case.get("file", 1) - 1
        ]
        for old, new in case.get("replace", {}).items():
            assert old in self.text, old
            self.text = self.text.replace(old, new)
        self.names: dict[str, str] = {}
        exchanges = [dict(exchange) for exchange in case["exchanges"]]
        self.vendors: list[Vendor] = []
        for place in re.findall(r'^issuer = "(https://[^"]+)"', self.text, re.MULTILINE):
            vendor = Vendor(exchanges, self.names)
            origin = re.match(r"https://[^/]+", place)
            assert origin is not None
            vendor.place = place.replace(origin[0], vendor.url)
            vendor.introspection = case.get("introspection")
            self.vendors.append(vendor)
            self.text = self.text.replace(f'"{origin[0]}', f'"{vendor.url}')
            self.names["ISSUER" if len(self.vendors) == 1 else "ISSUER2"] = vendor.place

    def close(self) -> None:
        for vendor in self.vendors:
            vendor.close()

    def run(self, *keys: str) -> Any:
        """Get the case's credential, with more keys at the last issuer."""
        exchanges = self.vendors[0].exchanges
        exchanges[:] = [dict(exchange) for exchange in self.case["exchanges"]]
        last = self.vendors[-1].place
        more = "".join(f"{key} = true\n" for key in keys)
        file = self.folder / "agent-identity.toml"
        line = f'issuer = "{last}"'
        file.write_text(self.text.replace(line, f"{more}{line}"))
        file.chmod(0o600)
        with AgentIdentity.from_config(file, clock=lambda: NOW, ledger="memory:") as identity:
            with self._session(identity) as session:
                credential = session.credential(self.case["resource"], self.case["scopes"])
        assert exchanges == []
        return credential

    def _session(self, identity: AgentIdentity) -> Any:
        if "subject" not in self.case:
            return identity.autonomous(trigger="cron:test", purpose="replay")
        vendor = self.vendors[0]
        claims = {"iss": vendor.place, "sub": "alice"} | self.case["subject"]
        kind = self.case.get("subject_type", "access_token")
        token = vendor.token("", audience="", typ="JWT", claims=claims)
        self.names["SUBJECT"] = token
        tokens = {kind: token, "refresh_token": "the-refresh-token"}
        return identity.on_behalf_of(SubjectTokens(**tokens), purpose="replay")


@pytest.fixture
def replay(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Replay]:
    monkeypatch.setenv("AGENT_IDENTITY_STATE_DIR", str(tmp_path / "state"))
    replay = Replay(CASES[request.param], tmp_path)
    for name in re.findall(r'"env:(\w+)"', replay.text):
        monkeypatch.setenv(name, "the-secret")
    for name in re.findall(r'"file:([\w/.-]+\.pem)"', replay.text):
        key = tmp_path / name
        key.parent.mkdir(exist_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(SigningKey.generate().to_pem())
    yield replay
    replay.close()


@pytest.mark.filterwarnings("ignore:client assertions for okta:UserWarning")  # the page says so
@pytest.mark.parametrize("replay", CASES, indirect=True)
def test_a_documented_answer_is_accepted_or_refused_with_the_key_that_allows_it(
    replay: Replay,
) -> None:
    case = replay.case
    keys: list[str] = []
    for key in case.get("keys", ()):
        with pytest.raises(CredentialRejectedError) as refused:
            replay.run(*keys)
        assert key in (refused.value.remedy or "")
        keys.append(key)
    if "refused" in case:
        with pytest.raises(CredentialRejectedError) as caught:
            replay.run()
        assert caught.value.code == case["refused"]
    else:
        credential = replay.run(*keys)
        assert credential.token_type == "Bearer"
        assert set(credential.scopes) == set(case["scopes"])
    assert [vendor.faults for vendor in replay.vendors if vendor.faults] == []


def test_every_vendor_says_where_its_examples_are_from_and_has_a_page() -> None:
    pages = {case["page"] for case in CASES.values()}
    assert pages == DATA.keys()
    assert all(data["source"] for data in DATA.values())
    assert len(DATA) == 10
