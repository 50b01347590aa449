"""Where things are kept between runs: presets, golden files, and the compilers' own caches."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

LOCKS = Path(tempfile.gettempdir()) / "workbench-locks"
"""One place for all users and caches of a machine: what is locked is the device."""
COMPILER_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "JAX_COMPILATION_CACHE_DIR": "jax",
    "CUDA_CACHE_PATH": "cuda",
    "TVM_CACHE_DIR": "tvm",
    "IREE_CACHE_DIR": "iree",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
}
"""The variables that tell compilers where their caches lie. A cold build starts with all of them empty."""


def cache_root() -> Path:
    """Return the cache folder: $WORKBENCH_CACHE, else the desktop standard's place for caches."""
    named = os.environ.get("WORKBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "workbench"


MEASURING = (
    "arithmetic",
    "checks",
    "clock",
    "gate",
    "golden",
    "harness",
    "judgement",
    "measure",
    "mutants",
    "stopping",
    "streams",
    "sweep",
)
"""The modules of `workbench` that numbers depend on, besides all of `models` and `backends`."""


@cache
def code_version() -> str:
    """Name the code that numbers depend on, so that rows of an edited backend are measured anew."""
    root = Path(__file__).resolve().parent.parent
    files = [*root.glob("models/*.py"), *root.glob("backends/**/*.py")]
    files += [root / "workbench" / f"{name}.py" for name in MEASURING]
    code = hashlib.sha256()
    for path in sorted(files):
        code.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return code.hexdigest()[:8]


def digest(parts: Mapping[str, Any]) -> str:
    """Name a combination of values in 16 characters."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiler_environment(folder: Path) -> dict[str, str]:
    """Point every compiler's cache into one folder."""
    return {name: str(folder / subfolder) for name, subfolder in COMPILER_CACHES.items()}
