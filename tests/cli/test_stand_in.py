"""A whole comparison beside an engine in another process: a stand-in, since TensorRT-LLM is not here."""

import json
import os

import pytest

from tests.cli.conftest import ROOT, Run
from workbench.record import from_json

STAND_IN = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "stand_in")])
ASKED = ("compare", "--backends", "eager,stand-in", "--phases", "decode", "--context", "18", "--repeats", "1")


def test_engine_in_another_process_is_verified_and_all_are_timed_by_slope(workbench: Run) -> None:
    pytest.importorskip("torch")
    done = workbench(*ASKED, "--format", "json", PYTHONPATH=STAND_IN)
    assert done.returncode == 0, done.stderr + done.stdout
    rows = {(row["clock"], row["backend"]): row for row in json.loads(done.stdout)}
    assert set(rows) == {("chained", "eager"), ("slope", "eager"), ("slope", "stand-in")}
    row = rows["slope", "stand-in"]
    record = from_json({name: value for name, value in row.items() if name != "ratio"})
    assert record.status in ("ok", "unstable")
    assert record.time_s is not None
    assert record.error_ratio is not None
    assert 0 < record.error_ratio < 3
    assert record.definition == "own"
    assert record.versions == {"stand-in": "1.0"}
    assert record.warnings[0].startswith("not yet run on hardware by us")
    assert record.protocol["slope"] == [16, 48]
    assert record.peak_bytes["total"] is None  # this process's memory says nothing of the engine's
    assert row["ratio"]["to"] == "eager"
    assert row["weights"] == rows["slope", "eager"]["weights"]
    check_tables(workbench)


def check_tables(workbench: Run) -> None:
    table = workbench(*ASKED, "--format", "md", PYTHONPATH=STAND_IN)
    assert table.returncode == 0, table.stderr
    chained, slope = table.stdout.split("by slope: (T(48) - T(16)) / 32")
    assert "| stand-in |" not in chained
    assert "| eager |" in chained
    assert "| stand-in |" in slope
    assert "| eager |" in slope
    assert "- stand-in decode b1 c18 slope: not yet run on hardware by us" in slope


def test_missing_engine_has_an_honest_row_and_nobody_is_timed_by_slope(workbench: Run) -> None:
    asked = ("compare", "--backends", "eager,trtllm", "--dry-run", "--format", "json")
    done = workbench(*asked)
    assert done.returncode == 0, done.stderr
    states = [(row["backend"], row["phase"], row["state"]) for row in json.loads(done.stdout)]
    assert len(states) == 4
    for backend, _, state in states:
        assert (backend == "eager") == (state == "measure")
        if backend == "trtllm":
            assert state.startswith("missing: tensorrt_llm is not installed (not yet run on hardware by us")
            assert "pip3 install tensorrt_llm==1.2.1" in state
