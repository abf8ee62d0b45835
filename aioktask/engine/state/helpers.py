# SPDX-License-Identifier: MIT
# How helpers come, go, and fail.
#
# A helper stands in `State.starting` from when it is wanted until it comes or cannot be started,
# then in `State.helpers` until it goes. Guarantees: none goes that was given work; the work of one
# that failed, or that may not have the nice for it, is given to others or fails; and where the
# system has no more threads, the helpers that there are serve jobs of any nice, and runs that none
# of them will ever serve fail.
"""The coming and going of helpers."""

from __future__ import annotations

from time import perf_counter_ns

from aioktask.engine.state.dispatch import State
from aioktask.engine.state.lane_turns import struck_in_lane
from aioktask.engine.state.lending import recall
from aioktask.engine.state.waiting import end_unservable
from aioktask.engine.state.workers import Helper


def helper_came(state: State, helper: Helper) -> bool:
    """Take in a helper that was started; whether it is wanted."""
    state.starting.pop(helper, None)
    if state.closing and not state.runs:
        return False
    state.no_more_threads = False
    state.helpers[helper] = None
    now = perf_counter_ns()
    state.find_work(helper, now)
    state.summon(now)
    return True


def helper_goes(state: State, helper: Helper) -> bool:
    """Strike out a helper that had nothing to do for long; whether it may end."""
    if not helper.idle:  # it gets work at this very moment
        return False
    helper.idle = False
    state.idle.remove(helper)
    del state.helpers[helper]
    for run in state.growing:
        run.forget_thread(helper)
    return True


def relay(state: State, run: None) -> None:
    """Have a helper that was woken wake more, if there is work for them."""
    state.summon(perf_counter_ns())


def refused(state: State, helper: Helper) -> None:
    """Take back the work of a helper whose thread may not have so low a nice.

    Another helper should do it. Where a new thread could not have that nice either, `Adapter.fit`
    lets the first one do it at the nice that it has.
    """
    state.may_lower = state.may_lower_again = False
    now = perf_counter_ns()
    recall(state, helper, now)
    state.summon(now)


def helper_failed(state: State, run: None, helper: Helper, error: BaseException) -> None:
    """End what the helper served when an exception struck outside of `fn` and of any turn."""
    now = perf_counter_ns()
    struck_in_lane(state, helper, now)
    stint = helper.stint
    if stint is not None and stint in state.serving and not helper.called:
        state.raised(stint, error, now)
        state.reconsider(stint, now)
    elif stint is None and not helper.idle and helper in state.helpers:
        state.find_work(helper, now)


def not_started(state: State, run: None, helper: Helper, error: BaseException) -> None:
    """Do without a helper that could not be started, or that ended where it began.

    Without any helper nothing would ever run: what waits is ended.
    """
    if helper in state.helpers:
        _strike_out(state, helper)
    elif helper not in state.starting:
        return
    state.starting.pop(helper, None)
    state.no_more_threads = True
    if state.idle:  # one of too high a nice is better than none
        state.summon(perf_counter_ns(), starts=False)
    if not state.starting:
        end_unservable(state, error)


def _strike_out(state: State, helper: Helper) -> None:
    """Forget a helper that ended before it began what it was to serve."""
    if helper.stint is not None and helper.stint in state.serving:
        recall(state, helper, perf_counter_ns())
    if helper.idle:
        helper.idle = False
        state.idle.remove(helper)
    state.helpers.pop(helper, None)
