# SPDX-License-Identifier: Apache-2.0
"""Flows: what has to be asked of the world, apart from how it is asked.

A flow is a generator that yields an ask and is sent the answer. All logic that needs I/O is written once, as a flow,
and driven by `run` in sync code and by `arun` in async code. Five rules keep that sound:

F1  A flow holds nothing across a `yield`: no lock, no span, no file, no contextvar token. An abandoned generator is
    finalised somewhere else, and then the lock stays locked.
F2  A flow is used once. Keep what makes it, and make another for each call.
F3  A driver follows no redirect on a flow's behalf, and speaks https only, loopback excepted.
F4  Time and randomness are arguments (`now`, `jti`), so that a test owns both.
F5  A flow is closed by the task that drives it, always.

tests/drivers/test_flow.py and tests/drivers/test_http.py hold the tests of these rules.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from agent_identity.errors import AgentIdentityError

if TYPE_CHECKING:
    from agent_identity.values import JSON, Certificate, Prompt, Secret

__all__ = [
    "Append",
    "Ask",
    "Blocking",
    "Callback",
    "Done",
    "Draft",
    "Expiring",
    "Flow",
    "HttpRequest",
    "HttpResponse",
    "Keep",
    "Pause",
    "Read",
    "Shared",
    "Show",
    "Svid",
    "Visit",
    "advance",
    "append",
    "arun",
    "blocking",
    "certificate_svid",
    "http",
    "jwt_svid",
    "keep",
    "pause",
    "pure",
    "read",
    "run",
    "shared",
    "show",
    "visit",
]

T = TypeVar("T")
E_co = TypeVar("E_co", bound="Expiring", covariant=True)


class HttpRequest:
    """One request, in values of our own; nobody changes it once it is made.

    Headers and body carry secrets, so they show in no readable form; that is why it is no dataclass.
    `certificate` is what the client shows in TLS. `discovered` says that a peer named the URL and no configuration did: it
    may then lead to no private address. `plain` names the one http host that a cloud's metadata service has.
    """

    __slots__ = ("body", "certificate", "discovered", "headers", "method", "plain", "url")

    def __init__(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        certificate: Certificate | None = None,
        discovered: bool = False,
        plain: str | None = None,
    ) -> None:
        self.method: str = method
        self.url: str = url
        self.headers: Mapping[str, str] = headers or {}
        self.body: bytes = body
        self.certificate: Certificate | None = certificate
        self.discovered: bool = discovered
        self.plain: str | None = plain

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.url.partition('?')[0]}>"


class HttpResponse:
    """One answer, read whole. Header names are in lower case; a repeated header is joined by `, `."""

    __slots__ = ("body", "headers", "status")

    def __init__(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self.status: int = status
        self.headers: Mapping[str, str] = headers or {}
        self.body: bytes = body

    def __repr__(self) -> str:
        return f"<HttpResponse {self.status}, {len(self.body)} bytes>"


class Draft(NamedTuple):
    """What is to be recorded: `public` in clear, `sealed` encrypted under the key of the subject `pseudonym`.

    The record can be found later by its five references; None is a reference that it lacks.
    `ref` is a further one: the `jti` of a grant or token, or the model's tool call id.
    """

    kind: str
    public: dict[str, JSON]
    sealed: dict[str, JSON] | None = None
    pseudonym: str | None = None
    session_id: str | None = None
    call_id: str | None = None
    trace_id: str | None = None
    span_id: str | None = None
    ref: str | None = None


class Expiring(Protocol):
    """What a shared fetch brings: something that ends at a time, in Unix seconds."""

    @property
    def issued_at(self) -> float: ...

    @property
    def expires_at(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Shared(Generic[E_co]):
    """Ask for what everybody with the same `key` shares: from the cache, or from one fetch for all who wait.

    `start` makes the flow of that fetch; it is called at most once per flight, by whoever leads it. `patience` is seconds
    for a fetch in which a person has to do something; None is the deadline of everything else. `once` says that two at a time
    would do harm, so that whoever can't wait for the other gets an error.
    """

    key: bytes
    start: Callable[[], Flow[E_co]] = field(repr=False)
    patience: float | None = None
    once: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """Ask that a record be committed; the answer None means that it is."""

    draft: Draft


@dataclass(frozen=True, slots=True)
class Pause:
    """Ask that seconds go by. When they don't fit what is left of the deadline, the answer is an error at once."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Read:
    """Ask for what a reference names: `env:NAME`, `file:PATH` (absolute) or `keyring:NAME`; None where there is nothing."""

    reference: str


@dataclass(frozen=True, slots=True)
class Keep:
    """Ask that a secret be kept where a reference names, whole and durable before the flow goes on; None takes it away."""

    reference: str
    secret: Secret | None


@dataclass(frozen=True, slots=True)
class Show:
    """Ask that a person be shown what to do."""

    prompt: Prompt


class Callback(NamedTuple):
    """What came back to a loopback redirect URI: its query's members in order, as decoded pairs."""

    redirect_uri: str
    members: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Visit:
    """Ask that a person visit an authorization server and come back to a loopback address, within `seconds`.

    `prepare` gets the redirect URI and makes the flow of the prompt, while the listener is open. `redirect_uri` is that URI if it
    is fixed; without a port, and for None, a free port is chosen. `accepts` says whether a response belongs to this request: any
    page can send a browser to that address.
    """

    prepare: Callable[[str], Flow[Prompt]] = field(repr=False)
    seconds: float
    redirect_uri: str | None = None
    accepts: Callable[[tuple[tuple[str, str], ...]], bool] = field(
        default=lambda _: True, repr=False
    )


