"""The command line: what can be typed, and how a user's mistake ends.

Imports next to nothing: `--help` must come at once, so each command imports what it needs.
"""

import importlib
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="workbench",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Settle which compiler is fastest for a decoder model on a device, with verified numbers.",
)

FAILED = 1
"""Exit code: a row asked for by name has no time."""
USAGE = 2
"""Exit code: the input was wrong."""
INTERRUPTED = 130
"""Exit code: stopped from the keyboard."""


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


class ListFormat(StrEnum):
    """How the list of backends is written to stdout."""

    table = "table"
    json = "json"


@app.command()
def backends(
    format: Annotated[ListFormat, typer.Option(help="How to write the list.")] = ListFormat.table,
    python: Annotated[list[str], typer.Option(help="BACKEND=PATH: a backend's own Python.")] = [],  # noqa: B006
) -> None:
    """List every backend: usable or why not, how to install it, versions, devices, dtypes."""
    from workbench.listing import print_backends
    from workbench.request import read_pythons

    print_backends(read_pythons(python), as_json=format is ListFormat.json)


@app.command()
def compare(
    backends: Annotated[
        str | None, typer.Option(help="a,b[option=value]: which backends. Default: every usable one.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A preset, or a folder with config.json and *.safetensors.")
    ] = None,
    phases: Annotated[str | None, typer.Option(help="prefill,decode. Default: both.")] = None,
    batch: Annotated[str | None, typer.Option(help="Sequences, a list. Default: 1.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Tokens a sequence of a prefill, a list. Default: 64, on a GPU 512.")
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Cached positions before a decode, a list. Default: 128, on a GPU 1024."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Decode steps in one sample. Default: 32, on a GPU 64.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32, on a GPU bfloat16.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    repeats: Annotated[
        int | None, typer.Option(help="Processes a row is measured in. Default: 2, on a GPU 3.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="The row others are compared with. Default: eager, else the first.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Measure rows anew that are already there.")] = False,
    results: Annotated[Path, typer.Option(help="Where rows are kept.")] = Path("results"),
    format: Annotated[Format, typer.Option(help="How to write the result.")] = Format.table,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Print under each table what its rows ran on the GPU.")
    ] = False,
    python: Annotated[list[str], typer.Option(help="BACKEND=PATH: a backend's own Python.")] = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the rows and an estimate of time and memory.")
    ] = False,
) -> None:
    """Time the same prefill and decode work on each backend and say which is fastest.

    Exit code 1 if a row of a backend asked for by name has no time, 2 if the input was wrong.
    """
    from workbench import compare as comparison
    from workbench import request as requests

    request = requests.Request(
        backends=requests.read_backends(backends),
        model=model,
        phases=requests.read_phases(phases),
        batches=requests.read_integers("--batch", batch),
        prompts=requests.read_integers("--prompt", prompt),
        contexts=requests.read_integers("--context", context),
        steps=steps,
        dtype=dtype,
        device=device,
        repeats=repeats,
        baseline=baseline,
        again=again,
        results=results,
        pythons=requests.read_pythons(python),
    )
    if dry_run:
        comparison.preview(request, format.value)
    elif not comparison.compare(request, format.value, kernels):
        raise typer.Exit(FAILED)


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
    baseline: Annotated[
        str | None, typer.Option(help="The row others are compared with. Default: eager, else the first.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where rows are kept.")] = Path("results"),
) -> None:
    """Write what was measured as one page that opens offline, or as a table; measures nothing."""
    from workbench.publish import publish

    publish(records or [results], format.value, out, baseline)


def main() -> None:
    """Run a command; a user's mistake is one line on stderr, WORKBENCH_DEBUG=1 shows where it was found."""
    foreign = find_foreign_package()
    if foreign:
        raise SystemExit(complain(foreign))
    from models.errors import UserError

    try:
        code = app(standalone_mode=False)
    except UserError as error:
        raise SystemExit(complain(str(error))) from error
    except (typer.Abort, KeyboardInterrupt):
        print("stopped; what was measured is kept: the same command goes on from there", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        hint = "free space, or set WORKBENCH_CACHE to a folder that can be written"
        raise SystemExit(complain(f"{where}{error.strerror or error}: {hint}")) from error
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise SystemExit(complain(error.format_message())) from error
    raise SystemExit(code or 0)


def complain(message: str) -> int:
    """Print one line to stderr; returns the exit code of wrong input."""
    if os.environ.get("WORKBENCH_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"Error: {' '.join(message.split())}", file=sys.stderr)
    return USAGE


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
