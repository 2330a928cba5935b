# SPDX-License-Identifier: Apache-2.0
"""What a newcomer writes first and meets an error for: it names the value and the rule, and says what to write instead."""

from __future__ import annotations

import functools
import inspect
from unittest import mock

import pytest

from agent_identity import (
    AgentIdentity,
    ConfigurationError,
    Decision,
    DeniedError,
    InvalidAssertionError,
    current_credential,
    tool,
)
from agent_identity.adapters import Tool, tool_of
from agent_identity.policy import GrantsOnly, as_policy
from agent_identity.verify import problem

BILLING = "https://billing.example"
MAIL = "https://mail.example"


def refused(made, code: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as caught:
        made()
    assert caught.value.code == code
    assert caught.value.remedy
    return caught.value


# -- what is decorated -------------------------------------------------------------------------------------------------


@tool
def bare(a: int, b: str = "x") -> tuple[int, str]:
    return a, b


@tool
async def abare(a: int) -> int:
    return a


@tool
def bare_steps(n: int):
    yield from range(n)


@tool
async def abare_steps(n: int):
    for i in range(n):
        yield i


class Box:
    @tool
    def open(self, key: str) -> str:
        return key

    @classmethod
    @tool
    def make(cls, name: str) -> str:
        return name


async def test_tool_without_parentheses_makes_a_tool_of_each_kind(bot: AgentIdentity) -> None:
    assert inspect.iscoroutinefunction(abare)
    assert inspect.isgeneratorfunction(bare_steps)
    assert inspect.isasyncgenfunction(abare_steps)
    assert (tool_of(bare).name, tool_of(bare).resource) == (
        "bare",
        tool_of(tool()(len_of)).resource,
    )
    async with bot.on_behalf_of("user:alice", purpose="try") as session:
        assert bare(1) == (1, "x")
        assert await abare(2) == 2
        assert list(bare_steps(2)) == [0, 1]
        assert [i async for i in abare_steps(2)] == [0, 1]
        assert (Box().open("k"), Box.make("n")) == ("k", "n")
    made = [record.kind for record in session.records()].count("call.completed")
    assert made == 6


def len_of(text: str) -> int:
    return len(text)


def framework(module: str, *names: str) -> object:
    """An object of a class as a framework has it, the last name first."""
    kind: type = object
    for name in names:
        kind = type(name, (kind,), {"__module__": module})
    mine = type("Mine", (kind,), {"__module__": __name__})
    return mine()


class Callable:
    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        (Box, "the class Box", "a method of the class"),
        (len, "the builtin len", "write a function that calls it"),
        (
            functools.partial(len_of, "a"),
            "functools.partial",
            "make the partial object of the tool",
        ),
        (functools.partialmethod(len_of), "functools.partialmethod", "partial method of the tool"),
        (functools.cache(len_of), "_lru_cache_wrapper", "write a function that calls it"),
        (classmethod(len_of), "builtins.classmethod", "@classmethod above @tool"),
        (staticmethod(len_of), "builtins.staticmethod", "@staticmethod above @tool"),
        (property(len_of), "builtins.property", "@property above @tool"),
        (Callable(), "test_misuse.Callable", "write a function that calls it"),
        ("search", "builtins.str", "tool(name=…)"),
        (None, "builtins.NoneType", "write a function"),
        (
            framework("langchain_core.tools.base", "BaseTool"),
            "Mine",
            "agent_identity_langchain.protect",
        ),
        (framework("pydantic_ai.tools", "Tool"), "Mine", "Tool(function)"),
        (framework("agents.tool", "FunctionTool"), "Mine", "below @function_tool"),
        (framework("crewai.tools.base_tool", "BaseTool"), "Mine", "_run"),
        (framework("mcp.types", "Tool"), "Mine", "call_tool"),
        (framework("mcp.server.fastmcp.tools.base", "Tool"), "Mine", "register it at the server"),
        (framework("mcp_types", "Tool"), "Mine", "call_tool"),
        (framework("agents", "Helper"), "Mine", "write a function"),
    ],
    ids=range(19),
)
@pytest.mark.parametrize("decorate", [tool, tool()], ids=["bare", "called"])
def test_what_is_no_function_is_refused_with_what_to_write_for_its_kind(
    decorate, given, what, remedy
) -> None:
    error = refused(lambda: decorate(given), "tool_malformed")
    assert what in str(error)
    assert remedy in error.remedy


