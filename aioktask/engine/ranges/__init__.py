# SPDX-License-Identifier: MIT
# The room of ranges: how a job's range is cut into chunks, what of it is free, how the values of a
# reduce combine, and what is undone after a failure.
#
# Everything here is pure, and knows of nothing but the job's description.
"""How a range is cut, claimed, combined and undone."""
