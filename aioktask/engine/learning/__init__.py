# SPDX-License-Identifier: MIT
# The room of learning: from how fast stretches were to the chunk size, the number of threads and
# the length of a stretch, in one run and for the next one.
#
# Everything here is pure: measurements in, decisions out. The caller holds the engine's lock.
"""Chunk sizes and numbers of threads from throughput."""
