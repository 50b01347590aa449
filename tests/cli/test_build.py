"""`python -m workbench build` and `engines`: real compilers for GPUs elsewhere, and builds that go wrong."""

import json
import os
import platform
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.cli.engines import build, rows_of


def test_compilers_build_for_gpus_that_are_not_here(workbench: Run) -> None:
    command = ("iree,onnxruntime,compile", "h100,h200,a100", "--format", "json")
    done = build(workbench, *command)
    assert done.returncode == 1, done.stderr  # compile gave nothing, and was asked for by name
    rows = {(row["backend"], row["target"]): row for row in rows_of(done)}
    assert {key for key, row in rows.items() if row["status"] == "ok"} == {
        (backend, target) for backend in ("iree", "onnxruntime") for target in ("h100", "h200", "a100")
    }
    keys = {where: row["key"] for where, row in rows.items() if row["status"] == "ok"}
    assert keys["iree", "h100"] == keys["iree", "h200"] != keys["iree", "a100"]  # an engine an architecture
    assert len({key for (backend, _), key in keys.items() if backend == "onnxruntime"}) == 1
    assert sum(row["built"] for row in rows.values()) == 3
    assert rows["iree", "h100"]["code"] == ["PTX sm_89"]
    assert rows["iree", "h100"]["reason"] == "by PTX sm_89"
    assert rows["iree", "a100"]["code"] == ["PTX sm_80"]
    assert rows["compile", "h100"]["status"] == "unsupported"
    assert "build where there is such a GPU (h100)" in rows["compile", "h100"]["reason"]
    again = rows_of(build(workbench, *command))
    found = [row for row in again if row["status"] == "ok"]
    assert not any(row["built"] for row in found)
    assert [row["key"] for row in found] == list(keys.values())
    assert all(row["warm_s"] < row["cold_s"] for row in found if row["backend"] == "iree")
    table = build(workbench, "iree,onnxruntime", "h100,a100")
    assert table.returncode == 0, table.stderr
    assert "ok, cached, by PTX sm_89" in table.stdout
    verified = workbench("engines", "verify")
    assert verified.returncode == 0, verified.stdout
    assert verified.stdout.count("sound") == 3
    assert all(place in verified.stdout for place in ("sm_90", "sm_80", "gpu"))


def test_xla_builds_for_gpus_that_are_not_here_in_its_own_python(workbench: Run) -> None:
    """WORKBENCH_XLA_PYTHON names one with jax[cuda13], which needs Python 3.12, unless this one has it."""
    named = os.environ.get("WORKBENCH_XLA_PYTHON")
    python = ("--python", f"xla={named}") if named else ()
    done = build(workbench, "xla", "h100,a100", "--format", "json", *python)
    rows = rows_of(done)
    if any("jax-cuda13-plugin" in str(row["reason"]) for row in rows):
        pytest.skip(rows[0]["reason"])
    assert done.returncode == 0, (done.stderr, rows)
    assert [row["code"] for row in rows] == [["sm_90a"], ["sm_80"]]
    assert [row["reason"] for row in rows] == ["untuned", "untuned"]
    keys = [row["key"] for row in rows]
    assert workbench("engines", "verify", *keys).returncode == 0
    shown = json.loads(workbench("engines", "show", keys[0]).stdout)
    assert shown["untuned"] is True
    assert shown["recipe"]["tuning"] == "none"
    assert {"jaxlib", "jax-cuda13-plugin", "ptxas"} <= set(shown["recipe"]["compilers"])


