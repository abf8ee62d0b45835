# SPDX-License-Identifier: MIT
# The sweep from the command line:
#
#   python -m tests.interruption                       a sample, by a seed that is printed
#   python -m tests.interruption --whole               every place of every call
#   python -m tests.interruption --only thread/        of the calls whose name contains that
#   python -m tests.interruption --kinds alarm,call    of these kinds of strikes
#   python -m tests.interruption --one 'thread/sync warm alarm engine/pool.py:7:Pool.take#1'
"""Strike calls of the library line by line, and ask what came of it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import time

from tests.interruption.children import Children, InChild
from tests.interruption.sweep import Sweep, ends_quickly, report, work_of
from tests.interruption.trials import Spec


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interruption", description=__doc__)
    parser.add_argument("--whole", action="store_true", help="every place, not a sample")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("AIOKTASK_TEST_SEED", "0")))
    parser.add_argument("--sample", type=float, default=1.0, help="how large a sample is, relative")
    parser.add_argument("--only", default="", help="part of a call's name")
    parser.add_argument("--kinds", default="", help="kinds of strikes, with commas")
    parser.add_argument("--state", choices=["warm", "cold", ""], default="")
    parser.add_argument("--at-a-time", type=int, default=os.cpu_count() or 2)
    parser.add_argument("--faults", type=int, default=200, help="so many faults end the sweep")
    parser.add_argument("--repeat", type=int, default=0, help="strike faults so often anew")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="what trials may take")
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--one", action="append", help="this trial only")
    given = parser.parse_args()
    seed = given.seed or random.SystemRandom().randrange(1, 1_000_000)
    gc.freeze()
    children = Children(work_of, given.at_a_time, ends_quickly)
    begun = time.monotonic()
    try:
        if given.one:
            sweep = Sweep.of([Spec.parse(each) for each in given.one])
        else:
            print(f"seed {seed} (AIOKTASK_TEST_SEED)", flush=True)
            sweep = Sweep.planned(
                children,
                random.Random(seed),
                sample=None if given.whole else given.sample,
                only=given.only,
                kinds=[kind for kind in given.kinds.split(",") if kind],
                state=given.state,
            )
        sweep.run(children, most_faults=given.faults, seconds=given.seconds)
        sweep.repeat_faults(children, given.repeat)
    except InChild:
        return 0
    summary = report(sweep, verbose=bool(given.one))
    print(f"{len(sweep.results)} trials in {time.monotonic() - begun:.0f} s")
    if given.json:
        with open(given.json, "w") as file:
            json.dump(summary, file, indent=1)
    return 1 if sweep.faults else 0


if __name__ == "__main__":
    sys.exit(main())
