"""Find for each engine of a comparison the one in the store that may stand for it."""

from collections.abc import Callable, Mapping, Sequence

from backends import registry
from backends.contract import Keeper, Shapes
from models.config import DecoderConfig
from workbench.building.manifest import Damaged, Manifest, read_manifest
from workbench.building.recipe import UNTUNED, Recipe, make_recipe, tell_difference, tuned_on
from workbench.building.store import Engine, EngineStore
from workbench.building.targets import aim, name_target
from workbench.building.work import name_form
from workbench.comparing.contestants import Contestant
from workbench.device.machine import Device
from workbench.plan import PlannedGroup

Engines = Mapping[tuple[str, Shapes], Engine]
"""By the contestant's name and the engine's shapes."""


def pick_up(
    store: EngineStore,
    device: Device,
    dtype: str,
    config: DecoderConfig,
    contestants: Sequence[Contestant],
    groups: Sequence[PlannedGroup],
    warn: Callable[[str], None],
) -> Engines:
    """Find a sound engine for each contestant and group; says why one that is there is not taken."""
    name = name_target(device)
    manifests = read_all(store, warn)
    found = {}
    for contestant in contestants:
        if name is None or not manifests or contestant.obstacle(device.device, dtype) is not None:
            continue
        if not isinstance(registry.find(contestant.backend), Keeper):
            continue
        target = aim(name, dtype, device)
        for shapes in (group.shapes for group in groups):
            form = name_form(contestant.backend, config, shapes, contestant.options)
            recipe, tuned = (
                make_recipe(form, target, name, device, {}, tuning) for tuning in (UNTUNED, tuned_on(device))
            )
            works = [recipe.work(), tuned.work()]
            candidates = [each for each in manifests if each.recipe.work() in works]
            engine = choose(store, candidates, recipe, contestant.made_by, warn)
            if engine is not None:
                found[contestant.name, shapes] = engine
    return found


def read_all(store: EngineStore, warn: Callable[[str], None]) -> list[Manifest]:
    """Read every manifest that can be believed, the newest first; says which cannot."""
    found = []
    for folder in store.folders():
        try:
            found.append(read_manifest(folder))
        except Damaged as damage:
            warn(f"{folder} is damaged and not used: {damage}")
    return sorted(found, key=lambda each: each.created, reverse=True)


def choose(
    store: EngineStore,
    candidates: Sequence[Manifest],
    recipe: Recipe,
    compilers: Mapping[str, str],
    warn: Callable[[str], None],
) -> Engine | None:
    """Choose of engines for this work the newest that the versions here load, a tuned one before others."""
    fitting = [
        each for each in candidates if each.recipe.compilers == compilers and each.recipe.code == recipe.code
    ]
    for manifest in sorted(fitting, key=lambda each: each.untuned):
        try:
            return store.open(store.folder(manifest.recipe))
        except Damaged as damage:
            warn(f"{store.folder(manifest.recipe)} is damaged and not used: {damage}")
    if candidates and not fitting:
        why = tell_difference(candidates[0].recipe.compilers, compilers) or "other code of this project"
        warn(f"{recipe.name}: the engine {candidates[0].recipe.key} is not used: built with {why}")
    return None
