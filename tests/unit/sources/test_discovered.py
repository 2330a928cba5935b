# SPDX-License-Identifier: Apache-2.0
"""An issuer that a resource names: read when the resource demands it, guarded, never mixed up with another (RFC 9728)."""

from __future__ import annotations

from typing import Any

import pytest

from agent_identity.credentials.oauth.client import Client, NoProof
from agent_identity.credentials.oauth.discovery import Discovery
from agent_identity.credentials.oauth.issuer import Issuer, KnownClient
from agent_identity.credentials.oauth.registration import FoundClient, InstanceRegistration
from agent_identity.credentials.source import Demand, sub_at
from agent_identity.credentials.sources.chain_alone import ChainAlone
from agent_identity.credentials.sources.client_credentials import ClientCredentials
from agent_identity.credentials.sources.discovered import Discovered
from agent_identity.errors import CredentialRejectedError
from agent_identity.flow import HttpResponse, pure
from agent_identity.testing import play
from agent_identity.values import Principal

SERVER = "https://mcp.example/mcp"
PLACE = "https://mcp.example/.well-known/oauth-protected-resource/mcp"
ROOT = "https://mcp.example/.well-known/oauth-protected-resource"
IDP = "https://idp.example"
MISSING = HttpResponse(404)


class ReadOnce(Issuer):
    """An issuer whose metadata is kept, since `play` shares no answers."""

    known: Any = None

    def endpoints(self) -> Any:
        if self.known is None:
            self.known = yield from super().endpoints()
        return self.known


class Found:
    """A discovery, and the source that uses it."""

    def __init__(self, rig: Any, resource: str = SERVER, **changes: Any) -> None:
        self.rig = rig
        self.made: list[tuple[str, bool]] = []
        self.bound: list[bool] = []
        self.asks: list[Any] = []
        parts = {"make_issuer": self.make_issuer} | changes
        self.discovery = Discovery(resource, rig.clock, **parts)
        self.source = Discovered(
            "client-credentials", self.discovery, self.make, ChainAlone(rig.clock)
        )

    def make_issuer(self, url: str, is_foreign: bool) -> Issuer:
        self.made.append((url, is_foreign))
        clients = KnownClient(Client("c", NoProof()))
        return ReadOnce(
            url,
            clients=clients,
            clock=self.rig.clock,
            is_discovered=True,
            may_be_private=not is_foreign,
        )

    def make(self, issuer: Issuer, is_bound: bool) -> ClientCredentials:
        self.bound.append(is_bound)
        return ClientCredentials(issuer, binding="dpop" if is_bound else "none")

    def learn(self, *answers: Any, **demand: Any) -> Any:
        return play(self.discovery.learn(Demand(**demand)), *answers, asks=self.asks)

    def metadata(self, *issuers: str, resource: str = SERVER, **more: Any) -> HttpResponse:
        answer: HttpResponse = self.rig.json(
            resource=resource, authorization_servers=list(issuers), **more
        )
        return answer

    def fetch(self, *answers: Any, **wanted: Any) -> Any:
        asked = self.rig.wanted(resource=self.discovery.resource, **wanted)
        return play(self.source.fetch(asked), *answers, asks=self.asks)

    def urls(self) -> list[tuple[str, bool]]:
        return [(each.url, each.discovered) for each in self.rig.requests(self.asks)]


@pytest.fixture
def found(rig: Any) -> Found:
    return Found(rig)


def issuers_metadata(rig: Any, issuer: str = IDP, **more: Any) -> HttpResponse:
    answer: HttpResponse = rig.json(issuer=issuer, token_endpoint=f"{issuer}/token", **more)
    return answer


def test_nothing_is_read_until_the_resource_demands_authorization(found: Found, rig: Any) -> None:
    chain = [type("Grant", (), {"exp": rig.NOW + 60})()]
    issued = found.fetch(chain=tuple(chain))
    assert (issued.header, found.asks) == ("", [])


def test_the_url_of_the_challenge_comes_first_and_then_no_other(found: Found) -> None:
    place = "https://mcp.example/custom/metadata.json"
    assert found.learn(MISSING, metadata=place) is None
    assert found.urls() == [(place, False)]


def test_without_one_the_standard_places_are_read(found: Found) -> None:
    found.learn(MISSING, found.metadata(IDP, resource="https://mcp.example"))
    assert found.urls() == [(PLACE, False), (ROOT, False)]
    assert found.discovery.found()[0].resource == "https://mcp.example"


