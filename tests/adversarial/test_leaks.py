# SPDX-License-Identifier: Apache-2.0
"""Where a secret could come out (cases of area H): the real ones of a run are looked for in every sink.

Each secret is searched as it is, in base64 at three offsets, percent-encoded, in hex, escaped, and by segments of a token.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import dataclasses
import gc
import http.server
import inspect
import io
import json
import logging
import os
import pickle
import pprint
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, quote_plus

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from opentelemetry.trace import StatusCode
from rich.console import Console
from rich.pretty import pretty_repr

from agent_identity import (
    AgentIdentity,
    AgentIdentityError,
    CredentialRejectedError,
    CredentialUnavailableError,
    Decision,
    DeniedError,
    LedgerError,
    adapters,
    current_credential,
    current_session,
    tool,
)
from agent_identity.authority import Authority
from agent_identity.credentials.oauth.client import Client, PrivateKeyJwt
from agent_identity.credentials.oauth.responses import Answer, Fields
from agent_identity.flow import Draft, HttpRequest, HttpResponse
from agent_identity.keys.signing import SigningKey
from agent_identity.provenance.ledger import open_ledger
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.testing import assert_no_leak, traces_of
from agent_identity.values import Principal, Secret, b64url, new_id, scrub

SUB = "canary-principal-" + "p7Qz" * 10
ARGUMENT = "canary-argument-" + "x9Wk" * 10
REASON = "canary-reason-" + "r4Tm" * 10
SERVICE = "https://billing.example"


# -- the real secrets of a run ---------------------------------------------------------------------------------------


class Spy(Authority):
    """An authority that keeps every secret that it was sent or sent out, and can be told to answer otherwise."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.secrets: set[str] = {self.registration_token().reveal()}
        self.instead: Callable[[HttpRequest], HttpResponse] | None = None

    def handle(self, request: HttpRequest) -> HttpResponse:
        form = parse_qs(request.body.decode("utf-8", "replace"))
        for name in ("subject_token", "client_assertion"):
            self.secrets.update(form.get(name, []))
        authorization = request.headers.get("authorization", "")
        if authorization:
            self.secrets.add(authorization.partition(" ")[2])
        if self.instead is not None and request.url.endswith("/token"):
            return self.instead(request)
        answer = super().handle(request)
        with contextlib.suppress(ValueError):
            found = json.loads(answer.body)
            if "access_token" in found and found.get("token_type") != "N_A":
                self.secrets.add(found["access_token"])
        return answer


def private_parts(key: SigningKey) -> set[str]:
    """A private key as it could show: its PEM, and its number in the usual spellings."""
    pem = key.to_pem()
    number = load_pem_private_key(pem, None).private_numbers().private_value
    lines = pem.decode().splitlines()[1:-1]
    return {*lines[:2], "".join(lines), b64url(number.to_bytes(32)), f"{number:064x}", str(number)}


