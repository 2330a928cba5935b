# SPDX-License-Identifier: Apache-2.0
"""The authority as an organisation's anchor: what an attacker with somebody's token, key or request gets of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from agent_identity.authority import (
    Authority,
    IdentityProvider,
    Organisation,
    configured_client,
)
from agent_identity.authority.client_proofs import OwnAssertion, PlatformToken, SpiffeSvid
from agent_identity.authority.organisation import run_offline
from agent_identity.delegation.chain import Anchor, verify_chain
from agent_identity.errors import CredentialRejectedError, CredentialUnavailableError
from agent_identity.flow import Flow
from agent_identity.keys.signing import SigningKey, public_signing_jwk

ANCHOR = "https://agents.acme.example"
IDP = "https://idp.acme.example"
PLATFORM = "https://token.platform.example"
BILLING = "https://billing.example/api"
MAIL = "https://mail.example"
BOT = "urn:agent-identity:agent:invoice-bot"
OTHER = "urn:agent-identity:agent:mail-bot"
SPIFFE = "spiffe://acme.example/invoice-bot"
TXN = "ses_" + "0a" * 16
TYPES = "urn:ietf:params:oauth:token-type:"
ACCESS_TOKEN, ID_TOKEN, JWT = f"{TYPES}access_token", f"{TYPES}id_token", f"{TYPES}jwt"
JWT_SPIFFE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"


class Published:
    """Keys as somebody publishes them."""

    def __init__(self, *keys: SigningKey) -> None:
        self.keys = {key.thumbprint: public_signing_jwk(key) for key in keys}
        self.is_away = False

    def key(self, kid: str, /) -> Flow[dict[str, Any]]:
        yield from ()
        if self.is_away:
            raise CredentialUnavailableError("issuer_unreachable", "gone")
        if kid not in self.keys:
            raise CredentialRejectedError("unknown_key", "no such key")
        return self.keys[kid]


class Desk:
    """An anchor, the identity provider before it, and two agents that are its clients."""

    def __init__(self, make: Callable[..., Any], client: type, state: Any = None, **said: Any):
        self.idp, self.platform, self.domain = (SigningKey.generate() for _ in range(3))
        self.bot_key, self.other_key = SigningKey.generate(), SigningKey.generate()
        self.idp_keys, self.bot_keys = Published(self.idp), Published(self.bot_key)
        common: dict[str, Any] = {
            "resources": [BILLING],
            "scopes": ["invoices:read"],
            "max_depth": 2,
            "subject_clients": ["web-app"],
            "subject_issuers": [IDP],
        }
        clients = [
            configured_client("bot", BOT, OwnAssertion(self.bot_keys), **common),
            configured_client(
                "other",
                OTHER,
                OwnAssertion(Published(self.other_key)),
                **common | {"subject_clients": ["mail-app"], "resources": [MAIL]},
            ),
            configured_client(
                "backend", BOT, OwnAssertion(self.bot_keys), **common | {"subject_clients": []}
            ),
            configured_client(
                "stranger", BOT, OwnAssertion(self.bot_keys), **common | {"subject_issuers": []}
            ),
            configured_client("svid", BOT, SpiffeSvid(SPIFFE, Published(self.domain)), **common),
            configured_client(
                "job",
                BOT,
                PlatformToken(
                    PLATFORM,
                    {"sub": "repo:acme/bot", "ref": "refs/heads/main"},
                    Published(self.platform),
                ),
                **common,
            ),
        ]
        organisation = Organisation(
            clients={each.client_id: each for each in clients},
            providers={IDP: IdentityProvider(self.idp_keys, {"ES256"})},
            audiences=[ANCHOR, "api://agents"],
            drive=run_offline,
            **said,
        )
        self.rig = make(state, issuer=ANCHOR, organisation=organisation)
        self.bot = client(self.rig, "bot", self.bot_key, BOT)
        self.other = client(self.rig, "other", self.other_key, OTHER)
        self.agent_key = SigningKey.generate()

    def as_client(self, client_id: str) -> Any:
        return type(self.bot)(self.rig, client_id, self.bot_key, BOT)

    def token(
        self, *, key: SigningKey | None = None, typ: str | None = "at+jwt", **claims: Any
    ) -> str:
        """Alice's token, as the web application got it."""
        now = int(self.rig.clock())
        signer = key or self.idp
        said = {
            "iss": IDP,
            "sub": "alice",
            "aud": ANCHOR,
            "azp": "web-app",
            "iat": now,
            "exp": now + 600,
            "jti": uuid4().hex,
        }
        return self.rig.sign(signer, {"typ": typ, "kid": signer.thumbprint}, said | claims)

    def ask(self, client: Any = None, token: str | None = None, **form: Any) -> Any:
        fields = {"subject_token_type": ACCESS_TOKEN, "txn": TXN, "key": self.agent_key} | form
        return (client or self.bot).grant(subject=token or self.token(), **fields)

    def refused(self, response: Any) -> tuple[int, str, str]:
        assert not self.rig.authority.issued
        return self.rig.refusal(response)

    def grant(self, *args: Any, **form: Any) -> dict[str, Any]:
        response = self.ask(*args, **form)
        assert response.status == 200, response.body
        compact = self.rig.body(response)["access_token"]
        (first, *_) = form.get("resource", [BILLING])
        return self.rig.claims(compact, typ="agent-grant+jwt", aud=first)


