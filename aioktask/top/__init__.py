# SPDX-License-Identifier: MIT
"""`python -m aioktask top`: jobs of other processes in the terminal, or as plain lines."""
