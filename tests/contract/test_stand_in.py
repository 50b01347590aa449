"""The worker from end to end with an engine in another process: a stand-in, as TensorRT-LLM is not here."""

import os
from pathlib import Path

import pytest

pytest.importorskip("torch")

from backends.contract import Shapes
from models.checkpoint import open_checkpoint
from models.weights import write_preset
from workbench import process
from workbench.checking.checks import capacity_for
from workbench.job import GoldenJob, GroupJob, MeasureJob, ProbeJob, RowJob, RowResult, read_row_result

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stand_in")]),
}
CONTEXT, STEPS, LEAD = 3, 32, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_preset("tiny", "float32", folder)
    return folder


@pytest.fixture(scope="module")
def group(model: Path, tmp_path_factory: pytest.TempPathFactory) -> GroupJob:
    folder = tmp_path_factory.mktemp("golden")
    row = RowJob("slope", "decode", CONTEXT, STEPS, LEAD)
    shapes = Shapes(1, (CONTEXT,), capacity_for(CONTEXT, STEPS))
    group = GroupJob(shapes, str(folder / "golden.npz"), (row,))
    outcome = process.run(GoldenJob(str(model), "float32", "cpu", 0, (group,)), log=folder / "log")
    assert outcome.ok, outcome.reason
    return group


def measure(backend: str, options: dict[str, str], model: Path, group: GroupJob, log: Path) -> RowResult:
    events: list[process.Json] = []
    job = MeasureJob(backend, options, str(model), "float32", "cpu", 0, 0.2, group)
    outcome = process.run(job, log=log, environment=ENVIRONMENT, on_event=events.append)
    assert outcome.ok, f"{outcome.reason}\n{log.read_text()}"
    (row,) = [read_row_result(event["result"]) for event in events if event["event"] == "row"]
    return row


@pytest.mark.parametrize("option", ["pytorch", "engine"])
def test_stand_in_is_verified_and_timed_by_slope(
    option: str, model: Path, group: GroupJob, tmp_path: Path
) -> None:
    row = measure("stand-in", {option: ""}, model, group, tmp_path / "log")
    assert row.status in ("ok", "unstable"), row.reason
    assert len(row.samples_s) >= 10
    assert row.error_ratio is not None
    assert 0 < row.error_ratio < 3
    assert row.weights == open_checkpoint(model, "float32").checksum()
    assert row.definition == "own"
    assert row.warnings[0].startswith("not yet run on hardware by us")
    assert row.peak_bytes is None  # this process's memory says nothing of the engine's


def test_engine_in_the_worker_is_timed_by_slope_too(model: Path, group: GroupJob, tmp_path: Path) -> None:
    row = measure("eager", {}, model, group, tmp_path / "log")
    assert row.status in ("ok", "unstable"), row.reason
    assert len(row.samples_s) >= 10
    assert row.gap_s is None  # the pause before a pair of chains is no pace for the ceilings
    assert row.warnings == () or "warming up" in row.warnings[0]


def test_stand_in_says_that_it_is_one_and_is_out_of_process(tmp_path: Path) -> None:
    outcome = process.run(ProbeJob("stand-in"), log=tmp_path / "log", environment=ENVIRONMENT)
    assert outcome.result is not None
    assert outcome.result["in_process"] is False
    assert outcome.result["versions"] == {"stand-in": "1.0"}