@pytest.fixture
def make_desk(make_rig: Callable[..., Any], bot: Any) -> Callable[..., Desk]:
    return lambda *args, **said: Desk(make_rig, type(bot), *args, **said)


@pytest.fixture
def desk(make_desk: Callable[..., Desk]) -> Desk:
    return make_desk()


# -- what it is for --------------------------------------------------------------------------------------------------------


def test_a_principals_token_becomes_hop_0_of_the_clients_agent(desk: Desk) -> None:
    response = desk.ask(task="October")
    answer = desk.rig.body(response)
    (grant,) = verify_chain(
        [answer["access_token"]],
        (
            Anchor(
                ANCHOR, tuple(desk.rig.authority.jwks()["keys"]), evidence="issuer", subjects={IDP}
            ),
        ),
        now=desk.rig.clock(),
    )
    assert (grant.iss, grant.vouched_by, grant.sub, grant.sub_iss) == (ANCHOR, ANCHOR, "alice", IDP)
    assert (grant.sub_profile, grant.agent, grant.jkt) == ("user", BOT, desk.agent_key.thumbprint)
    assert grant.aud == {BILLING, "urn:agent-identity:local"}
    assert (grant.scopes, grant.max_depth, grant.evidence) == ({"invoices:read"}, 2, "issuer")
    assert (grant.txn, grant.task, grant.purpose) == (TXN, "October", "close the October books")
    assert grant.exp <= desk.rig.clock() + 600  # not beyond the principal's token
    assert (answer["issued_token_type"], answer["token_type"]) == (
        "urn:agent-identity:token-type:grant",
        "N_A",
    )


@pytest.mark.parametrize(
    "said",
    [
        {"aud": "api://agents"},
        {"aud": [ANCHOR]},
        {"aud": [ANCHOR, "api://agents"]},
        {"azp": None, "client_id": "web-app"},
        {"client_id": "web-app"},
        {"may_act": {"sub": BOT}},
        {"may_act": {"sub": BOT, "iss": ANCHOR}},
        {"act": {"sub": BOT}},
        {"jti": None},
        {"typ": None},
        {"typ": "JWT"},
    ],
    ids=str,
)
def test_what_a_token_may_say_besides(desk: Desk, said: dict[str, Any]) -> None:
    assert desk.grant(token=desk.token(**said))["sub"] == "alice"


@pytest.mark.parametrize("kind", [ACCESS_TOKEN, JWT])
def test_each_type_of_token_is_taken(desk: Desk, kind: str) -> None:
    assert desk.grant(subject_token_type=kind)["sub"] == "alice"
    id_token = desk.token(typ="JWT", nonce="n")
    assert desk.grant(token=id_token, subject_token_type=ID_TOKEN)["sub"] == "alice"


def test_a_token_bound_to_the_key_of_the_proof_is_taken_and_to_another_refused(desk: Desk) -> None:
    other = desk.token(cnf={"jkt": desk.other_key.thumbprint})
    assert desk.refused(desk.ask(token=other))[2] == "key_mismatch"
    certificate = desk.token(cnf={"x5t#S256": "A" * 43})
    assert desk.refused(desk.ask(token=certificate))[2] == "key_mismatch"
    assert desk.grant(token=desk.token(cnf={"jkt": desk.agent_key.thumbprint}))["sub"] == "alice"


