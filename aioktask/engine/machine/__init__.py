# SPDX-License-Identifier: MIT
"""What the computer has and what the operating system allows. It knows no jobs."""
