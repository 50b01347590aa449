"""What `--dry-run` prints: every row, whether it is there already, and what the missing ones would cost.

Each engine of the plan is driven through the `null` backend by the real harness, so a plan that cannot run
is found here; what that takes a step is the harness's own cost. Times are estimates from stated guesses.
"""

import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from backends.contract import Target
from backends.null import Null, NullEngine
from models.config import DecoderConfig
from models.work import Work, cache_bytes, weight_bytes
from workbench import units
from workbench.checking.checks import FORCED_STEPS, check_lengths, workload_tokens
from workbench.clock import Clock
from workbench.comparing.campaign import row_s
from workbench.comparing.entries import Entry
from workbench.comparing.request import Settings
from workbench.comparing.rows import least_work
from workbench.device.machine import Device
from workbench.job import RowJob
from workbench.measure import take_samples
from workbench.plan import PlannedGroup, PlannedRow
from workbench.record import Record
from workbench.report import foldable, stdout

GUESSES = {
    "cpu": Work(bytes=20 * 10**9, flops=100 * 10**9),
    "cuda": Work(bytes=2 * 10**12, flops=300 * 10**12),
}
"""Bytes and FLOPs a second that a usual device of a kind reaches in this work."""

HEADINGS = ("backend", "phase", "batch", "length", "state", "time (estimate)", "memory (at least)")


@dataclass(frozen=True)
class Estimate:
    """One row of the plan."""

    backend: str
    phase: str
    batch: int
    length: int
    state: str
    """`measured` before, `measure` now (perhaps with a doubt), or the status of a row that cannot run, with
    the reason.
    """
    time_s: float
    """Estimated wall time of all its processes; 0 where nothing is left to do."""
    memory_bytes: int
    """Weights, cache and logits; what a backend needs beside them is not known before."""


def estimate(
    settings: Settings, device: Device, config: DecoderConfig, entries: Sequence[Entry]
) -> list[Estimate]:
    """Estimate what each row costs."""
    for group in dict.fromkeys(entry.group for entry in entries):
        rehearse(settings, config, group)
    return [estimate_row(settings, device, config, entry) for entry in entries]


def estimate_row(settings: Settings, device: Device, config: DecoderConfig, entry: Entry) -> Estimate:
    """Estimate one row: its processes' start, its share of the two gates, its samples."""
    shapes, row = entry.group.shapes, entry.row
    missing = sum(entry.lacks(repeat) for repeat in range(settings.repeats))
    step = PlannedRow("decode", shapes.batch, max(shapes.prompts), 1)
    fill = PlannedRow("prefill", shapes.batch, max(shapes.prompts), None)
    steps = FORCED_STEPS * len(check_lengths(shapes, max(shapes.prompts)))
    gate = 2 * (steps * guess(settings, device, config, step) + 3 * guess(settings, device, config, fill))
    logits = 4 * shapes.batch * config.vocab_size
    cache = cache_bytes(config, settings.dtype, shapes.batch, shapes.capacity)
    memory = weight_bytes(config, settings.dtype) + cache + logits
    return Estimate(
        backend=entry.contestant.name,
        phase=row.phase,
        batch=row.batch,
        length=row.length,
        state=state_of(entry.record, memory, device.memory_bytes),
        time_s=missing * row_s(settings, entry.group, gate),
        memory_bytes=memory,
    )


def state_of(record: Record | None, needed_bytes: int, memory_bytes: int | None) -> str:
    """Say what becomes of a row that needs so much of the device's memory, if that is known."""
    if record is not None:
        return "measured" if record.timed else f"{record.status}: {record.reason}"
    if memory_bytes is not None and needed_bytes > memory_bytes:
        return f"measure, but {units.size(memory_bytes)} are here"
    return "measure"


def guess(settings: Settings, device: Device, config: DecoderConfig, row: PlannedRow) -> float:
    """Guess the seconds of one prefill or one decode step."""
    work = least_work(config, settings.dtype, row)
    rates = GUESSES["cuda" if device.is_gpu else "cpu"]
    return max(work.bytes / rates.bytes, work.flops / rates.flops)


def rehearse(settings: Settings, config: DecoderConfig, group: PlannedGroup) -> None:
    """Drive one engine of the plan through the `null` backend and the real harness."""
    target = Target("cpu", settings.dtype, "")
    engine = NullEngine(Null().build(config, group.shapes, target, {}))
    for row in group.rows:
        tokens = workload_tokens(config.vocab_size, row.batch, row.length, seed=0)
        job = RowJob("", row.phase, row.length, row.steps, row.lead)
        take_samples(engine, Clock("cpu"), tokens, job, budget_s=0.0)
    engine.close()


def write(rows: Sequence[Estimate], form: str) -> None:
    """Print the plan to stdout in the form asked for."""
    if form == "json":
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif form == "csv":
        writer = csv.DictWriter(sys.stdout, list(Estimate.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    elif form == "md":
        print(*units.markdown_table(HEADINGS, map(cells, rows)), "", sum_up(rows), sep="\n")
    else:
        console = stdout()
        table = foldable(HEADINGS)
        for row in rows:
            table.add_row(*cells(replace(row, state=row.state.partition(":")[0])))
        console.print(table)
        reasons = dict.fromkeys(f"{row.backend}: {row.state}" for row in rows if ":" in row.state)
        console.print(*reasons, sum_up(rows), sep="\n", soft_wrap=True)  # what to install is to be copied


def cells(row: Estimate) -> tuple[str, ...]:
    """Write a row's cells in the order of HEADINGS."""
    size, length = str(row.batch), str(row.length)
    state, needs = row.state, units.size(row.memory_bytes)
    return row.backend, row.phase, size, length, state, units.duration(row.time_s), needs


def sum_up(rows: Sequence[Estimate]) -> str:
    """Say what all rows take together."""
    total = units.duration(sum(row.time_s for row in rows))
    memory = units.size(max((row.memory_bytes for row in rows), default=0))
    return f"about {total} in all, at least {memory} of memory at a time; nothing was measured"
