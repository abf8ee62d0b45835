# SPDX-License-Identifier: MIT
# Sphinx reads nothing from the network, so the documentation builds anywhere; every example in it
# that can run does run (`make doctest`).

from importlib.metadata import version as version_of

project = "aioktask"
author = "the aioktask authors"
project_copyright = "2026, the aioktask authors"
version = release = version_of("aioktask")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "aioktask"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# In the docstrings a single backquote is code, as it is in Markdown.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Cancellation"]
napoleon_use_ivar = True

# `make doctest` runs the docstrings through pytest; here it is the pages' turn.
doctest_test_doctest_blocks = ""
