"""How an engine's checks and its rows hang together, with checks and clocks that are told what to find."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.contract import Shapes
from workbench import measure
from workbench.checking.judgement import Verdict
from workbench.harness import Samples
from workbench.job import GroupJob, MeasureJob, RowJob, RowResult

ROWS = (RowJob("p8", "prefill", 8, None), RowJob("d16", "decode", 16, 32))
RIGHT = Verdict(True, None, 1.0)
WRONG = Verdict(False, "newest key dropped", 1.5)


class Bench:
    """Notes in which order an engine is checked and its rows are timed and sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *verdicts: Verdict) -> None:
        group = GroupJob(Shapes(1, (8, 16), 48), "golden.npz", ROWS)
        self.job = MeasureJob("eager", {}, "model", "float32", "cpu", 0, 0.1, group)
        self.events = self
        self.steps: list[str] = []
        self.sent: list[RowResult] = []
        answers = iter(verdicts)
        monkeypatch.setattr(measure, "check", lambda *_: self.note("check", next(answers)))
        monkeypatch.setattr(measure, "time_row", self.time_row)

    def note(self, step: str, answer: Any = None) -> Any:
        self.steps.append(step)
        return answer

    def time_row(self, _: object, built: Any, row: RowJob) -> RowResult:
        timed = replace(built.facts, key=row.key, samples_s=(1.0,), peak_bytes=7, warnings=("slow",))
        return self.note(f"time {row.key}", timed)

    def row(self, result: RowResult) -> None:
        self.note(f"send {result.key}")
        self.sent.append(result)

    def run(self) -> list[RowResult]:
        built: Any = SimpleNamespace(engine=None, facts=RowResult("", "ok", build_s=2.0))
        bench: Any = self
        measure.measure_rows(bench, built)
        return self.sent


def test_rows_are_timed_between_two_checks_and_sent_after_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    blind = replace(RIGHT, error_ratio=1.2, blind={"rope off by one": ("decode at length 3",)})
    bench = Bench(monkeypatch, RIGHT, blind)
    rows = bench.run()
    assert bench.steps == ["check", "time p8", "time d16", "check", "send p8", "send d16"]
    assert {(row.status, row.samples_s, row.error_ratio, row.peak_bytes) for row in rows} == {
        ("ok", (1.0,), 1.2, 7)
    }
    assert all(row.warnings[0] == "slow" and "rope off by one" in row.warnings[1] for row in rows)


def test_a_second_check_that_fails_takes_the_times_of_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = Bench(monkeypatch, RIGHT, WRONG).run()
    assert [(row.key, row.status, row.samples_s) for row in rows] == [
        ("p8", "wrong", ()),
        ("d16", "wrong", ()),
    ]
    assert {row.reason for row in rows} == {"after timing: newest key dropped"}


def test_a_first_check_that_fails_lets_nothing_be_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, WRONG)
    assert {(row.status, row.reason, row.build_s) for row in bench.run()} == {
        ("wrong", "newest key dropped", 2.0)
    }
    assert bench.steps == ["check", "send p8", "send d16"]


def test_a_process_that_dies_before_the_second_check_has_measured_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = Bench(monkeypatch, RIGHT, RIGHT)

    def die(_: object, built: Any, row: RowJob) -> RowResult:
        if row is ROWS[1]:
            raise MemoryError
        return bench.time_row(_, built, row)

    monkeypatch.setattr(measure, "time_row", die)
    with pytest.raises(MemoryError):
        bench.run()
    assert bench.sent == []


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel keeps one peak for good")
def test_a_rows_memory_is_of_the_build_and_its_own_samples_not_of_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    peaks = iter([500, 100])
    monkeypatch.setattr(measure, "peak_bytes", lambda _: next(peaks))
    resets: list[None] = []
    monkeypatch.setattr(measure.memory, "reset_peak", lambda: resets.append(None))
    monkeypatch.setattr(measure, "tokens", lambda *_: None)
    samples = Samples(samples_s=(1.0,) * 10, enqueue_s=(), doubt=None, elapsed_s=10.0)
    monkeypatch.setattr(measure, "take_samples", lambda *_: samples)
    events = SimpleNamespace(enter=lambda *_, **__: None)
    group = GroupJob(Shapes(1, (8,), 48), "", ROWS)
    bench: Any = SimpleNamespace(
        events=events, clock=None, job=MeasureJob("eager", {}, "m", "float32", "cpu", 0, 0.1, group)
    )
    built: Any = SimpleNamespace(engine=None, facts=RowResult("", "ok", peak_bytes=300))
    rows = [measure.time_row(bench, built, row) for row in ROWS]
    assert [row.peak_bytes for row in rows] == [500, 300]
    assert len(resets) == 2


@pytest.mark.parametrize(
    ("checks", "words"),
    [
        (("prefill of 8",), "at prefill of 8: it was looked for elsewhere only"),
        (("everything", "prefill of 8"), "at every check: it could not be looked for"),
    ],
)
def test_a_fault_that_rounding_hides_is_warned_of(checks: tuple[str, ...], words: str) -> None:
    found = measure.blind_spots(replace(RIGHT, blind={"one page stale": checks}))
    assert found == (f"rounding hides the fault 'one page stale' {words}",)