class Service(http.server.ThreadingHTTPServer):
    """A web service on loopback that answers with all that it was sent, and is an authority's host where there is one."""

    daemon_threads = True

    def __init__(self) -> None:
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                answer = service.answer(self.command, self.path, dict(self.headers.items()), body)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.authority: Authority | None = None
        self.received: list[dict[str, str]] = []
        serve = self.serve_forever
        threading.Thread(target=serve, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> HttpResponse:
        if self.authority is not None and not path.startswith("/billing"):
            lower = {name.lower(): value for name, value in headers.items()}
            return self.authority.handle(HttpRequest(method, self.url + path, lower, body))
        self.received.append(headers)
        status = 500 if "fail" in path else 200
        return HttpResponse(status, {"content-type": "application/json"}, b'{"ok": true}')


@pytest.fixture
def service() -> Iterator[Service]:
    one = Service()
    yield one
    one.shutdown()
    one.server_close()


class Run:
    """Sessions of an identity over real HTTP: sync and async calls, a sub-agent, refusals, failures."""

    def __init__(self, identity: AgentIdentity, authority: Spy, service: Service) -> None:
        self.identity = identity
        self.authority = authority
        self.service = service
        self.billing = billing = f"{service.url}/billing"
        self.errors: list[BaseException] = []
        self.inside: Callable[[], None] = lambda: None
        self.keys: list[SigningKey] = []

        @tool(resource=billing, scopes=["invoices:read"], labels={"reads:finance"})
        def read(customer: str) -> int:
            """List a customer's invoices."""
            self._looked()
            answer = httpx.get(f"{billing}/invoices?of=acme", auth=current_credential())
            self.inside()
            return answer.status_code

        @tool(resource=billing, scopes=["journal:write"])
        async def book(customer: str) -> int:
            """Book an entry."""
            self._looked()
            async with httpx.AsyncClient(auth=current_credential()) as client:
                answer = await client.post(f"{billing}/journal", json={"customer": customer})
            self.inside()
            return answer.status_code

        @tool(resource=billing, scopes=["payments:write"], labels={"moves:money"})
        def pay(number: str) -> None:
            raise AssertionError("policy refuses this one")

        @tool(resource=billing, scopes=["invoices:read"])
        def fail(customer: str) -> None:
            httpx.get(f"{billing}/fail", auth=current_credential()).raise_for_status()

        self.read, self.book, self.pay, self.fail = read, book, pay, fail

    def _looked(self) -> None:
        self.authority.secrets.add(current_credential().reveal())
        self.keys.append(current_session()._state.agent.key)

    @property
    def is_elsewhere(self) -> bool:
        """Whether the authority is reached over HTTP."""
        return bool(self.identity._assembled.issuers)

    @property
    def secrets(self) -> set[str]:
        keys = {id(key): key for key in self.keys}.values()
        return self.authority.secrets.union(*(private_parts(key) for key in keys))

    def fails(self, call: Callable[[], object], kind: type[BaseException]) -> None:
        with pytest.raises(kind) as caught:
            call()
        self.errors.append(caught.value)

    def sync(self) -> None:
        with self.identity.on_behalf_of(f"user:{SUB}", purpose="close the books") as session:
            self.read(ARGUMENT)
            with session.delegate("archive-bot", scopes=["invoices:read"]):
                self.read(customer=ARGUMENT)
            self.fails(lambda: self.pay(ARGUMENT), DeniedError)
            self.fails(lambda: self.fail(ARGUMENT), httpx.HTTPStatusError)
            with session.http(self.billing) as client:
                client.get("/invoices")
                self.fails(lambda: client.get("https://evil.example/"), DeniedError)

    async def many(self) -> None:
        loop = asyncio.get_running_loop()
        loop.slow_callback_duration = 0.0
        async with self.identity.on_behalf_of(f"user:{SUB}", purpose="close the books") as session:
            await asyncio.gather(*(self.book(ARGUMENT) for _ in range(3)))
            async with session.ahttp(self.billing) as client:
                await client.get("/invoices")
            with pytest.raises(DeniedError) as caught:
                self.pay(ARGUMENT)
            self.errors.append(caught.value)

    def away(self) -> None:
        """An issuer elsewhere answers each time otherwise; nothing of this session is in the cache."""
        if not self.is_elsewhere:
            return
        for instead, kind in FAILING:
            with self.identity.on_behalf_of(f"user:{SUB}", purpose="close the books"):
                self.authority.instead = instead
                self.fails(lambda: self.read(ARGUMENT), kind)
                self.fails(lambda: asyncio.run(self.book(ARGUMENT)), kind)
                self.authority.instead = None
                self.identity._assembled.issuers[""].breaker.forget()

    def everything(self) -> None:
        self.sync()
        asyncio.run(self.many(), debug=True)
        self.away()


def no_money(request: Any) -> Decision:
    if "moves:money" in request.resource.properties.get("labels", ()):
        return Decision.deny("closing the books doesn't include paying", policy_id="no-payments")
    return Decision.permit(policy_id="books")


def echo(
    status: int, *, in_header: bool = False, **fields: str
) -> Callable[[HttpRequest], HttpResponse]:
    """An issuer that says back what it was told, wherever an answer has room for it."""

    def answered(request: HttpRequest) -> HttpResponse:
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        told = form["subject_token"] + "." + form["client_assertion"]
        document = {name: form.get(value, value) for name, value in fields.items()}
        document |= {"error_description": told, "x": told} if status != 200 else {}
        headers = {"content-type": "application/json"} | ({"x-echo": told} if in_header else {})
        return HttpResponse(status, headers, json.dumps(document).encode())

    return answered


def broken(request: HttpRequest) -> HttpResponse:
    raise RuntimeError(request.body.decode())


GRANT = "urn:agent-identity:token-type:grant"
FAILING: list[tuple[Callable[[HttpRequest], HttpResponse], type[AgentIdentityError]]] = [
    (echo(400, error="invalid_grant"), CredentialRejectedError),
    (echo(400, error="subject_token"), CredentialRejectedError),
    (echo(503, error="client_assertion"), CredentialUnavailableError),
    (echo(200, access_token="subject_token", token_type="bearer"), CredentialRejectedError),
    (
        echo(200, access_token="subject_token", token_type="N_A", issued_token_type=GRANT),
        CredentialRejectedError,
    ),
    (echo(200, access_token="x", token_type="client_assertion"), CredentialRejectedError),
    (
        lambda request: HttpResponse(200, {"content-type": "application/json"}, request.body),
        CredentialRejectedError,
    ),
    (lambda request: HttpResponse(302, {}, request.body), AgentIdentityError),
    (lambda request: HttpResponse(200, {}, request.body * 3000), AgentIdentityError),
    (broken, CredentialUnavailableError),
]


@pytest.fixture(params=["in process", "over HTTP"])
def run(request, service: Service, tmp_path: Path, client_elsewhere) -> Iterator[Run]:
    """`over HTTP` reaches the authority through sockets, as a client elsewhere does, so that httpcore sees the secrets too."""
    served = request.param == "over HTTP"
    kind = client_elsewhere if served else AgentIdentity
    authority = Spy(tmp_path / "authority", issuer=service.url if served else None)
    service.authority = authority if served else None
    ledger = open_ledger("sqlite:", state_dir=tmp_path)
    with kind("invoice-bot", authority=authority, ledger=ledger, policy=no_money) as bot:
        yield Run(bot, authority, service)


# -- H01: logs -------------------------------------------------------------------------------------------------------


class Everything(logging.Handler):
    """Keeps what any handler could write of a record: its text, its arguments, its traceback, all its fields."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.loggers: set[str] = set()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.loggers.add(record.name.partition(".")[0])
        self.texts += [self.format(record), repr(record.args), repr(vars(record))]
        if record.exc_info and record.exc_info[1]:
            self.texts.append("".join(traceback.format_exception(record.exc_info[1])))


def test_H01_debug_logs_hold_no_secret_through_whole_sessions(run: Run) -> None:
    logs = Everything()
    root = logging.getLogger()
    level = root.level
    root.addHandler(logs)
    root.setLevel(logging.DEBUG)
    try:
        run.everything()
        run.identity.ledger.append = refusing  # an outcome that can't be written is logged
        with run.identity.on_behalf_of(f"user:{SUB}", purpose="p"):
            pass
    finally:
        root.removeHandler(logs)
        root.setLevel(level)
    assert {"agent_identity", "httpx", "httpcore", "asyncio"} <= logs.loggers
    assert len(run.secrets) > (20 if run.is_elsewhere else 10)
    assert_no_leak([*run.secrets, ARGUMENT, SUB], *logs.texts)


@pytest.mark.parametrize("run", ["over HTTP"], indirect=True)
def test_H01_an_issuer_that_echoes_a_secret_in_a_header_puts_it_into_no_log(run: Run, caplog):
    caplog.set_level(logging.DEBUG)
    run.authority.instead = echo(400, in_header=True, error="invalid_grant")
    with run.identity.on_behalf_of(f"user:{SUB}", purpose="p"):
        run.fails(lambda: run.read(ARGUMENT), CredentialRejectedError)
    assert_no_leak(run.secrets, caplog.text)


def refusing(draft: Draft) -> None:
    if draft.kind == "session.closed":
        raise LedgerError("ledger_unwritable", "the disk is full")


# -- H02: readable forms ---------------------------------------------------------------------------------------------

HOLDERS = {
    # The only attributes that hold a secret in plain; everything else refers to one of these.
    (Secret, "_text"),
    (Fields, "_members"),
    (HttpRequest, "headers"),
    (HttpRequest, "body"),
    (HttpResponse, "headers"),
    (HttpResponse, "body"),
}


def ours() -> list[Any]:
    """Every living object of a class of the library, whoever holds it."""
    return [
        found
        for found in gc.get_objects()
        if str(type(found).__module__).partition(".")[0] == "agent_identity"
        and not isinstance(found, type)
    ]


def forms(found: Any) -> Iterator[tuple[str, str]]:
    """Every readable form of an object that this library made."""
    yield from (
        (how, text)
        for how, text in traces_of(found)
        if (type(found), how.removeprefix("slot ")) not in HOLDERS
    )
    yield "pprint", pprint.pformat(found)
    yield "rich", pretty_repr(found)
    printed = io.StringIO()
    Console(file=printed, width=4000).print(found)
    yield "rich print", printed.getvalue()
    if dataclasses.is_dataclass(found) and not isinstance(found, HttpRequest | HttpResponse):
        with contextlib.suppress(TypeError):  # a Secret in it refuses to be copied
            yield "asdict", repr(dataclasses.asdict(found))
            yield "astuple", repr(dataclasses.astuple(found))
    with contextlib.suppress(TypeError):
        yield "orjson", orjson.dumps(found).decode()


def test_H02_no_readable_form_of_anything_that_a_run_made_shows_a_secret(run: Run) -> None:
    gc.collect()  # what earlier tests left, a ledger of thousands of records perhaps, is not of this run
    seen: dict[type, list[str]] = {}

    def look() -> None:
        for found in ours():
            for how, text in forms(found):
                seen.setdefault(type(found), []).append(f"{how}: {text}")

    run.inside = look
    run.sync()
    asyncio.run(run.many())
    names = {kind.__name__ for kind in seen}
    expected = {"Secret", "Credential", "Issued", "Session", "AgentIdentity", "SigningKey"}
    expected |= {"Agent", "ProofKey", "Spy", "Sealer", "Call", "Reach"}
    expected |= {"Entry", "Cache", "World", "Transport", "Grant", "Statement"}
    if run.is_elsewhere:
        expected |= {"Client", "Issuer", "Registered"}
        expected -= {"AgentIdentity"}  # a class of the tests
    assert expected - {"Spy"} <= names
    leaking = set()
    for kind, texts in seen.items():
        try:
            assert_no_leak(run.secrets, *set(texts))
        except AssertionError:
            leaking.add(kind.__qualname__)
    assert leaking == set()


SECRET = "canary-secret-" + "s3Cr" * 12


@pytest.mark.parametrize(
    "made",
    [
        Secret(SECRET),
        Fields({"access_token": SECRET}),
        Answer(Secret(SECRET), "DPoP", None, None, None),
        HttpRequest("POST", SERVICE, {"Authorization": f"Bearer {SECRET}"}, SECRET.encode()),
        HttpResponse(200, {"x-echo": SECRET}, SECRET.encode()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_H02_what_lives_for_one_exchange_has_no_readable_form_either(made: object) -> None:
    assert_no_leak([SECRET], *(text for _, text in forms(made)))
    assert_no_leak([SECRET], f"{made:}", f"{made!s:>9}", f"{[made]}", f"{ ({'x': made}) }")


@pytest.mark.parametrize(
    "made",
    [
        HttpRequest("POST", SERVICE, {"Authorization": f"Bearer {SECRET}"}, SECRET.encode()),
        HttpResponse(200, {"x-echo": SECRET}, SECRET.encode()),
    ],
    ids=lambda made: type(made).__name__,
)
def test_H02_no_form_of_an_exchange_shows_anything(made: Any) -> None:
    assert not dataclasses.is_dataclass(made)
    assert not hasattr(made, "__dict__")
    assert_no_leak([SECRET], repr(made), str(made), f"{made}")


def test_H02_no_readable_form_of_a_ledger_shows_the_key_of_a_subject(make_identity) -> None:
    identity = make_identity()
    with identity.on_behalf_of(f"user:{SUB}", purpose="p"):
        tool()(lambda: None)()
    subjects = identity.ledger.subjects
    pseudonym = subjects.find(Principal(SUB))
    keys = {repr(subjects._unwrap(subjects._shelf.by_pseudonym(pseudonym)))[2:-1]}
    assert_no_leak(
        keys, *(text for found in (identity.ledger, subjects) for _, text in forms(found))
    )


# -- H03: crash reports ----------------------------------------------------------------------------------------------


def reported(error: BaseException, seen: set[int] | None = None) -> Iterator[str]:
    """What a crash reporter sends: text, notes, and every local of every frame but this file's, causes included."""
    seen = set() if seen is None else seen
    if id(error) in seen:
        return
    seen.add(id(error))
    yield "".join(traceback.format_exception(error))
    yield repr((error, error.args, vars(error)))
    frames = error.__traceback__
    while frames is not None:
        if frames.tb_frame.f_code.co_filename != __file__:
            for name, value in frames.tb_frame.f_locals.items():
                yield f"{frames.tb_frame.f_code.co_qualname} {name} = {value!r}"
                yield f"{name} = {pprint.pformat(value)}"
        frames = frames.tb_next
    for inner in (error.__cause__, error.__context__):
        if inner is not None:
            yield from reported(inner, seen)


def shown(errors: list[BaseException]) -> list[str]:
    texts = [text for error in errors for text in reported(error)]
    assert any(" = <agent_identity.pipeline.Call object" in text for text in texts)
    return texts


def test_H03_no_failure_of_a_call_shows_a_secret_to_a_crash_reporter(run: Run) -> None:
    run.everything()
    kinds = {type(error) for error in run.errors}
    library = [error for error in run.errors if isinstance(error, AgentIdentityError)]
    assert DeniedError in kinds
    if run.is_elsewhere:
        assert {CredentialRejectedError, CredentialUnavailableError} <= kinds
        assert len(library) >= 2 * len(FAILING)
    assert_no_leak(run.secrets, *shown(library), *library)


def test_H03_a_tools_own_error_shows_no_secret_in_the_librarys_frames(run: Run) -> None:
    """The frames of the tool and of its HTTP client are their own affair; httpx hides the header itself."""
    run.sync()
    (own,) = [error for error in run.errors if isinstance(error, httpx.HTTPStatusError)]
    assert own.request.headers["authorization"].startswith("DPoP ")
    assert_no_leak(run.secrets, own, *shown([own]))


def raising(request: object) -> bool:
    raise RuntimeError("no database")


@pytest.mark.parametrize(
    "policy",
    [
        lambda request: False,
        lambda request: Decision.deny("no"),
        lambda request: Decision.approval("manager"),
        lambda request: None,
        raising,
    ],
    ids=["false", "deny", "approval", "undecided", "raises"],
)
def test_H03_no_refusal_of_policy_shows_a_secret(make_identity, policy) -> None:
    policies: list[Any] = [lambda request: True]

    def newest(request: object) -> object:
        return policies[-1](request)

    authority = Spy()
    identity = make_identity(authority=authority, policy=newest)
    read = reader(authority)
    with identity.on_behalf_of("user:alice", purpose="p"):
        key = read()
        policies.append(policy)
        with pytest.raises(DeniedError) as caught:
            read()
    assert_no_leak(authority.secrets | private_parts(key), *shown([caught.value]))


@pytest.mark.parametrize("kind", ["grant.made", "credential.acquired", "call.intended"])
@pytest.mark.parametrize("error", [LedgerError("x", "full"), KeyboardInterrupt(), MemoryError()])
def test_H03_no_failure_of_the_ledger_shows_a_secret(make_identity, kind, error) -> None:
    class Failing(MemoryLedger):
        def append(self, draft: Draft, /) -> None:
            if draft.kind == kind:
                raise error
            super().append(draft)

    authority = Spy()
    identity = make_identity(authority=authority, ledger=Failing())
    read = reader(authority)
    with identity.on_behalf_of("user:alice", purpose="p") as session:
        with pytest.raises(type(error)) as caught:
            read()
        key = session._state.agent.key
    assert_no_leak(authority.secrets | private_parts(key), *shown([caught.value]))


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("GET", "https://evil.example/", None),
        ("GET", f"{SERVICE}/%2e%2e/", None),
        ("GET", f"{SERVICE}/?q=é", None),
        ("POST", f"{SERVICE}/", "text instead of bytes"),
        (b"POST", f"{SERVICE}/", b""),
        ("POST", None, b""),
    ],
)
def test_H03_a_credential_that_cannot_sign_shows_no_secret(make_identity, method, url, body):
    authority = Spy()
    identity = make_identity(authority=authority)

    @tool(resource=SERVICE)
    def sign() -> None:
        authority.secrets.add(current_credential().reveal())
        authority.secrets.update(private_parts(current_session()._state.agent.key))
        current_credential().headers(method, url, body)

    with identity.on_behalf_of("user:alice", purpose="p"):
        with pytest.raises((DeniedError, TypeError, AttributeError)) as caught:
            sign()
    assert_no_leak(authority.secrets, *shown([caught.value]))