def test_a_client_whose_table_names_no_client_takes_tokens_that_name_none(desk: Desk) -> None:
    backend = desk.as_client("backend")
    assert desk.refused(desk.ask(backend))[2] == "subject_client_mismatch"
    assert desk.grant(backend, desk.token(azp=None))["sub"] == "alice"


# -- E15: the confused deputy, by the token --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"aud": "https://other.example"}, "audience_mismatch"),
        ({"aud": [ANCHOR, "https://other.example"]}, "audience_mismatch"),
        ({"aud": []}, "audience_mismatch"),
        ({"aud": None}, "audience_mismatch"),
        ({"aud": f"{ANCHOR}/"}, "audience_mismatch"),
        ({"azp": "mail-app"}, "subject_client_mismatch"),
        ({"azp": None}, "subject_client_mismatch"),
        ({"client_id": "mail-app"}, "subject_client_mismatch"),
        ({"azp": "mail-app", "client_id": "web-app"}, "subject_client_mismatch"),
        ({"azp": ["web-app"]}, "claim_malformed"),
        ({"may_act": {"sub": OTHER}}, "may_act"),  # B09
        ({"may_act": {"sub": BOT, "iss": IDP}}, "may_act"),
        ({"may_act": {"sub": BOT, "client_id": "web-app"}}, "may_act"),
        ({"may_act": {}}, "may_act"),
        ({"may_act": BOT}, "claim_malformed"),
        ({"act": {"sub": OTHER}}, "actor_mismatch"),  # B07
        ({"act": {"sub": BOT, "act": {"sub": OTHER}}}, "actor_mismatch"),
        ({"iss": "https://evil.example"}, "issuer_unknown"),
        ({"iss": ANCHOR}, "issuer_unknown"),
        ({"iss": f"{IDP}/"}, "issuer_unknown"),
        ({"iss": None}, "claim_missing"),
        ({"exp": 1_795_518_000}, "expired"),
        ({"exp": 1_795_518_000 - 60}, "expired"),
        ({"nbf": 1_795_518_000 + 60}, "not_yet_valid"),
        ({"iat": 1_795_518_000 + 60}, "not_yet_valid"),
        ({"exp": 1_795_518_000 + 90_000}, "lifetime_too_long"),
        ({"exp": None}, "missing_claim"),
        ({"iat": None}, "missing_claim"),
        ({"sub": None}, "claim_missing"),
        ({"sub": "a" * 513}, "claim_malformed"),
        ({"sub": "alice\nbob"}, "claim_malformed"),
        ({"events": {}}, "wrong_typ"),
        ({"typ": "logout+jwt"}, "wrong_typ"),
        ({"typ": "dpop+jwt"}, "wrong_typ"),
        ({"typ": "agent-grant+jwt"}, "wrong_typ"),
        ({"typ": "agent-subject+jwt"}, "wrong_typ"),
    ],
    ids=str,
)
def test_E15_a_token_that_was_made_for_something_else_gets_nothing(
    desk: Desk, said: dict[str, Any], why: str
) -> None:
    iat = {"iat": said["exp"] - 600} if isinstance(said.get("exp"), int) else {}
    iat = {} if why == "lifetime_too_long" else iat
    response = desk.ask(token=desk.token(**iat | said))
    assert desk.refused(response) == (400, "invalid_grant", why)


def test_an_access_token_given_as_an_id_token_is_refused(desk: Desk) -> None:
    assert desk.refused(desk.ask(subject_token_type=ID_TOKEN))[2] == "wrong_typ"
    saml = desk.ask(subject_token_type=f"{TYPES}saml2")
    assert desk.refused(saml)[1:] == ("invalid_request", "subject_token_type_unsupported")


def test_E15_a_token_of_one_clients_application_is_worth_nothing_to_another(desk: Desk) -> None:
    mail = {"resource": [MAIL]}
    assert desk.refused(desk.ask(desk.other, **mail))[2] == "subject_client_mismatch"
    assert desk.grant(desk.other, desk.token(azp="mail-app"), **mail)["act"]["sub"] == OTHER


