# SPDX-License-Identifier: Apache-2.0
"""Authorization servers that others wrote: how each is started, what its operator sets up, and what a person does there.

The files in issuers/ are the agent's, as docs/reference/issuers.md shows them, and the programs that run the servers of PyPI,
each in an environment of its own.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import httpx
from joserfc.jwk import RSAKey

from agent_identity.credentials.principal_tokens import SubjectTokens
from agent_identity.values import Prompt

from . import servers
from .authorization_server import AuthorizationServer
from .browser import CALLBACK, Script, browse

HERE: Final = Path(__file__).parent / "issuers"
CLIENT: Final = ("invoice-bot", "s3cret")
ANSWERS: Final = {"login": "alice", "username": "alice", "password": "wonder"}
"""What the person types; `Rig.answers` has the buttons that they press, too."""

Changes = Mapping[str, Any]
"""Keys of a table that a flow needs, or None for a key that it doesn't have."""


@dataclass
class Rig:
    """One running server, and the person who signs in there. `prompts` are those that the person got.

    `name` is that of its file, `place` that of its metadata. `changes` are what a flow changes in the issuer's and the
    resource's table; `uri` is the resource's name. Most tell only a token's own client whether it is active.
    """

    origin: str
    redirect_uri: str
    prompts: list[Prompt] = field(default_factory=list)

    name: ClassVar[str]
    place: ClassVar[str] = "/.well-known/openid-configuration"
    scope: ClassVar[str] = "invoices:read"
    answers: ClassVar[Mapping[str, str]] = ANSWERS
    script: ClassVar[Script] = staticmethod(lambda client, page: None)
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {}
    tells_its_clients_only: ClassVar[bool] = True

    @property
    def text(self) -> str:
        """Its file, with the addresses that it has here."""
        return self._here((HERE / f"{self.name}.toml").read_text())

    def changes_for(self, flow: str) -> list[Changes]:
        """The changes to its issuer's and its resource's table."""
        changes: list[Changes] = json.loads(
            self._here(json.dumps(self.changes.get(flow, [{}, {}])))
        )
        return changes

    def _here(self, text: str) -> str:
        for shown in ("https://idp.example", "https://mcp.example"):
            text = text.replace(shown, self.origin)
        return text.replace("http://127.0.0.1:8765/callback", self.redirect_uri)

    @property
    def metadata(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(self.origin + self.place, trust_env=False).json()
        return document

    def sign_in(self) -> SubjectTokens:
        """What the agent's front end holds when a person has signed in there, by the agent's own client."""
        verifier = "v" * 43
        digest = hashlib.sha256(verifier.encode()).digest()
        query = {
            "client_id": CLIENT[0],
            "response_type": "code",
            "redirect_uri": self.redirect_uri,
            "scope": "openid",
            "state": "s",
            "nonce": "n",
            "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
            "code_challenge_method": "S256",
        }
        url = httpx.URL(self.metadata["authorization_endpoint"], params=query)
        back = browse(str(url), self.answers, self.script)
        form = {
            "grant_type": "authorization_code",
            "code": back.params["code"],
            "redirect_uri": self.redirect_uri,
            "code_verifier": verifier,
        }
        place = self.metadata["token_endpoint"]
        answer = httpx.post(place, data=form, auth=CLIENT, trust_env=False)
        tokens = answer.raise_for_status().json()
        return SubjectTokens(access_token=tokens["access_token"], id_token=tokens["id_token"])

    def subject(self) -> SubjectTokens:
        """The tokens of a person for whom the agent acts: their ID token alone, which every agent can verify."""
        tokens = self.sign_in()
        tokens.access_token = None
        return tokens

    def is_active(self, token: str) -> bool:
        """Whether the server takes a token that it issued to the client of its file."""
        place = self.metadata["introspection_endpoint"]
        answer = httpx.post(place, data={"token": token}, auth=CLIENT, trust_env=False)
        return answer.raise_for_status().json()["active"] is True

    def answer(self, prompt: Prompt) -> None:
        """The person does what a prompt asks for."""
        self.prompts.append(prompt)
        if prompt.kind == "authorization-code":
            back = browse(prompt.authorization_url or "", self.answers, self.script)
            assert back.path == CALLBACK, f"the sign-in ended at {back}"
            httpx.get(back, trust_env=False).raise_for_status()
        elif prompt.kind == "device":
            self.enter(prompt)
        else:
            self.confirm()

    def enter(self, prompt: Prompt) -> None:
        """The person enters a code on the page for that."""
        entered = {"user_code": prompt.user_code or ""}
        browse(prompt.verification_uri or "", self.answers | entered, self.script)

    def confirm(self) -> None:
        """The person confirms what their issuer asks them (CIBA)."""


# -- oidc-provider ----------------------------------------------------------------------------------------------------------


@dataclass
class OidcProvider(Rig):
    """npm's oidc-provider, as as.mjs sets it up: it signs people in itself."""

    server: AuthorizationServer | None = None

    name: ClassVar[str] = "oidc-provider"
    scope: ClassVar[str] = "tool:read"
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {
        "introspection": ({}, {"uri": "https://opaque.example/"}),
        "revocation": ({}, {"uri": "https://opaque.example/"}),
        "a person's access token": ({"allow_missing_audience": True}, {}),
    }

    def is_active(self, token: str) -> bool:
        """It introspects opaque tokens only; the others are checked by its keys."""
        assert self.server is not None
        if token.count(".") == 2:
            return self.server.claims(token, "https://billing.example")["sub"] != ""
        return super().is_active(token)

    def enter(self, prompt: Prompt) -> None:
        assert self.server is not None
        self.server.answer_device(prompt.user_code or "")


# -- glewlwyd -----------------------------------------------------------------------------------------------------------------


def _glewlwyd_page(client: httpx.Client, page: httpx.URL) -> httpx.URL | None:
    """Its pages are JavaScript. They sign in, store the consent, and return to where they were called from."""
    if not page.path.endswith("login.html") or "client_id" not in page.params:
        return None
    person = {"username": "alice", "password": "wonder"}
    consent = {"scope": page.params["scope"]}
    client.post(page.join("/api/auth/"), json=person).raise_for_status()
    place = f"/api/auth/grant/{page.params['client_id']}"
    client.put(page.join(place), json=consent).raise_for_status()
    return httpx.URL(page.params["callback_url"]).copy_add_param("g_continue", "")


class Glewlwyd(Rig):
    name: ClassVar[str] = "glewlwyd"
    place: ClassVar[str] = "/api/oidc/.well-known/openid-configuration"
    script: ClassVar[Script] = staticmethod(_glewlwyd_page)
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {
        "a person's access token": ({"audience": "openid"}, {}),
        "CIBA": ({}, {"login_hint_from": "id-token", "audience": "invoices:read openid"}),
    }

    def enter(self, prompt: Prompt) -> None:
        page = httpx.URL(prompt.verification_uri or "", params={"code": prompt.user_code or ""})
        browse(str(page), self.answers, self.script)

    def confirm(self) -> None:
        with httpx.Client(base_url=self.origin, trust_env=False) as client:
            client.post("/api/auth/", json={"username": "alice", "password": "wonder"})
            [asked] = client.get("/api/oidc/ciba_user_list").raise_for_status().json()
            consent = {"scope": " ".join(asked["scopes"])}
            client.put(f"/api/auth/grant/{CLIENT[0]}", json=consent).raise_for_status()
            client.get(f"{asked['connect_uri']}&g_continue")


_GLEWLWYD: Final = """
port = {port}
bind_address = "127.0.0.1"
external_url = "{origin}"
login_url = "login.html"
static_files_path = "{pages}"
api_prefix = "api"
log_mode = "console"
log_level = "WARNING"
cookie_domain = "127.0.0.1"
cookie_secure = 0
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "{modules}/user"
user_middleware_module_path = "{empty}"
client_module_path = "{modules}/client"
user_auth_scheme_module_path = "{modules}/scheme"
plugin_module_path = "{modules}/plugin"
hash_algorithm = "SHA512"
database = {{ type = "sqlite3"; path = "{database}"; }};
"""


@contextmanager
def glewlwyd(folder: Path, redirect_uri: str) -> Iterator[Rig]:
    root = servers.debian("glewlwyd", "dbconfig-no-thanks")
    port = servers.free_port()
    rig = Glewlwyd(f"http://127.0.0.1:{port}", redirect_uri)
    tables = root / "usr/share/doc/glewlwyd/database/init.sqlite3.sql.gz"
    database = sqlite3.connect(folder / "database")
    database.executescript(gzip.decompress(tables.read_bytes()).decode())
    database.close()
    places = {
        "empty": folder,
        "pages": root / "usr/share/glewlwyd/webapp",
        "modules": root / "usr/lib/glewlwyd",
        "database": folder / "database",
    }
    (folder / "conf").write_text(_GLEWLWYD.format(port=port, origin=rig.origin, **places))
    [libraries] = (root / "usr/lib").glob("*-linux-*")
    with servers.process(
        [root / "usr/bin/glewlwyd", "-c", folder / "conf"],
        ready=servers.answers(f"{rig.origin}/api/auth/"),
        log=folder / "log",
        env={"LD_LIBRARY_PATH": str(libraries)},
    ):
        _set_up_glewlwyd(rig)
        yield rig


def _set_up_glewlwyd(rig: Rig) -> None:
    """What its operator does on its pages: a scope, a person, the OpenID Connect plugin, a client."""
    key = RSAKey.generate_key(2048).as_dict(private=True) | {"kid": "one", "alg": "RS256"}
    with httpx.Client(base_url=f"{rig.origin}/api", trust_env=False) as operator:

        def add(place: str, **members: object) -> None:
            answer = operator.post(place, json=members)
            assert answer.is_success, answer.text

        add("/auth/", username="admin", password="password")
        add("/scope/", name="invoices:read", password_required=False)
        add(
            "/user/",
            username="alice",
            password="wonder",
            enabled=True,
            scope=["openid", "g_profile", "invoices:read"],
        )
        add(
            "/client/",
            client_id=CLIENT[0],
            client_secret=CLIENT[1],
            token_endpoint_auth_method=["client_secret_basic"],
            confidential=True,
            enabled=True,
            redirect_uri=[rig.redirect_uri],
            scope=["invoices:read"],
            authorization_type=[
                "code",
                "refresh_token",
                "client_credentials",
                "device_authorization",
                "urn:openid:params:grant-type:ciba",
            ],
            backchannel_token_delivery_mode="poll",
        )
        settings = {
            "iss": f"{rig.origin}/api/oidc",
            "jwks-private": json.dumps({"keys": [key]}),
            "access-token-duration": 3600,
            "refresh-token-duration": 86400,
            "code-duration": 600,
            "allow-non-oidc": True,
            "auth-type-code-enabled": True,
            "auth-type-client-enabled": True,
            "auth-type-refresh-enabled": True,
            "auth-type-device-enabled": True,
            "device-authorization-expiration": 600,
            "device-authorization-interval": 1,
            "jwks-show": True,
            "pkce-allowed": True,
            "pkce-required": True,
            "introspection-revocation-allowed": True,
            "introspection-revocation-allow-target-client": True,
            "resource-allowed": True,
            "resource-scope": {"invoices:read": ["https://billing.example"]},
            "register-client-allowed": True,
            "register-client-auth-scope": [],
            "register-client-credentials-scope": [],
            "oauth-dpop-allowed": True,
            "oauth-dpop-iat-duration": 60,
            "oauth-as-iss-id": True,
            "oauth-par-allowed": True,
            "oauth-par-request_uri-prefix": "urn:ietf:params:oauth:request_uri:",
            "oauth-par-duration": 90,
            "oauth-ciba-allowed": True,
            "oauth-ciba-mode-poll-allowed": True,
            "oauth-ciba-default-expiry": 300,
            "oauth-ciba-maximum-expiry": 600,
        }
        add("/mod/plugin/", module="oidc", name="oidc", enabled=True, parameters=settings)


# -- the three of PyPI -------------------------------------------------------------------------------------------------------


class Canaille(Rig):
    name: ClassVar[str] = "canaille"
    scope: ClassVar[str] = "profile"
    answers: ClassVar[Mapping[str, str]] = ANSWERS | {"answer": "accept"}
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {
        "a person's access token": ({"longest_life": 864000}, {}),
        "introspection": ({}, {"source": "client-credentials"}),
        "registration": (
            {"client_assertion_audience": "token-endpoint", "allow_client_audience": True},
            {"audience": None},
        ),
        "refresh token": ({"revoke": "none"}, {}),
    }


class DjangoOAuthToolkit(Rig):
    """A client has one grant type there, so each flow has a client of its own."""

    name: ClassVar[str] = "django-oauth-toolkit"
    place: ClassVar[str] = "/o/.well-known/oauth-authorization-server"
    answers: ClassVar[Mapping[str, str]] = ANSWERS | {"allow": "Authorize", "action": "accept"}
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {
        "client credentials": ({"client_id": "nightly-bot"}, {}),
        "device": (
            {
                "client_id": "device-bot",
                "audience": "invoice-bot",
                "allow_other_subject": True,
                "endpoints": {
                    "device_authorization_endpoint": "https://idp.example/o/device-authorization/"
                },
            },
            {},
        ),
        "refresh token": ({"revoke": "none"}, {}),
        "a person's access token": ({"allow_missing_audience": True}, {}),
    }


@dataclass
class FastMCP(Rig):
    """An MCP server that is its own authorization server, and knows no people: those sign in elsewhere."""

    people: AuthorizationServer | None = None

    name: ClassVar[str] = "fastmcp"
    place: ClassVar[str] = "/.well-known/oauth-authorization-server"
    changes: ClassVar[Mapping[str, tuple[Changes, Changes]]] = {
        "refresh token": ({"revoke": "none"}, {}),
    }
    tells_its_clients_only: ClassVar[bool] = False

    @property
    def text(self) -> str:
        assert self.people is not None
        return super().text.replace(f'issuer = "{self.origin}"', f'issuer = "{self.people.issuer}"')

    def sign_in(self) -> SubjectTokens:
        assert self.people is not None
        return SubjectTokens(access_token=self.people.sign_in()["access_token"])

    def subject(self) -> SubjectTokens:
        return self.sign_in()

    def is_active(self, token: str) -> bool:
        """Whether the MCP server answers to it."""
        hello = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-06-18",
                "capabilities": {},
                "clientInfo": {"name": "rig", "version": "1"},
            },
        }
        headers = {
            "Authorization": f"Bearer {token}",
            "Accept": "application/json, text/event-stream",
        }
        place = f"{self.origin}/mcp"
        return httpx.post(place, json=hello, headers=headers, trust_env=False).is_success