def reader(authority: Spy) -> Callable[[], SigningKey]:
    @tool(resource=SERVICE)
    def read() -> SigningKey:
        authority.secrets.add(current_credential().reveal())
        return current_session()._state.agent.key

    return read


# -- H05: spans ------------------------------------------------------------------------------------------------------


def span_texts(span: Any) -> Iterator[str]:
    yield span.name
    yield span.to_json()
    yield repr(dict(span.attributes))
    yield repr([(event.name, dict(event.attributes)) for event in span.events])
    yield repr([(link.context, dict(link.attributes)) for link in span.links])
    yield repr((span.status.status_code, span.status.description))
    yield repr(dict(span.resource.attributes))
    yield repr((span.context, span.context.trace_state, span.parent))


def test_H05_no_part_of_a_span_shows_a_secret_an_argument_or_the_principal(run: Run, spans) -> None:
    run.everything()
    made = [span for span in spans() if span.instrumentation_scope.name == "agent_identity"]
    names = {span.name for span in made}
    assert {"execute_tool read", "execute_tool book", "execute_tool pay"} <= names
    kinds = {None, "policy_denied", "HTTPStatusError"}
    if run.is_elsewhere:
        kinds |= {"issuer_busy", "issuer_unreachable"}
    assert {span.attributes.get("error.type") for span in made} >= kinds
    texts = [text for span in made for text in span_texts(span)]
    assert_no_leak([*run.secrets, ARGUMENT, SUB, "of=acme"], *texts)


