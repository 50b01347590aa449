"""Which edits make a backend's rows be measured anew."""

from pathlib import Path

import pytest

from backends import registry
from workbench.caches import code_version, imported_from_backends, lowering_version

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
        ("workbench/ceilings.py", set(IDS)),
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
