# SPDX-License-Identifier: MIT
# How a package comes by its public names: when one of them is asked for, not while it is imported.
#
# A thread that imports a module first holds the module's lock and then waits for the package that
# the module is in. Another one, which imports the package, would wait for the module if the package
# imported it; Python ends such a circle by giving one of them a module that is half there. So no
# package here imports anything that it contains, and its ``__getattr__`` is `load`.
#
# The first name brings all of them: what a job needs is there before one is run, and a loop does
# not stand still for an import.
"""Public names that are imported when they are asked for."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Mapping
from typing import Any

# Tells what happens to jobs. Named here, since everybody who could run one came by a public name.
_LISTENER = "aioktask.observe.events"
# Limits native libraries in helpers, where it is installed. Those do not import it themselves.
_LIMITER = "threadpoolctl"


def from_above(module: str, name: str) -> Any:
    """A name of a module that stands above whoever asks, and is imported for this call alone.

    For what a function does with things of an optional package, in a layer of their own: it is
    neither imported nor needed where no such thing is given.

    Args:
        module: Its full name.
        name: Of what is in it.
    """
    return getattr(importlib.import_module(module), name)


def load(package: str, names: Mapping[str, str], name: str) -> object:
    """Bring all public names into a package, and return the one that was asked for.

    Args:
        package: Its full name.
        names: Its public names, each with the module that has it; of a module, its own full name.
        name: What was asked for. A module of the package that comes along is found too.

    Raises:
        AttributeError: There is no such name.
    """
    # Another thread may be at the first package still. The interpreter takes it out of sys.modules
    # for a moment as it ends that, and whoever imports what is in it then gets a KeyError.
    importlib.import_module(package.partition(".")[0])
    found = vars(sys.modules[package])
    if not name.startswith("_"):
        for each, module in names.items():
            value = importlib.import_module(module)
            if module == f"{package}.{each}":  # a package, and its own names
                for inner in value.__all__:
                    getattr(value, inner)
                found[each] = value
            else:
                found[each] = getattr(value, each)
        importlib.import_module(_LISTENER)
        with contextlib.suppress(ImportError):
            importlib.import_module(_LIMITER)
        if name in found:
            return found[name]
    raise AttributeError(f"module {package!r} has no attribute {name!r}")
