# SPDX-License-Identifier: Apache-2.0
"""A key that stays in OpenBao or HashiCorp Vault: its transit engine signs, and the private half never leaves it.

Of what a P-256 key signs the vault is sent the SHA-256 digest alone; Ed25519 has no such form and is sent all of it. The
version that signs is named in the request and has to be the one that answers. Nothing of an answer is quoted.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from agent_identity.credentials.oauth.responses import json_object
from agent_identity.errors import ConfigurationError, CredentialRejectedError, VerificationError
from agent_identity.keys.signing import public_key_of, thumbprint
from agent_identity.values import b64url, unb64url

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_identity.credentials.oauth.responses import Fields
    from agent_identity.credentials.vault.secrets import Vault
    from agent_identity.flow import Flow, HttpResponse
    from agent_identity.keys.signing import JWK
    from agent_identity.values import JSON

__all__ = ["TransitSigner"]

_P256: Final = "ecdsa-p256"
_ED25519: Final = "ed25519"
_POINT: Final = 32
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
_OK: Final = 200
_NOT_FOUND: Final = 404


class _Version(NamedTuple):
    number: int
    jwk: JWK

    @property
    def is_prehashed(self) -> bool:
        return self.jwk["kty"] == "EC"


class TransitSigner:
    """Signs with the newest version of one key of a transit mount; older ones are named for as long as the vault keeps them."""

    def __init__(self, vault: Vault, mount: str, name: str) -> None:
        self._vault = vault
        self._mount = mount
        self._name = name
        self._versions: dict[str, _Version] = {}
        """By thumbprint, those that were ever seen: a grant may be under way when the key is rotated."""

    def __repr__(self) -> str:
        return f"<TransitSigner {self._mount}/{self._name} at {self._vault.address}>"

    def keys(self, /) -> Flow[Sequence[JWK]]:
        """Ask for the key's public halves, newest first. See `Signer`.

        Raises:
            CredentialRejectedError: `vault_key_missing`, `vault_key_unusable`, `malformed_answer`, or the vault refuses.
            CredentialUnavailableError: the vault could not be reached, or is busy.
        """
        response = yield from self._asked("GET", f"keys/{self._name}", b"")
        versions = self._read(response)
        self._versions.update((thumbprint(version.jwk), version) for version in versions)
        return [version.jwk for version in versions]

    def sign(self, data: bytes, kid: str, /) -> Flow[bytes]:
        """Have the version that `kid` names sign. See `Signer`.

        Raises:
            CredentialRejectedError: `unknown_key`, `malformed_answer`, or the vault refuses.
            CredentialUnavailableError: the vault could not be reached, or is busy.
        """
        if kid not in self._versions:
            yield from self.keys()
        version = self._versions.get(kid)
        if version is None:
            raise CredentialRejectedError("unknown_key", f"{self!r} has no such version")
        path = f"sign/{self._name}"
        body: dict[str, JSON] = {
            "input": base64.b64encode(data).decode("ascii"),
            "marshaling_algorithm": "jws",
            "key_version": version.number,
        }
        if version.is_prehashed:
            path += "/sha2-256"
            digest = hashlib.sha256(data).digest()
            body |= {"input": base64.b64encode(digest).decode("ascii"), "prehashed": True}
        response = yield from self._asked("POST", path, orjson.dumps(body))
        return self._signature(response, version)

    # -- one exchange ------------------------------------------------------------------------------------------------

    def _asked(self, method: str, path: str, body: bytes) -> Flow[HttpResponse]:
        what = f"the key {self._name} of {self._mount}"
        access = (
            f"let the policies of role {self._vault.role} read {self._mount}/keys/{self._name}, "
            f"and update {self._mount}/sign/{self._name} and {self._mount}/sign/{self._name}/sha2-256"
        )
        response = yield from self._vault.patiently(
            lambda: self._vault.ask(
                method, f"{self._mount}/{path}", lambda: body, what=what, access=access
            )
        )
        if response.status == _NOT_FOUND:
            raise CredentialRejectedError(
                "vault_key_missing",
                f"{self._vault.address} has no key {self._name} in {self._mount}",
                remedy=f"make it with bao write -f {self._mount}/keys/{self._name} type={_P256}, or correct agent.signer",
            )
        if response.status != _OK:
            raise self._vault.failure(response, what, access)
        return response

    def _data(self, response: HttpResponse) -> Fields:
        data = json_object(response, self._vault.address).nested("data")
        if data is None:
            raise self._malformed()
        return data

    def _read(self, response: HttpResponse) -> list[_Version]:
        data = self._data(response)
        if not _signs_grants(data):
            raise CredentialRejectedError(
                "vault_key_unusable",
                f"the key {self._name} of {self._mount} is none that signs grants",
                remedy=f"make another with type={_P256} or type={_ED25519}, and no derivation",
            )
        versions = _versions(data)
        if not versions or versions[0].number != data.number("latest_version"):
            raise self._malformed()
        return versions

    def _signature(self, response: HttpResponse, version: _Version) -> bytes:
        signature = _raw(self._data(response), f"vault:v{version.number}:")
        if signature is None:
            raise self._malformed()
        return signature

    def _malformed(self) -> CredentialRejectedError:
        return CredentialRejectedError(
            "malformed_answer",
            f"{self._vault.address} answers otherwise than the transit engine of OpenBao and Vault does",
            remedy=f"see that the address is theirs, and that {self._mount} is a mount of transit",
        )


# What follows reads and raises nothing: a traceback finds no answer in the frames above.


def _signs_grants(data: Fields) -> bool:
    return data.text("type") in {_P256, _ED25519} and data.get("derived") is not True


def _versions(data: Fields) -> list[_Version]:
    """The versions of a key as the vault lists them, newest first; none where one of them can't be read."""
    listed = data.nested("keys")
    read = _point if data.text("type") == _ED25519 else _curve
    found = [] if listed is None else [_version(name, listed, read) for name in listed.members]
    versions = [version for version in found if version is not None]
    if len(versions) != len(found):
        return []
    return sorted(versions, key=lambda version: version.number, reverse=True)


def _version(name: str, listed: Fields, read: Callable[[str], JWK | None]) -> _Version | None:
    entry = listed.nested(name)
    public = None if entry is None else entry.text("public_key")
    jwk = None if public is None else read(public)
    return _Version(int(name), jwk) if jwk is not None and _NUMBER.fullmatch(name) else None


def _raw(data: Fields, prefix: str) -> bytes | None:
    """The signature behind the version that made it, None where another did or it can't be read."""
    text = data.text("signature") or ""
    try:
        return (unb64url(text.removeprefix(prefix)) or None) if text.startswith(prefix) else None
    except VerificationError:
        return None


def _curve(pem: str) -> JWK | None:
    try:
        found = public_key_of(pem.encode())
    except (ConfigurationError, UnicodeEncodeError):
        return None
    return found if found["kty"] == "EC" else None


def _point(text: str) -> JWK | None:
    """Ed25519 is listed as the bare point, in base64."""
    try:
        point = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url(point)} if len(point) == _POINT else None
