"""What the command `build` prints: a row an engine, and below why some gave none."""

import json
from collections.abc import Sequence

from workbench import units
from workbench.building.build import Row
from workbench.job import Json
from workbench.report import foldable, stdout


def write(rows: Sequence[Row], as_json: bool) -> None:
    """Print what came of every order."""
    if as_json:
        print(json.dumps([flatten(row) for row in rows], indent=1))
        return
    table = foldable(("backend", "target", "engine", "status", "cold", "warm", "size", "path"))
    for row in rows:
        table.add_row(*cells(row), style="" if row.engine else "red")
    console = stdout()
    console.print(table)
    for line in notes(rows):
        console.print(line, soft_wrap=True)


def flatten(row: Row) -> Json:
    """Turn a row into plain JSON values, with SI units in the names."""
    engine, order = row.engine, row.order
    return {
        "backend": order.name,
        "target": order.target,
        "batch": order.shapes.batch,
        "prompts": list(order.shapes.prompts),
        "capacity": order.shapes.capacity,
        "model": order.model,
        "dtype": order.aim.dtype,
        "status": row.status,
        "reason": row.reason,
        "built": row.built,
        "untuned": engine.manifest.untuned if engine else None,
        "code": list(engine.manifest.code) if engine else None,
        "cold_s": engine.manifest.build_s if engine else None,
        "warm_s": row.warm_s,
        "size_bytes": engine.manifest.size_bytes if engine else None,
        "key": engine.key if engine else None,
        "path": str(engine.folder) if engine else None,
    }


def cells(row: Row) -> tuple[str, ...]:
    """Write a row in the order of the columns; the cold time of an engine found is from when it was built."""
    engine, order = row.engine, row.order
    what = f"{order.model} {order.aim.dtype} b{order.shapes.batch} c{order.shapes.capacity}"
    if engine is None or row.warm_s is None:
        return (order.name, order.target, what, row.status, "-", "-", "-", "-")
    return (
        order.name,
        order.target,
        what,
        ", ".join([row.status, *([] if row.built else ["cached"]), *([row.reason] if row.reason else [])]),
        units.seconds(engine.manifest.build_s),
        units.seconds(row.warm_s),
        units.size(engine.manifest.size_bytes),
        str(engine.folder),
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """Say why orders gave no engine, each reason once."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row.engine is None:
            name = f"{row.order.name} for {row.order.target}"
            found.setdefault(f"{row.status}: {row.reason}", {})[name] = None
    return [f"{', '.join(names)}: {line}" for line, names in found.items()]


def gave_nothing(rows: Sequence[Row]) -> list[str]:
    """Name the backends that gave no engine for any target."""
    fruitful = {row.order.name for row in rows if row.engine}
    return [name for name in dict.fromkeys(row.order.name for row in rows) if name not in fruitful]
