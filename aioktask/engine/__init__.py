# SPDX-License-Identifier: MIT
# The engine: knows nothing of NumPy, memory or servers. Each module imports only those above it in
# this list: topology, plan, claims, tuning, schedule, limits, priority, reduction, undo, events, run,
# helpers, wakeup, coordinator. All up to and including `undo` are pure.
