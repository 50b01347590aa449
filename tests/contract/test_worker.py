"""The worker from end to end with a real backend: golden, build, gate, times, on a GPU if there is one."""

import statistics
from pathlib import Path

import pytest

from backends import variables
from backends.contract import Shapes, Target
from models.checkpoint import open_checkpoint
from models.weights import write_preset
from workbench import process
from workbench.checking.checks import capacity_for
from workbench.comparing.contestants import choose
from workbench.device import machine
from workbench.job import (
    BurstJob,
    CeilingsJob,
    GoldenJob,
    GroupJob,
    MeasureJob,
    PresetJob,
    ProbeJob,
    RowJob,
    read_row_result,
)

pytest.importorskip("torch")

DEVICE = machine.resolve_device("auto")
DTYPE = "float32"
STEPS = 32
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""Two workers' threads that spin for each other on a small machine would be most of what is timed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_preset("tiny", DTYPE, folder)
    return folder


@pytest.fixture(scope="module")
def groups(model, tmp_path_factory):
    """Two engines' worth of rows, with their golden files made by a worker."""
    folder = tmp_path_factory.mktemp("golden")
    shapes = (
        Shapes(1, (32, 64), capacity_for(64, STEPS)),
        Shapes(2, (16,), capacity_for(16, 0)),
    )
    rows = (
        (RowJob("p32", "prefill", 32, None), RowJob("d64", "decode", 64, STEPS)),
        (RowJob("p16", "prefill", 16, None),),
    )
    found = tuple(
        GroupJob(shape, str(folder / f"{index}.npz"), row)
        for index, (shape, row) in enumerate(zip(shapes, rows, strict=True))
    )
    outcome, events = run(GoldenJob(str(model), DTYPE, DEVICE, 0, found), folder / "log")
    assert outcome.ok, outcome.reason
    assert {event["stage"] for event in events if event["event"] == "stage"} == {"gate"}
    return found


def run(job, log):
    events = []
    outcome = process.run(job, log=log, environment=ENVIRONMENT, on_event=events.append)
    return outcome, events


def rows_of(events):
    return {row.key: row for row in (read_row_result(e["result"]) for e in events if e["event"] == "row")}


def test_a_right_backend_gets_times_for_every_row(model, groups, tmp_path):
    rows = {}
    for group in groups:
        job = MeasureJob("eager", {}, str(model), DTYPE, DEVICE, 0, 0.5, group)
        outcome, events = run(job, tmp_path / "log")
        assert outcome.ok, outcome.reason
        rows |= rows_of(events)
    assert rows.keys() == {"p32", "d64", "p16"}
    checksum = open_checkpoint(Path(model), DTYPE).checksum()
    for row in rows.values():
        assert row.status in ("ok", "unstable"), row.reason
        assert len(row.samples_s) >= 10
        assert min(row.samples_s) > 0
        assert row.weights == checksum
        assert row.definition == "common"
        assert 0 < row.error_ratio < 3
        assert row.build_s > 0
        assert row.load_s > 0
    for key in ("p32", "p16"):
        row = rows[key]
        pairs = zip(row.enqueue_s, row.samples_s, strict=True)
        assert all(0 < enqueue <= wall for enqueue, wall in pairs)
    assert rows["d64"].enqueue_s == ()


def test_memory_of_a_cpu_engine_is_what_it_takes(model, groups, tmp_path):
    if DEVICE != "cpu":
        pytest.skip("a GPU's memory is seen by the parent")
    job = MeasureJob("eager", {}, str(model), DTYPE, DEVICE, 0, 0.1, groups[1])
    _, events = run(job, tmp_path / "log")
    (peak,) = [event["result"]["peak_bytes"] for event in events if event["event"] == "row"]
    assert open_checkpoint(Path(model), DTYPE).nbytes < peak < 4 << 30


def test_a_backend_that_computes_nothing_gets_no_time(model, groups, tmp_path):
    job = MeasureJob("null", {}, str(model), DTYPE, DEVICE, 0, 0.1, groups[0])
    outcome, events = run(job, tmp_path / "log")
    assert outcome.ok
    rows = [event["result"] for event in events if event["event"] == "row"]
    assert [(row["status"], row["samples_s"]) for row in rows] == [("wrong", [])] * 2
    assert all(row["reason"] for row in rows)


def test_rows_are_timed_between_two_checks_and_sent_after_the_second(model, groups, tmp_path):
    job = MeasureJob("eager", {}, str(model), DTYPE, DEVICE, 0, 0.1, groups[0])
    _, events = run(job, tmp_path / "log")
    seen = [(event.get("stage"), event.get("row")) for event in events if event["event"] in ("stage", "row")]
    steps = [step for index, step in enumerate(seen) if index == 0 or step != seen[index - 1]]
    assert steps[-5:] == [("gate", None), ("time", "p32"), ("time", "d64"), ("gate", None), (None, None)]
    assert [event["event"] for event in events[-3:]] == ["row", "row", "done"]


def test_an_option_that_the_device_lacks_is_unsupported(model, groups, tmp_path):
    if DEVICE != "cpu":
        pytest.skip("eager[graph] is made for GPUs")
    job = MeasureJob("eager", {"graph": ""}, str(model), DTYPE, DEVICE, 0, 0.1, groups[0])
    outcome, _ = run(job, tmp_path / "log")
    assert outcome.status == "unsupported"
    assert "CUDA graph" in outcome.reason


def test_the_probe_answers_for_the_workers_environment(tmp_path):
    outcome, _ = run(ProbeJob("eager"), tmp_path / "log")
    assert outcome.result["reason"] is None
    assert outcome.result["versions"]["torch"]
    assert DTYPE in outcome.result["dtypes"]


def test_options_add_the_versions_of_what_they_bring(monkeypatch):
    """Else a row would be served anew though its importer was upgraded, or the environment changed."""
    monkeypatch.setattr(variables, "AT_START", {"XLA_FLAGS": "--xla_dump_hlo_as_text"})
    plain, imported = ("onnxruntime", {}), ("onnxruntime", {"import": "torch"})
    one, other = choose((plain, imported), Target("cpu", DTYPE, "any"), {})
    if not one.probe.usable:
        pytest.skip(f"onnxruntime: {one.probe.reason}")
    assert set(other.probe.versions) - set(one.probe.versions) == {"torch", "onnxscript"}
    assert one.probe.versions["environment"] == "XLA_FLAGS=--xla_dump_hlo_as_text"


def test_a_preset_is_written_by_a_worker(tmp_path, model):
    outcome, _ = run(PresetJob("tiny", DTYPE, str(tmp_path / "tiny")), tmp_path / "log")
    assert outcome.ok, outcome.reason
    assert open_checkpoint(tmp_path / "tiny", DTYPE).checksum() == open_checkpoint(model, DTYPE).checksum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ceilings_are_rates_that_hardware_can_have(tmp_path, dtype):
    timed, guessed = BurstJob(0.01, 0.001, ()), BurstJob(None, 0.001, ((10**8, 10**9),))
    outcome, _ = run(CeilingsJob(DEVICE, dtype, timed, guessed), tmp_path / "log")
    assert outcome.ok, outcome.reason
    bandwidth, rate = outcome.result["bandwidth_bytes_per_s"], outcome.result["flops_per_s"]
    assert len(bandwidth) == len(rate) >= 5
    assert 1e8 < statistics.median(bandwidth) < 1e13
    assert 1e8 < statistics.median(rate) < 1e16
    how = outcome.result["bursts"]
    assert how["bandwidth"] == {"burst_s": 0.01, "pause_s": 0.001}
    assert 0 < how["product"]["burst_s"] < 1
