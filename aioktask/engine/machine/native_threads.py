# SPDX-License-Identifier: MIT
# The threads that native libraries (BLAS, OpenMP and their like) start by themselves, and how many.
#
# Beside helpers such a team oversubscribes the CPUs: each helper would bring one of its own, or all
# of them wait for the only one. Some libraries keep their number for each thread, and a helper
# limits its own without anybody noticing: OpenMP, MKL and numba. Of others there is one number for
# the process, which the user's threads have too: OpenBLAS with threads of its own, BLIS, OpenCV.
# Those are changed only where the user asks for that, and given back.
#
# Guarantees: no library is loaded for this, and nothing here raises. What a user has changed in the
# meantime is left as it is when a number is given back.
#
# Relies on threadpoolctl, 3.8 or later, whose calls for OpenMP and MKL are about the calling
# thread, and which `aioktask.lazy` brings where it is installed; without it nothing is limited.
# Libraries come with modules, so the process is looked through anew when there are more of those.
"""The threads of native libraries."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from time import perf_counter_ns
from typing import Any

from aioktask.engine.machine.imported import imported

__all__ = ["NativeLibrary", "NativeThreads", "Scope"]

LEAST_VERSION = (3, 8)

# A look takes up to this part of the keeper's time where modules are imported all the time.
MOST_OF_THE_TIME = 20

# The modules with which numba has chosen how its parallel functions run, and begun it.
_NUMBA_LAYERS = ("omppool", "tbbpool", "workqueue")


class Scope(Enum):
    """What a library's number of threads is about."""

    THREAD = "the calling thread"
    PROCESS = "the process"
    LEFT = "left alone"


