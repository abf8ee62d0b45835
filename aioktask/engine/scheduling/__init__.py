# SPDX-License-Identifier: MIT
# The room of shares and priorities: which job a free thread serves, how many threads there may be,
# and at which nice a job is served while others wait for it.
#
# Everything here is pure: state in, decision out, without a thread, a lock, a loop or a system
# call. The caller holds the engine's lock.
"""Who gets a thread, and at which nice."""
