# SPDX-License-Identifier: Apache-2.0
"""Credential sources: one module for each way to get a credential."""