@dataclass(frozen=True, slots=True)
class NativeLibrary:
    """A library that is loaded, and starts threads.

    Attributes:
        name: As people call it, with the file's or the version's where there may be several.
        path: Of its file; empty where it is known by its module.
        scope: What its number of threads is about.
        count: The number as the calling thread has it.
        limit: Sets the number, for what `scope` says.
        note: Why it is left alone.
    """

    name: str
    path: str
    scope: Scope
    count: Callable[[], int]
    limit: Callable[[int], object]
    note: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others, also when it is found again."""
        return self.name, self.path


class NativeThreads:
    """The native libraries of this process, and the limits that are set to them.

    Attributes:
        libraries: Those that were found; replaced as a whole.
        why_not: Why none can be limited; empty where they can.
        failed: What the last look for libraries raised; empty where it came to its end.
        refused: By name, what a library said to its limit last.
        services: How often a helper had the process limited: see `give_back`.
    """

    def __init__(self) -> None:
        self.libraries: tuple[NativeLibrary, ...] = ()
        self.why_not = ""
        self.failed = ""
        self.refused: dict[str, str] = {}
        self.services = 0
        self._in_threads: tuple[NativeLibrary, ...] = ()
        self._of_process: tuple[NativeLibrary, ...] = ()
        self._modules = 0  # how many there were at the last look
        self._not_before = 0  # when the next look may be that nobody waits for
        self._looking = threading.Lock()  # guards the looks; helpers and the keeper wait for it
        # Guards the process's numbers, and `_before`. Helpers and the keeper wait for it, for as
        # long as the libraries take to set a number.
        self._lock = threading.Lock()
        self._before: dict[tuple[str, str], int] = {}  # of libraries limited for the process

    # What there is: on the keeper and on helpers.

    def look(self, *, at_once: bool = True) -> bool:
        """Look for libraries that came with modules since the last look; whether there are any.

        Args:
            at_once: Whether a helper is about to need it; else it is left for later where looks
                took much time lately.
        """
        if self.why_not or len(sys.modules) == self._modules:
            return False
        if not at_once and perf_counter_ns() < self._not_before:
            return False
        with self._looking:
            return self._look()

    def _look(self) -> bool:
        modules, began = len(sys.modules), perf_counter_ns()
        try:
            found, complete = _loaded_libraries()
        except _UnusableError as error:
            self.why_not = str(error)
            return False
        except Exception as error:  # also a warning that the program has made an error
            self.failed = repr(error)
            self._modules = modules  # it may pass: the next look is when there are more
            return False
        self.failed = ""
        # What is being imported at this moment is looked at again.
        self._modules = modules if complete else 0
        now = perf_counter_ns()
        self._not_before = now + MOST_OF_THE_TIME * (now - began)
        if {each.key for each in found} == {each.key for each in self.libraries}:
            return False
        self.libraries = found
        self._in_threads = tuple(each for each in found if each.scope is Scope.THREAD)
        self._of_process = tuple(each for each in found if each.scope is Scope.PROCESS)
        return True

    # A thread's own: on that thread.

    def limit_thread(self, held: dict[tuple[str, str], int]) -> None:
        """Limit what is about the calling thread to one thread.

        Args:
            held: Of this thread: what the numbers were before, which is noted here.
        """
        for each in self._in_threads:
            try:
                before = each.count()
                each.limit(1)
                held.setdefault(each.key, before)
            except Exception as error:
                self.refused[each.name] = repr(error)

    def release_thread(self, held: dict[tuple[str, str], int]) -> None:
        """Undo `limit_thread`, where nobody has set another number meanwhile."""
        for each in self._in_threads:
            self._set_back(each, held.pop(each.key, None))

    # The process's: on helpers and the keeper.

    @property
    def limits_process(self) -> bool:
        """Whether a number of the process is limited now."""
        return bool(self._before)

    def limit_process(self) -> None:
        """Limit what is about the process to one thread, for a helper that is about to serve."""
        with self._lock:
            self.services += 1
            for each in self._of_process:
                if each.key in self._before:
                    continue
                try:
                    before = each.count()
                    each.limit(1)
                    # threadpoolctl does nothing while another thread holds a limit of its own.
                    if before != 1 and each.count() == 1:
                        self._before[each.key] = before
                except Exception as error:
                    self.refused[each.name] = repr(error)

    def give_back(self, services: int) -> None:
        """Undo `limit_process`, where nobody has set another number meanwhile.

        Args:
            services: What `services` was when the helpers were last seen to be idle, or earlier:
                nothing is given back if a helper was about to serve since.
        """
        with self._lock:
            if self.services == services:
                self._give_back()

    def forget(self) -> None:
        """In a fork's child, where no helper is: give back without a lock, which may be held.

        OpenCV's number stays: another thread of the parent may hold the lock that it is set under.
        """
        self._give_back(but="OpenCV")

    def _give_back(self, but: str = "") -> None:
        for each in self._of_process:
            before = self._before.pop(each.key, None)
            if each.name != but:
                self._set_back(each, before)

    def _set_back(self, library: NativeLibrary, before: int | None) -> None:
        try:
            if before is not None and library.count() == 1:
                library.limit(before)
        except Exception as error:
            self.refused[library.name] = repr(error)


class _UnusableError(Exception):
    """What limits libraries is not there."""


def _loaded_libraries() -> tuple[tuple[NativeLibrary, ...], bool]:
    """The libraries that are loaded, and whether none of their modules is being imported.

    Raises:
        _UnusableError: Without threadpoolctl, or a late enough one.
    """
    # Not imported here, on one of the engine's threads: what is called in an import (an audit hook)
    # may fork, and in the child nobody would ever get past the import that its parent was at.
    threadpoolctl = imported("threadpoolctl")
    if threadpoolctl is None:
        raise _UnusableError("threadpoolctl is not installed")
    if getattr(threadpoolctl.__spec__, "_initializing", False):
        return (), False
    version = threadpoolctl.__version__
    if tuple(map(int, version.split(".")[:2])) < LEAST_VERSION:
        least = ".".join(map(str, LEAST_VERSION))
        raise _UnusableError(f"threadpoolctl {version} is installed, and {least} is needed")
    found: list[NativeLibrary] = []
    complete = True
    # Modules first. A thread's first question to torch has that set the OpenMP number of the thread
    # to torch's own, so what limits OpenMP comes after it.
    for name, of_module in _OF_MODULES.items():
        module = imported(name)
        if module is None:
            continue
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            complete = False
            continue
        for library in of_module(module):
            found.append(library)
            complete = complete and library.note != _NUMBA_BEGINS
    controllers = threadpoolctl.ThreadpoolController().lib_controllers
    return (*found, *map(_of_controller, controllers)), complete


def _of_controller(controller: Any) -> NativeLibrary:
    """What threadpoolctl knows how to limit."""
    api = controller.internal_api
    version = f" {controller.version}" if controller.version else ""
    if api == "openmp":
        name = f"OpenMP ({controller.prefix})"
    else:
        name = f"{_NAMES.get(api, api)}{version}"
    by_thread = (
        (api == "openmp" and controller.prefix != "vcomp")  # Microsoft's keeps one for the process
        or api == "mkl"
        or (api == "openblas" and controller.threading_layer == "openmp")
    )
    clear = getattr(type(controller), "clear_controlling_thread", None)

    def limit(threads: int) -> None:
        controller.set_num_threads(threads)
        # Else threadpoolctl would ignore, as long as this thread lives, what others ask of it.
        if clear is not None and not by_thread:
            clear()

    scope = Scope.THREAD if by_thread else Scope.PROCESS
    return NativeLibrary(name, controller.filepath, scope, controller.get_num_threads, limit)


_NAMES = {"openblas": "OpenBLAS", "mkl": "MKL", "blis": "BLIS", "flexiblas": "FlexiBLAS"}


# Those that are known by their modules: each yields a library, or none.


def _torch(torch: Any) -> Iterator[NativeLibrary]:
    """Torch, which takes the team of the OpenMP that it came with.

    Its own call to set the number would change that of threads to come, too. With another backend
    than OpenMP there is no number of a thread.
    """
    count = torch.get_num_threads
    if "parallel backend: OpenMP" in torch.__config__.parallel_info():
        yield NativeLibrary("torch", "", Scope.THREAD, count, lambda threads: None)
    else:
        note = "its backend has one number for the process: call torch.set_num_threads"
        yield NativeLibrary("torch", "", Scope.LEFT, count, lambda threads: None, note)


def _numba(numba: Any) -> Iterator[NativeLibrary]:
    """What runs functions compiled with ``parallel=True``, if any has run: asking starts it."""
    try:
        numba.threading_layer()
    except ValueError:
        if any(imported(f"numba.np.ufunc.{layer}") for layer in _NUMBA_LAYERS):
            note = _NUMBA_BEGINS
        else:
            note = "no parallel function has run yet"
        yield NativeLibrary("numba", "", Scope.LEFT, lambda: 0, lambda threads: None, note)
    else:
        count, limit = numba.get_num_threads, numba.set_num_threads
        # As a library of its own, since only now helpers have something to limit.
        yield NativeLibrary("numba", numba.threading_layer(), Scope.THREAD, count, limit)


_NUMBA_BEGINS = "its first parallel function begins"


def _opencv(cv2: Any) -> Iterator[NativeLibrary]:
    yield NativeLibrary("OpenCV", "", Scope.PROCESS, cv2.getNumThreads, cv2.setNumThreads)


def _numexpr(numexpr: Any) -> Iterator[NativeLibrary]:
    """numexpr, which hangs where its number is set while another thread evaluates (2.14)."""
    note = "to set its number while another thread evaluates can hang: call it at the beginning"

    def count() -> int:
        return int(getattr(numexpr, "get_num_threads", lambda: numexpr.nthreads)())

    yield NativeLibrary("numexpr", "", Scope.LEFT, count, numexpr.set_num_threads, note)


_OF_MODULES: dict[str, Callable[[Any], Iterator[NativeLibrary]]] = {
    "torch": _torch,
    "numba": _numba,
    "cv2": _opencv,
    "numexpr": _numexpr,
}
