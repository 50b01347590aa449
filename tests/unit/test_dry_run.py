"""How a plan is printed."""

import csv
import io
import json

import pytest

from workbench.comparing.dryrun import Estimate, state_of, write

GIB = 1 << 30

ROWS = (
    Estimate("eager", "prefill", 1, 64, "measure", 30.0, 1 << 20),
    Estimate("compile[stock]", "decode", 4, 128, "missing: torch is not installed", 0.0, 1 << 30),
)


def printed(form: str, capsys: pytest.CaptureFixture[str]) -> str:
    write(ROWS, form)
    return capsys.readouterr().out


def test_programs_read_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    as_json = json.loads(printed("json", capsys))
    as_csv = list(csv.DictReader(io.StringIO(printed("csv", capsys))))
    assert [row["memory_bytes"] for row in as_json] == [1 << 20, 1 << 30]
    assert [{name: str(value) for name, value in row.items()} for row in as_json] == as_csv


def test_markdown_is_a_table_with_the_sum_under_it(capsys: pytest.CaptureFixture[str]) -> None:
    heading, rule, *rows, empty, last = printed("md", capsys).splitlines()
    assert heading.startswith("| backend | phase |")
    assert rule == "|---|---|---|---|---|---|---|"
    assert rows[0] == "| eager | prefill | 1 | 64 | measure | 30 s | 1.00 MiB |"
    assert "missing: torch is not installed" in rows[1]
    assert empty == ""
    assert last == "about 30 s in all, at least 1.00 GiB of memory at a time; nothing was measured"


@pytest.mark.parametrize(
    ("memory", "said"), [(None, "measure"), (GIB, "measure"), (GIB // 2, "measure, but 512 MiB are here")]
)
def test_a_row_that_needs_more_than_there_is_says_so(memory: int | None, said: str) -> None:
    assert state_of(None, GIB, memory) == said


def test_narrow_terminal_cuts_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.report.WIDE", 60)
    text = printed("table", capsys)
    assert "…" not in text
    assert "compile[stock]: missing: torch is not installed\n" in text
    for word in ("measure ", "missing ", "1.00 MiB", "about 30 s in all"):
        assert word in text


def test_people_read_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed("table", capsys)
    for word in ("compile[stock]", "30 s", "1.00 MiB", "about 30 s in all"):
        assert word in text
