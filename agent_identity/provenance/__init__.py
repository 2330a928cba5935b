# SPDX-License-Identifier: Apache-2.0
"""What happened, on whose behalf, kept so that it can be proven years later.

`records` says what an entry is and how entries are chained, `ledger` where they are kept, `subjects` whose key opens
what in them names a person, `trace` how they answer "who triggered this?".
"""
