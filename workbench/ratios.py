"""How two rows compare: only the same work on the same device. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.errors import UserError
from workbench.record import OK, Record, device_identity, work_of
from workbench.statistics import ratio_interval

DEFAULT_BASELINE = "eager"


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline a row is; above 1 is faster."""

    to: str
    """The baseline's name."""
    median: float
    low: float
    """Lower end of the 95 % interval."""
    high: float
    """Upper end of the 95 % interval."""
    processes: int
    """Of the row that has fewer."""

    @property
    def bounded(self) -> bool:
        """Whether the interval says anything: one process cannot tell what changes between them."""
        return self.processes > 1

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """The ends of the interval; None where it says nothing."""
        return (self.low, self.high) if self.bounded else (None, None)

    @property
    def real(self) -> bool:
        """Whether the two can be told apart: the interval excludes 1."""
        return self.bounded and not self.low <= 1.0 <= self.high


def difference(one: Record, other: Record) -> str | None:
    """Name the first thing that keeps two rows from being compared; None if nothing does.

    Only the number of processes may differ: it changes the interval, not the time.
    """
    work = work_of(other)
    for name, left in work_of(one).items():
        right = work[name]
        if left != right:
            if isinstance(left, Mapping):
                return f"{name}: {unlike(left, right)}"
            return f"{name}: {left!r} and {right!r}"
    if device_identity(one) != device_identity(other):
        return f"device: {unlike(device_identity(one), device_identity(other))}"
    return None


def unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Write what two mappings have not in common: each name with both values."""
    pairs = {name: (one.get(name), other.get(name)) for name in dict.fromkeys([*one, *other])}
    return ", ".join(f"{name} ({left} and {right})" for name, (left, right) in pairs.items() if left != right)


def compare_rows(base: Record, other: Record) -> Ratio:
    """Compare two timed rows; raises UserError if they are not the same work on the same device."""
    found = difference(base, other)
    if found:
        raise UserError(f"{base.name} and {other.name} cannot be compared: they differ in {found}")
    processes = fewest_processes(base, other)
    if base is other:
        return Ratio(base.name, 1.0, 1.0, 1.0, processes)
    ratio = ratio_interval(samples(base), samples(other))
    return Ratio(base.name, ratio.value, ratio.low, ratio.high, processes)


def fewest_processes(one: Record, other: Record) -> int:
    """Count the processes of the row that has fewer: of a single one an interval says nothing."""
    return min(len(one.processes), len(other.processes))


def samples(record: Record) -> list[tuple[float, ...]]:
    """Return a row's samples in seconds, a tuple for each process."""
    return [run.samples_s for run in record.processes]


def workload_of(record: Record) -> tuple[object, ...]:
    """Name what rows of one table section share."""
    return (record.phase, record.batch, record.prompt, record.context, record.steps, record.clock)


def find_baseline(records: Sequence[Record], name: str | None) -> Record | None:
    """Choose the row that the others of one workload are compared with: the named one, else `eager`, else the
    first that is `ok`, else the first with a time. A named baseline without one leaves the workload without
    ratios.
    """
    for record in records:
        if record.timed and record.name == (name or DEFAULT_BASELINE):
            return record
    if name:
        return None
    timed = [record for record in records if record.timed]
    return next((record for record in timed if record.status == OK), next(iter(timed), None))


def find_ratios(
    records: Sequence[Record], baseline: str | None, others: Sequence[Record] = ()
) -> list[Ratio | None]:
    """Compare each row with its workload's baseline; None for a row without a time.

    Where `others`, which are not shown, have that baseline from the row's own call, it is compared with that:
    the two were measured side by side.
    """
    bases: dict[tuple[object, ...], Record | None] = {}
    for record in records:
        key = workload_of(record)
        if key not in bases:
            bases[key] = find_baseline([each for each in records if workload_of(each) == key], baseline)
    found = []
    for record in records:
        base = bases[workload_of(record)]
        found.append(compare_rows(beside(record, base, others), record) if base and record.timed else None)
    return found


def beside(record: Record, base: Record, others: Sequence[Record]) -> Record:
    """Return the baseline of a row's own call if there is one, else the one given."""
    if base.run == record.run:
        return base
    wanted = (record.run, base.name, base.untuned)
    same = (each for each in others if each.timed and (each.run, each.name, each.untuned) == wanted)
    return next((each for each in same if difference(each, record) is None), base)
