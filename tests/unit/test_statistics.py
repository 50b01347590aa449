"""Estimates and intervals, against plain resampling, scipy-free theory and made-up truth."""

import numpy as np
import pytest

from workbench.statistics import (
    STUDENT,
    half_drift,
    median_interval,
    median_of_medians,
    percentile,
    ratio_interval,
    saving_interval,
    summarise,
)


def sampled(generator, processes, samples, between, within, centre=1.0):
    """Draw processes that scatter by `between` around the truth, and samples by `within` around those."""
    return [
        centre * (1 + between * generator.standard_normal() + within * generator.standard_normal(samples))
        for _ in range(processes)
    ]


def coverage(runs, holds):
    generator = np.random.default_rng(7)
    return sum(holds(generator) for _ in range(runs)) / runs


def test_the_estimate_is_the_median_of_the_processes_medians():
    processes = [[1.0, 2.0, 9.0], [5.0, 5.0], [3.0, 4.0, 100.0, 4.0]]
    assert median_of_medians(processes) == 4.0
    assert median_interval(processes).value == 4.0


@pytest.mark.parametrize("count", [2, 3, 4, 9, 10, 101])
def test_drawing_medians_equals_drawing_resamples(count):
    samples = np.random.default_rng(3).exponential(size=count)
    plain = np.median(np.random.default_rng(4).choice(samples, (20_000, count)), axis=1)
    found = median_interval([samples])
    low, high = np.percentile(plain, [2.5, 97.5])
    near = 0.005 if count > 20 else 0.0  # so few samples leave few medians, of which it is one
    assert found.low == pytest.approx(low, abs=near)
    assert found.high == pytest.approx(high, abs=near)


def test_one_process_is_covered_for_its_samples():
    def holds(generator):
        found = median_interval(sampled(generator, 1, 60, 0, 0.05))
        return found.low <= 1 <= found.high

    assert coverage(200, holds) >= 0.9


def test_alike_processes_are_covered():
    def holds(generator):
        found = median_interval(sampled(generator, 3, 60, 0, 0.05))
        return found.low <= 1 <= found.high

    assert coverage(200, holds) >= 0.93


def test_many_processes_that_differ_are_covered():
    def holds(generator):
        found = median_interval(sampled(generator, 12, 30, 0.05, 0.01))
        return found.low <= 1 <= found.high

    assert coverage(200, holds) >= 0.88


def test_three_processes_that_differ_reach_from_the_lowest_to_the_highest():
    processes = [[1.0] * 20, [1.1] * 20, [1.3] * 20]
    found = median_interval(processes)
    assert (found.low, found.value, found.high) == (1.0, 1.1, 1.3)


def test_pooling_would_be_too_sure_where_processes_differ():
    processes = sampled(np.random.default_rng(0), 3, 500, 0.05, 0.001)
    levels = median_interval(processes)
    pooled = median_interval([np.concatenate(processes)])
    assert levels.high - levels.low > 1.2 * (pooled.high - pooled.low)


def test_a_ratio_above_one_means_that_the_other_is_faster():
    generator = np.random.default_rng(0)
    base, other = sampled(generator, 3, 50, 0, 0.01, 2.0), sampled(generator, 3, 50, 0, 0.01)
    found = ratio_interval(base, other)
    assert found.value == pytest.approx(2.0, rel=0.01)
    assert 1.95 < found.low < found.value < found.high < 2.05


def test_a_ratio_of_equals_covers_one():
    def holds(generator):
        base, other = (sampled(generator, 3, 50, 0, 0.05) for _ in range(2))
        found = ratio_interval(base, other)
        return found.low <= 1 <= found.high

    assert coverage(150, holds) >= 0.93


@pytest.mark.parametrize("count", [2, 3, 4, 5])
@pytest.mark.parametrize(("interval", "none"), [(ratio_interval, 1), (saving_interval, 0)])
def test_equals_are_not_told_apart_though_processes_differ(interval, none, count):
    def holds(generator):
        base, other = (sampled(generator, count, 20, 0.02, 0.002) for _ in range(2))
        found = interval(base, other)
        return found.low <= none <= found.high

    assert coverage(300, holds) >= 0.93


@pytest.mark.parametrize(
    ("few", "steady", "reach"),
    [
        # Student's t times the standard error of a mean of evenly spaced values, in steps of their spacing.
        (2, 2, 12.706 * (1 / 4) ** 0.5),
        (3, 3, 4.303 * (1 / 3) ** 0.5),
        (4, 4, 3.182 * (5 / 12) ** 0.5),
        (2, 7, 12.706 * (1 / 4) ** 0.5),
        (3, 2, 12.706 * (1 / 3) ** 0.5),
        (1, 7, 0.0),
    ],
)
def test_what_few_processes_differ_by_is_as_unsure_as_student_says(few, steady, reach):
    other = [[1.0] * 3] * steady
    ratio = ratio_interval([[1.1**step] * 3 for step in range(few)], other)
    assert ratio.low == pytest.approx(ratio.value / 1.1**reach)
    assert ratio.high == pytest.approx(ratio.value * 1.1**reach)
    saving = saving_interval(other, [[1 - 0.1 * step] * 3 for step in range(few)])
    assert (saving.low, saving.high) == pytest.approx(
        (saving.value - 0.1 * reach, saving.value + 0.1 * reach)
    )


def test_student_t_is_that_of_its_tables():
    """Of normal samples of n, |mean| / (s / sqrt(n)) exceeds t in 5 of 100; t here has n - 1 degrees."""
    generator = np.random.default_rng(1)
    for count, t in STUDENT.items():
        drawn = generator.standard_normal((200_000, count))
        ratio = np.abs(drawn.mean(1)) / (drawn.std(1, ddof=1) / np.sqrt(count))
        assert np.mean(ratio > t) == pytest.approx(0.05, abs=0.002)


def test_the_same_samples_give_the_same_interval():
    processes = sampled(np.random.default_rng(0), 3, 30, 0.01, 0.05)
    assert median_interval(processes) == median_interval(processes)
    assert median_interval(processes, seed=1) != median_interval(processes)


def test_one_sample_is_its_own_interval():
    found = median_interval([[2.0]])
    assert (found.low, found.value, found.high) == (2.0, 2.0, 2.0)


@pytest.mark.parametrize("processes", [[], [[]], [[1.0], []]])
def test_nothing_has_no_median(processes):
    with pytest.raises(ValueError, match="at least one sample"):
        median_interval(processes)


def test_a_summary_pools_percentiles_and_not_the_median():
    time = summarise([[1.0] * 19 + [2.0], [1.0] * 20, [3.0] * 40])
    assert (time.median, time.p50, time.p95) == (1.0, 2.5, 3.0)
    assert time.low == 1.0
    assert time.high == 3.0


def test_percentiles_lie_between_neighbours():
    assert percentile([1.0, 2.0], 50) == 1.5


def test_drift_compares_the_halves():
    assert half_drift([1.0] * 10 + [1.1] * 10) == pytest.approx(0.1)
    assert half_drift([1.0, 9.0, 1.0, 1.0, 9.0, 1.0]) == 0.0
    assert half_drift([1.0]) == 0.0
