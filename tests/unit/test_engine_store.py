"""The engine store: what names an engine, that it is whole or not there, and what damage does."""

import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Shapes
from models.config import PRESETS
from models.errors import UserError
from tests.unit.engines import CPU, PROGRAM, edit_manifest, put, recipe, spoil
from workbench.building.engines import listed, verify
from workbench.building.manifest import MANIFEST, Damaged
from workbench.building.recipe import Tuning, tell_difference
from workbench.building.store import EngineStore
from workbench.building.targets import GPUS, TARGETS, aim, find_here, name_target, read_targets
from workbench.caches import lowering_version
from workbench.device.machine import Device


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def test_an_engine_is_found_by_its_recipe(store: EngineStore) -> None:
    put(store, recipe(), untuned=True, code=("PTX sm_89",), way="by PTX sm_89")
    engine = store.find(recipe())
    assert engine is not None
    assert engine.manifest.recipe == recipe()
    assert engine.manifest.code == ("PTX sm_89",)
    assert engine.manifest.note == "by PTX sm_89, untuned"
    assert (engine.folder / "program").read_bytes() == PROGRAM
    assert store.find(recipe(target="a100")) is None


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "xla"},
        {"options": {"stock": ""}},
        {"config": asdict(replace(PRESETS["tiny"], layers=5))},
        {"config": PRESETS["llama-50m"]},
        {"dtype": "bfloat16"},
        {"shapes": Shapes(2, (4,), 23)},
        {"shapes": Shapes(1, (4, 8), 23)},
        {"shapes": Shapes(1, (4,), 24)},
        {"target": "h200"},
        {"target": "a100"},
        {"compilers": {"compiler": "1.1"}},
        {"compilers": {"compiler": "1.0", "flags": "-O3"}},
        {"tuning": Tuning("none")},
        {"tuning": Tuning("0123")},
        {"tuning": Tuning("", "NVIDIA H100 PCIe")},
    ],
)
def test_whatever_changes_the_code_is_another_engine(change: dict[str, Any]) -> None:
    assert recipe(**change).key != recipe().key


@pytest.mark.parametrize(
    ("made_for", "sharing", "place"),
    [
        ("card", {"h100"}, "h100"),
        ("architecture", {"h100", "h200"}, "sm_90"),
        ("kind", set(GPUS), "gpu"),
    ],
)
def test_devices_that_code_does_not_differ_by_share_an_engine(
    store: EngineStore, made_for: str, sharing: set[str], place: str
) -> None:
    engine = put(store, recipe(made_for=made_for))
    assert engine.folder.parent.name == place
    assert [each.folder for each in listed(store)] == [engine.folder]
    assert {target for target in TARGETS if store.find(recipe(target=target, made_for=made_for))} == sharing
    untuned, timed = Tuning("none"), Tuning("0123", "NVIDIA H100 80GB HBM3")
    same = {each: recipe(target=each, made_for=made_for, tuning=untuned).key for each in sharing}
    assert len(set(same.values())) == 1
    tuned = [recipe(target=each, made_for=made_for, tuning=timed) for each in sorted(sharing)]
    assert [each.target for each in tuned] == sorted(sharing)  # what was timed suits the card alone
    assert len({each.key for each in tuned}) == len(sharing)


def test_an_engine_says_for_which_shapes_it_is() -> None:
    assert recipe().sizes == "b1 c23"
    assert recipe(shapes=None).sizes == "any shapes"


def test_on_a_cpu_its_name_and_threads_change_the_code() -> None:
    key = recipe(target="cpu").key
    assert recipe(target="cpu", here=replace(CPU, threads=4)).key != key
    assert recipe(target="cpu", here=replace(CPU, name="Other CPU")).key != key
    assert recipe(target="cpu", here=replace(CPU, memory_bytes=1, uuid="other")).key == key
    any_cpu = recipe(target="cpu", made_for="kind")
    assert recipe(target="cpu", made_for="kind", here=replace(CPU, threads=4, name="Other CPU")) == any_cpu
    assert any_cpu.key != recipe(made_for="kind").key


def test_each_backend_has_code_of_its_own() -> None:
    names = ("eager", "compile", "xla", "iree", "onnxruntime", "a stranger's")
    assert len({lowering_version(name) for name in names}) == len(names)


