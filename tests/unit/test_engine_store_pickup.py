"""Which engine of the store a comparison takes, and how its rows say so."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.contract import Probe, Unsupported
from models.config import PRESETS
from tests.plugins.workbench_keeper import Keeper
from tests.unit.builders import record
from tests.unit.engines import CPU, SHAPES, put, recipe, spoil
from tests.unit.test_rows import evidence, result
from workbench.building.manifest import MANIFEST, Damaged, read_manifest
from workbench.building.pickup import pick_up
from workbench.building.recipe import UNTUNED, Tuning, tuned_on
from workbench.building.store import EngineStore
from workbench.building.targets import aim
from workbench.building.work import name_form, open_engine, refuse_mismatch
from workbench.comparing.contestants import Contestant
from workbench.comparing.rows import find_builds, finish
from workbench.device.machine import Device
from workbench.events import classify
from workbench.exports import flat_numbers
from workbench.job import RowResult
from workbench.plan import PlannedGroup
from workbench.record import from_json, row_key, to_json
from workbench.report import cells
from workbench.selection import identity

PROBE = Probe(devices=("cpu", "cuda"), dtypes=("float32",))
HERE = {"compiler": "1.0"}


class Call:
    """A comparison that looks into a store, with what it warned of."""

    def __init__(self, store: EngineStore) -> None:
        self.store = store
        self.warnings: list[str] = []

    def look(self, backend: str = "iree", device: Any = CPU) -> str | None:
        """Return the key of the engine that a backend's row is measured with."""
        contestant = Contestant(backend, {}, "/no/python", PROBE, HERE)  # which nothing can be asked of
        found = pick_up(
            self.store,
            device,
            "float32",
            PRESETS["tiny"],
            [contestant],
            [PlannedGroup(SHAPES, ())],
            self.warnings.append,
        )
        assert set(found) <= {(backend, SHAPES)}
        return found[backend, SHAPES].key if found else None


@pytest.fixture
def call(tmp_path: Path) -> Call:
    return Call(EngineStore(tmp_path / "engines"))


def test_an_engine_for_this_device_is_taken(call: Call) -> None:
    engine = put(call.store, recipe(target="cpu"))
    assert call.look() == engine.key
    assert call.warnings == []


def test_an_engine_for_any_shapes_serves_these_and_other_models_and_options(call: Call) -> None:
    put(call.store, recipe("flashinfer", "cpu"))  # as if its kernels were for these shapes alone
    assert call.look("flashinfer") is None
    other = replace(PRESETS["tiny"], layers=9, vocab_size=7)
    engine = put(
        call.store, recipe(form=name_form("flashinfer", other, SHAPES, {"compile": ""}), target="cpu")
    )
    assert call.look("flashinfer") == engine.key


def test_an_engine_whose_kernels_were_timed_on_another_card_of_the_kind_is_not_taken(call: Call) -> None:
    sxm, pcie = (Device("cuda:0", f"NVIDIA H100 {name}", "sm_90", 1 << 34) for name in ("80GB HBM3", "PCIe"))
    put(call.store, recipe("xla", here=pcie, tuning=tuned_on(pcie)))
    assert call.look("xla", sxm) is None
    elsewhere = put(call.store, recipe("xla", tuning=UNTUNED), untuned=True)
    assert call.look("xla", sxm) == elsewhere.key
    put(call.store, recipe("xla", tuning=Tuning("choices", pcie.name)))
    assert call.look("xla", sxm) == elsewhere.key
    read = put(call.store, recipe("xla", tuning=Tuning("choices", sxm.name)))
    assert call.look("xla", sxm) == read.key
    call.store.remove(read.folder)
    here = put(call.store, recipe("xla", here=sxm, tuning=tuned_on(sxm)))
    assert call.look("xla", sxm) == here.key
    assert recipe(here=sxm).key == recipe().key  # where nothing is timed the card changes nothing


def test_an_engine_for_the_architecture_is_taken_on_each_of_its_cards_but_a_tuned_one_on_its_own(
    call: Call,
) -> None:
    h100, h200 = (Device("cuda:0", f"NVIDIA {name}", "sm_90", 1 << 34) for name in ("H100", "H200"))
    shared = put(call.store, recipe(made_for="architecture"))
    xla = put(call.store, recipe("xla"))
    assert [call.look("iree", each) for each in (h100, h200)] == [shared.key] * 2
    assert [call.look("xla", each) for each in (h100, h200)] == [xla.key, None]
    untuned = put(call.store, recipe("tvm", made_for="architecture", tuning=UNTUNED), untuned=True)
    tuned = put(call.store, recipe("tvm", here=h100, tuning=tuned_on(h100), made_for="architecture"))
    assert [call.look("tvm", each) for each in (h100, h200)] == [tuned.key, untuned.key]
    assert call.look("iree", Device("cuda:0", "NVIDIA A100-SXM4-80GB", "sm_80", 1 << 34)) is None
    assert call.warnings == []


def test_engines_for_other_work_are_passed_over_in_silence(call: Call) -> None:
    put(call.store, recipe("xla", "cpu"))
    put(call.store, recipe(target="h100"))
    put(call.store, recipe(target="cpu", dtype="bfloat16"))
    assert call.look() is None
    assert call.look("eager") is None
    assert call.warnings == []


