# SPDX-License-Identifier: Apache-2.0
"""Records of what happened on whose behalf, which can be verified years later.

`records` and `chain` define the entries and their hash chain, `ledger` and `sqlite` store them, `pseudonyms` has the keys of the
people in them, and `trace` answers "who triggered this?".
"""
