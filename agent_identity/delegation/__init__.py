# SPDX-License-Identifier: Apache-2.0
"""Delegation on the wire: signed grants, the chain they form, and the assertion of one call.

`grant` mints and reads one hop, `chain` verifies a chain of them, `assertion` signs and reads the statement about one call,
`carriers` has the headers for both. There is no I/O here: keys, times and identifiers are arguments.
"""
