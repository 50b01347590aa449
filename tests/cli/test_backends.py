"""`python -m workbench backends`."""

import json
from pathlib import Path

import pytest

from backends.registry import BUILTIN
from tests.cli.conftest import ROOT, Run


def test_every_backend_is_listed_with_what_it_can_do(workbench: Run) -> None:
    done = workbench("backends", "--format", "json")
    assert done.returncode == 0, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert set(rows) >= set(BUILTIN)
    assert rows["eager"]["usable"]
    assert "torch" in rows["eager"]["versions"]
    assert "cpu" in rows["eager"]["devices"]
    assert {"float32", "bfloat16"} <= set(rows["eager"]["dtypes"])


def test_table_names_backends_and_their_options(workbench: Run) -> None:
    done = workbench("backends")
    assert done.returncode == 0, done.stderr
    assert "mode=" in done.stdout
    assert "max-autotune|" in done.stdout
    assert done.stderr == ""


def test_backend_without_its_framework_says_how_to_install_it(workbench: Run, tmp_path: Path) -> None:
    # An interpreter that sees this project and numpy but finds a broken torch first.
    broken = tmp_path / "broken"
    (broken / "torch").mkdir(parents=True)
    (broken / "torch" / "__init__.py").write_text("raise ImportError('libtorch.so: cannot open')")
    done = workbench("backends", "--format", "json", PYTHONPATH=f"{ROOT}:{broken}")
    assert done.returncode == 0, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert not rows["eager"]["usable"]
    assert "libtorch.so" in rows["eager"]["reason"]
    assert "pip install" in rows["eager"]["install"]
    assert rows["null"]["usable"]


@pytest.mark.parametrize("arguments", [("--python", "eager"), ("--python", "eager=/nowhere/python")])
def test_python_that_is_not_there_is_refused(workbench: Run, arguments: tuple[str, ...]) -> None:
    done = workbench("backends", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: --python")


def test_broken_plugin_is_listed_and_disturbs_no_other(workbench: Run, tmp_path: Path) -> None:
    plugin = tmp_path / "plugins" / "broken_plugin-1.0.dist-info"
    plugin.mkdir(parents=True)
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 1.0\n")
    (plugin / "entry_points.txt").write_text("[workbench.backends]\nbroken = nowhere_to_be_found:Backend\n")
    done = workbench("backends", "--format", "json", PYTHONPATH=f"{ROOT}:{plugin.parent}")
    assert done.returncode == 0, done.stderr
    rows = {row["backend"]: row for row in json.loads(done.stdout)}
    assert not rows["broken"]["usable"]
    assert "broken-plugin" in rows["broken"]["reason"]
    assert rows["eager"]["usable"]
    named = workbench("compare", "--backends", "broken", PYTHONPATH=f"{ROOT}:{plugin.parent}")
    assert named.returncode == 2
    assert "broken-plugin" in named.stderr
