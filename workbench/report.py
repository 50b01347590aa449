"""Records as people read them: what was held equal, a table, who wins, warnings."""

import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from workbench import units
from workbench.device import datasheets
from workbench.kernel_lines import kernel_lines
from workbench.plan import PlannedRow
from workbench.ratios import Ratio, workload_of
from workbench.record import UNFINISHED, UNSAVED, Record
from workbench.winner import name_winner, write_ratio

WIDE = 200
"""Columns where the output is no terminal, so that a piped table is never folded."""


MIXED = "rows of different calls, perhaps under other conditions: --again measures them side by side"

Section = Sequence[tuple[Record, Ratio | None]]
"""Rows of one workload."""


def stdout() -> Console:
    """Return what tables are printed to; a name like `compile[mode=default]` is no markup."""
    return Console(width=None if sys.stdout.isatty() else WIDE, markup=False, highlight=False)


def print_lines(console: Console, lines: Iterable[str], style: str = "") -> None:
    """Print lines, folded between words on a terminal alone: programs and files get each in one piece."""
    for line in lines:
        console.print(line, style=style, soft_wrap=not console.is_terminal)


def foldable(columns: Iterable[str], title: str | None = None, whole: Collection[str] = ()) -> Table:
    """Return a table without rows, to be folded where the terminal is narrow, but for the `whole` columns.

    Half a number would be a wrong one, and half a name is none.
    """
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in whole)
    return table


@dataclass(frozen=True)
class Report:
    """Rows in the order they are shown, each with its ratio to the baseline."""

    records: tuple[Record, ...]
    ratios: tuple[Ratio | None, ...]
    kernels: bool = False
    """Whether tables are followed by the kernels of their rows."""

    def sections(self) -> list[list[tuple[Record, Ratio | None]]]:
        """Group the rows by workload, in the order they come."""
        found: dict[tuple[object, ...], list[tuple[Record, Ratio | None]]] = {}
        for record, ratio in zip(self.records, self.ratios, strict=True):
            found.setdefault(workload_of(record), []).append((record, ratio))
        return list(found.values())


COLUMNS = ("backend", "time", "ratio", "tok/s", "limit", "build", "memory", "error", "status")
LEFT = ("backend", "status")
"""Columns of words; numbers stand to the right."""
NUMBERS = 66
"""Characters that all but the names take before a number is cut in two: names are folded sooner."""


def headers(section: Section) -> list[str]:
    """Name the columns; the ratio's says what it is to."""
    base = next((ratio.to for _, ratio in section if ratio), None)
    return [f"vs {base}" if name == "ratio" and base else name for name in COLUMNS]


def cells(record: Record, ratio: Ratio | None) -> tuple[tuple[str, str], ...]:
    """Write one row's cells in the order of COLUMNS, each as two lines; a dash where there is no number.

    Under time and ratio stands the 95 % interval, under the cold build the warm one.
    """
    time = record.time_s
    total = record.peak_bytes.get("total")
    return (
        (record.name, "untuned" if record.untuned else ""),
        (units.seconds(time.median), units.interval(time.low, time.high, time.median)) if time else ("-", ""),
        ratio_cell(ratio),
        (units.significant(record.tokens_per_s) if record.tokens_per_s else "-", ""),
        (units.percent(record.limit_share) if record.limit_share is not None else "-", ""),
        build_cell(record),
        (units.size(total) if total else "-", ""),
        (f"{record.error_ratio:.2f}" if record.error_ratio is not None else "-", ""),
        (record.status, ""),
    )


def build_cell(record: Record) -> tuple[str, str]:
    """Write the cold and the warm build, or what it took to open an engine that was built ahead."""
    cold, warm, cached = (record.build_s.get(kind) for kind in ("cold", "warm", "cached"))
    if cached is not None:
        return "cached", units.seconds(cached)
    if cold is None and warm is None:
        return "-", ""
    return units.seconds(cold) if cold is not None else "-", units.seconds(warm) if warm is not None else "-"


def ratio_cell(ratio: Ratio | None) -> tuple[str, str]:
    """Write a ratio and its interval; the baseline itself is 1."""
    if ratio is None:
        return "-", ""
    if ratio.median == ratio.low == ratio.high == 1.0:
        return "1", ""
    return write_ratio(ratio)


def title(record: Record) -> str:
    """Name a workload: `decode, batch 1, context 128, mean of 32 chained steps`."""
    if record.phase == "prefill":
        return f"prefill, batch {record.batch}, {record.prompt} tokens a sequence, drained clock"
    what = f"decode, batch {record.batch}, context {record.context}"
    if record.clock == "slope":
        short, long = record.protocol["slope"]
        return f"{what}, mean of {record.steps} steps by slope: (T({long}) - T({short})) / {record.steps}"
    return f"{what}, mean of {record.steps} chained steps"


def short_title(record: Record | PlannedRow) -> str:
    """Name a workload in a note: `decode b1 c128`, `prefill b8 p512`, `decode b1 c128 slope`."""
    length = f"p{record.prompt}" if record.phase == "prefill" else f"c{record.context}"
    return f"{record.phase} b{record.batch} {length}" + (" slope" if record.clock == "slope" else "")


def held_equal(records: Sequence[Record]) -> list[str]:
    """Say what every row of the table shares; what rows of different calls may differ in is told of all."""
    first = records[0]
    gpu = first.gpu
    device = f"{every(record.device for record in records)}: {gpu.get('name', 'unknown')}"
    driver = every(str(record.gpu.get("driver")) for record in records)
    device += f", {gpu['threads']} threads" if "threads" in gpu else f", driver {driver}"
    device += f", power limit {gpu['power_limit_w']} W" if gpu.get("power_limit_w") else ""
    protocol = first.protocol
    counts = " or ".join(map(str, sorted({record.protocol["processes"] for record in records})))
    return [
        f"model {first.model}, {first.dtype}, weights {first.weights[:12]}",
        f"device {device}",
        f"greedy decoding of the same tokens; processes a row: {counts}, in rotating order; "
        f"logits verified before and after timing (gate {protocol['gate']})",
        *ceilings(records),
    ]


