# SPDX-License-Identifier: MIT
# The array jobs against plain NumPy, however the range is cut; what they refuse; what they promise
# about memory that overlaps.

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import hypothesis.extra.numpy as npst
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioktask import arrays, run_multithreaded_sync
from aioktask.job import Job
from tests.support.pieces import run_in_pieces

Run = Callable[[Job[Any]], Any]

MIB = 1 << 20
NUMBERS = ["u1", "i2", "<i4", ">i4", "i8", "f2", "f4", "f8", "c16"]
OTHERS = ["?", "S3", "U2", "M8[s]", "m8[ms]", "V3"]


@pytest.fixture(params=["engine", (1, 1), (2, 4), (5, 3)], ids=str, scope="module")
def run(request: pytest.FixtureRequest) -> Run:
    """The value of a job, cut one way or another."""
    if request.param == "engine":
        return lambda job: run_multithreaded_sync(job).value
    chunk, threads = request.param
    return lambda job: run_in_pieces(job, chunk, threads)


@st.composite
def views(
    draw: st.DrawFn, dtypes: list[str] = NUMBERS, min_dims: int = 0, min_side: int = 0
) -> np.ndarray[Any, Any]:
    """An array of random bytes seen through steps, reversals and transposes."""
    shape = draw(npst.array_shapes(min_dims=min_dims, max_dims=3, min_side=min_side, max_side=7))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in shape]
    base_shape = tuple(n * abs(step) for n, step in zip(shape, steps, strict=True))
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    base = np.zeros(base_shape, dtype, order=draw(st.sampled_from(["C", "F"])))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    base[...] = random.integers(-100, 100, base_shape).astype("V3" if dtype.kind == "V" else dtype)
    view = base[(*(slice(None, None, step) for step in steps), ...)]
    return view.transpose(draw(st.permutations(range(view.ndim))))


def same(a: object, b: object) -> bool:
    """Bit for bit, with type and shape."""
    x, y = np.asarray(a), np.asarray(b)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


class Anything:
    """Compares equal to nothing and converts to nothing: an element of an object array."""


# apply


@given(st.data())
def test_apply_equals_plain_numpy_along_any_axis(run: Run, data: st.DataObject) -> None:
    a = data.draw(views(min_dims=1, min_side=1))
    axis = data.draw(st.integers(-a.ndim, a.ndim - 1))
    other = a.astype("f4") if a.dtype.kind != "c" else a
    assert same(run(arrays.apply(np.multiply, a, other, axis=axis)), a * other)


@given(st.data())
def test_apply_writes_to_out_and_casts_what_fits(run: Run, data: st.DataObject) -> None:
    a = data.draw(views(min_dims=1))
    axis = data.draw(st.integers(-a.ndim, a.ndim - 1))
    by_return, by_writing = np.empty((2, *a.shape), "c16")
    assert run(arrays.apply(np.negative, a, out=by_return, axis=axis)) is by_return
    job = arrays.apply(
        lambda x, out: np.negative(x, out=out), a, out=by_writing, axis=axis, out_arg=True
    )
    assert run(job) is by_writing
    expected = np.negative(a).astype("c16")
    assert same(by_return, expected)
    assert same(by_writing, expected)


def test_apply_takes_blocks_with_other_axes_than_its_views(run: Run) -> None:
    a = np.arange(60.0).reshape(10, 3, 2)
    assert same(run(arrays.apply(lambda x: x.sum(axis=(1, 2)), a)), a.sum(axis=(1, 2)))
    outer = run(arrays.apply(lambda x, y: x[:, :, None] * y, a[:, :, 0], a[:, :1, 0, None]))
    assert same(outer, a[:, :, 0, None] * a[:, :1, 0, None])
    # Negative axes are counted from the end of each array, the result too.
    last = run(arrays.apply(lambda x, y: x.sum(axis=(0, 1)) + y, a.T, np.ones(10), axis=-1))
    assert same(last, a.sum(axis=(1, 2)) + 1)


def test_apply_in_place(run: Run) -> None:
    a = np.arange(20.0)
    view = a[::2]
    assert run(arrays.apply(np.square, view, out=view)) is view
    assert a.tolist() == [x * x if x % 2 == 0 else x for x in range(20)]


def test_apply_keeps_fortran_order() -> None:
    a = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    for chunk in (1, 2):
        assert run_in_pieces(arrays.apply(np.sqrt, a, axis=1), chunk, 2).flags.f_contiguous


