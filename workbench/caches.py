"""Where things are kept between runs: presets, golden files, and the compilers' own caches."""

import ast
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from backends.registry import find_sources

LOCKS = (Path("/tmp") if Path("/tmp").is_dir() else Path(tempfile.gettempdir())) / "workbench-locks"
"""One place for all users, caches and jobs of a machine, whatever TMPDIR they have: the device is locked."""
COMPILER_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
    "JAX_COMPILATION_CACHE_DIR": "jax",
    "CUDA_CACHE_PATH": "cuda",
    "TVM_CACHE_DIR": "tvm",
    "IREE_CACHE_DIR": "iree",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TRTLLM_CACHE_DIR": "trtllm",
}
"""The variables that tell compilers where their caches lie. A cold build starts with all of them empty."""
TEMPORARY = "TMPDIR"
"""Where Inductor keeps headers that it has compiled, whatever its own variable says."""


def cache_root() -> Path:
    """Return the cache folder: $WORKBENCH_CACHE, else the desktop standard's place for caches."""
    named = os.environ.get("WORKBENCH_CACHE")
    if named:
        return Path(named).expanduser()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "workbench"


def bytecode_environment(python: str) -> dict[str, str]:
    """Have workers keep the bytecode of what they import, where nothing else does; empty where it is there.

    In many containers torch comes without, and Python is told to write none: each process would compile
    torch's sources anew, over ten seconds long with those of its compiler.
    """
    spec = importlib.util.find_spec("torch") if python == sys.executable else None
    if spec is None or spec.origin is None or sys.pycache_prefix is not None:
        return {}
    writes = not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)
    if writes or Path(importlib.util.cache_from_source(spec.origin)).exists():
        return {}
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(cache_root() / "bytecode")}


MEASURING = (
    "checking/arithmetic",
    "checking/checks",
    "checking/golden",
    "checking/judgement",
    "checking/mutants",
    "checking/streams",
    "checking/sweep",
    "clock",
    "comparing/bursts",
    "comparing/rows",
    "comparing/turn",
    "device/ceilings",
    "device/conditions",
    "device/kernels",
    "device/machine",
    "device/memory",
    "device/watch",
    "findings",
    "gate",
    "harness",
    "measure",
    "process",
    "statistics",
    "stopping",
    "timer_check",
)
"""The modules of `workbench` that numbers and warnings depend on, besides all of `models` and `backends`."""


@cache
def code_version(backend: str | None = None) -> str:
    """Name the code that the numbers of a backend depend on, so that its rows are measured anew once edited.

    That is all of `models`, the modules named above, and what these and the backend import from `backends`,
    directly or not, or the package of another distribution that the backend is in; another backend is none of
    it. Without a backend it is the code of golden logits. Comments and docstrings are no code.
    """
    return _name_code(backend, MEASURING)


@cache
def lowering_version(backend: str) -> str:
    """Name the code that shapes what a backend builds: `models`, and what it imports from `backends`."""
    return _name_code(backend, ())


def _name_code(backend: str | None, measuring: Sequence[str]) -> str:
    root = Path(__file__).resolve().parent.parent
    files = [*root.glob("models/*.py"), *(root / "workbench" / f"{name}.py" for name in measuring)]
    found: set[str] = set()
    wanted = {"contract", *([backend] if backend else []), *imported_from_backends(files)}
    while wanted - found:
        name = min(wanted - found)
        found.add(name)
        own = [root / "backends" / f"{name}.py", *(root / "backends" / name).glob("**/*.py")]
        files += (own := [path for path in own if path.is_file()])
        wanted |= imported_from_backends(own)
    named = [(str(path.relative_to(root)), path) for path in sorted(files)]
    named += sorted(find_sources(backend).items()) if backend else []
    code = hashlib.sha256()
    for name, path in named:
        code.update(f"{name}\n{name_source(path.read_bytes())}\n".encode())
    return code.hexdigest()[:8]


@cache
def name_source(source: bytes) -> str:
    """Name what a file says to Python: comments, docstrings and layout change no number and no engine.

    What this Python cannot read is named by its bytes.
    """
    try:
        source = repr(_outline(ast.parse(source))).encode()
    except (SyntaxError, ValueError):
        pass
    return hashlib.sha256(source).hexdigest()


def _outline(node: Any) -> Any:
    """Return a syntax tree as plain values, by every Python alike: newer ones have more that is empty."""
    if isinstance(node, list):
        return [_outline(each) for each in node if not _is_text(each)]
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # some end its parts by an empty one
        node.values = [each for each in node.values if getattr(each, "value", None) != ""]
    fields = ((name, _outline(value)) for name, value in ast.iter_fields(node) if value is not None)
    return [type(node).__name__, *(field for field in fields if field[1])]


def _is_text(node: Any) -> bool:
    """Tell whether a statement is a string alone: a docstring, be it of a field."""
    return isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)


def imported_from_backends(files: Iterable[Path]) -> set[str]:
    """Name the modules and packages right below `backends` that files import."""
    pattern = re.compile(r"^\s*from backends(?:\.(\w+)\S*)? import (.+)", re.MULTILINE)
    found: set[str] = set()
    for path in files:
        for module, names in pattern.findall(path.read_text()):
            found |= {module} if module else set(re.findall(r"\w+", names))
    return found - {"registry"}  # only finds them by name: it changes with every one that is added


def digest(parts: Mapping[str, Any]) -> str:
    """Name a combination of values in 16 characters."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compiler_environment(folder: Path) -> dict[str, str]:
    """Point every compiler's cache into one folder, and what it takes for temporary; that is made."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    found = {name: str(folder / subfolder) for name, subfolder in COMPILER_CACHES.items()}
    return found | {TEMPORARY: str(temporary)}
