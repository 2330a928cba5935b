# SPDX-License-Identifier: Apache-2.0
"""Two verifiers that share no line agree on whatever the right keys sign: both take it, or both refuse it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_identity.errors import RevokedError, VerificationError

from .cases_accepted import BODY, BOOKS, URL, request_claims
from .generate import DEFAULTS
from .independent import RefusedError, judge, normalised
from .minting import (
    ANCHOR,
    ARGS,
    BILLING,
    CALL_ID,
    DROP,
    LOCAL,
    MAIL,
    NOW,
    TYPE,
    actor_of,
    agent,
    asserted,
    call_claims,
    chain,
    dumped,
    holder,
    key,
    sha256,
    signed,
)
from .test_conformance import ours

Case = dict[str, Any]


def verdict(verify: Callable[[Case], Case], case: Case) -> Case | None:
    """What a verifier says of a case, None where it refuses. Whatever else it raises is a fault."""
    try:
        return verify(case)
    except (VerificationError, RevokedError, RefusedError):
        return None


def agree(case: Case) -> bool:
    """Whether both take it; fails where only one does."""
    found = verdict(ours, case)
    assert verdict(judge, case) == found
    return found is not None


# -- what to change ------------------------------------------------------------------------------------------------------

TEXTS = st.sampled_from(["", "x", " ", "ä", "\u0000", "😀", "\ufeff", "a b", "a  b", "*"])
NUMBERS = st.sampled_from(
    [0, 1, -1, 2, 7, 8, 1.0, 0.5, 1e17, 1e300, 2**53 - 1, 2**53, -(2**53), NOW, NOW + 1, True]
)
JUNK: Any = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(TEXTS, inner, max_size=2)),
    max_leaves=3,
)
TIMES = st.integers(-100, 100).map(lambda offset: NOW + offset)
SCOPES = st.sampled_from(["journal:write", "invoices:read", "journal:write x", "", DROP])
AUDIENCES = st.sets(st.sampled_from([BILLING, MAIL, LOCAL, f"{BILLING}/"])).map(sorted)
WORDS = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "const": st.sampled_from([1, 1.0, "inv-1", "i", True, None, [1], {"a": 1}]),
            "enum": st.lists(st.sampled_from([1, 2, 5.0, "inv-1", "inv", True]), max_size=3),
            "minimum": st.sampled_from([0, 1, 1.0, 4.5]),
            "maximum": st.sampled_from([1, 5, 5.0, 1e18]),
            "prefix": st.sampled_from(["i", "inv-", "in"]),
        },
    ),
    JUNK,
)
OBJECTS = st.fixed_dictionaries(
    {"type": st.sampled_from([TYPE, TYPE, TYPE, "x"])},
    optional={
        "tools": st.lists(st.sampled_from(["book_total", "cancel"]), max_size=2),
        "resources": st.lists(st.sampled_from([BILLING, MAIL]), max_size=2),
        "arguments": st.dictionaries(st.sampled_from(["n", "m"]), WORDS, max_size=2),
    },
)
DETAILS = st.one_of(
    st.just(DROP), st.just([BOOKS]), st.lists(OBJECTS, min_size=1, max_size=3), JUNK
)
GRANT: dict[str, Any] = {
    **dict.fromkeys(("iat", "nbf", "exp"), TIMES),
    **dict.fromkeys(("del_depth", "del_max_depth"), st.integers(0, 9)),
    **dict.fromkeys(("iss", "sub_iss"), st.sampled_from([ANCHOR, agent(0), agent(1)])),
    "aud": AUDIENCES,
    "scope": SCOPES,
    "task": TEXTS,
    "evidence": st.sampled_from([DROP, "issuer", "agent", "asserted"]),
    "sub_profile": st.sampled_from(["user", "trigger"]),
    "sub_token_hash": TEXTS,
    "authorization_details": DETAILS,
    "jti": TEXTS,
    "act": st.dictionaries(
        st.sampled_from(["iss", "sub", "sub_profile", "instance", "act", "x"]), JUNK, max_size=2
    ).map(lambda other: actor_of(chain(2), **other)),
}
NAMES = st.sampled_from(
    [*GRANT, "sub", "purpose", "txn", "cnf", "par_hash", "x", "del_depth", "aud", "scope"]
)
ANY = st.one_of(st.just(DROP), JUNK)


@st.composite
def grant_changes(draw: Any) -> dict[str, Any]:
    """One claim or two, most of them with a value that could be right."""
    names = draw(st.lists(NAMES, min_size=1, max_size=2, unique=True))
    return {
        name: draw(GRANT[name] if name in GRANT and draw(st.integers(0, 3)) else ANY)
        for name in names
    }


HEADERS = st.dictionaries(
    st.sampled_from(["typ", "alg", "kid", "jwk", "crit", "x"]),
    st.one_of(ANY, st.sampled_from(["ES256", "Ed25519", "EdDSA", holder(0).jwk, holder(1).jwk])),
    max_size=1,
)
ASSERTION = st.dictionaries(
    st.sampled_from([*call_claims(chain(1)), "use", "ath", "htm", "approval", "x"]),
    st.one_of(ANY, TIMES, st.sampled_from([BILLING, agent(1), f"{CALL_ID}.r2", f"{CALL_ID}.r02"])),
    max_size=1,
)


NOTHING: Any = st.just({})
CHANGES = st.one_of(
    st.tuples(grant_changes(), NOTHING, NOTHING, NOTHING),
    st.tuples(NOTHING, grant_changes(), NOTHING, NOTHING),
    st.tuples(NOTHING, grant_changes(), NOTHING, NOTHING),
    st.tuples(NOTHING, NOTHING, st.dictionaries(st.integers(0, 1), HEADERS), NOTHING),
    st.tuples(NOTHING, NOTHING, NOTHING, ASSERTION),
    st.tuples(grant_changes(), grant_changes(), NOTHING, NOTHING),
)
"""At one place, mostly, so that nothing else is wrong: claims of the root, of its child, headers, claims of the assertion."""


@settings(max_examples=400)
@given(changes=CHANGES)
@example(changes=({}, {}, {}, {}))
def test_both_agree_on_chains_and_assertions_with_any_claim_changed(changes: Any) -> None:
    root, child, heads, claims = changes
    made = chain(2, (0, root), (1, child), header=heads)
    said = call_claims(chain(2)) | {"grant_hash": sha256(made.compacts[0])} | claims
    agree(DEFAULTS | {"chain": made.compacts, "assertion": asserted(made, said)})


@settings(max_examples=200)
@given(
    above=DETAILS,
    below=DETAILS,
    args=st.dictionaries(
        st.sampled_from(["n", "m"]),
        st.sampled_from([0, 1, 1.0, 4.5, 5, "inv-1", "i", True, None, [1], {"a": 1.0}]),
        max_size=2,
    ),
    inherited=st.booleans(),
)
@example(above=[BOOKS], below=[BOOKS], args=ARGS, inherited=True)
def test_both_agree_on_which_details_cover_which_and_on_the_calls_that_they_take(
    above: Any, below: Any, args: Case, inherited: bool
) -> None:
    changes = {"authorization_details": above}, {"authorization_details": below}
    made = chain(2, (0, changes[0]), *([] if inherited else [(1, changes[1])]))
    case = {
        "chain": made.compacts,
        "args": args,
        "assertion": asserted(made, call_claims(made, args)),
    }
    agree(DEFAULTS | case)


SEGMENTS = [
    "",
    "a",
    "b",
    ".",
    "..",
    "...",
    "%2e",
    "%41",
    "%2F",
    "%2f",
    "%7E",
    "%",
    "%zz",
    "ä",
    "a;b",
    "\\",
]
URLS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(
        [
            *(
                BILLING,
                "HTTPS://billing.Example:443",
                f"{BILLING}:",
                f"{BILLING}:0443",
                "http://[::1]:80",
            ),
            f"{BILLING}:65536",
            "https://u@billing.example",
            "x:",
            "",
        ]
    ),
    st.lists(st.sampled_from(SEGMENTS), max_size=4).map(
        lambda each: "".join(f"/{s}" for s in each)
    ),
    st.sampled_from(["", "?", "?a", "?a?b", "?a=%2f&b", "?\\", "? "]),
    st.sampled_from(["", "#", "#a?b", '#"', "#\\"]),
)


@settings(max_examples=300)
@given(url=URLS)
@example(url=URL)
def test_both_agree_on_the_url_of_a_request(url: str) -> None:
    """It is signed as one of them normalises it, so that the other has to come to the same."""
    made = chain(1)
    try:
        htu = normalised(url)
    except RefusedError:
        htu = url.partition("?")[0] or "x"
    query = url.partition("#")[0].partition("?")[2]
    claims = {"htu": htu, "htq": sha256(query) if query else DROP}
    assertion = asserted(made, request_claims(made) | claims)
    headers = [["Agent-Assertion", assertion], ["Agent-Delegation", made.compacts[0]]]
    seen = {"method": "POST", "url": url, "headers": headers, "body": BODY}
    agree(DEFAULTS | {"door": "request", "request": seen})


MEMBERS = [
    b'"jti":"x",',
    b'"x":1,',
    b'"j\\u0074i":"x",',
    b'"scope":"a",',
    b'"task":"t",',
    b'"task":"\\ud800",',
]
NUMBERS_ = [
    b"7.0",
    b"7e0",
    b"70e-1",
    b"-0",
    b"07",
    b"+7",
    b"7.",
    b"NaN",
    b"0x7",
    b"7" * 16,
    b"7" * 33,
]


@settings(max_examples=300)
@given(
    text=st.text('{}[]",:0123456789.eE+-ntrufalsx\\/ \t\n', max_size=30).map(str.encode)
    | st.binary(max_size=8),
    place=st.floats(0, 1),
    member=st.sampled_from([b"", *MEMBERS]),
    number=st.sampled_from([b"7", *NUMBERS_]),
    spaced=st.booleans(),
)
def test_both_agree_on_the_json_of_claims(
    text: bytes, place: float, member: bytes, number: bytes, spaced: bool
) -> None:
    """Something is written into good claims: at any place, a further member, another number, other white space."""
    made = chain(1)
    body = dumped(made.leaf).replace(b"{", b"{" + member, 1)
    body = body.replace(b'"del_max_depth":7', b'"del_max_depth":' + number)
    body = body.replace(b",", b",\n ") if spaced else body
    if member == b"" and number == b"7":
        at = int(place * len(body))
        body = body[:at] + text + body[at:]
    by = key("anchor")
    grant = signed(by, {"typ": "agent-grant+jwt", "alg": "ES256", "kid": by.jkt}, body)
    other = made.remade(grant)
    agree(DEFAULTS | {"chain": other.compacts, "assertion": asserted(other, call_claims(other))})


def test_both_take_the_good_ones() -> None:
    """Else two verifiers that refuse everything would agree."""
    made = chain(1)
    headers = [
        ["Agent-Assertion", asserted(made, request_claims(made))],
        ["Agent-Delegation", made.compacts[0]],
    ]
    seen = {"method": "POST", "url": URL, "headers": headers, "body": BODY}
    assert agree(DEFAULTS)
    assert agree(DEFAULTS | {"door": "request", "request": seen})
