# SPDX-License-Identifier: Apache-2.0
"""Handing work over to another process: a grant for the key of that process, which opens a session there (DESIGN section 4).

The sender signs one more hop for the recipient's key, and can't act by it. The chain is sent with an ordinary call, as a header
or in MCP's `_meta`. It isn't a secret, because only the holder of the recipient's key can use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from agent_identity.delegation.carriers import (
    ASSERTION,
    HANDOVER,
    META,
    check_chain_size,
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

_RECIPIENT_KEYS: Final = ("ES256", "Ed25519")


def read_recipient_key(key: JWK) -> str:
    """Read a recipient's public key, and return its thumbprint.

    Raises:
        ConfigurationError: `handover_key`, the key can't sign assertions, or it is a private key.
    """
    for alg in _RECIPIENT_KEYS:
        try:
            public_keys.refuse_private(key)
            if public_keys.is_signed(b"", b"", alg, *public_keys.find_candidates([key], alg, None)):
                break
            return thumbprint(key)
        except (VerificationError, ConfigurationError, TypeError, AttributeError):
            continue
    raise ConfigurationError(
        "handover_key",
        "the recipient's key isn't a public P-256 or Ed25519 key",
        remedy="pass the JWK that the recipient publishes, its identity.public_jwk",
    )


def sign_handover(child: SessionState, jkt: str) -> Flow[tuple[Grant, ...]]:
    """Sign and record the hop of a child session for a key of another process; return the chain, newest first.

    Raises:
        DeniedError: the session has ended, or the key is already in its chain.
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
            "the recipient's key is already in this chain",
            remedy="pass the key of another process",
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
    check_chain_size([hop.compact for hop in chain], limit=parts.header_limit)
    yield from record_grant(child, chain)
    return chain


def _check_reach(child: SessionState) -> tuple[frozenset[str], frozenset[str]]:
    """Check that a hand-over names its resources and scopes, within the configuration, because it is signed at once."""
    resources = (child.limits.resources or frozenset[str]()) - {LOCAL}
    if not resources:
        raise ConfigurationError(
            "handover_resources",
            "the hand-over names no resources",
            remedy="pass delegate(…, key=…, resources=[…])",
        )
    most = _configured_scopes(child.parts.resources, resources)
    scopes = child.limits.scopes
    if scopes is None:
        if most is None:
            raise ConfigurationError(
                "handover_scopes",
                "the hand-over names no scopes, and neither the session nor the configuration limits them",
                remedy="pass delegate(…, key=…, scopes=[…]), or configure the resource's scopes",
            )
        return resources, most
    if most is not None and not scopes <= most:
        raise DeniedError(
            "scope_not_configured",
            f"none of the resources is configured with {', '.join(sorted(scopes - most))}",
            remedy="add the scope to the resource's configuration",
        )
    return resources, scopes


def _configured_scopes(resources: Resources, wanted: frozenset[str]) -> frozenset[str] | None:
    """All scopes that these resources are configured with; None if one of them has no limit."""
    scopes = frozenset[str]()
    for uri in wanted:
        configured = resources.scopes(uri)
        if configured is None:
            return None
        scopes |= configured
    return scopes


def inject(
    session: SessionState,
    carrier: MutableMapping[str, object],
    form: Literal["headers", "meta", "message"] | None,
) -> None:
    """Write a session's hand-over, or the running call's assertion and chain, into an outgoing request or message.

    In MCP's `_meta`, the assertion names the resource's access token, because the same request carries it. A message carries no
    token.

    Raises:
        ConfigurationError: `carrier_unsuitable`, or `no_call`.
        DeniedError: the session or the hand-over has ended.
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
            "no call of this session is running",
            remedy="call inject inside a tool, or on the session that delegate(…, key=…) returned",
        )
    if not as_meta:
        raise ConfigurationError(
            "carrier_unsuitable",
            "an assertion in headers names the method and URL of its request, which inject doesn't know",
            remedy='use current_credential().headers(…), inject(carrier, form="meta") for MCP, or form="message"',
        )
    carrier[f"{META}assertion"], carrier[f"{META}delegation"] = call.sign_assertion(
        with_token=with_token
    )


def _is_meta(carrier: MutableMapping[str, object]) -> bool:
    return any(name.startswith(META) for name in carrier) and ASSERTION not in carrier


def read_handover(call: object, *, jkt: str, now: float) -> Handover:
    """Read the hand-over of a verified call, and check that it is for this agent's key.

    Raises:
        ConfigurationError: `call` isn't a verified call.
        InvalidAssertionError: the call has no hand-over, or one for another key or an expired one.
    """
    from agent_identity.verify.result import VerifiedCall  # noqa: PLC0415 - loaded only for hand-overs

    if not isinstance(call, VerifiedCall):
        raise ConfigurationError(
            "not_verified",
            f"accept was given a {type(call).__name__}, not a verified call",
            remedy="pass the result of Verifier.verify_request or verify_call",
        )
    handover = call.handover
    if handover is None:
        raise InvalidAssertionError("handover_missing", "the call carries no hand-over")
    leaf = handover.grants[0]
    if leaf.jkt != jkt:
        raise InvalidAssertionError(
            "handover_key",
            "the hand-over is for another key, not this agent's",
            remedy="publish identity.public_jwk again; replicas behind one address need the same configured [agent] key",
        )
    if now >= leaf.exp:
        raise InvalidAssertionError("expired", "the hand-over has expired")
    return handover
