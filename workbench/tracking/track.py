"""What `[tool.workbench.track]` in a pyproject.toml asks for, and how pytest is run for it."""

import math
import tomllib
from pathlib import Path
from typing import Any, NoReturn

from models.config import is_preset
from models.errors import UserError
from workbench.comparing.request import Request, read_backends
from workbench.options import INSTALL_TRACK, INTERRUPTED, USAGE
from workbench.pythons import FILE, read_pythons

TABLE = "[tool.workbench.track]"
REPEATS = 7
"""By default. Among five processes a side, one odd one stretches the interval; among seven it does not."""
KEYS = ("backends", "model", "batch", "prompt", "context", "dtype", "device", "repeats", "budget")


class Keyboard:
    """A plugin that notes a Ctrl-C, for which pytest has the exit code of what cannot be collected."""

    pressed = False

    def pytest_keyboard_interrupt(self, excinfo: Any) -> None:
        """Note it; pytest's own ends come by here too, as exceptions that are derived from it."""
        self.pressed = excinfo.type is KeyboardInterrupt


def run_pytest(against: str | None, fail_on: str | None, more: list[str]) -> int:
    """Run pytest on the tracked rows; returns 0, 1 if a row failed, 130 after Ctrl-C, 2 for all else.

    Raises UserError.
    """
    try:
        import pytest
    except ImportError as error:
        raise UserError(f"pytest is missing: {INSTALL_TRACK}") from error
    # Where we are installed, pytest would warn that it cannot rewrite our modules: they run already.
    options = ["-p", "workbench.tracking.pytest_plugin", "--workbench", "--assert=plain"]
    options += [f"--workbench-against={against}"] if against is not None else []
    options += [f"--workbench-fail-on={fail_on}"] if fail_on is not None else []
    keyboard = Keyboard()
    code = min(int(pytest.main([*options, *more], plugins=[keyboard])), USAGE)
    return INTERRUPTED if keyboard.pressed else code


def read_request(path: Path) -> Request:
    """Read the table of a pyproject.toml; results go beside that file, where `workbench.toml` is looked for.

    Raises UserError.
    """
    table = read_table(path)
    unknown = [key for key in table if key not in KEYS]
    if unknown:
        raise UserError(f"{TABLE} of {path} has no key {unknown[0]!r}: choose from {', '.join(KEYS)}")
    model = read_text(table, "model")
    if model is not None and not is_preset(model):
        model = str(path.parent / Path(model).expanduser())
    repeats = read_numbers(table, "repeats", many=False)
    return Request(
        backends=read_backends(",".join(read_names(table, "backends"))),
        model=model,
        batches=read_numbers(table, "batch"),
        prompts=read_numbers(table, "prompt"),
        contexts=read_numbers(table, "context"),
        dtype=read_text(table, "dtype"),
        device=read_text(table, "device") or "auto",
        repeats=repeats[0] if repeats else REPEATS,
        budget_s=read_seconds(table, "budget"),
        again=True,
        results=path.parent / "results",
        pythons=read_pythons([], path.parent / FILE),
    )


def read_table(path: Path) -> dict[str, Any]:
    """Return the table as it is written; raises UserError if the file or the table is not there."""
    try:
        whole = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"there is no {path}: write one with a {TABLE}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    table: Any = whole
    for name in ("tool", "workbench", "track"):
        table = table.get(name) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        raise UserError(f'{path} has no {TABLE}: write one, with backends = ["eager"] for a start')
    return table


def read_names(table: dict[str, Any], key: str) -> list[str]:
    """Read a list of names, which must be there."""
    value = table.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(each, str) for each in value):
        refuse(table, key, 'a list of names, ["eager", "compile"] for instance')
    return value


def read_text(table: dict[str, Any], key: str) -> str | None:
    """Read a string, if it is there."""
    value = table.get(key)
    if value is not None and not isinstance(value, str):
        refuse(table, key, "a string")
    return value


def read_numbers(table: dict[str, Any], key: str, many: bool = True) -> tuple[int, ...] | None:
    """Read a whole number, or several where `many`, all above 0; None if the key is not there."""
    value = table.get(key)
    if value is None:
        return None
    numbers = value if many and isinstance(value, list) else [value]
    if not numbers or not all(type(each) is int and each > 0 for each in numbers):
        refuse(table, key, "a whole number above 0" + (" or a list of such" if many else ""))
    return tuple(sorted(set(numbers)))


def read_seconds(table: dict[str, Any], key: str) -> float | None:
    """Read seconds, above 0; None if the key is not there."""
    value = table.get(key)
    if value is not None and not (type(value) in (int, float) and 0 < value < math.inf):
        refuse(table, key, "a finite number of seconds above 0")
    return None if value is None else float(value)


def refuse(table: dict[str, Any], key: str, expected: str) -> NoReturn:
    """Refuse a value; always raises UserError."""
    given = f"{key} = {table[key]!r}" if key in table else f"no {key}"
    raise UserError(f"{TABLE} has {given}: write {expected}")
