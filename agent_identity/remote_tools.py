# SPDX-License-Identifier: Apache-2.0
"""The rules for the tools of an MCP server: how each is known, and for whom one connection may act. For adapters.

A tool is known by its server, its name and the digest of its definition (`lifecycle/pins.py`). It has two names: an assertion has
the server's bare name, policy sees `<server>#<name>`.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from agent_identity import canonical
from agent_identity.decorators import begin
from agent_identity.delegation.carriers import META
from agent_identity.errors import ConfigurationError, DeniedError, NoSessionError
from agent_identity.flow import Draft
from agent_identity.identity import parts_of
from agent_identity.lifecycle.pins import Definition
from agent_identity.provenance import spans
from agent_identity.provenance.records import TOOL_PINNED
from agent_identity.runtime.current import open_session
from agent_identity.tool_rules import Rules
from agent_identity.tools import Tool
from agent_identity.uris import check_resource

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping

    from agent_identity.identity import AgentIdentity
    from agent_identity.lifecycle.pins import Pins, Verdict
    from agent_identity.pipeline import Call
    from agent_identity.remote_access import ServerAccess
    from agent_identity.runtime.current import RunningCall
    from agent_identity.runtime.parts import Parts
    from agent_identity.runtime.state import SessionState
    from agent_identity.values import JSON

__all__ = ["AskedCall", "ListedTool", "RemoteServer", "check_sent", "named_request"]

_RULE_KEYS: Final = frozenset({"labels", "scopes"})
_PIN_REMEDY: Final = "`agent-identity mcp pins` shows the definition; `agent-identity mcp pin SERVER TOOL` accepts it"


class ListedTool(NamedTuple):
    """A tool as a server lists it; `schema` is the JSON schema of its arguments, `meta` its `_meta`."""

    name: str
    description: str | None
    schema: Mapping[str, JSON]
    meta: Mapping[str, JSON] | None = None


class AskedCall(NamedTuple):
    """A call that a framework was asked to make. The framework's own hooks may run before it is sent, and must not change it.

    `tool` describes the tool where the framework has the rules, and `shown` is the definition that the model was shown. `is_alone`
    says that the connection is opened for this call only.
    """

    name: str
    arguments: Mapping[str, object]
    tool: Tool | None = None
    shown: ListedTool | None = None
    is_alone: bool = False

    def check(self, name: str, arguments: Mapping[str, object]) -> None:
        """Check that what is about to be sent is this call.

        Raises:
            DeniedError: `call_changed`, it is something else; or an argument has no canonical form.
        """
        sent = (name, canonical.args_digest(arguments))
        if sent != (self.name, canonical.args_digest(self.arguments)):
            raise _changed_error()


class _Page(NamedTuple):
    tools: tuple[ListedTool, ...]
    following: str | None


class RemoteServer:
    """One connection to an MCP server. Not for several event loops at once, as such a connection isn't.

    `uri` is the audience of assertions and the resource of tools. `rules` map names of tools to their `scopes` and `labels`; the
    rule `"*"` is for all others, which are refused without it, and without `rules` no tool has any. `identity` is the one whose
    sessions may use the connection, None for any.
    """

    def __init__(
        self,
        uri: str,
        *,
        identity: AgentIdentity | None = None,
        rules: Mapping[str, Mapping[str, Any]] | None = None,
        access: ServerAccess | None = None,
    ) -> None:
        self.uri: str = check_resource(uri)
        self._parts: Parts | None = None if identity is None else parts_of(identity)
        self._access = access
        self._rules = None if rules is None else _read_rules(self.uri, rules)
        self._tools: dict[str, Tool] = {}
        self._pages: dict[str | None, _Page] = {}
        self._definitions: dict[str, Definition] = {}
        self._shadowed: frozenset[str] = frozenset()
        self._is_complete = False
        self._pins: Pins | None = None
        self._verdicts: dict[str, tuple[str, Verdict]] = {}
        self._owner: tuple[str, tuple[str, ...]] | None = None

    def add_page(
        self, cursor: str | None, following: str | None, tools: Iterable[ListedTool]
    ) -> None:
        """Note one page of the server's listing: the cursor that was sent for it, and that of the following page.

        A first page that has changed begins another listing. mcp 1 lists the first page again by itself after a call.
        """
        noted = _Page(tuple(tools), following)
        if cursor is None and self._pages.get(None) != noted:
            self._pages.clear()
        self._pages[cursor] = noted
        listed: dict[str, ListedTool] = {}
        shadowed: set[str] = set()
        at: str | None = None
        passed: set[str | None] = set()
        while at in self._pages and at not in passed:
            passed.add(at)
            page = self._pages[at]
            shadowed.update(_repeated(page.tools, listed))
            listed.update((tool.name, tool) for tool in page.tools)
            at = page.following
        self._is_complete = at is None
        self._shadowed = frozenset(shadowed)
        self._definitions = {name: _define(self.uri, tool) for name, tool in listed.items()}

    def is_listed(self, name: str) -> bool:
        """Whether the server's listing, as far as it was seen, has the tool."""
        return name in self._definitions

    async def apin(self) -> None:
        """Pin the tools that were listed, and record which ones. Without an identity or a session, the first call does it."""
        session = _find_session()
        parts = self._parts or (None if session is None else session.parts)
        if parts is not None:
            await self._apin(parts, session)

    async def _apin(self, parts: Parts, session: SessionState | None) -> None:
        tools = {n: d for n, d in self._definitions.items() if n not in self._shadowed}
        seen = await asyncio.to_thread(parts.pins.see, self.uri, tools)
        self._verdicts = {name: (tools[name].digest, v) for name, v in seen.verdicts.items()}
        self._pins = parts.pins
        for name, definition in seen.pinned.items():
            public: dict[str, JSON] = {
                "server": self.uri,
                "tool": name.encode("utf-8", "replace").decode(),
                "digest": definition.digest,
                "by": "first-use",
            }
            draft = Draft(TOOL_PINNED, public)
            if session is not None and session.parts is parts:
                draft = session.draft(TOOL_PINNED, public)
            await parts.ledger.aappend(draft)

    def call(
        self, name: str, arguments: Mapping[str, object], asked: AskedCall | None = None
    ) -> Call:
        """Make a call of the current session. Nothing is decided or recorded yet.

        Raises:
            NoSessionError: there is no current session.
        """
        tool = self._tools.get(name)
        if asked is not None and asked.tool is not None and asked.name == name:
            tool = asked.tool
        if tool is None:
            try:
                tool = self._tools[name] = self._describe(name)
            except (DeniedError, ConfigurationError):  # `acheck` says it
                tool = Tool(_readable(name), resource=self.uri)
        return begin(tool, arguments)

    async def acheck(
        self, call: Call, name: str, *, is_stateless: bool, asked: AskedCall | None = None
    ) -> None:
        """Check the rules that come before policy: whose connection this is, and whether the tool is the accepted one.

        `is_stateless` says that the connection's protocol keeps no state between requests. Over anything but HTTP, the process
        on the other side does all the same.

        Raises:
            DeniedError: the call is to be refused.
            ConfigurationError: `rule_unmatched`.
        """
        session = call.session
        if self._rules is not None and self._is_complete:
            self._rules.check_matched(self._definitions)
        if self._parts is not None and session.parts is not self._parts:
            raise DeniedError(
                "foreign_session",
                f"the connection to {self.uri} belongs to another identity than the session",
                remedy="guard a connection of its own with the identity of the session",
            )
        is_shared = asked is None or not asked.is_alone
        if is_shared and not (is_stateless and self.uri.startswith(("http://", "https://"))):
            opener = None if self._access is None else self._access.opener
            self._claim(session if opener is None else opener)
            self._claim(session)
        await self._check_tool(session, name)
        if asked is not None and asked.shown is not None:
            self._check_shown(asked.shown)

    def _check_shown(self, tool: ListedTool) -> None:
        listed = self._definitions.get(tool.name)
        if listed is None or listed.digest != _define(self.uri, tool).digest:
            raise DeniedError(
                "tool_changed",
                f"{self.uri} has changed the definition of {ascii(tool.name)[:80]} since the model was shown it",
                remedy="load the server's tools again",
            )

    async def _check_tool(self, session: SessionState, name: str) -> None:
        if name in self._shadowed:
            raise DeniedError(
                "tool_shadowed",
                f"{self.uri} lists several tools named {ascii(name)[:80]}",
                remedy="report it to the server's operator; the names of its tools must be unique",
            )
        definition = self._definitions.get(name)
        if definition is None:
            raise DeniedError(
                "tool_unknown",
                f"{self.uri} doesn't list a tool named {ascii(name)[:80]}",
                remedy="call one of the tools that the server lists",
            )
        if name not in self._tools:
            try:
                self._describe(name)
            except ConfigurationError as error:
                raise DeniedError(error.code, str(error), remedy=error.remedy) from error
        known = self._verdicts.get(name) if self._pins is session.parts.pins else None
        if known != (definition.digest, "pinned"):
            await self._apin(session.parts, session)  # an operator may have accepted it meanwhile
        _, verdict = self._verdicts.get(name, ("", "changed"))
        if verdict == "pinned":
            return
        shown = ascii(name)[:80]
        if verdict == "unpinned":
            raise DeniedError(
                "tool_unpinned",
                f"nobody has accepted the tool {shown} of {self.uri}",
                remedy=_PIN_REMEDY,
            )
        raise DeniedError(
            "tool_changed",
            f"{self.uri} has changed the definition of {shown} since it was accepted",
            remedy=_PIN_REMEDY,
        )

    def sign(self, call: Call, meta: MutableMapping[str, Any], *, with_token: bool) -> str:
        """Write a running call into the `_meta` of a request, and return the text that finds the call by it.

        `with_token` says that the same request carries the call's credential. A resource with `assertion = "omit"` gets neither
        assertion nor chain, but a random name of the request.

        Raises:
            DeniedError: the call has ended.
        """
        place = call.reach.place
        spans.inject(meta)
        if place is not None and not place.sends_assertion:
            meta[f"{META}request"] = secrets.token_hex(16)
            return str(meta[f"{META}request"])
        assertion, chain = call.sign_assertion(with_token=with_token)
        meta[f"{META}assertion"] = assertion
        meta[f"{META}delegation"] = chain
        return assertion

    def _claim(self, session: SessionState) -> None:
        """Let a stateful connection belong to the first principal and chain that use it."""
        owner = (str(session.parts.own_principal(session.principal)), session.chain)
        if self._owner is None:
            self._owner = owner
        elif self._owner != owner:
            raise DeniedError(
                "connection_owned",
                f"the connection to {self.uri} belongs to another principal or chain",
                remedy="open a connection for each principal and chain, or use a server over HTTP that keeps no session",
            )

    def _describe(self, name: str) -> Tool:
        scopes, labels = None, frozenset[str]()
        if self._rules is not None:
            try:
                rule = self._rules.describe(
                    name, describes_itself=False, has_resource=True, error=DeniedError
                )
            except DeniedError as error:
                raise DeniedError(
                    error.code,
                    f"no rule names the tool {ascii(name)[:80]} of {self.uri}",
                    remedy='add a rule with the tool\'s exact name, or the rule "*" for all other tools of the server',
                ) from None
            if rule is not None:
                scopes, labels = rule["scopes"], rule["labels"]
        return Tool(name, resource=self.uri, server=self.uri, scopes=scopes, labels=labels)