def test_a_client_gets_principals_of_the_issuers_that_its_table_names_alone(desk: Desk) -> None:
    assert desk.refused(desk.ask(desk.as_client("stranger")))[2] == "issuer_unknown"


def test_a_forged_token_is_refused_by_its_signature_or_its_key(desk: Desk) -> None:
    forged = desk.token()[:-8] + "AAAAAAAA"
    assert desk.refused(desk.ask(token=forged))[2] == "bad_signature"
    assert desk.refused(desk.ask(token=desk.token(key=desk.bot_key)))[2] == "key_unknown"
    nameless = desk.rig.sign(desk.idp, {"typ": "JWT"}, {"iss": IDP, "sub": "alice"})
    assert desk.refused(desk.ask(token=nameless))[2] == "key_unknown"
    assert desk.refused(desk.ask(token="an-opaque-token"))[2] == "opaque_token"


def test_a_token_signed_by_an_algorithm_that_the_issuer_may_not_use_is_refused(
    desk: Desk,
) -> None:
    ed = SigningKey.generate("Ed25519")
    desk.idp_keys.keys[ed.thumbprint] = public_signing_jwk(ed)
    assert desk.refused(desk.ask(token=desk.token(key=ed)))[2] == "alg_not_allowed"


def test_B23_neither_the_anchors_own_grants_nor_a_clients_statement_is_a_principals_token(
    desk: Desk, make_rig: Callable[..., Any]
) -> None:
    grant = desk.rig.body(desk.ask())["access_token"]
    desk.rig.authority.issued.clear()
    for kind in (ACCESS_TOKEN, JWT):
        response = desk.ask(token=grant, subject_token_type=kind)
        assert desk.refused(response) == (400, "invalid_grant", "issuer_unknown")
    statement = desk.bot.subject(txn=TXN)
    response = desk.ask(token=statement, subject_token_type=JWT)
    assert desk.refused(response) == (400, "invalid_grant", "issuer_unknown")


def test_B23_a_chain_that_somebody_saw_gets_nothing_at_the_anchor(desk: Desk) -> None:
    """A service replays what it was sent: chain and assertion are no client assertion, and no client trades a chain here."""
    grant = desk.rig.body(desk.ask())["access_token"]
    desk.rig.authority.issued.clear()
    shown = desk.ask(client_assertion=grant)
    assert desk.refused(shown)[:2] == (401, "invalid_client")
    traded = desk.bot.exchange([grant], key=desk.agent_key, subject=desk.token())
    assert desk.refused(traded) == (400, "unauthorized_client", "grants_only")
    as_actor = desk.ask(actor_token=grant, actor_token_type=JWT)
    assert desk.refused(as_actor)[2] == "actor_token_unsupported"


# -- E15: by the request ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "refusal"),
    [
        ({"resource": [MAIL]}, ("invalid_target", "resource_not_allowed")),
        ({"resource": [BILLING, MAIL]}, ("invalid_target", "resource_not_allowed")),
        ({"resource": [f"{BILLING}/v1"]}, ("invalid_target", "resource_not_allowed")),
        ({"resource": []}, ("invalid_target", "resource_missing")),
        ({"scope": "invoices:read invoices:pay"}, ("invalid_scope", "scope_widened")),
        ({"max_depth": "3"}, ("invalid_request", "max_depth_widened")),
        ({"txn": None}, ("invalid_grant", "txn_malformed")),
        ({"txn": "ses_1"}, ("invalid_grant", "txn_malformed")),
        ({"txn": TXN + "\n"}, ("invalid_grant", "txn_malformed")),
        ({"txn": TXN.upper()}, ("invalid_grant", "txn_malformed")),
        ({"purpose": None}, ("invalid_request", "purpose_missing")),
        ({"audience": MAIL}, ("invalid_request", "parameter_unsupported")),
        ({"requested_token_type": ACCESS_TOKEN}, ("unauthorized_client", "grants_only")),
        ({"requested_token_type": None}, ("unauthorized_client", "grants_only")),
    ],
    ids=str,
)
def test_E15_a_request_for_more_than_the_table_is_refused_and_not_narrowed(
    desk: Desk, form: dict[str, Any], refusal: tuple[str, str]
) -> None:
    assert desk.refused(desk.ask(**form)) == (400, *refusal)


