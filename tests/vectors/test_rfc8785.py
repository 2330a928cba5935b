# SPDX-License-Identifier: Apache-2.0
"""RFC 8785 §3.2.2, §3.2.3 and the numbers of appendix B."""

from __future__ import annotations

import struct

import pytest

from agent_identity import jose
from agent_identity.canonical import encode
from agent_identity.errors import DeniedError


def test_the_example_of_3_2_2():
    given = rb"""{
       "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
       "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
       "literals": [null, true, false]
     }"""
    assert (
        encode(jose.loads(given))
        == (
            '{"literals":[null,true,false],'
            '"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
            '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
        ).encode()
    )


def test_the_example_of_3_2_3_is_sorted_by_utf_16_code_units():
    given = rb"""{
       "\u20ac": "Euro Sign",
       "\r": "Carriage Return",
       "\ufb33": "Hebrew Letter Dalet With Dagesh",
       "1": "One",
       "\ud83d\ude00": "Emoji: Grinning Face",
       "\u0080": "Control",
       "\u00f6": "Latin Small Letter O With Diaeresis"
     }"""
    assert [*jose.loads_object(encode(jose.loads(given))).values()] == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


@pytest.mark.parametrize(
    ("bits", "written"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_the_numbers_of_appendix_b(bits, written):
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert encode(number) == written.encode()


@pytest.mark.parametrize(
    "bits",
    [
        *("7fffffffffffffff", "7ff0000000000000"),
        # written as integers beyond ±(2^53 - 1), which ours refuses (DESIGN section 12)
        *(
            "4340000000000000",
            "c340000000000000",
            "4430000000000000",
            "444b1ae4d6e2ef4e",
            "444b1ae4d6e2ef4f",
        ),
    ],
)
def test_the_numbers_of_appendix_b_that_have_no_digest_here(bits):
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    with pytest.raises(DeniedError) as caught:
        encode(number)
    assert caught.value.code == "undigestible_argument"
