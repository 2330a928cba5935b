# SPDX-License-Identifier: Apache-2.0
"""Where flows meet the world: the one HTTP door, single flight, and the credential that signs requests.

This package alone imports httpx, and only when something is first asked.
"""