def test_E15_the_agent_is_the_tables_whatever_the_request_says(desk: Desk) -> None:
    grant = desk.grant(agent=OTHER, agent_id=OTHER, act=OTHER, sub="mallory", sub_iss="x", jkt="x")
    assert (grant["act"]["sub"], grant["sub"], grant["sub_iss"]) == (BOT, "alice", IDP)
    assert grant["cnf"]["jkt"] == desk.agent_key.thumbprint


@pytest.mark.parametrize(
    "grant_type",
    ["client_credentials", "urn:ietf:params:oauth:grant-type:jwt-bearer", "authorization_code"],
)
def test_a_configured_client_gets_nothing_but_grants(desk: Desk, grant_type: str) -> None:
    response = desk.ask(grant_type=grant_type, assertion=desk.token())
    assert desk.refused(response)[1] in {"unauthorized_client", "unsupported_grant_type"}


# -- E15: by the proof of possession ---------------------------------------------------------------------------------------


def proven_by(desk: Desk, proof: str | None) -> Any:
    fields = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requested_token_type": "urn:agent-identity:token-type:grant",
        "subject_token": desk.token(),
        "subject_token_type": ACCESS_TOKEN,
        "resource": [BILLING],
        "purpose": "p",
        "txn": TXN,
    }
    return desk.bot.post("/token", fields, proof=proof)


def test_E15_without_a_proof_of_this_very_request_there_is_no_grant(desk: Desk) -> None:
    rig, key = desk.rig, desk.agent_key
    assert desk.refused(proven_by(desk, None))[2] == "proof_missing"
    for lie, why in (
        ({"htu": f"{ANCHOR}/revoke"}, "dpop_url"),
        ({"htu": "https://evil.example/token"}, "dpop_url"),
        ({"htm": "GET"}, "dpop_method"),
        ({"iat": int(rig.clock()) - 400}, "dpop_stale"),
    ):
        refusal = desk.refused(proven_by(desk, rig.proof(key, **lie)))
        assert refusal == (400, "invalid_dpop_proof", why)
    forged = rig.sign(
        desk.other_key,
        {"typ": "dpop+jwt", "jwk": key.public_jwk},
        {"jti": "1", "htm": "POST", "htu": f"{ANCHOR}/token", "iat": int(rig.clock())},
    )
    assert desk.refused(proven_by(desk, forged))[1] == "invalid_dpop_proof"


def test_E15_a_proof_is_good_once(desk: Desk) -> None:
    proof = desk.rig.proof(desk.agent_key)
    assert proven_by(desk, proof).status == 200
    assert desk.rig.refusal(proven_by(desk, proof))[1:] == ("invalid_dpop_proof", "replayed")


def test_E15_a_grant_is_bound_to_the_key_of_its_proof_and_to_no_other(desk: Desk) -> None:
    """Who has a client's key and Alice's token, and not the agent's key, gets a grant for a key of theirs: another instance."""
    thief = SigningKey.generate()
    grant = desk.grant(key=thief)
    assert grant["cnf"]["jkt"] == grant["act"]["instance"] == thief.thumbprint


# -- E13, E15: who asks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"aud": f"{ANCHOR}/token"}, "audience_mismatch"),  # E13
        ({"aud": [ANCHOR]}, "audience_mismatch"),  # E13
        ({"aud": [ANCHOR, "https://other.example"]}, "audience_mismatch"),
        ({"sub": "other"}, "client_mismatch"),
        ({"iss": "other", "sub": "other"}, "client_mismatch"),
        ({"typ": "JWT"}, "wrong_typ"),
        ({"exp": 1_795_518_000 + 301}, "lifetime_too_long"),
        ({"iat": 1_795_518_031, "exp": 1_795_518_060}, "not_yet_valid"),
        ({"exp": 1_795_517_900, "iat": 1_795_517_800}, "expired"),
        ({"jti": None}, "claim_missing"),
    ],
    ids=str,
)
def test_an_assertion_that_breaks_a_rule_proves_no_configured_client(
    desk: Desk, said: dict[str, Any], why: str
) -> None:
    response = desk.ask(client_assertion=desk.bot.assertion(**said))
    assert desk.refused(response) == (401, "invalid_client", why)


