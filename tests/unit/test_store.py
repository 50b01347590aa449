"""Results on disk: nothing measured is lost, whatever was written there or could not be."""

import json
import multiprocessing
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from workbench.job import RowResult
from workbench.record import SCHEMA, ProcessRun, Record, Time, to_json
from workbench.store import Store, StoreError, read_strictly, slug, write_atomically

GPU = "NVIDIA H100 80GB HBM3"

ROW = Record(
    run="r1",
    created="2025-01-01T00:00:00+00:00",
    workbench="0.1.0",
    backend="eager",
    options={},
    definition="common",
    provenance="stock",
    model="llama-3.2-1b",
    weights="00",
    phase="decode",
    batch=1,
    prompt=None,
    context=1024,
    steps=64,
    dtype="bfloat16",
    device="cuda:0",
    gpu={"name": GPU, "uuid": "GPU-1", "driver": "580"},
    status="ok",
    reason=None,
    clock="chained",
    protocol={"processes": 2},
    time_s=Time(0.1, 0.09, 0.11, 0.1, 0.12),
    processes=(ProcessRun((0.1, 0.1)),),
)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def store(tmp_path, warnings):
    return Store(tmp_path / "results", warnings.append)


@pytest.fixture
def path(store):
    store.append(ROW)
    return store.path(GPU, ROW.model)


def runs(store):
    return [row.run for row in store.read(GPU, ROW.model)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (GPU, "nvidia-h100-80gb-hbm3"),
        ("llama-3.2-1b", "llama-3.2-1b"),
        ("AMD EPYC(tm) 9655/96", "amd-epyc-tm-9655-96"),
        ("../..", "unknown"),
        ("Modèle_ß", "mod-le"),
        ("", "unknown"),
    ],
)
def test_slugs_are_plain_file_names(name, expected):
    assert slug(name) == expected


def test_rows_come_back_as_they_went_in(store, path):
    store.append(replace(ROW, run="r2", status="crashed", reason="no", time_s=None, processes=()))
    assert path == store.root / "nvidia-h100-80gb-hbm3" / "llama-3.2-1b.jsonl"
    assert store.read(GPU, ROW.model)[0] == ROW
    assert [row.run for row in store.read_all()] == ["r1", "r2"]
    assert len(path.read_text().splitlines()) == 2


def test_nothing_there_is_no_row(store):
    assert store.read(GPU, "other") == []
    assert store.read_all() == []


@pytest.mark.parametrize(
    "broken",
    [
        b'{"schema": 1, "run": "half a li',
        b"\x00\xff\xfe",
        b"[1, 2]",
        b'{"schema": 1, "run": "r9"}',
        b'{"schema": "one"}',
        json.dumps({**to_json(ROW), "status": "splendid"}).encode(),
        json.dumps({**to_json(ROW), "time_s": None}).encode(),
    ],
)
def test_a_broken_line_is_set_aside_and_the_others_stay(store, path, warnings, broken):
    good = path.read_bytes()
    path.write_bytes(good + broken + b"\n" + good)
    assert runs(store) == ["r1", "r1"]
    assert path.read_bytes() == good + good
    assert path.with_name(path.name + ".broken").read_bytes() == broken + b"\n"
    assert len(warnings) == 1
    assert f"{path}:2" in warnings[0]
    assert runs(store) == ["r1", "r1"]
    assert len(warnings) == 1


def test_a_torn_last_line_is_set_aside_too(store, path, warnings):
    path.write_bytes(path.read_bytes() + b'{"schema"')
    assert runs(store) == ["r1"]
    store.append(replace(ROW, run="r2"))
    assert runs(store) == ["r1", "r2"]
    assert len(warnings) == 1


def test_a_torn_last_line_does_not_swallow_the_next_row(store, path):
    path.write_bytes(path.read_bytes() + b'{"schema"')
    store.append(replace(ROW, run="r2"))
    assert runs(store) == ["r1", "r2"]


def test_rows_of_a_newer_workbench_are_refused_not_set_aside(store, path):
    text = json.dumps({**to_json(ROW), "schema": SCHEMA + 1}) + "\n"
    path.write_text(text)
    with pytest.raises(StoreError, match="newer workbench"):
        runs(store)
    assert path.read_text() == text


def test_a_row_that_json_cannot_hold_is_a_defect_that_writes_nothing(store, path):
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        store.append(replace(ROW, load_s=float("nan")))
    assert path.read_bytes() == before


