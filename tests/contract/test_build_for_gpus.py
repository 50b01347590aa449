"""What is saved is what was built: an artefact opened again gives the same engine, here and by target."""

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from backends import registry
from backends.contract import Artefact, Keeper, MadeFor, Shapes, Target, Unsupported
from models.checkpoint import Weights
from tests.contract.reference import LLAMA
from workbench.building.machine_code import inspect
from workbench.building.targets import aim
from workbench.caches import compiler_environment

HERE = Target("cpu", "float32", platform.machine())
SHAPES = Shapes(2, (4, 7), 23)
KEEPERS = [name for name in registry.names() if isinstance(registry.find(name), Keeper)]
Open = Callable[[str, str], Weights]


@pytest.fixture(params=KEEPERS)
def keeper(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Keeper:
    """Give each backend that can keep what it builds, with caches of its own, as in a worker."""
    found = registry.find(request.param)
    assert isinstance(found, Keeper)
    probe = found.probe()
    if not probe.usable:
        pytest.skip(f"{request.param}: {probe.reason}")
    for name, folder in compiler_environment(tmp_path_factory.mktemp("caches")).items():
        monkeypatch.setenv(name, folder)
    return found


def test_three_backends_or_more_keep_what_they_build() -> None:
    assert {"xla", "iree", "onnxruntime", "tvm"} <= set(KEEPERS)
    assert {registry.find(name).made_for for name in KEEPERS} == set(get_args(MadeFor))


def logits_of(keeper: Keeper, artefact: Artefact, weights: Weights) -> np.ndarray:
    """Prefill both lengths, decode two steps after each and poison in between; returns all logits."""
    engine = keeper.load(artefact, weights)
    found = []
    for length in SHAPES.prompts:
        engine.stage(np.arange(2 * length, dtype=np.int32).reshape(2, length))
        engine.prefill()
        engine.poison(length)
        for _ in range(2):
            found.append(engine.logits())
            engine.decode()
        found.append(engine.logits())
    engine.close()
    return np.stack(found)


def test_an_opened_artefact_is_the_engine_that_was_built(
    keeper: Keeper, open_family: Open, tmp_path: Path
) -> None:
    if "cpu" not in keeper.probe().devices:
        pytest.skip(f"{keeper.name} runs on {', '.join(keeper.probe().devices)} here")
    weights = open_family("llama", "float32")
    built = keeper.build(weights.config, SHAPES, HERE, {})
    keeper.save(built, tmp_path)
    assert any(tmp_path.iterdir())
    opened = keeper.open(replace(built, payload=None), tmp_path)
    assert (opened.definition, opened.provenance) == (built.definition, built.provenance)
    np.testing.assert_array_equal(logits_of(keeper, opened, weights), logits_of(keeper, built, weights))
    code = inspect(sorted(tmp_path.iterdir()), HERE.architecture)
    assert (code.fault is None) == keeper.machine_code
    assert not built.untuned


def test_targets_that_share_an_engine_would_have_built_the_same(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if keeper.made_for == "card":
        pytest.skip(f"{keeper.name} shares none")
    files = []
    for target in ("h100", "h200", *(["a100"] if keeper.made_for == "kind" else [])):
        for name, folder in compiler_environment(tmp_path / "caches" / target).items():
            monkeypatch.setenv(name, folder)
        saved = tmp_path / target
        saved.mkdir()
        try:
            keeper.save(keeper.build(LLAMA, SHAPES, aim(target, "float16", None), {}), saved)
        except Unsupported as refusal:
            pytest.skip(str(refusal))
        files.append({path.name: path.read_bytes() for path in saved.iterdir()})
    assert all(each == files[0] for each in files)


def test_versions_are_told_without_the_framework(keeper: Keeper) -> None:
    versions = keeper.compilers(HERE, {})
    assert versions
    assert all(isinstance(version, str) and version for version in versions.values())


def test_prefills_that_are_models_of_their_own_are_kept_apart(tmp_path: Path) -> None:
    probe = registry.find("onnxruntime").probe()
    if not probe.usable:
        pytest.skip(f"onnxruntime: {probe.reason}")
    from backends.onnxruntime.engine import Programs
    from backends.onnxruntime.saved import open_programs, save_programs

    tables = {"cos": np.ones((3, 2), np.float32), "sin": np.zeros((3, 2), np.float32)}
    save_programs(Programs(b"decode", {4: b"four", 7: b"decode"}, tables), tmp_path)
    opened = open_programs((4, 7), tmp_path)
    assert (opened.decode, opened.prefills) == (b"decode", {4: b"four", 7: b"decode"})
    assert opened.tables.keys() == tables.keys()
    np.testing.assert_array_equal(opened.tables["cos"], tables["cos"])
    assert not (tmp_path / "prefill-7.onnx").exists()
