# SPDX-License-Identifier: Apache-2.0
"""What most tests need: an identity whose calls go the whole way, with everything in memory."""

from __future__ import annotations

import dis
import inspect
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings

import agent_identity
from agent_identity import AgentIdentity
from agent_identity.assembly import Assembled
from agent_identity.authority import Authority
from agent_identity.credentials.agent import Agent
from agent_identity.credentials.oauth.issuer import Issuer
from agent_identity.credentials.oauth.registration import InstanceRegistration
from agent_identity.credentials.oauth.token_types import JWT
from agent_identity.credentials.root_grants import IssuedGrants
from agent_identity.credentials.source import SubjectToken
from agent_identity.credentials.sources.chain_alone import ChainAlone
from agent_identity.credentials.sources.token_exchange import TokenExchange
from agent_identity.flow import Flow, pure
from agent_identity.provenance.memory import MemoryLedger
from agent_identity.runtime.parts import Resource, Resources
from agent_identity.runtime.state import SessionState
from agent_identity.values import Principal, Secret

BILLING = "https://billing.example"

# No test depends on speed: a busy machine may take a second over an example.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


def _in_child() -> None:
    """Keep a forked child from hanging for ever: the locks of log handlers and streams may be held by threads that it lacks."""
    logging.disable()
    signal.alarm(300)


os.register_at_fork(after_in_child=_in_child)


class FakeClock:
    """Unix seconds that a test moves."""

    def __init__(self, now: float = 1_795_518_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


_SIGNS = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class CertificateAuthority:
    """Signs certificates, each into a file of its folder with its key; `file` holds its own certificate alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ca")])
        self.file = folder / "ca.pem"
        self._write(self.file, self._certificate(self._name, self._key, (), is_ca=True))

    def issue(self, name: str, *names: x509.GeneralName) -> Path:
        """A certificate with these alternative names."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name.from_rfc4514_string(f"CN={name}")
        alternative = (x509.SubjectAlternativeName(names),)
        signed = self._certificate(subject, key, alternative, is_ca=False)
        return self._write(self.folder / f"{name}.pem", signed, key)

    def _certificate(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        more: tuple[x509.ExtensionType, ...],
        *,
        is_ca: bool,
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(is_ca, None), critical=True)
        )
        for extension in (*more, *self._of_rfc_5280(key.public_key())):
            made = made.add_extension(extension, critical=False)
        if is_ca:
            made = made.add_extension(_SIGNS, critical=True)
        return made.sign(self._key, hashes.SHA256())

    def _of_rfc_5280(
        self, key: ec.EllipticCurvePublicKey
    ) -> tuple[x509.SubjectKeyIdentifier, x509.AuthorityKeyIdentifier]:
        """Whose key it is and whose signed it: Python 3.13 trusts no certificate that doesn't say."""
        return (
            x509.SubjectKeyIdentifier.from_public_key(key),
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
        )

    @staticmethod
    def _write(
        path: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey | None = None
    ) -> Path:
        encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        pem = certificate.public_bytes(encoding)
        if key is not None:
            pem += key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        path.write_bytes(pem)
        path.chmod(0o600)
        return path


@pytest.fixture
def make_ca(tmp_path: Path) -> Callable[[], CertificateAuthority]:
    return lambda: CertificateAuthority(tmp_path)


class SoftTimeLimitError(Exception):
    """What a task queue raises from its alarm."""


class Interrupts:
    """Raises an exception in turn at every place of a piece of work where CPython delivers a signal.

    Those are the entry of a Python function, the return from a call into C, and a jump backward. `only` says of a code object's
    file whether its places count. The exception is raised by the handler that is installed for SIGALRM.
    """

    def __init__(self, only: Callable[[str], bool]) -> None:
        self._only = only
        self._left = 0
        self.place = ""

    def at(self, place: int, work: Callable[[], object]) -> bool:
        """Run `work`, interrupted at its `place`th place; False when it has fewer. The exception passes through."""
        self._left = place
        self.place = ""
        sys.settrace(self._trace)
        sys.setprofile(self._profile)
        try:
            work()
        finally:
            sys.settrace(None)
            sys.setprofile(None)
        return bool(self.place)

    def _profile(self, frame: FrameType, event: str, what: Any) -> None:
        awaited = frame.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        resumed = event == "call" and awaited and frame.f_lasti > FIRST_STEPS
        if event in ("call", "c_return") and not resumed:
            self._pass(frame, f"{event} {getattr(what, '__qualname__', '')}")

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not self._only(frame.f_code.co_filename):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        if event == "opcode":
            operation = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if operation == "JUMP_BACKWARD":
                self._pass(frame, operation)
        return self._trace

    def _pass(self, frame: FrameType, what: str) -> None:
        if self._left <= 0 or not self._only(frame.f_code.co_filename):
            return
        self._left -= 1
        if self._left == 0:
            sys.settrace(None)
            sys.setprofile(None)
            self.place = f"{frame.f_code.co_qualname}:{frame.f_lineno} {what}"
            signal.getsignal(signal.SIGALRM)(signal.SIGALRM, frame)  # type: ignore[operator, misc]


