"""`python -m workbench compare`: whole comparisons on a CPU."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import ROOT, Run, run_in
from workbench.device.machine import describe
from workbench.record import from_json
from workbench.store import slug

PLUGINS = ROOT / "tests" / "plugins"
MAIN_JOB = ("compare", "--backends", "eager,compile", "--repeats", "2", "--budget", "1")
QUICK = ("--phases", "decode", "--context", "32", "--repeats", "1", "--budget", "1")

Json = dict[str, Any]
Measured = tuple["subprocess.CompletedProcess[str]", Path]
"""A command, and the results it left."""


def rows_of(done: "subprocess.CompletedProcess[str]") -> list[Json]:
    rows = json.loads(done.stdout)
    for row in rows:
        from_json({name: value for name, value in row.items() if name != "ratio"})
    return list(rows)


def lines_of(results: Path) -> list[Json]:
    return [json.loads(line) for path in results.glob("*/*.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def measured(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Return a comparison of a backend that is there with one that is not, and its results."""
    folder = tmp_path_factory.mktemp("measured")
    asked = ("compare", "--backends", "eager,absent", *QUICK, "--format", "json")
    done = run_in(folder, environment, *asked, PYTHONPATH=f"{ROOT}:{PLUGINS}")
    return done, folder / "results"


