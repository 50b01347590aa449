"""From the results of processes to one record: estimate, share of the limit, status."""

import dataclasses
from typing import Any

import pytest

from models.work import Work
from tests.unit.builders import record
from workbench.comparing.room import Room
from workbench.comparing.rows import Evidence, finish, summarise_ceilings
from workbench.device.conditions import Sighting, summarise
from workbench.job import RowResult

BLANK = record(status="missing")
MIB = 1 << 20


def result(samples: tuple[float, ...] = (1.0, 1.1, 0.9), **changes: Any) -> RowResult:
    values: dict[str, Any] = {"key": "k", "status": "ok", "samples_s": samples, "error_ratio": 1.0}
    return RowResult(**(values | changes))


def evidence(gigabytes: float = 50.0, gigaflops: float = 1.0) -> Evidence:
    look: dict[str, Any] = {"bandwidth_bytes_per_s": [99e9, 100e9, 101e9], "flops_per_s": [1e12, 1e12]}
    look["last_level_cache_bytes"] = 32 * MIB
    return Evidence(
        work=Work(int(gigabytes * 1e9), int(gigaflops * 1e9)),
        ceilings=summarise_ceilings([look]),
        weight_bytes=300 * MIB,
        cache_bytes=100 * MIB,
        build_s={"cold": 2.0, "warm": 1.0},
    )


def test_estimate_is_the_median_of_process_medians() -> None:
    row = finish(BLANK, [result((1.0, 1.0, 9.0)), result((3.0, 3.0, 3.0))], evidence())
    assert row.status == "ok"
    assert row.time_s is not None
    assert row.time_s.median == pytest.approx(2.0)
    assert row.time_s.low <= 1.0
    assert row.time_s.high >= 3.0
    assert row.tokens_per_s == pytest.approx(0.5)


def test_every_sample_is_kept_in_order() -> None:
    row = finish(BLANK, [result((3.0, 1.0, 2.0)), result((5.0, 4.0))], evidence())
    assert [run.samples_s for run in row.processes] == [(3.0, 1.0, 2.0), (5.0, 4.0)]


def test_share_of_the_limit_is_least_time_over_time() -> None:
    row = finish(BLANK, [result((1.0,) * 5)], evidence(gigabytes=50))
    assert row.limit_share == pytest.approx(0.5)
    assert row.least_work == {"bytes": 50_000_000_000, "flops": 1_000_000_000}
    compute_bound = finish(BLANK, [result((1.0,) * 5)], evidence(gigabytes=1, gigaflops=800))
    assert compute_bound.limit_share == pytest.approx(0.8)


def test_time_below_the_ceilings_interval_is_implausible_and_has_no_time() -> None:
    row = finish(BLANK, [result((0.4,) * 5)], evidence(gigabytes=50))
    assert row.status == "implausible"
    assert row.time_s is None
    assert row.processes[0].samples_s == (0.4,) * 5  # what there is to look at
    assert "did not do the work" in (row.reason or "")


def test_one_slow_process_does_not_make_an_impossible_median_plausible() -> None:
    row = finish(BLANK, [result((0.1,) * 5), result((0.8,) * 5)], evidence(gigabytes=50))
    assert row.status == "implausible"


def test_time_within_the_ceilings_interval_is_believed() -> None:
    row = finish(BLANK, [result((0.497,) * 5)], evidence(gigabytes=50))
    assert row.status == "ok"
    assert row.limit_share == pytest.approx(50 / 100 / 0.497)


def test_work_that_fits_in_cache_has_no_share_and_says_so() -> None:
    row = finish(BLANK, [result((1e-6,) * 5)], evidence(gigabytes=0.01))
    assert row.status == "ok"
    assert row.limit_share is None
    assert any("which serves part of it" in line for line in row.warnings)


def test_parts_are_the_medians_of_the_processes_that_have_them() -> None:
    found = [result(parts={"plan_s": plan, "run_s": 1.0}) for plan in (4.0, 1.0, 2.0)]
    assert finish(BLANK, [*found, result()], evidence()).parts == {"plan_s": 2.0, "run_s": 1.0}
    assert finish(BLANK, [result(), found[0]], evidence()).parts == {"plan_s": 4.0, "run_s": 1.0}
    assert finish(BLANK, [result()], evidence()).parts == {}


