"""The compilers' caches of each engine, kept between comparisons with what it took to fill them."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from workbench import units
from workbench.caches import cache_root
from workbench.store import write_atomically

KEPT_BUILDS = 32
"""Folders that outlive a comparison: those used last."""
MEMORY = "cold.json"
"""The file that a cold build which came to its end leaves beside the caches it filled."""


@dataclass(frozen=True)
class ColdBuild:
    """What a build with empty caches took, and when that was."""

    build_s: float
    measured: str
    """ISO 8601 in UTC."""


def builds_root() -> Path:
    """Return the folder of all build folders."""
    return cache_root() / "builds"


def open_build(folder: Path, anew: bool) -> bool:
    """Make a build folder ready for a process; returns whether its caches are empty, so that it builds cold.

    They are emptied if they are to be filled anew, or if no build that filled them came to its end. Raises
    OSError.
    """
    cold = anew or recall_build(folder) is None
    if cold:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    return cold


def remember_build(folder: Path, build_s: float) -> None:
    """Keep the seconds of a cold build with the caches it filled; raises OSError."""
    cold = ColdBuild(build_s, units.moment())
    write_atomically(folder / MEMORY, json.dumps(asdict(cold)).encode())


def recall_build(folder: Path) -> ColdBuild | None:
    """Return the cold build that filled a folder; None if none came to its end there."""
    try:
        kept = json.loads((folder / MEMORY).read_bytes())
        return ColdBuild(float(kept["build_s"]), str(kept["measured"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: built cold again


def prune_builds() -> None:
    """Remove the build folders that have not been used for longest."""
    try:
        folders = sorted(builds_root().iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
    except OSError:
        return  # none yet, or another comparison is at it
    for folder in folders[KEPT_BUILDS:]:
        shutil.rmtree(folder, ignore_errors=True)
