# SPDX-License-Identifier: MIT
# Slots: who may have how many, as a property of the facts; and several that share a real file, in
# one process, which is the same to the kernel's locks as several processes.

from __future__ import annotations

import errno
import os
import random
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask.engine.machine import slots as module
from aioktask.engine.machine.shares import EPOCH_NS, Member, divide, neighbours
from aioktask.engine.machine.slots import Slots, slots_path
from tests.support.open_files import open_files

# Rounds of looks until all have their shares: all are seen, what is too much is given, it is taken.
ROUNDS = 3

CPU_SETS = st.frozensets(st.integers(0, 9), min_size=1)
WISHES = st.lists(st.integers(1, 12), min_size=1, max_size=8)
EPOCHS = st.integers(0, 10**6)


def cpus(count: int) -> frozenset[int]:
    return frozenset(range(count))


def members_of(count: int, wishes: list[int]) -> tuple[Member, ...]:
    return tuple(Member(row, cpus(count), wish) for row, wish in enumerate(wishes))


def shares(members: tuple[Member, ...], epoch: int) -> tuple[int, ...]:
    return tuple(len(given) for given in divide(members, epoch))


@st.composite
def busy(draw: st.DrawFn) -> tuple[Member, ...]:
    rows = draw(st.lists(st.integers(0, 50), unique=True, min_size=1, max_size=8))
    return tuple(Member(row, draw(CPU_SETS), draw(st.integers(1, 12))) for row in rows)


# The shares.


