"""The engine store: a folder an engine, `TARGET/BACKEND-KEY`, whole or not there at all."""

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
    Manifest,
    check_files,
    read_manifest,
    write_manifest,
)
from workbench.building.recipe import Recipe
from workbench.building.targets import TARGETS
from workbench.caches import cache_root
from workbench.process import POLL_S
from workbench.store import slug

UNFINISHED, LOCKS, TUNING = ".unfinished", ".locks", ".tuning"
ENGINE = re.compile(r".+-[0-9a-f]{16}")
"""How the folder of an engine is named, below its target. All else that lies in a store is not its own."""


@dataclass(frozen=True)
class Engine:
    """An engine that is in the store."""

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

    def folder(self, recipe: Recipe) -> Path:
        """Name an engine's folder."""
        return self.root / recipe.target / f"{slug(recipe.name)}-{recipe.key}"

    def find(self, recipe: Recipe) -> Engine | None:
        """Return the engine of a recipe, every byte checked; raises Damaged."""
        folder = self.folder(recipe)
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
        found = [path for target in TARGETS for path in (self.root / target).glob("*")]
        return sorted(path for path in found if ENGINE.fullmatch(path.name) and path.is_dir())

    @contextmanager
    def locked(self, recipe: Recipe, wait: Callable[[], None]) -> Iterator[None]:
        """Wait until nobody else builds this engine, and keep others from it.

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
        """Move what was built to its place at once, instead of whatever was there; raises OSError."""
        write_manifest(manifest, built)
        folder = self.folder(manifest.recipe)
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

    def tuning_folder(self, key: str) -> Path:
        """Name where tuning data lie for all engines that differ in nothing but their tuning."""
        return self.root / TUNING / key

    def unfinished(self) -> list[Path]:
        """List what builds that were killed have left, and those that are going on."""
        return sorted((self.root / UNFINISHED).glob("*"))
