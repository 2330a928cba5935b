# SPDX-License-Identifier: Apache-2.0
"""Secrets in OpenBao or HashiCorp Vault: login with the workload's token, and key/value engine version 2.

All users of the same `Vault` share a login while its lease lasts. Nothing that the server sends is quoted in an error: it may
echo our secrets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import orjson

from agent_identity.config.references import SEGMENT
from agent_identity.credentials.cache import digest_of
from agent_identity.credentials.oauth.responses import Fields, failure_of, json_object, send
from agent_identity.credentials.oauth.retries import ATTEMPTS, wait_for
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialError,
    CredentialRejectedError,
    CredentialUnavailableError,
)
from agent_identity.flow import HttpRequest, Shared, shared
from agent_identity.uris import is_loopback, origin_or_none
from agent_identity.values import Secret, new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_identity.flow import Flow, HttpResponse
    from agent_identity.values import JSON

_SCHEME: Final = "vault:"
_PATH: Final = re.compile(rf"{SEGMENT}(?:/{SEGMENT})*")
_FIELD: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_LONE: Final = re.compile("[\ud800-\udfff]")
_TOKEN: Final = re.compile(r"[!-~]{1,16384}")
_LONGEST_LEASE: Final = 24 * 3600.0
_UNSTATED_LEASE: Final = 300.0
"""Seconds that a login without a lease duration is used."""

_OK: Final = frozenset({200, 204})
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_ANSWERS: Final = _OK | {_BAD_REQUEST, _NOT_FOUND}

T = TypeVar("T")


class Reference(NamedTuple):
    """The place of a secret: the path below the mount, and the field."""

    path: str
    field: str = "value"


def parse_reference(reference: str) -> Reference:
    """Parse `vault:a/b#field`. The default field is `value`.

    Raises:
        ConfigurationError: `reference_malformed`: another scheme, an empty or relative segment, a query, other characters.
    """
    path, hash_sign, name = reference.removeprefix(_SCHEME).partition("#")
    name = name if hash_sign else "value"
    if not reference.startswith(_SCHEME) or not _PATH.fullmatch(path) or not _FIELD.fullmatch(name):
        raise ConfigurationError(
            "reference_malformed",
            "a vault reference must have the form vault:path#field",
            remedy="write the path below the mount, for instance vault:billing/api#key",
        )
    return Reference(path, name)


@dataclass(frozen=True, slots=True)
class _Login:
    """A token of the server while its lease lasts. `number` counts the earlier logins that the server refused."""

    token: Secret = field(repr=False)
    number: int
    issued_at: float
    expires_at: float


class _Version(NamedTuple):
    """The newest version of a secret: its number (0: there is none), and its fields (None: it was deleted)."""

    number: int
    fields: Fields | None

    def get(self, name: str) -> JSON:
        return None if self.fields is None else self.fields.get(name)

    def body_with(self, name: str, secret: Secret | None) -> bytes:
        """The body that writes the next version with one field changed. The server checks that no other write came first."""
        members = {} if self.fields is None else dict(self.fields.members)
        members.pop(name, None)
        if secret is not None:
            members[name] = secret.reveal()
        return orjson.dumps({"data": members, "options": {"cas": self.number}})


class Vault:
    """One server, one role, one mount of secrets.

    `address` is its origin. `login` makes the flow that gets the workload's token; the role must accept its audience. `clock`
    returns Unix seconds.
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
                    f"{name} of the vault isn't a valid path",
                    remedy=f"write {name} without a slash at its start or end",
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
        # Two vaults may log in as two workloads, so they share no login.
        self._name = new_id("vault_")
        self._number = 0

    def __repr__(self) -> str:
        return f"<Vault {self.address}>"

    def read(self, reference: str) -> Flow[Secret | None]:
        """Read the secret at `vault:path#field`; None where there is no such path, version or field.

        Raises:
            ConfigurationError: `reference_malformed`; `secret_unreadable`, the field holds no text.
            CredentialRejectedError: the server refused the login or the read.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        place = parse_reference(reference)
        version = yield from self._newest(place)
        return _text_of(version, place)

    def keep(self, reference: str, secret: Secret | None) -> Flow[None]:
        """Write one field and leave the others as they are; None deletes it. Older versions stay in the vault.

        A concurrent write is never lost: if it changed other fields, ours is added to it; if it changed ours, we give up.

        Raises:
            ConfigurationError: `reference_malformed`.
            CredentialRejectedError: `vault_conflict`, another writer changed this field; or the server refused the write.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        place = parse_reference(reference)
        if secret is not None and _LONE.search(secret.reveal()):
            raise _unreadable(place)
        version = yield from self._newest(place)
        for _ in range(ATTEMPTS):
            if secret is None and version.get(place.field) is None:
                return
            body = partial(version.body_with, place.field, secret)
            response = yield from self._request("POST", place, body)
            if response.status in _OK:
                return
            newer = yield from self._newest(place)
            if newer.number == version.number:  # the check-and-set didn't fail, so it was refused
                raise self.failure(response, "the write of a secret", self._access())
            if newer.get(place.field) != version.get(place.field):
                break
            version = newer
        raise CredentialRejectedError(
            "vault_conflict",
            f"another writer changed the same secret at {self.address}",
            remedy="give each writer a field or path of its own",
        )

    def _newest(self, place: Reference) -> Flow[_Version]:
        response = yield from self.retry(lambda: self._request("GET", place))
        if response.status == _NOT_FOUND:
            return _Version(_deleted_version(response), None)
        if response.status not in _OK:
            raise self.failure(response, "a secret", self._access())
        data = json_object(response, self.address).nested("data")
        number = _number_in(data)
        if data is None or number is None:
            raise _unexpected_answer(self.address)
        return _Version(number, data.nested("data"))

    def _request(
        self, method: str, place: Reference, body: Callable[[], bytes] = bytes
    ) -> Flow[HttpResponse]:
        path = f"{self._kv_mount}/data/{place.path}"
        return self.ask(method, path, body, what="a secret", access=self._access())

    def _access(self) -> str:
        return f"give the policies of role {self.role} the path, with data/ after the mount {self._kv_mount}"

    def ask(
        self, method: str, path: str, body: Callable[[], bytes] = bytes, *, what: str, access: str
    ) -> Flow[HttpResponse]:
        """Send a request below `/v1/` with a login. A shared login that the server refuses is replaced once.

        `what` and `access` are for errors: what was requested, and which policy the role needs.

        Raises:
            CredentialRejectedError: the login or the request was refused with another status than 400 and 404.
            CredentialUnavailableError: the server could not be reached, or is busy.
        """
        since = self._clock()
        login = yield from self._login()
        response = yield from self._send(method, path, body(), login)
        if response.status == _FORBIDDEN and login.issued_at < since:
            self._number = max(self._number, login.number + 1)
            login = yield from self._login()
            response = yield from self._send(method, path, body(), login)
        if response.status not in _ANSWERS:
            raise self.failure(response, what, access)
        return response

    def _send(self, method: str, path: str, body: bytes, login: _Login) -> Flow[HttpResponse]:
        # Not a generator: an error that is raised later has no frame with the secret in it.
        headers = {"X-Vault-Token": login.token.reveal(), "Content-Type": "application/json"}
        url = f"{self.address}/v1/{path}"
        return send(HttpRequest(method, url, self._headers | headers, body), self.address)

    def retry(self, once: Callable[[], Flow[T]]) -> Flow[T]:
        """Repeat a request while the server is busy. Use it only for requests that may be sent twice."""
        for attempt in range(1, ATTEMPTS):
            try:
                return (yield from once())
            except CredentialUnavailableError as error:
                failure = error
            yield from wait_for(failure, attempt)
        return (yield from once())

    def failure(self, response: HttpResponse, what: str, access: str) -> CredentialError:
        """The error of a status other than success."""
        if response.status == _FORBIDDEN:
            return CredentialRejectedError(
                "vault_forbidden",
                f"{self.address} gives this workload no access to {what} ({_FORBIDDEN})",
                remedy=access,
            )
        return failure_of(response, self.address, what, self._clock())

    def _login(self) -> Flow[_Login]:
        number = self._number
        key = digest_of(("vault", self._name, str(number)))
        return shared(Shared(key, lambda: self._log_in(number)))

    def _log_in(self, number: int) -> Flow[_Login]:
        token = yield from self._workload()
        now = self._clock()
        url = f"{self.address}/v1/auth/{self._auth_mount}/login"
        response = yield from send(
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
                remedy=f"check that auth mount {self._auth_mount} has role {self.role}, and its bound issuer, audience and claims",
            )
        if response.status not in _OK:
            raise self.failure(response, "a login", self._access())
        auth = json_object(response, self.address).nested("auth")
        lease = None if auth is None else auth.number("lease_duration")
        issued = None if auth is None else auth.secret("client_token")
        if issued is None or lease is None or lease < 0 or not _TOKEN.fullmatch(issued.reveal()):
            raise _unexpected_answer(self.address)
        return _Login(issued, number, now, now + min(lease or _UNSTATED_LEASE, _LONGEST_LEASE))


