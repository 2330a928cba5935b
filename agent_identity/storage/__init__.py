# SPDX-License-Identifier: Apache-2.0
"""How this library opens and writes its databases."""
