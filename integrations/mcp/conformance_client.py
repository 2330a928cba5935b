# SPDX-License-Identifier: Apache-2.0
"""A client for the conformance suite of MCP: `conformance_client.py <server-url>`, for all client scenarios.

The suite gives the scenario in MCP_CONFORMANCE_SCENARIO, and what the client was told beforehand (its id, a key, a secret, tokens) in
MCP_CONFORMANCE_CONTEXT, as JSON. Here it becomes a configuration file, as an operator would write it. The rest is the library.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import urlsplit

import httpx2
import mcp_types as types
import orjson

from agent_identity import AgentIdentity, Session, jose
from agent_identity.credentials import SubjectTokens
from agent_identity.keys.signing import SigningKey, public_signing_jwk
from agent_identity.values import b64url
from agent_identity_mcp import connect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from agent_identity.values import JSON, Prompt

PURPOSE: Final = "run the conformance suite"
PEOPLE: Final = "https://people.example"
"""The issuer of the agent's principals, where the suite has none of its own."""
DOCUMENT: Final = "https://conformance-test.local/client-metadata.json"
ALICE: Final = "user:alice"


class Setting:
    """What the operator of one scenario sets up: the configuration file, and the principal of the session."""

    def __init__(self, url: str, scenario: str, context: Mapping[str, Any], folder: Path) -> None:
        self.url = url
        self.scenario = scenario.removeprefix("auth/")
        self.context = context
        self.folder = folder
        self.subject: str | SubjectTokens | None = ALICE
        self.lines = ['[agent]\nname = "conformance"', '[policy]\nengine = "grants-only"']
        self.lines.append('[ledger]\nurl = "memory:"')

    def configuration(self) -> str:
        own = getattr(self, self.scenario.replace("-", "_"), self.discovered)
        own()
        return "\n\n".join(self.lines)

    def discovered(self, *more: str, client: str = f'client_id = "{DOCUMENT}"') -> None:
        """Nothing is known of the server's issuer, which may read the client's metadata document."""
        self.resource('issuer = "discovered"', *more)
        self.lines.append(f"[mcp]\n{client}")

    def scope_step_up(self) -> None:
        self.discovered('scopes = ["mcp:basic", "mcp:write"]')

    def client_credentials_jwt(self) -> None:
        self.subject = None
        key = self.file("key.pem", self.context["private_key_pem"])
        client = f'client_id = "{self.context["client_id"]}"\nclient_key = "file:{key}"'
        self.discovered('source = "client-credentials"', client=client)

    def wif_jwt_bearer(self) -> None:
        self.subject = None
        token = self.file("token", self.context["valid_jwt"])
        self.discovered(
            'source = "jwt-bearer"',
            'assertion_from = "workload"',
            'provider = "file"',
            f'path = "{token}"',
            client=f'client_id = "{self.context["client_id"]}"',
        )

    def client_credentials_basic(self) -> None:
        """A secret is for one issuer, so that is configured. The suite doesn't name it: the operator looks it up."""
        self.subject = None
        self.registered(self.named_issuer(), 'source = "client-credentials"')

    def pre_registration(self) -> None:
        self.registered(self.context["issuer"], 'source = "authorization-code"')
        key = SigningKey.generate()
        self.people(PEOPLE, public_signing_jwk(key))
        now = int(time.time())
        claims = {"iss": PEOPLE, "sub": "alice", "aud": "conformance", "iat": now}
        header = jose.encode_header(key.alg, typ="JWT", kid=key.thumbprint)
        token = key.compact(header, orjson.dumps({**claims, "exp": now + 600}))
        self.subject = SubjectTokens(id_token=token)

    def enterprise_managed_authorization(self) -> None:
        """The identity provider of the suite publishes no keys, so its key is computed from the signature of its token."""
        token = self.context["idp_id_token"]
        more = [f'client_id = "{self.context["idp_client_id"]}"', 'client_auth = "none"']
        self.people(self.context["idp_issuer"], recovered_key(token), more=more)
        self.registered(self.named_issuer(), 'source = "id-jag"', 'via = "people"')
        self.subject = SubjectTokens(id_token=token)

    def resource(self, *lines: str) -> None:
        self.lines.append("\n".join((f'[resources."{self.url}"]', *lines)))

    def registered(self, issuer: str, *lines: str) -> None:
        """A client with a secret, registered at an issuer that binds no tokens."""
        os.environ["CONFORMANCE_SECRET"] = self.context["client_secret"]
        client = f'client_id = "{self.context["client_id"]}"'
        proof = 'client_secret = "env:CONFORMANCE_SECRET"'
        self.lines.append(f'[issuers.server]\nissuer = "{issuer}"\n{client}\n{proof}')
        self.resource('issuer = "server"', 'binding = "none"', *lines)

    def people(self, issuer: str, *keys: JSON, more: list[str] | None = None) -> None:
        """The issuer whose tokens name the principal."""
        jwks = self.file("jwks.json", json.dumps({"keys": keys}))
        own = more or ['audience = "conformance"', 'client_auth = "none"']
        lines = [f'issuer = "{issuer}"', 'trust = ["subjects"]', f'jwks = "file:{jwks}"', *own]
        self.lines.append("\n".join(("[issuers.people]", *lines)))

    def named_issuer(self) -> str:
        """The issuer that the server's metadata names."""
        place = urlsplit(self.url)
        path = f"/.well-known/oauth-protected-resource{place.path}"
        answer = httpx2.get(f"{place.scheme}://{place.netloc}{path}", trust_env=False)
        return str(answer.json()["authorization_servers"][0])

    def file(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)
        return path