def test_H05_what_a_tool_raises_with_its_token_inside_reaches_no_span(make_identity, spans) -> None:
    tokens: list[str] = []

    @tool(resource=SERVICE)
    def leak(text: str) -> None:
        tokens.append(current_credential().reveal())
        raise RuntimeError(f"could not send {tokens[0]} of {text}")

    with make_identity().on_behalf_of("user:alice", purpose="p"), pytest.raises(RuntimeError):
        leak(ARGUMENT)
    (span,) = [span for span in spans() if span.name == "execute_tool leak"]
    assert span.attributes["error.type"] == "RuntimeError"
    assert_no_leak([*tokens, ARGUMENT], *span_texts(span))


# -- H07: what goes to a model ---------------------------------------------------------------------------------------


def test_H07_a_refusal_tells_the_model_its_code_and_nothing_of_policy_or_arguments(
    run: Run,
) -> None:
    run.identity._parts = dataclasses.replace(
        run.identity._parts, policy_now=None, policy=_Denying()
    )
    with run.identity.on_behalf_of(f"user:{SUB}", purpose="p"):
        with pytest.raises(DeniedError) as caught:
            run.read(ARGUMENT)
    assert REASON in str(caught.value)
    told = adapters.refusal_text(caught.value)
    assert "policy_denied" in told
    assert_no_leak([REASON, ARGUMENT, SUB], told)


