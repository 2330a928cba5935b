# SPDX-License-Identifier: Apache-2.0
"""Ways to get a credential, one file each, every one a flow that holds no client and does no I/O itself.

`oauth` is a token request, `metadata` what an issuer says of itself, `answers` how it is read, `proofs` what a client proves;
`registration` how an agent instance becomes a client, `hop0` gets the first
grant of a chain, `token_exchange` trades the principal's token for one that the resource accepts; `cache` says what makes
two requests the same. Sources don't import one another.
"""
