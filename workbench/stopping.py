"""When warming up is over and when there are samples enough: numbers in, a decision out, no clock inside."""

import bisect
import math
from statistics import median

WARM_WINDOW = 5
"""Samples a window: the smallest odd number whose median withstands two outliers."""
WARM_TOLERANCE = 0.02
"""Below the 3 % at which a row is called unstable, so that a row warmed up to this can still be stable."""
WARM_CAP = 100
"""Samples after which a row that has not settled by then is timed as it is; its halves then tell of it."""
WARM_FREE = 1
"""Samples before the budget counts: libraries plan, and compilers compile, what the first one shows them."""
WARM_LEAST_S = 0.2
"""A device's clock needs this long under load to rise, however short the samples are."""

RELATIVE_ERROR = 0.005
"""A tenth of the smallest difference that is worth a decision between backends, 5 %."""
FLOOR = 10
"""Samples below which the order statistics below hardly bound a median, and halves say nothing."""
CAP = 1000
"""Samples after which more only add to the files: the error falls with the root of their number."""

STOPPING = {
    "warm_window": WARM_WINDOW,
    "warm_tolerance": WARM_TOLERANCE,
    "warm_cap": WARM_CAP,
    "warm_free": WARM_FREE,
    "warm_least_s": WARM_LEAST_S,
    "relative_error": RELATIVE_ERROR,
    "floor": FLOOR,
    "cap": CAP,
}
"""What a record keeps of it: rows that stopped by other rules are not compared."""

NORMAL_95 = 1.96
"""Standard normal quantile of a two-sided 95 % interval."""


class WarmUp:
    """Ends when the medians of two consecutive windows agree, at the cap, or when the budget is spent.

    The first sample is free: what it needs alone would leave an engine that plans for every length no budget.
    """

    def __init__(
        self,
        budget_s: float,
        window: int = WARM_WINDOW,
        tolerance: float = WARM_TOLERANCE,
        cap: int = WARM_CAP,
        least_s: float = WARM_LEAST_S,
    ) -> None:
        self._budget_s = budget_s
        self._window = window
        self._tolerance = tolerance
        self._cap = cap
        self._least_s = least_s
        self._samples: list[float] = []
        self._free_s = 0.0
        self._spent_s = 0.0
        self._settled = False

    @property
    def doubt(self) -> str | None:
        """Say, once it is over, why times may not be those of a warm device; None if the medians agreed."""
        count, needed = len(self._samples), 2 * self._window
        if self._settled:
            return None
        if count < needed:
            enough = self._spent_s / max(count - WARM_FREE, 1) * (needed - WARM_FREE)
            return (
                f"warming up had time for {count} of the {needed} samples that can settle: a --budget above "
                f"{math.ceil(enough * 100) / 100:g} s has"
            )
        return "the times had not settled when warming up ended: rerun on an idle machine"

    def add(self, sample_s: float, elapsed_s: float) -> bool:
        """Take a sample and the time since warming up began [s]; returns True when it is over."""
        self._samples.append(sample_s)
        if len(self._samples) <= WARM_FREE:
            self._free_s = elapsed_s
        self._spent_s = elapsed_s - self._free_s
        if self._spent_s < min(self._least_s, self._budget_s):
            return False
        over = len(self._samples) >= self._cap or self._spent_s >= self._budget_s
        self._settled = (over or len(self._samples) % self._window == 0) and self._windows_agree()
        return self._settled or over

    def _windows_agree(self) -> bool:
        count = len(self._samples)
        if count < 2 * self._window:
            return False
        newer = median(self._samples[-self._window :])
        older = median(self._samples[-2 * self._window : -self._window])
        return abs(newer - older) <= self._tolerance * older


class StopRule:
    """Ends when the median's relative error is small, at the cap, or when the budget is spent.

    The error is half the width of the distribution-free 95 % interval of the median, between the samples
    of rank (n -+ 1.96 sqrt(n)) / 2, over the median: no normal distribution is assumed. Le Boudec,
    Performance Evaluation of Computer and Communication Systems, 2010, chapter 2; as a stopping rule:
    Hoefler and Belli, Scientific Benchmarking of Parallel Computing Systems, 2015.
    """

    def __init__(
        self,
        budget_s: float,
        relative_error: float = RELATIVE_ERROR,
        floor: int = FLOOR,
        cap: int = CAP,
    ) -> None:
        self._budget_s = budget_s
        self._relative_error = relative_error
        self._floor = floor
        self._cap = cap
        self._ordered: list[float] = []

    def add(self, sample_s: float, elapsed_s: float) -> bool:
        """Take a sample and the time since sampling began [s]; returns True when there are enough.

        The floor outlasts the budget: fewer samples than that are worth no time at all.
        """
        bisect.insort(self._ordered, sample_s)
        count = len(self._ordered)
        if count < self._floor:
            return False
        return count >= self._cap or elapsed_s >= self._budget_s or self.error() <= self._relative_error

    def error(self) -> float:
        """Return the median's relative error as of now; infinite below six samples, which bound no median."""
        count = len(self._ordered)
        if count < 6:
            return math.inf
        half = NORMAL_95 * math.sqrt(count) / 2
        low = max(math.floor(count / 2 - half), 1)
        high = min(math.ceil(count / 2 + 1 + half), count)
        middle = (self._ordered[(count - 1) // 2] + self._ordered[count // 2]) / 2
        if middle <= 0:  # a difference of two times that noise has swallowed
            return math.inf
        return (self._ordered[high - 1] - self._ordered[low - 1]) / 2 / middle