def test_an_engine_of_other_versions_is_refused_with_the_difference(call: Call) -> None:
    put(call.store, recipe(target="cpu", compilers={"compiler": "2.0"}))
    assert call.look() is None
    (warning,) = call.warnings
    assert "compiler 2.0, where here it is 1.0" in warning


def test_an_engine_of_other_code_of_ours_is_refused(call: Call) -> None:
    put(call.store, replace(recipe(target="cpu"), code="older"))
    assert call.look() is None
    assert "other code" in call.warnings[0]


def test_a_damaged_engine_is_told_of_and_not_taken(call: Call) -> None:
    engine = put(call.store, recipe(target="cpu"))
    spoil(engine.folder / "program")
    assert call.look() is None
    assert "program is not as it was written" in call.warnings[0]


def test_a_tuned_engine_goes_before_an_untuned_one_and_the_newest_first(call: Call) -> None:
    late, early = "2026-03-01T00:00:00+00:00", "2026-02-01T00:00:00+00:00"
    put(call.store, recipe("xla", "cpu", tuning=UNTUNED), untuned=True, created=late)
    first = put(call.store, recipe("xla", "cpu", tuning=Tuning("one", CPU.name)), created=early)
    assert call.look("xla") == first.key
    second = put(call.store, recipe("xla", "cpu", tuning=Tuning("two", CPU.name)), created=late)
    assert call.look("xla") == second.key


def test_a_worker_refuses_an_engine_for_another_gpu_or_of_other_versions(tmp_path: Path) -> None:
    store, ptx = EngineStore(tmp_path), b".target sm_89\n"
    folder = put(store, recipe(target="h100"), ptx, code=("PTX sm_89",)).folder
    manifest = read_manifest(folder)
    refuse_mismatch(manifest, folder, aim("h200", "float32", None), HERE)  # the same architecture
    refuse_mismatch(manifest, folder, aim("b200", "float32", None), HERE)  # a newer one
    with pytest.raises(Unsupported, match=r"is for h100: its code is PTX sm_89, which sm_80 does not run"):
        refuse_mismatch(manifest, folder, aim("a100", "float32", None), HERE)
    with pytest.raises(Unsupported, match=r"compiler 1.0, where here it is 2.0"):
        refuse_mismatch(manifest, folder, aim("h100", "float32", None), {"compiler": "2.0"})


def test_an_engine_with_code_for_another_host_is_refused(call: Call) -> None:
    engine = put(call.store, recipe(), code=("sm_90", "s390x"))
    refuse_mismatch(engine.manifest, engine.folder, aim("h100", "float32", None), HERE)  # none that we know
    foreign = "aarch64" if platform.machine() == "x86_64" else "x86_64"
    other = replace(engine.manifest, code=("sm_90", foreign))
    with pytest.raises(Unsupported, match=r"was built on \w+, and this is"):
        refuse_mismatch(other, engine.folder, aim("h100", "float32", None), HERE)


@pytest.mark.parametrize(
    ("name", "words"), [("program", "program is not as it was written"), (MANIFEST, "its manifest is")]
)
def test_a_worker_refuses_an_engine_that_was_damaged_meanwhile(tmp_path: Path, name: str, words: str) -> None:
    folder = put(EngineStore(tmp_path), recipe("keeper", "cpu", {"keeper": "1.0"})).folder
    spoil(folder / name)
    with pytest.raises(Damaged) as refusal:
        open_engine(Keeper(), folder, PRESETS["tiny"], SHAPES, aim("cpu", "float32", CPU), {})
    status, reason = classify(refusal.value, "build")
    assert status == "build_failed"
    assert reason.startswith(f"Damaged: {folder}: {words}")
    assert reason.endswith("; `build` makes it anew")


ENGINE = {"key": "k", "target": "h100", "code": ["sm_90a"], "untuned": True, "built": "then", "build_s": 9.0}


def test_a_row_of_such_an_engine_says_cached_and_untuned() -> None:
    blank = record(status="missing", engine=ENGINE)
    row = finish(blank, [result()], replace(evidence(), build_s={"cached": 0.5}))
    written = dict(
        zip(("backend", "time", "ratio", "tok/s", "limit", "build"), cells(row, None), strict=False)
    )
    assert written["backend"] == ("eager", "untuned")
    assert written["build"] == ("cached", "500 ms")
    assert "for h100 was built without the GPU and is untuned" in row.warnings[0]
    assert flat_numbers(row, None)["build_cached_s"] == 0.5
    assert flat_numbers(row, None)["untuned"] is True
    assert from_json(to_json(row)) == row
    tuned = finish(replace(blank, engine=ENGINE | {"untuned": False}), [result()], evidence())
    assert cells(tuned, None)[0] == ("eager", "")
    assert not any("untuned" in warning for warning in tuned.warnings)


def test_its_build_is_neither_cold_nor_warm() -> None:
    results = [RowResult("k", "ok", build_s=seconds) for seconds in (0.5, 0.7, 0.6)]
    assert find_builds(results, None) == {"cached": 0.6}
    assert find_builds([replace(results[0], cold=True)], None) == {"cold": 0.5, "warm": None}


def test_its_row_is_another_row_and_an_untuned_one_replaces_none_in_a_report() -> None:
    built, cached = record(), record(engine=ENGINE)
    assert row_key(built) != row_key(cached)
    assert row_key(cached) != row_key(record(engine=ENGINE | {"key": "other"}))
    assert identity(built) != identity(cached)
    assert identity(built) == identity(record(engine=ENGINE | {"untuned": False}))
