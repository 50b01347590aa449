"""The report, from records on disk to a page, a table or a file for notebooks: the table of contents."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from models.errors import UserError
from workbench import exports, report, units
from workbench.progress import Progress
from workbench.record import Record
from workbench.report import Report
from workbench.selection import Setting, count_workloads, select
from workbench.store import read_strictly, write_atomically
from workbench.tracking.floors import CALIBRATION

STDOUT = "-"
DEFAULT_OUT = {"html": "report.html", "parquet": "report.parquet", "md": STDOUT, "csv": STDOUT}
NEEDS = {"html": ("jinja2", "vl_convert"), "parquet": ("pyarrow",)}
"""Packages beyond the base dependencies, as they are imported."""
DISTRIBUTIONS = {"vl_convert": "vl-convert-python"}
"""The names they are installed by, where those differ."""
GUESS_S = 0.05
"""Seconds that the ratios of one workload take, before the first is known."""


def publish(places: Sequence[Path], form: str, out: str | None, baseline: str | None) -> None:
    """Write the newest rows of the records as a page, a table or a file for notebooks; measures nothing."""
    destination = check_destination(out or DEFAULT_OUT[form], form)
    check_packages(form)
    with Progress(Console(stderr=True)) as progress:
        progress.say("reading records")
        records = read_records(places)
        progress.say("comparing rows")
        progress.expect(count_workloads(records), GUESS_S)
        settings = select(records, baseline, progress.advance)
        content = write(settings, form, progress)
    if destination is None:
        sys.stdout.flush()
        sys.stdout.buffer.write(content)  # UTF-8 whatever the terminal is set to, like a file
    else:
        put(destination, content)
        rows = sum(len(setting.older) for setting in settings)
        print(f"{destination}: {rows} rows, {units.size(len(content))}", file=sys.stderr)


def check_destination(out: str, form: str) -> Path | None:
    """Return where to write, None for stdout; raises UserError for a place where nothing can be written."""
    if out == STDOUT:
        if form not in ("md", "csv"):
            raise UserError(f"--out -: only md and csv go to stdout; name a file, report.{form} for instance")
        return None
    path = Path(out)
    if path.is_dir():
        raise UserError(f"--out {out} is a folder: name a file in it, {path / f'report.{form}'} for instance")
    other = path.suffix.removeprefix(".")
    if other != form and other in DEFAULT_OUT:
        raise UserError(f"--out {out} would hold {form}: add --format {other}, or name it .{form}")
    if not path.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {path.parent}; make it or name another")
    return path


def check_packages(form: str) -> None:
    """Raise UserError with what to install where a format needs more than the base dependencies."""
    missing = [name for name in NEEDS.get(form, ()) if find_spec(name) is None]
    if missing:
        names = " ".join(DISTRIBUTIONS.get(name, name) for name in missing)
        raise UserError(f"--format {form} needs `pip install {names}`; md and csv need nothing more")


def read_records(places: Sequence[Path]) -> list[Record]:
    """Read all records of files and folders; raises UserError where there are none or one is no record."""
    files = {path.resolve(): path for place in places for path in list_files(place)}  # each but once
    records = [record for path in files.values() for record in read_strictly(path)]
    if not records:
        where = ", ".join(str(place) for place in places)
        raise UserError(f"there are no records in {where}: `python -m workbench compare` makes some")
    return records


def list_files(place: Path) -> list[Path]:
    """List the records files of a folder, less its A/A runs, or the one file that is named."""
    if place.is_dir():
        files = sorted(path for path in place.rglob("*.jsonl") if path.is_file())
        return [path for path in files if CALIBRATION not in path.relative_to(place).parts]
    if not place.exists():
        raise UserError(f"there is no {place}: name .jsonl files or folders that `compare` wrote")
    return [place]


def write(settings: Sequence[Setting], form: str, progress: Progress) -> bytes:
    """Write the rows in the form asked for."""
    if form == "html":
        from workbench.page.render import render  # needs more than the base dependencies

        return render(settings, progress)
    if form == "md":
        return markdown(settings).encode()
    whole = Report(
        tuple(record for setting in settings for record in setting.report.records),
        tuple(ratio for setting in settings for ratio in setting.report.ratios),
    )
    return exports.as_parquet(whole) if form == "parquet" else f"{exports.as_csv(whole)}\n".encode()


def markdown(settings: Sequence[Setting]) -> str:
    """Write each setting under a heading of its own."""
    parts = []
    for setting in settings:
        row = setting.first
        parts += [f"### {row.model}, {row.dtype}, {row.gpu.get('name')}", report.markdown(setting.report)]
        if any(setting.older):
            parts.append(f"Older records of these rows, not shown: {sum(setting.older)}")
    return "\n\n".join(parts) + "\n"


def put(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, at the end of a link if it is one; raises UserError.

    What is no plain file, a pipe or a device, is written to: its name must not become a file's.
    """
    try:
        if path.is_file() or not path.exists():
            write_atomically(path.resolve(), content)
        else:
            path.write_bytes(content)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; --out names another place, nothing was changed"
        ) from error
