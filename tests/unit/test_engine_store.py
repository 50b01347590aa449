"""The engine store: what names an engine, that it is whole or not there, and what damage does."""

import json
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
from tests.unit.engines import CPU, PROGRAM, put, recipe, spoil
from workbench.building.engines import listed, prune, verify
from workbench.building.manifest import MANIFEST, Damaged
from workbench.building.recipe import digest_folder, tell_difference
from workbench.building.store import EngineStore
from workbench.building.targets import GPUS, TARGETS, aim, find_here, name_target, read_targets
from workbench.caches import lowering_version
from workbench.machine import Device

DAY = 86400


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
        {"tuning": "device"},
    ],
)
def test_whatever_changes_the_code_is_another_engine(change: dict[str, Any]) -> None:
    assert recipe(**change).key != recipe().key


def test_an_engine_says_for_which_shapes_it_is() -> None:
    assert recipe().sizes == "b1 c23"
    assert recipe(shapes=None).sizes == "any shapes"


def test_on_a_cpu_its_name_and_threads_change_the_code() -> None:
    key = recipe(target="cpu").key
    assert recipe(target="cpu", here=replace(CPU, threads=4)).key != key
    assert recipe(target="cpu", here=replace(CPU, name="Other CPU")).key != key
    assert recipe(target="cpu", here=replace(CPU, memory_bytes=1, uuid="other")).key == key


def test_each_backend_has_code_of_its_own() -> None:
    names = ("eager", "compile", "xla", "iree", "onnxruntime", "a stranger's")
    assert len({lowering_version(name) for name in names}) == len(names)


def test_lowering_version_follows_the_backends_own_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Path.read_bytes
    before = {name: lowering_version(name) for name in ("xla", "iree")}

    def changed(path: Path) -> bytes:
        return read(path) + (b"#" if path.parent.name == "xla" else b"")

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


def edit_manifest(folder: Path) -> None:
    kept = json.loads((folder / MANIFEST).read_text())
    kept["manifest"]["untuned"] = True
    (folder / MANIFEST).write_text(json.dumps(kept))


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
    builds = []

    def build() -> None:
        mine = EngineStore(store.root)
        with mine.locked(recipe()):
            if mine.find(recipe()) is None:
                time.sleep(0.2)
                builds.append(put(mine, recipe()))

    store.prepare()
    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the engine store") as refusal:
        EngineStore(tmp_path / "file" / "engines").prepare()
    assert "--engines" in str(refusal.value)


def test_prune_removes_what_is_damaged_old_or_unfinished(store: EngineStore) -> None:
    old, young, damaged = (put(store, recipe(dtype=each)) for each in ("float32", "bfloat16", "float16"))
    truncate(damaged.folder)
    then = time.time() - 31 * DAY
    os.utime(old.folder, (then, then))
    (store.root / ".unfinished" / "killed").mkdir()
    os.utime(store.root / ".unfinished" / "killed", (then, then))
    (store.root / ".unfinished" / "going on").mkdir()
    removed = {path.name: reason for path, reason in prune(store, 30, pytest.fail)}
    assert removed == {
        old.folder.name: "not used for 31 days",
        damaged.folder.name: "program has 3 of its 14 bytes",
        "killed": "left by a build that was ended",
    }
    assert store.folders() == [young.folder]
    assert [path.name for path in store.unfinished()] == ["going on"]


OTHERS = (
    "photos/2024/one.jpg",
    "photos/holiday-0123456789abcdef/one.jpg",
    "builds/golden-0123456789abcdef/golden.npz",
    "results/cpu/tiny.jsonl",
    "cpu/photos/one.jpg",
)


@pytest.mark.parametrize("beside", [True, False])
def test_nothing_is_touched_that_is_no_engine(tmp_path: Path, beside: bool) -> None:
    for path in (tmp_path / name for name in OTHERS):
        path.parent.mkdir(parents=True)
        path.touch()
    store = EngineStore(tmp_path)
    expected = [(put(store, recipe()).folder, "not used for 0 days")] if beside else []
    assert [each.folder for each in map(verify, listed(store))] == [folder for folder, _ in expected]
    assert prune(store, 0, pytest.fail) == expected
    assert all((tmp_path / name).exists() for name in OTHERS)
    hidden = sorted(path.name for path in tmp_path.glob(".*"))
    assert hidden == ([".locks", ".unfinished"] if beside else [])


def test_what_others_have_put_into_an_engines_place_is_left_and_named(store: EngineStore) -> None:
    holiday = store.root / "cpu" / "holiday-0123456789abcdef"
    holiday.mkdir(parents=True)
    (holiday / "one.jpg").touch()
    annotated = put(store, recipe()).folder
    (annotated / "notes.txt").touch()
    os.utime(annotated, (0, 0))
    warnings: list[str] = []
    assert prune(store, 30, warnings.append) == []
    assert [line.partition(" is not removed: ")[::2] for line in warnings] == [
        (str(holiday), "it has no manifest; remove it yourself if it is an engine"),
        (str(annotated), "notes.txt in it is of no engine; remove it yourself if it is an engine"),
    ]


def test_an_engine_that_is_found_counts_as_used(store: EngineStore) -> None:
    engine = put(store, recipe())
    os.utime(engine.folder, (0, 0))
    assert store.find(recipe()) is not None
    assert prune(store, 30, pytest.fail) == []


def test_verify_looks_for_code_where_there_has_to_be_some(store: EngineStore) -> None:
    put(store, recipe("iree", "h100"), b".target sm_89\n")
    put(store, recipe("iree", "a100"), b".target sm_89\n")
    put(store, recipe("onnxruntime", "a100"), b"no code")
    found = [(each.folder, each.fault) for each in map(verify, listed(store))]
    faults = {(folder.parent.name, folder.name.split("-")[0]): fault for folder, fault in found}
    assert faults["h100", "iree"] is None
    assert faults["a100", "onnxruntime"] is None
    assert "PTX sm_89, which sm_80 does not run" in str(faults["a100", "iree"])


def test_engines_are_named_by_how_their_key_begins(store: EngineStore) -> None:
    keys = {put(store, recipe(dtype=each)).key for each in ("float32", "bfloat16")}
    for key in keys:
        assert [each.key for each in listed(store, [key[:6]])] == [key]
    with pytest.raises(UserError, match="no engine"):
        listed(store, ["zz"])


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


def test_versions_that_differ_are_named(tmp_path: Path) -> None:
    told = tell_difference(
        {"jaxlib": "0.11.2", "jax": "0.11.2", "ptxas": "13"}, {"jaxlib": "0.10.2", "jax": "0.11.2"}
    )
    assert told == "jaxlib 0.11.2, where here it is 0.10.2, ptxas 13, where here it is absent"
    (tmp_path / "data").write_text("one")
    before = digest_folder(tmp_path)
    (tmp_path / "data").write_text("two")
    assert digest_folder(tmp_path) != before


def test_prune_makes_no_store_where_a_named_one_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        prune(EngineStore(tmp_path / "typo"), 30, pytest.fail)
    assert not (tmp_path / "typo").exists()
