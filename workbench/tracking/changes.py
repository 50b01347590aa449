"""What is not the same about two records of one row, besides their times. Pure."""

from workbench.record import Record

ABSENT = "none"
UUID_SHOWN = 12
"""Characters of a card's or a machine's UUID that tell it from others of its kind: `GPU-` and eight more."""


def changes(before: Record, after: Record) -> list[str]:
    """List what changed: `torch 2.11 -> 2.13`, the driver, the code that numbers depend on."""
    earlier, later = facts(before), facts(after)
    return [
        f"{name} {earlier.get(name, ABSENT)} -> {later.get(name, ABSENT)}"
        for name in dict.fromkeys([*earlier, *later])
        if earlier.get(name) != later.get(name)
    ]


def facts(record: Record) -> dict[str, str]:
    """Name what a record's time may depend on and rows may be compared across."""
    driver, uuid = record.gpu.get("driver"), str(record.gpu.get("uuid") or "")[:UUID_SHOWN]
    others = {
        "machine" if record.device == "cpu" else "card": uuid,
        "driver": driver,
        "provenance": record.provenance,
        "workbench": record.workbench,
        "engine": engine_of(record),
    }
    return record.versions | {name: value for name, value in others.items() if value}


def engine_of(record: Record) -> str:
    """Name the engine that was built ahead, and whether it is untuned; `built here` if none was."""
    if not record.engine:
        return "built here"
    return f"{record.engine['key']} for {record.engine['target']}" + (" untuned" if record.untuned else "")
