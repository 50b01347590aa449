"""Who wins one workload, by how much, and whether that is real. Pure."""

from collections.abc import Sequence

from workbench import units
from workbench.ratios import Ratio, compare_rows
from workbench.record import Record
from workbench.statistics import ENOUGH


def name_winner(records: Sequence[Record]) -> str:
    """Say which of these rows of one workload is fastest, or which cannot be told apart from the fastest."""
    timed = sorted((record for record in records if record.timed), key=median)
    if not timed:
        return "no row has a time"
    best = timed[0]
    if len(timed) == 1:
        return f"only {best.name} has a time"
    leads = [(row.name, compare_rows(row, best)) for row in timed[1:]]
    close = [(name, lead) for name, lead in leads if not lead.real]
    if not close:
        name, lead = leads[0]
        return f"{best.name} is fastest: {spread(lead)} the speed of {name}"
    few = any(lead.processes < ENOUGH for _, lead in close)
    hint = f"; more processes may tell, --repeats {ENOUGH} for instance" if few else ""
    if not any(lead.bounded for _, lead in leads):
        return f"{best.name} took least, but one process cannot tell rows apart{hint}"
    names = [best.name, *(name for name, _ in close)]
    told = f" ({spread(close[0][1])})" if len(close) == 1 else ""
    return f"{', '.join(names[:-1])} and {names[-1]} cannot be told apart{told}{hint}"


def spread(ratio: Ratio) -> str:
    """Write a ratio with its interval in one line."""
    return " ".join(filter(None, write_ratio(ratio)))


def write_ratio(ratio: Ratio) -> tuple[str, str]:
    """Write a ratio and its interval, which one process cannot give."""
    low, high = units.significant(ratio.low), units.significant(ratio.high)
    return f"{units.significant(ratio.median)}x", f"[{low}, {high}]" if ratio.bounded else ""


def median(record: Record) -> float:
    """Return the median time of a timed record, in seconds."""
    assert record.time_s is not None
    return record.time_s.median
