"""The commands on the engine store: what is named, shown and found sound, and what may be removed."""

import json
import os
import time
from pathlib import Path

import pytest

from models.errors import UserError
from tests.unit.engines import edit_manifest, put, recipe
from workbench.building.engines import Listed, listed, prune, show, verify
from workbench.building.store import EngineStore

DAY = 86400


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


def test_prune_removes_what_is_damaged_old_or_unfinished(store: EngineStore) -> None:
    old, young, damaged = (put(store, recipe(dtype=each)) for each in ("float32", "bfloat16", "float16"))
    os.truncate(damaged.folder / "program", 3)
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
    cure = "remove it yourself if nothing in it is yours"
    assert warnings == [
        f"{holiday} is not removed: it has no manifest; {cure}",
        f"{annotated} is not removed: notes.txt in it is none of its files; {cure}",
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
    for key in ("zz", ""):
        with pytest.raises(UserError, match="no engine"):
            listed(store, [key])


def test_of_several_engines_the_sound_ones_are_shown_and_the_damaged_named(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Listed, "key", "0123456789abcdef")
    sound, damaged = (put(store, recipe(dtype=each)).folder for each in ("float32", "bfloat16"))
    edit_manifest(damaged)
    warnings: list[str] = []
    show(store, "0123", warnings.append)
    assert json.loads(capsys.readouterr().out)["path"] == str(sound)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{damaged} is damaged: its manifest is not as it was written")
    edit_manifest(sound)
    with pytest.raises(UserError) as refusal:
        show(store, "0123", pytest.fail)
    assert all(f"{folder} is damaged: " in str(refusal.value) for folder in (sound, damaged))


def test_prune_makes_no_store_where_a_named_one_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no"):
        prune(EngineStore(tmp_path / "typo"), 30, pytest.fail)
    assert not (tmp_path / "typo").exists()
