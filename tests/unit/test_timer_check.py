"""The drained clock against events, on clocks that tests turn by hand."""

import numpy as np
import pytest

from workbench.timer_check import PREFILLS, check_timer, disagreement

TOKENS = np.zeros((1, 4), np.int32)


class World:
    """An engine, a clock and a pair of events in one: the device works when it is waited for."""

    def __init__(self, launch: float, device: float, wait: float) -> None:
        self.launch, self.device, self.wait = launch, device, wait
        self.time = 0.0
        self.pending = 0.0
        self.stamps: list[float] = []
        self.calls: list[str] = []

    def now(self) -> float:
        return self.time

    def stage(self, tokens: np.ndarray) -> None:
        self.calls.append("stage")
        self.pending += 100.0

    def prefill(self) -> None:
        self.calls.append("prefill")
        self.time += self.launch
        self.pending += self.device

    def fence(self, engine: object) -> None:
        self.calls.append("fence")
        self.time += self.pending + self.wait
        self.pending = 0.0

    def begin(self) -> None:
        self.calls.append("begin")
        self.stamps = [self.time]

    def end(self) -> None:
        self.calls.append("end")
        self.stamps.append(self.time + self.pending)

    def seconds(self) -> float:
        assert self.pending == 0.0, "events are read while the device is at work"
        return self.stamps[1] - self.stamps[0]


def check(launch: float, device: float, wait: float) -> dict[str, list[float]]:
    world = World(launch, device, wait)
    found = check_timer(world, world, world, TOKENS)  # type: ignore[arg-type]
    assert world.calls == ["stage", "fence", "begin", "prefill", "end", "fence"] * PREFILLS
    return found


def test_both_clocks_time_the_same_prefills_from_idle_to_idle() -> None:
    found = check(launch=1.0, device=50.0, wait=0.5)
    assert found["events_s"] == pytest.approx([51.0] * PREFILLS)
    assert found["drained_s"] == pytest.approx([51.5] * PREFILLS)
    assert disagreement([found]) is None


def test_clocks_that_differ_are_warned_of_with_both_figures() -> None:
    line = disagreement([check(launch=0.0, device=0.050, wait=0.002)])
    assert line is not None
    assert "50.0 ms by CUDA events and 52.0 ms by the drained clock, over 2.0 % apart" in line
    assert "another stream" in line


def test_events_longer_than_the_drained_clock_differ_too() -> None:
    assert disagreement([{"events_s": [1.1], "drained_s": [1.0]}]) is not None


def test_a_short_prefill_is_marked_too_and_told_why() -> None:
    line = disagreement([check(launch=0.0, device=500e-6, wait=15e-6)])
    assert line is not None
    assert "500 µs by CUDA events and 515 µs" in line
    assert "longer prompt" in line


@pytest.mark.parametrize(("drained_s", "advice"), [(5.7e-3, "longer prompt"), (6.3e-3, "another stream")])
def test_launch_and_wait_explain_what_is_apart_in_short_prefills_only(drained_s: float, advice: str) -> None:
    assert advice in str(disagreement([{"events_s": [0.97 * drained_s], "drained_s": [drained_s]}]))


def test_all_processes_are_judged_together() -> None:
    good = {"events_s": [1.0] * 10, "drained_s": [1.01] * 10}
    bad = {"events_s": [0.9] * 10, "drained_s": [1.01] * 10}
    assert disagreement([good, good, bad]) is None
    assert disagreement([good, bad, bad]) is not None
    assert disagreement([]) is None