FIRST_STEPS = 8
"""A coroutine's last instruction before its body begins; beyond it, a step resumes at an `await`."""


def _keyboard_interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def _soft_time_limit(signum: int, frame: object) -> None:
    raise SoftTimeLimitError


@pytest.fixture(params=[_keyboard_interrupt, _soft_time_limit], ids=["ctrl-c", "alarm"])
def interrupts(request: pytest.FixtureRequest) -> Iterator[Interrupts]:
    folder = str(Path(agent_identity.__file__).parent)
    before = signal.signal(signal.SIGALRM, request.param)
    yield Interrupts(lambda name: name.startswith(folder) or name.endswith("contextlib.py"))
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


class DirectorySubject:
    """States by a signed assertion for whom a client of an authority acts, as an agent does that registered itself there."""

    def __init__(self, principal: Principal, agent: Agent, *, txn: str, expires_at: float) -> None:
        self._principal = principal
        self._agent = agent
        self._txn = txn
        self._expires_at = expires_at

    def token(self, issuer: Issuer, types: object, /) -> Flow[SubjectToken]:
        client = yield from issuer.client()
        now = int(issuer.clock())
        claims = {
            "iss": client.client_id,
            "sub": self._principal.sub,
            "sub_profile": self._principal.profile,
            "aud": issuer.url,
            "iat": now,
            "exp": int(self._expires_at),
            "jti": f"sub_{uuid4().hex}",
            "txn": self._txn,
        }
        key = self._agent.key
        header = {"typ": "agent-subject+jwt", "kid": key.thumbprint}
        return SubjectToken(Secret(jwt.encode(claims, key.to_pem(), key.alg, header)), JWT)


class ClientElsewhere(AgentIdentity):
    """An identity whose authority is served: it registers there, and asks for grants and tokens over HTTP."""

    def _with_authority(self, minted: Any, described: Any) -> Assembled:
        authority = self.authority
        clients = InstanceRegistration(
            self.name,
            self._agent,
            owner=self._owner,
            initial_token=lambda: pure(authority.registration_token()),
            recorded=self._record_registration,
        )
        issuer = Issuer(authority.issuer, clients=clients, clock=self._clock)
        source = TokenExchange(issuer, actor="grant", names_principal=True, subject_types=(JWT,))

        def reached(uri: str) -> Resource:
            return Resource(uri, source, issuer=issuer, handed=ChainAlone(self._clock))

        assert not minted
        anchor = IssuedGrants(issuer)
        return Assembled(anchor, Resources(dict(described), reached), {"": issuer}, {})

    def _make_state(self, *args: Any, **options: Any) -> SessionState:
        state = super()._make_state(*args, **options)
        end = state.expires_at
        state.subject = DirectorySubject(
            state.principal, self._agent, txn=state.txn, expires_at=end
        )
        return state


@pytest.fixture
def directory_subject() -> type[DirectorySubject]:
    return DirectorySubject


@pytest.fixture
def client_elsewhere() -> type[ClientElsewhere]:
    return ClientElsewhere


@pytest.fixture
def make_identity() -> Iterator[Callable[..., AgentIdentity]]:
    made: list[AgentIdentity] = []

    def make(name: str = "invoice-bot", **parts: object) -> AgentIdentity:
        parts.setdefault("authority", Authority())
        parts.setdefault("ledger", MemoryLedger())
        identity = AgentIdentity(name, **parts)  # type: ignore[arg-type]
        made.append(identity)
        return identity

    yield make
    for identity in made:
        identity.close()


@pytest.fixture
def bot(make_identity: Callable[..., AgentIdentity]) -> AgentIdentity:
    return make_identity()
