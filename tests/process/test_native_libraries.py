# SPDX-License-Identifier: MIT
# Real native libraries, in processes of their own: in a helper their teams have one member, and
# what the program's threads have is as it was.
#
# OpenMP is gcc's, with a team that really runs; OMP_NUM_THREADS says how many it has elsewhere, so
# that the tests do not depend on the number of CPUs.

from __future__ import annotations

import ctypes
import importlib.util

import pytest

from tests.process.child import Child

THREADS = "3"

ENVIRON = {
    "OMP_NUM_THREADS": THREADS,
    "NUMBA_NUM_THREADS": THREADS,
    "AIOKTASK_MAX_THREADS": "2",
}


def missing(package: str) -> bool:
    return importlib.util.find_spec(package) is None


def no_openmp() -> bool:
    try:
        ctypes.CDLL("libgomp.so.1")
    except OSError:
        return True
    return False


pytestmark = pytest.mark.skipif(missing("threadpoolctl"), reason="threadpoolctl is not installed")
needs_openmp = pytest.mark.skipif(no_openmp(), reason="the system has no libgomp.so.1")


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(missing(package), reason=f"{package} is not installed")


OPENMP = """
import ctypes, types

def load_openmp():
    global gomp
    gomp = ctypes.CDLL("libgomp.so.1")
    sys.modules["uses_openmp"] = types.ModuleType("uses_openmp")  # as what brings a library

MEMBER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

def team():
    \"\"\"How many threads run a parallel region that this thread begins.\"\"\"
    members = []
    gomp.GOMP_parallel(MEMBER(lambda data: members.append(threading.get_ident())), None, 0, 0)
    return len(members)
"""

ASK = """
def in_chunk(ask):
    \"\"\"What a chunk finds, on a helper.\"\"\"
    found = []
    coordinator.submit(Job(lambda start, stop: found.append(ask()), 1)).result()
    return found[0]

def in_call(ask):
    return asyncio.run(aioktask.run(ask))

def in_thread(ask):
    found = []
    thread = threading.Thread(target=lambda: found.append(ask()))
    thread.start()
    thread.join()
    return found[0]

coordinator = Coordinator()
"""


def judge(*program: str, **environ: str) -> None:
    """Run a program, which asserts."""
    with Child(OPENMP, ASK, *program, environ={**ENVIRON, **environ}) as child:
        assert child.end() == 0, child.stderr()
        assert child.stderr() == ""


@needs_openmp
def test_an_openmp_team_has_one_member_in_a_helper_and_all_elsewhere() -> None:
    judge(
        """
        load_openmp()
        assert team() == 3
        assert in_chunk(team) == 1
        assert in_call(team) == 1
        assert team() == 3
        assert in_thread(team) == 3
        """
    )


@needs_openmp
def test_the_thread_that_takes_part_in_its_own_job_keeps_its_team() -> None:
    judge(
        """
        load_openmp()
        found = set()
        main = threading.get_ident()
        def chunk(start, stop):
            found.add((threading.get_ident() == main, team()))
            until(lambda: len(found) == 2)
        run_multithreaded_sync(Job(chunk, 8, chunk=1))
        assert found == {(True, 3), (False, 1)}, found
        """
    )


@needs_openmp
@pytest.mark.parametrize("mode", ["True", "'process'"])
def test_a_library_that_a_chunk_loads_is_limited_while_the_job_goes_on(mode: str) -> None:
    judge(
        f"aioktask.configure(limit_native_threads={mode})",
        """
        limited = threading.Event()
        def chunk(start, stop):
            if start == 0:
                load_openmp()
                assert team() == 3
            elif not limited.is_set():
                time.sleep(0.001)
                if team() == 1:
                    limited.set()
        coordinator.submit(Job(chunk, 10_000, chunk=1, max_threads=1)).result()
        assert limited.is_set()
        assert team() == 3
        """,
    )


@needs_openmp
def test_a_library_that_is_loaded_between_short_calls_is_limited_in_them() -> None:
    """They pass without turns, on helpers that are there already."""
    judge(
        """
        async def main():
            for _ in range(200):
                await aioktask.run(len, "")
            load_openmp()
            deadline = time.monotonic() + 60
            while await aioktask.run(team) != 1:
                assert time.monotonic() < deadline
            for _ in range(200):
                assert await aioktask.run(team) == 1
        asyncio.run(main())
        assert team() == 3
        """
    )


@needs_openmp
def test_it_is_off_by_a_variable() -> None:
    judge("load_openmp()", "assert in_chunk(team) == 3", AIOKTASK_LIMIT_NATIVE_THREADS="0")


@needs_openmp
def test_turned_off_and_on_again_helpers_that_are_there_follow() -> None:
    judge(
        """
        load_openmp()
        assert in_chunk(team) == 1
        helper = in_chunk(threading.get_native_id)
        for mode, expected in ((False, 3), (True, 1), ("process", 1), (False, 3)):
            aioktask.configure(limit_native_threads=mode)
            assert in_chunk(team) == expected
            assert in_call(team) == expected
        assert in_chunk(threading.get_native_id) == helper
        """
    )


@needs_openmp
def test_without_threadpoolctl_helpers_have_the_library_s_own_teams() -> None:
    judge("sys.modules['threadpoolctl'] = None; load_openmp()", "assert in_chunk(team) == 3")


