# SPDX-License-Identifier: Apache-2.0
"""What a call costs, in multiples of one bare Ed25519 signature; `nox -s bench` runs all of it."""
