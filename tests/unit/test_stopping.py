"""The rules by which warming up and sampling end, on made-up sequences."""

import itertools
import math

import numpy as np
import pytest

from workbench.stopping import CAP, FLOOR, RELATIVE_ERROR, WARM_CAP, StopRule, WarmUp


def feed(rule, samples, elapsed=lambda count: min(count, 2) / 2):
    """Give a rule samples until it ends; returns how many it took."""
    for count, sample in enumerate(samples, 1):
        if rule.add(sample, elapsed(count)):
            return count
    raise AssertionError("the rule never ended")


def noisy(spread, seed=0):
    generator = np.random.default_rng(seed)
    return (1.0 + spread * generator.standard_normal() for _ in itertools.count())


def test_constant_times_are_warm_after_two_windows():
    rule = WarmUp(budget_s=10)
    assert feed(rule, itertools.repeat(1.0)) == 10
    assert rule.doubt is None


def test_warming_up_waits_for_falling_times_to_settle():
    rule = WarmUp(budget_s=10)
    falling = (1.0 + 4.0 * 0.9**count for count in itertools.count())
    count = feed(rule, falling)
    assert rule.doubt is None
    # The window before the last five samples must be within 2 % of them.
    assert 1.0 + 4.0 * 0.9 ** (count - 8) < 1.02 * (1.0 + 4.0 * 0.9 ** (count - 3)) + 1e-9
    assert 30 < count < WARM_CAP


@pytest.mark.parametrize("scale", [1e-4, 100.0])
def test_warming_up_ends_at_the_same_sample_however_long_the_samples_are(scale):
    counts = [
        feed(WarmUp(budget_s=10), (each * (1.0 + 4.0 * 0.9**count) for count in itertools.count()))
        for each in (1.0, scale)
    ]
    assert counts[0] == counts[1]


def test_outliers_do_not_keep_it_from_settling():
    spiky = itertools.cycle([1.0, 1.0, 9.0, 1.0, 1.0])
    assert feed(WarmUp(budget_s=10), spiky) == 10


def test_times_that_never_settle_end_at_the_cap_and_say_so():
    rule = WarmUp(budget_s=10)
    assert feed(rule, (1.1**count for count in itertools.count())) == WARM_CAP
    assert "had not settled" in (rule.doubt or "")


def test_warming_up_lasts_long_enough_for_clocks_to_rise():
    rule = WarmUp(budget_s=10, least_s=0.2)
    assert feed(rule, itertools.repeat(0.01), elapsed=lambda count: 0.01 * count) == 25


def test_the_cap_does_not_end_warming_up_before_clocks_have_risen():
    rule = WarmUp(budget_s=10, least_s=0.2)
    assert feed(rule, itertools.repeat(5e-4), elapsed=lambda count: 5e-4 * count) == 401
    assert rule.doubt is None


def test_the_budget_ends_warming_up_at_the_sample_that_spends_it():
    rule = WarmUp(budget_s=5)
    assert feed(rule, itertools.repeat(60.0), elapsed=lambda count: 60.0 * count) == 2
    assert rule.doubt == (
        "warming up had time for 2 of the 10 samples that can settle: a --budget above 540 s has"
    )


def test_a_first_sample_that_plans_for_long_costs_none_of_the_budget():
    rule = WarmUp(budget_s=5)
    planning = itertools.chain([22.0], itertools.repeat(0.3))
    assert feed(rule, planning, elapsed=lambda count: 22.0 + 0.3 * (count - 1)) == 10
    assert rule.doubt is None


def test_the_budget_is_advised_in_the_seconds_it_is_typed_in():
    rule = WarmUp(budget_s=0.2)
    feed(rule, itertools.repeat(0.0277), elapsed=lambda count: 0.0277 * count)
    assert rule.doubt is not None
    assert rule.doubt.endswith("a --budget above 0.25 s has")


def test_a_budget_that_allowed_for_both_windows_was_not_too_small():
    rule = WarmUp(budget_s=9)
    assert feed(rule, (1.1**count for count in itertools.count()), elapsed=lambda count: 1.0 * count) == 10
    assert "had not settled" in (rule.doubt or "")


@pytest.mark.parametrize("slow", [3, 4, 5])
def test_windows_follow_each_other_and_only_the_last_two_count(slow):
    samples = itertools.chain([2.0] * slow, itertools.repeat(1.0))
    assert feed(WarmUp(budget_s=10), samples) == 15


def test_constant_times_need_no_more_than_the_floor():
    assert feed(StopRule(budget_s=10), itertools.repeat(1.0)) == FLOOR


def test_noisier_times_take_more_samples():
    counts = [feed(StopRule(budget_s=10), noisy(spread)) for spread in (0.001, 0.01, 0.02)]
    assert counts == sorted(set(counts))
    assert counts[-1] < CAP


def test_it_ends_at_the_error_that_it_promises():
    rule = StopRule(budget_s=10)
    feed(rule, noisy(0.01))
    assert rule.error() <= RELATIVE_ERROR


@pytest.mark.parametrize("spread", [0.01, 0.02])
def test_the_promised_error_holds_for_the_median(spread):
    # The true median is 1. Stopping early when the spread happens to be small costs some of the 95 %.
    within = 0
    for seed in range(100):
        taken = []
        rule = StopRule(budget_s=10)
        for sample in noisy(spread, seed):
            taken.append(sample)
            if rule.add(sample, 1.0):
                break
        within += abs(np.median(taken) - 1.0) <= RELATIVE_ERROR
    assert within >= 85


def test_times_at_two_levels_go_on_to_the_cap():
    generator = np.random.default_rng(1)
    two = (1.0 if generator.random() < 0.5 else 2.0 for _ in itertools.count())
    assert feed(StopRule(budget_s=10, cap=200), two) == 200


def test_rare_outliers_do_not_prolong_it():
    rare = (9.0 if count % 10 == 9 else 1.0 for count in itertools.count())
    assert feed(StopRule(budget_s=10), rare) < 30


def test_drifting_times_go_on_until_the_budget_ends():
    drifting = (1.0 + 0.01 * count for count in itertools.count())
    assert feed(StopRule(budget_s=5), drifting, elapsed=lambda count: 0.1 * count) == 50


def test_the_floor_outlasts_the_budget():
    assert feed(StopRule(budget_s=1), noisy(0.5), elapsed=lambda count: 60.0 * count) == FLOOR


def test_the_error_follows_the_ranks_of_the_median_interval():
    rule = StopRule(budget_s=1)
    assert rule.error() == math.inf
    for value in range(1, 101):
        rule.add(float(value), 0.0)
    # Le Boudec's table for n = 100: the interval runs from the 40th to the 61st sample.
    assert rule.error() == pytest.approx((61 - 40) / 2 / 50.5)


def test_six_samples_are_the_first_that_bound_a_median():
    rule = StopRule(budget_s=1)
    for value in range(1, 6):
        rule.add(float(value), 0.0)
    assert rule.error() == math.inf
    rule.add(6.0, 0.0)
    assert rule.error() == pytest.approx((6 - 1) / 2 / 3.5)
    rule.add(7.0, 0.0)
    assert rule.error() == pytest.approx((7 - 1) / 2 / 4)


@pytest.mark.parametrize("middle", [0.0, -0.5])
def test_a_median_that_is_no_time_bounds_nothing(middle):
    rule = StopRule(budget_s=1e9, floor=10, cap=40)
    assert feed(rule, itertools.cycle([middle, middle - 1.0, middle + 1.0, middle])) == 40
    assert rule.error() == math.inf
