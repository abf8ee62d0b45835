# SPDX-License-Identifier: MIT
# Packages that only parts of the library need: which extra brings each, and in which words one that
# cannot be imported is told. Whoever needs one imports it in a `try` of its own, and raises what is
# made here; so all of them name who asks, what is missing, why, and what to do.
"""Packages that are optional."""

from __future__ import annotations

__all__ = ["EXTRAS", "missing_package"]

# By the name under which a package is installed.
EXTRAS = {
    "aiohttp": "aiohttp",
    "cloudpickle": "processes",
    "distributed": "dask",
    "idna": "server",
    "joblib": "joblib",
    "matplotlib": "plot",
    "opentelemetry-api": "metrics",
    "prometheus-client": "metrics",
    "rich": "progress",
    "starlette": "server",
    "textual": "top",
    "tqdm": "progress",
    "uvicorn": "server",
}


def missing_package(what: str, package: str, error: ImportError) -> ImportError:
    """What to raise where an optional package cannot be imported.

    Args:
        what: The part of the library that was asked for.
        package: One of `EXTRAS`.
        error: What the import raised: it may be there, and too old or broken.

    >>> print(missing_package("rich_bar()", "rich", ImportError("No module named 'rich'")))
    rich_bar() needs rich (No module named 'rich'): pip install 'aioktask[progress]'
    """
    text = f"{what} needs {package} ({error}): pip install 'aioktask[{EXTRAS[package]}]'"
    kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
    return kind(text, name=error.name, path=error.path)