@dataclass(frozen=True, slots=True)
class Svid:
    """Ask the SPIFFE Workload API: for a JWT-SVID to `audience`, or with None for the X.509-SVID of this workload."""

    audience: str | None


@dataclass(frozen=True, slots=True)
class Blocking:
    """Ask that a function of this process be called that may block, for a database: async code calls it in a thread."""

    work: Callable[[], None] = field(repr=False)


Ask: TypeAlias = (
    "HttpRequest | Shared[Expiring] | Append | Blocking | Pause | Read | Keep | Show | Visit | Svid"
)
Answer: TypeAlias = "HttpResponse | Expiring | Secret | Callback | Certificate | None"
Flow: TypeAlias = Generator[Ask, Answer, T]


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The end of a flow, and its value."""

    value: T


def pure(value: T) -> Flow[T]:
    """The flow of what is known already and asks nobody."""
    yield from ()
    return value


def http(request: HttpRequest) -> Flow[HttpResponse]:
    """Ask for an HTTP exchange, and give the answer its type back."""
    answer = yield request
    assert isinstance(answer, HttpResponse)  # noqa: S101 - a driver that answers otherwise is a bug in the driver
    return answer


def shared(ask: Shared[E_co]) -> Flow[E_co]:
    """Ask for what is shared, and give the answer its type back."""
    answer = yield ask
    return answer  # type: ignore[return-value]  # the driver ran `ask.start`, whose type this is


def append(draft: Draft) -> Flow[None]:
    """Ask for a record to be committed."""
    yield Append(draft)


def blocking(work: Callable[[], T]) -> Flow[T]:
    """Call a function that may block, and return what it returns."""
    results: list[T] = []
    yield Blocking(lambda: results.append(work()))
    return results[0]


def pause(seconds: float) -> Flow[None]:
    """Let seconds go by.

    Raises:
        TransportError: `deadline_exceeded`, they don't fit what is left of the deadline; nothing was waited for.
    """
    yield Pause(seconds)


def read(reference: str) -> Flow[Secret | None]:
    """Read what a reference names, None where there is nothing.

    Raises:
        ConfigurationError: the reference is of no known kind, or what it names is there but broken.
    """
    answer = yield Read(reference)
    return answer  # type: ignore[return-value]  # what a driver answers to this ask


def keep(reference: str, secret: Secret | None) -> Flow[None]:
    """Keep a secret where a reference names, or with None take away what is there.

    Raises:
        ConfigurationError: nothing can be kept there.
    """
    yield Keep(reference, secret)


def show(prompt: Prompt) -> Flow[None]:
    """Show a person what to do.

    Raises:
        ConfigurationError: there is nobody to show it to.
    """
    yield Show(prompt)


def visit(
    prepare: Callable[[str], Flow[Prompt]],
    seconds: float,
    accepts: Callable[[tuple[tuple[str, str], ...]], bool] = lambda _: True,
    *,
    redirect_uri: str | None = None,
) -> Flow[Callback]:
    """Send a person to an authorization server, and return the response that comes back. See `Visit`.

    Raises:
        CredentialUnavailableError: the sign-in timed out, or the port of `redirect_uri` is taken.
        ConfigurationError: the prompt can't be shown.
    """
    answer = yield Visit(prepare, seconds, redirect_uri, accepts)
    return answer  # type: ignore[return-value]  # what a driver answers to this ask


def jwt_svid(audience: str) -> Flow[Secret | None]:
    """A JWT-SVID for an audience as the Workload API gave it, None where there is no such API."""
    answer = yield Svid(audience)
    return answer  # type: ignore[return-value]  # what a driver answers to this ask


def certificate_svid() -> Flow[Certificate | None]:
    """The X.509-SVID of this workload, None where there is no Workload API."""
    answer = yield Svid(None)
    return answer  # type: ignore[return-value]  # what a driver answers to this ask


def advance(flow: Flow[T], answer: Answer | AgentIdentityError) -> Ask | Done[T]:
    """Take a flow one step. Nothing but the flow runs inside this `try`.

    A driver that put the exchange inside it would turn a `StopIteration` raised by the transport into the flow's result.
    """
    try:
        if isinstance(answer, AgentIdentityError):
            return flow.throw(answer)
        return flow.send(answer)
    except StopIteration as stop:
        return Done(stop.value)


def run(flow: Flow[T], world: Callable[[Ask], Answer]) -> T:
    """Drive a flow in sync code. `world` answers each ask, or raises.

    An `AgentIdentityError` of the world is thrown into the flow, so that it can fall back with a plain `except`;
    anything else ends the flow and passes through.
    """
    try:
        step = advance(flow, None)
        while not isinstance(step, Done):
            try:
                answer: Answer | AgentIdentityError = world(step)
            except AgentIdentityError as error:
                answer = error
            step = advance(flow, answer)
        return step.value
    finally:
        flow.close()


async def arun(flow: Flow[T], world: Callable[[Ask], Awaitable[Answer]]) -> T:
    """Drive a flow in async code; the same as `run` with one `await`."""
    try:
        step = advance(flow, None)
        while not isinstance(step, Done):
            try:
                answer: Answer | AgentIdentityError = await world(step)
            except AgentIdentityError as error:
                answer = error
            step = advance(flow, answer)
        return step.value
    finally:
        flow.close()
