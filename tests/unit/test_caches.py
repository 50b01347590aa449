"""Which edits make a backend's rows be measured anew."""

import ast
import hashlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends import registry
from workbench import caches
from workbench.caches import (
    bytecode_environment,
    code_version,
    imported_from_backends,
    lowering_version,
    name_source,
)

IDS = (None, *registry.BUILTIN)


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch):
    """Return a function (path, text) -> the versions as they would be with that file's text."""

    def edited(path: str, text: str) -> dict[str | None, str]:
        read = Path.read_bytes
        target = Path(__file__).resolve().parents[2] / path
        assert target.is_file()

        def stand_in(self: Path) -> bytes:
            return text.encode() if self == target else read(self)

        monkeypatch.setattr(Path, "read_bytes", stand_in)
        code_version.cache_clear()
        found = {name: code_version(name) for name in IDS}
        monkeypatch.undo()
        code_version.cache_clear()
        return found

    return edited


@pytest.mark.parametrize(
    ("path", "touched"),
    [
        ("models/rope.py", set(IDS)),
        ("workbench/harness.py", set(IDS)),
        ("workbench/device/ceilings.py", set(IDS)),
        ("backends/contract.py", set(IDS)),
        ("backends/iree/compiler.py", {"iree"}),
        ("backends/compile/lower.py", {"compile", "flashinfer", "handwritten"}),
        ("backends/handwritten/step.py", {"handwritten"}),
        ("backends/jax_ops.py", {"xla", "iree"}),
        ("backends/registry.py", set()),
        ("workbench/report.py", set()),
    ],
)
def test_an_edit_touches_what_is_made_of_it(versions, path: str, touched: set[str | None]):
    before = {name: code_version(name) for name in IDS}
    after = versions(path, "edited")
    assert {name for name in IDS if before[name] != after[name]} == touched


SOURCE = """class Plan:
    steps: int
    scale: float = 0.5

    def run(self) -> str:
        return f"{self.steps} steps"
"""


def test_comments_docstrings_and_layout_are_no_edit():
    described = SOURCE.replace("steps: int\n", 'steps: int\n    """How many."""\n', 1)
    described = described.replace("-> str:\n", '-> str:\n        """Run it."""\n        # as it comes\n')
    described = '"""A plan."""\n\n' + described.replace("= 0.5", "=  0.50")
    assert name_source(described.encode()) == name_source(SOURCE.encode())


@pytest.mark.parametrize(
    ("code", "edited"),
    [
        ("0.5", "0.25"),
        ("float = 0.5", "float"),
        ("steps: int", "steps: str"),
        ('"{self.steps} steps"', '"{self.steps} step"'),
        ("return f", "f"),
        ("def run", "def start"),
    ],
)
def test_whatever_python_reads_is_an_edit(code: str, edited: str):
    assert name_source(SOURCE.replace(code, edited).encode()) != name_source(SOURCE.encode())


@pytest.mark.parametrize("source", [b"def half(:", b"__global__ void add() {} // CUDA", b"\0"])
def test_what_is_not_python_counts_by_its_bytes(source: bytes):
    assert name_source(source) == hashlib.sha256(source).hexdigest() != name_source(source + b"#")


def test_a_comment_touches_no_backend(versions):
    path = "backends/contract.py"
    before = {name: code_version(name) for name in IDS}
    source = (Path(__file__).resolve().parents[2] / path).read_text()
    assert versions(path, source + "\n# What a backend is.\n") == before


@pytest.mark.parametrize("package", [False, True])
def test_an_edit_of_another_distributions_backend_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: bool
):
    (tmp_path / "strange").mkdir()
    module = tmp_path / ("strange/__init__.py" if package else "strange.py")
    beside = tmp_path / "strange" / "kernels.py"
    module.write_text("class Strange: ...")
    beside.write_text("")
    if not package:
        (tmp_path / "strange").rename(tmp_path / "else")
        beside = tmp_path / "else" / "kernels.py"
    info = tmp_path / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workbench.backends]\nstrange = strange:Strange\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def versions() -> tuple[str, str]:
        code_version.cache_clear()
        lowering_version.cache_clear()
        return code_version("strange"), lowering_version("strange")

    first = versions()
    assert first[0] != code_version("null")
    module.write_text("class Strange: pass")
    second = versions()
    beside.write_text("edited = True")
    third = versions()
    assert all(one != other for one, other in zip(first, second, strict=True))
    assert (third != second) == package


def test_every_import_from_backends_is_seen(tmp_path: Path):
    module = tmp_path / "module.py"
    module.write_text(
        "from backends import iree, null\n"
        "from backends.xla.ops import OPS\n"
        "def late():\n    from backends.eager import Eager\n"
        "from backends import registry\n"
    )
    assert imported_from_backends([module]) == {"iree", "null", "xla", "eager"}


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Stand in for torch, installed without bytecode where Python is told to write none."""
    found = tmp_path / "torch" / "__init__.py"
    found.parent.mkdir()
    found.touch()
    monkeypatch.setattr(caches.importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(found)))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))
    return found


def test_workers_keep_the_bytecode_that_nothing_else_keeps(source: Path, tmp_path: Path) -> None:
    found = bytecode_environment(sys.executable)
    assert found == {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "cache/bytecode")}
    assert bytecode_environment("/another/python") == {}  # what it has cannot be seen from here


@pytest.mark.parametrize("where", ["there", "written", "elsewhere", "no torch"])
def test_bytecode_is_left_to_python_where_it_is_or_will_be(
    source: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    if where == "there":
        kept = Path(importlib.util.cache_from_source(str(source)))
        kept.parent.mkdir()
        kept.touch()
    elif where == "written":
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
    elif where == "elsewhere":
        monkeypatch.setattr(sys, "pycache_prefix", "/mine")
    else:
        monkeypatch.setattr(caches.importlib.util, "find_spec", lambda name: None)
    assert bytecode_environment(sys.executable) == {}


def test_an_empty_text_is_dropped_where_some_pythons_add_one_and_nowhere_else() -> None:
    parts, empty = ast.parse('f"{value:>{width}}"'), ast.Constant("")
    called = ast.parse("call('', 1)")
    for node in ast.walk(parts):
        if isinstance(node, ast.JoinedStr):
            node.values.append(empty)
    assert caches._outline(parts) == caches._outline(ast.parse('f"{value:>{width}}"'))
    assert caches._outline(called) != caches._outline(ast.parse("call(1)"))
