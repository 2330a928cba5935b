# SPDX-License-Identifier: Apache-2.0
"""HashiCorp Vault and OpenBao: secrets, and signatures by the transit engine."""