class _Denying:
    def decide(self, request: Any) -> Any:
        return Decision.deny(f"{REASON} {request.context['args']} {request.subject.id}")
        yield


def test_H07_every_failure_of_a_run_tells_the_model_no_secret(run: Run) -> None:
    run.everything()
    told = [
        adapters.refusal_text(error)
        for error in run.errors
        if isinstance(error, AgentIdentityError)
    ]
    assert len(set(told)) > (3 if run.is_elsewhere else 1)
    assert_no_leak([*run.secrets, ARGUMENT, SUB], *told)


def test_H07_a_tools_signature_and_docstring_show_the_model_no_credential(run: Run) -> None:
    run.sync()
    for decorated in (run.read, run.book, run.pay, run.fail):
        plain = decorated.__wrapped__
        assert inspect.signature(decorated) == inspect.signature(plain)
        assert decorated.__doc__ == plain.__doc__
        assert decorated.__annotations__ == plain.__annotations__
        assert [*inspect.signature(decorated).parameters] in (["customer"], ["number"])
        texts = (repr(vars(decorated)), str(inspect.signature(decorated)), decorated.__doc__ or "")
        assert_no_leak(run.secrets, *texts)
        assert "credential" not in "".join(texts).lower()


def test_H07_a_text_that_echoes_the_requests_own_headers_is_scrubbed(run: Run) -> None:
    run.sync()
    assert len(run.service.received) >= 3
    assert all("Authorization" in headers for headers in run.service.received)
    for headers in run.service.received:
        for text in (json.dumps(headers), str(headers), "\n".join(headers.values())):
            with pytest.raises(AssertionError):
                assert_no_leak(run.authority.secrets, text)
            assert_no_leak(run.authority.secrets, scrub(text))