def test_main_job_verifies_times_and_compares_both_phases(workbench: Run, tmp_path: Path) -> None:
    done = workbench(*MAIN_JOB, "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = rows_of(done)
    assert {(row["phase"], row["backend"]) for row in rows} == {
        (phase, backend) for phase in ("prefill", "decode") for backend in ("eager", "compile")
    }
    for row in rows:
        assert row["status"] in ("ok", "unstable"), row["reason"]
        assert len(row["processes"]) == 2
        assert row["time_s"]["low"] <= row["time_s"]["median"] <= row["time_s"]["high"]
        assert row["ratio"]["to"] == "eager"
        assert 0 < row["error_ratio"] < 3
        assert row["build_s"]["cold"] > 0
        assert row["load_s"] >= 0
        assert row["peak_bytes"]["total"] > row["peak_bytes"]["weights"]
        assert row["ceilings"]["bandwidth_bytes_per_s"]["median"] > 1e9
        assert row["limit_share"] is None  # tiny fits in cache
        assert row["definition"] == "common"
        assert "torch" in row["versions"]
        assert (row["enqueue_s"] is not None) == (row["phase"] == "prefill")
    assert len({row["weights"] for row in rows}) == 1
    assert len(lines_of(tmp_path / "results")) == 4
    check_second_call_reads_what_is_there(workbench, rows)


def check_second_call_reads_what_is_there(workbench: Run, rows: list[Json]) -> None:
    start = time.monotonic()
    done = workbench(*MAIN_JOB, "--format", "json")
    assert time.monotonic() - start < 30
    assert {row["run"] for row in rows_of(done)} == {rows[0]["run"]}
    table = workbench(*MAIN_JOB)
    assert table.returncode == 0
    assert table.stdout.startswith("Held equal:")
    assert rows[0]["run"] in table.stdout
    assert table.stderr == ""
    plan = workbench(*MAIN_JOB, "--dry-run", "--format", "json")
    assert {row["state"] for row in json.loads(plan.stdout)} == {"measured"}


def test_kernels_of_rows_on_a_cpu_are_not_there_for_a_plain_reason(workbench: Run) -> None:
    asked = ("compare", "--backends", "absent", *QUICK, "--kernels", "--format")
    for form in ("table", "md"):
        done = workbench(*asked, form, PYTHONPATH=f"{ROOT}:{PLUGINS}")
        assert done.returncode == 1, done.stderr
        lines = done.stdout.splitlines()
        heading = next(index for index, line in enumerate(lines) if line.startswith("kernels of one decode"))
        reason = "CUPTI sees what runs on a GPU, and this row is of a CPU"
        assert lines[heading + 1] == f"  absent: not traced: {reason}"
    (row,) = rows_of(workbench(*asked, "json", PYTHONPATH=f"{ROOT}:{PLUGINS}"))
    assert row["kernels"] is None


def test_checkpoint_saved_by_transformers_gets_verified_rows_for_both_phases(
    workbench: Run, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=515,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=7,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
    )
    transformers.Qwen3ForCausalLM(config).save_pretrained(tmp_path / "checkpoint")
    quick = ("--prompt", "16", "--context", "32", "--repeats", "1", "--budget", "1", "--format", "json")
    done = workbench("compare", "--model", "checkpoint", "--backends", "eager,onnxruntime", *quick)
    assert done.returncode == 0, done.stderr
    rows = rows_of(done)
    assert len(rows) == 4
    assert {row["model"] for row in rows} == {"checkpoint"}
    assert all(row["status"] in ("ok", "unstable") and row["error_ratio"] < 3 for row in rows)


def test_dry_run_lists_every_row_with_estimates_and_measures_nothing(workbench: Run, tmp_path: Path) -> None:
    done = workbench("compare", "--dry-run", "--batch", "1,4", "--context", "64,128", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    names = {row["backend"] for row in rows}
    assert {"eager", "compile"} <= names
    assert "null" not in names
    assert len(rows) == len(names) * 2 * (1 + 2)
    assert all(row["state"] == "measure" and row["time_s"] > 0 and row["memory_bytes"] > 0 for row in rows)
    assert not (tmp_path / "results").exists()


def test_dry_run_says_of_options_that_the_device_has_not_what_the_comparison_says(workbench: Run) -> None:
    command = ("compare", "--backends", "eager[graph],compile[attention=flex]", "--format", "json")
    plan, done = workbench(*command, "--dry-run"), workbench(*command)
    assert (plan.returncode, done.returncode) == (0, 1), plan.stderr + done.stderr
    rows = rows_of(done)
    assert [row["status"] for row in rows] == ["unsupported"] * 4
    assert "captures a CUDA graph" in rows[0]["reason"]
    planned = json.loads(plan.stdout)
    assert [row["state"] for row in planned] == [f"unsupported: {row['reason']}" for row in rows]
    assert [row["time_s"] for row in planned] == [0.0] * 4


def test_large_preset_is_planned_without_writing_its_weights(workbench: Run, cache: Path) -> None:
    done = workbench("compare", "--dry-run", "--model", "llama-3.1-8b", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert "15.0 GiB" in done.stdout  # 8.03e9 parameters of 2 bytes, and the cache
    assert not list(cache.glob("presets/llama*"))


def test_missing_backend_asked_for_by_name_has_a_row_and_fails_the_command(
    measured: Measured,
) -> None:
    done, _ = measured
    assert done.returncode == 1, done.stderr
    rows = {row["backend"]: row for row in rows_of(done)}
    assert rows["eager"]["status"] in ("ok", "unstable")
    assert rows["absent"]["status"] == "missing"
    assert "pip install" in rows["absent"]["reason"]
    assert rows["absent"]["ratio"] is None


def test_backend_that_computes_nothing_is_refused_by_the_gate(workbench: Run) -> None:
    done = workbench("compare", "--backends", "null", *QUICK, "--format", "json")
    assert done.returncode == 1, done.stderr
    (row,) = rows_of(done)
    assert row["status"] == "wrong"
    assert row["time_s"] is None
    assert row["processes"] == []


def test_broken_last_line_is_set_aside_and_the_rest_read(
    workbench: Run, measured: Measured, tmp_path: Path
) -> None:
    first, results = measured
    shutil.copytree(results, tmp_path / "results")
    (path,) = (tmp_path / "results").glob("*/*.jsonl")
    with path.open("a") as file:
        file.write('{"schema": 1, "run": "torn')
    second = workbench("compare", "--backends", "eager", *QUICK, "--format", "json")
    assert second.returncode == 0, second.stderr
    assert rows_of(second)[0]["run"] == rows_of(first)[0]["run"]
    assert "Warning:" in second.stderr
    assert path.with_name(path.name + ".broken").read_text().strip().endswith("torn")
    third = workbench("compare", "--backends", "eager", *QUICK, "--format", "json")
    assert third.stderr == ""


def test_results_that_cannot_be_written_are_printed_all_the_same(workbench: Run, tmp_path: Path) -> None:
    folder = tmp_path / "results" / slug(describe("cpu").name)
    (folder / ".lock").mkdir(parents=True)  # a folder where a file should be, and the other way round
    (folder / ".pending").touch()
    done = workbench("compare", "--backends", "eager", *QUICK, "--format", "json")
    assert done.returncode == 0
    assert done.stderr.count("cannot write") == 1
    (row,) = rows_of(done)[:1]
    assert row["status"] in ("ok", "unstable")
    assert any("could not be saved" in warning for warning in row["warnings"])
    assert not lines_of(tmp_path / "results")


def test_results_that_cannot_be_read_stop_the_command_before_it_measures(
    workbench: Run, tmp_path: Path
) -> None:
    (tmp_path / "results").write_text("a file where the folder should be")
    done = workbench("compare", "--backends", "eager", *QUICK)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: Invalid value for '--results': results is a file")


def test_killed_comparison_goes_on_where_it_was(
    workbench: Run, environment: dict[str, str], tmp_path: Path
) -> None:
    arguments = ["compare", "--backends", "eager", *QUICK, "--repeats", "2"]
    command = [sys.executable, "-m", "workbench", *arguments]
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    kept = wait_for_side_files(tmp_path / "results", running)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    before = {path.name: json.loads(path.read_text())["samples_s"] for path in kept}
    done = workbench(*arguments, "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = rows_of(done)
    assert len(row["processes"]) == 2
    assert row["processes"][0]["samples_s"] == next(iter(before.values()))
    assert not list((tmp_path / "results").glob("*/.pending/*.json"))


def wait_for_side_files(results: Path, running: "subprocess.Popen[bytes]") -> list[Path]:
    for _ in range(1200):
        kept = list(results.glob("*/.pending/*.json"))
        if kept:
            return kept
        assert running.poll() is None, "the comparison ended before it could be killed"
        time.sleep(0.1)
    pytest.fail("no side file after two minutes")


def test_engine_in_another_process_that_is_missing_has_an_honest_row_and_nobody_a_slope(
    workbench: Run,
) -> None:
    done = workbench("compare", "--backends", "eager,trtllm", "--dry-run", "--format", "json")
    assert done.returncode == 0, done.stderr
    states = [(row["backend"], row["state"]) for row in json.loads(done.stdout)]
    assert [backend for backend, _ in states] == ["eager", "trtllm"] * 2
    for state in (state for backend, state in states if backend == "trtllm"):
        assert state.startswith("missing: tensorrt_llm is not installed (not yet run on hardware by us")
        assert "pip3 install tensorrt_llm==1.2.1" in state