def test_what_is_refused_is_not_printed() -> None:
    error = refused(lambda: tool(functools.partial(len_of, "canary")), "tool_malformed")
    assert "canary" not in f"{error} {error.remedy}"


def test_more_than_one_positional_argument_is_refused() -> None:
    error = refused(lambda: tool("https://billing.example", ["read"]), "tool_malformed")
    assert "resource=" in error.remedy


def test_a_tool_is_no_tool_once_more() -> None:
    assert "is a tool already" in str(refused(lambda: tool(bare), "tool_malformed"))


# -- how it is called --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (bare, "bare(): missing a required argument: 'a' (its parameters: a, b)"),
        (lambda: bare(1, a=2), "bare(): multiple values for argument 'a'"),
        (lambda: bare(1, 2, 3), "bare(): too many positional arguments (its parameters: a, b)"),
        (lambda: bare(1, c=2), "bare(): got an unexpected keyword argument 'c'"),
        (lambda: Box().open(), "open(): missing a required argument: 'key'"),
        (lambda: Box.open(key="k"), "open() is a method and was called without its object"),
    ],
    ids=range(6),
)
def test_a_call_with_wrong_arguments_names_function_and_parameter(bot, call, says) -> None:
    with bot.on_behalf_of("user:alice", purpose="try") as session:
        with pytest.raises(TypeError) as caught:
            call()
        assert says in str(caught.value)
        assert [record.kind for record in session.records()] == ["session.opened"]


# -- what is said of it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["nope"], ["a", "nope"], ["self"]])
def test_opaque_names_parameters_of_the_function(names) -> None:
    error = refused(lambda: tool(opaque=names)(lambda a, b: None), "tool_malformed")
    assert f"no parameter '{names[-1]}'" in str(error)
    assert "a, b" in error.remedy


def test_opaque_may_name_what_collects_arguments() -> None:
    assert tool_of(tool(opaque=["rest"])(lambda **rest: None)).opaque == {"rest"}


@pytest.mark.parametrize(
    "name",
    ["", " a", "a ", "a\n", "a#b", "a\u200bb", "\u202ea", "a\0", "\ud800", "x" * 201, 5, b"a"],
)
def test_a_name_is_one_printable_line_without_a_hash(name) -> None:
    for made in (lambda: tool(name=name)(len_of), lambda: Tool(name)):
        error = refused(made, "tool_malformed")
        assert ascii(name)[:80] in str(error)
        assert str(error).isprintable()
        assert "without #" in error.remedy


def test_a_function_with_a_name_that_no_tool_may_have_is_refused() -> None:
    def odd() -> None: ...

    odd.__name__ = "billing#pay"
    assert "'billing#pay'" in str(refused(lambda: tool(odd), "tool_malformed"))


def test_a_name_may_have_spaces_inside_and_be_of_any_script() -> None:
    assert tool_of(tool(name="Rechnungen pr\u00fcfen")(len_of)).name == "Rechnungen pr\u00fcfen"


@pytest.mark.parametrize(
    "label", ["", "reads:finance ", "a b", "a#b", "a\u200b", "a\n", "\ud800", "x" * 201]
)
def test_a_label_is_printable_and_has_no_space_and_no_hash(label) -> None:
    """A policy compares labels letter by letter: one that only looks like another would never be found."""
    error = refused(lambda: tool(labels=["fine", label]), "tool_malformed")
    assert ascii(label)[:80] in str(error)
    assert "reads:finance" in error.remedy


@pytest.mark.parametrize("name", ["labels", "opaque"])
@pytest.mark.parametrize("given", ["risk:high", 5, None, [5], [None], b"ab", [["a"]]], ids=repr)
def test_labels_and_opaque_are_lists_of_texts(name, given) -> None:
    error = refused(lambda: tool(**{name: given}), "tool_malformed")
    assert name in str(error)
    assert error.remedy.startswith(f"write {name}=")


