"""Verdicts: what is called faster, slower or the same, and what is left unclear."""

import math
import re
from collections.abc import Sequence

import numpy as np
import pytest

from tests.unit.builders import record
from workbench.ratios import difference
from workbench.record import method
from workbench.tracking.verdict import judge, noise_floor, threshold

Processes = list[tuple[float, ...]]


def drawn(seed: int, count: int, between: float, centre: float = 1.0) -> Processes:
    """Draw processes that scatter by `between` around the truth, each with 30 samples that scatter by 1 %."""
    generator = np.random.default_rng(seed)
    centres = centre * (1 + between * generator.standard_normal(count))
    return [tuple(each * (1 + 0.01 * generator.standard_normal(30))) for each in centres]


def times(processes: Sequence[Sequence[float]], factor: float) -> Processes:
    return [tuple(factor * sample for sample in samples) for samples in processes]


QUIET, OTHER = drawn(1, 8, 0.002), drawn(2, 8, 0.002)
NOISY = drawn(3, 5, 0.03), drawn(4, 5, 0.03)


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.0, "same"), (1.05, "slower"), (0.95, "faster"), (1.005, "same"), (2.0, "slower")]
)
def test_a_change_counts_if_it_is_real_and_large_enough(factor: float, kind: str) -> None:
    found = judge(QUIET, times(OTHER, factor), floor=0.003)
    assert found.kind == kind
    assert found.threshold == 0.02
    assert found.reason is None
    assert found.ratio.low <= 1 / factor * 1.003
    assert found.ratio.high >= 1 / factor * 0.997


def test_a_real_change_below_the_threshold_is_the_same() -> None:
    found = judge(QUIET, times(OTHER, 1.015), floor=0.001)
    assert found.ratio.high < 1
    assert found.kind == "same"


@pytest.mark.parametrize(("percent", "real"), [(1.9, False), (2.1, True)])
def test_a_change_counts_from_the_threshold_on(percent: float, real: bool) -> None:
    slow = times([(1.0,)] * 5, 1 + percent / 100)
    assert judge([(1.0,)] * 5, slow, floor=0).kind == ("slower" if real else "same")
    assert judge(slow, [(1.0,)] * 5, floor=0).kind == ("faster" if real else "same")


@pytest.mark.parametrize("outlier", [1.0, 0.99])
def test_a_change_that_one_process_in_five_did_not_show_is_unclear(outlier: float) -> None:
    mostly = [(1.05,)] * 4 + [(outlier,)]
    for base, later in ((mostly, [(1.0,)] * 5), ([(1.0,)] * 5, mostly)):
        found = judge(base, later, floor=0)
        assert abs(math.log(found.ratio.value)) == pytest.approx(math.log(1.05))
        assert found.kind == "unclear"
        assert found.reason is not None
        assert "more processes a side would settle it" in found.reason


def test_a_noisy_machine_must_show_a_larger_change() -> None:
    assert threshold(0.001) == 0.02
    assert threshold(0.02) == pytest.approx(0.06)
    assert judge(QUIET, times(OTHER, 1.05), floor=0.02).kind == "same"


@pytest.mark.parametrize("few", [1, 4])
def test_fewer_than_five_processes_a_side_are_unclear_whatever_they_show(few: int) -> None:
    for base, later in ((QUIET[:few], times(OTHER, 2)), (QUIET, times(OTHER, 2)[:few])):
        found = judge(base, later, floor=0)
        assert found.kind == "unclear"
        assert found.reason == f"{few} of at least 5 processes a side: give both --repeats 5"


def test_a_machine_noisier_than_when_it_was_calibrated_must_show_a_larger_change_too() -> None:
    base, later = drawn(8, 8, 0.02), drawn(9, 8, 0.02)
    found = judge(base, times(later, 1.05), floor=0.001)
    assert found.threshold > 0.04
    assert found.kind == "unclear"


def test_a_machine_that_hides_large_changes_gives_no_verdict() -> None:
    found = judge(QUIET, times(OTHER, 3), floor=0.1)
    assert found.kind == "unclear"
    assert "too noisy" in str(found.reason)
    assert "too noisy" in str(judge(QUIET[:2], OTHER[:2], floor=0.1).reason)  # more processes would not help
    assert judge(QUIET, times(OTHER, 3), floor=0.083).kind == "slower"
    assert judge(QUIET, times(OTHER, 3), floor=0.084).kind == "unclear"


