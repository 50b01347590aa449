"""What the rows of one setting share, and in what they differ besides the backend."""

from dataclasses import dataclass

from workbench.record import Record, method
from workbench.report import held_equal, notes
from workbench.selection import Setting

HEADINGS = (
    *("backend", "definition", "provenance", "versions"),
    *("driver", "card", "workbench", "call", "measured"),
)


@dataclass(frozen=True)
class Conditions:
    """The conditions of one setting."""

    title: str
    equal: list[str]
    unlike: list[tuple[str, ...]]
    """A line for each way in which rows were made, in the order of HEADINGS."""
    differing: list[str]
    """The headings under which the lines are not all alike."""
    notes: list[str]


def conditions_of(setting: Setting) -> Conditions:
    """Gather them from a setting's records."""
    first = setting.first
    rules = ", ".join(f"{name} {value}" for name, value in method(first.protocol).items())
    lines = list(dict.fromkeys(_line(record) for record in setting.report.records))
    columns = list(zip(*lines, strict=True))
    return Conditions(
        title=f"{first.model}, {first.dtype}, {first.gpu.get('name', 'unknown device')}",
        equal=[*held_equal(setting.report.records), f"protocol: {rules}"],
        unlike=lines,
        differing=[name for name, values in zip(HEADINGS, columns, strict=True) if len(set(values)) > 1],
        notes=notes(setting.report.records),
    )


def _line(record: Record) -> tuple[str, ...]:
    return (
        record.name,
        record.definition or "-",
        record.provenance or "-",
        ", ".join(f"{name} {version}" for name, version in sorted(record.versions.items())) or "-",
        str(record.gpu.get("driver") or "-"),
        str(record.gpu.get("uuid") or "-"),
        record.workbench,
        record.run,
        record.created[:10],
    )
