# SPDX-License-Identifier: MIT
# How helpers come, go, and fail.
#
# A helper stands in `State.starting` from when it is wanted until it comes or cannot be started,
# then in `State.helpers` until it goes. Guarantees: none goes that was given work; the work of one
# that failed, or that may not have the nice for it, is given to others or fails; and where the
# system has no more threads, the helpers that there are serve jobs of any nice, and runs that none
# of them will ever serve fail. So it is where the program's initializer raises: that helper does
# not come, and another one is tried after a pause.
"""The coming and going of helpers."""

from __future__ import annotations

from contextvars import Context
from time import perf_counter_ns

from aioktask.engine.events import Event, EventKind
from aioktask.engine.state.dispatch import State
from aioktask.engine.state.lane_turns import struck_in_lane
from aioktask.engine.state.lending import recall
from aioktask.engine.state.waiting import end_unservable
from aioktask.engine.state.workers import Helper
from aioktask.errors import name_of_class

# After an initializer raised, the next helper is started so much later: else each stretch that
# leaves work to be done would start one, whose initializer may raise again.
RETRY_NS = 500_000_000


def helper_came(state: State, helper: Helper) -> bool:
    """Take in a helper that was started; whether it is wanted."""
    state.starting.pop(helper, None)
    if state.closing and not state.runs:
        return False
    now = perf_counter_ns()
    if helper.initializer is not state.tunables.initializer:  # it was set while this one started
        state.summon(now)
        return False
    state.no_more_threads = False
    state.helpers[helper] = None
    state.find_work(helper, now)
    state.summon(now)
    return True


def helper_goes(state: State, helper: Helper) -> bool:
    """Strike out a helper that had nothing to do for long; whether it may end."""
    if not helper.idle:  # it gets work at this very moment
        return False
    state.dismiss(helper)
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
    _do_without(state, helper, error, "can't start new thread for a helper")


def initializer_failed(
    state: State, run: None, helper: Helper, error: BaseException, name: str
) -> None:
    """Do without a helper whose initializer raised, tell of it, and try another one later."""
    if helper not in state.starting:
        return
    details = {"error": error, "initializer": name}
    state.out.events.append((Context(), Event(EventKind.INITIALIZER_FAILED, "", 0, details, False)))
    if helper.initializer is not state.tunables.initializer:  # another one was set meanwhile
        del state.starting[helper]
        state.summon(perf_counter_ns())
        return
    state.starts_again_at = 0  # whom no helper serves now fails, and does not wait for the next try
    why = f"no helper is ready: the initializer {name} raised {name_of_class(type(error))}"
    _do_without(state, helper, error, why)
    state.starts_again_at = perf_counter_ns() + RETRY_NS


def start_again(state: State, run: None) -> None:
    """Try anew to have helpers, some time after an initializer raised."""
    if state.starts_again_at and perf_counter_ns() >= state.starts_again_at:
        state.starts_again_at = 0
        state.summon(perf_counter_ns())


def _do_without(state: State, helper: Helper, error: BaseException, why: str) -> None:
    state.starting.pop(helper, None)
    state.no_more_threads = True
    state.refusal = why
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
