"""What `tvm` asks of the compiler, and where its libraries are kept."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import tvm
from tvm.support import cc
from tvm.target import Target as TvmTarget

from backends.contract import Unsupported
from backends.tvm.driver import load_runtime_without_driver
from models.errors import telling_line

CACHE = "TVM_CACHE_DIR"
"""Names the folder that libraries are kept in; without it every build compiles. TVM has no cache."""
LIBRARY = "model.so"
"""The name of a compiled library among the files that are kept."""


def kept_or(parts: Mapping[str, Any], make_files: Callable[[], Mapping[str, bytes]]) -> Mapping[str, bytes]:
    """Take the files that were kept of these parts, else make them; the folder is of this very code."""
    root = os.environ.get(CACHE)
    if not root:
        return make_files()
    named = hashlib.sha256(repr((version("apache-tvm"), sorted(parts.items()))).encode())
    kept = Path(root) / named.hexdigest()
    if kept.is_dir():
        return {path.name: path.read_bytes() for path in kept.iterdir()}
    files = make_files()
    kept.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(dir=kept.parent))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    try:
        folder.rename(kept)  # at once: another process may look for it
    except OSError:  # that process was the first
        shutil.rmtree(folder)
    return files


def compile_module(module: Any, target: TvmTarget, pipeline: Any) -> bytes:
    """Compile a Relax module to a shared library; raises Unsupported."""
    if cc.get_cc() is None:
        raise Unsupported("TVM links what it compiles, and finds no C++ compiler: apt-get install g++")
    if target.kind.name == "cuda":
        need_cuda_runtime()
    with target, tvm.transform.PassContext(opt_level=3):
        executable = tvm.compile(module, target=target, relax_pipeline=pipeline)
    with TemporaryDirectory() as folder:
        path = Path(folder) / LIBRARY
        executable.export_library(str(path))
        return path.read_bytes()


def need_cuda_runtime() -> None:
    """Load TVM's CUDA runtime, without which a library would hold source; raises Unsupported."""
    if not tvm.runtime.enabled("cuda"):
        try:
            load_runtime_without_driver()
        except (RuntimeError, OSError) as error:
            raise Unsupported(f"TVM cannot load its CUDA runtime here: {telling_line(str(error))}") from error