def every(texts: Iterable[str]) -> str:
    """Name each of several texts once."""
    return " and ".join(dict.fromkeys(texts))


def ceilings(records: Sequence[Record]) -> list[str]:
    """Say what the machine was measured to do, and what share of its datasheet that is where there is one.

    Looks are taken around a row's processes, so rows of several calls, or of fewer processes, have others.
    Those of rows that were cut short, and have no time, count only where there are no more.
    """
    seen = [record for record in records if record.timed] or records
    bandwidth, products = (
        [record.ceilings[name]["median"] for record in seen if record.ceilings.get(name)]
        for name in ("bandwidth_bytes_per_s", "flops_per_s")
    )
    if not bandwidth or not products:
        return []
    gpu, dtype = str(records[0].gpu.get("name")), records[0].dtype
    of_bandwidth = [share for each in bandwidth if (share := datasheets.bandwidth_share(gpu, each))]
    of_products = [share for each in products if (share := datasheets.product_share(gpu, dtype, each))]
    line = f"ceilings {span(bandwidth, lambda each: units.rate(each, 'B'))}"
    line += f" ({span(of_bandwidth, units.percent)} of the datasheet)" if of_bandwidth else ""
    line += f", {span(products, lambda each: units.rate(each, 'FLOP'))} {dtype}"
    line += f" ({span(of_products, units.percent)})" if of_products else ""
    return [f"{line}; rows were measured at different times" if " to " in line else line]


def span(sizes: Sequence[float], write: Callable[[float], str]) -> str:
    """Write the least and the most of some sizes, once where they are written alike."""
    return " to ".join(dict.fromkeys((write(min(sizes)), write(max(sizes)))))


def rows_of(section: Section) -> list[Record]:
    """Return a section's rows without their ratios."""
    return [record for record, _ in section]


def room(section: Section) -> list[str]:
    """Say what fits into the device by each backend's measured memory; nothing where that is unknown."""
    fitting = [
        f"{row.name} {row.batch} x {row.fits['context']} or {row.fits['batch']} x {row.context}"
        for row, _ in section
        if row.timed and row.fits
    ]
    what = "fits at most, batch x context, by the memory measured at this one"
    return [f"{what}: {', '.join(fitting)}"] if fitting else []


def row_title(record: Record) -> str:
    """Name a row in a note: `eager decode b1 c128`."""
    return f"{record.name} {short_title(record)}"


def notes(records: Sequence[Record]) -> list[str]:
    """Collect why rows have no time and every warning, each once, with the rows it belongs to."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        lines = [f"{record.status}: {record.reason}"] if record.reason else []
        for line in [*lines, *record.warnings]:
            found.setdefault(line, {})[row_title(record)] = None
    for record in records:
        rivals = [each for each in records if each.timed and workload_of(each) == workload_of(record)]
        if of_several_calls(rivals):
            found.setdefault(MIXED, {})[short_title(record)] = None
    return [f"{', '.join(names)}: {line}" for line, names in found.items()]


def of_several_calls(records: Sequence[Record]) -> bool:
    """Tell whether rows with a time come from more than one call."""
    return len({record.run for record in records if record.timed}) > 1


def run_line(records: Sequence[Record]) -> str:
    """Name the runs of the rows, as `--against` takes them, oldest first; empty if none was saved."""
    lost = {UNFINISHED, UNSAVED}
    runs = sorted({record.run for record in records if record.timed and not lost & set(record.warnings)})
    if not runs:
        return ""
    return f"measured in {', '.join(runs)}: `compare --against RUN` measures anew and judges by one of these"


def print_table(report: Report, console: Console) -> None:
    """Print what was held equal, a table for each workload with its verdict, and the warnings."""
    if report.records:
        print_lines(console, ["Held equal:", *(f"  {line}" for line in held_equal(report.records))])
    for section in report.sections():
        longest = max(len(record.name) for record in rows_of(section))
        whole = LEFT if longest + NUMBERS <= console.width else ()
        table = foldable(headers(section), title(section[0][0]), whole)
        for column in table.columns:
            column.justify = "left" if column.header in LEFT else "right"
        for record, ratio in section:
            stacked = ("\n".join(cell).rstrip() for cell in cells(record, ratio))
            table.add_row(*stacked, style="" if record.timed else "red")
        console.print()
        console.print(table)
        print_lines(console, [name_winner(rows_of(section))], style="bold")
        print_lines(console, room(section))
        if report.kernels:
            console.print(*kernel_lines(rows_of(section)), sep="\n", soft_wrap=True)
    lines = notes(report.records)
    if lines:
        console.print("\nNotes:", style="yellow")
        print_lines(console, (f"  {line}" for line in lines))


def markdown(report: Report) -> str:
    """Write the same report as Markdown."""
    lines = [f"- {line}" for line in held_equal(report.records)] if report.records else []
    for section in report.sections():
        lines += ["", f"**{title(section[0][0])}**", ""]
        rows = [[" ".join(cell).strip() for cell in cells(record, ratio)] for record, ratio in section]
        lines += units.markdown_table(headers(section), rows)
        lines += ["", name_winner(rows_of(section)), *([""] if room(section) else []), *room(section)]
        if report.kernels:
            lines += ["", "```text", *kernel_lines(rows_of(section)), "```"]
    lines += ["", *(f"- {line}" for line in notes(report.records))] if notes(report.records) else []
    return "\n".join(lines)
