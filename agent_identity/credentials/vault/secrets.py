# SPDX-License-Identifier: Apache-2.0
"""Secrets in OpenBao or HashiCorp Vault: the workload's token logs in, and key/value version 2 is read and written.

A login is shared by everybody who uses the same `Vault`, for as long as its lease lasts. Nothing that the server answers is
quoted: it may echo what it was sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import orjson

from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.responses import Fields, asked, failure_of, json_object
from agent_identity.credentials.oauth.retries import ATTEMPTS, wait_for
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialError,
    CredentialRejectedError,
    CredentialUnavailableError,
    DeniedError,
)
from agent_identity.flow import HttpRequest, Shared, shared
from agent_identity.uris import is_loopback, origin
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Flow, HttpResponse
    from agent_identity.values import JSON

__all__ = ["Reference", "Vault", "parse_reference"]

_SCHEME: Final = "vault:"
_SEGMENT: Final = r"(?!\.\.?(?:/|\Z))[A-Za-z0-9._~@-]+"  # none is "." or ".."
_PATH: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")
_FIELD: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_LONE: Final = re.compile("[\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_LONGEST_LEASE: Final = 24 * 3600.0
_UNSTATED_LEASE: Final = 300.0
"""Seconds that a login serves whose lease doesn't end."""

_OK: Final = frozenset({200, 204})
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_ANSWERS: Final = _OK | {_BAD_REQUEST, _NOT_FOUND}

T = TypeVar("T")


class Reference(NamedTuple):
    """Where a secret is: the path below the mount, and the field there."""

    path: str
    field: str = "value"


def parse_reference(reference: str) -> Reference:
    """Read `vault:a/b#field`; without a field it is `value`.

    Raises:
        ConfigurationError: `reference_malformed`: another scheme, an empty or relative segment, a query, foreign characters.
    """
    path, hash_sign, name = reference.removeprefix(_SCHEME).partition("#")
    name = name if hash_sign else "value"
    if not reference.startswith(_SCHEME) or not _PATH.fullmatch(path) or not _FIELD.fullmatch(name):
        raise ConfigurationError(
            "reference_malformed",
            "a reference into the vault is written vault:path#field",
            remedy="write the path below the mount, in plain segments, for instance vault:billing/api#key",
        )
    return Reference(path, name)


@dataclass(frozen=True, slots=True)
class _Login:
    """A token of the server's, for as long as its lease; `number` counts how often one was refused before."""

    token: Secret = field(repr=False)
    number: int
    issued_at: float
    expires_at: float


class _Version(NamedTuple):
    """The newest version of a secret: its number (0: there never was one), and its fields (None: it was deleted)."""

    number: int
    fields: Fields | None

    def holds(self, name: str) -> JSON:
        return None if self.fields is None else self.fields.get(name)

    def replaced(self, name: str, secret: Secret | None) -> bytes:
        """The body that writes it anew with one field changed, if nobody wrote in between."""
        members = {} if self.fields is None else dict(self.fields.members)
        members.pop(name, None)
        if secret is not None:
            members[name] = secret.reveal()
        return orjson.dumps({"data": members, "options": {"cas": self.number}})


