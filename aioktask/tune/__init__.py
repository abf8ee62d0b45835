# SPDX-License-Identifier: MIT
"""What a user asks about the machine and a function of their own: `info`, `plan` and `tune`."""