def append_until_full(root, size):
    """Append in a process whose files may not grow beyond `size`, as on a disk that fills up."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    store = Store(Path(root), print)
    try:
        store.append(replace(ROW, run="r2"))
    except StoreError as error:
        os._exit(7 if "cannot write" in str(error) and "\n" not in str(error) else 8)
    os._exit(0)


def run_apart(target, *arguments):
    """Run a function in a process of its own; returns its exit status."""
    child = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    child.start()
    child.join()
    return child.exitcode


def test_a_disk_that_fills_in_mid_line_leaves_the_file_as_it_was(store, path):
    before = path.read_bytes()
    assert run_apart(append_until_full, str(store.root), len(before) + 100) == 7
    assert path.read_bytes() == before
    store.append(replace(ROW, run="r3"))
    assert runs(store) == ["r1", "r3"]


def append_many(root, name):
    store = Store(Path(root), print)
    for index in range(40):
        store.append(replace(ROW, run=f"{name}-{index}", reason="x" * 5000))


def test_processes_that_append_at_once_lose_nothing(store):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=append_many, args=(str(store.root), name)) for name in "abc"]
    for child in children:
        child.start()
    while any(child.is_alive() for child in children):
        store.read(GPU, ROW.model)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sorted(runs(store)) == sorted(f"{name}-{index}" for name in "abc" for index in range(40))
    for name in "abc":
        assert [run for run in runs(store) if run[0] == name] == [f"{name}-{index}" for index in range(40)]


def test_a_results_folder_that_is_a_file_is_one_clear_line(tmp_path, warnings):
    (tmp_path / "results").write_text("")
    with pytest.raises(StoreError, match=r"cannot write .*results.*free space or make it writable") as caught:
        Store(tmp_path / "results", warnings.append).append(ROW)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_one_clear_line(store, path):
    path.parent.chmod(0o500)
    path.chmod(0o400)
    try:
        with pytest.raises(StoreError, match="Permission denied"):
            store.append(ROW)
        with pytest.raises(StoreError, match="Permission denied"):
            store.keep(GPU, 0, RESULT)
        assert runs(store) == ["r1"]
    finally:
        path.parent.chmod(0o700)


RESULT = RowResult(key="abc", status="ok", samples_s=(0.1, 0.2), warnings=("hot",))


def test_finished_processes_are_kept_until_forgotten(store):
    store.keep(GPU, 1, RESULT)
    store.keep(GPU, 0, replace(RESULT, samples_s=(0.3,)))
    store.keep(GPU, 0, replace(RESULT, key="abcd"))
    again = Store(store.root, store.warn)
    assert again.kept(GPU, "abc") == {0: replace(RESULT, samples_s=(0.3,)), 1: RESULT}
    assert list(again.kept(GPU, "abc")) == [0, 1]
    again.forget(GPU, "abc")
    assert store.kept(GPU, "abc") == {}
    assert store.kept(GPU, "abcd").keys() == {0}
    store.forget(GPU, "never seen")


@pytest.mark.parametrize("damage", [b"", b'{"key": "ab', b"[]", b'{"key": "abc"}', b'{"nonsense": 1}'])
def test_a_damaged_side_file_is_measured_again(store, warnings, damage):
    store.keep(GPU, 0, RESULT)
    store.keep(GPU, 1, RESULT)
    (store.root / slug(GPU) / ".pending" / "abc.0.json").write_bytes(damage)
    assert store.kept(GPU, "abc") == {1: RESULT}
    assert len(warnings) == 1
    assert "abc.0.json is damaged" in warnings[0]


def test_a_side_file_of_another_row_is_not_taken_for_this_one(store, warnings):
    store.keep(GPU, 0, RESULT)
    folder = store.root / slug(GPU) / ".pending"
    (folder / "abc.0.json").rename(folder / "xyz.0.json")
    assert store.kept(GPU, "xyz") == {}
    assert len(warnings) == 1


def test_side_files_are_not_read_as_rows(store):
    store.keep(GPU, 0, RESULT)
    assert store.read_all() == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_strict_reading_changes_nothing_and_names_the_first_broken_line(path):
    assert read_strictly(path) == [ROW]
    torn = path.read_bytes() + b'{"schema": 1, "run": "torn'
    path.write_bytes(torn)
    with pytest.raises(StoreError, match=r":2 is no result .* truncated or damaged"):
        read_strictly(path)
    assert path.read_bytes() == torn
    path.write_text('{"loss": 0.5}\n')
    with pytest.raises(StoreError, match=r":1 is no result .* no records file"):
        read_strictly(path)
    assert {each.name for each in path.parent.iterdir()} <= {path.name, ".lock"}