def test_lowering_version_follows_the_backends_own_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_bytes
    before = {name: lowering_version(name) for name in ("xla", "iree")}

    def changed(path: Path) -> bytes:
        return read(path) + (b"\nedited" if path.parent.name == "xla" else b"# edited")

    monkeypatch.setattr(Path, "read_bytes", changed)
    lowering_version.cache_clear()
    try:
        assert lowering_version("xla") != before["xla"]
        assert lowering_version("iree") == before["iree"]
    finally:
        lowering_version.cache_clear()


def truncate(folder: Path) -> None:
    os.truncate(folder / "program", 3)


def remove(folder: Path) -> None:
    (folder / "program").unlink()


DAMAGES = [
    (truncate, "3 of its 14 bytes"),
    (lambda folder: spoil(folder / "program"), "not as it was written"),
    (remove, "No such file"),
    (edit_manifest, "manifest is not as it was written"),
    (lambda folder: os.truncate(folder / MANIFEST, 100), "manifest is damaged"),
    (lambda folder: (folder / MANIFEST).unlink(), "manifest cannot be read"),
    (lambda folder: (folder / MANIFEST).write_text("[]"), "manifest is damaged"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
def test_a_damaged_engine_is_never_loaded_but_replaced(store: EngineStore, damage: Any, words: str) -> None:
    damage(put(store, recipe()).folder)
    with pytest.raises(Damaged, match=words):
        store.find(recipe())
    (found,) = map(verify, listed(store))
    assert words in (found.fault or "")
    put(store, recipe())
    assert store.find(recipe()) is not None


def test_an_engine_in_anothers_place_is_damage(store: EngineStore) -> None:
    engine = put(store, recipe())
    engine.folder.rename(store.folder(recipe(dtype="bfloat16")))
    with pytest.raises(Damaged, match="place of another"):
        store.find(recipe(dtype="bfloat16"))


def test_nothing_is_there_of_a_build_that_fails(store: EngineStore) -> None:
    store.prepare()
    with pytest.raises(RuntimeError), store.workspace() as work:
        (work / "engine").mkdir()
        raise RuntimeError
    assert store.folders() == []
    assert store.unfinished() == []


def test_who_waits_for_the_lock_finds_what_the_other_built(store: EngineStore) -> None:
    builds, waits = [], []

    def build() -> None:
        mine = EngineStore(store.root)
        with mine.locked(recipe(), lambda: waits.append(1)):
            if mine.find(recipe()) is None:
                time.sleep(0.5)
                builds.append(put(mine, recipe()))

    store.prepare()
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert waits


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the engine store") as refusal:
        EngineStore(tmp_path / "file" / "engines").prepare()
    assert "--engines" in str(refusal.value)


def test_targets_are_read_with_the_nearest_name() -> None:
    assert read_targets("h100, A100,h100") == ("h100", "a100")
    with pytest.raises(UserError, match="did you mean 'h100'"):
        read_targets("h10")
    with pytest.raises(UserError, match="choose from"):
        read_targets("")


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA L4", None),
    ],
)
def test_a_gpu_is_the_target_of_its_name(name: str, target: str | None) -> None:
    gpu = Device("cuda:1", name, "sm_00", None)
    assert name_target(gpu) == target
    for each in GPUS:
        assert find_here(each, [CPU, gpu]) == (gpu if each == target else None)


def test_what_is_here_is_built_for_as_it_is_and_what_is_not_by_name() -> None:
    gpu = Device("cuda:1", "NVIDIA H100 80GB HBM3", "sm_90", None)
    assert aim("h100", "bfloat16", gpu).device == "cuda:1"
    assert aim("h100", "bfloat16", gpu).card is None
    assert aim("h100", "bfloat16", None).card == "h100"
    assert aim("cpu", "float32", CPU).architecture == "x86_64"
    assert set(TARGETS) == {*GPUS, "cpu"}


def test_versions_that_differ_are_named() -> None:
    told = tell_difference(
        {"jaxlib": "0.11.2", "jax": "0.11.2", "ptxas": "13"}, {"jaxlib": "0.10.2", "jax": "0.11.2"}
    )
    assert told == "jaxlib 0.11.2, where here it is 0.10.2, ptxas 13, where here it is absent"