def test_E02_a_metadata_url_elsewhere_leads_to_no_private_address(found: Found) -> None:
    found.learn(MISSING, metadata="https://10.0.0.1/metadata")
    assert found.urls() == [("https://10.0.0.1/metadata", True)]


def test_E02_neither_does_anything_of_the_issuer(found: Found, rig: Any) -> None:
    found.learn(found.metadata(IDP))
    token = rig.token(cnf=None, aud=SERVER)
    found.fetch(issuers_metadata(rig), rig.answered(token, token_type="Bearer"))
    assert [guarded for _, guarded in found.urls()] == [False, True, True]
    assert found.made == [(IDP, True)]


@pytest.mark.parametrize(
    ("issuer", "is_foreign"),
    [("http://localhost:9000", False), ("http://127.0.0.1:1", False), ("https://10.0.0.1", True)],
)
def test_a_server_on_loopback_may_name_an_issuer_there(
    rig: Any, issuer: str, is_foreign: bool
) -> None:
    found = Found(rig, "http://localhost:8000/mcp")
    found.learn(found.metadata(issuer, resource="http://localhost:8000/mcp"))
    assert found.made == [(issuer, is_foreign)]


@pytest.mark.parametrize("place", ["http://10.0.0.1/", "file:///etc/passwd", "nonsense"])
def test_a_metadata_url_that_is_not_https_is_refused(found: Found, place: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found.learn(metadata=place)
    assert (caught.value.code, found.asks) == ("malformed_answer", [])


@pytest.mark.parametrize(
    ("named", "place"),
    [
        ("https://evil.example/mcp", None),
        ("https://mcp.example/other", None),
        ("https://mcp.example/other", f"{ROOT}/other"),
        ("https://mcp.example/mcp/below", None),
        ("https://mcp.example", PLACE),
        ("https://mcp.example", "https://mcp.example/mcp/metadata"),
    ],
)
def test_E03_a_resource_speaks_for_no_other(found: Found, named: str, place: str | None) -> None:
    """A resource above another one speaks for itself at its own place, and nowhere else."""
    with pytest.raises(CredentialRejectedError) as caught:
        found.learn(found.metadata(IDP, resource=named), metadata=place)
    assert caught.value.code == "resource_mismatch"
    assert found.made == []


def test_the_name_that_the_resource_has_for_itself_is_requested(found: Found, rig: Any) -> None:
    found.learn(MISSING, found.metadata(IDP, resource="https://mcp.example"))
    token = rig.token(cnf=None, aud="https://mcp.example")
    issued = found.fetch(issuers_metadata(rig), rig.answered(token, token_type="Bearer"))
    assert rig.form(rig.requests(found.asks)[-1])["resource"] == "https://mcp.example"
    assert issued.resource == SERVER


@pytest.mark.parametrize("issuers", [(), (IDP, "https://other.example")])
def test_an_issuer_is_not_chosen_by_chance(found: Found, issuers: tuple[str, ...]) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found.learn(found.metadata(*issuers))
    assert (caught.value.code, found.made) == ("issuer_ambiguous", [])


@pytest.mark.parametrize(
    "issuer", ["http://idp.example", "https://idp.example/?x=1", "https://idp.example/#x", "idp"]
)
def test_an_issuer_without_https_is_refused(found: Found, issuer: str) -> None:
    with pytest.raises(CredentialRejectedError) as caught:
        found.learn(found.metadata(issuer))
    assert (caught.value.code, found.made) == ("issuer_malformed", [])


def test_a_configured_issuer_has_to_be_among_those_that_are_named(rig: Any) -> None:
    found = Found(rig, issuer=rig.issuer(), make_issuer=None)
    found.learn(found.metadata("https://other.example", IDP))
    assert found.discovery.found()[1].url == IDP
    with pytest.raises(CredentialRejectedError) as caught:
        found.learn(found.metadata("https://other.example"))
    assert caught.value.code == "issuer_not_named"


def test_a_configured_issuer_needs_no_metadata(rig: Any) -> None:
    found = Found(rig, issuer=rig.issuer(), make_issuer=None)
    assert not found.discovery.may_learn
    found.learn(MISSING, MISSING)
    assert found.discovery.may_learn
    assert found.discovery.url == IDP


def test_a_resource_that_demands_and_names_nobody_is_an_error(found: Found) -> None:
    found.learn(MISSING, MISSING)
    with pytest.raises(CredentialRejectedError) as caught:
        found.fetch()
    assert caught.value.code == "metadata_missing"


def test_another_issuer_gets_a_client_and_a_source_of_its_own(found: Found, rig: Any) -> None:
    other = "https://other.example"
    described = [found.source.described]
    for issuer in (IDP, other, other):
        found.learn(found.metadata(issuer))
        described.append(found.source.described)
    assert found.made == [(IDP, True), (other, True)]
    assert len(set(described)) == 3
    assert described[2] == described[3]
    token = rig.token(cnf=None, aud=SERVER, iss=other)
    found.fetch(issuers_metadata(rig, other), rig.answered(token, token_type="Bearer"))
    assert found.urls()[-1] == (f"{other}/token", True)
    assert found.discovery.url == other


@pytest.mark.parametrize(
    ("issuers_own", "resources_own", "is_bound"),
    [
        ({}, {}, False),
        ({"dpop_signing_alg_values_supported": ["ES256"]}, {}, True),
        ({"dpop_signing_alg_values_supported": []}, {}, False),
        ({}, {"dpop_bound_access_tokens_required": True}, True),
    ],
)
def test_tokens_are_bound_where_either_side_says_that_they_can_be(
    found: Found,
    rig: Any,
    issuers_own: dict[str, Any],
    resources_own: dict[str, Any],
    is_bound: bool,
) -> None:
    found.learn(found.metadata(IDP, **resources_own))
    changes = {} if is_bound else {"cnf": None}
    answer = rig.answered(
        rig.token(aud=SERVER, **changes), token_type="DPoP" if is_bound else "Bearer"
    )
    issued = found.fetch(issuers_metadata(rig, **issuers_own), answer)
    assert (found.bound, issued.is_bound) == ([is_bound], is_bound)


@pytest.mark.parametrize(
    ("challenge", "listed", "asked"),
    [
        ({"a"}, ["b"], {"a"}),
        (None, ["b", "c"], {"b", "c"}),
        (None, None, None),
        (set(), ["b"], set()),
        (None, ['b"'], None),
    ],
)
def test_the_scopes_of_the_challenge_come_before_those_of_the_metadata(
    found: Found, challenge: set[str] | None, listed: list[str] | None, asked: set[str] | None
) -> None:
    more = {} if listed is None else {"scopes_supported": listed}
    scopes = None if challenge is None else frozenset(challenge)
    found.learn(found.metadata(IDP, **more), scopes=scopes)
    assert found.discovery.asked == asked


def test_a_token_is_revoked_at_the_issuer_that_issued_it(found: Found, rig: Any) -> None:
    found.learn(found.metadata(IDP))
    token = rig.token(cnf=None, aud=SERVER)
    revocable = issuers_metadata(rig, revocation_endpoint=f"{IDP}/revoke")
    issued = found.fetch(revocable, rig.answered(token, token_type="Bearer"))
    found.learn(found.metadata("https://other.example"))
    assert play(found.discovery.revoke(issued), rig.json(), asks=found.asks) is True
    assert found.urls()[-1] == (f"{IDP}/revoke", True)


def test_a_principal_without_issuer_is_not_known_at_a_discovered_one(
    found: Found, rig: Any
) -> None:
    found.learn(found.metadata(IDP))
    issuer = found.discovery.found()[1]
    assert sub_at(issuer, rig.wanted()) is None
    assert sub_at(issuer, rig.wanted(principal=Principal("alice", iss=IDP))) == "alice"
    assert sub_at(rig.issuer(), rig.wanted()) == "alice"


DOCUMENT = "https://agent.example/client.json"


@pytest.mark.parametrize(
    ("client_id", "reads", "expected"),
    [
        (DOCUMENT, True, DOCUMENT),
        (DOCUMENT, None, "registered"),
        (DOCUMENT, False, "registered"),
        ("known", None, "known"),
        (None, True, "registered"),
    ],
)
def test_a_client_is_known_or_has_a_document_or_registers(
    rig: Any, client_id: str | None, reads: bool | None, expected: str
) -> None:
    registration = InstanceRegistration(
        "bot", rig.agent, owner=None, initial_token=None, recorded=lambda: pure(None)
    )
    known = None if client_id is None else Client(client_id, NoProof())
    issuer = rig.issuer(
        takes_metadata_documents=reads, registration=f"{IDP}/register", discovered=True
    )
    answers = [rig.json(201, client_id="registered")] if expected == "registered" else []
    asks: list[Any] = []
    client = play(FoundClient(known, registration).client(issuer), *answers, asks=asks)
    assert client.client_id == expected
    assert all(each.discovered for each in rig.requests(asks))
