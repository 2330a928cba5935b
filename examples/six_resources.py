# SPDX-License-Identifier: Apache-2.0
"""Six resources of six kinds in one session: one file says how each credential is had, and the tools don't know.

    python examples/six_resources.py

Two issuers and six services run on loopback. The agent acts for Alice, whose token it was given when she signed in. What each
service is sent is what its kind needs, and no credential signs a request to another's address.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from agent_identity import AgentIdentity, DeniedError, current_credential, tool
from agent_identity.credentials import SubjectTokens
from agent_identity.jose import loads_object, unverified
from agent_identity.keys.signing import SigningKey
from agent_identity.testing import FakeIssuer, FakeWeb

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFIGURATION = """
[agent]
name = "close-bot"
owner = "team-finance@example.com"

[issuers.acme]                          # Alice's own issuer
issuer = "{acme}"
trust = ["subjects"]
client_id = "close-bot"
client_key = "file:client.pem"

[issuers.saas]                          # the issuer of a service that Acme buys
issuer = "{saas}"
client_id = "close-bot"
client_key = "file:client.pem"

[resources."{billing}"]                 # her token is exchanged for one bound to the agent's key
issuer = "acme"
scopes = ["invoices:read"]

[resources."{crm}"]                     # another domain: her issuer vouches for her there (ID-JAG)
source = "id-jag"
via = "acme"
issuer = "saas"
scopes = ["contacts:read"]

[resources."{reports}"]                 # the agent's software for itself
source = "client-credentials"
issuer = "acme"
binding = "none"
scopes = ["reports:write"]

[resources."{deploys}"]                 # what the platform says that this workload is
source = "workload-token"
provider = "file"
path = "workload.jwt"

[resources."{search}"]                  # a key, as it always was
source = "api-key"
secret = "file:search.key"
header = "X-Api-Key"

[resources."{archive}"]                 # a user and a password
source = "basic"
username = "close-bot"
password = "env:ARCHIVE_PASSWORD"

[policy]
engine = "grants-only"

[ledger]
url = "memory:"
"""

NAMES = ("billing", "crm", "reports", "deploys", "search", "archive")


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        acme = stack.enter_context(FakeIssuer())
        saas = stack.enter_context(FakeIssuer(trusts=[acme]))
        services = {name: stack.enter_context(FakeWeb()) for name in NAMES}
        config = prepared(folder, acme, saas, services)
        identity = stack.enter_context(AgentIdentity.from_config(config))
        alice = SubjectTokens(
            access_token=acme.token("alice", audience="close-bot"),
            id_token=acme.token(
                "alice", audience="close-bot", typ="JWT", claims={"auth_time": int(time.time())}
            ),
        )
        with identity.on_behalf_of(alice, purpose="close the October books") as session:
            for name in NAMES:
                reaching(services[name].url, name)()
                print(f"{name:8} {what_came(services[name])}")
            strayed(services)
        print(identity.who_triggered(session))


def reaching(url: str, name: str) -> Callable[[], None]:
    """A tool for one service. It knows where the service is, and nothing of how to get in."""

    @tool(resource=url, name=f"ask_{name}")
    def ask() -> None:
        httpx.get(f"{url}/data", auth=current_credential()).raise_for_status()

    return ask


def prepared(
    folder: Path, acme: FakeIssuer, saas: FakeIssuer, services: Mapping[str, FakeWeb]
) -> Path:
    """The file, and what it names: a key, two secrets, the platform's token."""
    os.environ["AGENT_IDENTITY_STATE_DIR"] = str(folder / "state")
    os.environ["ARCHIVE_PASSWORD"] = "correct horse"  # noqa: S105 - a password of this example alone
    deploys = services["deploys"].url
    files = {
        "client.pem": SigningKey.generate().to_pem(),
        "search.key": b"key-of-october",
        "workload.jwt": acme.token("close-bot", audience=deploys).encode(),
        "agent-identity.toml": CONFIGURATION.format(
            acme=acme.url, saas=saas.url, **{name: web.url for name, web in services.items()}
        ).encode(),
    }
    for name, data in files.items():
        path = folder / name
        path.write_bytes(data)
        path.chmod(0o600)
    return folder / "agent-identity.toml"


def what_came(service: FakeWeb) -> str:
    """What the service was sent, without the secrets in it."""
    (request,) = service.received
    headers = request.headers
    chain = "with its chain" if "agent-delegation" in headers else "no chain"
    if "x-api-key" in headers:
        return f"X-Api-Key, {chain}"
    scheme, _, token = headers["authorization"].partition(" ")
    if token.count(".") != 2:
        return f"{scheme}, {chain}"
    claims = loads_object(unverified(token).payload)
    bound = "bound to the agent's key" if "cnf" in claims else "unbound"
    mine = "for this service" if claims["aud"] == service.url else "for another service"
    return f"{scheme} of {claims['sub']}, {mine}, {bound}, {chain}"


def strayed(services: Mapping[str, FakeWeb]) -> None:
    """Try to send each credential to every other service."""
    logging.getLogger("agent_identity").setLevel(logging.ERROR)  # it warns of each
    refused = 0
    for name in NAMES:
        others = [services[other].url for other in NAMES if other != name]

        @tool(resource=services[name].url, name=f"stray_{name}")
        def stray(urls: list[str]) -> int:
            return sum(is_refused(url) for url in urls)

        refused += stray(others)
    reached = sum(len(web.received) for web in services.values())
    print(f"refused {refused} of 30 strays; {reached} requests reached six services")
    print(
        json.dumps({"leaked": [name for name, web in services.items() if len(web.received) != 1]})
    )


def is_refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/data", auth=current_credential())
    except DeniedError as error:
        return error.code == "foreign_url"
    return False


if __name__ == "__main__":
    main()
