# SPDX-License-Identifier: MIT
# Where the ticks of an axis are, and what stands at them: at round numbers, as many as have room
# for their labels. Pure: nothing is drawn here.
"""Ticks of axes and their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from aioktask.figures.paper import GAP, LINE, MARGIN, text_width

__all__ = ["binary", "even_ticks", "log_ticks", "plain", "power_ticks"]


def log_ticks(low: float, high: float, width: float) -> list[float]:
    """Ticks of a logarithmic axis: as many as have room, at round numbers.

    Args:
        low: Its lower end.
        high: Its upper end.
        width: Its length, points.
    """
    bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))

    def decades(step: int, *steps: int) -> list[float]:
        powers = range(bottom, top + 1, step)
        return [each * 10.0**power for power in powers for each in steps]

    tried = [decades(step, 1) for step in (1, 2, 3, 5)]
    tried += [decades(1, *steps) for steps in ((1, 3), (1, 2, 5), (1, 2, 3, 5), range(1, 10))]
    if high / low < 10:
        sizes = [each * 10.0**power for power in range(bottom - 3, top + 1) for each in (5, 2, 1)]
        tried += [
            [step * at for at in range(math.ceil(low / step), math.floor(high / step) + 1)]
            for step in sizes
            if (high - low) / step < 40
        ]

    found = [[each for each in ticks if low <= each <= high] for ticks in tried]
    return _most(found, _logarithmic(low, high, width), width, plain)


def power_ticks(low: float, high: float, width: float) -> list[float]:
    """Powers of two on a logarithmic axis: as many as have room."""
    bottom, top = math.ceil(math.log2(low)), math.floor(math.log2(high))
    found = [
        [2.0**power for power in range(bottom, top + 1) if power % step == 0]
        for step in (1, 2, 4, 5, 10, 20, 50)
    ]
    return _most(found, _logarithmic(low, high, width), width, binary)


def even_ticks(most: float, length: float, *, upright: bool = False) -> list[float]:
    """Ticks of an axis from 0 to `most`: as many as have room.

    Args:
        most: Its other end.
        length: Points.
        upright: Whether the axis is upright, so that labels stand one above the other.
    """
    bottom = math.floor(math.log10(most)) - 1
    steps = [each * 10.0**power for power in range(bottom, bottom + 3) for each in (1, 2, 5)]
    found = [
        [step * at for at in range(math.floor(most / step * (1 + 1e-9)) + 1)]
        for step in steps
        if step * length / most >= 2 * LINE
    ]
    text = (lambda value: "") if upright else plain
    return _most(found, lambda value: length * value / most, length, text)


def _logarithmic(low: float, high: float, width: float) -> Callable[[float], float]:
    """Where a value is on such an axis."""
    return lambda value: width * math.log(value / low) / math.log(high / low)


def _most(
    tried: Sequence[Sequence[float]],
    at: Callable[[float], float],
    length: float,
    text: Callable[[float], str],
) -> list[float]:
    """The most ticks whose labels do not touch, without those that would reach off the paper."""
    best: list[float] = []
    beyond = MARGIN - 2  # what draws them makes letters a little wider or narrower
    for ticks in tried:
        spans = [(each, at(each), text_width(text(each)) / 2) for each in ticks]
        inside = [
            (each, place, half)
            for each, place, half in spans
            if place - half >= -beyond and place + half <= length + beyond
        ]
        apart = all(
            right - left >= half + other + GAP
            for (_, left, half), (_, right, other) in pairwise(inside)
        )
        if apart and len(inside) > len(best):
            best = [each for each, _, _ in inside]
    return best


def plain(value: float) -> str:
    """A tick as one writes it: 0.05, 1, 2,000.

    >>> [plain(value) for value in (0.05, 1.0, 2000.0)]
    ['0.05', '1', '2,000']
    """
    text = f"{value:,.9f}"
    return text.rstrip("0").rstrip(".")


def binary(value: float) -> str:
    """A power of two as one reads it: 512, 16Ki, 4Mi.

    >>> [binary(value) for value in (0.25, 512.0, 16384.0)]
    ['2^-2', '512', '16Ki']
    """
    power = round(math.log2(value))
    if power < 0:
        return f"2^{power}"
    tens = min(power // 10, 6)
    return f"{1 << power - 10 * tens}{('', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei')[tens]}"
