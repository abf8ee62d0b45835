# SPDX-License-Identifier: MIT
"""The live page: an ASGI application that shows and changes the jobs of a user's processes."""
