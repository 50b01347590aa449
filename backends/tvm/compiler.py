"""What `tvm` asks of the compiler, and where its libraries are kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import Any

import tvm
from tvm.target import Target as TvmTarget

from backends.contract import Unsupported

CACHE = "TVM_CACHE_DIR"
"""Names the folder that libraries are kept in; without it every build compiles. TVM has no cache."""


def kept_or(parts: Mapping[str, Any], compile_library: Callable[[], bytes]) -> bytes:
    """Take the library that was kept of these parts, and of this code; else compile it."""
    folder = os.environ.get(CACHE)
    if not folder:
        return compile_library()
    here = Path(__file__).parent
    code = b"".join(path.read_bytes() for path in sorted((*here.glob("*.py"), *here.parent.glob("*.py"))))
    named = hashlib.sha256(code + repr((version("apache-tvm"), sorted(parts.items()))).encode())
    kept = Path(folder) / f"{named.hexdigest()}.so"
    if kept.is_file():
        return kept.read_bytes()
    library = compile_library()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(library)
    Path(file.name).rename(kept)  # at once: another process may look for it
    return library


def compile_module(module: Any, target: TvmTarget, pipeline: Any) -> bytes:
    """Compile a Relax module to a shared library; raises Unsupported."""
    if target.kind.name == "cuda" and not tvm.runtime.enabled("cuda"):
        raise Unsupported(
            "TVM cannot load its CUDA runtime (is there a libcuda.so.1?): the library would hold source, "
            "not machine code"
        )
    with target, tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.so"
        executable.export_library(str(path))
        return path.read_bytes()
