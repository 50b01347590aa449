"""Run engines of the store on a device here and hold their logits against golden ones; nothing is timed.

That is for engines made elsewhere, and the only thing done with one made for another GPU: what its PTX does
on a newer one says nothing of its speed.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from backends.contract import Shapes
from models.errors import UserError
from workbench import units
from workbench.building.engines import Listed, listed, verify
from workbench.building.machine_code import inspect
from workbench.building.manifest import Manifest
from workbench.building.store import EngineStore
from workbench.caches import LOCKS, cache_root, compiler_environment
from workbench.checking.checks import capacity_for
from workbench.comparing.builds import builds_root, prune_builds
from workbench.comparing.golden_files import SEED, GoldenFiles
from workbench.comparing.request import Request, settle
from workbench.comparing.source import prepare
from workbench.device.locks import DeviceLock
from workbench.device.machine import Device, describe, resolve_device, thread_environment
from workbench.job import GroupJob, MeasureJob, read_shapes
from workbench.plan import PlannedGroup
from workbench.process import run
from workbench.progress import Progress
from workbench.report import foldable, stdout
from workbench.store import slug, write_atomically

PURPOSE = "correctness only: nothing was timed"
ANY_SHAPES = Shapes(batch=2, prompts=(48,), capacity=capacity_for(48, 0))
"""What an engine is checked at that serves all shapes."""


@dataclass(frozen=True)
class Checked:
    """What one engine did on a device."""

    key: str
    backend: str
    target: str
    device: str
    """Its name."""
    status: str
    """`passed`, `damaged`, or a status of `workbench.record`."""
    reason: str | None = None
    way: str | None = None
    """By which other code than the device's own it ran: `by PTX sm_80`."""
    error_ratio: float | None = None
    """Worst error of the logits over that of torch in the same dtype."""
    untuned: bool | None = None
    purpose: str = PURPOSE
    checked: str = field(default_factory=units.moment)


def check(request: Request, keys: Sequence[str] | None) -> list[Checked]:
    """Run engines on the request's device and keep in its results what came of each; raises UserError."""
    store = EngineStore(request.engines)
    device = describe(resolve_device(request.device))
    with Progress(Console(stderr=True)) as progress, DeviceLock(device, LOCKS):
        engines = listed(store, keys, tuning=False)
        progress.expect(len(engines), 30.0)
        found = []
        for each in map(verify, engines):
            found.append(check_one(request, device, each, progress))
            keep(request.results, found[-1])
            progress.advance()
        prune_builds()
    return found


def check_one(request: Request, device: Device, each: Listed, progress: Progress) -> Checked:
    """Run one engine; whatever goes wrong is its status."""
    if each.manifest is None or each.fault:
        name = each.folder.name.rpartition("-")[0]
        return Checked(each.key, name, each.folder.parent.name, device.name, "damaged", each.fault)
    manifest, recipe = each.manifest, each.manifest.recipe
    progress.say(f"checking {recipe.name} for {recipe.target} on {device.name}")
    way = inspect([each.folder / name for name in manifest.files], device.architecture).way

    def checked(status: str, reason: str | None, error_ratio: float | None = None) -> Checked:
        names = (recipe.key, recipe.name, recipe.target, device.name)
        return Checked(*names, status, reason, way, error_ratio, manifest.untuned)

    try:
        logs = cache_root() / "logs" / "check"
        job = prepare_job(device, each.folder, manifest, progress, logs)
        python = request.pythons.get(recipe.backend, sys.executable)
        # Beside the golden, among the builds, so that what a killed check leaves is pruned with them.
        with TemporaryDirectory(prefix="check-", dir=builds_root(), ignore_cleanup_errors=True) as caches:
            environment = compiler_environment(Path(caches)) | thread_environment(device)
            outcome = run(job, python=python, log=logs / f"{recipe.key}.log", environment=environment)
    except UserError as error:
        return checked("missing", str(error))
    if outcome.result is None:
        return checked(outcome.status, outcome.reason)
    verdict = outcome.result
    return checked("passed" if verdict["passed"] else "wrong", verdict["reason"], verdict["error_ratio"])


def prepare_job(
    device: Device, folder: Path, manifest: Manifest, progress: Progress, logs: Path
) -> MeasureJob:
    """Write or find weights and golden logits of the engine's model; returns the job."""
    recipe = manifest.recipe
    settings = settle(Request(model=manifest.model, dtype=recipe.dtype), device.device)
    source = prepare(manifest.model, recipe.dtype, progress)
    if not recipe.config.items() <= asdict(source.config).items():
        raise UserError(f"{manifest.model} is no longer the model that the engine was built for")
    group = PlannedGroup(read_shapes(recipe.shapes) if recipe.shapes else ANY_SHAPES, ())
    golden = GoldenFiles(settings, device, source, progress, logs)
    golden.make([group])
    return MeasureJob(
        backend=recipe.backend,
        options=recipe.options,
        model=str(source.folder),
        dtype=recipe.dtype,
        device=device.device,
        seed=SEED,
        budget_s=0.0,
        group=GroupJob(group.shapes, str(golden.of(group)), ()),
        engine=str(folder),
        kind="check",
    )


def keep(results: Path, checked: Checked) -> None:
    """Write what came of an engine beside the records of the device; raises OSError."""
    folder = results / slug(checked.device) / "engine-checks"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{checked.key}.json", json.dumps(asdict(checked), indent=1).encode())


def write(found: Sequence[Checked], as_json: bool) -> None:
    """Print what came of every engine."""
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=1))
        return
    table = foldable(("key", "backend", "target", "on", "status", "error", "how"), whole=("key",))
    for each in found:
        error = "-" if each.error_ratio is None else f"{each.error_ratio:.2f}"
        how = ", ".join(filter(None, (each.way, "untuned" if each.untuned else None)))
        names = (each.key, each.backend, each.target, each.device)
        style = "" if each.status == "passed" else "red"
        table.add_row(*names, each.status, error, how, style=style)
    console = stdout()
    console.print(table)
    reasons = [f"{each.key}: {each.reason}" for each in found if each.reason]
    console.print(*reasons, PURPOSE, sep="\n", soft_wrap=True)
