# SPDX-License-Identifier: Apache-2.0
"""The ledger in a SQLite file."""