def test_one_failed_process_fails_the_row() -> None:
    crashed = RowResult("k", "crashed", "killed by SIGKILL in stage time")
    for results in ([result(), crashed], [crashed, result()], [crashed, RowResult("k", "oom", "later")]):
        row = finish(BLANK, results, evidence())
        assert (row.status, row.time_s, row.tokens_per_s) == ("crashed", None, None)
        assert row.reason == "killed by SIGKILL in stage time"
        assert row.error_ratio == (1.0 if result() in results else None)


def test_a_row_says_what_its_engine_was_when_and_beside_which_ceilings() -> None:
    look = {"ceilings_before": {"bandwidth_bytes_per_s": [1.0]}, "idle_bytes": 7}
    made = result(definition="own", provenance="patched: x", clocks=look)
    row = finish(BLANK, [made], evidence())
    assert (row.definition, row.provenance) == ("own", "patched: x")
    assert row.created > BLANK.created
    assert (row.ceilings, row.build_s) == (evidence().ceilings, {"cold": 2.0, "warm": 1.0})
    assert row.processes[0].clocks == {"idle_bytes": 7}  # the record has the ceilings once


@pytest.mark.parametrize("untuned", [True, False])
def test_a_time_that_says_nothing_of_the_compiler_is_warned_of(untuned: bool) -> None:
    engine = {"key": "k", "target": "h100", "untuned": untuned}
    row = finish(dataclasses.replace(BLANK, engine=engine), [result()], evidence())
    assert any("its engine for h100" in line for line in row.warnings) is untuned


def test_a_device_whose_cache_is_unknown_has_a_share_all_the_same() -> None:
    known = evidence(gigabytes=0.01)
    ceilings = {name: each for name, each in known.ceilings.items() if name != "last_level_cache_bytes"}
    row = finish(BLANK, [result((1e-2,) * 5)], dataclasses.replace(known, ceilings=ceilings))
    assert row.limit_share == pytest.approx(0.1)


def test_one_unstable_process_makes_the_row_unstable_with_its_reason() -> None:
    results = [result(), result(status="unstable", reason="drifted"), result()]
    row = finish(BLANK, results, evidence())
    assert (row.status, row.reason) == ("unstable", "drifted")
    assert row.timed


def seen(reasons: int, sm_mhz: int = 1980) -> dict[str, Any]:
    return summarise([Sighting(sm_mhz, 3201, 400.0, 60, 99, reasons)] * 10)


def test_one_process_slowed_down_by_the_hardware_makes_the_row_unstable() -> None:
    results = [result(clocks=seen(0)), result(status="unstable", reason="drifted", clocks=seen(0x40))]
    row = finish(BLANK, results, evidence())
    assert row.status == "unstable"
    assert row.timed
    assert (row.reason or "").startswith("the GPU held back (hw_thermal_slowdown in 100% of the samples")
    assert (row.reason or "").endswith("; drifted")


def test_power_limit_is_warned_of_once_and_leaves_the_row_as_it_is() -> None:
    blank = dataclasses.replace(BLANK, gpu={"name": "NVIDIA H200", "power_limit_w": 700})
    results = [result(clocks=seen(0x4, clock)) for clock in (1395, 1410, 1400)]
    row = finish(blank, results, evidence())
    assert row.status == "ok"
    assert sum("the power limit (700 W)" in line for line in row.warnings) == 1
    assert row.processes[0].clocks["reasons"] == {"sw_power_cap": 1.0}


def test_row_says_what_fits_by_its_own_memory_and_what_was_held_before() -> None:
    room = Room(1000 * MIB, MIB, batch=2, context=40, capacity=50, max_positions=10_000)
    results = [result(peak_bytes=500 * MIB, clocks={"idle_bytes": 100 * MIB}), result(peak_bytes=1)]
    row = finish(BLANK, results, dataclasses.replace(evidence(), room=room))
    assert row.fits == {"tokens": 500, "context": 240, "batch": 10}
    assert finish(BLANK, results, evidence()).fits == {}


