# SPDX-License-Identifier: Apache-2.0
"""A key that stays in OpenBao or Vault, played by hand; the answers are those of a real OpenBao 2.7 in dev mode."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from agent_identity.config.references import TransitKey, transit_key
from agent_identity.credentials.root_grants import RootWanted, SignedGrants
from agent_identity.credentials.vault.secrets import Vault
from agent_identity.credentials.vault.transit import TransitSigner
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.errors import (
    AgentIdentityError,
    ConfigurationError,
    CredentialRejectedError,
    CredentialUnavailableError,
    TransportError,
)
from agent_identity.flow import HttpRequest, HttpResponse, Pause, Shared, pure, run
from agent_identity.keys.signing import SigningKey
from agent_identity.signers import probe_signer
from agent_identity.testing import assert_no_leak, play
from agent_identity.values import Principal, Secret, b64url

from .conftest import AGENT, BILLING, NOW

ADDRESS = "https://vault.example:8200"
WORKLOAD, LOGIN, CANARY = "canary-workload-4Tz", "canary-login-8Bn", "canary-answer-6Yk"
NAME = "urn:agent-identity:signer:finance"
PURPOSE = "close the canary books"
POINT_OF_NOBODY = base64.b64encode(b"\0" * 32).decode()

Answer = HttpResponse | AgentIdentityError


def answer(document: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {"content-type": "application/json"}, json.dumps(document).encode())


LOGGED_IN = answer({"auth": {"client_token": LOGIN, "lease_duration": 60}})
FORBIDDEN = answer({"errors": [f"permission denied {CANARY}"]}, 403)
NOTHING = answer({"errors": []}, 404)


class Held:
    """A key as a vault holds it, and the world of a flow that asks for it; what it answers can be changed by a test."""

    def __init__(self, alg: str = "ES256") -> None:
        self.alg = alg
        self.versions = [SigningKey.generate(alg)]
        self.sent: list[HttpRequest] = []
        self.listed: Callable[[HttpResponse], Answer] = lambda usual: usual
        self.signed: Callable[[HttpResponse], Answer] = lambda usual: usual

    def rotate(self) -> None:
        self.versions.append(SigningKey.generate(self.alg))

    @property
    def kids(self) -> list[str]:
        return [key.thumbprint for key in self.versions]

    def __call__(self, ask: Any) -> Any:
        if isinstance(ask, Shared):
            return run(ask.start(), self)
        if isinstance(ask, Pause):
            return None
        assert isinstance(ask, HttpRequest)
        if ask.url.endswith("/login"):
            return LOGGED_IN
        self.sent.append(ask)
        reply = self.listed(self._list()) if ask.method == "GET" else self.signed(self._sign(ask))
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _list(self) -> HttpResponse:
        keys = {str(n): {"public_key": public(key)} for n, key in enumerate(self.versions, 1)}
        kind = {"ES256": "ecdsa-p256", "Ed25519": "ed25519"}[self.alg]
        data = {"type": kind, "derived": False, "latest_version": len(keys), "keys": keys}
        return answer({"data": data})

    def _sign(self, ask: HttpRequest) -> HttpResponse:
        body = json.loads(ask.body)
        number = body["key_version"]
        key = private(self.versions[number - 1])
        given = base64.b64decode(body["input"], validate=True)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            raw = key.sign(given)
        else:
            r, s = decode_dss_signature(key.sign(given, ec.ECDSA(Prehashed(hashes.SHA256()))))
            raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return answer(
            {"data": {"key_version": number, "signature": f"vault:v{number}:{b64url(raw)}"}}
        )


def private(key: SigningKey) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    found = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(found, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    return found


def public(key: SigningKey) -> str:
    """PEM, for Ed25519 the bare point in base64."""
    half = private(key).public_key()
    if isinstance(half, ed25519.Ed25519PublicKey):
        return base64.b64encode(half.public_bytes_raw()).decode()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return half.public_bytes(serialization.Encoding.PEM, form).decode()


def signer(mount: str = "transit", **options: Any) -> TransitSigner:
    vault = Vault(
        ADDRESS, lambda: pure(Secret(WORKLOAD)), clock=lambda: NOW, role="agent", **options
    )
    return TransitSigner(vault, mount, "invoice-bot")


def grants(made: TransitSigner | None = None) -> SignedGrants:
    return SignedGrants(made or signer(), NAME, lambda: NOW)


WANTED = RootWanted(
    principal=Principal("alice"),
    subject=None,
    agent=AGENT.uri,
    resources=frozenset({BILLING}),
    scopes=frozenset({"invoices:read"}),
    purpose=PURPOSE,
    task=None,
    txn="ses_1",
    max_depth=3,
    lifetime=900,
    evidence="issuer",
    proof_key=AGENT.proof_key,
)


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_of_a_grant_that_p256_signs_the_digest_alone_leaves() -> None:
    held = Held()
    grant = run(grants().grant(WANTED), held)
    signing_input = grant.compact.rpartition(".")[0].encode()
    digest = base64.b64encode(hashlib.sha256(signing_input).digest()).decode()
    look, sign = held.sent
    assert (look.method, look.url, look.body) == (
        *("GET", f"{ADDRESS}/v1/transit/keys/invoice-bot", b""),
    )
    assert (sign.method, sign.url) == ("POST", f"{ADDRESS}/v1/transit/sign/invoice-bot/sha2-256")
    assert (
        sign.body
        == (
            f'{{"input":"{digest}","marshaling_algorithm":"jws","key_version":1,"prehashed":true}}'
        ).encode()
    )
    assert {request.headers["X-Vault-Token"] for request in held.sent} == {LOGIN}
    everything = b"".join(request.body for request in held.sent)
    for word in ("alice", PURPOSE, signing_input.decode(), b64url(signing_input)):
        assert word.encode() not in everything


def test_ed25519_signs_the_whole_message_in_the_vault() -> None:
    held = Held("Ed25519")
    grant = run(grants().grant(WANTED), held)
    sign = held.sent[-1]
    assert sign.url == f"{ADDRESS}/v1/transit/sign/invoice-bot"
    assert json.loads(sign.body) == {
        "input": base64.b64encode(grant.compact.rpartition(".")[0].encode()).decode(),
        "marshaling_algorithm": "jws",
        "key_version": 1,
    }


@pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
def test_the_grant_verifies_by_the_keys_that_the_vault_lists(alg: str) -> None:
    held, made = Held(alg), grants()
    grant = run(made.grant(WANTED), held)
    assert grant.kid == held.kids[0]
    keys = run(made.keys(), held)
    assert [(key["kid"], key["alg"], key["use"]) for key in keys] == [(held.kids[0], alg, "sig")]
    [root] = verify_chain([grant.compact], [Anchor(NAME, keys, "issuer", frozenset())], now=NOW)
    assert (root.iss, root.sub, root.scopes) == (NAME, "alice", {"invoices:read"})


def test_mount_and_namespace_are_where_they_are_configured() -> None:
    held = Held()
    run(grants(signer("team/transit", namespace="eu")).grant(WANTED), held)
    assert [request.url.removeprefix(ADDRESS) for request in held.sent] == [
        "/v1/team/transit/keys/invoice-bot",
        "/v1/team/transit/sign/invoice-bot/sha2-256",
    ]
    assert {request.headers["X-Vault-Namespace"] for request in held.sent} == {"eu"}


# -- rotation --------------------------------------------------------------------------------------------------------


def test_after_a_rotation_the_next_grant_names_the_new_key_and_both_verify() -> None:
    held, made = Held(), grants()
    before = run(made.grant(WANTED), held)
    held.rotate()
    after = run(made.grant(WANTED), held)
    assert [before.kid, after.kid] == held.kids
    assert json.loads(held.sent[-1].body)["key_version"] == 2
    keys = run(made.keys(), held)
    assert [key["kid"] for key in keys] == held.kids[::-1]
    anchor = Anchor(NAME, keys, "issuer", frozenset())
    for grant in (before, after):
        verify_chain([grant.compact], [anchor], now=NOW)


def test_the_tenth_version_is_newer_than_the_ninth() -> None:
    held = Held()
    for _ in range(9):
        held.rotate()
    assert run(grants().grant(WANTED), held).kid == held.kids[9]


def test_a_rotation_between_looking_and_signing_changes_nothing() -> None:
    held = Held()

    def rotated(usual: HttpResponse) -> HttpResponse:
        held.rotate()
        return usual

    held.listed = rotated
    assert run(grants().grant(WANTED), held).kid == held.kids[0]


def test_a_key_that_was_used_is_known_when_the_vault_has_dropped_it() -> None:
    held, made = Held(), grants()
    grant = run(made.grant(WANTED), held)
    held.versions = [SigningKey.generate()]
    run(made.grant(WANTED), held)
    asked = len(held.sent)
    assert run(made.key(grant.kid or ""), held)["kid"] == grant.kid
    assert len(held.sent) == asked


def test_whoever_signs_without_looking_first_is_looked_up() -> None:
    held = Held("Ed25519")
    signature = run(signer().sign(b"x", held.kids[0]), held)
    assert signature == held.versions[0].sign(b"x")
    assert [request.method for request in held.sent] == ["GET", "POST"]


def test_a_key_that_nobody_has_is_unknown() -> None:
    held = Held()
    for flow in (grants().key("nobody"), signer().sign(b"x", "nobody")):
        with pytest.raises(CredentialRejectedError) as caught:
            run(flow, held)
        assert caught.value.code == "unknown_key"


# -- what comes back -------------------------------------------------------------------------------------------------


def refused(held: Held) -> AgentIdentityError:
    """The error of a grant; it never quotes an answer, nor what was sent."""
    with pytest.raises(AgentIdentityError) as caught:
        run(grants().grant(WANTED), held)
    assert_no_leak([CANARY, LOGIN, WORKLOAD], caught.value)
    return caught.value


def changed(response: HttpResponse, **changes: Any) -> HttpResponse:
    document = json.loads(response.body)
    document["data"].update(changes)
    return answer(document)


@pytest.mark.parametrize("alg", ["ES256", "Ed25519"])
def test_a_signature_of_another_key_is_never_used(alg: str) -> None:
    held = Held(alg)
    held.listed = lambda usual: [usual, held.versions.__setitem__(0, SigningKey.generate(alg))][0]
    error = refused(held)
    assert isinstance(error, CredentialRejectedError)
    assert error.code == "bad_signature"


@pytest.mark.parametrize(
    "raw", [b"\0" * 64, b"x" * 63, b"0E\x02\x21" + b"x" * 67], ids=["zeros", "short", "DER"]
)
def test_what_is_no_signature_is_never_used(raw: bytes) -> None:
    held = Held()
    held.signed = lambda usual: changed(usual, signature=f"vault:v1:{b64url(raw)}")
    error = refused(held)
    assert (type(error), error.code) == (CredentialRejectedError, "bad_signature")


def test_a_signature_of_another_version_than_was_named_is_refused() -> None:
    held = Held()
    held.rotate()
    held.signed = lambda usual: answer(json.loads(usual.body.replace(b'"vault:v2:', b'"vault:v1:')))
    assert refused(held).code == "malformed_answer"


@pytest.mark.parametrize(
    "signature",
    [
        *(None, "", 7, [CANARY], CANARY, f"vault:{CANARY}", "vault:v1", "vault:v1:"),
        *(f"vault:v01:{'A' * 86}", f"vault:v1:{'+' * 86}", f"vault:v1:{'A' * 86}==", "vault:v1:ä"),
    ],
)
def test_a_signature_that_can_t_be_read_is_refused(signature: Any) -> None:
    held = Held()
    held.signed = lambda usual: changed(usual, signature=signature)
    error = refused(held)
    assert (type(error), error.code) == (CredentialRejectedError, "malformed_answer")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"type": "rsa-2048"}, "vault_key_unusable"),
        ({"type": "ecdsa-p384"}, "vault_key_unusable"),
        ({"type": "aes256-gcm96"}, "vault_key_unusable"),
        ({"type": CANARY}, "vault_key_unusable"),
        ({"type": None}, "vault_key_unusable"),
        ({"derived": True}, "vault_key_unusable"),
        ({"latest_version": 2}, "malformed_answer"),
        ({"latest_version": "1"}, "malformed_answer"),
        ({"latest_version": None}, "malformed_answer"),
        ({"keys": None}, "malformed_answer"),
        ({"keys": {}}, "malformed_answer"),
        ({"keys": [CANARY]}, "malformed_answer"),
        ({"keys": {"1": 1_795_518_000}}, "malformed_answer"),
        ({"keys": {"1": {}}}, "malformed_answer"),
        ({"keys": {"1": {"public_key": CANARY}}}, "malformed_answer"),
        ({"keys": {"1": {"public_key": "ä"}}}, "malformed_answer"),
        ({"keys": {CANARY: {"public_key": CANARY}}}, "malformed_answer"),
        ({"type": "ed25519"}, "malformed_answer"),
    ],
)
def test_a_key_that_can_t_sign_grants_is_refused_and_nothing_is_signed(
    change: Any, code: str
) -> None:
    held = Held()
    held.listed = lambda usual: changed(usual, **change)
    error = refused(held)
    assert (type(error), error.code) == (CredentialRejectedError, code)
    assert [request.method for request in held.sent] == ["GET"]


def test_a_curve_that_is_listed_under_another_name_is_refused() -> None:
    held = Held("Ed25519")
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = other.public_bytes(serialization.Encoding.PEM, form).decode()
    held.listed = lambda usual: changed(usual, type="ecdsa-p256", keys={"1": {"public_key": pem}})
    assert refused(held).code == "malformed_answer"


def test_a_key_of_another_kind_than_its_type_is_refused() -> None:
    held = Held("Ed25519")
    half = private(held.versions[0]).public_key()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    pem = half.public_bytes(serialization.Encoding.PEM, form).decode()
    held.listed = lambda usual: changed(usual, type="ecdsa-p256", keys={"1": {"public_key": pem}})
    assert refused(held).code == "malformed_answer"


@pytest.mark.parametrize("size", [31, 33])
def test_a_point_of_another_length_is_refused(size: int) -> None:
    held, point = Held("Ed25519"), base64.b64encode(b"\x09" * size).decode()
    held.listed = lambda usual: changed(usual, keys={"1": {"public_key": point}})
    assert refused(held).code == "malformed_answer"


def test_one_version_that_can_t_be_read_spoils_the_list() -> None:
    """It may be the one that a grant names; a list that lacks it silently would be a service's."""
    held = Held()
    held.rotate()
    keys = {"1": {"public_key": CANARY}, "2": {"public_key": public(held.versions[1])}}
    held.listed = lambda usual: changed(usual, keys=keys)
    assert refused(held).code == "malformed_answer"


