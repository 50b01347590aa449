"""The commands on the engine store: what there is, whether it is sound, and what can go."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from backends import registry
from backends.contract import Keeper
from models.errors import UserError
from workbench import units
from workbench.building.machine_code import inspect
from workbench.building.manifest import (
    ENGINE,
    MANIFEST,
    Damaged,
    Manifest,
    check_files,
    read_manifest,
)
from workbench.building.store import TUNING, EngineStore
from workbench.job import Json
from workbench.report import foldable, stdout


@dataclass(frozen=True)
class Listed:
    """An engine's folder in the store or one of tuning data, with what it says of itself."""

    folder: Path
    manifest: Manifest | None
    """None where it cannot be believed."""
    fault: str | None = None
    """What is wrong with it."""

    @property
    def key(self) -> str:
        """Its name: folders end in it."""
        return self.folder.name.rpartition("-")[2]

    @property
    def used(self) -> datetime:
        """When it was last built, found or loaded."""
        return datetime.fromtimestamp(self.folder.stat().st_mtime, UTC)


def listed(store: EngineStore, keys: Sequence[str] | None = None, tuning: bool = True) -> list[Listed]:
    """Read the manifests of all engines, or of those named, and with `tuning` of tuning data, too.

    Raises UserError for a key that is not there.
    """
    found = []
    for folder in store.folders() + (store.tuning_folders() if tuning else []):
        try:
            found.append(Listed(folder, read_manifest(folder)))
        except Damaged as damage:
            found.append(Listed(folder, None, str(damage)))
    if not keys:
        return found
    for key in keys:
        if not key:
            raise UserError("an empty key is that of no engine: `engines` lists those there")
        if not any(each.key.startswith(key) for each in found):
            raise UserError(f"no engine in {store.root} has the key {key!r}: `engines` lists those there")
    return [each for each in found if each.key.startswith(tuple(keys))]


def verify(engine: Listed) -> Listed:
    """Check every byte of an engine or of tuning data, and which device an engine's code is for."""
    if engine.manifest is None:
        return engine
    try:
        check_files(engine.manifest, engine.folder)
    except Damaged as damage:
        return Listed(engine.folder, engine.manifest, str(damage))
    recipe = engine.manifest.recipe
    if engine.manifest.kind != ENGINE or not has_machine_code(recipe.backend):
        return engine
    code = inspect([engine.folder / name for name in engine.manifest.files], recipe.architecture)
    return Listed(engine.folder, engine.manifest, code.fault)


def has_machine_code(backend: str) -> bool:
    """Tell whether a backend's engines hold code for their target; one that is not here is taken to."""
    try:
        keeper = registry.find(backend)
    except UserError:
        return True
    return not isinstance(keeper, Keeper) or keeper.machine_code


def foreign(each: Listed) -> str | None:
    """Say why a folder is not the store's to remove: what lies in it may be the user's own."""
    names = {path.name for path in each.folder.iterdir()}
    if MANIFEST not in names:
        return "it has no manifest"
    others = names - {MANIFEST, *each.manifest.files} if each.manifest else None
    return f"{min(others)} in it is none of its files" if others else None


def prune(store: EngineStore, days: float, warn: Callable[[str], None]) -> list[tuple[Path, str]]:
    """Remove what is damaged, unfinished, or not used for so many days; returns each with its reason.

    A folder with something in it that the store has not put there is left, and warned of.
    """
    removed = []
    now = time.time()
    for each in map(verify, listed(store)):
        idle_days = (now - each.used.timestamp()) / 86400
        reason = each.fault or (f"not used for {idle_days:.0f} days" if idle_days > days else None)
        if reason and (obstacle := foreign(each)):
            warn(f"{each.folder} is not removed: {obstacle}; remove it yourself if nothing in it is yours")
        elif reason:
            store.remove(each.folder)
            removed.append((each.folder, reason))
    for folder in store.unfinished():
        # No build takes a day: whoever began this is gone.
        if now - folder.stat().st_mtime > 86400:
            shutil.rmtree(folder, ignore_errors=True)
            removed.append((folder, "left by a build that was ended"))
    return removed


def show(store: EngineStore, key: str, warn: Callable[[str], None]) -> None:
    """Print all that an engine says of itself; of several whose keys begin so, a list of the sound ones."""
    found, damaged = [], []
    for each in listed(store, [key]):
        if each.manifest is None:
            command = "build --tune" if each.folder.parent.name == TUNING else "build"
            damaged.append(f"{each.folder} is damaged: {each.fault}; the next `{command}` replaces it")
        else:
            found.append({"key": each.key, "path": str(each.folder), **asdict(each.manifest)})
    if not found:
        raise UserError("; ".join(damaged))
    for line in damaged:
        warn(line)
    print(json.dumps(found[0] if len(found) == 1 else found, indent=1))


def write(engines: Sequence[Listed], as_json: bool, verified: bool) -> None:
    """Print engines, and of verified ones whether each is sound; below, what does not fit into a table."""
    if as_json:
        print(json.dumps([flatten(each) for each in engines], indent=1))
        return
    columns = ("key", "backend", "target", "engine", "code", "size", "age", "notes")
    table = foldable(columns, whole=("key",))
    for each in engines:
        table.add_row(*cells(each, verified), style="red" if each.fault else "")
    console = stdout()
    console.print(table)
    for line in remarks(engines):
        console.print(line, soft_wrap=True)


def flatten(each: Listed) -> Json:
    """Turn an engine into plain JSON values."""
    manifest = each.manifest
    if manifest is None:
        return {"key": each.key, "path": str(each.folder), "fault": each.fault}
    recipe = manifest.recipe
    return {
        "key": each.key,
        "path": str(each.folder),
        "fault": each.fault,
        "backend": recipe.name,
        "target": recipe.target,
        "model": manifest.model,
        "dtype": recipe.dtype,
        "shapes": recipe.shapes,
        "code": list(manifest.code),
        "versions": recipe.compilers,
        "untuned": manifest.untuned,
        "timed_on": manifest.timed_on,
        "size_bytes": manifest.size_bytes,
        "created": manifest.created,
        "used": each.used.isoformat(timespec="seconds"),
    }


def cells(each: Listed, verified: bool) -> tuple[str, ...]:
    """Write an engine in the order of the columns."""
    state = "damaged" if each.fault else "sound" if verified else ""
    manifest = each.manifest
    if manifest is None:
        return (each.key, each.folder.name, each.folder.parent.name, "-", "-", "-", "-", state)
    recipe = manifest.recipe
    age = datetime.now(UTC) - datetime.fromisoformat(manifest.created)
    return (
        each.key,
        recipe.name,
        recipe.target,
        f"{manifest.model} {recipe.dtype} {recipe.sizes}",
        ", ".join(manifest.code) or "-",
        units.size(manifest.size_bytes),
        units.age(age.total_seconds()),
        ", ".join(filter(None, (state, manifest.note))),
    )


def remarks(engines: Sequence[Listed]) -> list[str]:
    """Say by which versions engines were built, and what is wrong with them, each once with their keys."""
    found: dict[str, list[str]] = {}
    for each in engines:
        compilers = each.manifest.recipe.compilers if each.manifest else {}
        versions = ", ".join(f"{package} {version}" for package, version in compilers.items())
        for line in filter(None, (versions, each.fault)):
            found.setdefault(line, []).append(each.key)
    return [f"{', '.join(keys)}: {line}" for line, keys in found.items()]
