# SPDX-License-Identifier: Apache-2.0
"""OAuth 2 as a client: issuers, their metadata and keys, token requests and responses."""
