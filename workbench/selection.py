"""Which records a report shows, and which of them may be compared: each group by itself. Pure."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from models.errors import UserError
from workbench.caches import digest
from workbench.plan import PHASES
from workbench.ratios import Ratio, difference, find_ratios, unlike, workload_of
from workbench.record import Record, device_identity, method, work_of
from workbench.report import Report, short_title

SETTING_FIELDS = ("model", "weights", "dtype", "protocol")
"""What all workloads of one table share, besides the device; of the protocol not the processes."""


@dataclass(frozen=True)
class Setting:
    """The newest rows of one model on one kind of device under one protocol, workload by workload."""

    report: Report
    older: tuple[int, ...]
    """How many earlier records each row has."""

    @property
    def first(self) -> Record:
        """The row that speaks for what all share."""
        return self.report.records[0]


def select(
    records: Sequence[Record], baseline: str | None = None, advance: Callable[[], None] = lambda: None
) -> list[Setting]:
    """Group the newest records by what may be compared, each with its ratio to its workload's baseline.

    `advance` is called once a workload. Raises UserError for a baseline that no row has, or that was
    measured under another protocol than all rows of the same work.
    """
    newest, older = find_newest(records)
    check_baseline(newest, baseline)
    groups: dict[str, list[Record]] = {}
    for record in sorted(newest, key=_place):
        groups.setdefault(_setting_key(record), []).append(record)
    return [
        Setting(
            Report(tuple(group), tuple(_ratios(group, baseline, records, advance))),
            tuple(older[identity(record)] for record in group),
        )
        for group in groups.values()
    ]


def count_workloads(records: Sequence[Record]) -> int:
    """Count what `select` compares by itself."""
    return len({(_setting_key(record), workload_of(record)) for record in records})


def identity(record: Record) -> str:
    """Identify the work, the kind of device and the backend: a later record of the same replaces this one."""
    parts = work_of(record) | device_identity(record)
    # One that is untuned says nothing of its compiler, so it does not replace one that does.
    return digest({**parts, "backend": record.name} | ({"untuned": True} if record.untuned else {}))


def find_newest(records: Sequence[Record]) -> tuple[list[Record], dict[str, int]]:
    """Keep the newest record of each row, the later one of equal age; returns how many are older."""
    newest: dict[str, Record] = {}
    older: dict[str, int] = {}
    for record in records:
        key = identity(record)
        older[key] = older[key] + 1 if key in older else 0
        if key not in newest or record.created >= newest[key].created:
            newest[key] = record
    return list(newest.values()), older


def check_baseline(records: Sequence[Record], name: str | None) -> None:
    """Refuse a named baseline that is nowhere, or that differs by its protocol from all it could serve."""
    if name is None:
        return
    timed = [record for record in records if record.timed]
    bases = [record for record in timed if record.name == name]
    if not bases:
        there = ", ".join(sorted({record.name for record in timed})) or "none, since no row has a time"
        raise UserError(f"--baseline {name!r} is not among the rows: choose from {there}")
    others = [record for record in timed if record.name != name]
    if any(difference(base, record) is None for record in others for base in bases):
        return  # rows that it cannot serve are left without a ratio
    for record in others:
        for base in bases:
            if difference(dataclasses.replace(base, protocol=record.protocol), record) is None:
                unlike_in = unlike(method(base.protocol), method(record.protocol))
                raise UserError(
                    f"{record.name} cannot be compared with {name} at {short_title(record)}: measured under "
                    f"protocols that differ in {unlike_in}; name files of one protocol, or leave --baseline "
                    "away to see each by itself"
                )


def _setting_key(record: Record) -> str:
    work = work_of(record)
    return digest({name: work[name] for name in SETTING_FIELDS} | device_identity(record))


def _place(record: Record) -> tuple[object, ...]:
    """Order rows by device, model and workload, the fastest first and those without a time last."""
    return (
        str(record.gpu.get("name")),
        record.model,
        record.dtype,
        PHASES.index(record.phase) if record.phase in PHASES else len(PHASES),
        record.batch,
        record.prompt or record.context or 0,
        record.steps or 0,
        record.time_s.median if record.time_s else float("inf"),
    )


def _ratios(
    records: Sequence[Record],
    baseline: str | None,
    all_there_are: Sequence[Record],
    advance: Callable[[], None],
) -> list[Ratio | None]:
    """Find the ratios of a setting's rows, which come workload by workload."""
    sections: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        sections.setdefault(workload_of(record), []).append(record)
    found: list[Ratio | None] = []
    for section in sections.values():
        found += find_ratios(section, baseline, all_there_are)
        advance()
    return found