def test_a_client_assertion_is_good_once(desk: Desk) -> None:
    assertion = desk.bot.assertion()
    assert desk.ask(client_assertion=assertion).status == 200
    response = desk.ask(client_assertion=assertion)
    assert desk.rig.refusal(response) == (401, "invalid_client", "replayed")


def test_E15_a_client_proves_itself_and_nobody_else(desk: Desk) -> None:
    as_other = desk.ask(client_id="other", resource=[MAIL], client_assertion=desk.bot.assertion())
    assert desk.refused(as_other) == (401, "invalid_client", "key_unknown")
    unknown = desk.ask(client_id="nobody")
    assert desk.refused(unknown) == (401, "invalid_client", "client_unknown")


@pytest.mark.parametrize(
    "form",
    [
        {"client_assertion": None, "client_assertion_type": None},
        {"client_assertion": None},
        {"client_assertion_type": None},
    ],
    ids=str,
)
def test_no_assertion_is_no_proof(desk: Desk, form: dict[str, Any]) -> None:
    assert desk.refused(desk.ask(**form)) == (401, "invalid_client", "client_assertion_missing")


@pytest.mark.parametrize(
    "form", [{}, {"client_assertion": None, "client_assertion_type": None}], ids=str
)
def test_a_shared_secret_is_no_proof(desk: Desk, form: dict[str, Any]) -> None:
    response = desk.ask(client_secret="s3cret", **form)
    assert desk.refused(response) == (401, "invalid_client", "shared_secret_refused")


def test_a_basic_header_is_no_proof(desk: Desk) -> None:
    fields = {"grant_type": "urn:ietf:params:oauth:grant-type:token-exchange"}
    header = {"Authorization": "Basic Ym90OnMzY3JldA=="}
    response = desk.bot.post("/token", fields, headers=header)
    assert desk.refused(response) == (401, "invalid_client", "shared_secret_refused")


def svid(desk: Desk, key: SigningKey | None = None, **claims: Any) -> str:
    now, signer = int(desk.rig.clock()), key or desk.domain
    said = {"sub": SPIFFE, "aud": [ANCHOR], "exp": now + 300, "iat": now}
    return desk.rig.sign(signer, {"typ": "JWT", "kid": signer.thumbprint}, said | claims)


def test_a_workload_proves_itself_by_its_svid_until_that_ends(desk: Desk) -> None:
    form = {"client_assertion_type": JWT_SPIFFE, "client_assertion": svid(desk)}
    for _ in range(2):  # the Workload API gives the same one again
        assert desk.grant(desk.as_client("svid"), **form)["act"]["sub"] == BOT
    assert desk.grant(
        desk.as_client("svid"),
        client_assertion_type=JWT_SPIFFE,
        client_assertion=svid(desk, aud=ANCHOR, iat=None),
    )


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"aud": [ANCHOR, "https://other.example"]}, "audience_mismatch"),
        ({"aud": BILLING}, "audience_mismatch"),
        ({"aud": f"{ANCHOR}/token"}, "audience_mismatch"),
        ({"sub": f"{SPIFFE}/x"}, "client_mismatch"),
        ({"sub": "spiffe://evil.example/invoice-bot"}, "client_mismatch"),
        ({"exp": 1_795_517_900, "iat": 1_795_517_800}, "expired"),
        ({"exp": None}, "missing_claim"),
    ],
    ids=str,
)
def test_an_svid_of_another_workload_or_for_somebody_else_proves_nobody(
    desk: Desk, said: dict[str, Any], why: str
) -> None:
    form = {"client_assertion_type": JWT_SPIFFE, "client_assertion": svid(desk, **said)}
    response = desk.ask(desk.as_client("svid"), **form)
    assert desk.refused(response) == (401, "invalid_client", why)


def test_an_svid_of_another_trust_domains_keys_proves_nobody(desk: Desk) -> None:
    form = {"client_assertion_type": JWT_SPIFFE, "client_assertion": svid(desk, desk.platform)}
    response = desk.ask(desk.as_client("svid"), **form)
    assert desk.refused(response) == (401, "invalid_client", "key_unknown")


