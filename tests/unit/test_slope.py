"""The slope clock: what it times, which rows have it, and that no other clock's rows stand beside them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.contract import Probe
from models.config import PRESETS
from tests.unit.builders import record
from workbench import measure, report
from workbench.comparing.bursts import plan_bursts
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry, enter
from workbench.comparing.request import Settings
from workbench.comparing.source import Source
from workbench.device.machine import Device
from workbench.harness import Samples, time_slope
from workbench.job import RowJob, RowResult
from workbench.measure import NO_SLOPE, take_samples, time_row
from workbench.plan import PHASES, SLOPE_LEAD, PlannedRow, Workload, plan, with_slopes
from workbench.ratios import difference, find_ratios
from workbench.record import Record
from workbench.selection import select
from workbench.stopping import StopRule, WarmUp
from workbench.store import Store

TINY = PRESETS["tiny"]
PREFILL, STEP, TRIP = 40.0, 2.0, 300.0
SLOPE = {"clock": "slope", "protocol": {"gate": 1, "processes": 2, "slope": [16, 48]}}


class Service:
    """An engine and a clock in one: a run takes a trip and a prefill besides its steps, all by its fence."""

    def __init__(self, trip: float = TRIP) -> None:
        self.time = 0.0
        self.trip = trip
        self.steps = 0
        self.length = 0
        self.runs: list[tuple[int, int]] = []
        """Length before and steps of each run."""

    def now(self) -> float:
        return self.time

    def stage(self, tokens: np.ndarray) -> None:
        self.length = tokens.shape[1]

    def prefill(self) -> None:
        self.time += PREFILL

    def rewind(self, length: int) -> None:
        self.length = length

    def feed(self, tokens: np.ndarray) -> None:
        self.time += 1e6  # outside the clock

    def decode(self) -> None:
        self.steps += 1

    def fence(self, engine: object) -> None:
        assert engine is self
        if self.steps:
            self.time += self.trip + PREFILL + STEP * self.steps
            self.runs.append((self.length, self.steps))
            self.steps = 0


def rules(samples: int = 10) -> Any:
    return {"warm_up": WarmUp(1e9, cap=3), "stop": StopRule(1e9, floor=samples, cap=samples)}


def test_what_every_run_costs_cancels_out() -> None:
    service: Any = Service()
    samples = time_slope(service, service, 100, 16, 32, np.zeros(1, np.int32), **rules())
    assert samples.samples_s == (STEP,) * 10
    assert service.runs == [(84, 16), (84, 48)] * 13


def test_worker_times_a_slope_row_at_the_positions_of_its_twin() -> None:
    service: Any = Service()
    job = RowJob("k", "decode", 100, 32, lead=16)
    samples = take_samples(service, service, np.zeros((1, 100), np.int32), job, budget_s=1.0)
    assert set(samples.samples_s) == {STEP}
    # The longer run alone has the steps at positions 100 to 131, like the chain of 32 from 100 on.
    assert set(service.runs) == {(84, 16), (84, 48)}


def test_sampling_goes_on_while_the_slope_is_lost_in_noise() -> None:
    rule = StopRule(budget_s=1e9, floor=10, cap=40)
    assert not any(rule.add(-1.0, 0.0) for _ in range(39))
    assert rule.add(-1.0, 0.0)


def test_slope_that_noise_swallows_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = Samples((-1.0, -2.0, 1.0), (), 5.0, True)
    monkeypatch.setattr(measure, "take_samples", lambda *_: lost)
    monkeypatch.setattr(measure, "tokens", lambda *_: None)
    group = SimpleNamespace(shapes=SimpleNamespace(batch=1))
    events = SimpleNamespace(enter=lambda *_, **__: None)
    bench: Any = SimpleNamespace(events=events, job=SimpleNamespace(group=group, budget_s=1.0), clock=None)
    built: Any = SimpleNamespace(engine=None, facts=RowResult("", "ok"))
    result = time_row(bench, built, RowJob("k", "decode", 100, 32, lead=16))
    assert (result.status, result.reason, result.samples_s) == ("implausible", NO_SLOPE, ())


@pytest.mark.parametrize(("context", "lead"), [(128, SLOPE_LEAD), (16, 16), (5, 5), (1, 1)])
def test_every_decode_row_gets_a_twin_that_begins_where_the_cache_does_at_the_earliest(
    context: int, lead: int
) -> None:
    workload = Workload(("decode",), (1,), (4,), (context,), 32)
    (group,) = with_slopes(plan(TINY, workload))
    decode = [row for row in group.rows if row.phase == "decode"]
    assert decode == [
        PlannedRow("decode", 1, context, 32),
        PlannedRow("decode", 1, context, 32, lead=lead),
    ]
    assert [row.clock for row in decode] == ["chained", "slope"]
    assert len(with_slopes(plan(TINY, workload))) == len(plan(TINY, workload))


def contestant(name: str, **probe: Any) -> Contestant:
    values = {"devices": ("cpu",), "dtypes": ("float32",)} | probe
    return Contestant(name, {}, "python", Probe(**values))


def listed(root: Path, *contestants: Contestant, phases: tuple[str, ...] = PHASES) -> list[Entry]:
    workload = Workload(phases, (1,), (64,), (128,), 32)
    device = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
    source = Source("tiny", root, TINY, "abc")
    settings = Settings("tiny", workload, "float32", "cpu", 2, 1.0)
    store = Store(root / "results", pytest.fail)
    return enter(settings, device, source, store, contestants, plan(TINY, workload), again=False)


def clocks(entries: list[Entry]) -> list[tuple[str, str]]:
    return [(entry.row.clock, entry.contestant.name) for entry in entries]


def test_nobody_is_timed_by_slope_without_an_engine_that_needs_it(tmp_path: Path) -> None:
    own = contestant("a")
    missing = contestant("b", reason="not here", in_process=False)
    elsewhere = contestant("c", devices=("cuda",), in_process=False)
    entries = listed(tmp_path, own, missing, elsewhere)
    assert {clock for clock, _ in clocks(entries)} == {"drained", "chained"}
    states = {entry.contestant.name: entry.record and entry.record.status for entry in entries}
    assert states == {"a": None, "b": "missing", "c": "unsupported"}


def test_all_are_timed_by_slope_beside_an_engine_in_another_process(tmp_path: Path) -> None:
    entries = listed(tmp_path, contestant("a"), contestant("b", in_process=False))
    assert clocks(entries) == [
        ("drained", "a"),
        ("drained", "b"),
        ("chained", "a"),
        ("slope", "a"),
        ("slope", "b"),
    ]
    assert len({entry.key for entry in entries}) == len(entries)
    prefill = next(each for each in entries if each.contestant.name == "b" and each.row.phase == "prefill")
    assert prefill.record is not None
    assert prefill.record.status == "unsupported"
    assert "whole requests" in str(prefill.record.reason)
    slopes = [entry.blank for entry in entries if entry.row.clock == "slope"]
    assert {blank.clock for blank in slopes} == {"slope"}
    assert all(blank.protocol["slope"] == [16, 48] for blank in slopes)
    assert "slope" not in entries[2].blank.protocol


def test_ceilings_are_measured_at_the_pace_of_chains_not_of_pairs(tmp_path: Path) -> None:
    entries = listed(tmp_path, contestant("a"), contestant("b", in_process=False), phases=("decode",))
    for entry in entries:
        seconds, gap = (0.01, 0.5) if entry.row.lead is None else (9.0, None)
        entry.results = {0: RowResult("k", "ok", samples_s=(seconds,), gap_s=gap)}
    bursts = plan_bursts(TINY, "float32", entries, "decode")
    assert (bursts.burst_s, bursts.pause_s) == (pytest.approx(0.32), 0.5)


def shown(*records: Record) -> str:
    return report.markdown(report.Report(records, tuple(find_ratios(records, None))))


def test_rows_by_slope_are_a_table_of_their_own() -> None:
    chained = [record("eager", (1.0, 1.0)), record("compile", (0.5, 0.5))]
    slopes = [record("eager", (1.1, 1.1), **SLOPE), record("compile", (0.55, 0.55), **SLOPE)]
    text = shown(chained[0], slopes[0], chained[1], slopes[1])
    first, second = text.split(
        "**decode, batch 1, context 128, mean of 32 steps by slope: (T(48) - T(16)) / 32**"
    )
    assert first.count("| eager |") == first.count("| compile |") == 1
    assert "mean of 32 chained steps" in first
    assert second.count("| eager |") == second.count("| compile |") == 1
    assert "2.00x" in first
    assert "2.00x" in second


def test_rows_of_unlike_clocks_are_never_compared() -> None:
    chained, slope = record("eager"), record("compile", **SLOPE)
    assert str(difference(chained, slope)).startswith("clock:")
    assert find_ratios([chained, slope], None)[1].to == "compile"  # type: ignore[union-attr]
    assert len(select([chained, slope])) == 2
    assert report.short_title(slope) == "decode b1 c128 slope"
