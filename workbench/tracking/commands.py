"""The commands that follow a row through time. Imports next to nothing, like the command line itself."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from workbench import options

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Of `track`: what it does not know is pytest's."""


class FailOn(StrEnum):
    """What makes `track` fail besides a row without a time."""

    regression = "regression"


def calibrate(
    backends: Annotated[str, typer.Option(help=options.WHICH)] = "eager",
    model: options.Model = None,
    phases: options.Phases = None,
    batch: options.Batch = None,
    prompt: options.Prompt = None,
    context: options.Context = None,
    steps: options.Steps = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    repeats: Annotated[int | None, typer.Option(help="Processes, at least and by default 10.")] = None,
    budget: options.Budget = None,
    again: Annotated[bool, typer.Option("--again", help="Measure anew what is calibrated already.")] = False,
    results: options.Results = Path("results"),
    format: options.Listing = options.ListFormat.table,
    python: options.Python = [],  # noqa: B006
) -> None:
    """Measure what chance alone makes of rows on this machine: the noise floor that verdicts are held to."""
    from workbench.comparing.request import read
    from workbench.tracking import calibrate as calibration

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
        again=again,
        results=results,
        python=python,
    )
    if not calibration.calibrate(request, format is options.ListFormat.json):
        raise typer.Exit(options.FAILED)


def track(
    context: typer.Context,
    against: options.Against = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="Fail if a row is slower than in --against, else than last time.")
    ] = None,
) -> None:
    """Measure the rows of pyproject.toml (table tool.workbench.track) as pytest-benchmark's; runs pytest.

    The same as `pytest --workbench`; further options are pytest's, --benchmark-save NAME for instance. Exit
    code 1 if a row has no time or regressed, 2 if there is nothing to run or to compare with.
    """
    from workbench.tracking.track import run_pytest

    raise typer.Exit(run_pytest(against, fail_on.value if fail_on else None, context.args))


def history(
    backend: Annotated[str | None, typer.Option(help="A backend, or one with its options.")] = None,
    phase: Annotated[str | None, typer.Option(help="prefill or decode.")] = None,
    model: Annotated[str | None, typer.Option(help="A model's name.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences.")] = None,
    prompt: Annotated[int | None, typer.Option(help="Tokens a sequence of a prefill.")] = None,
    context: Annotated[int | None, typer.Option(help="Cached positions before a decode.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Annotated[str | None, typer.Option(help="A device's folder under the results.")] = None,
    results: options.Results = Path("results"),
    format: options.Listing = options.ListFormat.table,
) -> None:
    """Follow rows through all their records: where they changed, by how much, and what changed with them."""
    from workbench.tracking import history_lines
    from workbench.tracking.follow import follow
    from workbench.tracking.history import Wanted

    found = follow(Wanted(backend, phase, model, batch, prompt, context, dtype, device), results)
    history_lines.write(found, format is options.ListFormat.json)
