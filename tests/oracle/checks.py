"""Counts and prints checks: what was measured, what is allowed."""

import math


def worst_of(errors):
    """(name, error) of the greatest of a dictionary of errors; a NaN is greater than all."""
    return max(errors.items(), key=lambda item: (math.isnan(item[1]), item[1]), default=("none", 0.0))


class Checks:
    def __init__(self):
        self.total = 0
        self.failed = []

    def within(self, name, measured, allowed):
        """Passes when measured <= allowed; a NaN fails."""
        self._record(name, measured <= allowed, f"{measured:.3g} (allowed {allowed:.3g})")

    def above(self, name, measured, bound):
        self._record(name, measured > bound, f"{measured:.3g} (must exceed {bound:.3g})")

    def equal(self, name, measured, expected):
        self._record(name, measured == expected, f"{measured} (expected {expected})")

    def conclude(self):
        """Prints what failed and how many there were; returns the exit status."""
        for name in self.failed:
            print(f"FAILED: {name}")
        print(f"{self.total} checks, {len(self.failed)} failed")
        return 1 if self.failed else 0

    def _record(self, name, passed, text):
        self.total += 1
        if not passed:
            self.failed.append(name)
        print(f"{'ok  ' if passed else 'FAIL'}  {name}: {text}", flush=True)
