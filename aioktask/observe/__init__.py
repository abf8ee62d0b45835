# SPDX-License-Identifier: MIT
"""What a program sees of its jobs."""