def job(desk: Desk, key: SigningKey | None = None, **claims: Any) -> str:
    now, signer = int(desk.rig.clock()), key or desk.platform
    said = {
        "iss": PLATFORM,
        "sub": "repo:acme/bot",
        "ref": "refs/heads/main",
        "aud": ANCHOR,
        "exp": now + 3600,
        "iat": now,
    }
    return desk.rig.sign(signer, {"typ": "JWT", "kid": signer.thumbprint}, said | claims)


def test_a_job_proves_itself_by_what_its_platform_says(desk: Desk) -> None:
    assert desk.grant(desk.as_client("job"), client_assertion=job(desk))["act"]["sub"] == BOT
    listed = job(desk, aud=[ANCHOR])
    assert desk.grant(desk.as_client("job"), client_assertion=listed)["act"]["sub"] == BOT


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"sub": "repo:acme/bot2"}, "client_mismatch"),
        ({"ref": "refs/heads/evil"}, "client_mismatch"),
        ({"ref": None}, "client_mismatch"),
        ({"iss": "https://evil.example"}, "issuer_mismatch"),
        ({"aud": [ANCHOR, "https://other.example"]}, "audience_mismatch"),
        ({"aud": "https://other.example"}, "audience_mismatch"),
        ({"exp": 1_795_517_900, "iat": 1_795_517_800}, "expired"),
        ({"exp": 1_795_518_000 + 90_000}, "lifetime_too_long"),
    ],
    ids=str,
)
def test_another_job_of_the_platform_proves_nobody(
    desk: Desk, said: dict[str, Any], why: str
) -> None:
    response = desk.ask(desk.as_client("job"), client_assertion=job(desk, **said))
    assert desk.refused(response) == (401, "invalid_client", why)


def test_one_way_of_proof_does_not_stand_in_for_another(desk: Desk) -> None:
    own = desk.as_client("svid").assertion()
    assert (
        desk.refused(desk.ask(desk.as_client("svid"), client_assertion=own))[2] == "method_mismatch"
    )
    token = desk.ask(desk.bot, client_assertion=job(desk))
    assert desk.refused(token)[:2] == (401, "invalid_client")
    form = {"client_assertion_type": JWT_SPIFFE, "client_assertion": svid(desk)}
    assert desk.refused(desk.ask(desk.bot, **form))[2] == "method_mismatch"


# -- B15: what was revoked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    [BOT, "bot", f"user:{IDP}#alice", TXN, "*"],
    ids=["agent", "client", "principal", "session", "all"],
)
def test_B15_what_was_revoked_gets_nothing(desk: Desk, reference: str) -> None:
    desk.rig.authority.revoke(reference)
    assert desk.refused(desk.ask())[1] == "invalid_grant"


def test_B15_a_revocation_is_of_whom_it_names(desk: Desk) -> None:
    for reference in (OTHER, "user:alice", f"user:{IDP}#bob", "user:https://x.example#alice"):
        desk.rig.authority.revoke(reference)
    assert desk.grant()["sub"] == "alice"


def test_B15_a_grant_of_a_revoked_principal_is_not_active(desk: Desk) -> None:
    grant = desk.rig.body(desk.ask())["access_token"]
    asked = {"token": grant}
    assert desk.rig.body(desk.bot.post("/introspect", asked))["active"] is True
    desk.rig.authority.revoke("user:alice")  # somebody else's alice
    assert desk.rig.body(desk.bot.post("/introspect", asked))["active"] is True
    desk.rig.authority.revoke(f"user:{IDP}#alice")
    assert desk.rig.body(desk.bot.post("/introspect", asked))["active"] is False


def test_a_reinstated_principal_begins_with_a_token_that_is_newer(desk: Desk) -> None:
    before = desk.token()
    desk.rig.authority.revoke(f"user:{IDP}#alice")
    desk.rig.authority.reinstate(f"user:{IDP}#alice")
    assert desk.refused(desk.ask(token=before))[2] == "revoked"
    desk.rig.clock.now += 2
    assert desk.grant()["sub"] == "alice"


# -- B22: keys ---------------------------------------------------------------------------------------------------------------


