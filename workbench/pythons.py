"""Which Python a backend runs in that has an environment of its own: from `workbench.toml`, or as typed."""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backends.registry import names, nearest
from models.errors import UserError

FILE = Path("workbench.toml")
"""Read where a command is called; its table [python] has the path of an interpreter for each backend."""
TABLE = "python"


def read_pythons(pairs: Sequence[str], file: Path = FILE) -> dict[str, str]:
    """Read the file, if it is there, and BACKEND=PATH pairs, which go before it; raises UserError."""
    found = read_file(file)
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            raise UserError(f"--python {pair!r}: write BACKEND=PATH with the path of a Python interpreter")
        found[name] = check(f"--python {pair!r}", name, Path(path))
    return found


def read_file(file: Path) -> dict[str, str]:
    """Read the interpreters that a file names, relative to where it lies; raises UserError."""
    try:
        content = tomllib.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    table: Any = content.get(TABLE, {})
    unknown = [key for key in content if key != TABLE]
    if unknown or not isinstance(table, Mapping):
        given = f"has {unknown[0]!r}" if unknown else f"has {TABLE} = {table!r}"
        raise UserError(f'{file} {given}: write a table [{TABLE}] with BACKEND = "PATH" and nothing else')
    for name, path in table.items():
        if not isinstance(path, str):
            raise UserError(f"{file}: {name} = {path!r}: write the path of a Python interpreter in quotes")
    return {
        name: check(f"{file}: {name} = {path!r}", name, file.parent / Path(path).expanduser())
        for name, path in table.items()
    }


def check(given: str, name: str, path: Path) -> str:
    """Return the path of an interpreter of a backend there is; raises UserError."""
    if name not in names():
        raise UserError(f"{given}: unknown backend {name!r}: {nearest(name, names())}")
    if not path.expanduser().is_file():
        raise UserError(f"{given}: there is no such file: write the path of a Python interpreter")
    return str(path.expanduser())
