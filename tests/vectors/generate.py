# SPDX-License-Identifier: Apache-2.0
"""Writes the conformance kit in `delegation/`: `python -m tests.vectors.generate`, from the root of a checkout.

The kit is published: what is there stays as it is, byte for byte, and a case that is added makes no other one change.
test_conformance.py holds that making it again gives the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .cases_accepted import accepted
from .cases_refused import refused
from .minting import (
    ANCHOR,
    ARGS,
    BILLING,
    NOW,
    TOOL,
    asserted,
    b64,
    call_claims,
    chain,
    key,
    published,
)

FOLDER = Path(__file__).with_name("delegation")

GOOD = chain(2)
DEFAULTS: dict[str, Any] = {
    "now": NOW,
    "skew": 30,
    "audience": BILLING,
    "anchors": [{"issuer": ANCHOR, "jwks": published(key("anchor")), "evidence": "issuer"}],
    "evidence": "issuer",
    "scopes": ["journal:write"],
    "allow": [],
    "door": "call",
    "chain": GOOD.compacts,
    "assertion": asserted(GOOD, call_claims(GOOD)),
    "tool": TOOL,
    "args": ARGS,
}

KEYS = (
    *("anchor", "anchor-ed", "partner", "operator", "stranger", "stranger-ed"),
    *(f"agent-{number}" for number in range(9)),
)

ABOUT = {
    "accepted": "What every verifier takes.",
    "caps": "Size and number, before any signature is checked.",
    "json": "JSON that two parsers would read differently.",
    "jose": "The JOSE header and the form of a compact JWS.",
    "key": "Whose key it is, and whether it signed.",
    "claims": "Claims that are missing, unknown, or of another type.",
    "anchor": "Who may sign hop 0, and how far that anchor is believed.",
    "link": "How hops hang together.",
    "constant": "What is the same in every hop.",
    "actor": "Who acts, as `act` says it.",
    "narrow": "A hop is never wider than the one above.",
    "details": "authorization_details: the vocabulary, and calls that they don't allow.",
    "time": "Lifetimes; the skew counts once.",
    "audience": "The one service that it is for.",
    "assertion": "The assertion belongs to the leaf.",
    "door": "Each door takes its own kind of assertion.",
    "call": "Tool and arguments are those that were signed.",
    "request": "Method, URL, query, body and headers are those that were signed.",
    "token": "The access token beside the chain.",
    "scope": "The scopes that the service needs.",
    "revocation": "What was taken back.",
    "replay": "Used once.",
    "handover": "A chain that is handed over with a call.",
}


def files() -> dict[str, str]:
    """The text of each file of the kit by its name."""
    sorted_by_rule: dict[str, list[dict[str, Any]]] = {rule: [] for rule in ABOUT}
    for case in accepted():
        sorted_by_rule["accepted"].append(case)
    for case in refused():
        sorted_by_rule[case["rule"]].append(case)
    texts = {
        ("accepted.json" if rule == "accepted" else f"refused-{rule}.json"): written(
            {"about": ABOUT[rule], "defaults": DEFAULTS, "cases": [*map(less, cases)]}
        )
        for rule, cases in sorted_by_rule.items()
    }
    return texts | {"keys.json": written(keys())}


def less(case: dict[str, Any]) -> dict[str, Any]:
    """Without what is as in every case. Compared as it is written, since 1 and true are one in Python."""
    return {
        name: value
        for name, value in case.items()
        if name not in DEFAULTS or written(value) != written(DEFAULTS[name])
    }


def keys() -> dict[str, Any]:
    about = (
        "d of each private test key is SHA-256 of 'agent_identity test key: <name>'. "
        "Anybody can sign with them: trust them nowhere."
    )
    found = {
        name: {"public_jwk": made.jwk, "thumbprint": made.jkt, "d": b64(made.secret)}
        for name, made in ((name, key(name)) for name in KEYS)
    }
    return {"about": about, "keys": found}


def written(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
