"""Engines for tests of the store: a few bytes with a recipe."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from backends.contract import Shapes
from models.config import PRESETS
from workbench.building.manifest import MANIFEST, Manifest, seal_files
from workbench.building.recipe import TUNES_NOTHING, Form, Recipe, make_recipe
from workbench.building.store import Engine, EngineStore
from workbench.building.targets import aim
from workbench.device.machine import Device

CPU = Device("cpu", "Test CPU", "x86_64", 1 << 34, threads=2)
SHAPES = Shapes(1, (4,), 23)
PROGRAM = b".target sm_80\n"
"""Of 14 bytes; PTX for any GPU since."""


def recipe(
    backend: str = "iree", target: str = "h100", compilers: dict[str, str] | None = None, **changes: Any
) -> Recipe:
    """Return a recipe for `tiny` and one card, with `changes` to what `make_recipe` and a form take."""
    here = CPU if target == "cpu" else None
    form: dict[str, Any] = {
        "backend": backend,
        "options": {},
        "config": asdict(PRESETS["tiny"]),
        "shapes": SHAPES,
        "made_for": "card",
    }
    values: dict[str, Any] = {
        "form": Form(**{name: changes.pop(name, value) for name, value in form.items()}),
        "target": aim(target, changes.pop("dtype", "float32"), here),
        "name": target,
        "here": here,
        "compilers": {"compiler": "1.0"} if compilers is None else compilers,
        "tuning": TUNES_NOTHING,
    }
    return make_recipe(**(values | changes))


def put(store: EngineStore, made_of: Recipe, content: bytes = PROGRAM, **changes: Any) -> Engine:
    """Put an engine of one file into the store; `changes` are to its manifest."""
    store.prepare()
    with store.workspace() as work:
        folder = work / "engine"
        folder.mkdir()
        (folder / "program").write_bytes(content)
        values: dict[str, Any] = {
            "recipe": made_of,
            "model": "tiny",
            "definition": "common",
            "provenance": "stock",
            "untuned": False,
            "code": (),
            "way": None,
            "build_s": 2.5,
            "created": "2026-01-01T00:00:00+00:00",
            "workbench": "0",
            "files": seal_files(folder),
        }
        return store.commit(Manifest(**(values | changes)), folder)


def spoil(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit_manifest(folder: Path) -> None:
    """Change what an engine says of itself."""
    kept = json.loads((folder / MANIFEST).read_text())
    kept["manifest"]["untuned"] = True
    (folder / MANIFEST).write_text(json.dumps(kept))
