# SPDX-License-Identifier: MIT
# The standard library's own tests of thread pool executors, on the executor of a coordinator. They
# come from the interpreter's `test` package, where it has them: distributions put them into a
# package of their own, libpython3.N-testsuite on Debian.

from __future__ import annotations

import importlib
import unittest
from typing import Any

import pytest

import aioktask
from aioktask import Coordinator

OF_THREADS = "looks at the executor's threads, and helpers are nobody's"
OF_THE_ARGUMENT = "there is no max_workers: the cap of the coordinator is in its place"
OF_THE_OTHER = "makes an executor of the standard library, whatever it is told to test"
OF_LUCK = "counts on a call that begins before its shutdown cancels: nobody promises one"
OF_EXIT = "makes its executor in another process, by its name; tests/process tests the exit"
OF_INITIALIZERS = "there is no initializer: helpers serve everybody"

LEFT_OUT = {
    "test_cancel_futures": OF_LUCK,
    "test_cancel_futures_wait_false": OF_THE_OTHER,
    "test_context_manager_shutdown": OF_THE_OTHER,
    "test_default_workers": OF_THE_ARGUMENT,
    "test_del_shutdown": OF_THE_OTHER,
    "test_hang_gh83386": OF_EXIT,
    "test_hang_gh94440": OF_THE_OTHER,
    "test_hang_global_shutdown_lock": OF_THE_OTHER,
    "test_idle_thread_reuse": OF_THREADS,
    "test_initializer": OF_INITIALIZERS,
    "test_interpreter_shutdown": OF_EXIT,
    "test_max_workers_negative": OF_THE_ARGUMENT,
    "test_process_fork_from_a_threadpool": OF_THE_OTHER,
    "test_saturation": OF_THREADS,
    "test_shutdown_no_wait": OF_THE_OTHER,
    "test_submit_after_interpreter_shutdown": OF_EXIT,
    "test_thread_names_assigned": OF_THE_OTHER,
    "test_thread_names_default": OF_THE_OTHER,
    "test_threads_terminate": OF_THREADS,
}

# Where Python 3.12 and later have the classes; 3.11 has all in one module.
SUITES = {
    "ThreadPoolExecutorTest": "test_thread_pool",
    "ThreadPoolWaitTests": "test_wait",
    "AsCompletedTests": "test_as_completed",
    "ThreadPoolShutdownTest": "test_shutdown",
    "InitializerMixin": "test_init",
}

PACKAGE = "test.test_concurrent_futures"
WORKERS = 5


class OnHelpers(unittest.TestCase):
    """What the tests are given in place of a thread pool with five threads."""

    worker_count = WORKERS

    def setUp(self) -> None:
        aioktask.set_max_threads(WORKERS)
        self._coordinators: list[Coordinator] = []
        self.executor = self.executor_type(WORKERS)

    def executor_type(self, max_workers: int | None = None) -> Any:
        coordinator = Coordinator(max_workers)
        self._coordinators.append(coordinator)
        return coordinator.executor()

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        self.executor = None
        for coordinator in self._coordinators:
            with coordinator:
                pass
        aioktask.set_max_threads(None)


def _classes() -> dict[str, type[unittest.TestCase]]:
    try:
        package = importlib.import_module(PACKAGE)
        found = {
            name: getattr(
                importlib.import_module(f"{PACKAGE}.{module}")
                if hasattr(package, "__path__")
                else package,
                name,
            )
            for name, module in SUITES.items()
        }
    except (ImportError, unittest.SkipTest) as error:
        pytest.skip(f"this Python has not its own tests: {error}", allow_module_level=True)
    return {
        f"Test{name}": type(f"Test{name}", (OnHelpers, theirs), {"__module__": __name__})
        for name, theirs in found.items()
    }


_found = _classes()
for _name, _class in _found.items():
    for _test in [each for each in dir(_class) if each in LEFT_OUT]:
        setattr(_class, _test, unittest.skip(LEFT_OUT[_test])(getattr(_class, _test)))
    globals()[_name] = _class


def test_what_is_left_out_is_named_and_most_is_not() -> None:
    tests = {name for each in _found.values() for name in dir(each) if name.startswith("test_")}
    assert len(tests - LEFT_OUT.keys()) > len(tests) / 2
