"""What an engine in the store says of itself: its recipe, how it was built, and a checksum of each file.

Tuning data say the same of themselves. The manifest has a checksum of its own, so that a damaged one is
never believed.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from workbench.building.recipe import Recipe
from workbench.job import Json

MANIFEST = "manifest.json"
ENGINE, TUNING_DATA = "engine", "tuning data"
SCHEMA = 1


class Damaged(Exception):
    """Say that what lies in the store is not what was put there."""


@dataclass(frozen=True)
class Manifest:
    """One engine of the store, or the tuning data for some."""

    recipe: Recipe
    model: str
    """The preset or folder it was built from: for people, since its weights are not in it."""
    definition: str
    provenance: str
    untuned: bool
    """Whether it lacks what a build on the device itself would have timed."""
    code: tuple[str, ...]
    """What its machine code was made for, as found in its files: `sm_90a`, `PTX sm_89`."""
    way: str | None
    """By which other code than its own the target runs it, `by PTX sm_89`."""
    build_s: float
    """Seconds from `build()` until all was saved, with empty caches; those of tuning for tuning data."""
    created: str
    """ISO 8601 in UTC."""
    workbench: str
    files: dict[str, Json]
    """`bytes` and `sha256` of each."""
    timed_on: str | None = None
    """The name of the device that its kernels were chosen on by timing them; None: they were not."""
    kind: str = ENGINE
    """`engine` or `tuning data`."""
    schema: int = SCHEMA

    @property
    def note(self) -> str | None:
        """Say what is special about it: no engine, the way its code gets to the device, untuned or tuned."""
        kind = self.kind if self.kind != ENGINE else None
        untuned = "untuned" if self.untuned else None
        timed = f"timed on {self.timed_on}" if self.timed_on else None
        return ", ".join(filter(None, (kind, self.way, untuned, timed))) or None

    @property
    def size_bytes(self) -> int:
        """Return the size of all files."""
        return sum(int(each["bytes"]) for each in self.files.values())


def seal_files(folder: Path) -> dict[str, Json]:
    """Measure every file that a backend saved; raises OSError."""
    return {path.name: _measure(path) for path in sorted(folder.iterdir())}


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write a manifest beside its files; raises OSError."""
    content = dataclasses.asdict(manifest)
    (folder / MANIFEST).write_text(json.dumps({"manifest": content, "sha256": _seal(content)}, indent=1))


def read_manifest(folder: Path) -> Manifest:
    """Read a manifest; raises Damaged."""
    try:
        kept = json.loads((folder / MANIFEST).read_bytes())
        content = kept["manifest"]
        if kept["sha256"] != _seal(content):
            raise Damaged("its manifest is not as it was written")
        if content["schema"] != SCHEMA:
            raise Damaged(f"its manifest is of another workbench (schema {content['schema']})")
        values = {**content, "recipe": Recipe(**content["recipe"]), "code": tuple(content["code"])}
        manifest = Manifest(**values)
    except OSError as error:
        raise Damaged(f"its manifest cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged("its manifest is damaged") from error
    if not folder.name.endswith(manifest.recipe.key):
        raise Damaged(f"it lies in the place of another engine: its recipe is {manifest.recipe.key}")
    return manifest


def check_files(manifest: Manifest, folder: Path) -> None:
    """Hold every file against its checksum; raises Damaged."""
    for name, expected in manifest.files.items():
        try:
            found = _measure(folder / name)
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from error
        if found["bytes"] != expected["bytes"]:
            raise Damaged(f"{name} has {found['bytes']} of its {expected['bytes']} bytes")
        if found != expected:
            raise Damaged(f"{name} is not as it was written")


def _measure(path: Path) -> Json:
    with path.open("rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": checksum}


def _seal(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
