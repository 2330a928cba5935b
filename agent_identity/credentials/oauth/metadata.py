# SPDX-License-Identifier: Apache-2.0
"""Reads the metadata and the keys of an issuer (RFC 8414, OpenID Discovery, RFC 7517)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agent_identity import jose
from agent_identity.credentials.oauth.responses import Fields, failure_of, json_object, send
from agent_identity.errors import CredentialError, CredentialRejectedError, VerificationError
from agent_identity.flow import Flow, HttpRequest, HttpResponse, read
from agent_identity.jose.public_keys import find_candidates, fits, load_checker
from agent_identity.keys.algorithms import KEY_TYPES
from agent_identity.uris import origin, origin_or_none

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from agent_identity.values import JSON, Secret

_LIFE: Final = 300.0
_KEY_LIMIT: Final = 1000
_NOT_THERE: Final = frozenset({400, 401, 403, 404, 405, 410})
"""Statuses that mean that there is no metadata at a URL; the next one is tried."""
_BUSY: Final = frozenset({429, 503})
"""Statuses that ask for fewer requests; no other URL is tried."""

_ALIASED: Final = {
    "token": "token_endpoint",
    "revocation": "revocation_endpoint",
    "introspection": "introspection_endpoint",
    "pushed_authorization": "pushed_authorization_request_endpoint",
    "device_authorization": "device_authorization_endpoint",
    "backchannel_authentication": "backchannel_authentication_endpoint",
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """An issuer's metadata (RFC 8414). `issuer` is exactly the configured URL.

    `aliases` are the endpoints for clients with a TLS certificate (RFC 8705 §5), by field name here; `origins` are their
    allowed origins. `takes_metadata_documents` and the lists of what it supports are None where the metadata doesn't say.
    `discovered` says that a resource named the issuer, so that requests to it may lead to no private address.
    """

    issuer: str
    token: str
    registration: str | None
    revocation: str | None
    introspection: str | None
    jwks: str | None
    issued_at: float
    expires_at: float
    authorization: str | None = None
    pushed_authorization: str | None = None
    device_authorization: str | None = None
    backchannel_authentication: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    challenge_methods: frozenset[str] | None = None
    names_itself_in_response: bool = False
    requires_pushed: bool = False
    takes_metadata_documents: bool | None = None
    auth_methods: frozenset[str] | None = None
    grant_types: frozenset[str] | None = None
    scopes: frozenset[str] | None = None
    assertion_algorithms: frozenset[str] | None = None
    proof_algorithms: frozenset[str] | None = None
    id_token_algorithms: frozenset[str] | None = None
    origins: frozenset[str] = frozenset()
    revocations: str | None = None
    discovered: bool = False

    def at(self, name: str, *, certificate: bool = False) -> str:
        """Return the URL of an endpoint; with `certificate`, its alias for clients with a TLS certificate.

        Raises:
            CredentialRejectedError: `endpoint_missing`, the issuer has no such endpoint; `endpoint_origin`, the alias is at an
                origin that isn't allowed.
        """
        if certificate and name in self.aliases:
            if origin_or_none(self.aliases[name]) not in self.origins:
                raise _foreign_origin(self.issuer, _ALIASED.get(name, name))
            return self.aliases[name]
        url = getattr(self, name)
        if not isinstance(url, str):
            raise CredentialRejectedError(
                "endpoint_missing",
                f"the metadata of {self.issuer} has no {_ALIASED.get(name, name)}",
                remedy="choose a source that this issuer supports",
            )
        return url


def discover(
    issuer: str,
    clock: Callable[[], float],
    origins: frozenset[str] = frozenset(),
    *,
    place: str | None = None,
    given: Mapping[str, str] | None = None,
    discovered: bool = False,
) -> Flow[Endpoints]:
    """Read an issuer's metadata (RFC 8414 §3, OpenID Discovery §4). Its `issuer` must equal the configured URL.

    `origins` are further origins that are allowed for endpoints; by default every endpoint must be at the issuer's own. `place`
    replaces the standard URLs of the document. `given` are endpoints by their RFC 8414 names, which replace the document's.
    `discovered` says that a resource named the issuer.

    Raises:
        CredentialRejectedError: `issuer_mismatch`, `endpoint_origin` or `metadata_missing`.
        CredentialUnavailableError: the issuer could not be reached.
    """
    failure: CredentialError | None = None
    for url in _places(issuer) if place is None else (place,):
        request = HttpRequest("GET", url, {"Accept": "application/json"}, discovered=discovered)
        response = yield from send(request, issuer)
        if response.status in _NOT_THERE:
            continue
        try:
            document = _read_document(response, issuer, clock())
        except CredentialError as error:
            if response.status in _BUSY or error.code == "redirected":
                raise
            failure = failure or error
            continue
        found = _endpoints_in(document, issuer, clock(), origins, given or {})
        return replace(found, discovered=discovered)
    raise failure or CredentialRejectedError(
        "metadata_missing",
        f"{issuer} publishes no metadata",
        remedy='check the issuer\'s URL; a trailing slash matters. If it has no metadata, set metadata = "none" and its endpoints',
    )


def _read_document(response: HttpResponse, issuer: str, now: float) -> Fields:
    """Read a response as the metadata of this issuer."""
    if 300 <= response.status < 400:  # noqa: PLR2004 - a status of HTTP
        raise CredentialRejectedError(
            "redirected",
            f"{issuer} redirects from a URL of its metadata, and redirects are never followed",
            remedy="set metadata for the issuer to the URL where the document is",
        )
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, issuer, "its metadata", now)
    document = json_object(response, issuer)
    if document.text("issuer") != issuer:
        raise CredentialRejectedError(
            "issuer_mismatch", f"the metadata at {issuer} names another issuer"
        )
    return document


def endpoints_without_metadata(issuer: str, now: float, given: Mapping[str, str]) -> Endpoints:
    """The endpoints of an issuer whose metadata isn't read: those that are `given`, by their RFC 8414 names.

    Raises:
        CredentialRejectedError: `metadata_incomplete`, there is no token endpoint among them.
    """
    return _endpoints_in(Fields({"issuer": issuer}), issuer, now, frozenset(), given)


def _places(issuer: str) -> tuple[str, ...]:
    """The URLs where the metadata may be, RFC 8414's first, without duplicates."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    host = f"{parts.scheme}://{parts.netloc}"
    return tuple(
        dict.fromkeys(
            (
                f"{host}/.well-known/oauth-authorization-server{path}",
                f"{host}/.well-known/openid-configuration{path}",
                f"{host}{path}/.well-known/openid-configuration",
            )
        )
    )


