# SPDX-License-Identifier: Apache-2.0
"""Signs with the transit engine of OpenBao or HashiCorp Vault; the private key never leaves the vault.

For a P-256 key the vault gets only the SHA-256 digest of the data; Ed25519 needs the data itself. The request names the key
version, and the signature must come from that version. Nothing that the server sends is quoted in an error.
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
    """Signs with the newest version of a key of a transit mount. `keys` lists older versions while the vault keeps them."""

    def __init__(self, vault: Vault, mount: str, name: str) -> None:
        self._vault = vault
        self._mount = mount
        self._name = name
        self._versions: dict[str, _Version] = {}
        """All versions ever seen, by thumbprint: the key may be rotated while a grant is being signed."""

    def __repr__(self) -> str:
        return f"<TransitSigner {self._mount}/{self._name} at {self._vault.address}>"

    def keys(self, /) -> Flow[Sequence[JWK]]:
        """Read the public keys, newest first. See `Signer`.

        Raises:
            CredentialRejectedError: `vault_key_missing`, `vault_key_unusable`, `malformed_answer`, or the vault refuses.
            CredentialUnavailableError: the vault could not be reached, or is busy.
        """
        response = yield from self._request("GET", f"keys/{self._name}", b"")
        versions = self._versions_in(response)
        self._versions.update((thumbprint(version.jwk), version) for version in versions)
        return [version.jwk for version in versions]

    def sign(self, data: bytes, kid: str, /) -> Flow[bytes]:
        """Sign with the version that `kid` names. See `Signer`.

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
        response = yield from self._request("POST", path, orjson.dumps(body))
        return self._signature(response, version)

    def _request(self, method: str, path: str, body: bytes) -> Flow[HttpResponse]:
        what = f"the key {self._name} of {self._mount}"
        access = (
            f"let the policies of role {self._vault.role} read {self._mount}/keys/{self._name}, "
            f"and update {self._mount}/sign/{self._name} and {self._mount}/sign/{self._name}/sha2-256"
        )
        response = yield from self._vault.retry(
            lambda: self._vault.ask(
                method, f"{self._mount}/{path}", lambda: body, what=what, access=access
            )
        )
        if response.status == _NOT_FOUND:
            raise CredentialRejectedError(
                "vault_key_missing",
                f"{self._vault.address} has no key {self._name} in {self._mount}",
                remedy=f"create it: bao write -f {self._mount}/keys/{self._name} type={_P256}, or correct agent.signer",
            )
        if response.status != _OK:
            raise self._vault.failure(response, what, access)
        return response

    def _data(self, response: HttpResponse) -> Fields:
        data = json_object(response, self._vault.address).nested("data")
        if data is None:
            raise self._unexpected_answer()
        return data

    def _versions_in(self, response: HttpResponse) -> list[_Version]:
        data = self._data(response)
        if not _signs_grants(data):
            raise CredentialRejectedError(
                "vault_key_unusable",
                f"the key {self._name} of {self._mount} can't sign grants",
                remedy=f"create another with type={_P256} or type={_ED25519}, and without derivation",
            )
        versions = _versions(data)
        if not versions or versions[0].number != data.number("latest_version"):
            raise self._unexpected_answer()
        return versions

    def _signature(self, response: HttpResponse, version: _Version) -> bytes:
        signature = _raw(self._data(response), f"vault:v{version.number}:")
        if signature is None:
            raise self._unexpected_answer()
        return signature

    def _unexpected_answer(self) -> CredentialRejectedError:
        return CredentialRejectedError(
            "malformed_answer",
            f"the answer of {self._vault.address} isn't one of OpenBao's or Vault's transit engine",
            remedy=f"check the address, and that {self._mount} is a transit mount",
        )


# The functions below read an answer and never raise, so that no traceback has a frame with the answer in it.


def _signs_grants(data: Fields) -> bool:
    return data.text("type") in {_P256, _ED25519} and data.get("derived") is not True


def _versions(data: Fields) -> list[_Version]:
    """The versions of a key, newest first; an empty list if one of them can't be read."""
    keys = data.nested("keys")
    read = _ed25519_jwk if data.text("type") == _ED25519 else _p256_jwk
    parsed = [] if keys is None else [_version(name, keys, read) for name in keys.members]
    versions = [version for version in parsed if version is not None]
    if len(versions) != len(parsed):
        return []
    return sorted(versions, key=lambda version: version.number, reverse=True)


def _version(name: str, keys: Fields, read: Callable[[str], JWK | None]) -> _Version | None:
    entry = keys.nested(name)
    public = None if entry is None else entry.text("public_key")
    jwk = None if public is None else read(public)
    return _Version(int(name), jwk) if jwk is not None and _NUMBER.fullmatch(name) else None


def _raw(data: Fields, prefix: str) -> bytes | None:
    """The signature after the prefix of its version; None if another version made it, or it can't be read."""
    text = data.text("signature") or ""
    try:
        return (unb64url(text.removeprefix(prefix)) or None) if text.startswith(prefix) else None
    except VerificationError:
        return None


def _p256_jwk(pem: str) -> JWK | None:
    try:
        jwk = public_key_of(pem.encode())
    except (ConfigurationError, UnicodeEncodeError):
        return None
    return jwk if jwk["kty"] == "EC" else None


def _ed25519_jwk(text: str) -> JWK | None:
    """Vault lists an Ed25519 key as the bare point in base64."""
    try:
        point = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url(point)} if len(point) == _POINT else None
