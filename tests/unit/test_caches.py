"""Which edits make a backend's rows be measured anew."""

from pathlib import Path

import pytest

from backends import registry
from workbench.caches import code_version, imported_from_backends

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


def test_every_import_from_backends_is_seen(tmp_path: Path):
    module = tmp_path / "module.py"
    module.write_text(
        "from backends import iree, null\n"
        "from backends.xla.ops import OPS\n"
        "def late():\n    from backends.eager import Eager\n"
        "from backends import registry\n"
    )
    assert imported_from_backends([module]) == {"iree", "null", "xla", "eager"}