def _endpoints_in(
    document: Fields,
    issuer: str,
    now: float,
    origins: frozenset[str],
    given: Mapping[str, str],
) -> Endpoints:
    allowed = origins | {origin(issuer)}
    aliases = document.nested("mtls_endpoint_aliases")

    def endpoint(name: str) -> str | None:
        if name in given:
            return given[name]
        if not document.has(name):
            return None
        url = document.text(name)
        if url is None or origin_or_none(url) not in allowed:
            raise _foreign_origin(issuer, name)
        return url

    token = endpoint("token_endpoint")
    if token is None:
        raise CredentialRejectedError(
            "metadata_incomplete", f"the metadata of {issuer} has no token_endpoint"
        )
    urls = {name: aliases.text(member) for name, member in _ALIASED.items()} if aliases else {}
    return Endpoints(
        issuer=issuer,
        token=token,
        registration=endpoint("registration_endpoint"),
        revocation=endpoint("revocation_endpoint"),
        introspection=endpoint("introspection_endpoint"),
        jwks=endpoint("jwks_uri"),
        issued_at=now,
        expires_at=now + _LIFE,
        authorization=endpoint("authorization_endpoint"),
        pushed_authorization=endpoint("pushed_authorization_request_endpoint"),
        device_authorization=endpoint("device_authorization_endpoint"),
        backchannel_authentication=endpoint("backchannel_authentication_endpoint"),
        aliases={name: url for name, url in urls.items() if url is not None},
        origins=frozenset(allowed),
        challenge_methods=document.texts("code_challenge_methods_supported"),
        names_itself_in_response=document.get("authorization_response_iss_parameter_supported")
        is True,
        requires_pushed=document.get("require_pushed_authorization_requests") is True,
        revocations=endpoint("agent_identity_revocations_uri"),
        takes_metadata_documents=_flag(document, "client_id_metadata_document_supported"),
        auth_methods=document.texts("token_endpoint_auth_methods_supported"),
        grant_types=document.texts("grant_types_supported"),
        scopes=document.texts("scopes_supported"),
        assertion_algorithms=document.texts("token_endpoint_auth_signing_alg_values_supported"),
        proof_algorithms=document.texts("dpop_signing_alg_values_supported"),
        id_token_algorithms=document.texts("id_token_signing_alg_values_supported"),
    )