def test_absence_of_a_difference_is_no_evidence_of_sameness() -> None:
    found = judge(*NOISY, floor=0.001)
    assert found.ratio.low < 1 < found.ratio.high
    assert found.kind == "unclear"
    assert found.reason is not None
    assert "processes a side would" in found.reason


def repeats_advised(base: Processes, later: Processes, floor: float) -> int:
    reason = judge(base, later, floor).reason
    assert reason is not None
    return int(re.findall(r"--repeats (\d+)", reason)[0])


def test_as_many_processes_as_advised_settle_it_more_often_than_not() -> None:
    settled = asked = 0
    for seed in range(30):
        base, later = drawn(seed, 5, 0.03), drawn(seed + 100, 5, 0.03)
        if "--repeats" in str(judge(base, later, floor=0.02).reason):
            count = repeats_advised(base, later, 0.02)
            assert 5 < count <= 100
            more = drawn(seed + 200, count, 0.03), drawn(seed + 300, count, 0.03)
            asked += 1
            settled += judge(*more, floor=0.02).kind == "same"
    assert asked > 10
    assert settled > 0.6 * asked


def test_advice_follows_the_root_of_the_number_of_processes() -> None:
    base = [(1.0,)] * 4 + [(1.06,)]
    later = [(1.0,)] * 4 + [(1.06,)]
    found = judge(base, later, floor=0)
    wanted = math.log(1.02) - abs(math.log(found.ratio.value))
    half = max(math.log(found.ratio.high), -math.log(found.ratio.low))
    assert repeats_advised(base, later, 0) == math.ceil(5 * (half / wanted) ** 2)


def test_advice_is_about_what_the_estimate_leaves_to_settle() -> None:
    nearly = judge([(1.0,)] * 4 + [(1.03,)], [(1.005,)] * 5, floor=0)  # to be the same: log 1.02 - log 1.005
    assert nearly.reason == "about 15 more processes a side would settle it: give both --repeats 20"
    changed = judge([(1.05,)] * 4 + [(1.0,)], [(1.0,)] * 5, floor=0)  # to be faster: all of log 1.05
    assert changed.reason == "about 1 more processes a side would settle it: give both --repeats 6"


def test_what_lies_at_the_threshold_is_not_promised_to_settle() -> None:
    later = times(drawn(5, 5, 0.004), 1.0195)
    found = judge(drawn(6, 5, 0.004), later, floor=0)
    if found.kind == "unclear":
        assert found.reason is not None
        assert "over 100" in found.reason or "--repeats" in found.reason
    exact = judge([(1.0,)] * 4 + [(1.001,)], [(1.01999,)] * 4 + [(1.2,)], floor=0)
    assert exact.kind == "unclear"
    assert "over 100" in str(exact.reason)


def test_noise_floor_is_what_comparisons_of_like_processes_stay_within() -> None:
    assert noise_floor([(1.0, 1.0)] * 10) == 0
    quiet, loud = (noise_floor(drawn(7, 40, between)) for between in (0.005, 0.05))
    # The median of five scatters by 0.54 of one value, of normal ones; a difference of two by root 2 of that.
    assert quiet == pytest.approx(1.96 * math.sqrt(2) * 0.54 * 0.005, rel=0.35)
    assert loud == pytest.approx(10 * quiet, rel=0.35)


def test_noise_floor_sees_a_machine_that_changed_its_speed_half_way() -> None:
    assert noise_floor([(1.0,)] * 5 + [(1.1,)] * 5) == pytest.approx(0.1)


def test_noise_floor_needs_two_sides_of_five() -> None:
    with pytest.raises(ValueError, match="needs 10"):
        noise_floor([(1.0,)] * 9)


def test_rows_of_more_processes_are_like_work_and_those_of_another_protocol_are_not() -> None:
    row = record()
    assert difference(row, record(protocol={"gate": 1, "processes": 12})) is None
    assert "protocol" in str(difference(row, record(protocol={"gate": 2, "processes": 2})))
    assert "device" in str(difference(row, record(gpu={"name": "Another CPU", "threads": 2})))
    assert method(row.protocol) == {"gate": 1}