def test_a_point_that_anybody_can_sign_for_is_refused() -> None:
    held = Held("Ed25519")
    held.listed = lambda usual: changed(usual, keys={"1": {"public_key": POINT_OF_NOBODY}})
    error = refused(held)
    assert (type(error), error.code) == (CredentialRejectedError, "key_weak")


@pytest.mark.parametrize("part", ["listed", "signed"])
@pytest.mark.parametrize(
    ("reply", "kind", "code"),
    [
        (FORBIDDEN, CredentialRejectedError, "vault_forbidden"),
        (NOTHING, CredentialRejectedError, "vault_key_missing"),
        (answer({"errors": [CANARY]}, 400), CredentialRejectedError, "unknown_error"),
        (answer({"errors": [CANARY]}, 503), CredentialUnavailableError, "issuer_busy"),
        (TransportError("reset", "gone"), CredentialUnavailableError, "issuer_unreachable"),
        (HttpResponse(204), CredentialRejectedError, "unreadable_error"),
        (HttpResponse(200, {}, CANARY.encode()), CredentialRejectedError, "not_json"),
        (answer({"data": [CANARY]}), CredentialRejectedError, "malformed_answer"),
        (answer({"nothing": CANARY}), CredentialRejectedError, "malformed_answer"),
        (
            HttpResponse(307, {"location": f"https://{CANARY}"}),
            CredentialRejectedError,
            "redirected",
        ),
    ],
)
def test_a_vault_that_fails_is_a_typed_error_that_quotes_nothing(
    part: str, reply: Answer, kind: type, code: str
) -> None:
    held = Held()
    setattr(held, part, lambda _: reply)
    error = refused(held)
    assert (type(error), error.code) == (kind, code)