P: Final = 2**256 - 2**224 + 2**192 + 2**96 - 1
N: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
B: Final = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B
G: Final = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
Point: TypeAlias = tuple[int, int]


def recovered_key(token: str) -> JSON:
    """A P-256 key that verifies the ES256 signature of a token, computed from that signature (SEC 1 §4.1.6)."""
    signed, _, _ = token.rpartition(".")
    raw = jose.unverified(token).signature
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    digest = int.from_bytes(sha256(signed.encode()).digest(), "big")
    point = r, pow((r**3 - 3 * r + B) % P, (P + 1) // 4, P)
    key = _times(pow(r, -1, N), _add(_times(s, point), _times(N - digest % N, G)))
    x, y = (b64url(number.to_bytes(32, "big")) for number in key)
    return {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "x": x, "y": y}


def _add(one: Point, two: Point) -> Point:
    """The sum of two points of P-256, neither of which is the other's negative."""
    if one == two:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, P)
    else:
        slope = (two[1] - one[1]) * pow(two[0] - one[0], -1, P)
    x = (slope**2 - one[0] - two[0]) % P
    return x, (slope * (one[0] - x) - one[1]) % P


def _times(factor: int, point: Point) -> Point:
    found = point
    for bit in bin(factor)[3:]:
        found = _add(found, found)
        found = _add(found, point) if bit == "1" else found
    return found


async def sign_in(prompt: Prompt) -> None:
    """Follow the link as the browser of a signed-in person does."""
    async with httpx2.AsyncClient(trust_env=False) as browser:
        answer = await browser.get(prompt.authorization_url or "", follow_redirects=False)
        await browser.get(answer.headers["location"])


async def elicited(_: Any, params: Any) -> types.ElicitResult:
    """What a person enters who changes nothing: the defaults of a form."""
    properties = getattr(params, "requested_schema", {}).get("properties", {})
    content = {name: each["default"] for name, each in properties.items() if "default" in each}
    if not content:
        content = {name: _example(each) for name, each in properties.items()}
    return types.ElicitResult(action="accept", content=content)


def _example(schema: Mapping[str, Any]) -> Any:
    return {"boolean": True, "integer": 1, "number": 1}.get(schema.get("type", ""), "yes")


def arguments_of(tool: Any, tools: list[Any]) -> dict[str, Any]:
    if tool.name == "add_numbers":
        return {"a": 2, "b": 3}
    properties = tool.input_schema.get("properties", {})
    if "schema" in properties:  # it wants the definition of the other tool back
        return {"schema": next(each.input_schema for each in tools if each is not tool)}
    required = tool.input_schema.get("required", ())
    return {name: _example(properties.get(name, {})) for name in required}


def session_of(identity: AgentIdentity, subject: str | SubjectTokens | None) -> Session:
    if subject is None:
        return identity.autonomous(trigger="conformance", purpose=PURPOSE)
    return identity.on_behalf_of(subject, purpose=PURPOSE)


async def use(client: Any, context: Mapping[str, Any]) -> None:
    """Call each tool of a server, and read what else it has."""
    tools = (await client.list_tools()).tools
    calls = [(each["name"], each["arguments"]) for each in context.get("toolCalls", ())]
    calls = calls or [(tool.name, arguments_of(tool, tools)) for tool in tools]
    await asyncio.gather(*(tell(name, client.call_tool(name, own)) for name, own in calls))
    if client.server_capabilities.resources is not None:
        listed = await tell("resources", client.list_resources())
        for resource in () if listed is None else listed.resources:
            await tell(resource.name, client.read_resource(resource.uri))
    if client.server_capabilities.prompts is not None:
        listed = await tell("prompts", client.list_prompts())
        for prompt in () if listed is None else listed.prompts:
            await tell(prompt.name, client.get_prompt(prompt.name))


async def tell(name: str, work: Awaitable[Any]) -> Any:
    """Show what comes of one request. One that fails doesn't keep a program from the others."""
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - shown, whatever it is
        print(name, repr(error), file=sys.stderr)
        return None
    print(name, getattr(result, "content", result), file=sys.stderr)
    return result


async def main() -> None:
    url, scenario = sys.argv[-1], os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
    context = jose.loads_object(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}").encode() or b"{}")
    version = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "")
    mode = "legacy" if version < "2026" and version else "auto"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        setting = Setting(url, scenario, context, folder)
        file = setting.file("agent-identity.toml", setting.configuration())
        state = folder / "state"
        async with contextlib.AsyncExitStack() as stack:
            identity = AgentIdentity.from_config(file, state_dir=state, on_interaction=sign_in)
            await stack.enter_async_context(identity)
            await stack.enter_async_context(session_of(identity, setting.subject))
            options: dict[str, Any] = {"elicitation_callback": elicited, "mode": mode}
            client = await stack.enter_async_context(connect(url, identity=identity, **options))
            await use(client, context)


if __name__ == "__main__":
    asyncio.run(main())