@contextmanager
def of_pypi(rig: Rig, script: str, folder: Path) -> Iterator[Rig]:
    env = {
        "PORT": str(httpx.URL(rig.origin).port),
        "REDIRECT_URI": rig.redirect_uri,
        "FOLDER": str(folder),
        "PYTHONPATH": "",
    }
    command = [servers.python(rig.name), HERE / script]
    ready = servers.answers(rig.origin + rig.place)
    with servers.process(command, ready=ready, log=folder / "log", env=env, seconds=60):
        yield rig


# -- all of them -------------------------------------------------------------------------------------------------------------

Start = Callable[..., AbstractContextManager[AuthorizationServer]]


@contextmanager
def running(name: str, folder: Path, people: AuthorizationServer, provider: Start) -> Iterator[Rig]:
    """One of them while the block runs. `people` is the issuer of people whom it doesn't know itself."""
    origin = f"http://127.0.0.1:{servers.free_port()}"
    redirect_uri = f"http://127.0.0.1:{servers.free_port()}{CALLBACK}"
    if name == "oidc-provider":
        with provider(REGISTRATION="*") as server:
            yield OidcProvider(server.issuer, redirect_uri, server=server)
    elif name == "glewlwyd":
        with glewlwyd(folder, redirect_uri) as rig:
            yield rig
    elif name == "canaille":
        with of_pypi(Canaille(origin, redirect_uri), "canaille_server.py", folder) as rig:
            yield rig
    elif name == "django-oauth-toolkit":
        with of_pypi(DjangoOAuthToolkit(origin, redirect_uri), "django_server.py", folder) as rig:
            yield rig
    else:
        fastmcp = FastMCP(origin, redirect_uri, people=people)
        with of_pypi(fastmcp, "fastmcp_server.py", folder) as rig:
            yield rig