def test_tvm_builds_for_gpus_that_are_not_here(workbench: Run) -> None:
    """The machine code lies within a library of the host; trials that were asked for need the GPU."""
    rows = []
    for name, target in (("tvm", "h100"), ("tvm[tune=8]", "a100")):
        rows += rows_of(build(workbench, name, target, "--dtype", "float16", "--format", "json"))
        if rows[-1]["status"] in ("missing", "unsupported"):
            pytest.skip(rows[-1]["reason"])
    host = platform.machine()
    assert [row["code"] for row in rows] == [["sm_90", host], ["sm_80", host]], rows
    assert [row["untuned"] for row in rows] == [False, True]
    assert workbench("engines", "verify", *(row["key"] for row in rows)).returncode == 0
    shown = json.loads(workbench("engines", "show", rows[0]["key"]).stdout)
    assert "tensor_core_product" in shown["provenance"]
    assert {"apache-tvm", "apache-tvm-ffi", "nvcc"} == set(shown["recipe"]["compilers"])
    plain, tuned = (json.loads(workbench("engines", "show", row["key"]).stdout)["recipe"] for row in rows)
    assert (plain["tuning"], tuned["tuning"]) == ("", "none")


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        ("disk", "build_failed", "No space left on device"),
        ("nvcc", "unsupported", "there is no nvcc here"),
        ("exception", "build_failed", "the third pass is broken"),
        ("wrong-gpu", "build_failed", "its code is sm_75, which sm_90 does not run"),
        ("source", "build_failed", "there is no machine code for a GPU in it"),
    ],
)
def test_a_build_that_fails_is_a_row_with_the_reason(
    keeper: Run, tmp_path: Path, fault: str, status: str, words: str
) -> None:
    done = build(keeper, f"keeper[fault={fault}],keeper", "h100", "--format", "json")
    assert done.returncode == 1, done.stderr  # the first gave nothing for any target
    failed, other = rows_of(done)
    assert failed["status"] == status
    assert words in failed["reason"]
    assert failed["path"] is None
    assert other["status"] == "ok"
    assert other["code"] == ["sm_90"]
    kept = list((tmp_path / "engines").glob("[!.]*/*"))
    assert kept == [Path(other["path"])]
    assert list((tmp_path / "engines" / ".unfinished").iterdir()) == []


def test_a_target_that_one_backend_does_not_know_costs_that_row_only(keeper: Run) -> None:
    done = build(keeper, "keeper", "b200,l40s,cpu", "--format", "json")
    assert done.returncode == 0, done.stderr
    assert [(row["target"], row["status"]) for row in rows_of(done)] == [
        ("b200", "unsupported"),
        ("l40s", "ok"),
        ("cpu", "ok"),
    ]
    table = build(keeper, "keeper", "b200,l40s")
    assert "keeper for b200: unsupported: the compiler knows no b200" in table.stdout
    assert "ok, cached, untuned" in table.stdout


def test_what_another_version_built_is_another_engine(keeper: Run, tmp_path: Path) -> None:
    for version in ("1.0", "2.0", "1.0"):
        assert build(keeper, "keeper", "a100", KEEPER_VERSION=version).returncode == 0
    assert (tmp_path / "builds").read_text() == "sm_80\n" * 2


def test_a_damaged_engine_is_told_of_and_built_anew(keeper: Run, tmp_path: Path) -> None:
    (row,) = rows_of(build(keeper, "keeper", "a100", "--format", "json"))
    os.truncate(Path(row["path"]) / "code", 5)
    verified = keeper("engines", "verify")
    assert verified.returncode == 1
    assert "code has 5 of its 64 bytes" in verified.stdout
    again = build(keeper, "keeper", "a100", "--format", "json")
    assert "is damaged: code has 5 of its 64 bytes; it is made anew" in again.stderr
    assert rows_of(again)[0]["built"]
    assert keeper("engines", "verify").returncode == 0
    assert (tmp_path / "builds").read_text() == "sm_80\n" * 2


