# SPDX-License-Identifier: Apache-2.0
"""Keys: signing, certificates, sealing."""
