"""The command line: what can be typed, and how a user's mistake ends.

Imports next to nothing: `--help` must come at once, so each command imports what it needs.
"""

import importlib
import io
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from workbench import options
from workbench.building import commands as building
from workbench.tracking import commands as tracking

app = typer.Typer(
    name="workbench",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Settle which compiler is fastest for a decoder model on a device, with verified numbers.",
)

GOES_ON = (
    "what was measured is kept: the same command goes on from there, one of fewer --repeats ends with the "
    "processes that there are, and one with {} begins anew"
)
STOPPED = {
    "compare": GOES_ON.format("--again or --against"),
    "calibrate": GOES_ON.format("--again"),
    "track": "the same command begins anew",
    "build": "engines that were finished are kept, and the same command builds the others",
}
"""What becomes of the work of a command that is stopped; the others lose none."""

WITHOUT = {
    "--dry-run": "judges what it measures, and a dry run measures nothing",
    "--kernels": "prints verdicts, not the tables that kernels stand under",
    "--baseline": "judges each row by its own earlier one, not by a row beside it",
}
"""Why `--against` goes without some options."""


class Format(StrEnum):
    """How a result is written to stdout."""

    table = "table"
    json = "json"
    md = "md"
    csv = "csv"


class ReportFormat(StrEnum):
    """How a report is written."""

    html = "html"
    md = "md"
    csv = "csv"
    parquet = "parquet"


@app.command()
def backends(
    format: options.Listing = options.ListFormat.table,
    python: options.Python = [],  # noqa: B006
) -> None:
    """List every backend: usable or why not, how to install it, versions, devices, dtypes."""
    from workbench.listing import print_backends
    from workbench.pythons import read_pythons

    print_backends(read_pythons(python), as_json=format is options.ListFormat.json)


@app.command()
def compare(
    backends: options.Backends = None,
    model: options.Model = None,
    phases: options.Phases = None,
    batch: options.Batch = None,
    prompt: options.Prompt = None,
    context: options.Context = None,
    steps: options.Steps = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    repeats: options.Repeats = None,
    budget: options.Budget = None,
    baseline: options.Baseline = None,
    again: Annotated[bool, typer.Option("--again", help="Measure rows anew that are already there.")] = False,
    against: options.Against = None,
    results: options.Results = Path("results"),
    engines: options.Engines = None,
    format: Annotated[Format, typer.Option(help="How to write the result.")] = Format.table,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Print under each table what its rows ran on the GPU.")
    ] = False,
    python: options.Python = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the rows and an estimate of time and memory.")
    ] = False,
) -> None:
    """Time the same prefill and decode work on each backend and say which is fastest.

    Exit code 1 if a row of a backend asked for by name has no time or, with --against, is slower; 2 if the
    input was wrong or there is nothing to compare with.
    """
    from models.errors import UserError
    from workbench import compare as comparison
    from workbench.comparing.request import read

    given = {"--dry-run": dry_run, "--kernels": kernels, "--baseline": baseline}
    unused = next((name for name, value in given.items() if value), None)
    if against is not None and unused:
        raise UserError(f"--against {WITHOUT[unused]}: leave out {unused}")
    request = read(
        backends=backends,
        model=model,
        phases=phases,
        batch=batch,
        prompt=prompt,
        context=context,
        steps=steps,
        dtype=dtype,
        device=device,
        repeats=repeats,
        budget_s=budget,
        baseline=baseline,
        again=again or against is not None,  # a cached build could hide the change that is asked about
        results=results,
        python=python,
        engines=engines,
    )
    if dry_run:
        comparison.preview(request, format.value)
    elif against is not None:
        from workbench.tracking.against import compare_against

        if not compare_against(request, against, format.value):
            raise typer.Exit(options.FAILED)
    elif not comparison.compare(request, format.value, kernels):
        raise typer.Exit(options.FAILED)


app.command()(building.build)
app.add_typer(building.engines, name="engines")
app.command()(tracking.calibrate)
app.command(context_settings=tracking.PASS_ON)(tracking.track)
app.command()(tracking.history)


@app.command()
def report(
    records: Annotated[
        list[Path] | None, typer.Argument(help="Files of records, or folders. Default: the results folder.")
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(help="A file, or - for stdout. Default: report.html, report.parquet; else stdout."),
    ] = None,
    format: Annotated[
        ReportFormat, typer.Option(help="A page for a browser, Markdown, or a table for notebooks.")
    ] = ReportFormat.html,
    baseline: options.Baseline = None,
    results: options.Results = Path("results"),
) -> None:
    """Write what was measured as one page that opens offline, or as a table; measures nothing."""
    from workbench.publish import publish

    publish(records or [results], format.value, out, baseline)


def main() -> None:
    """Run a command; a user's mistake is one line on stderr, WORKBENCH_DEBUG=1 shows where it was found."""
    foreign = find_foreign_package()
    if foreign:
        raise SystemExit(complain(foreign))
    if sys.stdout is None:
        raise SystemExit(complain("the output is closed: send it to a file, or to /dev/null"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Whatever the locale is: no `µs` may end a comparison.
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    raise SystemExit(finish(run()))


def run() -> int:
    """Run a command; returns its exit code."""
    from models.errors import UserError

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        return complain(str(error))
    except (typer.Abort, KeyboardInterrupt):  # some releases of typer return its exit code instead
        code = options.INTERRUPTED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        place = "there" if error.filename else "where the output goes"
        hint = f"free space {place}, or set WORKBENCH_CACHE if it is the cache that has none"
        return complain(f"{where}{error.strerror or error}: {hint}")
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()  # none where the help was printed instead
        # How pydantic, which some releases of typer ask, begins what an option's own parser says.
        return complain(message.replace("Value error, ", "")) if message else options.USAGE
    if code == options.INTERRUPTED:
        told = [STOPPED[name] for name in sys.argv[1:2] if name in STOPPED]
        print("; ".join(["stopped", *told]), file=sys.stderr)
    return code or 0


def finish(code: int) -> int:
    """Write out what is left of the output; returns the exit code, another one where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        # Python would try once more at its end, and complain in its own way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return options.FAILED  # without a word, as where it breaks earlier: typer's way
        if code != options.USAGE:  # which has its line already
            why = error.strerror or error
            return complain(f"the output cannot be written: {why}: free space where it goes, or name another")
    return code


def complain(message: str) -> int:
    """Print one line to stderr; returns the exit code of wrong input."""
    if os.environ.get("WORKBENCH_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    return options.USAGE


def find_foreign_package() -> str | None:
    """Say which of our packages another distribution or folder stands in for; None if all are ours."""
    root = Path(__file__).resolve().parent.parent
    for name in ("models", "backends"):
        found = importlib.import_module(name).__file__
        if found is None or Path(found).resolve().parent.parent != root:
            return (
                f"the package {name!r} comes from {found}, not from {root}: another distribution or "
                "folder takes its place; run from elsewhere or in an environment of its own"
            )
    return None