def test_a_role_without_access_is_told_both_paths() -> None:
    held = Held()
    held.signed = lambda _: FORBIDDEN
    remedy = refused(held).remedy or ""
    for path in ("transit/keys/invoice-bot", "transit/sign/invoice-bot", "role agent"):
        assert path in remedy


def test_a_busy_vault_is_asked_again() -> None:
    held, busy = Held(), [answer({}, 503), answer({}, 503)]
    held.signed = lambda usual: busy.pop() if busy else usual
    assert run(grants().grant(WANTED), held).kid == held.kids[0]
    assert [request.method for request in held.sent] == ["GET", "POST", "POST", "POST"]


def test_a_probe_signs_what_no_verifier_takes() -> None:
    held = Held("Ed25519")
    assert run(probe_signer(signer()), held)["kid"] == held.kids[0]
    signing_input = base64.b64decode(json.loads(held.sent[-1].body)["input"]).decode()
    head, _, body = signing_input.partition(".")
    assert json.loads(base64.urlsafe_b64decode(head + "==="))["typ"] == "agent-identity-probe"
    assert base64.urlsafe_b64decode(body + "==") == b"{}"
    held.signed = lambda _: FORBIDDEN
    with pytest.raises(CredentialRejectedError):
        run(probe_signer(signer()), held)