def test_each_run_of_apply_returns_an_array_of_its_own() -> None:
    barrier = threading.Barrier(2)

    def fn(x: Any) -> Any:
        barrier.wait()  # both runs are under way
        return x + 1

    job = arrays.apply(fn, np.arange(4))
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: run_in_pieces(job, 2, 1), range(2))
    assert one.tolist() == two.tolist() == [1, 2, 3, 4]
    assert not np.shares_memory(one, two)


def test_apply_calls_nothing_before_it_runs() -> None:
    calls: list[int] = []
    arrays.apply(lambda x: calls.append(len(x)), np.arange(4))
    assert calls == []


def test_apply_over_nothing_returns_out(run: Run) -> None:
    out = np.empty((0, 3))
    job = arrays.apply(np.sqrt, np.empty((0, 3)), out=out)
    assert job.size == 0
    assert run(job) is out


@pytest.mark.parametrize(
    ("fn", "error", "message"),
    [
        (lambda x: x[:1], ValueError, r"the 2 rows of its views along axis 0, got shape \(1, 3\)"),
        (lambda x: None, ValueError, r"the 2 rows of its views along axis 0, got shape \(\)"),
        (lambda x: x[:, : 1 + int(x[0, 0] > 5)], ValueError, r"\(2, 2\) .* \(4, 1\); pass out="),
        (lambda x: np.ma.masked_array(x), TypeError, "what fn returns is a masked array"),
    ],
)
def test_apply_refuses_blocks_that_do_not_fit(
    fn: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run_in_pieces(arrays.apply(fn, np.arange(12.0).reshape(4, 3)), 2, 1)


def by_value(x: Any) -> Any:
    """A block whose type depends on the values in it."""
    return x.astype(complex) if x[0] >= 2 else x


def test_apply_refuses_blocks_of_two_types_whichever_is_first() -> None:
    with pytest.raises(TypeError, match=r"complex128 for rows 2 to 4 and float64 for others"):
        run_in_pieces(arrays.apply(by_value, np.arange(4.0)), 2, 1)
    with pytest.raises(TypeError, match=r"float64 for rows 2 to 4 and complex128 for others"):
        run_in_pieces(arrays.apply(by_value, np.arange(4.0)[::-1]), 2, 1)
    out = np.empty(4, complex)
    assert run_in_pieces(arrays.apply(by_value, np.arange(4.0), out=out), 2, 1) is out
    assert out.tolist() == [0, 1, 2, 3]


def test_apply_with_out_refuses_to_broadcast_or_to_lose() -> None:
    a = np.arange(4.0)
    with pytest.raises(ValueError, match=r"the 2 rows"):
        run_in_pieces(arrays.apply(lambda x: x[:1], a, out=np.empty(4)), 2, 1)
    with pytest.raises(ValueError, match=r"shape \(2,\).*result of shape \(4, 3\)$"):
        run_in_pieces(arrays.apply(lambda x: x, a, out=np.empty((4, 3))), 2, 1)
    with pytest.raises(TypeError, match=r"float64 for rows 0 to 2, .* cast to out's int64: pass"):
        run_in_pieces(arrays.apply(lambda x: x, a, out=np.empty(4, int)), 2, 1)


async def an_async_function(x: Any) -> Any:
    return x


def read_only(a: Any) -> Any:
    a.flags.writeable = False
    return a


A = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: arrays.apply(np.sqrt), TypeError, "at least one input"),
        (lambda: arrays.apply(3, A), TypeError, "fn must be callable, got 3"),
        (lambda: arrays.apply(an_async_function, A), TypeError, "the async an_async_function"),
        (lambda: arrays.apply(functools.partial(an_async_function), A), TypeError, "the async"),
        (lambda: arrays.apply(np.add, A, A[1:]), ValueError, r"along axis 0, got \[4, 3\]"),
        (lambda: arrays.apply(np.sqrt, A, axis=2), np.exceptions.AxisError, "axis 2.*dimension 2"),
        (lambda: arrays.apply(np.sqrt, A, axis=-3), np.exceptions.AxisError, "input 0: axis -3"),
        (lambda: arrays.apply(np.sqrt, A, axis=True), TypeError, "axis .* got True"),
        (lambda: arrays.apply(np.sqrt, 1.0), np.exceptions.AxisError, "dimension 0"),
        (lambda: arrays.apply(np.sqrt, A[:0]), ValueError, "pass out="),
        (lambda: arrays.apply(np.sqrt, A, out_arg=True), TypeError, "pass out="),
        (lambda: arrays.apply(np.sqrt, A, out=A[1:]), ValueError, "along axis 0: 4, got 3"),
        (lambda: arrays.apply(np.sqrt, A, out=[0] * 4), TypeError, "NumPy array, got list"),
        (lambda: arrays.apply(np.sqrt, np.ma.masked_array(A)), TypeError, "input 0 is a masked"),
        (lambda: arrays.apply(np.sqrt, A, nice=20), ValueError, "got 20"),
        (lambda: arrays.fill([1, 2], 0), TypeError, "a must be a NumPy array, got list"),
        (lambda: arrays.fill(np.ma.masked_array(A), 0), TypeError, "a is a masked array"),
        (lambda: arrays.fill(read_only(np.zeros(3)), 0), ValueError, "a is read-only"),
        (lambda: arrays.fill(np.zeros(3), [1, 2, 3]), ValueError, r"of shape \(3,\)"),
        (lambda: arrays.fill(np.zeros(3, int), 2.5), TypeError, "'same_kind'"),
        (lambda: arrays.fill(np.zeros(3, "u1"), 300), OverflowError, "300"),
        (lambda: arrays.fill(np.zeros(3, "u1"), 1, max_threads=0), ValueError, "got 0"),
        (lambda: arrays.copy(A, A[:2]), ValueError, r"\(4, 3\), got \(2, 3\)"),
        (lambda: arrays.copy(np.zeros(3, int), np.zeros(3)), TypeError, "'same_kind'"),
        (lambda: arrays.copy(read_only(np.zeros(3)), np.zeros(3)), ValueError, "destination is r"),
        (lambda: arrays.copy(np.zeros(3), np.ma.zeros(3)), TypeError, "source is a masked array"),
        (lambda: arrays.reduce(sum, A), TypeError, "NumPy ufunc, got <built-in"),
        (lambda: arrays.reduce(np.subtract, A), ValueError, r"subtract.*Job\(reduce=\.\.\.\)"),
        (lambda: arrays.reduce(np.sqrt, A), ValueError, "sqrt is not known to be associative"),
        (lambda: arrays.reduce(np.add, A, axis=2), np.exceptions.AxisError, "axis 2"),
        (lambda: arrays.reduce(np.add, A, axis=0.0), TypeError, "axis .* got 0.0"),
        (lambda: arrays.reduce(np.gcd, A), TypeError, "gcd"),
        (lambda: arrays.reduce(np.maximum, A[:0]), ValueError, "maximum which has no identity"),
        (lambda: arrays.reduce(np.maximum, A[:, :0], axis=1), ValueError, "has no identity"),
        (lambda: arrays.reduce(np.lcm, A.astype(int), axis=None), ValueError, "lcm"),
        (lambda: arrays.reduce(np.add, np.ma.zeros(3)), TypeError, "array is a masked array"),
    ],
)
def test_nonsense_is_refused_when_the_job_is_made(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


# overlap


def overlaps() -> Iterator[Any]:
    """Views of one memory: (input, output, what is wrong)."""
    a = np.zeros(12)
    square = np.zeros((4, 4))
    yield pytest.param(a, a, None, id="identical")
    yield pytest.param(a[::2], a[::2], None, id="identical-strided")
    yield pytest.param(a[::2], a[1::2], None, id="interleaved")
    yield pytest.param(a[:6], a[6:], None, id="side-by-side")
    yield pytest.param(square[:, :2], square[:, 2:], None, id="columns-side-by-side")
    yield pytest.param(a[:-1], a[1:], "overlaps", id="shifted")
    yield pytest.param(a, a[::-1], "overlaps", id="reversed")
    yield pytest.param(square, square.T, "overlaps", id="transposed")
    yield pytest.param(a.view("f4")[::2], a.view("f4")[:12], "overlaps", id="other-strides")
    yield pytest.param(a.view("f4")[::2], a, "overlaps", id="other-itemsize")
    yield pytest.param(a.astype("c16").real, a, None, id="other-memory")
    broadcast = np.lib.stride_tricks.as_strided(a, (12,), (0,))
    yield pytest.param(np.ones(12), broadcast, "overlap itself", id="all-rows-the-same")
    windows = np.lib.stride_tricks.sliding_window_view(np.zeros(13), 2, writeable=True)
    yield pytest.param(np.ones((12, 2)), windows, "overlap itself", id="sliding-windows")
    yield pytest.param(windows, np.ones((12, 2)), None, id="windows-as-input")
    yield pytest.param(np.ones(12), read_only(np.ones(12)), "read-only", id="read-only")
    yield pytest.param(np.ones((0, 12)), np.zeros((12, 12))[:0], None, id="empty")
    five = np.zeros((5, 4, 3))
    yield pytest.param(np.ones((2, 4)), five[::2, :, 1][1:].swapaxes(0, 1).T, None, id="slices")


@pytest.mark.parametrize(("source", "out", "wrong"), list(overlaps()))
def test_overlap(source: Any, out: Any, wrong: str | None, run: Run) -> None:
    made: list[Callable[[], Job[Any]]] = [
        lambda: arrays.apply(lambda x: x + 1, source, out=out),
        lambda: arrays.apply(lambda x, o: np.add(x, 1, out=o), source, out=out, out_arg=True),
        lambda: arrays.copy(out, source),
    ]
    for make in made:
        if wrong is not None:
            with pytest.raises(ValueError, match=wrong):
                make()
            continue
        before = source.copy()
        job = make()
        assert run(job) is out
        assert np.array_equal(out, before + (job.name == "arrays.apply"))


def test_a_function_that_only_makes_a_coroutine_is_refused(run: Run) -> None:
    async def write(block: Any, out: Any) -> None:
        raise AssertionError("nobody awaits it")

    for job in (
        arrays.apply(lambda x, o: write(x, o), A, out=A.copy(), out_arg=True),
        arrays.apply(lambda x: write(x, x), A),
    ):
        with pytest.raises(TypeError, match=r"fn of the job 'arrays\.apply' returned a coroutine"):
            run(job)


def test_overlap_that_is_too_hard_to_decide_is_refused() -> None:
    memory = np.zeros(192163377, "i1")  # never touched, so it costs nothing
    tangle = np.lib.stride_tricks.as_strided(memory, (1049,) * 3, (36674, 61119, 85569))
    out = memory[64023025:][: 12224 * 1049].reshape(1049, 12224)[:, 5:9]
    with pytest.raises(ValueError, match=r"out may overlap input 0 .*too hard to find out"):
        arrays.apply(lambda x: x, tangle, out=out)


# fill and copy


@given(a=views([*NUMBERS, *OTHERS]), zero=st.booleans())
def test_fill_equals_numpy_and_touches_nothing_else(run: Run, a: Any, zero: bool) -> None:
    base = a if a.base is None else a.base
    expected = base.copy(order="K")
    offset = a.ctypes.data - base.ctypes.data
    value = np.zeros((), a.dtype) if zero else np.full((), 1, "i8").astype(a.dtype)
    np.ndarray(a.shape, a.dtype, expected, offset, a.strides)[...] = value
    assert run(arrays.fill(a, value)) is a
    assert same(base, expected)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("f8", 7),
        ("f8", -0.0),
        ("u1", np.uint8(255)),
        ("f4", np.float64(0.1)),
        ("c8", 0),
        ("U4", "four"),
        ("M8[s]", np.datetime64("2038-01-19")),
        ([("a", "i2"), ("b", "f8", (2,))], (3, (1.0, 2.0))),
        ([("a", "i2"), ("b", "f8")], 0),
        ([("a", "O"), ("b", "i1")], ("x", 1)),
        ("O", None),
        ("O", 0),
        ("O", [1, 2]),
        ("O", Anything()),
    ],
)
def test_fill_takes_values_as_numpy_does(dtype: Any, value: Any, run: Run) -> None:
    a, expected = np.empty((3, 5), dtype), np.empty((3, 5), dtype)
    expected.fill(value)
    assert run(arrays.fill(a, value)) is a
    assert repr(a.tolist()) == repr(expected.tolist())


