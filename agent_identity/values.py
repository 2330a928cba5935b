# SPDX-License-Identifier: Apache-2.0
"""The small values that every layer speaks in: principals, decisions, secrets, identifiers."""

from __future__ import annotations

import binascii
import hmac
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, NoReturn, TypeAlias

from agent_identity.errors import ConfigurationError, VerificationError
from agent_identity.forks import reset_in_child
from agent_identity.redaction import keep, remember, scrub, start_over

__all__ = [
    "DISCOVERED",
    "JSON",
    "LOCAL",
    "TOOL_DETAILS",
    "Approval",
    "Certificate",
    "Decision",
    "Principal",
    "Prompt",
    "Secret",
    "agent_uri",
    "b64url",
    "b64url_bytes",
    "can_be_signed",
    "check_phrase",
    "check_task",
    "is_agent",
    "is_line",
    "is_listed",
    "keep",
    "new_id",
    "scope_set",
    "scrub",
    "unb64url",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

LOCAL: Final = "urn:agent-identity:local"
"""The resource of a tool that reaches nothing outside its process; no network verifier accepts it."""

DISCOVERED: Final = "discovered"
"""The name of the issuer of a resource whose own metadata names its issuer."""


TOOL_DETAILS: Final = "urn:agent-identity:tool"
"""The one type of authorization details (RFC 9396) that grants carry."""


@dataclass(frozen=True, slots=True)
class Principal:
    """The party that the agent acts for: OAuth `sub`, its issuer (None = the embedded authority), and its kind.

    `profile` is `user`, `service`, `trigger` or another `sub_profile` of the actor-profile draft.

    Raises:
        ConfigurationError: it is empty, no text, or has no issuer but a name like another issuer's principal (`https://idp#bob`).
    """

    sub: str
    iss: str | None = None
    profile: str = "user"

    def __post_init__(self) -> None:
        if not self.sub:
            raise ConfigurationError("principal_empty", "a principal needs a non-empty sub")
        try:
            "".join((self.sub, "" if self.iss is None else self.iss, self.profile)).encode()
        except (TypeError, UnicodeEncodeError):
            raise ConfigurationError(
                "principal_malformed", "a principal's name must be text without lone surrogates"
            ) from None
        if self.iss is None and self.profile != "trigger" and _FOREIGN.match(self.sub):
            raise ConfigurationError(
                "principal_malformed",
                "a principal without an issuer has a name like another issuer's, <iss>#<sub>",
                remedy="remove the URI and the # from the name, or pass iss=",
            )

    @classmethod
    def parse(cls, text: str) -> Principal:
        """Read `user:alice`, `user:<iss>#<sub>`, `service:…` or `trigger:…`.

        Raises:
            ConfigurationError: the text has no profile or no subject.
        """
        profile, colon, rest = text.partition(":")
        if not colon or profile not in _PROFILES or not rest:
            raise ConfigurationError(
                "principal_malformed",
                "a principal is written <profile>:<sub>, for instance user:alice",
                remedy=f"begin it with one of {', '.join(sorted(_PROFILES))}",
            )
        iss, hash_sign, sub = rest.partition("#")  # an issuer has no fragment (RFC 8414 §2)
        if hash_sign and iss.startswith(("https://", "http://", "urn:", "spiffe://")):
            return cls(sub, iss=iss, profile=profile)
        return cls(rest, profile=profile)

    def __str__(self) -> str:
        return (
            f"{self.profile}:{self.sub}"
            if self.iss is None
            else f"{self.profile}:{self.iss}#{self.sub}"
        )


_PROFILES: Final = frozenset({"user", "service", "trigger"})
_RESERVED: Final = _PROFILES | {"agent", "client"}
_FOREIGN: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^#]*#")


@dataclass(frozen=True, slots=True)
class Decision:
    """Policy's answer for one call. Make it with `permit`, `deny` or `approval`."""

    verdict: Literal["permit", "deny", "approval"]
    reason: str | None = None
    policy_id: str | None = None
    role: str | None = None

    @classmethod
    def permit(cls, *, policy_id: str | None = None) -> Decision:
        """Let the call go on."""
        return cls("permit", policy_id=policy_id)

    @classmethod
    def deny(cls, reason: str, *, policy_id: str | None = None) -> Decision:
        """Refuse the call; `reason` goes into the record, never to the model."""
        return cls("deny", reason=reason, policy_id=policy_id)

    @classmethod
    def approval(cls, role: str, *, policy_id: str | None = None) -> Decision:
        """Refuse the call until a holder of `role` approves exactly these arguments."""
        return cls("approval", policy_id=policy_id, role=role)


@dataclass(frozen=True, slots=True)
class Approval:
    """Who approved a call, how, and how that was proven (`evidence`: key, issuer or asserted).

    `at` is Unix seconds, `digest` the `sha-256:…` digest of the facts that were approved.
    """

    id: str
    by: str
    method: str
    at: int
    digest: str
    evidence: Literal["key", "issuer", "asserted"] = "asserted"
    proof: str | None = None
    acr: str | None = None


class Secret:
    """A secret text. `reveal()` is the only way to read it, so that a grep for that word is an audit.

    It has no readable form, can't be pickled, copied or serialised, and compares in constant time.
    """

    __slots__ = ("__weakref__", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        remember(self)

    def reveal(self) -> str:
        """The text itself. Don't keep it in a variable for longer than a line."""
        return self._text

    def __repr__(self) -> str:
        return "<Secret>"

    __str__ = __repr__

    def __format__(self, spec: str, /) -> str:
        return "<Secret>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._text.encode(), other._text.encode())

    def equals(self, other: Secret | None) -> bool:
        """Whether another is the same text; in constant time, as `==` is."""
        return other is not None and self == other

    def __hash__(self) -> int:
        raise TypeError("a Secret can't be hashed: a hash would be a trace of it")

    def __reduce_ex__(self, protocol: object, /) -> NoReturn:
        raise TypeError("a Secret can't be pickled or copied")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A client certificate and its key, both PEM: the chain leaf first, the key unencrypted.

    `thumbprint` is the leaf's `x5t#S256` (RFC 8705 §3.1), `expires_at` its end in Unix seconds, `uris` the leaf's URI names
    (a SPIFFE ID is one). `bundle` are the authorities (PEM) to trust in that connection. `keys.read_certificate` reads one.
    """

    chain: str
    key: Secret
    thumbprint: str
    expires_at: float
    uris: tuple[str, ...] = ()
    bundle: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a person has to do: open `authorization_url`, or enter `user_code` at `verification_uri`, or look at their device.

    `expires_at` is Unix seconds. The kind is `authorization-code`, `device` or `ciba`.
    """

    kind: Literal["authorization-code", "device", "ciba"]
    issuer: str
    expires_at: float
    authorization_url: str | None = None
    verification_uri: str | None = None
    verification_uri_complete: str | None = None
    user_code: str | None = None


def b64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515 §2)."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL, b"=").decode("ascii")


def b64url_bytes(data: bytes) -> bytes:
    """`b64url` for callers that go on with bytes."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL, b"=")


def unb64url(text: str) -> bytes:
    """The bytes of a base64url text; exactly one spelling is accepted for each value.

    Raises:
        VerificationError: padding, foreign characters, or trailing bits that aren't zero.
    """
    encoded = text.encode("ascii", "replace")
    left_over = len(encoded) % 4
    try:
        data = binascii.a2b_base64(
            encoded.translate(_FROM_URL) + _PADDING[left_over], strict_mode=True
        )
    except ValueError:
        data = None
    if data is None or (left_over and encoded[-1] not in _LAST[left_over]):
        raise VerificationError("malformed_base64", "not base64url without padding")
    return data


_TO_URL: Final = bytes.maketrans(b"+/", b"-_")
_FROM_URL: Final = bytes.maketrans(b"-_+/=", b"+/\0\0\0")
_PADDING: Final = (b"", b"", b"==", b"=")
_LAST: Final = (b"", b"", b"AQgw", b"AEIMQUYcgkosw048")
"""The last characters whose unused bits are zero, by the number of characters after the last whole four."""


_ids: list[str] = []
"""Random identifiers, 256 from one system call. `list.pop` is atomic, and a forked child starts with none."""


def new_id(prefix: str) -> str:
    """A fresh identifier: `prefix` (`ses_`, `call_`, `grant_`, …) and 128 random bits in hex."""
    try:
        return prefix + _ids.pop()
    except IndexError:
        page = os.urandom(16 * 256).hex()
        _ids.extend(page[at : at + 32] for at in range(32, len(page), 32))
        return prefix + page[:32]


reset_in_child(_ids.clear)
reset_in_child(start_over)


def agent_uri(name: str) -> str:
    """The URI of an agent: a URI stays itself, a bare name becomes `urn:agent-identity:agent:<name>`.

    Raises:
        ConfigurationError: the name is empty, has characters that a URI can't hold, or is the reference of a principal or client.
    """
    if is_agent(name):
        return name
    if not _is_text(name, _AGENT_NAME):
        raise ConfigurationError(
            "agent_name",
            "an agent's name must be a URI, or letters, digits, dots, dashes and underscores",
        )
    return f"urn:agent-identity:agent:{name}"


def is_agent(value: object) -> bool:
    """Whether it is a URI that can name an agent. `user:`, `service:`, `trigger:`, `agent:` and `client:` begin references."""
    return _is_text(value, _URI) and str(value).partition(":")[0].lower() not in _RESERVED


_URI: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
_AGENT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PHRASE: Final = 200
_SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")


def _is_text(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def is_listed(value: object) -> bool:
    """Whether it is a list, set or other iterable, but not one string."""
    return isinstance(value, Iterable) and not isinstance(value, str)


def check_phrase(name: str, value: object, *, remedy: str | None = None) -> str:
    """Return a short text that grants carry and people read: a purpose, a trigger, a task.

    Raises:
        ConfigurationError: it is too long, or not one readable line. `name` is the code.
    """
    if isinstance(value, str) and 1 <= len(value) <= _PHRASE and is_line(value):
        return value
    raise ConfigurationError(
        name, f"{name} must be one line of 1 to {_PHRASE} printable characters", remedy=remedy
    )


def is_line(text: str) -> bool:
    """Whether a text is one printable line, without control, bidirectional or invisible characters."""
    return text.translate(_WITHIN_WORDS).isprintable()


_WITHIN_WORDS: Final = dict.fromkeys(map(ord, "\u00a0\u202f\u200c\u200d"))
"""Allowed nevertheless: spaces that don't break, and the joiners of Persian, Indic scripts and emoji."""


def check_task(task: object) -> str | None:
    """`check_phrase` for the task of a hop, which may be None."""
    return None if task is None else check_phrase("task", task)


def can_be_signed(value: object) -> bool:
    """Whether it is text free of lone surrogates, which JSON in UTF-8 can't hold."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def scope_set(scopes: Iterable[str]) -> frozenset[str]:
    """Scopes as a set of exact tokens (RFC 6749 §3.3). They have no prefixes or wildcards, and case counts.

    Raises:
        ConfigurationError: it isn't a list of strings, or a token has characters that no scope can have.
    """
    if not is_listed(scopes):
        raise ConfigurationError(
            "scope_malformed",
            "scopes must be a list of strings",
            remedy='write scopes=["invoices:read"]',
        )
    tokens = tuple(scopes)
    for token in tokens:
        if not _is_text(token, _SCOPE_TOKEN):
            raise ConfigurationError(
                "scope_malformed",
                f"the scope {ascii(token)[:80]} has characters that no scope can have (RFC 6749 §3.3)",
                remedy="write each scope as a string of its own, in printable ASCII without spaces, quotation marks and backslashes",
            )
    return frozenset(tokens)
