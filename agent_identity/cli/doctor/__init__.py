# SPDX-License-Identifier: Apache-2.0
"""`agent-identity doctor`: check an installation and its configuration."""