class Vault:
    """One server, one role, one mount of secrets.

    `address` is its origin. `login` makes the flow of the workload's token, whose audience the role has to accept. `clock`
    gives Unix seconds.
    """

    def __init__(
        self,
        address: str,
        login: Callable[[], Flow[Secret]],
        *,
        clock: Callable[[], float],
        role: str,
        auth_mount: str = "jwt",
        kv_mount: str = "secret",
        namespace: str | None = None,
    ) -> None:
        _check_address(address)
        for name, value in (
            ("auth_mount", auth_mount),
            ("kv_mount", kv_mount),
            ("namespace", "-" if namespace is None else namespace),
        ):
            if not _PATH.fullmatch(value):
                raise ConfigurationError(
                    "vault_malformed",
                    f"{name} of the vault is no path of plain segments",
                    remedy=f"write {name} without a slash at its ends",
                )
        self.address: str = address
        self._workload = login
        self._clock = clock
        self.role: str = role
        self._auth_mount = auth_mount
        self._kv_mount = kv_mount
        self._headers: dict[str, str] = {"X-Vault-Request": "true", "Accept": "application/json"}
        if namespace is not None:
            self._headers["X-Vault-Namespace"] = namespace
        self._name = new_id(
            "vault_"
        )  # two vaults may log in as two workloads, so they share nothing
        self._number = 0

    def __repr__(self) -> str:
        return f"<Vault {self.address}>"

    def read(self, reference: str) -> Flow[Secret | None]:
        """The secret that `vault:path#field` names; None where there is no such path, version or field.

        Raises:
            ConfigurationError: `reference_malformed`; `secret_unreadable`, what is there is no text.
            CredentialRejectedError: the login, or the reading, is refused.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        place = parse_reference(reference)
        version = yield from self._newest(place)
        return _text_of(version, place)

    def keep(self, reference: str, secret: Secret | None) -> Flow[None]:
        """Write one field and leave the others as they are, or with None take it away. Older versions stay in the vault.

        What somebody else writes meanwhile is not lost: beside our field it is kept, and in it theirs stays.

        Raises:
            ConfigurationError: `reference_malformed`.
            CredentialRejectedError: `vault_conflict`, somebody else wrote this field; or the writing is refused.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        place = parse_reference(reference)
        if secret is not None and _LONE.search(secret.reveal()):
            raise _unreadable(place)
        version = yield from self._newest(place)
        for _ in range(ATTEMPTS):
            if secret is None and version.holds(place.field) is None:
                return
            body = partial(version.replaced, place.field, secret)
            response = yield from self._asked("POST", place, body)
            if response.status in _OK:
                return
            newer = yield from self._newest(place)
            if newer.number == version.number:  # so it wasn't the check-and-set that refused
                raise self.failure(response, "the writing of a secret", self._access())
            if newer.holds(place.field) != version.holds(place.field):
                break
            version = newer
        raise CredentialRejectedError(
            "vault_conflict",
            f"somebody else writes the same secret at {self.address}",
            remedy="give each writer a field or path of its own",
        )

    # -- secrets -----------------------------------------------------------------------------------------------------

    def _newest(self, place: Reference) -> Flow[_Version]:
        response = yield from self.patiently(lambda: self._asked("GET", place))
        if response.status == _NOT_FOUND:
            return _Version(_deleted_version(response), None)
        if response.status not in _OK:
            raise self.failure(response, "a secret", self._access())
        data = json_object(response, self.address).nested("data")
        metadata = None if data is None else data.nested("metadata")
        number = None if metadata is None else metadata.number("version")
        if data is None or number is None:
            raise _malformed(self.address)
        return _Version(int(number), data.nested("data"))

    def _asked(
        self, method: str, place: Reference, body: Callable[[], bytes] = bytes
    ) -> Flow[HttpResponse]:
        path = f"{self._kv_mount}/data/{place.path}"
        return self.ask(method, path, body, what="a secret", access=self._access())

    def _access(self) -> str:
        return f"give the policies of role {self.role} the path, with data/ after the mount {self._kv_mount}"

    # -- one exchange ------------------------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str, body: Callable[[], bytes] = bytes, *, what: str, access: str
    ) -> Flow[HttpResponse]:
        """Ask for something below `/v1/` with a login; one that was shared and isn't good any more is replaced once.

        `what` and `access` are for errors: what was asked for, and how the role gets at it.

        Raises:
            CredentialRejectedError: the login, or the asking, is refused with another status than 400 and 404.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        since = self._clock()
        login = yield from self._login()
        response = yield from self._sent(method, path, body(), login)
        if response.status == _FORBIDDEN and login.issued_at < since:
            self._number = max(self._number, login.number + 1)
            login = yield from self._login()
            response = yield from self._sent(method, path, body(), login)
        if response.status not in _ANSWERS:
            raise self.failure(response, what, access)
        return response

    def _sent(self, method: str, path: str, body: bytes, login: _Login) -> Flow[HttpResponse]:
        # No flow of its own: what raises later has no frame with the secret in it.
        headers = {"X-Vault-Token": login.token.reveal(), "Content-Type": "application/json"}
        url = f"{self.address}/v1/{path}"
        return asked(HttpRequest(method, url, self._headers | headers, body), self.address)

    def patiently(self, once: Callable[[], Flow[T]]) -> Flow[T]:
        """Ask again while the server is busy; what is asked this way may be asked twice."""
        for attempt in range(1, ATTEMPTS):
            try:
                return (yield from once())
            except CredentialUnavailableError as error:
                failure = error
            yield from wait_for(failure, attempt)
        return (yield from once())

    def failure(self, response: HttpResponse, what: str, access: str) -> CredentialError:
        """What a status other than success means."""
        if response.status == _FORBIDDEN:
            return CredentialRejectedError(
                "vault_forbidden",
                f"{self.address} gives this workload no access to {what} ({_FORBIDDEN})",
                remedy=access,
            )
        return failure_of(response, self.address, what, self._clock())

    # -- the login ---------------------------------------------------------------------------------------------------

    def _login(self) -> Flow[_Login]:
        number = self._number
        key = digest_of(("vault", self._name, str(number)))
        return shared(Shared(key, lambda: self._logged_in(number)))

    def _logged_in(self, number: int) -> Flow[_Login]:
        token = yield from self._workload()
        now = self._clock()
        url = f"{self.address}/v1/auth/{self._auth_mount}/login"
        response = yield from asked(
            HttpRequest(
                "POST",
                url,
                {**self._headers, "Content-Type": "application/json"},
                orjson.dumps({"role": self.role, "jwt": token.reveal()}),
            ),
            self.address,
        )
        if response.status in (_BAD_REQUEST, _FORBIDDEN, _NOT_FOUND):
            raise CredentialRejectedError(
                "vault_login_refused",
                f"{self.address} refused the login of this workload ({response.status})",
                remedy=f"see that auth mount {self._auth_mount} has role {self.role}, and what it binds: issuer, audience, claims",
            )
        if response.status not in _OK:
            raise self.failure(response, "a login", self._access())
        auth = json_object(response, self.address).nested("auth")
        lease = None if auth is None else auth.number("lease_duration")
        given = None if auth is None else auth.secret("client_token")
        if given is None or lease is None or lease < 0 or not _TOKEN.fullmatch(given.reveal()):
            raise _malformed(self.address)
        return _Login(given, number, now, now + min(lease or _UNSTATED_LEASE, _LONGEST_LEASE))


def _check_address(address: str) -> None:
    try:
        usable = origin(address) == address
    except DeniedError:
        usable = False
    if not usable or not (address.startswith("https://") or is_loopback(address)):
        raise ConfigurationError(
            "vault_malformed",
            "the address of the vault is no origin that may be asked",
            remedy="write https, host and port alone, in lower case, for instance https://vault.example:8200",
        )


def _text_of(version: _Version, place: Reference) -> Secret | None:
    if version.fields is None or not version.fields.has(place.field):
        return None
    secret = version.fields.secret(place.field)
    if secret is None:
        raise _unreadable(place)
    return secret


def _deleted_version(response: HttpResponse) -> int:
    """The number of a version that was deleted: the server says it along with 404; 0 where there never was one."""
    try:
        data = json_object(response, "the vault").nested("data")
    except AgentIdentityError:
        return 0
    metadata = None if data is None else data.nested("metadata")
    number = None if metadata is None else metadata.number("version")
    return 0 if number is None else int(number)


def _unreadable(place: Reference) -> ConfigurationError:
    return ConfigurationError(
        "secret_unreadable",
        f"field {place.field} of {place.path} in the vault holds no text",
        remedy="write it as a non-empty text",
    )


def _malformed(address: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "malformed_answer",
        f"{address} answers otherwise than OpenBao and Vault do",
        remedy="see that the address is theirs, and that the mount of secrets is of key/value version 2",
    )