def test_memory_is_split_and_the_rest_is_unknown_where_it_would_be_negative() -> None:
    row = finish(BLANK, [result(peak_bytes=500 * MIB), result(peak_bytes=450 * MIB)], evidence())
    assert row.peak_bytes == {
        "total": 500 * MIB,
        "weights": 300 * MIB,
        "cache": 100 * MIB,
        "rest": 100 * MIB,
    }
    small = finish(BLANK, [result(peak_bytes=1)], evidence())
    assert small.peak_bytes["rest"] is None


@pytest.mark.parametrize(
    ("seen", "total"),
    [
        ([(True, 900), (False, 500), (False, 450)], 500),  # compiling takes memory, too
        ([(True, 900), (False, None)], 900),
        ([(None, 450), (None, 500)], 500),
        ([(True, 400)], 400),
        ([(True, None)], None),
    ],
)
def test_memory_is_that_of_processes_that_found_their_caches_warm(
    seen: list[tuple[bool | None, int | None]], total: int | None
) -> None:
    results = [result(cold=cold, peak_bytes=peak and peak * MIB) for cold, peak in seen]
    memory = finish(BLANK, results, evidence()).peak_bytes
    assert memory["total"] == (total and total * MIB)
    assert memory["rest"] == (total and (total - 400) * MIB)


def test_a_prefills_way_to_the_host_and_a_loading_are_medians_over_the_processes() -> None:
    enqueues = ((1.0, 2.0, 9.0), (3.0, 4.0, 8.0), ())
    results = [
        result(enqueue_s=each, load_s=load_s) for each, load_s in zip(enqueues, (1.0, 2.0, 9.0), strict=True)
    ]
    row = finish(BLANK, results, evidence())
    assert row.enqueue_s == 3.5
    assert row.load_s == 2.0
    assert (finish(BLANK, [result()], evidence()).enqueue_s, BLANK.load_s) == (None, None)


def test_kernels_are_those_of_the_first_process_that_has_them_else_why_there_are_none() -> None:
    why = result(no_kernels="CUPTI is missing")
    row = finish(BLANK, [result(), why, result(no_kernels="other")], evidence())
    assert (row.kernels, row.no_kernels) == (None, "CUPTI is missing")
    traced = [{"enqueue_s": 0.1, "busy_s": busy, "wall_s": 1.0, "span_s": 1.0} for busy in (1.0, 0.9)]
    row = finish(BLANK, [result(), *(result(kernels=each) for each in traced)], evidence())
    assert (row.kernels, row.no_kernels) == (traced[0], None)


def test_worst_error_and_all_warnings_of_the_processes_are_kept_once() -> None:
    results = [result(warnings=("a", "b")), result(error_ratio=1.5, warnings=("b",))]
    row = finish(BLANK, results, dataclasses.replace(evidence(), ceilings={}))
    assert row.error_ratio == 1.5
    assert row.warnings[:2] == ("a", "b")
    assert any("no ceilings" in line for line in row.warnings)


def test_ceilings_keep_every_sample_of_every_look() -> None:
    how: dict[str, Any] = {"bandwidth": {"burst_s": 0.1, "pause_s": 0.001}}
    first: dict[str, Any] = {
        "bandwidth_bytes_per_s": [1.0, 3.0],
        "flops_per_s": [5.0],
        "last_level_cache_bytes": 7,
    }
    first["bursts"] = how
    second = {"bandwidth_bytes_per_s": [2.0], "flops_per_s": [7.0], "last_level_cache_bytes": 7}
    summary = summarise_ceilings([first, second])
    assert summary["bandwidth_bytes_per_s"]["rounds"] == [[1.0, 3.0], [2.0]]
    assert summary["bandwidth_bytes_per_s"]["median"] == 2.0
    assert summary["flops_per_s"]["median"] == 6.0
    assert summary["last_level_cache_bytes"] == 7
    assert summary["bursts"] == [how]


def test_a_ceilings_interval_holds_the_middle_95_percent_of_its_samples() -> None:
    look: dict[str, Any] = {"bandwidth_bytes_per_s": list(range(41)), "flops_per_s": [1.0]}
    found = summarise_ceilings([look | {"last_level_cache_bytes": 7}])["bandwidth_bytes_per_s"]
    assert (found["low"], found["median"], found["high"]) == (1.0, 20.0, 39.0)
