"""The engine store: a folder an engine, `PLACE/BACKEND-KEY`, whole or not there at all.

A place is a target, or what those have in common that share the engine: `h100`, `sm_90`, `gpu`.

So are tuning data, `.tuning/KEY`: one folder for all engines that differ in nothing but their tuning.
"""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock

from models.errors import UserError
from workbench.building.manifest import (
    ENGINE,
    TUNING_DATA,
    Manifest,
    check_files,
    read_manifest,
    write_manifest,
)
from workbench.building.recipe import Recipe
from workbench.building.targets import PLACES
from workbench.caches import cache_root
from workbench.process import POLL_S
from workbench.store import slug

UNFINISHED, LOCKS, TUNING = ".unfinished", ".locks", ".tuning"
ENGINE_FOLDER, TUNING_FOLDER = re.compile(r".+-[0-9a-f]{16}"), re.compile(r"[0-9a-f]{16}")
"""How folders of engines, in their place, and of tuning data are named. All else is not the store's."""


@dataclass(frozen=True)
class Engine:
    """An engine that is in the store, or tuning data."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """Its name."""
        return self.manifest.recipe.key


def default_root() -> Path:
    """Return the store of this user."""
    return cache_root() / "engines"


class EngineStore:
    """Engines by what they are made of."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root if root is not None else default_root()
        self.named = root is not None
        """By the user, so that it is to be there."""

    def prepare(self) -> None:
        """Make sure that engines can be written; raises UserError."""
        try:
            for name in (UNFINISHED, LOCKS):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root / UNFINISHED):
                pass
        except OSError as error:
            raise UserError(
                f"cannot write the engine store {self.root}: {error.strerror}; "
                "make it writable, or name another folder with --engines"
            ) from error

    def folder(self, recipe: Recipe, kind: str = ENGINE) -> Path:
        """Name an engine's folder, or that of tuning data."""
        if kind == TUNING_DATA:
            return self.root / TUNING / recipe.key
        return self.root / recipe.target / f"{slug(recipe.name)}-{recipe.key}"

    def find(self, recipe: Recipe, kind: str = ENGINE) -> Engine | None:
        """Return the engine of a recipe, or the tuning data, every byte checked; raises Damaged."""
        folder = self.folder(recipe, kind)
        return self.open(folder) if folder.is_dir() else None

    def open(self, folder: Path) -> Engine:
        """Return the engine in a folder, every byte checked; raises Damaged."""
        manifest = read_manifest(folder)
        check_files(manifest, folder)
        self.touch(folder)
        return Engine(folder, manifest)

    def touch(self, folder: Path) -> None:
        """Remember that an engine was wanted now: `prune` asks."""
        try:
            os.utime(folder)
        except OSError:
            pass  # a store that can only be read serves all the same

    def folders(self) -> list[Path]:
        """List the folders of all engines, damaged ones too: nothing else that may lie in such a place.

        Raises UserError for a store that was named and is not there.
        """
        if self.named and not self.root.is_dir():
            raise UserError(f"--engines {self.root}: there is no such folder; `build` makes it")
        return [path for place in sorted(PLACES) for path in self._named(place, ENGINE_FOLDER)]

    def tuning_folders(self) -> list[Path]:
        """List the folders of all tuning data, damaged ones too."""
        return self._named(TUNING, TUNING_FOLDER)

    def _named(self, name: str, pattern: re.Pattern[str]) -> list[Path]:
        found = (self.root / name).glob("*")
        return sorted(path for path in found if pattern.fullmatch(path.name) and path.is_dir())

    @contextmanager
    def locked(self, recipe: Recipe, wait: Callable[[], None]) -> Iterator[None]:
        """Wait until nobody else builds this engine or makes its tuning data, and keep others from it.

        `wait` is called again and again meanwhile; what it raises ends the waiting.
        """
        lock = filelock.FileLock(self.root / LOCKS / f"{recipe.key}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=POLL_S)
            except filelock.Timeout:
                wait()
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """Make an empty folder that is gone afterwards, unless its content was committed."""
        with tempfile.TemporaryDirectory(dir=self.root / UNFINISHED, ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def commit(self, manifest: Manifest, built: Path) -> Engine:
        """Move what was built to its place at once, whatever was there; raises OSError, UserError."""
        write_manifest(manifest, built)
        folder = self.folder(manifest.recipe, manifest.kind)
        folder.parent.mkdir(exist_ok=True)
        self.remove(folder)
        built.rename(folder)
        return Engine(folder, manifest)

    def remove(self, folder: Path) -> None:
        """Take an engine away, whole before anybody can meet half of it; raises OSError, UserError."""
        if folder.is_dir():
            self.prepare()
            with self.workspace() as grave:
                folder.rename(grave / folder.name)

    def unfinished(self) -> list[Path]:
        """List what builds that were killed have left, and those that are going on."""
        return sorted((self.root / UNFINISHED).glob("*"))
