# SPDX-License-Identifier: Apache-2.0
"""The rows of the table, one function each; `python -m benchmarks.rows NAME` prints one as JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent_identity import AgentIdentity, Decision, RevokedError, current_credential, tool
from agent_identity.authority import Authority
from agent_identity.credentials.source import Renewal
from agent_identity.flow import arun, run
from agent_identity.jose import encode_header
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.ledger import open_ledger
from agent_identity.runtime.acquire import Renewing, reach
from agent_identity.session import state_of
from agent_identity.testing import FakeIssuer
from benchmarks import adapters
from benchmarks.measure import CALLS, ROUNDS, Figure, in_r, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from agent_identity.flow import HttpRequest, HttpResponse
    from agent_identity.policy import Request

BILLING = "https://billing.example"
PERMIT = Decision.permit(policy_id="bench")
TOOLS = frozenset({"list_invoices"})


def policy(request: Request) -> Decision:
    return PERMIT if request.resource.id in TOOLS else Decision.deny("unknown tool")


def bare(customer: str, limit: int = 10) -> int:
    return limit


@tool(resource=BILLING, scopes=["invoices:read"], labels={"reads:finance"}, name="list_invoices")
def wrapped(customer: str, limit: int = 10) -> int:
    return limit


def _call(path: str, ledger: str, budget: float) -> Figure:
    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity(
            "invoice-bot",
            authority=Authority(),
            ledger=open_ledger(ledger, state_dir=Path(folder)),
            policy=policy,
        ) as identity,
        identity.on_behalf_of("user:alice", purpose="measure"),
    ):
        wrapped("ACME", 5)
        value, r = in_r(lambda: wrapped("ACME", 5), lambda: bare("ACME", 5))
    return Figure(path, value, "r", budget, f"r = {r:.1f} µs, {value * r:.1f} µs a call")


def memory() -> Figure:
    return _call("cached credential, assertion, memory ledger, callable policy", "memory:", 1.3)


def traced() -> Figure:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class Sink(SpanExporter):
        def export(self, spans: object) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Sink()))
    trace.set_tracer_provider(provider)
    figure = _call("the same with an exporting tracer provider", "memory:", 1.8)
    provider.shutdown()
    return figure


def sqlite() -> Figure:
    return _call("embedded default: SQLite, intent before, outcome after", "sqlite:", 2.8)


def outbound() -> Figure:
    """What one more request costs inside a running call: a DPoP proof and an assertion, two signatures."""

    @tool(resource=BILLING, scopes=["invoices:read"])
    def sends() -> tuple[float, float]:
        credential = current_credential()
        url = f"{BILLING}/invoices"
        return in_r(lambda: credential.headers("GET", url, b""), lambda: bare("ACME", 5))

    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity(
            "invoice-bot",
            authority=Authority(),
            ledger=open_ledger("memory:", state_dir=Path(folder)),
        ) as identity,
        identity.on_behalf_of("user:alice", purpose="measure"),
    ):
        value, r = sends()
    note = f"r = {r:.1f} µs, both together {value * r:.1f} µs"
    path = "one outbound request: DPoP proof and a further assertion, each"
    return Figure(path, value / 2, "r", 0.9, note)


def ephemeral() -> Figure:
    """An agent that is born, acts once within its process and is gone: key, session, first grant, first call, end."""

    @tool()
    def local(customer: str, limit: int = 10) -> int:
        return limit

    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity(
            "invoice-bot",
            authority=Authority(),
            ledger=open_ledger("memory:", state_dir=Path(folder)),
        ) as identity,
        identity.on_behalf_of("user:alice", purpose="measure") as session,
    ):

        def born() -> None:
            with session.delegate("archive-bot"):
                local("ACME", 5)

        born()
        local("ACME", 5)
        value, r = in_r(born, lambda: local("ACME", 5))
    note = f"r = {r:.1f} µs, {value * r:.1f} µs an agent"
    return Figure("new ephemeral agent: key, session, first grant", value, "r", 8.0, note)


def session() -> Figure:
    """A session of the embedded identity with one local call: first grant, records, end."""

    @tool
    def local(customer: str, limit: int = 10) -> int:
        return limit

    return _session("session and its first local call, embedded", local, 20.0)


def session_with_token() -> Figure:
    """The same with a tool that gets a token and signs one request by it; the token is revoked at the end."""

    @tool(resource=BILLING, scopes=["invoices:read"])
    def remote(customer: str, limit: int = 10) -> dict[str, str]:
        return current_credential().headers("GET", f"{BILLING}/invoices", b"")

    return _session("session and its first call with a token, embedded", remote, 35.0)


def _session(path: str, wrapped: Callable[..., object], budget: float) -> Figure:
    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity.embedded("invoice-bot", state_dir=folder) as identity,
    ):

        def opened() -> None:
            with identity.on_behalf_of("user:alice", purpose="measure"):
                wrapped("ACME", 5)

        opened()
        value, r = in_r(opened, lambda: bare("ACME", 5))
    return Figure(path, value, "r", budget, f"r = {r:.1f} µs, {value * r:.1f} µs a session")


def verification() -> Figure:
    """A chain of three grants and an assertion, as a service verifies them, over the four signature checks in it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from agent_identity.adapters import Tool
    from agent_identity.jose import unverified
    from agent_identity.verify import TrustAnchor, UnsafeNoRevocations, Verifier

    arguments = {"customer": "ACME", "limit": 5}
    tool = Tool("list_invoices", resource=BILLING, scopes=["invoices:read"])
    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity(
            "invoice-bot",
            authority=Authority(),
            ledger=open_ledger("memory:", state_dir=Path(folder)),
        ) as identity,
        identity.on_behalf_of("user:alice", purpose="measure") as session,
        session.delegate("first") as first,
        first.delegate("second") as second,
        second.call(tool, arguments) as call,
    ):
        chain = [grant.compact for grant in call.reach.chain]
        now = int(time.time())
        assertions = [
            call.reach.statement.for_call(call.facts, now, resend=number)
            for number in range(ROUNDS * CALLS)
        ]
        anchor = TrustAnchor(
            identity.authority.issuer,
            jwks=identity.authority.jwks(),
            revocations=UnsafeNoRevocations(),
            evidence="issuer",
        )
        verifier = Verifier([anchor], audience=BILLING)
        fresh = iter(assertions)

        def verify() -> None:
            verifier.verify_call(
                next(fresh),
                chain,
                tool="list_invoices",
                args=arguments,
                scopes=("invoices:read",),
            )

        key = ec.generate_private_key(ec.SECP256R1())
        public = key.public_key()
        inputs = [unverified(compact).signing_input for compact in (*chain, assertions[0])]
        signed = [(key.sign(data, ec.ECDSA(hashes.SHA256())), data) for data in inputs]

        def bare() -> None:
            for signature, data in signed:
                public.verify(signature, data, ec.ECDSA(hashes.SHA256()))

        times: dict[str, list[float]] = {"verify": [], "bare": []}
        for _ in range(ROUNDS):
            times["bare"].append(seconds(bare))
            times["verify"].append(seconds(verify))
    checks = statistics.median(times["bare"])
    value = statistics.median(
        whole / bare for whole, bare in zip(times["verify"], times["bare"], strict=True)
    )
    note = f"four checks {checks * 1e6:.0f} µs, the whole {checks * value * 1e6:.0f} µs"
    path = "verifier: 3-hop chain and assertion, over the bare verifications"
    return Figure(path, value, "x", 1.2, note)


