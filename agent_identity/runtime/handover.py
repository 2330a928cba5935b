# SPDX-License-Identifier: Apache-2.0
"""Handing work to another process: a grant for a key that lives there, and the session that it opens there (DESIGN section 4).

The sender signs one further hop, for the recipient's key, and never can act by it. It travels beside an ordinary call, as a header
or in MCP's `_meta`, and is no secret: only the recipient's key makes anything of it. Nothing is exchanged, nothing is bearer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from agent_identity.delegation.carriers import (
    ASSERTION,
    HANDOVER,
    META,
    chain_fits,
    join_chain,
)
from agent_identity.errors import (
    ConfigurationError,
    DeniedError,
    InvalidAssertionError,
    VerificationError,
)
from agent_identity.jose import public_keys
from agent_identity.keys.signing import thumbprint
from agent_identity.provenance import spans
from agent_identity.runtime.current import running_call
from agent_identity.runtime.grants import make_chain, record_grant, sign_hop
from agent_identity.values import LOCAL

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from agent_identity.delegation.chain import Handover
    from agent_identity.delegation.grant import Grant
    from agent_identity.flow import Flow
    from agent_identity.keys.signing import JWK
    from agent_identity.runtime.parts import Resources
    from agent_identity.runtime.state import SessionState

__all__ = ["inject", "read_handover", "read_recipient_key", "sign_handover"]

_RECIPIENT_KEYS: Final = ("ES256", "Ed25519")


def read_recipient_key(key: JWK) -> str:
    """The thumbprint of a recipient's public key.

    Raises:
        ConfigurationError: `handover_key`, it is none that could sign an assertion, or it is a private one.
    """
    for alg in _RECIPIENT_KEYS:
        try:
            public_keys.refuse_private(key)
            if public_keys.is_signed(b"", b"", alg, *public_keys.candidates([key], alg, None)):
                break
            return thumbprint(key)
        except (VerificationError, ConfigurationError, TypeError, AttributeError):
            continue
    raise ConfigurationError(
        "handover_key",
        "the recipient's key is no public P-256 or Ed25519 key",
        remedy="pass the JWK that the recipient publishes: its identity.public_jwk",
    )


def sign_handover(child: SessionState, jkt: str) -> Flow[tuple[Grant, ...]]:
    """Sign the hop below a session for a key elsewhere, and put it on record; gives the chain, newest first.

    Raises:
        DeniedError: the session has ended, or that key acts in its chain already.
        CredentialError: the anchor of the first hop refused, or could not be reached.
    """
    parent = child.parent
    assert parent is not None  # noqa: S101 - `delegate` makes children alone
    parts = parent.parts
    audiences, scopes = _check_reach(child)
    above = yield from make_chain(parent, audiences, scopes)
    if jkt in {grant.jkt for grant in above}:
        raise DeniedError(
            "actor_repeated",
            "that key acts in this chain already",
            remedy="hand over to the key of another process",
        )
    now = parts.clock()
    parent.check(now)
    grant = sign_hop(
        child,
        above,
        jkt=jkt,
        audiences=audiences,
        scopes=scopes,
        expires_at=child.expires_at,
        now=now,
    )
    chain = (grant, *above)
    chain_fits([hop.compact for hop in chain], limit=parts.header_limit)
    yield from record_grant(child, chain)
    return chain


def _check_reach(child: SessionState) -> tuple[frozenset[str], frozenset[str]]:
    """What is handed over; it is signed at once, so that it has to be said, and held to the configuration here."""
    resources = (child.limits.resources or frozenset[str]()) - {LOCAL}
    if not resources:
        raise ConfigurationError(
            "handover_resources",
            "a hand-over names the resources that it is for",
            remedy="say delegate(…, key=…, resources=[…])",
        )
    most = _configured_scopes(child.parts.resources, resources)
    scopes = child.limits.scopes
    if scopes is None:
        if most is None:
            raise ConfigurationError(
                "handover_scopes",
                "a hand-over names its scopes, where nothing above limits them",
                remedy="say delegate(…, key=…, scopes=[…]), or configure the resource's scopes",
            )
        return resources, most
    if most is not None and not scopes <= most:
        raise DeniedError(
            "scope_not_configured",
            f"none of the resources is configured for {', '.join(sorted(scopes - most))}",
            remedy="add the scope to the resource's configuration",
        )
    return resources, scopes


def _configured_scopes(resources: Resources, wanted: frozenset[str]) -> frozenset[str] | None:
    """The most scopes that these resources are configured with; None where one has no limit of its own."""
    limits = [resources.scopes(uri) for uri in wanted]
    known = [each for each in limits if each is not None]
    return frozenset[str]().union(*known) if len(known) == len(limits) else None


def inject(
    session: SessionState,
    carrier: MutableMapping[str, object],
    form: Literal["headers", "meta", "message"] | None,
) -> None:
    """Write what a session says into what travels: a hand-over, or the running call's assertion and chain.

    MCP's `_meta` goes in a request that carries the resource's access token, where there is one, so its assertion names that
    token. A message carries none.

    Raises:
        ConfigurationError: `carrier_unsuitable`, or `no_call`.
        DeniedError: it ended.
    """
    as_meta = _is_meta(carrier) if form is None else form != "headers"
    handed = session.handed
    if handed is not None:
        session.life.check_handed()
        compacts = [grant.compact for grant in handed]
        if as_meta:
            carrier[f"{META}handover"] = compacts
        else:
            carrier[HANDOVER] = join_chain(compacts, limit=session.parts.header_limit)
    else:
        _inject_call(session, carrier, as_meta=as_meta, with_token=form != "message")
    spans.inject(carrier)


def _inject_call(
    session: SessionState, carrier: MutableMapping[str, object], *, as_meta: bool, with_token: bool
) -> None:
    call = running_call(session)
    if call is None:
        raise ConfigurationError(
            "no_call",
            "there is no running call of this session to assert",
            remedy="inject inside a tool, or inject what delegate(…, key=…) gave",
        )
    if not as_meta:
        raise ConfigurationError(
            "carrier_unsuitable",
            "an assertion in headers is one of one request, whose method and URL it names",
            remedy='use current_credential().headers(…), inject(carrier, form="meta") for MCP, or form="message"',
        )
    carrier[f"{META}assertion"], carrier[f"{META}delegation"] = call.asserted(with_token=with_token)


def _is_meta(carrier: MutableMapping[str, object]) -> bool:
    return any(name.startswith(META) for name in carrier) and ASSERTION not in carrier


def read_handover(call: object, *, jkt: str, now: float) -> Handover:
    """What a verified call hands over to this process.

    Raises:
        ConfigurationError: that is no verified call.
        InvalidAssertionError: it hands nothing over, or to another key, or its time is over.
    """
    from agent_identity.verify.result import VerifiedCall  # noqa: PLC0415 - for those who take something over

    if not isinstance(call, VerifiedCall):
        raise ConfigurationError(
            "not_verified",
            f"{type(call).__name__} is no verified call",
            remedy="give accept what Verifier.verify_request or verify_call returned",
        )
    handover = call.handover
    if handover is None:
        raise InvalidAssertionError("handover_missing", "the call hands nothing over")
    leaf = handover.grants[0]
    if leaf.jkt != jkt:
        raise InvalidAssertionError(
            "handover_key",
            "what is handed over is for another key than this agent's",
            remedy="publish identity.public_jwk anew; replicas behind one address share a configured [agent] key",
        )
    if now >= leaf.exp:
        raise InvalidAssertionError("expired", "what was handed over has expired")
    return handover