def test_H07_an_opaque_secret_is_scrubbed_as_long_as_it_lives() -> None:
    opaque = Secret("opaque-token-0123456789")
    assert scrub("sent opaque-token-0123456789 twice") == "sent <secret> twice"
    assert scrub("nothing in here") == "nothing in here"
    del opaque


def test_H07_a_signed_token_is_scrubbed_though_nobody_holds_it_any_more() -> None:
    assert (
        scrub(f"Authorization: DPoP {TOKEN}, and more") == "Authorization: DPoP <token>, and more"
    )
    assert_no_leak([TOKEN], scrub(json.dumps({"headers": {"x": TOKEN}})))


# -- H09: copies -----------------------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Any], object]] = {
    "pickle": pickle.dumps,
    "pickle 2": lambda value: pickle.dumps(value, protocol=2),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "json": json.dumps,
    "orjson": orjson.dumps,
    "in a list": lambda value: pickle.dumps([value]),
    "in a dict": lambda value: copy.deepcopy({"x": value}),
}
HOLDING = ("Issued", "Client", "Agent")  # a shallow copy of these refers to the same secret


def copied(run: Run, name: str, way: str) -> None:
    """Try to copy the real thing, in the middle of a call."""
    refused: list[TypeError] = []

    def look() -> None:
        session = current_session()
        things = {
            "Secret": current_credential()._ready.issued.token,
            "Credential": current_credential(),
            "SigningKey": session._state.agent.key,
            "Issued": current_credential()._ready.issued,
            "Client": Client("cli_1", PrivateKeyJwt(session._state.agent.key)),
            "Agent": session._state.agent,
            "Session": session,
            "AgentIdentity": run.identity,
        }
        with pytest.raises(TypeError) as caught:
            WAYS[way](things[name])
        refused.append(caught.value)

    run.inside = look
    with run.identity.on_behalf_of(f"user:{SUB}", purpose="p"):
        run.read(ARGUMENT)
    assert_no_leak(run.secrets, str(refused[0]), repr(refused[0].args))


@pytest.mark.parametrize("run", ["in process"], indirect=True)
@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, way) for name in ("Secret", "Credential", "SigningKey") for way in WAYS),
        *((name, way) for name in HOLDING for way in WAYS if way != "copy"),
        *((name, way) for name in ("Session", "AgentIdentity") for way in WAYS),
    ],
)
def test_H09_nothing_that_holds_a_secret_can_be_pickled_copied_or_serialised(
    run: Run, name: str, way: str
) -> None:
    copied(run, name, way)


