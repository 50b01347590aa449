"""The main job, from the request to the printed result: read it as the table of contents."""

from collections.abc import Callable, Sequence

from rich.console import Console

from backends import registry
from backends.contract import Target
from models.errors import UserError
from workbench import exports, report
from workbench.building.pickup import Engines, pick_up
from workbench.building.store import EngineStore
from workbench.caches import LOCKS
from workbench.comparing import dryrun
from workbench.comparing.campaign import Campaign
from workbench.comparing.contestants import Contestant, choose
from workbench.comparing.entries import Entry, enter
from workbench.comparing.request import Request, Settings, settle
from workbench.comparing.source import foresee, prepare, read_model
from workbench.device.locks import DeviceLock
from workbench.device.machine import Device, describe, resolve_device
from workbench.plan import PlannedGroup, plan
from workbench.progress import Progress
from workbench.ratios import find_ratios
from workbench.record import Record, backend_name
from workbench.store import Store


def compare(request: Request, form: str, kernels: bool = False) -> bool:
    """Measure what is missing, print every row; returns whether every row asked for by name has a time."""
    records = measure(request)
    write(records, request.baseline, form, kernels)
    return request.backends is None or all(record.timed for record in records)


def measure(request: Request, select: Callable[[list[Entry]], list[Entry]] = list) -> list[Record]:
    """Measure what is missing of the rows that `select` leaves, and return them all.

    `select` is asked before anything is measured; raises UserError, as it may too.
    """
    with Progress(Console(stderr=True)) as progress:
        device, settings, groups = resolve(request)
        # Held before anything is run: asking the backends alone would disturb whoever measures there.
        with DeviceLock(device, LOCKS):
            contestants = invite(request, settings, device)
            source = prepare(settings.model, settings.dtype, progress)
            store = Store(request.results, progress.warn)
            engines = find_engines(request, settings, device, contestants, groups, progress)
            entries = enter(settings, device, source, store, contestants, groups, request.again, engines)
            chosen = select(entries)
            if any(entry.record is None for entry in chosen):
                if request.again:
                    for entry in chosen:
                        store.forget(device.name, entry.key)
                Campaign(settings, device, source, store, progress, again=request.again).measure(chosen)
    return [entry.record for entry in chosen if entry.record is not None]


def preview(request: Request, form: str) -> None:
    """Print what `compare` would measure, with an estimate of its time and memory; measures nothing."""
    with Progress(Console(stderr=True)) as progress:
        device, settings, groups = resolve(request)
        contestants = invite(request, settings, device)
        source = foresee(settings.model, settings.dtype, progress)
        store = Store(request.results, progress.warn)
        engines = find_engines(request, settings, device, contestants, groups, progress)
        entries = enter(settings, device, source, store, contestants, groups, request.again, engines)
        rows = dryrun.estimate(settings, device, source.config, entries)
    dryrun.write(rows, form)


def resolve(request: Request) -> tuple[Device, Settings, tuple[PlannedGroup, ...]]:
    """Find the device, fill in its defaults and plan the engines; raises UserError before anything is run."""
    if request.backends is not None:
        for name, options in request.backends:
            registry.check_options(registry.find(name), options)
        check_baseline(request.baseline, [backend_name(*each) for each in request.backends])
    device = describe(resolve_device(request.device))
    settings = settle(request, device.device)
    return device, settings, plan(read_model(settings.model), settings.workload)


def invite(request: Request, settings: Settings, device: Device) -> list[Contestant]:
    """Ask the backends whether they work here; raises UserError if none can take part."""
    target = Target(device.device, settings.dtype, device.architecture)
    contestants = choose(request.backends, target, request.pythons)
    if not contestants:
        raise UserError(
            f"no backend runs {settings.dtype} on {settings.device} here: see `python -m workbench backends`"
        )
    check_baseline(request.baseline, [contestant.name for contestant in contestants])
    return contestants


def check_baseline(baseline: str | None, names: Sequence[str]) -> None:
    """Refuse a baseline that no row is of; raises UserError."""
    if baseline is not None and baseline not in names:
        raise UserError(f"--baseline {baseline!r} is not among the rows: choose from {', '.join(names)}")


def find_engines(
    request: Request,
    settings: Settings,
    device: Device,
    contestants: Sequence[Contestant],
    groups: Sequence[PlannedGroup],
    progress: Progress,
) -> Engines:
    """Find the engines that were built ahead; none where everything is to be built anew."""
    if request.again:
        return {}
    store, config = EngineStore(request.engines), read_model(settings.model)
    return pick_up(store, device, settings.dtype, config, contestants, groups, progress.warn)


def write(records: Sequence[Record], baseline: str | None, form: str, kernels: bool) -> None:
    """Print the rows to stdout in the form asked for; `kernels` adds theirs to what people read."""
    result = report.Report(tuple(records), tuple(find_ratios(records, baseline)), kernels)
    if form == "json":
        print(exports.as_json(result))
    elif form == "csv":
        print(exports.as_csv(result))
    elif form == "md":
        print(report.markdown(result))
    else:
        report.print_table(result, report.stdout())
    line = report.run_line(records)
    if form in ("table", "md") and line:
        print(f"\n{line}")