# -- resources, scopes, principals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says", "remedy"),
    [
        ("billing", "'billing'", "for instance https://billing.example"),
        ("billing.example", "it has no scheme", "for instance https://billing.example"),
        ("https://Billing.example/a", "in lower case", "write https://billing.example/a"),
        ("https://billing.example:443", "default port", "write https://billing.example"),
        ("https://billing.example/#x", "it has a fragment", "remove the #"),
        ("https://billing.example/a b", "isn't an http or https URL", "an absolute URI"),
        ("urn:a\u200bb", "invisible", "remove them"),
        ("https://alice:canary@billing.example", "without userinfo", "an absolute URI"),
        ("https://a:x/canary@b.example", "without userinfo", "an absolute URI"),
        ("HTTPS://billing.example/?key=canary", "in lower case", "write https://billing.example/"),
        (b"https://billing.example", "a bytes is not a resource", "an absolute URI"),
        (5, "a int is not a resource", "an absolute URI"),
    ],
    ids=range(12),
)
def test_a_resource_that_is_no_uri_is_named_with_the_rule_and_no_secret(
    given, says, remedy
) -> None:
    error = refused(lambda: tool(resource=given), "resource_malformed")
    assert says in str(error)
    assert remedy in error.remedy
    assert "canary" not in f"{error} {error.remedy}"
    assert str(error).isascii()


@pytest.mark.parametrize("scope", ["read write", 'a"b', "", "a\\b", "l\u00e9", 5])
def test_a_scope_that_is_no_token_is_named(scope) -> None:
    error = refused(lambda: tool(scopes=["fine", scope]), "scope_malformed")
    assert ascii(scope) in str(error)
    assert "without spaces" in error.remedy


def test_on_behalf_of_nobody_says_what_to_give(bot: AgentIdentity) -> None:
    error = refused(lambda: bot.on_behalf_of(None, purpose="p"), "subject_malformed")
    assert "None" in str(error)
    assert "autonomous(trigger=" in error.remedy


@pytest.mark.parametrize("given", [5, b"user:alice", object(), ["user:alice"]], ids=range(4))
def test_on_behalf_of_what_is_nobody_names_its_class(bot: AgentIdentity, given) -> None:
    error = refused(lambda: bot.on_behalf_of(given, purpose="p"), "subject_malformed")
    assert f"on_behalf_of was given a {type(given).__name__}" in str(error)
    assert "user:alice" in error.remedy


@pytest.mark.parametrize(
    ("wider", "code", "names"),
    [
        ({"scopes": ["read", "pay", "erase"]}, "scope_widened", "erase, pay"),
        ({"resources": [BILLING, MAIL]}, "audience_widened", MAIL),
    ],
)
def test_a_delegation_that_is_too_wide_names_what_is(bot, wider, code, names) -> None:
    limits = {"scopes": ["read"], "resources": [BILLING]}
    with bot.on_behalf_of("user:alice", purpose="p", **limits) as session:
        with pytest.raises(DeniedError) as caught:
            session.delegate("helper", **wider)
    assert caught.value.code == code
    assert f"can't pass on {names}, which it lacks" in str(caught.value)
    assert "delegate(" in caught.value.remedy


def test_resources_of_an_embedded_identity_describe_and_allow_nothing(make_identity) -> None:
    """DESIGN: for any resource that `resources` doesn't describe the embedded authority mints a token."""
    identity = make_identity(resources={BILLING: ["read"]})
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        assert session.credential(MAIL, ["send"]).scopes == {"send"}
        with pytest.raises(DeniedError) as caught:
            session.credential(BILLING, ["pay"])
        assert caught.value.code == "scope_not_configured"
    with identity.on_behalf_of("user:alice", purpose="p", resources=[BILLING]) as session:
        with pytest.raises(DeniedError) as caught:
            session.credential(MAIL, ["send"])
        assert caught.value.code == "resource_not_granted"


