# SPDX-License-Identifier: Apache-2.0
"""RFC 9449 §4.2, §6.1 and §7.1: a DPoP proof, the thumbprint of its key, and the hash of an access token."""

from __future__ import annotations

import hashlib

from agent_identity import jose
from agent_identity.keys.signing import thumbprint
from agent_identity.values import b64url

PROOF = (
    "eyJ0eXAiOiJkcG9wK2p3dCIsImFsZyI6IkVTMjU2IiwiandrIjp7Imt0eSI6IkVDIiwieCI6Imw4dEZyaHgtMzR0VjNoUklDUkRZOXpDa0RscEJo"
    "RjQyVVFVZldWQVdCRnMiLCJ5IjoiOVZFNGpmX09rX282NHpiVFRsY3VOSmFqSG10NnY5VERWclUwQ2R2R1JEQSIsImNydiI6IlAtMjU2In19"
    ".eyJqdGkiOiItQndDM0VTYzZhY2MybFRjIiwiaHRtIjoiUE9TVCIsImh0dSI6Imh0dHBzOi8vc2VydmVyLmV4YW1wbGUuY29tL3Rva2VuIiwi"
    "aWF0IjoxNTYyMjYyNjE2fQ"
    ".2-GxA6T8lP4vfrg8v-FdWP0A0zdrj8igiMLvqRMUvwnQg4PtFLbdLXiOSsX0x7NVY-FNyJK70nfbV37xRZT3Lg"
)


def test_the_proof_verifies_under_the_key_that_it_carries():
    jwk = jose.unverified(PROOF, max_header=jose.MAX_HEADER).header["jwk"]
    assert isinstance(jwk, dict)
    _, payload = jose.verify(PROOF, [jwk], algorithms={"ES256"}, typ="dpop+jwt")
    assert jose.loads(payload) == {
        "jti": "-BwC3ESc6acc2lTc",
        "htm": "POST",
        "htu": "https://server.example.com/token",
        "iat": 1562262616,
    }
    assert thumbprint(jwk) == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_the_hash_of_the_access_token():
    token = b"Kz~8mXK1EalYznwH-LC-1fBAo.4Ljp~zsPE_NeO.gxU"
    assert b64url(hashlib.sha256(token).digest()) == "fUHyO2r2Z3DZ53EsNrWBb0xWXoaNy59IiKCAqksmQEo"
