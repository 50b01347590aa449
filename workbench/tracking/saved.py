"""What `--benchmark-compare` has to compare with: pytest-benchmark itself only warns that it is nothing."""

from collections.abc import Collection
from typing import Any, NoReturn

from models.errors import UserError

SAVE = "save a run of these rows first, by --benchmark-save=NAME"


class Refusing:
    """Stands in for pytest-benchmark's logger."""

    def warning(self, text: str) -> NoReturn:
        """Refuse what would be warned of; always raises UserError."""
        raise UserError(f"--benchmark-compare: {text}")


def refuse_nothing_saved(option: Any) -> None:
    """Refuse to compare with a file that is not there or is torn; `option` is pytest's. Raises UserError."""
    wanted = option.benchmark_compare
    if option.benchmark_compare_fail and not wanted:
        raise UserError("--benchmark-compare-fail judges what is compared: give --benchmark-compare as well")
    if not wanted or option.benchmark_storage.startswith("elasticsearch"):
        return
    from pytest_benchmark.storage.file import FileStorage
    from pytest_benchmark.utils import get_machine_id

    folder = option.benchmark_storage.removeprefix("file://")
    storage = FileStorage(folder, logger=Refusing(), default_machine_id=get_machine_id())
    known = storage.query("[0-9][0-9][0-9][0-9]_")  # where pytest-benchmark looks for the last one
    if wanted is True and not known:
        raise UserError(f"--benchmark-compare: nothing of this device and protocol is in {folder}: {SAVE}")
    try:
        found = known[-1:] if wanted is True else storage.query(wanted)
    except (ValueError, NotImplementedError):  # a path of several folders, or of one below the root
        found = []
    if not found:
        names = f"choose from {', '.join(path.stem for path in known)}" if known else SAVE
        raise UserError(f"--benchmark-compare={wanted}: no such file, nor one so named in {folder}: {names}")
    list(storage.load(*map(str, found)))


def refuse_nothing_in_common(compared: dict[Any, Collection[str]], names: Collection[str]) -> None:
    """Refuse to compare with files that have none of these rows; raises UserError."""
    if not compared:
        raise UserError(f"--benchmark-compare: nothing is saved there: {SAVE}")
    saved = [name for each in compared.values() for name in each]
    if set(saved).isdisjoint(names):
        files, rows = ", ".join(map(str, compared)), ", ".join(saved)
        raise UserError(f"--benchmark-compare: {files} has none of these rows, only {rows}: {SAVE}")
