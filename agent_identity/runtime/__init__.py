# SPDX-License-Identifier: Apache-2.0
"""What a session consists of: its lifetime, what is current, what it acquires, hands over and gives back."""
