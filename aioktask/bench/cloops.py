# SPDX-License-Identifier: MIT
# The C loop of cloops.c, compiled when it is asked for and called through ctypes.
#
# `ctypes.CDLL` lets go of the GIL for the call. The compiled file is gone when this returns; what
# is loaded stays in memory.
"""C + pthreads loops over memory."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from enum import IntEnum
from pathlib import Path
from typing import Protocol

__all__ = ["CLoop", "Loop", "NoCompiler", "compile_loop"]

SOURCE = Path(__file__).with_name("cloops.c")
OPTIONS = ("-O2", "-shared", "-fPIC", "-pthread")


class Loop(IntEnum):
    """What the threads of a loop do with each chunk: see cloops.c."""

    POPULATE = 0
    CLEAR = 1
    COPY = 2
    RELEASE = 3
    FILL = 4
    ALLOCATE = 5
    PIN = 6
    LOCK = 7


class CLoop(Protocol):
    """Run a loop over memory from `address` on, or over a file; raises `OSError`."""

    def __call__(
        self,
        loop: Loop,
        address: int,
        nbytes: int,
        chunk: int,
        threads: int,
        source: int = 0,
        file: int = -1,
    ) -> None: ...


class NoCompiler(Exception):  # noqa: N818 - it is a fact about the machine, not an error
    """There is no C compiler, or it cannot make this; the message says which."""


def compile_loop() -> CLoop:
    """The loop, ready to be called.

    Raises:
        NoCompiler: It cannot be made here.
    """
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc"))), None)
    if compiler is None:
        raise NoCompiler("no compiler")
    with tempfile.TemporaryDirectory(prefix="aioktask-") as directory:
        target = Path(directory) / "cloops.so"
        command = [compiler, *OPTIONS, "-o", str(target), str(SOURCE)]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            words = made.stderr.strip().splitlines() or [f"exit status {made.returncode}"]
            raise NoCompiler(f"{compiler} failed: {words[0]}")
        function = ctypes.CDLL(str(target)).aioktask_loop
    function.argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_int,
    )
    function.restype = ctypes.c_int

    def run(
        loop: Loop,
        address: int,
        nbytes: int,
        chunk: int,
        threads: int,
        source: int = 0,
        file: int = -1,
    ) -> None:
        error = function(loop, address, nbytes, chunk, threads, source, file)
        if error:
            raise OSError(error, f"{os.strerror(error)}: the C loop {loop.name} of {nbytes} bytes")

    return run