def _foreign_origin(issuer: str, name: str) -> CredentialRejectedError:
    return CredentialRejectedError(
        "endpoint_origin",
        f"the {name} of {issuer} is at another origin",
        remedy="if that is right, list the origin in the issuer's endpoint_origins",
    )


def _flag(document: Fields, name: str) -> bool | None:
    value = document.get(name)
    return value if isinstance(value, bool) else None


@dataclass(frozen=True, slots=True)
class KeySet:
    """An issuer's public keys, at most a thousand of them: by `kid`, and those that have none."""

    keys: Mapping[str, dict[str, JSON]]
    issued_at: float
    expires_at: float
    unnamed: tuple[dict[str, JSON], ...] = ()

    def get(self, kid: str) -> dict[str, JSON] | None:
        return self.keys.get(kid)

    def only_for(self, alg: str) -> dict[str, JSON] | None:
        """The key for a token without a `kid`: the only one that fits its `alg`."""
        fitting = [key for key in (*self.keys.values(), *self.unnamed) if fits(key, alg)]
        return fitting[0] if len(fitting) == 1 else None


def read_keys(
    issuer: str,
    jwks: str | None,
    clock: Callable[[], float],
    *,
    discovered: bool = False,
    use: str = "sig",
) -> Flow[KeySet]:
    """Read an issuer's JWK set (RFC 7517 §5). Keys with a repeated `kid` are left out.

    The content type isn't checked, since some issuers serve the set with another one.

    `jwks` is a URL, or `file:` and a path. `use` is the `use` of signing keys: `jwt-svid` in the bundle of a SPIFFE trust
    domain.

    Raises:
        CredentialRejectedError: there is no `jwks_uri`, or no JWK set there.
        CredentialUnavailableError: it could not be reached.
    """
    if jwks is None:
        raise CredentialRejectedError(
            "metadata_incomplete", f"the metadata of {issuer} has no jwks_uri"
        )
    if jwks.startswith("file:"):
        return (yield from _keys_in_file(issuer, jwks, clock, use))
    request = HttpRequest("GET", jwks, {"Accept": "application/json"}, discovered=discovered)
    response = yield from send(request, issuer)
    now = clock()
    if response.status != 200:  # noqa: PLR2004 - a status of HTTP
        raise failure_of(response, issuer, "its keys", now)
    keys = usable_keys(json_object(response, issuer, kinds=None), use)
    if keys is None:
        raise CredentialRejectedError("malformed_keys", f"{issuer} publishes no valid JWK set")
    return _key_set(keys, now)


def _keys_in_file(
    issuer: str, reference: str, clock: Callable[[], float], use: str
) -> Flow[KeySet]:
    text = yield from read(reference)
    keys = None if text is None else usable_keys(_fields_of(text), use)
    if keys is None:
        raise CredentialRejectedError(
            "malformed_keys",
            f"the jwks file of {issuer} holds no valid JWK set",
            remedy="write the issuer's JWK set to that file",
        )
    return _key_set(keys, clock())


def _key_set(keys: Sequence[dict[str, JSON]], now: float) -> KeySet:
    named = [(kid, key) for key in keys if isinstance(kid := key.get("kid"), str)]
    counts = Counter(kid for kid, _ in named)
    return KeySet(
        {kid: key for kid, key in named if counts[kid] == 1},
        issued_at=now,
        expires_at=now + _LIFE,
        unnamed=tuple(key for key in keys if key.get("kid") is None),
    )


def _fields_of(text: Secret) -> Fields:
    try:
        return Fields(jose.loads_object(text.reveal().encode()))
    except VerificationError:
        return Fields({})


def usable_keys(document: Fields, use: str = "sig") -> list[dict[str, JSON]] | None:
    """Return the usable keys of a JWK set; None where it isn't a JWK set, or has more than a thousand keys."""
    members = document.get("keys")
    if not isinstance(members, list) or len(members) > _KEY_LIMIT:
        return None
    keys = [
        {**key, "use": "sig"} if key.get("use") == use else key
        for key in members
        if isinstance(key, dict)
    ]
    return [key for key in keys if _is_usable(key)]


def _is_usable(key: dict[str, JSON]) -> bool:
    """Whether a key can verify signatures: a public signature key that isn't weak."""
    for alg in KEY_TYPES:
        with suppress(VerificationError):
            load_checker(alg, *find_candidates([key], alg, None))
            return True
    return False