@pytest.mark.parametrize(
    ("resource", "audience"), [(BILLING, f"{BILLING}/"), (f"{BILLING}/", BILLING)]
)
def test_a_verifier_whose_audience_differs_by_a_slash_says_so(
    bot, caplog, resource, audience
) -> None:
    verifier = bot.verifier(audience)
    url = f"{BILLING}/invoices"

    @tool(resource=resource, scopes=["read"])
    def sends() -> dict[str, str]:
        return current_credential().headers("GET", url)

    with bot.on_behalf_of("user:alice", purpose="p"):
        headers = sends()
    with pytest.raises(InvalidAssertionError) as caught:
        verifier.verify_request("GET", url, headers, scopes=["read"])
    assert caught.value.code == "audience_mismatch"
    assert f"is for '{resource}', this verifier's audience is '{audience}'" in str(caught.value)
    assert "slash at the end" in caught.value.remedy
    problem(caught.value)
    assert "slash at the end" in caplog.text


def test_a_verifier_for_another_resource_names_both(bot) -> None:
    with bot.on_behalf_of("user:alice", purpose="p") as session:
        headers = session.credential(MAIL).headers("GET", MAIL)
    with pytest.raises(InvalidAssertionError) as caught:
        bot.verifier(BILLING).verify_request("GET", MAIL, headers, scopes=())
    assert f"is for '{MAIL}', this verifier's audience is '{BILLING}'" in str(caught.value)
    assert "letter by letter" in caught.value.remedy


# -- policies ----------------------------------------------------------------------------------------------------------


async def later(request: object) -> bool:
    return True


async def later_steps(request: object):
    yield True


def steps(request: object):
    yield True


class Later:
    async def __call__(self, request: object) -> bool:
        return True


class LaterDecide:
    async def decide(self, request: object) -> Decision:
        return Decision.permit()


class Behind:
    """Called by its class's `__call__`, which is an object that is async itself."""

    __call__ = Later()


class Plain:
    def decide_plainly(self, request: object) -> bool:
        return True


LATE = {
    "function": later,
    "generator": later_steps,
    "plain-generator": steps,
    "lambda-partial": functools.partial(functools.partial(later)),
    "object": Later(),
    "partial-of-object": functools.partial(Later()),
    "method": Later().__call__,
    "behind": Behind(),
    "decide": LaterDecide(),
    "mock": mock.AsyncMock(),
}


@pytest.mark.parametrize("policy", LATE.values(), ids=LATE)
def test_a_policy_that_answers_later_is_refused_when_it_is_given(policy, tmp_path) -> None:
    state = tmp_path / "state"
    for made in (
        lambda: as_policy(policy),
        lambda: AgentIdentity.embedded("bot", policy=policy, state_dir=state),
        lambda: AgentIdentity.from_config(tmp_path / "none.toml", policy=policy),
        lambda: AgentIdentity("bot", policy=policy, ledger=None),
    ):
        error = refused(made, "policy_unusable")
        assert "async" in str(error)
        assert "def" in error.remedy
    assert not state.exists()


@pytest.mark.parametrize(
    ("policy", "what", "remedy"),
    [
        (GrantsOnly, "GrantsOnly is a class", "GrantsOnly(…)"),
        (Decision, "Decision is a class", "Decision(…)"),
        (True, "a bool is not a policy", "a function that takes the request"),
        ("grants-only", "a str is not a policy", "a function that takes the request"),
        (lambda: True, "can't be called with the request alone", "one parameter"),
        (lambda one, two: True, "can't be called with the request alone", "one parameter"),
        (lambda *, request: True, "can't be called with the request alone", "one parameter"),
    ],
    ids=range(7),
)
def test_what_can_decide_nothing_is_refused_when_it_is_given(policy, what, remedy) -> None:
    error = refused(lambda: as_policy(policy), "policy_unusable")
    assert what in str(error)
    assert remedy in error.remedy


@pytest.mark.parametrize(
    "policy",
    [
        lambda request: True,
        lambda request, more=1: True,
        lambda *any_: True,
        functools.partial(lambda extra, request: True, 1),
        mock.Mock(return_value=True, spec=["__call__"]),
        Plain().decide_plainly,
    ],
    ids=range(6),
)
def test_what_takes_the_request_and_answers_at_once_is_a_policy(policy) -> None:
    assert as_policy(policy)


