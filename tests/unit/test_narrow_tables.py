"""What is to be copied or read stays whole where the terminal is narrow."""

from pathlib import Path

import pytest

from backends import registry
from backends.contract import Probe
from models.config import PRESETS
from tests.unit.engines import SHAPES, put, recipe, spoil
from workbench import listing
from workbench.building import build_table, check, engines
from workbench.building.build import Row
from workbench.building.check import Checked
from workbench.building.orders import Order
from workbench.building.questions import Answer
from workbench.building.store import EngineStore
from workbench.building.targets import aim

REASON = "the compiler knows no b200, which is newer than its last release: build where there is such a GPU"
VERSIONS = {"iree-base-compiler": "3.13.0", "iree-base-runtime": "3.13.0", "jax": "0.10.2"}


@pytest.fixture(autouse=True, params=[60, 80])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.report.WIDE", request.param)


def read(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = capsys.readouterr().out
    assert "…" not in text
    return text.splitlines()


def test_backends_have_their_names_and_whether_they_are_usable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    usable = Probe(versions=VERSIONS, devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))
    missing = Probe(reason="torch is not installed", install="pip install torch, " * 10)
    probes = {"compile": usable, "onnxruntime": usable, "handwritten": missing}
    monkeypatch.setattr(listing, "probe_backends", lambda names, pythons: probes)
    listing.print_backends({}, as_json=False)
    lines = read(capsys)
    rows = [line.split()[:2] for line in lines]
    for name, answer in (("compile", "yes"), ("onnxruntime", "yes"), ("handwritten", "no")):
        assert [name, answer] in rows
    modes = "|".join(registry.find("compile").options["mode"].values)
    (line,) = (line for line in lines if line.startswith("options of compile: "))
    assert f", mode={modes}, " in line
    assert f"handwritten: {missing.reason}; {missing.install}" in lines


def test_built_engines_have_their_paths_and_others_the_reason(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here, there = (
        Order(
            ("iree", {}),
            Answer(None),
            name,
            aim(name, "float32", None),
            None,
            "tiny",
            PRESETS["tiny"],
            SHAPES,
        )
        for name in ("h100", "b200")
    )
    engine = put(EngineStore(tmp_path), recipe())
    build_table.write([Row(here, "ok", None, engine, True, 0.5), Row(there, "unsupported", REASON)], False)
    lines = read(capsys)
    at = next(line.index("path") for line in lines if "path" in line)
    assert str(engine.folder) in "".join(line[at:].strip() for line in lines)
    assert f"iree for b200: unsupported: {REASON}" in lines


def test_listed_engines_have_their_keys_versions_and_faults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = EngineStore(tmp_path)
    kept = [put(store, recipe(target=name, compilers=VERSIONS)) for name in ("h100", "a100")]
    spoil(kept[0].folder / "program")
    found = [engines.verify(each) for each in engines.listed(store)]
    engines.write(found, as_json=False, verified=True)
    lines = read(capsys)
    for engine in kept:
        assert any(line.strip().startswith(f"{engine.key} ") for line in lines)
    versions = ", ".join(f"{package} {version}" for package, version in VERSIONS.items())
    assert f"{', '.join(each.key for each in found)}: {versions}" in lines
    (fault,) = (each.fault for each in found if each.fault)
    assert f"{kept[0].key}: {fault}" in lines


def test_checked_engines_have_their_keys_and_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    key = "0123456789abcdef"
    check.write([Checked(key, "iree", "b200", "NVIDIA H100 80GB HBM3", "wrong", REASON)], as_json=False)
    lines = read(capsys)
    assert any(line.strip().startswith(f"{key} ") for line in lines)
    assert f"{key}: {REASON}" in lines
