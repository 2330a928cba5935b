# SPDX-License-Identifier: Apache-2.0
"""Delegation on the wire: signed grants, the chain they form, and the assertion of one call.

`grant` says which claims one hop carries and mints them, `chain` what makes hops a chain, `assertion` what an agent says
of one call, `carriers` how both travel. All of it is pure: keys, times and identifiers are arguments.
"""