def test_a_signer_shows_where_its_key_is_and_no_secret() -> None:
    made = signer()
    assert repr(made) == f"<TransitSigner transit/invoice-bot at {ADDRESS}>"
    asks: list[Any] = []
    play(made.keys(), LOGGED_IN, Held()._list(), asks=asks)
    assert_no_leak([LOGIN, WORKLOAD], made, *map(repr, asks))


# -- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "mount", "name"),
    [
        ("vault:transit/invoice-bot", "transit", "invoice-bot"),
        ("vault:team/eu/transit/a.b_c", "team/eu/transit", "a.b_c"),
    ],
)
def test_a_reference_is_a_mount_and_a_name(text: str, mount: str, name: str) -> None:
    assert transit_key(text) == TransitKey(mount, name)


@pytest.mark.parametrize(
    "text",
    [
        *("", "vault:", "vault:a", "vault:a/", "vault:/a", "vault:a//b", "vault:a/../b", "env:a/b"),
        *("vault:a/..", "vault:./b", "vault:a/b#c", "vault:a/b?v=1", "vault:a/b\n", "vault:a/b c"),
        *("vault:a/%2e%2e", "vault:ä/b", "vault:a\\b", "VAULT:a/b", "vault:https://a/b"),
    ],
)
def test_a_reference_with_another_reading_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        transit_key(text)
    assert caught.value.code == "reference_malformed"
