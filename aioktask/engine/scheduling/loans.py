from __future__ import annotations

from aioktask.engine.scheduling.queue import Entry, Scheduler


class Loans:
    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._waiters: dict[Entry, dict[int, int]] = {}
        self._awaits: dict[Entry, dict[Entry, int]] = {}
        self._awaited_by: dict[Entry, dict[Entry, int]] = {}

    def add_waiter(self, entry, nice):
        counts = self._waiters.setdefault(entry, {})
        counts[nice] = counts.get(nice, 0) + 1
        return self.reckon(entry)

    def remove_waiter(self, entry, nice):
        counts = self._waiters.get(entry, {})
        if nice in counts:
            counts[nice] -= 1
            if not counts[nice]:
                del counts[nice]
        return self.reckon(entry)

    def begin(self, waiting, awaited):
        a = self._awaits.setdefault(waiting, {})
        a[awaited] = a.get(awaited, 0) + 1
        a = self._awaited_by.setdefault(awaited, {})
        a[waiting] = a.get(waiting, 0) + 1
        return self.reckon(awaited)

    def end(self, waiting, awaited):
        for d, k, o in ((self._awaits, waiting, awaited), (self._awaited_by, awaited, waiting)):
            a = d.get(k, {})
            if o in a:
                a[o] -= 1
                if not a[o]:
                    del a[o]
                if not a:
                    del d[k]
        return self.reckon(awaited)

    def forget(self, entry):
        self._waiters.pop(entry, None)
        for each in list(self._awaited_by.pop(entry, ())):
            self._awaits.get(each, {}).pop(entry, None)
        changed = []
        for each in list(self._awaits.pop(entry, ())):
            self._awaited_by.get(each, {}).pop(entry, None)
            changed += self.reckon(each)
        return changed

    def reckon(self, entry):
        changed = []
        left = [entry]
        first = True
        while left:
            each = left.pop()
            nices = [
                *self._waiters.get(each, ()),
                *((w.nice if w.loan is None else w.loan) for w in self._awaited_by.get(each, ())),
            ]
            most = min(nices, default=each.nice)
            loan = most if most < each.nice else None
            if loan != each.loan:
                self._scheduler.set_loan(each, loan)
                changed.append(each)
            elif not first:
                continue
            first = False
            left.extend(self._awaits.get(each, ()))
        return changed