@pytest.mark.filterwarnings("error")
def test_a_policy_that_turns_out_to_be_async_denies_and_leaves_no_coroutine_behind(
    make_identity,
) -> None:
    identity = make_identity(policy=lambda request: later(request.action))
    with identity.on_behalf_of("user:alice", purpose="try"), pytest.raises(DeniedError) as caught:
        bare(1)
    assert caught.value.code == "policy_undecided"
    assert "returned a coroutine" in str(caught.value)
    assert "return a Decision" in caught.value.remedy


# -- identities --------------------------------------------------------------------------------------------------------


def test_after_close_nothing_begins_and_the_code_says_why(make_identity, caplog) -> None:
    identity = make_identity()
    session = identity.on_behalf_of("user:alice", purpose="p")
    entered = identity.on_behalf_of("user:alice", purpose="p")
    handed = identity.autonomous(trigger="cron:nightly", purpose="p")
    with entered:
        credential = entered.credential(BILLING)
        client = entered.http(BILLING)
        identity.close()
        caplog.clear()
        for made in (
            lambda: bare(1),
            lambda: next(bare_steps(1)),
            lambda: entered.credential(BILLING),
            lambda: credential.headers("GET", BILLING),
            credential.reveal,
            lambda: client.get("/"),
            lambda: entered.delegate("helper"),
            session.__enter__,
            handed.__enter__,
            lambda: identity.on_behalf_of("user:alice", purpose="p"),
            lambda: identity.autonomous(trigger="cron:nightly", purpose="p"),
            lambda: identity.accept(None),
            lambda: identity.revoke("user:alice", reason="p"),
            lambda: identity.reinstate("user:alice"),
        ):
            with pytest.raises(DeniedError) as caught:
                made()
            assert caught.value.code == "identity_closed"
            assert "close it after its last session" in caught.value.remedy
        assert "unknown" not in caplog.text


async def test_after_close_nothing_begins_in_async_code_either(make_identity) -> None:
    identity = make_identity()
    waiting = identity.on_behalf_of("user:alice", purpose="p")
    async with identity.on_behalf_of("user:alice", purpose="p") as session:
        client = session.ahttp(BILLING)
        await identity.aclose()
        for made in (
            lambda: abare(1),
            lambda: anext(abare_steps(1)),
            lambda: session.acredential(BILLING),
            lambda: client.get("/"),
            lambda: session.adelegate("helper"),
            waiting.__aenter__,
            lambda: identity.arevoke("user:alice", reason="p"),
        ):
            with pytest.raises(DeniedError) as caught:
                await made()
            assert caught.value.code == "identity_closed"


def test_a_tool_that_closes_its_identity_signs_nothing_more(make_identity) -> None:
    identity = make_identity()

    @tool(resource=BILLING, scopes=["read"])
    def closes() -> None:
        credential = current_credential()
        identity.close()
        credential.headers("GET", BILLING)

    with identity.on_behalf_of("user:alice", purpose="p"), pytest.raises(DeniedError) as caught:
        closes()
    assert caught.value.code == "identity_closed"


def test_closing_twice_is_closing_once(make_identity) -> None:
    identity = make_identity()
    identity.close()
    identity.close()


@pytest.mark.parametrize("name", ["policy", "approver", "ledger", "name", "resources", "authority"])
def test_what_an_identity_is_made_with_cannot_be_set_afterwards(bot: AgentIdentity, name) -> None:
    error = refused(lambda: setattr(bot, name, None), "attribute_settled")
    assert f"{name} of an identity" in str(error)
    assert f"pass {name}= when the identity is made" in error.remedy
    assert bot.name
    assert bot.ledger is not None


@pytest.mark.parametrize("name", ["purpose", "budget", "scopes"])
def test_what_a_session_is_opened_with_cannot_be_set_at_the_identity(bot, name) -> None:
    error = refused(lambda: setattr(bot, name, None), "attribute_settled")
    assert f"pass {name}= when a session is opened" in error.remedy


@pytest.mark.parametrize("name", ["scopes", "resources", "budget", "policy", "expires_in"])
def test_what_would_not_limit_a_session_cannot_be_set_at_it(bot: AgentIdentity, name) -> None:
    session = bot.on_behalf_of("user:alice", purpose="p")
    error = refused(lambda: setattr(session, name, ()), "attribute_settled")
    assert f"pass {name}=" in error.remedy
