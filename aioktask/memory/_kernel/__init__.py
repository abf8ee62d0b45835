# SPDX-License-Identifier: MIT
"""What the kernel is asked and told about memory, call by call: it knows no jobs."""
