"""Rows of an earlier time, by run, file or Git revision, and the one of them that a new row is judged by."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError
from workbench.ratios import difference, workload_of
from workbench.record import Record
from workbench.report import row_title
from workbench.store import Store, parse_strictly, read_strictly

LISTED = 8
"""Rows that a message lists."""


@dataclass(frozen=True)
class Earlier:
    """Rows of an earlier time, oldest first, and what the user called them."""

    name: str
    records: tuple[Record, ...]

    def match(self, record: Record) -> Record:
        """Return the last row of the same backend, work and device; raises UserError if there is none.

        What is judged by it was built anew, so a row of an untuned engine would make it faster by itself.
        """
        alike = [
            each
            for each in self.records
            if each.name == record.name and workload_of(each) == workload_of(record)
        ]
        title = row_title(record)
        if not alike:
            raise UserError(
                f"{self.name} has no row of {title}, so nothing can be compared: it has "
                f"{describe(self.records)}; name what both have"
            )
        equal = [each for each in alike if difference(each, record) is None]
        if not equal:
            raise UserError(f"{title} cannot be compared with {self.name}: {difference(alike[-1], record)}")
        tuned = [each for each in equal if not each.untuned]
        if not tuned:
            raise UserError(
                f"{title} cannot be compared with {self.name}: its engine there is untuned, so one built "
                "anew is faster with nothing changed: measure a base by `compare --again`, which builds here"
            )
        if not tuned[-1].timed:
            why = f"{tuned[-1].status}: {tuned[-1].reason}"
            raise UserError(f"{title} has no time in {self.name} ({why}): choose another")
        return tuned[-1]


def describe(records: Sequence[Record]) -> str:
    """List which rows there are, each once and not all of many, with the models and devices they are of."""
    if not records:
        return "none at all"
    rows = list(dict.fromkeys(row_title(each) for each in records))
    more = f" and {len(rows) - LISTED} more" if len(rows) > LISTED else ""
    works = dict.fromkeys(f"{each.model} on {each.gpu.get('name')}" for each in records)
    return f"{', '.join(rows[:LISTED])}{more}, of {', '.join(works)}"


def find_earlier(name: str, store: Store, path: Path) -> Earlier:
    """Find the rows of a run id, a .jsonl file, or the results file `path` as of a Git revision.

    Raises UserError if the name is none of these, or what it names is no results.
    """
    if Path(name).is_file():
        return Earlier(name, some(read_strictly(Path(name)), name))
    if name.endswith(".jsonl"):
        raise UserError(f"--against {name!r}: there is no such file")
    known = store.read_all()
    rows = tuple(record for record in known if record.run == name)
    if rows:
        return Earlier(f"run {name}", rows)
    committed = show(name, path)
    if committed is None:
        last = f"; the last run there is {newest(known)}" if known else ""
        raise UserError(
            f"--against {name!r}: neither a run in {store.root}, a .jsonl file, nor a Git revision "
            f"that has {path}{last}"
        )
    called = f"{path} as of {name}"
    return Earlier(called, some(parse_strictly(committed, called), called))


def newest(records: Sequence[Record]) -> str:
    """Return the id of the run that finished last."""
    return max(records, key=lambda record: record.created).run


def some(records: Sequence[Record], name: str) -> tuple[Record, ...]:
    """Return the records; raises UserError if there are none."""
    if not records:
        raise UserError(f"{name} has no rows: name a file that `compare` has written")
    return tuple(records)


def show(revision: str, path: Path) -> bytes | None:
    """Return a file as of a Git revision; None where Git, the revision or the file is not there."""
    folder = next(each for each in path.resolve().parents if each.is_dir())
    inside = path.resolve().relative_to(folder)
    command = ["git", "-C", str(folder), "show", "--end-of-options", f"{revision}:./{inside.as_posix()}"]
    try:
        done = subprocess.run(command, capture_output=True)
    except OSError:
        return None  # no Git here
    return done.stdout if done.returncode == 0 else None
