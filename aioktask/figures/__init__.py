# SPDX-License-Identifier: MIT
"""Figures: measured in turns, told in tables, drawn. It knows nothing of what is measured."""
