"""How the ceilings' bursts follow each other: as planned from rows, as settled from rates."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Probe
from models.config import PRESETS
from models.work import Work, decode_work, prefill_work
from workbench.comparing.bursts import FIRST_PAUSE_S, plan_bursts
from workbench.comparing.contestants import Contestant
from workbench.comparing.entries import Entry, enter
from workbench.comparing.request import Settings
from workbench.comparing.source import Source
from workbench.device import ceilings
from workbench.device.machine import Device
from workbench.job import BurstJob, RowResult
from workbench.plan import PHASES, Workload, plan
from workbench.store import Store

TINY = PRESETS["tiny"]


def entries(root: Path, phases: tuple[str, ...] = PHASES) -> list[Entry]:
    workload = Workload(phases, (1,), (64,), (128,), 32)
    device = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
    source = Source("tiny", root, TINY, "abc")
    settings = Settings("tiny", workload, "float32", "cpu", 2, 1.0)
    contestants = [Contestant("a", {}, "python", Probe())]
    store = Store(root / "results", pytest.fail)
    return enter(settings, device, source, store, contestants, plan(TINY, workload), again=False)


def result(samples_s: tuple[float, ...], gap_s: float | None) -> RowResult:
    return RowResult("k", "ok", samples_s=samples_s, gap_s=gap_s)


def test_bursts_are_as_long_as_the_samples_of_their_phase(tmp_path: Path) -> None:
    rows = entries(tmp_path)
    for row in rows:
        seconds = 0.5 if row.row.phase == "prefill" else 0.01
        gap = 0.02 if row.row.phase == "prefill" else 0.003
        row.results = {0: result((seconds, seconds, 9.0), gap), 1: result((seconds,), None)}
    prefill = plan_bursts(TINY, "float32", rows, "prefill")
    decode = plan_bursts(TINY, "float32", rows, "decode")
    assert (prefill.burst_s, prefill.pause_s) == (0.5, 0.02)
    assert (decode.burst_s, decode.pause_s) == (pytest.approx(32 * 0.01), 0.003)


def test_before_anything_is_timed_there_is_the_least_work_to_estimate_by(tmp_path: Path) -> None:
    rows = entries(tmp_path)
    prefill = plan_bursts(TINY, "float32", rows, "prefill")
    work = prefill_work(TINY, "float32", 1, 64)
    assert prefill == BurstJob(None, FIRST_PAUSE_S, ((work.bytes, work.flops),))
    (chain,) = plan_bursts(TINY, "float32", rows, "decode").least
    whole = decode_work(TINY, "float32", 1, 128, 32)
    assert chain == (pytest.approx(whole.bytes, rel=1e-6), pytest.approx(whole.flops, rel=1e-6))


def test_a_phase_without_rows_takes_the_bursts_of_the_other(tmp_path: Path) -> None:
    rows = entries(tmp_path, ("decode",))
    rows[0].results = {0: result((0.01,), 0.003)}
    prefill = plan_bursts(TINY, "float32", rows, "prefill")
    assert prefill == plan_bursts(TINY, "float32", rows, "decode")


def test_samples_by_slope_which_are_of_two_chains_are_gone_by_where_there_are_no_others(
    tmp_path: Path,
) -> None:
    (plain,) = entries(tmp_path, ("decode",))
    (slope,) = (replace(entry, row=replace(entry.row, lead=16)) for entry in entries(tmp_path, ("decode",)))
    plain.results, slope.results = {0: result((0.01,), 0.003)}, {0: result((0.02,), 0.005)}
    for phase in PHASES:
        assert plan_bursts(TINY, "float32", [slope, plain], phase).burst_s == pytest.approx(0.32)
        assert plan_bursts(TINY, "float32", [slope], phase).burst_s == pytest.approx(0.64)


RATES = Work(bytes=1000, flops=10_000)


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (BurstJob(0.1, 0.01, ()), (0.1, 0.01)),
        (BurstJob(None, 0.01, ((100, 10), (300, 10), (10, 2000))), (0.2, 0.01)),
        (BurstJob(9.0, 1.0, ()), (0.9, 0.1)),
    ],
    ids=["as timed", "estimated by what bounds the middle row", "shortened at the same duty cycle"],
)
def test_bursts_are_settled(job: BurstJob, expected: tuple[float, float]) -> None:
    found = ceilings.bursts(job, RATES, longest_s=1.0)
    assert (found.burst_s, found.pause_s) == pytest.approx(expected)


def test_bursts_that_warmed_up_are_counted_and_each_has_its_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    naps = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        now[0] += seconds

    def call() -> None:
        now[0] += 0.002 if now[0] < 0.2 else 0.001  # the clock rises under load

    for name, function in (("perf_counter", lambda: now[0]), ("monotonic", lambda: now[0]), ("sleep", nap)):
        monkeypatch.setattr(ceilings.time, name, function)
    unused: Any = None
    on = ceilings.Device(unused, "cuda:0", unused, lambda: None, 0, 0, warm_s=0.3, longest_s=1.0)
    found = ceilings.rates(on, (call, 5.0), 2500.0, ceilings.Bursts(0.05, 0.004))
    assert found == pytest.approx([5000.0] * ceilings.BURSTS)
    assert len(naps) > ceilings.BURSTS
    assert set(naps) == {0.004}
