"""The commands `build` and `engines` as they are typed. Imports next to nothing, like the command line."""

from pathlib import Path
from typing import Annotated

import typer

from workbench import options

engines = typer.Typer(no_args_is_help=False, help="List, show, verify, check and prune engines.")

Keys = Annotated[list[str] | None, typer.Argument(help="Keys, or how they begin. Default: all.")]
TargetDtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: bfloat16, for cpu float32.")
]
TargetModel = Annotated[
    str | None,
    typer.Option(help="A preset, or a folder with config.json. Default: llama-3.2-1b, for cpu tiny."),
]


def build(
    target: Annotated[str, typer.Option(help="h100, h200, a100, l40s, b200 or cpu, a list.")],
    backends: Annotated[
        str | None, typer.Option(help=f"{options.WHICH} Default: every one that can build ahead.")
    ] = None,
    model: TargetModel = None,
    dtype: TargetDtype = None,
    batch: options.Batch = None,
    prompt: Annotated[
        str | None, typer.Option(help="Tokens a sequence of a prefill, a list. Default: 512, for cpu 64.")
    ] = None,
    max_context: Annotated[
        str | None,
        typer.Option(help="Cached positions before a decode, a list. Default: 1024, for cpu 128."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Decode steps after them. Default: 32.")] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Engines built at a time. Default: half as many as cores.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First time kernels on the GPU, for builds without it too.")
    ] = False,
    engines: options.Engines = None,
    format: options.Listing = options.ListFormat.table,
    python: options.Python = [],  # noqa: B006
) -> None:
    """Build engines ahead, for a GPU that need not be here, and keep them for `compare`.

    Exit code 1 if a backend asked for by name gave nothing for any target; 2 if the input was wrong.
    """
    from workbench.building import build as building
    from workbench.building.build_table import gave_nothing, write
    from workbench.building.request import BuildRequest
    from workbench.building.targets import read_targets
    from workbench.comparing import request as requests
    from workbench.pythons import read_pythons

    request = BuildRequest(
        backends=requests.read_backends(backends),
        targets=read_targets(target),
        model=model,
        dtype=dtype,
        batches=requests.read_integers("--batch", batch),
        prompts=requests.read_integers("--prompt", prompt),
        contexts=requests.read_integers("--max-context", max_context),
        steps=steps,
        jobs=jobs,
        engines=engines,
        pythons=read_pythons(python),
        tune=tune,
    )
    rows = building.build(request)
    write(rows, as_json=format is options.ListFormat.json)
    if request.backends is not None and gave_nothing(rows):
        raise typer.Exit(options.FAILED)


@engines.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """List, show, verify, check and prune the engines of the store; alone it lists them."""
    if context.invoked_subcommand is None:
        list_engines()


@engines.command("list")
def list_engines(engines: options.Engines = None, format: options.Listing = options.ListFormat.table) -> None:
    """List every engine, and tuning data: for what it is, its code, versions, size and age."""
    from workbench.building.engines import listed, write
    from workbench.building.store import EngineStore

    write(listed(EngineStore(engines)), format is options.ListFormat.json, verified=False)


@engines.command()
def show(
    key: Annotated[str, typer.Argument(help="A key, or how it begins.")], engines: options.Engines = None
) -> None:
    """Print all that an engine says of itself, as JSON."""
    from rich.console import Console

    from workbench.building import engines as store
    from workbench.building.store import EngineStore
    from workbench.progress import Progress

    store.show(EngineStore(engines), key, Progress(Console(stderr=True)).warn)


@engines.command()
def verify(
    keys: Keys = None, engines: options.Engines = None, format: options.Listing = options.ListFormat.table
) -> None:
    """Check every byte of engines and of tuning data, and that machine code is for its target.

    Exit code 1 if one is not sound: the next build, of tuning data the next with --tune, replaces it.
    """
    from workbench.building import engines as store
    from workbench.building.store import EngineStore

    checked = [store.verify(each) for each in store.listed(EngineStore(engines), keys)]
    store.write(checked, format is options.ListFormat.json, verified=True)
    if any(each.fault for each in checked):
        raise typer.Exit(options.FAILED)


@engines.command()
def check(
    keys: Keys = None,
    device: options.Device = "auto",
    results: options.Results = Path("results"),
    engines: options.Engines = None,
    format: options.Listing = options.ListFormat.table,
    python: options.Python = [],  # noqa: B006
) -> None:
    """Run engines on a device here and hold their logits against golden ones; times nothing.

    Exit code 1 if one does not pass. What came of each is kept in the device's folder of the results.
    """
    from workbench.building import check as checking
    from workbench.comparing.request import Request
    from workbench.pythons import read_pythons

    request = Request(device=device, results=results, engines=engines, pythons=read_pythons(python))
    found = checking.check(request, keys)
    checking.write(found, format is options.ListFormat.json)
    if any(each.status != "passed" for each in found):
        raise typer.Exit(options.FAILED)


@engines.command()
def prune(
    days: Annotated[float, typer.Option(min=0, help="Keep what was used in so many days.")] = 30.0,
    engines: options.Engines = None,
) -> None:
    """Remove engines and tuning data that are damaged or not used for long, and what killed builds left."""
    from rich.console import Console

    from workbench.building import engines as store
    from workbench.building.store import EngineStore
    from workbench.progress import Progress

    for folder, reason in store.prune(EngineStore(engines), days, Progress(Console(stderr=True)).warn):
        print(f"removed {folder}: {reason}")
