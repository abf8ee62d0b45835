# SPDX-License-Identifier: MIT
# Functions for workers, in a module that they can import.

from __future__ import annotations

import errno
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path

import numpy as np

from aioktask import current_chunk
from aioktask.cluster import worker
from tests.support.gates import until


def count(start: int, stop: int, data: object) -> int:
    return stop - start


def sines(start: int, stop: int, data: object) -> float:
    """A sum whose last bits depend on the order of the additions."""
    return float(np.sin(np.arange(start, stop) * 0.1).sum())


def add(a: float, b: float) -> float:
    return a + b


def pid(start: int, stop: int, data: object) -> set[int]:
    time.sleep(0.001)
    return {os.getpid()}


def pid_once_two_came(folder: str, start: int, stop: int, data: object) -> set[int]:
    """`pid`, which the first process that comes keeps back until a second one has come too.

    Args:
        folder: An empty one, where processes leave their names.
    """
    (Path(folder) / str(os.getpid())).touch()
    until(lambda: len(os.listdir(folder)) >= 2)
    return {os.getpid()}


def union(a: set[int], b: set[int]) -> set[int]:
    return a | b


def fail(start: int, stop: int, data: object) -> None:
    raise OSError(28, "planted")


class OddError(Exception):
    """One that cannot be made again from what it pickles."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("odd")


def fail_oddly(start: int, stop: int, data: object) -> None:
    raise OddError(1, 2)


def fail_in_setup() -> None:
    raise ValueError("no data here")


def attach() -> shared_memory.SharedMemory:
    return shared_memory.SharedMemory(name=os.environ["AIOKTASK_TEST_BLOCK"])


def detach(block: shared_memory.SharedMemory) -> None:
    block.close()


def fill(start: int, stop: int, block: shared_memory.SharedMemory) -> None:
    assert block.buf is not None
    block.buf[start:stop] = b"x" * (stop - start)


def leave_child_and_die(start: int, stop: int, folder: str) -> None:
    """Leave a child behind that holds all that was open, and die."""
    child = subprocess.Popen(["sleep", "60"], close_fds=False)
    with open(os.path.join(folder, "child"), "w") as file:
        file.write(str(child.pid))
    os.kill(os.getpid(), signal.SIGKILL)


def until_cancelled(start: int, stop: int, folder: str) -> None:
    """Chunks that say that they are there, and stay until they are not wanted."""
    open(os.path.join(folder, f"{os.getpid()}-{threading.get_ident()}"), "w").close()
    while True:
        current_chunk().check_cancelled()
        time.sleep(0.001)


def undo_fails(start: int, stop: int, data: object) -> None:
    raise ValueError("stays")


def undo_waits(start: int, stop: int, folder: str) -> None:
    """An undo that says that it is there, and stays until the file "hold" is gone."""
    open(os.path.join(folder, "undoing"), "w").close()
    while os.path.exists(os.path.join(folder, "hold")):
        time.sleep(0.001)


def say_done(start: int, stop: int, folder: str) -> None:
    time.sleep(0.001)
    open(os.path.join(folder, "done"), "w").close()


def exit_late(start: int, stop: int, data: object) -> None:
    """The process ends by itself, with units done, and undoes nothing."""
    time.sleep(0.0005 * (stop - start))
    if start > 500:
        os._exit(3)


def count_with(large: bytes, start: int, stop: int, data: object) -> int:
    return stop - start


def stay(folder: str, start: int, stop: int, data: object) -> None:
    """A chunk that says that it is there, and ends when the file "hold" is gone, or by a cancel."""
    open(os.path.join(folder, f"{os.getpid()}-{threading.get_ident()}"), "w").close()
    while os.path.exists(os.path.join(folder, "hold")):
        current_chunk().check_cancelled()
        time.sleep(0.001)


def second_waits(folder: str) -> None:
    """A setup that returns at once in the first worker, and in others when "hold" is gone."""
    try:
        open(os.path.join(folder, "first"), "x").close()
    except FileExistsError:
        open(os.path.join(folder, f"waits-{os.getpid()}"), "w").close()
        while os.path.exists(os.path.join(folder, "hold")):
            time.sleep(0.001)


def say_closed(folder: str, data: object) -> None:
    open(os.path.join(folder, f"closed-{os.getpid()}"), "w").close()


def fail_late(start: int, stop: int, data: object) -> None:
    time.sleep(0.001)
    if start >= 500:
        raise OSError(28, "planted")


def leave(start: int, stop: int, data: object) -> None:
    os._exit(3)


def lock_of_it(start: int, stop: int, data: object) -> object:
    return threading.Lock()


def first(one: object, other: object) -> object:
    return one


def undo_nothing(start: int, stop: int, data: object) -> None:
    pass


def stop_in_a_message(folder: str) -> None:
    """Say half a message, and stop this process, the first one that comes here; others go on."""
    try:
        open(os.path.join(folder, "first"), "x").close()
    except FileExistsError:
        return
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame.f_code.co_name != "serve":
        assert frame.f_back is not None
        frame = frame.f_back
    connection, sending = frame.f_locals["connection"], frame.f_locals["sending"]
    with sending:
        os.write(connection.fileno(), struct.pack("!i", 1000) + b"half")
        with open(os.path.join(folder, "stopped"), "w") as file:
            file.write(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)


def stop_in_a_chunk(folder: str, start: int, stop: int, data: object) -> None:
    stop_in_a_message(folder)


def count_beside_a_waiting_one(folder: str, start: int, stop: int, data: object) -> int:
    """Counts once another worker waits in `second_waits`."""
    while not any(name.startswith("waits-") for name in os.listdir(folder)):
        time.sleep(0.001)
    return stop - start


def no_memory() -> None:
    raise MemoryError("planted")


class Unreadable:
    """A message that cannot be read."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return no_memory, ()


def say_what_cannot_be_read(start: int, stop: int, data: object) -> None:
    for station in list(worker._stations):
        station.tell(Unreadable())  # type: ignore[arg-type]


def fail_to_say(folder: str, start: int, stop: int, data: object) -> None:
    """Have the next message of this process not be said, for want of memory, say."""
    frame = sys._current_frames()[threading.main_thread().ident or 0]
    while frame.f_code.co_name != "serve":
        assert frame.f_back is not None
        frame = frame.f_back
    connection = frame.f_locals["connection"]

    def send(message: object) -> None:
        raise OSError(errno.ENOMEM, "planted")

    with open(os.path.join(folder, "began"), "w") as file:
        file.write(str(os.getpid()))
    connection.send = send