def _check_address(address: str) -> None:
    if origin_or_none(address) != address or not (
        address.startswith("https://") or is_loopback(address)
    ):
        raise ConfigurationError(
            "vault_malformed",
            "the address of the vault isn't an https origin",
            remedy="write only https, host and port, in lower case, for instance https://vault.example:8200",
        )


def _text_of(version: _Version, place: Reference) -> Secret | None:
    if version.fields is None or not version.fields.has(place.field):
        return None
    secret = version.fields.secret(place.field)
    if secret is None:
        raise _unreadable(place)
    return secret


def _deleted_version(response: HttpResponse) -> int:
    """The number of a deleted version, which the server sends with status 404; 0 where there is no version."""
    try:
        data = json_object(response, "the vault").nested("data")
    except AgentIdentityError:
        return 0
    return _number_in(data) or 0


def _number_in(data: Fields | None) -> int | None:
    """The number of the version that an answer is about."""
    metadata = None if data is None else data.nested("metadata")
    number = None if metadata is None else metadata.number("version")
    return None if number is None else int(number)


def _unreadable(place: Reference) -> ConfigurationError:
    return ConfigurationError(
        "secret_unreadable",
        f"field {place.field} of {place.path} in the vault isn't a string",
        remedy="write it as a non-empty string",
    )


def _unexpected_answer(address: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "malformed_answer",
        f"the answer of {address} isn't one of OpenBao or Vault",
        remedy="check the address, and that the mount of secrets is a key/value engine of version 2",
    )
