"""`build --tune` where the device is, and what becomes of the data that it keeps."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.cli.conftest import Run
from tests.cli.engines import build, rows_of
from workbench.device.machine import describe

TUNED = ("keeper[tune=1]", "cpu", "--format", "json")


def one_row(run: Run, *arguments: str) -> dict[str, Any]:
    (row,) = rows_of(build(run, *TUNED, *arguments))
    return row


def test_the_device_is_searched_once_for_all_builds(keeper: Run, tmp_path: Path) -> None:
    rows = [one_row(keeper, *arguments) for arguments in (("--tune",), (), ("--tune",))]
    assert [row["status"] for row in rows] == ["ok"] * 3
    assert len({row["key"] for row in rows}) == 1
    assert [row["built"] for row in rows] == [True, False, False]
    shown = json.loads(keeper("engines", "show", rows[0]["key"]).stdout)
    assert shown["recipe"]["tuning"] not in ("device", "none", "")
    assert (tmp_path / "builds").read_text().splitlines().count("tuned") == 1
    (data,) = (tmp_path / "engines" / ".tuning").iterdir()
    shutil.rmtree(data)
    again = one_row(keeper, "--tune")  # chooses the same, and takes another time
    assert (again["key"], again["built"]) == (rows[0]["key"], False)
    listed = json.loads(keeper("engines", "list", "--format", "json").stdout)
    assert [row["timed_on"] for row in listed] == [describe("cpu").name] * 2
    shown = [json.loads(keeper("engines", "show", row["key"]).stdout) for row in listed]
    assert [each["timed_on"] for each in shown] == [row["timed_on"] for row in listed]


def test_damaged_tuning_data_are_a_reason_and_go(keeper: Run, tmp_path: Path) -> None:
    one_row(keeper, "--tune")
    (data,) = (tmp_path / "engines" / ".tuning").iterdir()
    listed = keeper("engines", "list")
    assert data.name in listed.stdout
    assert "tuning data" in listed.stdout
    os.truncate(data / "choices", 0)
    row = one_row(keeper)
    assert row["status"] == "build_failed"
    assert f"tuning data {data} are damaged: choices has 0 of its 8 bytes" in row["reason"]
    verified = keeper("engines", "verify")
    assert verified.returncode == 1
    assert f"{data.name.rpartition('-')[2]}: choices has 0 of its 8 bytes" in verified.stdout
    assert f"removed {data}: choices has 0" in keeper("engines", "prune").stdout
    assert one_row(keeper)["status"] == "ok"


def test_it_is_said_by_which_backends_nothing_is_timed_and_they_are_built(keeper: Run) -> None:
    done = build(keeper, "xla,keeper,keeper[tune=1]", "cpu", "--tune", "--format", "json")
    words = "--tune times nothing by xla for cpu, keeper for cpu (keeper[tune=N] does)"
    assert done.stderr == f"Warning: {words}\n"
    assert [row["status"] for row in rows_of(done)] == ["ok"] * 3
    assert build(keeper, *TUNED, "--tune").stderr == ""
