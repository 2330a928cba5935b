# SPDX-License-Identifier: Apache-2.0
"""`agent-identity authority`: serve an authority, for one machine or an organisation."""
