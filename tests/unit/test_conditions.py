"""What is said of the conditions a row was timed under, from made-up samples."""

from dataclasses import replace

import pytest

from workbench.device.conditions import COURSE, Sighting, advise, slow_down, summarise

CALM = Sighting(1980, 3201, 400.0, 55, 100, 0)
CAPPED = replace(CALM, sm_mhz=1395, power_w=699.0, reasons=0x4)


def test_a_summary_keeps_the_spread_the_halves_and_the_share_of_each_reason():
    found = summarise([CALM] * 4 + [CAPPED] * 4)
    assert found["samples"] == 8
    assert found["sm_mhz"] == {"low": 1395, "median": 1687.5, "high": 1980, "halves": [1980, 1395]}
    assert found["power_w"] == {"low": 400.0, "median": 549.5, "high": 699.0}
    assert found["reasons"] == {"sw_power_cap": 0.5}


def test_a_summary_keeps_a_few_moments_of_the_course():
    falling = [replace(CALM, sm_mhz=1980 - at, at_s=7 + at / 20) for at in range(101)]
    course = summarise(falling)["course"]
    assert course["at_s"][0] == 0
    assert course["at_s"][-1] == 5
    assert course["sm_mhz"] == [1980 - round(20 * at) for at in course["at_s"]]
    assert len(course["power_w"]) == COURSE
    unknown = Sighting(None, None, None, None, None, None)
    for seen in (replace(CALM, power_w=None), replace(CALM, sm_mhz=None)):
        course = summarise([seen, unknown])["course"]
        assert (course["sm_mhz"], course["power_w"]) == ([seen.sm_mhz, None], [seen.power_w, None])
    assert summarise([unknown])["course"] is None


def test_nothing_seen_is_nothing_said():
    assert summarise([]) == {}
    assert slow_down([]) is None
    assert slow_down([{}]) is None
    assert advise([{}], 700) == ()
    assert advise([], None) == ()


def test_a_card_that_tells_nothing_is_not_judged():
    silent = summarise([Sighting(None, None, None, None, None, None)] * 20)
    assert silent["reasons"] is None
    assert silent["sm_mhz"] is None
    assert slow_down([silent]) is None
    assert advise([silent], None) == ()


def test_a_calm_row_has_no_warnings():
    calm = summarise([CALM] * 20)
    assert slow_down([calm]) is None
    assert advise([calm], 700) == ()


def test_the_power_limit_is_warned_of_by_its_worst_process():
    calm, capped = summarise([CALM] * 20), summarise([CALM] * 4 + [CAPPED] * 16)
    (power,) = advise([calm, capped], 700)
    assert power.startswith("the power limit (700 W) held the clock in 80% of the samples; ")
    assert "median was 1395 MHz" in power
    assert "nvidia-smi -pl" in power
    assert slow_down([capped]) is None


@pytest.mark.parametrize(("capped", "warned"), [(1, False), (2, True), (3, True)])
def test_a_power_limit_met_in_less_than_a_tenth_of_the_samples_is_not_worth_a_warning(capped, warned):
    seen = summarise([replace(CALM, reasons=0x4)] * capped + [CALM] * (20 - capped))
    assert bool(advise([seen], 700)) is warned


def test_a_power_limit_that_nvml_does_not_tell_is_warned_of_all_the_same():
    (power,) = advise([summarise([CAPPED] * 20)], None)
    assert power.startswith("the power limit held the clock in 100% of the samples")


@pytest.mark.parametrize(("clock", "name"), [("sm_mhz", "SM"), ("memory_mhz", "memory")])
def test_a_clock_that_falls_is_warned_of_with_a_next_step(clock, name):
    high, low = replace(CALM, **{clock: 1980}), replace(CALM, **{clock: 1410})
    falling = summarise([high] * 10 + [low] * 10)
    warning = f"the {name} clock fell from 1980 to 1410 MHz while it was timed: rerun when the GPU is cool"
    assert advise([falling], 700) == (warning,)
    calm = summarise([CALM] * 20)
    assert advise([calm, falling, calm], 700) == (warning,)
    assert advise([summarise([low] * 10 + [high] * 10)], 700) == ()  # it rose, as it does in warming up
    assert advise([summarise([high] * 3 + [low] * 3)], 700) == ()  # too few to say


@pytest.mark.parametrize(("later", "warned"), [(1930, False), (1910, True)])
def test_a_clock_may_fall_by_3_percent(later, warned):
    falling = summarise([CALM] * 10 + [replace(CALM, sm_mhz=later)] * 10)
    assert bool(advise([falling], 700)) is warned


@pytest.mark.parametrize(
    ("bit", "name"),
    [
        (0x8, "hw_slowdown"),
        (0x20, "sw_thermal_slowdown"),
        (0x40, "hw_thermal_slowdown"),
        (0x80, "hw_power_brake"),
    ],
)
def test_a_slow_down_by_the_hardware_is_named_with_a_next_step(bit, name):
    slow = summarise([CALM] * 19 + [replace(CALM, reasons=bit | 0x4, temperature_c=91)])
    reason = slow_down([summarise([CALM] * 20), slow])
    assert reason is not None
    assert f"({name} in 5% of the samples of a process, at up to 91 degrees Celsius)" in reason
    assert reason.endswith("then rerun")


def test_a_slow_down_that_was_seen_once_in_a_long_row_is_one():
    reason = slow_down([summarise([CALM] * 2999 + [replace(CALM, reasons=0x8)])])
    assert "hw_slowdown in 0.1% of the samples" in str(reason)


@pytest.mark.parametrize("bit", [0x1, 0x2, 0x4, 0x10, 0x100])
def test_what_is_asked_for_is_no_slow_down(bit):
    assert slow_down([summarise([replace(CALM, reasons=bit)] * 20)]) is None