def test_B22_a_retired_key_mints_nothing_and_verifies_for_its_grace(desk: Desk) -> None:
    first = desk.rig.authority.jwks()["keys"][0]["kid"]
    old = desk.rig.body(desk.ask())["access_token"]
    desk.rig.authority.rotate()
    kids = [key["kid"] for key in desk.rig.authority.jwks()["keys"]]
    assert (len(kids), kids[1]) == (2, first)
    assert desk.rig.claims(old, typ="agent-grant+jwt")["sub"] == "alice"
    new = desk.rig.body(desk.ask())["access_token"]
    import jwt

    assert jwt.get_unverified_header(new)["kid"] == kids[0] != first
    desk.rig.clock.now += 3601
    assert [key["kid"] for key in desk.rig.authority.jwks()["keys"]] == kids[:1]


def test_a_clients_new_key_counts_and_its_old_one_no_more(desk: Desk) -> None:
    fresh = SigningKey.generate()
    desk.bot_keys.keys = {fresh.thumbprint: public_signing_jwk(fresh)}
    assert desk.refused(desk.ask())[2] == "key_unknown"
    desk.bot.key = fresh
    assert desk.grant()["act"]["sub"] == BOT


# -- what else ---------------------------------------------------------------------------------------------------------------


def test_E15_who_registers_gets_nothing_of_other_issuers_principals(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(registers=True)
    registered = desk.rig.client()
    for kind in (ACCESS_TOKEN, JWT):
        response = desk.ask(registered, subject_token_type=kind)
        assert desk.refused(response)[1] == "invalid_grant"
    assert desk.rig.body(desk.rig.get(f"{ANCHOR}/.well-known/oauth-authorization-server"))[
        "registration_endpoint"
    ]


def test_nobody_registers_unless_that_is_asked_for(
    desk: Desk, tmp_path, make_desk, make_rig
) -> None:
    document = desk.rig.body(desk.rig.get(f"{ANCHOR}/.well-known/oauth-authorization-server"))
    assert "registration_endpoint" not in document
    assert document["token_endpoint_auth_methods_supported"] == [
        "private_key_jwt",
        "spiffe_jwt",
        "workload_token",
    ]
    assert document["grant_types_supported"] == ["urn:ietf:params:oauth:grant-type:token-exchange"]
    assert desk.rig.registration(SigningKey.generate()).status == 404
    earlier = make_rig(tmp_path, issuer=ANCHOR)
    client = earlier.client()
    later = make_desk(tmp_path)
    client.rig = later.rig
    response = client.post("/token", {"grant_type": "client_credentials", "resource": BILLING})
    assert later.refused(response) == (401, "invalid_client", "client_unknown")


def test_keys_that_cannot_be_had_are_an_outage_and_no_verdict(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.idp_keys.is_away = True
    response = desk.ask()
    assert desk.refused(response) == (503, "temporarily_unavailable", "keys_unavailable")
    assert int(response.headers["retry-after"]) > 0
    assert "alice" not in caplog.text
    assert caplog.messages


def test_a_client_that_asks_too_often_waits_and_others_do_not(
    make_desk: Callable[..., Desk],
) -> None:
    desk = make_desk(requests_per_minute=3)
    assert [desk.ask().status for _ in range(4)] == [200, 200, 200, 429]
    limited = desk.ask()
    assert desk.rig.refusal(limited)[2] == "rate_exceeded"
    assert 0 < int(limited.headers["retry-after"]) <= 21
    stranger = desk.ask(client_assertion=desk.bot.assertion(aud="x"))
    assert desk.rig.refusal(stranger)[:2] == (401, "invalid_client")
    other = desk.ask(desk.other, desk.token(azp="mail-app"), resource=[MAIL])
    assert other.status == 200
    desk.rig.clock.now += 21
    assert [desk.ask().status for _ in range(2)] == [200, 429]


def test_an_authority_of_its_own_has_no_limit_and_knows_no_other_issuers(rig, bot) -> None:
    assert isinstance(rig.authority, Authority)
    response = bot.grant(subject_token_type=ID_TOKEN)
    assert rig.refusal(response)[1:] == ("invalid_request", "subject_token_type_unsupported")
    assert bot.grant(txn="ses_1").status == 200
    mixed = bot.grant(txn="ses_2")
    assert rig.refusal(mixed) == (400, "invalid_grant", "txn_mismatch")
