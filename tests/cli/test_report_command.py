"""`python -m workbench report`: every format, and what it refuses."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import ROOT, Run
from tests.cli.records import rich_records, write_records
from tests.unit.builders import record
from workbench.record import SCHEMA, to_json


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return a results folder with records of two devices."""
    on_cpu, on_gpu = [], []
    for row in rich_records():
        (on_cpu if row.device == "cpu" else on_gpu).append(row)
    write_records(tmp_path / "results" / "test-cpu" / "tiny.jsonl", *on_cpu)
    write_records(tmp_path / "results" / "nvidia-h200" / "llama-3.2-1b.jsonl", *on_gpu)
    return tmp_path / "results"


def test_csv_has_the_newest_of_every_row_with_ratios_and_devices(workbench: Run, results: Path) -> None:
    done = workbench("report", "--format", "csv")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == len(rich_records()) - 1
    (fast,) = (row for row in rows if row["backend"] == "compile[mode=default]")
    assert (fast["gpu"], fast["ratio_to"], float(fast["ratio"])) == ("Test CPU", "eager", 2.0)
    assert float(fast["ratio_low"]) <= 2.0 <= float(fast["ratio_high"])
    named = workbench("report", str(results / "nvidia-h200"), "--format", "csv", "--baseline", "compile")
    rows = list(csv.DictReader(io.StringIO(named.stdout)))
    assert {row["ratio_to"] for row in rows} == {"compile"}
    assert {row["gpu"] for row in rows} == {"NVIDIA H200"}


def test_markdown_has_a_heading_and_tables_for_each_device_and_goes_into_a_file(
    workbench: Run, results: Path, tmp_path: Path
) -> None:
    done = workbench("report", "--format", "md", "--out", "-")
    assert done.returncode == 0, done.stderr
    headings = [line for line in done.stdout.splitlines() if line.startswith("### ")]
    assert headings == ["### llama-3.2-1b, bfloat16, NVIDIA H200", "### tiny, float32, Test CPU"]
    assert "Older records of these rows, not shown: 1" in done.stdout
    assert "third decode b1 c128: crashed" in done.stdout
    again = workbench("report", "--format", "md", "--out", "report.md", "--results", str(results))
    assert again.stdout == ""
    assert again.stderr.startswith("report.md: 10 rows, ")
    assert (tmp_path / "report.md").read_text() == done.stdout


def test_parquet_has_the_columns_of_csv(workbench: Run, results: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert workbench("report", "--format", "parquet").returncode == 0
    table = parquet.read_table(tmp_path / "report.parquet")
    kinds = {field.name: str(field.type) for field in table.schema}
    assert (kinds["limit_share"], kinds["batch"], kinds["reason"]) == ("double", "int64", "string")
    rows = table.to_pylist()
    flat = list(csv.DictReader(io.StringIO(workbench("report", "--format", "csv").stdout)))
    assert [list(row) for row in rows] == [list(row) for row in flat]
    assert [row["time_s"] for row in rows] == [
        float(row["time_s"]) if row["time_s"] else None for row in flat
    ]


def test_page_is_whole_and_small_for_the_records_in_the_repository(workbench: Run, tmp_path: Path) -> None:
    if not list((ROOT / "results").glob("*/*.jsonl")):
        pytest.skip("the records are not in the source distribution")
    done = workbench("report", str(ROOT / "results"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_bytes()
    assert page.endswith(b"</html>")
    assert len(page) < 2 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def torn(results: Path) -> None:
    path = results / "test-cpu" / "tiny.jsonl"
    path.write_bytes(path.read_bytes()[:-20])


def foreign(results: Path) -> None:
    (results / "test-cpu" / "tiny.jsonl").write_text('{"loss": 0.5}\n')


def binary(results: Path) -> None:
    (results / "test-cpu" / "tiny.jsonl").write_bytes(bytes(range(256)))


def newer(results: Path) -> None:
    path = results / "test-cpu" / "tiny.jsonl"
    path.write_text(json.dumps(to_json(record()) | {"schema": SCHEMA + 1}))


def empty(results: Path) -> None:
    for path in results.glob("*/*.jsonl"):
        path.write_text("")


def nothing(results: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("damage", "arguments", "words"),
    [
        (torn, [], ["tiny.jsonl:5", "truncated"]),
        (foreign, [], ["tiny.jsonl:1", "no records file"]),
        (binary, [], ["tiny.jsonl:1", "no records file"]),
        (newer, [], ["newer workbench"]),
        (empty, [], ["no records in results", "compare"]),
        (nothing, ["absent.jsonl"], ["there is no absent.jsonl"]),
        (nothing, ["--results", "absent"], ["there is no absent"]),
        (nothing, ["--out", "absent/report.html"], ["no folder absent"]),
        (nothing, ["--out", "results"], ["is a folder"]),
        (nothing, ["--out", "rows.csv"], ["would hold html", "--format csv"]),
        (nothing, ["--out", "-"], ["only md and csv"]),
        (nothing, ["--out", "-", "--format", "parquet"], ["only md and csv"]),
        (nothing, ["--format", "pdf"], ["pdf", "html"]),
        (nothing, ["--baseline", "eagre"], ["'eagre'", "choose from"]),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    workbench: Run,
    results: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    arguments: list[str],
    words: list[str],
) -> None:
    damage(results)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    expect_refusal(workbench, arguments, words)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def expect_refusal(workbench: Run, arguments: list[str], words: list[str], **variables: str) -> None:
    done = workbench("report", *arguments, **variables)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_records_of_different_protocols_are_not_compared(workbench: Run, tmp_path: Path) -> None:
    write_records(tmp_path / "one.jsonl", record("eager", protocol={"gate": 1, "processes": 2}))
    write_records(tmp_path / "two.jsonl", record("compile", (0.5, 0.5), protocol={"gate": 2, "processes": 2}))
    files = ["one.jsonl", "two.jsonl"]
    expect_refusal(workbench, [*files, "--baseline", "eager"], ["cannot be compared", "gate (1 and 2)"])
    rows = list(csv.DictReader(io.StringIO(workbench("report", *files, "--format", "csv").stdout)))
    assert {row["backend"]: row["ratio_to"] for row in rows} == {"eager": "eager", "compile": "compile"}


@pytest.mark.parametrize(
    ("form", "package", "distribution"),
    [
        ("html", "vl_convert", "vl-convert-python"),
        ("html", "jinja2", "jinja2"),
        ("parquet", "pyarrow", "pyarrow"),
    ],
)
def test_missing_package_is_named_with_what_to_install(
    workbench: Run, results: Path, tmp_path: Path, form: str, package: str, distribution: str
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "sitecustomize.py").write_text(
        "import importlib.util as util\n"
        "find = util.find_spec\n"
        f"util.find_spec = lambda name: None if name == {package!r} else find(name)\n"
    )
    expect_refusal(
        workbench,
        ["--format", form],
        [f"pip install {distribution}"],
        PYTHONPATH=os.pathsep.join([str(tmp_path / "hidden"), str(ROOT)]),
    )


def test_folder_that_cannot_be_written_is_one_line(workbench: Run, results: Path, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/self")  # where not even root may write
    expect_refusal(workbench, ["--out", str(folder / "report.html")], ["cannot write", "--out"])


def test_failed_write_leaves_the_page_of_before(workbench: Run, results: Path, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("before")
    torn(results)
    assert workbench("report").returncode == 2
    assert (tmp_path / "report.html").read_text() == "before"