@given(count=st.integers(1, 40), processes=st.integers(1, 12), epoch=EPOCHS)
def test_who_wants_all_has_an_equal_share_but_for_one(
    count: int, processes: int, epoch: int
) -> None:
    given_ = shares(members_of(count, [count] * processes), epoch)
    assert sum(given_) == count
    assert {*given_} <= {count // processes, -(-count // processes)}


@given(count=st.integers(1, 40), wishes=WISHES, epoch=EPOCHS)
def test_nothing_is_left_that_somebody_wishes_for(
    count: int, wishes: list[int], epoch: int
) -> None:
    given_ = shares(members_of(count, wishes), epoch)
    assert sum(given_) == min(count, sum(wishes))
    assert all(had <= wish for had, wish in zip(given_, wishes, strict=True))


@given(count=st.integers(1, 40), wishes=WISHES, epoch=EPOCHS)
def test_who_gets_less_than_it_wishes_gets_as_much_as_any_other_but_for_one(
    count: int, wishes: list[int], epoch: int
) -> None:
    given_ = shares(members_of(count, wishes), epoch)
    for had, wish in zip(given_, wishes, strict=True):
        assert had == wish or had >= max(given_) - 1


@given(count=st.integers(1, 40), wishes=WISHES, epoch=EPOCHS)
def test_over_a_rotation_those_who_get_less_than_they_wish_get_the_same(
    count: int, wishes: list[int], epoch: int
) -> None:
    members = members_of(count, wishes)
    rounds = [shares(members, epoch + step) for step in range(len(members))]
    short = [
        index for index in range(len(members)) if any(r[index] < wishes[index] for r in rounds)
    ]
    assert len({sum(r[index] for r in rounds[: len(short)]) for index in short}) <= 1


@given(members=busy(), epoch=EPOCHS)
def test_with_other_cpus_each_nobody_lacks_what_lies_idle(
    members: tuple[Member, ...], epoch: int
) -> None:
    given_ = dict(zip(members, shares(members, epoch), strict=True))
    for member, had in given_.items():
        assert had <= min(member.wish, len(member.cpus))
        if had < min(member.wish, len(member.cpus)):
            near = [had for other, had in given_.items() if other.cpus & member.cpus]
            assert sum(near) >= len(member.cpus)


@given(members=busy(), epoch=EPOCHS)
def test_cpu_is_given_once_and_to_one_who_may_use_it(
    members: tuple[Member, ...], epoch: int
) -> None:
    division = divide(members, epoch)
    cpus = [cpu for given_ in division for cpu in given_]
    assert len(cpus) == len(set(cpus))
    assert all(given_ <= m.cpus for given_, m in zip(division, members, strict=True))


@given(count=st.integers(1, 40), processes=st.integers(1, 12), epoch=EPOCHS)
def test_only_what_goes_round_changes_hands(count: int, processes: int, epoch: int) -> None:
    members = members_of(count, [count] * processes)
    before, after = divide(members, epoch), divide(members, epoch + 1)
    new = sum(len(now - then) for then, now in zip(before, after, strict=True))
    assert new <= count % processes


@given(members=busy())
def test_neighbours_are_those_who_compete_and_all_of_them_see_the_same(
    members: tuple[Member, ...],
) -> None:
    for member in members:
        near = neighbours(member, [other for other in members if other is not member])
        assert member in near
        assert list(near) == sorted(near, key=lambda other: other.row)
        for other in members:
            if other in near:
                assert neighbours(other, [each for each in members if each is not other]) == near
            else:
                assert all(other.cpus.isdisjoint(each.cpus) for each in near)


def test_examples() -> None:
    assert [shares(members_of(4, [4, 4, 4]), epoch) for epoch in range(4)] == [
        (2, 1, 1),
        (1, 2, 1),
        (1, 1, 2),
        (2, 1, 1),
    ]
    assert shares(members_of(8, [1, 8, 8]), 0) == (1, 4, 3)
    assert shares(members_of(2, [2, 2, 2]), 0) == (1, 1, 0)
    # A whole machine's process leaves a pinned one its CPUs, and has the others.
    assert shares((Member(0, cpus(4), 4), Member(1, cpus(2), 2)), 0) == (2, 2)
    assert shares((Member(0, cpus(2), 2), Member(1, cpus(1), 1)), 0) == (1, 1)
    # Where the same numbers cannot be had without going round, nobody has less for that.
    sets = [frozenset({1, 2}), frozenset({2}), frozenset({1})]
    assert shares(tuple(Member(row, each, 1) for row, each in enumerate(sets)), 2) == (1, 0, 1)


# Several on one file.


@contextmanager
def several(count: int) -> Iterator[list[Slots]]:
    with tempfile.TemporaryDirectory() as folder:
        several = [Slots(slots_path("test", folder)) for _ in range(count)]
        try:
            yield several
        finally:
            for each in several:
                each.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return slots_path("test", tmp_path)


@pytest.fixture
def pair(path: Path) -> Iterator[tuple[Slots, Slots]]:
    first, second = Slots(path), Slots(path)
    yield first, second
    first.close()
    second.close()


def settle(
    processes: list[Slots], available: frozenset[int], wishes: list[int], now_ns: int = 0
) -> list[int]:
    """What each may have when all have looked often enough."""
    may: list[int] = []
    for _ in range(ROUNDS):
        may = []
        for process, wish in zip(processes, wishes, strict=True):
            may.append(process.look(available, wish, now_ns))
            assert sum(each.held for each in processes) <= len(available)
    for process, wish, helpers in zip(processes, wishes, may, strict=True):
        assert helpers == (max(process.held, 1) if wish else 0)
    return may


@given(
    count=st.integers(1, 9),
    steps=st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=1, max_size=5),
    epoch=EPOCHS,
)
def test_whoever_comes_goes_or_wishes_otherwise_shares_are_kept_to(
    count: int, steps: list[list[int]], epoch: int
) -> None:
    with several(3) as processes:
        for step, wishes in enumerate(steps):
            settle(processes, cpus(count), wishes, (epoch + step) * EPOCH_NS)
            held = [process.held for process in processes]
            assert sum(held) == min(count, sum(wishes))
            for had, wish in zip(held, wishes, strict=True):
                assert had == min(wish, count) or max(held) - 1 <= had <= wish
            present = sum(wish > 0 for wish in wishes)
            assert [p.members for p in processes] == [present if wish else 0 for wish in wishes]


