"""What `iree` asks of `iree-compile`, and where its modules are kept."""

import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

import iree.compiler

from backends.contract import Unsupported
from models.errors import telling_line

CACHE = "IREE_CACHE_DIR"
"""Names the folder that modules are kept in; without it every build compiles. `iree-compile` has no cache."""


def compile_all(sources: Sequence[tuple[str, Sequence[str]]]) -> list[bytes]:
    """Compile each (program, flags) to a module, side by side; raises Unsupported."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda source: compile_module(*source), sources))


def compile_module(program: str, flags: Sequence[str]) -> bytes:
    """Compile a program, or take the module that was kept of it; raises Unsupported."""
    folder = os.environ.get(CACHE)
    if not folder:
        return run_compiler(program, flags)
    parts = (version("iree-base-compiler"), *flags, program)
    kept = Path(folder) / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}.vmfb"
    if kept.is_file():
        return kept.read_bytes()
    module = run_compiler(program, flags)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=kept.parent, delete=False) as file:
        file.write(module)
    Path(file.name).rename(kept)  # at once: another process may look for it
    return module


def run_compiler(program: str, flags: Sequence[str]) -> bytes:
    """Run `iree-compile`; raises Unsupported with its first error."""
    try:
        module: bytes = iree.compiler.compile_str(program, input_type="auto", extra_args=list(flags))
    except iree.compiler.CompilerToolError as error:
        said = re.search(r"error: (.*)", str(error))
        reason = said[1] if said else telling_line(str(error))
        raise Unsupported(f"iree-compile refuses it: {reason[:300]}") from error
    return module