@needs_openmp
def test_what_an_initializer_loads_is_limited_in_every_helper() -> None:
    judge(
        """
        aioktask.configure(initializer=load_openmp)
        found = {}
        def chunk(start, stop):
            found[threading.get_ident()] = team()
            until(lambda: len(found) == 2)
        coordinator.submit(Job(chunk, 8, chunk=1)).result()
        assert list(found.values()) == [1, 1]
        """
    )


BLAS = """
import numpy, threadpoolctl
numpy.ones(1)
[blas] = [
    each for each in threadpoolctl.ThreadpoolController().lib_controllers
    if each.internal_api == "openblas" and each.threading_layer == "pthreads"
]
blas_threads = blas.get_num_threads
blas.set_num_threads(3)
blas.clear_controlling_thread()  # else it is the main thread's alone from now on
assert blas_threads() == 3
"""


def no_openblas() -> bool:
    if missing("threadpoolctl"):
        return True
    import threadpoolctl

    return not any(
        each.get("internal_api") == "openblas" and each["threading_layer"] == "pthreads"
        for each in threadpoolctl.threadpool_info()
    )


needs_openblas = pytest.mark.skipif(
    no_openblas(), reason="NumPy's BLAS is no OpenBLAS with threads of its own"
)


@needs_openblas
def test_openblas_which_has_one_team_for_the_process_is_left_alone() -> None:
    judge(BLAS, "assert blas_threads() == 3; assert in_chunk(blas_threads) == 3")


@needs_openblas
def test_asked_for_the_process_it_is_limited_while_helpers_work_and_given_back() -> None:
    judge(
        BLAS,
        """
        aioktask.configure(limit_native_threads="process")
        for _ in range(2):
            assert blas_threads() == 3
            assert in_chunk(blas_threads) == 1
            assert in_call(blas_threads) == 1
            assert blas_threads() == 1  # for a moment, between jobs
            until(lambda: blas_threads() == 3)
        """,
    )


@needs_openblas
def test_a_number_that_the_program_sets_meanwhile_is_the_one_that_stays() -> None:
    judge(
        BLAS,
        """
        aioktask.configure(limit_native_threads="process")
        natives = aioktask.engine.api.process.current_pool().natives
        assert in_chunk(blas_threads) == 1
        threadpoolctl.threadpool_limits(2)
        until(lambda: not natives.limits_process)
        assert blas_threads() == 2
        """,
    )


@needs_openblas
def test_given_back_when_the_tunable_is_reset_while_a_job_runs() -> None:
    judge(
        BLAS,
        """
        aioktask.configure(limit_native_threads="process")
        inside, goes_on = threading.Event(), threading.Event()
        def chunk(start, stop):
            assert blas_threads() == 1
            inside.set()
            assert goes_on.wait(60)
        handle = coordinator.submit(Job(chunk, 1))
        assert inside.wait(60)
        aioktask.configure(limit_native_threads=True)
        until(lambda: blas_threads() == 3)
        goes_on.set()
        handle.result()
        """,
    )


@needs_openblas
def test_a_fork_s_child_starts_with_the_number_of_the_process() -> None:
    judge(
        BLAS,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        aioktask.configure(limit_native_threads="process")
        goes_on = threading.Event()
        inside = threading.Event()
        def chunk(start, stop):
            inside.set()
            assert goes_on.wait(60)
        handle = coordinator.submit(Job(chunk, 1))
        assert inside.wait(60)
        assert blas_threads() == 1
        child = os.fork()
        if not child:
            signal.alarm(15)
            coordinator = Coordinator()
            ok = blas_threads() == 3 and in_chunk(blas_threads) == 1
            os._exit(0 if ok else 1)
        assert os.waitpid(child, 0)[1] == 0
        goes_on.set()
        handle.result()
        """,
    )


@needs("torch")
def test_torch_has_one_thread_in_a_helper_whatever_was_set_for_the_program() -> None:
    judge(
        """
        import torch
        torch.set_num_threads(2)
        torch.ones(10).sum()
        assert in_chunk(torch.get_num_threads) == 1
        assert torch.get_num_threads() == 2
        assert in_thread(torch.get_num_threads) == 2
        """
    )


@needs("numba")
def test_numba_s_parallel_functions_have_one_thread_in_a_helper_once_they_began() -> None:
    judge(
        """
        import numba, numpy
        assert in_chunk(lambda: 1) == 1
        try:
            numba.threading_layer()
        except ValueError:
            pass
        else:
            raise AssertionError("asking for it has begun it")
        @numba.njit(parallel=True)
        def doubled(values):
            for i in numba.prange(values.size):
                values[i] *= 2
        doubled(numpy.ones(10))
        until(lambda: in_chunk(numba.get_num_threads) == 1)
        assert numba.get_num_threads() == 3
        """
    )


@needs("cv2")
def test_opencv_is_limited_for_the_process_alone_and_given_back() -> None:
    judge(
        """
        import cv2
        cv2.setNumThreads(3)
        assert in_chunk(cv2.getNumThreads) == 3
        aioktask.configure(limit_native_threads="process")
        assert in_chunk(cv2.getNumThreads) == 1
        until(lambda: cv2.getNumThreads() == 3)
        """
    )


@needs("numexpr")
def test_numexpr_is_left_alone() -> None:
    judge(
        """
        import numexpr
        numexpr.set_num_threads(2)
        aioktask.configure(limit_native_threads="process")
        assert in_chunk(numexpr.get_num_threads) == 2
        """
    )
