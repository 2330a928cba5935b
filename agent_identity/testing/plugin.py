# SPDX-License-Identifier: Apache-2.0
"""Fixtures for tests of agents: an identity with an authority of its own, a session of it, its ledger, its spans.

To set a policy, define a fixture `agent_policy`. It and `agent_session` have long names because many test suites have fixtures
named `policy` and `session`.

The report of a failed `assert_no_leak` shows no secret: it has no values of variables (`--showlocals`, arguments), and output is
scrubbed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from agent_identity.authority import Authority
    from agent_identity.identity import AgentIdentity
    from agent_identity.policy.rules import PolicyLike
    from agent_identity.provenance.ledger import Ledger
    from agent_identity.session import Session

__all__ = ["agent_policy", "agent_session", "identity", "issuer", "ledger", "spans"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remove the secrets from the report of a leak."""
    from agent_identity.testing.leaks import LeakError  # noqa: PLC0415 - see `issuer`
    from agent_identity.values import scrub  # noqa: PLC0415 - see `issuer`

    report = yield
    if call.excinfo is None or not _is_or_has(call.excinfo.value, LeakError, set()):
        return report
    # "short" prints lines of source. Other styles also print variables, cut short, where a secret can't be found.
    text = call.excinfo.getrepr(style="short", showlocals=False, funcargs=False)
    report.longrepr = scrub(str(text))
    report.sections = [(scrub(name), scrub(text)) for name, text in report.sections]
    return report


def _is_or_has(error: BaseException | None, kind: type[BaseException], seen: set[int]) -> bool:
    """Whether an exception, or one of its causes, contexts and members, is of this class."""
    if error is None or id(error) in seen:
        return False
    seen.add(id(error))
    members: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    inner = (error.__cause__, error.__context__, *members)
    return isinstance(error, kind) or any(_is_or_has(each, kind, seen) for each in inner)


@pytest.fixture
def issuer() -> Iterator[Authority]:
    """An authorization server in this process, with nothing on disk."""
    from agent_identity.authority import Authority  # noqa: PLC0415 - a plugin loads nothing that a test doesn't use

    authority = Authority()
    yield authority
    authority.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger in memory."""
    from agent_identity.provenance.ledger import open_ledger  # noqa: PLC0415 - see `issuer`

    with open_ledger("memory:", state_dir=tmp_path) as opened:
        yield opened


@pytest.fixture
def agent_policy() -> PolicyLike | None:
    """The policy of `identity`: None, which permits what the grants cover. Define your own in a conftest.py, module or class."""
    return None


@pytest.fixture
def identity(
    issuer: Authority, ledger: Ledger, agent_policy: PolicyLike | None
) -> Iterator[AgentIdentity]:
    """An agent named `test-agent` whose calls go the whole way: real grants, tokens, assertions and records."""
    from agent_identity.identity import AgentIdentity  # noqa: PLC0415 - see `issuer`

    with AgentIdentity("test-agent", authority=issuer, ledger=ledger, policy=agent_policy) as agent:
        yield agent


@pytest.fixture
def agent_session(identity: AgentIdentity) -> Iterator[Session]:
    """A session of `identity` for `user:alice` that is open during the test, so that tools can be called."""
    with identity.on_behalf_of("user:alice", purpose="test") as session:
        yield session


@pytest.fixture
def spans() -> Iterator[Any]:
    """A function that returns the finished spans. It needs the OpenTelemetry SDK, and sets its provider for the process."""
    exporting = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    from opentelemetry import trace  # noqa: PLC0415 - see `issuer`
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 - see `issuer`
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: PLC0415 - see `issuer`

    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    exporter = exporting.InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter.get_finished_spans
    exporter.shutdown()
