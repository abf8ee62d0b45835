# SPDX-License-Identifier: MIT
# The engine: knows nothing of NumPy, memory or servers. Each module imports only those before it
# here: topology, plan, claims, tuning, schedule, limits, priority, waits, reduction, undo
# (decisions, without threads), events, frame, helpers, accounts, run, state, pool, process, wakeup,
# interrupt (threads and loops), submission, coordinator, running (what a program calls).
