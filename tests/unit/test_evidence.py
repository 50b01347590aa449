"""What a row is held against: least work, ceilings of all processes, builds, and room for its cache."""

from typing import Any

import pytest

from models.config import PRESETS
from models.work import cache_bytes, decode_work, prefill_work, weight_bytes
from workbench.comparing.builds import ColdBuild
from workbench.comparing.room import Room
from workbench.comparing.rows import Evidence, find_builds, gather
from workbench.device.machine import Device
from workbench.job import RowResult
from workbench.plan import PHASES, Workload, plan

TINY = PRESETS["tiny"]
(GROUP,) = plan(TINY, Workload(PHASES, (4,), (64,), (128,), 32))
PREFILL, DECODE = GROUP.rows
CPU = Device("cpu", "Test CPU", "x86_64", memory_bytes=None)
GPU = Device("cuda:0", "NVIDIA H200", "sm_90", memory_bytes=1 << 37)


def look(bandwidth: float) -> dict[str, Any]:
    return {
        "bandwidth_bytes_per_s": [bandwidth, bandwidth + 1],
        "flops_per_s": [5.0],
        "last_level_cache_bytes": 7,
    }


def gathered(row: Any, device: Device = GPU, *clocks: dict[str, Any]) -> Evidence:
    return gather(
        TINY, "bfloat16", device, GROUP, row, [RowResult("k", "ok", clocks=each) for each in clocks]
    )


def test_a_decode_step_is_held_against_the_mean_step_of_its_chain() -> None:
    chain, found = decode_work(TINY, "bfloat16", 4, 128, 32), gathered(DECODE)
    assert (found.work.bytes, found.work.flops) == (chain.bytes // 32, chain.flops // 32)
    assert gathered(PREFILL).work == prefill_work(TINY, "bfloat16", 4, 64)


def test_memory_is_that_of_the_weights_and_of_the_whole_cache() -> None:
    found = gathered(DECODE)
    assert found.weight_bytes == weight_bytes(TINY, "bfloat16")
    assert found.cache_bytes == cache_bytes(TINY, "bfloat16", 4, 128 + 32)


def test_ceilings_of_all_processes_count_each_look_once() -> None:
    shared = {"ceilings_before": look(1.0), "ceilings_after": look(3.0)}
    found = gathered(
        DECODE, GPU, shared, {}, shared, {"ceilings_before": look(3.0), "ceilings_after": look(9.0)}
    )
    assert found.ceilings["bandwidth_bytes_per_s"]["rounds"] == [[1.0, 2.0], [3.0, 4.0], [9.0, 10.0]]
    assert found.ceilings["bandwidth_bytes_per_s"]["median"] == 3.5


def test_room_is_for_the_cache_of_a_decode_row_in_memory_that_is_known() -> None:
    one = cache_bytes(TINY, "bfloat16", 1, 1)
    assert gathered(DECODE).room == Room(1 << 37, one, 4, 128, 128 + 32, TINY.max_positions)
    assert gathered(PREFILL).room is None
    assert gathered(DECODE, CPU).room is None


@pytest.mark.parametrize(
    ("seen", "before", "builds"),
    [
        ([(True, 9.0), (False, 2.0), (False, 1.0)], None, {"cold": 9.0, "warm": 1.5}),
        ([(True, 9.0), (True, 8.0), (True, 1.0)], None, {"cold": 8.0, "warm": None}),
        ([(False, 2.0), (False, 1.0), (False, 6.0)], None, {"cold": None, "warm": 2.0}),
        ([(False, 2.0)], ColdBuild(7.0, "then"), {"cold": 7.0, "warm": 2.0, "cold_measured": "then"}),
        ([(True, 9.0), (False, 2.0)], ColdBuild(7.0, "then"), {"cold": 9.0, "warm": 2.0}),
        ([(None, 0.9), (None, 0.3)], ColdBuild(7.0, "then"), {"cached": 0.3}),
        ([(None, None), (None, 0.3), (True, None)], None, {"cached": 0.3}),
        ([(True, None), (False, None)], None, {"cold": None, "warm": None}),
    ],
)
def test_builds_are_told_apart_by_the_caches_they_found(
    seen: list[tuple[bool | None, float | None]], before: ColdBuild | None, builds: dict[str, Any]
) -> None:
    results = [RowResult("k", "ok", cold=cold, build_s=build_s) for cold, build_s in seen]
    assert find_builds(results, before) == builds
