"""The kernels of rows as people read them. Pure."""

from collections.abc import Sequence

from workbench import units
from workbench.job import Json
from workbench.record import Record

SHOWN = 8
"""Kernels printed of a row; the record has more."""


def kernel_lines(records: Sequence[Record]) -> list[str]:
    """List what each row of one workload ran on the GPU, or why that is not known."""
    what = "prefill" if records[0].phase == "prefill" else "decode step"
    lines = [f"kernels of one {what}, traced apart from the times:"]
    for record in records:
        lines += traced(record, record.kernels) if record.kernels else [f"  {record.name}: {absence(record)}"]
    return lines


def traced(record: Record, kernels: Json) -> list[str]:
    """Write a row's sums and its longest kernels."""
    busy, span, gaps = (units.seconds(kernels[name]) for name in ("busy_s", "span_s", "gaps_s"))
    shares = (f"{origin} {units.percent(share)}" for origin, share in kernels["shares"].items() if share)
    names = kernels["kernels"]
    host = f"{kernels['launches']:.4g} launches, enqueued in {units.seconds(kernels['enqueue_s'])}"
    sums = f"busy {busy} of {span} traced, gaps {gaps}, {host}"
    lines = [f"  {record.name}: {sums}; {', '.join(shares)}"]
    lines += [
        f"    {units.percent(row['share']):>6} {units.seconds(row['total_s']):>8} "
        f"{row['count']:>5.4g}x {row['origin']:<9} {row['name']}"
        for row in names[:SHOWN]
    ]
    return lines + ([f"    and {len(names) - SHOWN} more in the record"] if len(names) > SHOWN else [])


def absence(record: Record) -> str:
    """Say why a row has no kernels."""
    if record.device == "cpu":
        return "not traced: CUPTI sees what runs on a GPU, and this row is of a CPU"
    if not record.timed:
        return f"not traced: it is {record.status}"
    if record.clock == "slope":
        return "not traced: see the chained steps; CUPTI sees no engine in another process"
    return f"not traced: {record.no_kernels or 'nobody tried; --again measures and traces it anew'}"