# -- H08: files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_F11_the_state_directory_is_closed_to_others_whatever_the_umask(run: Run, tmp_path) -> None:
    run.sync()
    place = tmp_path / "authority"
    found = [place, *place.rglob("*"), *tmp_path.glob("*.db*"), *tmp_path.glob("*.key")]
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in found}
    assert {"authority", "authority/authority.db", "ledger.db", "subjects.db"} <= modes.keys()
    assert {name: mode for name, mode in modes.items() if mode not in (0o600, 0o700)} == {}
    assert all(
        mode == (0o700 if (tmp_path / name).is_dir() else 0o600) for name, mode in modes.items()
    )


def test_F11_a_state_directory_that_embedded_makes_is_closed_to_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = tmp_path / "deep" / "state"
        with AgentIdentity.embedded("bot", state_dir=state) as identity:
            with identity.on_behalf_of("user:alice", purpose="p"):
                tool()(lambda: None)()
            modes = {
                path: (path.stat().st_mode & 0o777, path.is_dir())
                for path in (state, *state.rglob("*"))
            }
    finally:
        os.umask(before)
    assert len(modes) > 6
    assert set(modes.values()) == {(0o700, True), (0o600, False)}


def test_H08_no_token_and_no_agents_key_is_in_any_file(run: Run, tmp_path: Path) -> None:
    run.everything()
    on_disk = {run.authority.registration_token().reveal()}  # there by design, in a file of its own
    live = files(tmp_path)
    run.identity.close()
    closed = files(tmp_path)
    assert len(live) > 6
    assert any(b"BEGIN PRIVATE KEY" in data for data in live.values())  # the authority's own
    for name, data in [*live.items(), *closed.items()]:
        try:
            assert_no_leak(run.secrets - on_disk, data)
        except AssertionError:
            pytest.fail(f"a secret is in {name}")


def test_H06_neither_the_principal_nor_an_argument_is_in_clear_in_any_ledger_file(
    run: Run, tmp_path: Path
) -> None:
    run.everything()
    for name, data in files(tmp_path).items():
        if not name.startswith("authority/"):
            assert_no_leak([SUB, ARGUMENT], data)
    session = next(r.session_id for r in run.identity.ledger.records() if r.session_id)
    assert run.identity.who_triggered(session).principal.sub == SUB


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


# -- the scanner itself ----------------------------------------------------------------------------------------------

CANARY = "canary/\"0123456789'+ÿ~" + "k" * 20
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJlLWNhbmFyeQ"
SPELLED: dict[str, Callable[[str], str]] = {
    "raw": lambda text: text,
    "in the middle": lambda text: f"xx{text}xx",
    "base64, offset 0": lambda text: base64.b64encode(text.encode() + b"tail").decode(),
    "base64, offset 1": lambda text: base64.b64encode(b"a" + text.encode() + b"tail").decode(),
    "base64, offset 2": lambda text: base64.b64encode(b"ab" + text.encode() + b"tail!").decode(),
    "base64, padded": lambda text: base64.b64encode(b"abcd" + text.encode()).decode(),
    "base64url": lambda text: base64.urlsafe_b64encode(b"ab" + text.encode()).decode(),
    "hex": lambda text: text.encode().hex(),
    "HEX": lambda text: text.encode().hex().upper(),
    "urlencoded": lambda text: quote(text, safe=""),
    "urlencoded, lower": lambda text: re.sub(
        "%..", lambda found: found[0].lower(), quote(text, safe="")
    ),
    "form": quote_plus,
    "JSON": json.dumps,
    "JSON, unescaped": lambda text: json.dumps(text, ensure_ascii=False),
    "repr": repr,
    "bytes repr": lambda text: repr(text.encode()),
}


class Plain:
    def __init__(self, text: str) -> None:
        self.text = text


class Slotted:
    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class Below(Slotted):
    __slots__ = ()


class Says:
    def __init__(self, how: str, text: str) -> None:
        self._say = {how: lambda: text}

    def __repr__(self) -> str:
        return self._say.get("repr", lambda: "Says")()

    def __str__(self) -> str:
        return self._say.get("str", lambda: "Says")()

    def __format__(self, spec: str) -> str:
        return self._say.get("format", lambda: "Says")()


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        if cause is not None:
            raise error from cause
        raise error
    except BaseException as caught:
        return caught


def with_note(text: str) -> BaseException:
    error = ValueError("x")
    error.add_note(text)
    return error


def in_context(text: str, *, suppressed: bool) -> BaseException:
    try:
        try:
            raise ValueError(text)
        except ValueError:
            if suppressed:
                raise KeyError("x") from None
            raise KeyError("x")  # noqa: B904
    except KeyError as error:
        return error


