# SPDX-License-Identifier: Apache-2.0
"""`doctor --resource`: get a credential for one resource exactly as a call would, show what it is, and give it back.

The token is never shown. The ledger records the credential and its revocation, as it does for a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from agent_identity.cli.doctor.local import Finding, failure_of, ok, warning
from agent_identity.cli.tokens import binding_of, check_may_act, session_for
from agent_identity.errors import AgentIdentityError
from agent_identity.identity import AgentIdentity
from agent_identity.provenance.records import CREDENTIAL_ACQUIRED, CREDENTIAL_REVOKED

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from agent_identity.cli.tokens import TokenRequest
    from agent_identity.config import Configuration
    from agent_identity.provenance.records import Record
    from agent_identity.values import JSON

_PURPOSE: Final = "a dry run of doctor"


class Trial(NamedTuple):
    """The findings of a dry run, and what was obtained; None if nothing was."""

    findings: list[Finding]
    obtained: dict[str, JSON] | None


def try_resource(
    path: Path, state_dir: Path | None, configuration: Configuration, request: TokenRequest
) -> Trial:
    """Get a credential and give it back. A refusal is a finding, with the issuer's own words."""
    name = f"resource {request.resource}"
    try:
        check_may_act(request, configuration)
        with AgentIdentity.from_config(path, state_dir=state_dir) as identity:
            with session_for(identity, request, _PURPOSE) as session:
                session.credential(request.resource)
            records = identity.ledger.session_records(session.id)
    except AgentIdentityError as error:
        return Trial([failure_of(name, error)], None)
    acquired = _body(records, CREDENTIAL_ACQUIRED)
    if acquired is None:
        return Trial([ok(name, "the delegation is the whole credential; no token is needed")], None)
    obtained = {
        "resource": request.resource,
        "issuer": acquired["issuer"],
        "source": acquired["source"],
        "token_type": acquired["token_type"],
        "expires_at": acquired["expires_at"],
        "lifetime": _lifetime(records),
        "scopes": acquired["scope"],
        "binding": binding_of(request.resource, configuration) if acquired["bound"] else None,
        "opaque": acquired["opaque"],
        "revoked": (_body(records, CREDENTIAL_REVOKED) or {}).get("revoked") is True,
    }
    return Trial([*_describe(name, obtained, _body(records, CREDENTIAL_REVOKED))], obtained)


def _body(records: list[Record], kind: str) -> Mapping[str, JSON] | None:
    return next((record.body for record in records if record.kind == kind), None)


def _lifetime(records: list[Record]) -> int:
    """The seconds between the record of a credential and its end."""
    acquired = next(record for record in records if record.kind == CREDENTIAL_ACQUIRED)
    ends = acquired.body["expires_at"]
    assert isinstance(ends, int)  # noqa: S101 - as we recorded it
    return ends - int(acquired.at.timestamp())


def _describe(
    name: str, obtained: Mapping[str, JSON], revoked: Mapping[str, JSON] | None
) -> list[Finding]:
    scopes = obtained["scopes"]
    listed = " ".join(map(str, scopes)) if isinstance(scopes, list) and scopes else "none"
    bound = {"dpop": "the agent's key", "mtls": "the client's certificate", None: "nothing"}
    binding = obtained["binding"]
    what = (
        f"{obtained['issuer'] or obtained['source']} gave a credential: type {obtained['token_type']}, for {obtained['lifetime']} s, "
        f"scopes {listed}, bound to {bound[binding if isinstance(binding, str) else None]}"
    )
    findings = [ok(name, what)]
    if obtained["opaque"]:
        findings.append(
            warning(
                name,
                "the token is opaque, and nothing showed for which audience it is",
                "let the issuer issue JWTs, or give this client introspection; without, the audience stays unverified",
            )
        )
    if obtained["revoked"]:
        findings.append(ok(name, "given back: the issuer revoked it"))
    else:
        code = None if revoked is None else revoked["code"]
        findings.append(
            warning(
                name,
                f"it was not revoked ({code or 'no_revocation'}), and stays valid until it expires",
                "if the issuer offers revocation (RFC 7009), let this client use it",
            )
        )
    return findings
