"""What the parent adds to a worker's rows."""

from types import SimpleNamespace

import pytest

from backends.contract import Shapes
from workbench import job as jobs
from workbench.comparing import turn
from workbench.device.machine import Device
from workbench.device.watch import Watch
from workbench.job import GroupJob, MeasureJob, RowJob, RowResult

CPU = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
ROW = RowJob("k", "decode", 8, 32)
JOB = MeasureJob(
    "eager", {}, "model", "float32", "cpu", 0, 1.0, GroupJob(Shapes(1, (8,), 40), "golden", (ROW,))
)


def test_a_row_tells_what_its_process_spent_in_each_stage(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(turn.time, "monotonic", lambda: now)
    kept: list[RowResult] = []
    entry = SimpleNamespace(blank=SimpleNamespace(weights="abc"))
    one = turn.Turn(
        JOB,
        {"k": entry},  # type: ignore[dict-item]
        0,
        CPU,
        {},
        keep=lambda entry, repeat, result: kept.append(result),
        say=lambda stage: None,
        advance=lambda: None,
    )
    one.watch, one.since = Watch(CPU), now
    for stage, seconds in (("load", 2.0), ("build", 3.0), ("gate", 5.0), ("time", 7.0), ("gate", 11.0)):
        now += seconds
        one.take({"event": "stage", "stage": stage})
        if stage == "time":
            now += 0.5  # it warms up
            for done in (0, 3, 0):  # the second row's first sample is not the process'
                one.take({"event": "progress", "row": "k", "done": done})
    now += 13.0
    result = RowResult("k", "ok", samples_s=(1.0,), weights="abc")
    one.take({"event": "row", "result": jobs.to_json(result)})
    # What came before an event was spent in the stage before it; the second gate adds to the first.
    assert kept[0].clocks["stages_s"] == {
        "start": 2.0,
        "load": 3.0,
        "build": 5.0,
        "gate": 7.0 + 13.0,
        "time": 11.0 + 0.5,
    }
    assert kept[0].clocks["first_sample_s"] == 2.0 + 3.0 + 5.0 + 7.0 + 0.5