def in_frame(text: str) -> BaseException:
    space: dict[str, Any] = {}
    source = "def work(given):\n    held = [given]\n    del given\n    raise ValueError('x')\n"
    exec(compile(source, "/x/agent_identity/planted.py", "exec"), space)  # noqa: S102
    try:
        space["work"](text)
    except ValueError as error:
        return error
    raise AssertionError("unreachable")


SINKS: dict[str, Callable[[str], object]] = {
    "text": lambda text: text,
    "bytes": lambda text: text.encode(),
    "vars": Plain,
    "slot": Slotted,
    "inherited slot": Below,
    "repr": lambda text: Says("repr", text),
    "str": lambda text: Says("str", text),
    "format": lambda text: Says("format", text),
    "list": lambda text: [text],
    "dict": lambda text: {"x": text},
    "message": lambda text: raised(ValueError(text)),
    "args": lambda text: raised(ValueError(1, {"x": text})),
    "note": with_note,
    "attribute": lambda text: raised(type("Own", (Exception,), {"__init__": Plain.__init__})(text)),
    "cause": lambda text: raised(KeyError("x"), ValueError(text)),
    "context": lambda text: in_context(text, suppressed=False),
    "hidden context": lambda text: in_context(text, suppressed=True),
    "group": lambda text: raised(ExceptionGroup("x", [ValueError(text)])),
    "local": in_frame,
    "local of a cause": lambda text: raised(KeyError("x"), in_frame(text)),
}


@pytest.mark.parametrize("sink", SINKS)
def test_the_scanner_finds_a_canary_in_every_sink(sink: str) -> None:
    for spelled in SPELLED.values():
        with pytest.raises(AssertionError, match="shows in") as caught:
            assert_no_leak([TOKEN], "innocent", SINKS[sink](spelled(TOKEN)))
        assert TOKEN not in str(caught.value)
        assert_no_leak([TOKEN], SINKS[sink](spelled("nothing of the kind")))


@pytest.mark.parametrize("spelled", SPELLED)
def test_the_scanner_finds_a_canary_however_it_is_spelled(spelled: str) -> None:
    for canary in (CANARY, TOKEN, "sixteen-letters!"):
        with pytest.raises(AssertionError, match="shows in"):
            assert_no_leak([canary], SPELLED[spelled](canary))
        assert_no_leak([canary], SPELLED[spelled]("nothing of the kind"))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_scanner_finds_one_part_of_a_token_alone(part: int) -> None:
    with pytest.raises(AssertionError):
        assert_no_leak([TOKEN], TOKEN.split(".")[part])


def test_the_scanner_finds_a_canary_in_a_log_a_span_a_file_and_a_crash_report(
    spans, tmp_path: Path
) -> None:
    from opentelemetry import trace

    logs = Everything()
    logger = logging.getLogger("agent_identity.planted")
    logger.addHandler(logs)
    logger.warning("sent %s", CANARY)
    logger.removeHandler(logs)
    tracer = trace.get_tracer("planted")
    for number, plant in enumerate(PLANTED_IN_SPANS):
        with tracer.start_as_current_span(f"planted {number}") as span:
            plant(span)
    tracer.start_span("planted link", links=[linked()]).end()
    (tmp_path / "file").write_bytes(b"\0\xff" + CANARY.encode() + b"\0")
    sinks = [logs.texts, *files(tmp_path).values(), [*reported(in_frame(CANARY))]]
    planted = [span for span in spans() if "planted" in span.name or CANARY in span.name]
    assert len(planted) == len(PLANTED_IN_SPANS) + 1
    sinks += [[*span_texts(span)] for span in planted]
    for sink in sinks:
        with pytest.raises(AssertionError, match="shows in"):
            assert_no_leak([CANARY], *(sink if isinstance(sink, list) else [sink]))


PLANTED_IN_SPANS: list[Callable[[Any], None]] = [
    lambda span: span.set_attribute("x", CANARY),
    lambda span: span.add_event(CANARY),
    lambda span: span.add_event("x", {"y": CANARY}),
    lambda span: span.record_exception(ValueError(CANARY)),
    lambda span: span.set_status(StatusCode.ERROR, CANARY),
    lambda span: span.update_name(CANARY),
]


def linked() -> Any:
    from opentelemetry import trace

    context = trace.SpanContext(1, 2, is_remote=False)
    return trace.Link(context, {"x": CANARY})


@pytest.mark.parametrize("how", ["pprint", "rich"])
def test_the_scanner_finds_a_canary_that_only_a_printer_shows(how: str) -> None:
    made = dataclasses.make_dataclass("Made", [("text", str)])(CANARY)
    with pytest.raises(AssertionError):
        assert_no_leak([CANARY], *(text for name, text in forms(made) if name == how))


def test_the_search_for_objects_finds_one_that_nothing_of_ours_lists() -> None:
    hidden = [{"deep": (Secret(new_id("x")),)}]
    assert hidden[0]["deep"][0] in [found for found in ours() if isinstance(found, Secret)]
