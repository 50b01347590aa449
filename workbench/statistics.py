"""Turn samples of repeated processes into an estimate with its interval.

The estimate is the median of the processes' medians. Its interval is the percentile interval of a
two-level bootstrap: processes are drawn with replacement, then samples within each drawn process
(Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; Kalibera and Jones,
Rigorous Benchmarking in Reasonable Time, 2013, argue for the levels). With one process only its samples
are drawn, so the interval then says nothing about what changes from process to process; with three it
reaches from the lowest to the highest process, which holds the true median three times in four.

What two rows differ by needs more: of two processes a side, in every third case each of one is faster than
both of the other by chance alone, of three in every tenth. So below five the interval of a ratio or a
difference is no narrower than Student's, with the fewer degrees of freedom of the two sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from workbench.record import Time

DRAWS = 10_000
"""Bootstrap draws: enough that the ends of the interval move by less than their last printed digit."""
CONFIDENCE = 0.95

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182}
"""Student's t of a two-sided 95 % interval, by the processes of the side that has fewer."""
ENOUGH = max(STUDENT) + 1
"""Processes a side from which on the bootstrap alone is sure enough."""

Processes = Sequence[Sequence[float]]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval, all in the value's unit."""

    value: float
    low: float
    high: float


def median_of_medians(processes: Processes) -> float:
    """Return the median of the processes' medians; raises ValueError without a sample in each."""
    if not processes or any(len(samples) == 0 for samples in processes):
        raise ValueError("every process needs at least one sample")
    return float(np.median(_medians(processes)))


def median_interval(processes: Processes, seed: int = 0) -> Interval:
    """Estimate the median of process medians and its interval; the same seed gives the same interval."""
    value = median_of_medians(processes)
    return _interval(value, _bootstrap(processes, np.random.default_rng(seed)))


def ratio_interval(base: Processes, other: Processes, seed: int = 0) -> Interval:
    """Estimate base over other, so that more than 1 means that `other` takes less time, and its interval."""
    generator = np.random.default_rng(seed)
    value = median_of_medians(base) / median_of_medians(other)
    drawn = _interval(value, _bootstrap(base, generator) / _bootstrap(other, generator))
    reach = float(np.exp(_reach(np.log(_medians(base)), np.log(_medians(other)))))
    return Interval(value, min(drawn.low, value / reach), max(drawn.high, value * reach))


def saving_interval(base: Processes, other: Processes, seed: int = 0) -> Interval:
    """Estimate base less other, the seconds that `other` saves, and its interval."""
    generator = np.random.default_rng(seed)
    value = median_of_medians(base) - median_of_medians(other)
    drawn = _interval(value, _bootstrap(base, generator) - _bootstrap(other, generator))
    reach = _reach(_medians(base), _medians(other))
    return Interval(value, min(drawn.low, value - reach), max(drawn.high, value + reach))


def percentile(samples: Sequence[float], percent: float) -> float:
    """Return the percentile of samples, between neighbours by linear interpolation."""
    return float(np.percentile(samples, percent))


def summarise(processes: Processes, seed: int = 0) -> Time:
    """Describe the samples [s] of a row's processes as its record does."""
    interval = median_interval(processes, seed)
    pooled = [sample for samples in processes for sample in samples]
    return Time(
        median=interval.value,
        low=interval.low,
        high=interval.high,
        p50=percentile(pooled, 50),
        p95=percentile(pooled, 95),
    )


def half_drift(samples: Sequence[float]) -> float:
    """Return the second half's median over the first half's, less 1; 0 with fewer than two samples."""
    middle = len(samples) // 2
    if middle == 0:
        return 0.0
    return float(np.median(samples[middle:]) / np.median(samples[:middle])) - 1.0


def _interval(value: float, draws: Floats) -> Interval:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def _medians(processes: Processes) -> Floats:
    return np.array([np.median(samples) for samples in processes])


def _reach(base: Floats, other: Floats) -> float:
    """Return how far Student's interval of a difference of means reaches; 0 with one process or `ENOUGH`."""
    fewer = min(len(base), len(other))
    if fewer not in STUDENT:
        return 0.0
    return STUDENT[fewer] * float(np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in (base, other))))


def _bootstrap(processes: Processes, generator: np.random.Generator) -> Floats:
    """Draw the median of process medians `DRAWS` times; returns [DRAWS]."""
    count = len(processes)
    chosen = generator.integers(count, size=(DRAWS, count))
    medians = np.empty((DRAWS, count))
    for index, samples in enumerate(processes):
        drawn = chosen == index
        medians[drawn] = _resampled_medians(samples, int(drawn.sum()), generator)
    return np.asarray(np.median(medians, axis=1))


def _resampled_medians(samples: Sequence[float], draws: int, generator: np.random.Generator) -> Floats:
    """Draw medians of resampled samples without drawing the resamples; returns [draws].

    The k-th smallest of n resampled values is the empirical quantile at the k-th smallest of n uniform
    numbers, which is Beta(k, n + 1 - k); the next one above it divides what is left as the smallest of
    n - k (Devroye, Non-Uniform Random Variate Generation, 1986, chapter V). Exact, at any n.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    n = len(ordered)
    k = (n + 1) // 2
    uniform = generator.beta(k, n + 1 - k, size=draws)
    lower = ordered[_rank(uniform, n)]
    if n % 2 == 1:
        return lower
    above = uniform + (1 - uniform) * generator.beta(1, n - k, size=draws)
    return np.asarray((lower + ordered[_rank(above, n)]) / 2)


def _rank(uniform: Floats, n: int) -> NDArray[np.int64]:
    return np.minimum((uniform * n).astype(np.int64), n - 1)