def test_fill_of_some_fields_leaves_the_others(run: Run) -> None:
    a = np.ones(7, [("a", "i4"), ("b", "i4"), ("c", "i4")])
    run(arrays.fill(a[["a", "c"]], 0))
    run(arrays.fill(a["a"], 5))
    assert a.tolist() == [(5, 1, 0)] * 7


def test_objects_that_were_overwritten_are_let_go(run: Run) -> None:
    gone: list[int] = []

    class Noisy:
        def __del__(self) -> None:
            gone.append(1)

    a = np.array([Noisy() for _ in range(6)])
    run(arrays.fill(a, None))
    assert len(gone) == 6


@given(data=st.data())
def test_copy_equals_numpy(run: Run, data: st.DataObject) -> None:
    source = data.draw(views([*NUMBERS, *OTHERS]))
    to = source.dtype if source.dtype.kind in "SUMmV?" else np.dtype("c16")
    order = data.draw(st.permutations(range(source.ndim)))
    shape = [0] * source.ndim
    for i, n in zip(order, source.shape, strict=True):
        shape[i] = n
    destination = np.zeros(shape, to).transpose(order)
    assert run(arrays.copy(destination, source)) is destination
    assert same(destination, source.astype(to))


def test_copy_of_records_and_objects(run: Run) -> None:
    records = np.array([(1, "a"), (2, [3]), (4, None)], [("x", "i2"), ("y", "O")])
    assert run(arrays.copy(np.empty_like(records), records)).tolist() == records.tolist()
    part = np.zeros(3, [("x", "i2"), ("z", "i8"), ("w", "i2")])
    part["z"] = 9
    source = np.array([(1, 5), (2, 6), (3, 7)], [("x", "i2"), ("w", "i2")])
    run(arrays.copy(part[["x", "w"]], source))
    assert part.tolist() == [(1, 9, 5), (2, 9, 6), (3, 9, 7)]


