"""Keep results on disk: one JSON line a finished row, one side file a finished process.

`results/<gpu-slug>/<model-slug>.jsonl` only ever grows by whole lines, under a lock.
`results/<gpu-slug>/.pending/<key>.<repeat>.json` holds what one process measured of a row until the
row is finished, so that a crash or Ctrl-C loses nothing that was measured.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from models.errors import UserError
from workbench import job as jobs
from workbench import record as records
from workbench.job import RowResult
from workbench.record import Record


class StoreError(UserError):
    """Report results that cannot be read or written."""


def slug(name: str) -> str:
    """Turn a name into a file name of [a-z0-9.-]."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "unknown"


class Store:
    """The results folder."""

    def __init__(self, root: Path, warn: Callable[[str], None]) -> None:
        self.root = root
        self.warn = warn

    def path(self, gpu: str, model: str) -> Path:
        """Name the file of one GPU (or CPU) and one model."""
        return self.root / slug(gpu) / f"{slug(model)}.jsonl"

    def read_all(self) -> list[Record]:
        """Read every row of every file, oldest first within a file."""
        return [row for path in sorted(self.root.glob("*/*.jsonl")) for row in self._read(path)]

    def read(self, gpu: str, model: str) -> list[Record]:
        """Read the rows of one GPU and one model, oldest first; none if there is no file."""
        return self._read(self.path(gpu, model))

    def append(self, record: Record) -> None:
        """Add one row; a failure (a full disk, say) leaves the file as it was and raises StoreError."""
        path = self.path(str(record.gpu.get("name")), record.model)
        line = json.dumps(records.to_json(record), separators=(",", ":"), allow_nan=False) + "\n"
        with _plain_errors(path), self._locked(path):
            _append_line(path, line.encode())

    def keep(self, gpu: str, repeat: int, result: RowResult) -> None:
        """Write what one process measured of a row to its side file; raises StoreError."""
        path = self._pending(gpu) / f"{result.key}.{repeat}.json"
        with _plain_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(jobs.to_json(result), allow_nan=False).encode())

    def kept(self, gpu: str, key: str) -> dict[int, RowResult]:
        """Read a row's side files by repeat; a damaged one is ignored with a warning."""
        found = {}
        for path in sorted(self._pending(gpu).glob(f"{key}.*.json")):
            try:
                found[int(path.name.split(".")[-2])] = _read_side_file(path, key)
            except (OSError, ValueError, TypeError, AttributeError) as error:
                self.warn(f"{path} is damaged ({error}): ignored, the process is measured again")
        return dict(sorted(found.items()))

    def forget(self, gpu: str, key: str) -> None:
        """Remove a row's side files, once the row is appended."""
        for path in self._pending(gpu).glob(f"{key}.*.json"):
            with _plain_errors(path):
                path.unlink(missing_ok=True)

    def _pending(self, gpu: str) -> Path:
        return self.root / slug(gpu) / ".pending"

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".lock"):
            yield

    def _read(self, path: Path) -> list[Record]:
        rows, broken = _parse(path)
        if not broken:
            return rows
        try:
            with self._locked(path):
                # Another process may have been half way through its line.
                rows, broken = _parse(path)
                if broken:
                    self._set_aside(path, broken)
        except OSError as error:
            self.warn(f"{path} has {len(broken)} broken lines, skipped; not repaired: {error.strerror}")
        return rows

    def _set_aside(self, path: Path, broken: list[tuple[int, bytes, str]]) -> None:
        aside = path.with_name(path.name + ".broken")
        lines = path.read_bytes().split(b"\n")
        for number, line, why in broken:
            _append_line(aside, line + b"\n")
            self.warn(f"{path}:{number} is no result ({why}): moved to {aside.name}, the other rows are kept")
        numbers = {number for number, _, _ in broken}
        good = [line for number, line in enumerate(lines, 1) if line.strip() and number not in numbers]
        write_atomically(path, b"".join(line + b"\n" for line in good))


def read_strictly(path: Path) -> list[Record]:
    """Read a file that may not be ours and change nothing; raises StoreError at a line that is no row."""
    return _refuse_broken(str(path), *_parse(path))


def parse_strictly(text: bytes, name: str) -> list[Record]:
    """Read the text of results called `name` likewise; raises StoreError."""
    return _refuse_broken(name, *_parse_rows(text, name))


def _refuse_broken(name: str, rows: list[Record], broken: list[tuple[int, bytes, str]]) -> list[Record]:
    if broken:
        number, _, why = broken[0]
        what = "no records file" if not rows else "truncated or damaged"
        raise StoreError(
            f"{name}:{number} is no result ({why}): the file is {what}; name others, or remove that line"
        )
    return rows


def _parse(path: Path) -> tuple[list[Record], list[tuple[int, bytes, str]]]:
    """Read a file's rows and its broken lines (number, bytes, why); raises StoreError if it is unreadable."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return [], []
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check that it is yours to read") from error
    return _parse_rows(text, str(path))


def _parse_rows(text: bytes, name: str) -> tuple[list[Record], list[tuple[int, bytes, str]]]:
    """Read rows and broken lines (number, bytes, why) from the text of the results called `name`.

    Raises StoreError where they are of a newer workbench.
    """
    rows: list[Record] = []
    broken = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(_parse_line(name, line))
        except ValueError as error:
            broken.append((number, line, str(error).splitlines()[0]))
    return rows, broken


def _parse_line(name: str, line: bytes) -> Record:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("not an object")
    schema = row.get("schema")
    if isinstance(schema, int) and schema > records.SCHEMA:
        raise StoreError(
            f"{name} was written by a newer workbench (schema {schema}): update this one to read it"
        )
    return records.from_json(row)


def _read_side_file(path: Path, key: str) -> RowResult:
    result = jobs.read_row_result(json.loads(path.read_bytes()))
    if result.key != key:
        raise ValueError(f"it holds row {result.key}")
    return result


def _append_line(path: Path, line: bytes) -> None:
    with path.open("ab", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if size and not _ends_with_newline(path):
            line = b"\n" + line  # a torn line must not swallow this one
        try:
            rest = line
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all, on disk when this returns; raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(
            f"cannot write {path}: {why}; free space or make it writable, nothing there was changed"
        ) from error
