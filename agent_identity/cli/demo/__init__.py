# SPDX-License-Identifier: Apache-2.0
"""`agent-identity demo` and `billing`: a complete run of an agent, and the service that it calls."""
