# SPDX-License-Identifier: MIT
# The numbers of threads of native libraries: what is limited is given back, unless a user has set
# another number; what a library refuses is noted, and stops nothing.
#
# The libraries here are small ones of the tests' own. The real ones are in
# tests/process/test_native_libraries.py.

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine import native_threads
from aioktask.engine.machine.native_threads import NativeLibrary, NativeThreads, Scope


class Library:
    """A library with one number of threads."""

    def __init__(self, threads: int = 4, *, refuses: bool = False) -> None:
        self.threads = threads
        self.refuses = refuses

    def count(self) -> int:
        return self.threads

    def limit(self, threads: int) -> None:
        if self.refuses:
            raise OSError("not now")
        self.threads = threads

    def known(self, name: str = "a library", scope: Scope = Scope.PROCESS) -> NativeLibrary:
        return NativeLibrary(name, "", scope, self.count, self.limit)


def with_libraries(
    monkeypatch: pytest.MonkeyPatch, *found: NativeLibrary, complete: bool = True
) -> NativeThreads:
    natives = NativeThreads()
    monkeypatch.setattr(native_threads, "_loaded_libraries", lambda: (found, complete))
    assert natives.look() is bool(found)
    return natives


def test_a_thread_s_number_is_limited_and_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    own, process = Library(), Library()
    natives = with_libraries(monkeypatch, own.known("own", Scope.THREAD), process.known())
    held: dict[tuple[str, str], int] = {}
    natives.limit_thread(held)
    natives.limit_thread(held)  # as when a further library was loaded
    assert (own.threads, process.threads) == (1, 4)
    natives.release_thread(held)
    assert (own.threads, held) == (4, {})


@pytest.mark.parametrize("scope", [Scope.THREAD, Scope.PROCESS])
def test_what_a_library_refuses_is_noted_and_the_others_are_limited(
    monkeypatch: pytest.MonkeyPatch, scope: Scope
) -> None:
    refusing, other = Library(refuses=True), Library()
    natives = with_libraries(
        monkeypatch, refusing.known("refusing", scope), other.known("other", scope)
    )
    natives.limit_thread({})
    natives.limit_process()
    assert (refusing.threads, other.threads) == (4, 1)
    assert natives.refused == {"refusing": "OSError('not now')"}


def test_what_is_left_alone_is_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    natives = with_libraries(monkeypatch, library.known(scope=Scope.LEFT))
    natives.limit_thread({})
    natives.limit_process()
    assert library.threads == 4
    assert not natives.limits_process


def test_the_process_s_number_is_not_given_back_when_a_helper_was_about_to_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Library()
    natives = with_libraries(monkeypatch, library.known())
    natives.limit_process()
    seen = natives.services
    natives.limit_process()  # between the look at the helpers and what follows from it
    natives.give_back(seen)
    assert library.threads == 1
    natives.give_back(natives.services)
    assert library.threads == 4
    assert not natives.limits_process


def test_a_fork_s_child_has_the_number_back_though_another_thread_was_at_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = Library()
    natives = with_libraries(monkeypatch, library.known())
    natives.limit_process()
    with natives._lock:  # by a thread that the child does not have
        natives.forget()
    assert library.threads == 4


@given(
    first=st.integers(1, 8),
    steps=st.lists(st.sampled_from(["limit", "give back"]) | st.integers(2, 8)),
)
def test_given_back_the_number_is_the_last_that_anybody_else_set(
    first: int, steps: Sequence[object]
) -> None:
    library, natives = Library(first), NativeThreads()
    with pytest.MonkeyPatch.context() as monkeypatch:
        found = (library.known(),)
        monkeypatch.setattr(native_threads, "_loaded_libraries", lambda: (found, True))
        natives.look()
    theirs = first
    for step in steps:
        if step == "limit":
            natives.limit_process()
        elif step == "give back":
            natives.give_back(natives.services)
        elif isinstance(step, int):
            theirs = library.threads = step
            natives.give_back(natives.services)  # while it is limited a later 1 is not told apart
    natives.give_back(natives.services)
    assert library.threads == theirs
    assert not natives.limits_process


def test_it_looks_anew_only_when_modules_came(monkeypatch: pytest.MonkeyPatch) -> None:
    natives = with_libraries(monkeypatch)
    looks = []

    def look() -> tuple[tuple[NativeLibrary, ...], bool]:
        looks.append(1)
        return (Library().known(),), True

    monkeypatch.setattr(native_threads, "_loaded_libraries", look)
    assert not natives.look()
    assert not looks
    monkeypatch.setitem(sys.modules, "a_module_that_came", ModuleType("a_module_that_came"))
    assert natives.look()
    assert not natives.look()
    assert len(looks) == 1


def test_what_is_being_imported_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("threadpoolctl", minversion="3.8", reason="it finds the libraries")
    numexpr = ModuleType("numexpr")
    numexpr.__spec__ = spec = ModuleSpec("numexpr", None)
    monkeypatch.setitem(sys.modules, "numexpr", numexpr)
    spec._initializing = True  # type: ignore[attr-defined]
    natives = NativeThreads()
    natives.look()
    assert "numexpr" not in {each.name for each in natives.libraries}
    spec._initializing = False  # type: ignore[attr-defined]
    numexpr.set_num_threads = lambda threads: None  # type: ignore[attr-defined]
    assert natives.look()
    assert "numexpr" in {each.name for each in natives.libraries}


def test_without_threadpoolctl_there_is_nothing_to_limit_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    natives = NativeThreads()
    assert not natives.look()
    assert natives.why_not == "threadpoolctl is not installed"
    monkeypatch.setattr(native_threads, "_loaded_libraries", lambda: pytest.fail("asked again"))
    assert not natives.look()
    assert natives.libraries == ()


def test_of_an_early_threadpoolctl_no_limit_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 3.8 a limit to MKL was one to the whole process."""
    early = ModuleType("threadpoolctl")
    early.__version__ = "3.6.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "threadpoolctl", early)
    natives = NativeThreads()
    assert not natives.look()
    assert natives.why_not == "threadpoolctl 3.6.0 is installed, and 3.8 is needed"


def test_a_look_that_fails_is_noted_and_made_again_when_there_are_more_modules(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_memory() -> None:
        raise MemoryError

    natives = NativeThreads()
    monkeypatch.setattr(native_threads, "_loaded_libraries", no_memory)
    assert not natives.look()
    assert (natives.failed, natives.why_not) == ("MemoryError()", "")
    monkeypatch.setattr(native_threads, "_loaded_libraries", lambda: ((Library().known(),), True))
    assert not natives.look()  # nothing has changed since
    monkeypatch.setitem(sys.modules, "aioktask_one_more", ModuleType("aioktask_one_more"))
    assert natives.look()
    assert natives.failed == ""