def test_a_build_has_a_log_of_its_own(keeper: Run, cache: Path) -> None:
    (row,) = rows_of(build(keeper, "keeper[fault=exception]", "a100", "--format", "json"))
    (other,) = rows_of(
        build(keeper, "keeper[fault=exception]", "a100", "--dtype", "float16", "--format", "json")
    )
    logs = [each["reason"].rpartition("(log: ")[2].rstrip(")") for each in (row, other)]
    assert len(set(logs)) == 2
    assert all("the third pass is broken" in Path(log).read_text() for log in logs)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build", "--target", "h10"), ["unknown target 'h10'", "did you mean 'h100'"]),
        (("build",), ["--target"]),
        (("build", "--target", "h100", "--backends", "iere"), ["did you mean 'iree'"]),
        (("build", "--target", "h100", "--model", "tinny"), ["tinny", "'tiny'"]),
        (("build", "--target", "h100", "--dtype", "int4"), ["--dtype int4"]),
        (("build", "--target", "h100", "--batch", "0"), ["--batch 0"]),
        (("build", "--target", "h100", "--jobs", "0"), ["--jobs 0"]),
        (("build", "--target", "h100", "--model", "tiny", "--max-context", "9999"), ["2048"]),
        (
            ("build", "--target", "h100", "--engines", "file/x"),
            ["cannot write the engine store", "--engines"],
        ),
        (("engines", "list", "--engines", "file"), ["--engines", "file is a file", "name a folder"]),
        (("engines", "show", "zz"), ["no engine", "'zz'"]),
        (("engines", "show", ""), ["an empty key", "`engines` lists"]),
        (("engines", "verify", "zz"), ["no engine", "'zz'"]),
    ],
)
def test_mistake_is_one_line(
    workbench: Run, tmp_path: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    (tmp_path / "file").touch()
    done = workbench(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_engines_are_listed_shown_and_pruned(keeper: Run, tmp_path: Path) -> None:
    absent = keeper("engines", "list")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "there is no such folder" in absent.stderr
    (row,) = rows_of(build(keeper, "keeper", "a100", "--format", "json"))
    listed = keeper("engines", "list")
    for word in (row["key"], "keeper", "a100", "sm_80", "64 B", "untuned", "keeper 1.0"):
        assert word in listed.stdout
    assert keeper("engines", "prune").stdout == ""
    os.utime(row["path"], (0, 0))
    pruned = keeper("engines", "prune", "--days", "5")
    assert row["path"] in pruned.stdout
    assert "not used for" in pruned.stdout
    assert not Path(row["path"]).exists()


def test_an_engine_is_checked_without_a_time(keeper: Run, tmp_path: Path, cache: Path) -> None:
    rows = rows_of(build(keeper, "onnxruntime,keeper", "cpu,h100", "--format", "json"))
    results = tmp_path / "results"
    done = keeper("engines", "check", "--device", "cpu", "--results", str(results), "--format", "json")
    assert done.returncode == 1, done.stderr  # keeper computes nothing, and a CPU runs nothing for a GPU
    found = {row["key"]: row for row in json.loads(done.stdout)}
    assert [found[row["key"]]["status"] for row in rows] == ["passed", "unsupported", "wrong", "unsupported"]
    passed, other, _, refused = (found[row["key"]] for row in rows)
    assert 0 < passed["error_ratio"] < 3
    assert "is for gpu, and this is a CPU" in other["reason"]
    assert "no machine code for a CPU" in refused["reason"]
    assert passed["purpose"].startswith("correctness only")
    kept = [json.loads(path.read_text()) for path in results.glob("*/engine-checks/*.json")]
    assert sorted(kept, key=str) == sorted(found.values(), key=str)
    assert list(cache.glob("builds/golden-*/golden.npz"))
    assert not [*cache.glob("builds/check-*"), *cache.glob("checks")]  # nothing of a check itself stays


def test_compare_times_what_was_built_ahead(workbench: Run, tmp_path: Path, cache: Path) -> None:
    built = build(workbench, "onnxruntime", "cpu", "--format", "json")
    (row,) = rows_of(built)
    asked = cache / "logs" / "compilers-onnxruntime.log"
    asked.unlink()
    command = ("compare", "--backends", "onnxruntime", "--model", "tiny", "--prompt", "16", "--context", "16")
    command += ("--phases", "decode", "--repeats", "1", "--budget", "1", "--format", "json")
    done = workbench(*command, "--results", str(tmp_path / "results"))
    (record,) = json.loads(done.stdout)
    assert record["status"] in ("ok", "unstable"), record["reason"]
    assert record["engine"]["key"] == row["key"]
    assert list(record["build_s"]) == ["cached"]
    assert not asked.exists()  # the probe had told what makes its engines
