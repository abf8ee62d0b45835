# SPDX-License-Identifier: MIT
# The engine: knows nothing of NumPy, memory or servers. README.md beside this file is its map.