def job() -> Figure:
    """A job of CI that starts with nothing: `exec` gets a token over HTTP, runs `true` with it, and gives it back."""
    with tempfile.TemporaryDirectory() as folder, FakeIssuer() as issuer:
        config = Path(folder) / "agent-identity.toml"
        config.write_text(
            f'[agent]\nname = "job"\n[issuers.ci]\nissuer = "{issuer.url}"\nclient_id = "job"\n'
            f'client_auth = "none"\n[resources."{BILLING}"]\nsource = "client-credentials"\n'
            'binding = "none"\n[policy]\nengine = "grants-only"\n[cli]\nautonomous = true\n'
        )
        config.chmod(0o600)
        environment = {**os.environ, "AGENT_IDENTITY_STATE_DIR": f"{folder}/state"}
        start = "from agent_identity.cli import main; main()"
        ours = [sys.executable, "-c", start, "exec", "--config", str(config)]
        commands = {
            "ours": [*ours, "--resource", BILLING, "--", "true"],
            "httpx": [sys.executable, "-c", "import httpx"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS // 3):
            for name, command in commands.items():
                started = time.perf_counter()
                subprocess.run(command, check=True, env=environment, capture_output=True)  # noqa: S603
                times[name].append(time.perf_counter() - started)
    whole, base = (statistics.median(times[name]) for name in ("ours", "httpx"))
    note = f"beside {base * 1e3:.0f} ms for `python -c 'import httpx'`"
    return Figure("cold start of a job: exec, unbound resource", whole * 1e3, "ms", None, note)


def exchange() -> Figure:
    """One token exchange over HTTP: the processor time of the client. The issuer is another process; its metadata is cached.

    The tokens are bound by DPoP, and the client authenticates with a secret from the environment.
    """
    return _exchange("one token exchange over HTTP, processor time of the client", is_async=False)


def exchange_async() -> Figure:
    """The same on an event loop."""
    return _exchange("the same in async code", is_async=True)


def _exchange(path: str, *, is_async: bool) -> Figure:
    with tempfile.TemporaryDirectory() as folder, _stub() as (url, subject):
        config = Path(folder) / "agent-identity.toml"
        config.write_text(
            f'[agent]\nname = "invoice-bot"\nsigner = "file:{folder}/signer.pem"\n'
            f'[issuers.stub]\nissuer = "{url}"\ntrust = ["subjects"]\nclient_id = "bench"\n'
            f'client_key = "file:{folder}/client.pem"\n'
            f'[resources."{BILLING}"]\nscopes = ["invoices:read"]\n'
            '[ledger]\nurl = "memory:"\n'
        )
        for name in ("signer.pem", "client.pem"):
            (Path(folder) / name).write_bytes(SigningKey.generate().to_pem())
        for file in Path(folder).iterdir():
            file.chmod(0o600)
        with (
            AgentIdentity.from_config(config, state_dir=Path(folder), policy=policy) as identity,
            identity.on_behalf_of(subject, purpose="measure") as session,
        ):
            state = state_of(session)
            scopes = frozenset({"invoices:read"})
            cached = lambda: reach(state, BILLING, scopes)  # noqa: E731 - a flow to be made often
            world = state.parts.world
            renewing = Renewing(
                state, run(cached(), world.answer), None
            )  # a renewal is never cached
            if is_async:
                with asyncio.Runner() as loop:
                    loop.run(renewing.arenew(Renewal()))
                    value, r = in_r(
                        lambda: loop.run(renewing.arenew(Renewal())),
                        lambda: loop.run(arun(cached(), world.aanswer)),
                        ROUNDS,
                        time.process_time,
                    )
            else:
                value, r = in_r(
                    lambda: renewing.renew(Renewal()),
                    lambda: run(cached(), world.answer),
                    ROUNDS,
                    time.process_time,
                )
    return Figure(path, value, "r", None, f"r = {r:.1f} µs, {value * r / 1e3:.2f} ms an exchange")


@contextlib.contextmanager
def _stub() -> Generator[tuple[str, str]]:
    """The URL of an authorization server in another process, and a principal's token from it."""
    key = SigningKey.generate()
    jwks = json.dumps({"keys": [{**key.public_jwk, "kid": key.thumbprint, "use": "sig"}]})
    command = [sys.executable, "-m", "benchmarks.stub", jwks]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        now = int(time.time())
        claims = {
            "iss": url,
            "sub": "alice",
            "aud": "bench",
            "client_id": "bench",
            "iat": now,
            "exp": now + 3600,
            "jti": "subject",
            "scope": "invoices:read",
        }
        header = encode_header(key.alg, typ="at+jwt", kid=key.thumbprint)
        try:
            yield url, key.compact(header, json.dumps(claims).encode())
        finally:
            process.terminate()


def herd() -> Figure:
    """200 callers in threads and in tasks of three event loops, on one cold key."""
    asked: list[str] = []

    class Counting(Authority):
        def handle(self, request: HttpRequest) -> HttpResponse:
            if request.url.endswith("/token"):
                asked.append(request.url)
                time.sleep(0.02)
            return super().handle(request)

    authority = Counting()

    @tool(resource=BILLING, scopes=["invoices:read"])
    async def later() -> None:
        await asyncio.sleep(0)

    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity(
            "invoice-bot",
            authority=authority,
            ledger=open_ledger("memory:", state_dir=Path(folder)),
        ) as identity,
        identity.on_behalf_of("user:alice", purpose="measure") as session,
    ):
        barrier = threading.Barrier(83)

        def one() -> None:
            barrier.wait()
            wrapped("ACME")

        async def many() -> None:
            await asyncio.gather(*(later() for _ in range(40)))

        def loop() -> None:
            barrier.wait()
            asyncio.run(many())

        jobs: list[Callable[[], None]] = [one] * 80 + [loop] * 3
        threads = [threading.Thread(target=session.bind(job)) for job in jobs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    issued = authority.issued["access_token"]
    return Figure(
        "200 callers, threads and tasks of three loops, one cold key",
        issued,
        "token requests",
        1,
        f"and {len(asked) - issued} for the grant",
    )


def revocation() -> Figure:
    """From the call of `revoke` to the start of the last tool call under the revoked principal, among two busy threads."""
    now, rounds = [time.time()], 200
    late: list[float] = []
    acknowledged: list[float] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        AgentIdentity.embedded(
            "invoice-bot", state_dir=folder, policy=policy, clock=lambda: now[0]
        ) as identity,
    ):
        started = [0.0]

        @tool(name="list_invoices")
        def started_at() -> None:
            started[0] = time.perf_counter()

        for _ in range(rounds):
            ready = threading.Barrier(3)

            def agent(ready: threading.Barrier = ready) -> None:
                with identity.on_behalf_of("user:alice", purpose="measure"):
                    started_at()
                    ready.wait()
                    with contextlib.suppress(RevokedError):
                        while True:
                            started_at()

            agents = [threading.Thread(target=agent) for _ in range(2)]
            for each in agents:
                each.start()
            ready.wait()
            time.sleep(0.002)
            asked = time.perf_counter()
            identity.revoke("user:alice", reason="measure")
            acknowledged.append(time.perf_counter() - asked)
            for each in agents:
                each.join()
            late.append(max(0.0, started[0] - asked))
            identity.reinstate("user:alice")
            now[0] += 1
    p99 = statistics.quantiles(late, n=100)[98] * 1e3
    answered = statistics.quantiles(acknowledged, n=100)[98] * 1e3
    note = f"{rounds} rounds; acknowledged after {answered:.1f} ms at p99"
    return Figure("revoke to the last started call, in process, p99", p99, "ms", 10, note)


def imports() -> Figure:
    """Whole processes in turn; what a bare interpreter takes is subtracted from both."""
    commands = {"bare": "pass", "ours": "import agent_identity", "httpx": "import httpx"}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS // 2):
        for name, code in commands.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603
            times[name].append(time.perf_counter() - started)
    base = statistics.median(times["bare"])
    ours = statistics.median(times["ours"]) - base
    theirs = statistics.median(times["httpx"]) - base
    note = f"{ours * 1e3:.0f} ms over {theirs * 1e3:.0f} ms"
    return Figure("import agent_identity over import httpx", ours / theirs, "x", 0.6, note)


ROWS = (
    *(memory, traced, sqlite, outbound, session, session_with_token),
    *(ephemeral, verification),
    *(exchange, exchange_async),
    *(herd, revocation, imports, job),
    *adapters.ROWS,
)

if __name__ == "__main__":
    rows = {row.__name__: row for row in ROWS}
    sys.stdout.write(json.dumps(rows[sys.argv[1]]()))
