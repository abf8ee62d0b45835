# SPDX-License-Identifier: MIT
# `np.errstate` reaches helpers: since NumPy 2 in the context, before it by this.
"""The floating-point error state of the thread that submits a job, for its helpers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from aioktask.engine.inherited import Inherited, inherit

# NumPy before 2 keeps the state in the thread, as a list: buffer size, mask and function to call.
_get: Any = getattr(np, "geterrobj", None)
_set: Any = getattr(np, "seterrobj", None)


def capture() -> Inherited | None:
    """The state that is set in this thread; None where it is NumPy's own."""
    state = _get()
    return None if state == _DEFAULT else functools.partial(_in_state, state)


@contextmanager
def _in_state(state: object) -> Iterator[None]:
    before = _get()
    _set(state)
    try:
        yield
    finally:
        _set(before)


if _get is not None:
    _numpy: Any = np
    _DEFAULT: object = [_numpy.UFUNC_BUFSIZE_DEFAULT, _numpy.ERR_DEFAULT, None]
    inherit(capture)
