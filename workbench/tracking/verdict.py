"""Whether a row is faster, slower or the same as an earlier one, by rules that noise cannot fool. Pure."""

import math
from dataclasses import dataclass
from statistics import median

import numpy as np

from workbench.statistics import CONFIDENCE, DRAWS, Interval, Processes, percentile, ratio_interval

FASTER = "faster"
SLOWER = "slower"
SAME = "same"
UNCLEAR = "unclear"

LEAST_PROCESSES = 5
"""A side. The lowest and the highest of n process medians enclose the true median in 1 - 2 / 2**n of all
cases (Le Boudec, Performance Evaluation, 2010, chapter 2): 94 % with five, 75 % with three."""
LEAST_CALIBRATION = 2 * LEAST_PROCESSES
"""Processes of an A/A run: two sides that could be given a verdict."""
LEAST_CHANGE = 0.02
"""Of the time. Smaller changes are worth no alarm, however quiet the machine."""
FLOORS = 3
"""How many times the noise floor a change must reach."""
MOST_THRESHOLD = 0.25
"""Of the time. Where only larger changes would count, calling a row the same would mislead."""
NOISY = "the machine is too noisy for any verdict: make it quieter, then `calibrate --again`"
MOST_PROCESSES = 100
"""A side. Advice to measure more helps nobody."""


@dataclass(frozen=True)
class Verdict:
    """What a comparison of one row comes to."""

    kind: str
    """`faster`, `slower`, `same` or `unclear`."""
    ratio: Interval
    """The earlier time over the later one, so that more than 1 is faster."""
    threshold: float
    """The least change of the time that counts, as a share of it."""
    reason: str | None = None
    """Why it is unclear and what would settle it."""


def judge(base: Processes, later: Processes, floor: float) -> Verdict:
    """Judge later samples against earlier ones, on a machine with this noise floor (a share of the time).

    A change counts if its interval excludes none and its estimate reaches the threshold, by the noise of the
    very processes judged where that is above the floor. Sameness counts if the whole interval lies within the
    threshold by the floor alone: noise is no evidence of it. All else is unclear, and so are fewer than five
    processes a side and a machine whose noise hides changes of a quarter of the time.
    """
    ratio = ratio_interval(base, later)
    within = threshold(floor)
    if within > MOST_THRESHOLD:
        return Verdict(UNCLEAR, ratio, within, NOISY)
    count = min(len(base), len(later))
    if count < LEAST_PROCESSES:
        few = f"{count} of at least {LEAST_PROCESSES} processes a side: give both --repeats {LEAST_PROCESSES}"
        return Verdict(UNCLEAR, ratio, within, few)
    beyond = max(within, threshold(present_floor(base, later)))
    if beyond > MOST_THRESHOLD:
        return Verdict(UNCLEAR, ratio, beyond, NOISY)
    low, middle, high = (math.log(each) for each in (ratio.low, ratio.value, ratio.high))
    change, same = math.log1p(beyond), math.log1p(within)
    if middle >= change and low > 0:
        return Verdict(FASTER, ratio, beyond)
    if middle <= -change and high < 0:
        return Verdict(SLOWER, ratio, beyond)
    if -same <= low and high <= same:
        return Verdict(SAME, ratio, within)
    wanted = abs(middle) if abs(middle) >= change else same - abs(middle)
    return Verdict(UNCLEAR, ratio, beyond, advise(count, max(high - middle, middle - low), wanted))


def threshold(floor: float) -> float:
    """Return the least change of the time that counts on a machine with this noise floor; both are shares."""
    return max(LEAST_CHANGE, FLOORS * floor)


def advise(count: int, half_width: float, wanted: float) -> str:
    """Say how many processes a side would narrow an interval to the half width that settles a comparison.

    It narrows with the root of their number, so n' = n (half width / wanted half width)**2 (Jain, The Art of
    Computer Systems Performance Analysis, 1991, section 13.9). Wanted is that it excludes no change where the
    estimate reaches the threshold, else that it lies within the threshold. Both are logarithms of ratios.
    """
    needed = count * (half_width / wanted) ** 2 if wanted > 0 else math.inf
    if needed > MOST_PROCESSES:
        return (
            f"over {MOST_PROCESSES} processes a side would be needed to settle it: make the machine quieter"
        )
    needed = max(math.ceil(needed), count + 1)
    return f"about {needed - count} more processes a side would settle it: give both --repeats {needed}"


def noise_floor(processes: Processes) -> float:
    """Return the change of the time, as a share, that A/A comparisons stay within 95 times in 100.

    Five processes are compared with five others of the same run, drawn without replacement, as in a
    permutation test (Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005, chapter 3).
    Raises ValueError with fewer than ten.
    """
    if len(processes) < LEAST_CALIBRATION:
        raise ValueError(f"{len(processes)} processes; an A/A comparison needs {LEAST_CALIBRATION}")
    medians = np.log([median(samples) for samples in processes])
    order = np.tile(np.arange(len(medians)), (DRAWS, 1))
    drawn = medians[np.random.default_rng(0).permuted(order, axis=1)[:, :LEAST_CALIBRATION]]
    one, other = (np.median(side, axis=1) for side in np.split(drawn, 2, axis=1))
    return math.expm1(percentile(np.abs(one - other).tolist(), 100 * CONFIDENCE))


def present_floor(base: Processes, later: Processes) -> float:
    """Return the noise floor by the processes judged: that of the noisier side, as if both were like it.

    Together they would hide it: the median of five that are drawn from both is one of the quieter side.
    """
    return max(noise_floor([*side, *side]) for side in (base, later))