@given(
    sets=st.lists(st.tuples(CPU_SETS, st.integers(1, 10)), min_size=2, max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_whatever_cpus_each_may_use_it_holds_none_but_those_and_none_twice(
    sets: list[tuple[frozenset[int], int]], order: random.Random
) -> None:
    with several(len(sets)) as processes:
        looks = [*zip(processes, sets, strict=True)] * 4
        order.shuffle(looks)
        for process, (available, wish) in looks:
            process.look(available, wish, 0)
            assert process.held <= min(wish, len(available))
            held = [cpu for each in processes for cpu in each._held]
            assert len(held) == len(set(held))
            assert process._held <= available


@given(sets=st.lists(st.tuples(CPU_SETS, st.integers(1, 10)), min_size=2, max_size=5), epoch=EPOCHS)
def test_whatever_cpus_each_may_use_all_come_to_their_shares(
    sets: list[tuple[frozenset[int], int]], epoch: int
) -> None:
    with several(len(sets)) as processes:
        # One after the other comes, and finds what the ones before it made of it.
        for present in range(1, len(sets) + 1):
            for _ in range(ROUNDS):
                for process, (available, wish) in zip(processes[:present], sets, strict=False):
                    process.look(available, wish, epoch * EPOCH_NS)
            members = [
                Member(row, available, min(wish, len(available)))
                for row, (available, wish) in enumerate(sets[:present])
            ]
            for member in members:
                near = neighbours(member, [other for other in members if other is not member])
                share = shares(near, epoch)[near.index(member)]
                assert processes[member.row].held == share


def test_alone_it_has_all_that_it_wants(pair: tuple[Slots, Slots]) -> None:
    mine, _ = pair
    assert mine.look(cpus(4), 3, 0) == mine.held == 3
    assert mine.look(cpus(4), 99, 0) == mine.held == 4
    assert mine.look(cpus(4), 1, 0) == mine.held == 1
    assert mine.members == 1


@pytest.mark.parametrize("how", ["look", "release", "close"])
def test_who_wants_none_gives_all_up(pair: tuple[Slots, Slots], how: str) -> None:
    mine, other = pair
    mine.look(cpus(4), 4, 0)
    assert other.look(cpus(4), 4, 0) == 1
    assert (other.held, other.members) == (0, 2)
    if how == "look":
        assert mine.look(cpus(4), 0, 0) == 0
    else:
        getattr(mine, how)()
    assert (mine.held, mine.members) == (0, 0)
    assert other.look(cpus(4), 4, 0) == 4
    assert (other.held, other.members) == (4, 1)


def test_small_wish_leaves_the_rest_to_the_other(pair: tuple[Slots, Slots]) -> None:
    assert settle([*pair], cpus(8), [2, 8]) == [2, 6]
    assert settle([*pair], cpus(8), [8, 1]) == [7, 1]


def test_slots_that_cannot_be_divided_go_round() -> None:
    with several(3) as processes:
        had = [settle(processes, cpus(4), [4] * 3, epoch * EPOCH_NS) for epoch in range(3)]
        assert [sorted(each) for each in had] == [[1, 1, 2]] * 3
        assert [sum(each) for each in zip(*had, strict=True)] == [4, 4, 4]


def test_with_more_processes_than_slots_each_has_its_helper() -> None:
    with several(5) as processes:
        assert settle(processes, cpus(2), [2] * 5) == [1] * 5
        assert sum(each.held for each in processes) == 2
        assert [each.members for each in processes] == [5] * 5


def test_processes_on_other_cpus_do_not_compete(pair: tuple[Slots, Slots]) -> None:
    mine, other = pair
    for _ in range(ROUNDS):
        assert mine.look(frozenset({0, 2, 4}), 9, 0) == 3
        assert other.look(frozenset({1, 3}), 9, 0) == 2
    assert (mine.members, other.members) == (1, 1)


def test_whole_machines_process_makes_room_for_a_pinned_one(pair: tuple[Slots, Slots]) -> None:
    mine, pinned = pair
    # It holds just those that the other may use, and as many as it may have.
    assert mine.look(cpus(4), 2, 0) == 2
    for _ in range(ROUNDS):
        pinned.look(cpus(2), 2, 0)
        mine.look(cpus(4), 2, 0)
    assert (mine.held, pinned.held) == (2, 2)


def test_cpus_that_it_may_not_use_any_more_are_free_for_others(pair: tuple[Slots, Slots]) -> None:
    mine, other = pair
    mine.look(cpus(4), 4, 0)
    assert mine.look(frozenset({0, 1}), 4, 0) == 2
    assert other.look(frozenset({2, 3}), 4, 0) == 2
    assert (mine.members, other.members) == (1, 1)
    for _ in range(ROUNDS):
        mine.look(cpus(3), 4, 0)
        other.look(frozenset({2, 3}), 4, 0)
    assert (mine.members, other.members) == (2, 2)
    assert (mine.held, other.held) == (2, 2)


def test_moved_to_other_cpus_it_has_the_slots_of_those(pair: tuple[Slots, Slots]) -> None:
    mine, other = pair
    mine.look(frozenset({0, 1}), 2, 0)
    assert mine.look(frozenset({2, 3}), 2, 0) == 2
    assert other.look(frozenset({0, 1}), 2, 0) == 2


def test_when_one_more_comes_the_others_only_give() -> None:
    with several(3) as processes:
        settle(processes[:2], cpus(12), [12] * 2)
        before = [set(process._held) for process in processes[:2]]
        assert settle(processes, cpus(12), [12] * 3) == [4] * 3
        assert all(p._held < had for p, had in zip(processes[:2], before, strict=True))


def test_slot_that_is_not_given_back_yet_is_no_obstacle_to_the_next(
    pair: tuple[Slots, Slots],
) -> None:
    other, mine = pair
    # It is to have CPU 3 now, but holds 1.
    assert other.look(frozenset({1, 2, 3}), 1, 0) == 1
    assert mine.look(frozenset({0, 1, 2}), 3, 0) == 2
    assert other.look(frozenset({1, 2, 3}), 1, 0) == 1
    assert mine.look(frozenset({0, 1, 2}), 3, 0) == 3


def test_who_finds_no_row_has_one_helper(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 2)
    with several(3) as processes:
        assert settle(processes, cpus(4), [4, 4, 4]) == [2, 2, 1]
        assert processes[2].members == 0
        assert settle(processes, cpus(4), [0, 4, 4])[1:] == [2, 2]


def test_file_that_was_tidied_away_is_followed(pair: tuple[Slots, Slots], path: Path) -> None:
    mine, _ = pair
    mine.look(cpus(4), 4, 0)
    path.unlink()
    late = Slots(path)
    assert late.look(cpus(4), 4, 0) == 4
    settle([mine, late], cpus(4), [4, 4], EPOCH_NS)
    assert (mine.held, late.held) == (2, 2)
    late.close()


def test_file_that_something_else_took_the_place_of_is_an_error_until_that_is_gone(
    pair: tuple[Slots, Slots], path: Path
) -> None:
    mine, _ = pair
    mine.look(cpus(4), 4, 0)
    path.unlink()
    path.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic") as caught:
        mine.look(cpus(4), 4, EPOCH_NS)
    assert caught.value.errno == errno.ELOOP
    assert (mine.held, mine.members) == (0, 0)
    path.unlink()
    assert mine.look(cpus(4), 4, 2 * EPOCH_NS) == 4
    assert path.is_file()


def test_look_while_nobody_else_is_busy_is_one_system_call(
    pair: tuple[Slots, Slots], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, _ = pair
    mine.look(cpus(64), 64, 0)
    calls = count_calls(monkeypatch)
    assert mine.look(cpus(64), 64, 1) == 64
    assert len(calls) == 1
    mine.release()
    mine.release()
    assert len(calls) == 2


# What goes wrong.


def count_calls(monkeypatch: pytest.MonkeyPatch, refuse: int = -1, error: int = 0) -> list[int]:
    """The lock commands from now on; the one with number `refuse` fails."""
    calls: list[int] = []
    call = module._call

    def counted(fd: int, command: int, *arguments: int) -> bytes:
        calls.append(command)
        if len(calls) - 1 == refuse:
            raise OSError(error, os.strerror(error))
        return call(fd, command, *arguments)

    monkeypatch.setattr(module, "_call", counted)
    return calls


def test_after_an_error_nothing_is_held(
    pair: tuple[Slots, Slots], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = pair
    with monkeypatch.context() as patch:
        calls = count_calls(patch)
        mine.look(cpus(4), 4, 0)
        needed = len(calls)
    mine.release()
    assert needed == 5
    for failed in range(needed):
        with monkeypatch.context() as patch:
            count_calls(patch, failed, errno.ENOLCK)
            with pytest.raises(OSError, match="locks") as caught:
                mine.look(cpus(4), 4, 0)
        assert caught.value.errno == errno.ENOLCK
        assert (mine.held, mine.members) == (0, 0)
        assert other.look(cpus(4), 4, 0) == 4
        assert other.members == 1
        other.release()


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.EACCES, errno.EINTR])
def test_refused_lock_is_no_error(
    pair: tuple[Slots, Slots], monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    mine, _ = pair
    mine.look(cpus(2), 2, 0)
    assert mine.look(cpus(2), 1, 0) == 1
    with monkeypatch.context() as patch:
        # Its wish, the members, who holds slots, and then a slot.
        count_calls(patch, 3, error)
        assert mine.look(cpus(2), 2, 0) == 1
    assert mine.look(cpus(2), 2, 0) == 2


def test_closed_slots_say_so(path: Path) -> None:
    mine = Slots(path)
    mine.look(cpus(2), 2, 0)
    mine.close()
    mine.close()
    mine.forget()
    mine.release()
    with pytest.raises(ValueError, match="closed"):
        mine.look(cpus(2), 1, 0)


@pytest.mark.parametrize("cpu", [-1, 65536])
def test_cpu_out_of_bounds_is_refused(pair: tuple[Slots, Slots], cpu: int) -> None:
    with pytest.raises(ValueError, match=str(cpu)):
        pair[0].look(frozenset({0, cpu}), 1, 0)


def test_no_cpus_at_all_are_one_helper(pair: tuple[Slots, Slots]) -> None:
    mine, _ = pair
    mine.look(cpus(2), 2, 0)
    assert mine.look(frozenset(), 2, 0) == 1
    assert (mine.held, mine.members) == (0, 0)


# The file.


@pytest.mark.parametrize("name", ["a", "default", "web-1_2.x", "x" * 64])
def test_name_is_part_of_the_files(name: str, tmp_path: Path) -> None:
    assert slots_path(name, tmp_path) == tmp_path / f"aioktask-{os.geteuid()}-{name}"


@pytest.mark.parametrize("name", ["", "x" * 65, "a/b", "a b", "a\n", "é", "a\0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64 letters"):
        slots_path(name)


def test_temporary_folder_is_taken_without_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SHARED_MEMORY", str(tmp_path))
    assert slots_path("a").parent == tmp_path
    monkeypatch.setattr(module, "_SHARED_MEMORY", str(tmp_path / "none"))
    assert slots_path("a").parent == Path(tempfile.gettempdir())


def test_file_is_the_users_alone_empty_and_not_inherited(path: Path) -> None:
    umask = os.umask(0)
    try:
        mine = Slots(path)
    finally:
        os.umask(umask)
    mine.look(cpus(4), 4, 0)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_size) == (0o600, 0)
    assert not os.get_inheritable(mine._fd)
    mine.close()


def refused(path: Path, number: int, text: str) -> None:
    before = open_files()
    with pytest.raises(OSError, match=text) as caught:
        Slots(path)
    assert caught.value.errno == number
    assert str(path) in str(caught.value)
    assert open_files() == before


def test_symlink_is_refused_and_not_followed(path: Path, tmp_path: Path) -> None:
    path.symlink_to(tmp_path / "elsewhere")
    refused(path, errno.ELOOP, "symbolic")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o644, 0o640])
def test_file_that_is_open_to_others_is_refused(path: Path, mode: int) -> None:
    path.touch()
    path.chmod(mode)
    refused(path, errno.EPERM, f"its owner alone .*{mode:o}")


def test_file_of_another_owner_is_refused(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    refused(path, errno.EPERM, "belongs to user 65534, and this is user 0")


def test_what_is_no_regular_file_is_refused(path: Path) -> None:
    os.mkfifo(path, 0o600)
    refused(path, errno.EPERM, "no regular file")
    path.unlink()
    path.mkdir()
    refused(path, errno.EISDIR, "directory")


def test_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    refused(tmp_path / "none" / "slots", errno.ENOENT, "No such file")


def test_system_without_such_locks_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_SETLK", 0)
        refused(path, errno.ENOSYS, "open file description locks")
    count_calls(monkeypatch, 0, errno.EINVAL)
    refused(path, errno.ENOSYS, "open file description locks")
