"""What a worker does for the engine store: it tells versions, builds and saves, tunes, and opens.

Runs in the backend's own Python.
"""

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from backends import registry
from backends.contract import Artefact, Backend, Keeper, Refuser, Shapes, Sharer, Target, Tuner, Unsupported
from models.config import DecoderConfig
from workbench.building.machine_code import HOSTS, inspect
from workbench.building.manifest import Damaged, Manifest, check_files, read_manifest
from workbench.building.recipe import Form, tell_difference
from workbench.events import Events
from workbench.job import BuildJob, CompilersJob, Json, TuneJob


def find_keeper(name: str) -> Keeper:
    """Import a backend whose artefacts can be kept; raises Unsupported, or UserError."""
    backend = registry.find(name)
    if not isinstance(backend, Keeper):
        raise Unsupported(
            f"{name} makes its programs in the process that runs them, on the device itself: "
            "there is nothing that could be built ahead"
        )
    return backend


def name_form(name: str, config: DecoderConfig, shapes: Shapes, options: Mapping[str, str]) -> Form:
    """Return what of a model, of the shapes and of the options a backend's engines differ by.

    Raises as `find_keeper`.
    """
    keeper, fields = find_keeper(name), asdict(config)
    if not isinstance(keeper, Sharer):
        return Form(name, dict(options), fields, shapes, keeper.made_for)
    kept = {key: value for key, value in options.items() if key not in keeper.idle}
    return Form(name, kept, {key: fields[key] for key in keeper.shaped_by}, None, keeper.made_for)


def tell_compilers(job: CompilersJob) -> Json:
    """Tell for each target the versions of what shapes an artefact, or why there can be none."""
    keeper = find_keeper(job.backend)
    return {"targets": [_ask(keeper, target, job.options) for target in job.targets]}


def _ask(keeper: Keeper, target: Target, options: dict[str, str]) -> Json:
    try:
        return {"compilers": dict(keeper.compilers(target, options))}
    except Unsupported as refusal:
        return {"status": "unsupported", "reason": str(refusal)}
    except PackageNotFoundError as error:
        probe = keeper.probe()
        reason = probe.reason or f"{error.name} is not installed"
        return {"status": "missing", "reason": f"{reason}{f'; {probe.install}' if probe.install else ''}"}


def tell_choice(backend: Backend, target: Target, options: Mapping[str, str]) -> Json:
    """Tell what comes of options: `versions` of what makes an artefact, and `refusal`, why none is built."""
    return {
        "versions": tell_versions(backend, target, options),
        "refusal": tell_refusal(backend, target, options),
    }


def tell_refusal(backend: Backend, target: Target, options: Mapping[str, str]) -> str | None:
    """Tell why a build would refuse options, as far as the backend knows before; None if it would not."""
    if isinstance(backend, Refuser):
        try:
            backend.check_options(target, options)
        except Unsupported as refusal:
            return str(refusal)
    return None


def tell_versions(backend: Backend, target: Target, options: Mapping[str, str]) -> dict[str, str]:
    """Tell the versions of what makes an artefact; none where the backend keeps none, or a build fails."""
    if not isinstance(backend, Keeper):
        return {}
    try:
        return dict(backend.compilers(target, options))
    except (Unsupported, PackageNotFoundError):
        return {}


def build_artefact(job: BuildJob, events: Events) -> Json:
    """Build an artefact and save it; raises whatever goes wrong."""
    keeper = find_keeper(job.backend)
    events.enter("build")
    start = time.perf_counter()
    artefact = keeper.build(job.config, job.shapes, job.target, job.options)
    keeper.save(artefact, Path(job.folder))
    return {
        "definition": artefact.definition,
        "provenance": artefact.provenance,
        "untuned": artefact.untuned,
        "build_s": time.perf_counter() - start,
    }


def tune_backend(job: TuneJob, events: Events) -> None:
    """Let a backend time what there is to choose on the device; raises Unsupported."""
    backend = registry.find(job.backend)
    if not isinstance(backend, Tuner):
        raise Unsupported(f"{job.backend} chooses among nothing that could be timed")
    if refusal := tell_refusal(backend, job.target, job.options):
        raise Unsupported(refusal)
    events.enter("build")
    backend.tune(job.config, job.shapes, job.target, job.options, Path(job.folder))


def open_engine(
    backend: Backend,
    folder: Path,
    config: DecoderConfig,
    shapes: Shapes,
    target: Target,
    options: dict[str, str],
) -> Artefact:
    """Return what an engine's folder holds as the artefact that a build would have returned.

    Raises Unsupported for an engine that the device does not run, or made by other versions than are here,
    and Damaged for one that is not as it was kept, whatever it was when the command began.
    """
    if not isinstance(backend, Keeper):
        raise Unsupported(f"{backend.name} opens no engines")
    try:
        manifest = read_manifest(folder)
        check_files(manifest, folder)
    except Damaged as damage:
        raise Damaged(f"{folder}: {damage}; `build` makes it anew") from damage
    refuse_mismatch(manifest, folder, target, backend.compilers(target, options))
    artefact = Artefact(
        config,
        shapes,
        target,
        options,
        definition=manifest.definition,
        provenance=manifest.provenance,
        untuned=manifest.untuned,
    )
    return backend.open(artefact, folder)


def refuse_mismatch(manifest: Manifest, folder: Path, target: Target, compilers: Mapping[str, str]) -> None:
    """Refuse an engine that the device does not run, or of other versions than are here."""
    recipe = manifest.recipe
    if recipe.architecture != target.architecture and manifest.code:
        code = inspect([folder / name for name in manifest.files], target.architecture)
        if code.fault:
            raise Unsupported(f"the engine {recipe.key} is for {recipe.target}: {code.fault}")
    hosts = [code for code in manifest.code if code in HOSTS.values()]
    if hosts and platform.machine() not in hosts:
        raise Unsupported(
            f"the engine {recipe.key} was built on {hosts[0]}, and this is {platform.machine()}"
        )
    if target.device == "cpu" and recipe.target != "cpu":
        raise Unsupported(f"the engine {recipe.key} is for {recipe.target}, and this is a CPU")
    if recipe.compilers != compilers:
        raise Unsupported(
            f"the engine {recipe.key} was built with {tell_difference(recipe.compilers, compilers)}: "
            "build it with the versions that load it"
        )