def check_sent(call: RunningCall, name: object, arguments: Mapping[str, object]) -> None:
    """Check that what is about to be sent is this call: its tool, with the arguments that were recorded.

    Raises:
        DeniedError: `call_changed`, it is something else; or the call has ended.
    """
    call.check_running()
    if (name, canonical.args_digest(arguments)) != (call.tool.name, call.facts.args_hash):
        raise _changed_error()


def _changed_error() -> DeniedError:
    return DeniedError(
        "call_changed",
        "the call that is sent isn't the one that was permitted and recorded",
        remedy="change the tool and its arguments before the call is guarded",
    )


def _define(uri: str, tool: ListedTool) -> Definition:
    return Definition.of(uri, tool.name, tool.description, tool.schema, tool.meta)


def named_request(meta: Any) -> str | None:
    """The text that `sign` returned, as a request's `_meta` has it; None if it has none."""
    if not isinstance(meta, dict):
        return None
    members: dict[str, Any] = meta  # pyright: ignore[reportUnknownVariableType] - JSON
    found = members.get(f"{META}assertion", members.get(f"{META}request"))
    return found if isinstance(found, str) else None


def _repeated(tools: Iterable[ListedTool], listed: Mapping[str, object]) -> set[str]:
    """The names that occur more than once in `tools` and `listed`."""
    names = [tool.name for tool in tools]
    return {name for name in names if name in listed or names.count(name) > 1}


def _find_session() -> SessionState | None:
    try:
        return open_session()[0]
    except NoSessionError:
        return None


def _read_rules(uri: str, rules: Mapping[str, Mapping[str, Any]]) -> Rules:
    read = Rules(rules, guard="the guarded connection")
    for name, rule in rules.items():
        for key in rule:
            if key not in _RULE_KEYS:
                raise ConfigurationError(
                    "rule_malformed",
                    f"the rule {name!r} for tools of {uri} has the key {key!r}",
                    remedy="this rule may have the keys labels and scopes",
                )
    return read


def _readable(name: str) -> str:
    """A tool's name that can be recorded, made of what a model or a server wrote."""
    return ascii(name).replace("#", "?").strip()[:80] or "?"