def test_copy_takes_lists_and_memory_maps(run: Run, tmp_path: Any) -> None:
    assert run(arrays.copy(np.zeros(3), [1, 2, 3])).tolist() == [1, 2, 3]
    mapped = np.memmap(tmp_path / "m", "i4", "w+", shape=(5,))
    assert run(arrays.copy(mapped, np.arange(5, dtype="i4"))) is mapped
    mapped.flush()
    assert (tmp_path / "m").read_bytes() == np.arange(5, dtype="i4").tobytes()


@pytest.mark.parametrize(
    ("make", "least"),
    [
        (lambda: arrays.fill(np.empty(128 * MIB, "u1"), 0), 64 * MIB),
        (lambda: arrays.fill(np.empty(16 * MIB, "f8"), 0), 8 * MIB),
        (lambda: arrays.fill(np.empty((4, 4 * MIB), "f8").T, 0.0), 8 * MIB),
        (lambda: arrays.fill(np.empty(16 * MIB, "f8"), 1), MIB // 8),
        (lambda: arrays.copy(np.empty(16 * MIB, "f8"), np.empty(16 * MIB, "f8")), 8 * MIB),
        (lambda: arrays.copy(np.empty(128 * MIB, "f8"), np.empty(128 * MIB, "f8")), 32 * MIB),
    ],
)
def test_chunks_of_contiguous_memory_are_long(make: Callable[[], Job[Any]], least: int) -> None:
    assert make().min_chunk == least


def test_contiguous_arrays_are_one_flat_range() -> None:
    a = np.zeros((2, 1000, 3))
    assert arrays.fill(a, 0).size == arrays.fill(a.T, 0).size == a.size
    assert arrays.fill(a[:, ::2], 0).size == 500  # not 2, which two helpers would share


# reduce

INTEGERS = [np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin, np.logical_and,
            np.logical_or, np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor,
            np.gcd, np.lcm]  # fmt: skip
FLOATS = [np.add, np.multiply, np.logaddexp, np.logaddexp2, np.hypot]


@given(data=st.data())
def test_reduce_equals_numpy_for_integers(run: Run, data: st.DataObject) -> None:
    a = data.draw(views(["?", "i1", "u2", ">i4", "u8"], min_dims=1))
    ufunc = data.draw(st.sampled_from(INTEGERS))
    axis = data.draw(st.none() | st.integers(-a.ndim, a.ndim - 1))
    options = data.draw(
        st.fixed_dictionaries(
            {},
            optional={
                "initial": st.integers(0, 100),
                "dtype": st.sampled_from(["i8", None]),
            },
        )
    )
    if ufunc is np.lcm:  # what overflows is not associative: nothing above 12 here
        a = a % 5
        options = {name: 3 if name == "initial" else value for name, value in options.items()}
    try:
        expected = ufunc.reduce(a, axis=axis, **options)
    except (TypeError, ValueError) as error:
        # Refused for the same reason, when the job is made.
        with pytest.raises(type(error), match=re.escape(str(error))):
            arrays.reduce(ufunc, a, axis=axis, **options)
        return
    assert same(run(arrays.reduce(ufunc, a, axis=axis, **options)), expected)


@pytest.mark.parametrize("shape", [(5000,), (300, 7), (7, 300), (20, 30, 40)])
@pytest.mark.parametrize("ufunc", FLOATS)
def test_reduce_of_floats_is_the_same_on_any_number_of_threads(
    ufunc: np.ufunc, shape: tuple[int, ...]
) -> None:
    a = np.random.default_rng(1).standard_normal(shape) ** 3
    for axis in [None, *range(a.ndim)]:
        job = arrays.reduce(ufunc, a, axis=axis)
        alone = run_in_pieces(job, 11, 1)
        assert all(same(run_in_pieces(job, 11, threads), alone) for threads in (2, 8))
        np.testing.assert_allclose(alone, ufunc.reduce(a, axis=axis), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("ufunc", FLOATS)
def test_reduce_begins_with_initial_once(ufunc: np.ufunc, run: Run) -> None:
    for shape in [(13,), (13, 2), (2, 13)]:
        a = np.linspace(0.5, 2, 26)[: np.prod(shape)].reshape(shape)
        for axis in (None, 0, -1):
            found = run(arrays.reduce(ufunc, a, axis=axis, initial=3.0))
            np.testing.assert_allclose(found, ufunc.reduce(a, axis=axis, initial=3.0), rtol=1e-12)


def test_reduce_of_a_row_does_not_change_the_array(run: Run) -> None:
    a = np.arange(24).reshape(8, 3)
    before = a.copy()
    run(arrays.reduce(np.add, a))
    run(arrays.reduce(np.add, a, initial=5))
    run(arrays.reduce(np.add, a.astype(object)))
    assert same(a, before)


def test_reduce_of_nothing_is_the_identity(run: Run) -> None:
    assert same(run(arrays.reduce(np.add, np.zeros((0, 3), "i4"))), np.zeros(3, int))
    assert same(run(arrays.reduce(np.multiply, [], axis=None)), np.float64(1))
    assert same(run(arrays.reduce(np.maximum, np.zeros((0, 2)), initial=4)), np.full(2, 4.0))
    assert run(arrays.reduce(np.maximum, np.zeros((3, 0)))).shape == (0,)


def test_a_run_of_reduce_leaves_no_trace_in_the_next(run: Run) -> None:
    job = arrays.reduce(np.add, np.ones((9, 2)))
    assert run(job).tolist() == run(job).tolist() == [9, 9]


def test_reduce_of_objects_dates_and_strings(run: Run) -> None:
    big = np.array([2**70, 1, 2**62, 2**62, 5], object)
    assert run(arrays.reduce(np.add, big)) == sum(big.tolist())
    lists = np.empty(3, object)
    lists[:] = [[1], [2], [3]]
    assert run(arrays.reduce(np.add, lists)) == [1, 2, 3]
    pairs = np.array([["a", 1], ["b", 2], ["c", 3]], object)
    assert run(arrays.reduce(np.add, pairs)).tolist() == ["abc", 6]
    assert run(arrays.reduce(np.logical_or, np.array([0, "", 3, 4], object))) == 3
    either = np.array([[0, "x"], [3, "y"], [4, ""]], object)
    assert run(arrays.reduce(np.logical_or, either)).tolist() == [3, "x"]
    days = np.array(["2001-01-01", "1999-09-09", "NaT"], "M8[D]")
    assert run(arrays.reduce(np.fmin, days)) == np.datetime64("1999-09-09")
    assert same(run(arrays.reduce(np.maximum, days[:2, None])), days[:1])
    spans = np.arange(5).astype("m8[h]")
    assert same(run(arrays.reduce(np.add, spans)), np.timedelta64(10, "h"))


def test_a_reduction_of_each_row_is_cut_between_rows() -> None:
    a = np.zeros((1000, 4))
    assert arrays.reduce(np.add, a, axis=1).reduce is None
    assert arrays.reduce(np.add, a, axis=1).size == 1000
    assert arrays.reduce(np.add, a, axis=0).reduce is not None
    assert arrays.reduce(np.add, a.T, axis=1).size == 1000


@pytest.mark.parametrize("value", [np.ma.masked, np.ma.array(5.0, mask=True)])
def test_a_masked_value_is_refused(value: Any) -> None:
    a = np.ones(3)
    with pytest.raises(TypeError, match="its mask would be lost"):
        arrays.fill(a, value)
    assert a.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("at", [0, 1, 20972])
def test_a_chunk_of_one_column_is_reduced_as_a_wider_one(at: int) -> None:
    a = np.random.default_rng(0).random((100, 20973))
    job = arrays.reduce(np.add, a)
    bound = job.bind()
    for start, stop in ((0, at), (at, at + 1), (at + 1, 20973)):
        if start < stop:
            bound.fn(start, stop)
    assert bound.value is not None
    assert (bound.value() == np.add.reduce(a, axis=0)).all()
