"""Tuning data of the engine store: timed once, sealed, read where they are and elsewhere, never damaged."""

import os
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from backends.xla import AUTOTUNED
from models.config import PRESETS
from tests.unit.engines import SHAPES, edit_manifest, put, recipe, spoil
from workbench.building import build as building
from workbench.building.build import Builder, Row
from workbench.building.engines import listed, prune, verify
from workbench.building.manifest import TUNING_DATA
from workbench.building.orders import Order
from workbench.building.questions import Answer
from workbench.building.recipe import TUNES_NOTHING, UNTUNED, tuned_on
from workbench.building.request import BuildRequest
from workbench.building.store import EngineStore
from workbench.building.targets import aim
from workbench.building.untimed import tell_untimed
from workbench.device.machine import Device
from workbench.job import BuildJob, TuneJob
from workbench.process import Outcome
from workbench.progress import Progress

H100 = Device("cuda:0", "NVIDIA H100 80GB HBM3", "sm_90", 1 << 34, uuid="one")


def order(here: Device | None = H100) -> Order:
    """Return an order of XLA, which times kernels for a GPU."""
    target = aim("h100", "bfloat16", here)
    return Order(
        ("xla", {}), Answer({"compiler": "1.0"}), "h100", target, here, "tiny", PRESETS["tiny"], SHAPES
    )


def choices(algorithm: int = 7, nanos: int = 1000) -> bytes:
    """Return what XLA writes of one product that it has timed kernels for."""
    result = f"gemm {{ algorithm: {algorithm} }} run_time {{ nanos: {nanos} }}"
    return f'version: 3 results {{ device: "CUDA: 9.0" hlo: "dot" result {{ {result} }} }}'.encode()


class Machine:
    """A machine with a store, and what its workers were told to do."""

    def __init__(self, root: Path) -> None:
        self.store = EngineStore(root)
        self.store.prepare()
        self.jobs: list[BuildJob | TuneJob] = []
        self.warnings: list[str] = []
        self.tuned: dict[str, bytes] = {AUTOTUNED: choices()}
        self.refusal: str | None = None

    def run(self, job: BuildJob | TuneJob, **_: Any) -> Outcome:
        """Do what a worker would."""
        self.jobs.append(job)
        if isinstance(job, TuneJob):
            time.sleep(0.3)
            for name, content in self.tuned.items():
                (Path(job.folder) / name).write_bytes(content)
            return Outcome("unsupported", self.refusal) if self.refusal else Outcome("ok")
        (Path(job.folder) / "program").write_bytes(b".target sm_90\n")
        untuned = job.target.card is not None and job.target.tuning is None
        facts = {"definition": "common", "provenance": "stock", "untuned": untuned, "build_s": 1.0}
        return Outcome("ok", result=facts)

    def builder(self, tune: bool) -> Builder:
        request = BuildRequest(backends=None, targets=("h100",), engines=self.store.root, tune=tune)
        builder = Builder(request, self.store, Progress(Console(stderr=True)))
        builder.progress.warn = self.warnings.append  # type: ignore[method-assign]
        return builder

    def build(self, tune: bool = False, here: Device | None = H100) -> Row:
        (row,) = self.builder(tune).fill([order(here)], 1)
        return row

    @property
    def searches(self) -> int:
        return sum(isinstance(job, TuneJob) for job in self.jobs)

    @property
    def tuning(self) -> Path:
        return self.store.folder(order().data_recipe(), TUNING_DATA)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(tmp_path / "engines")
    monkeypatch.setattr(building, "run", machine.run)
    return machine


def test_what_was_timed_is_read_on_the_device_and_elsewhere(machine: Machine) -> None:
    tuned, again, later, elsewhere = (
        machine.build(tune=True),
        machine.build(tune=True),
        machine.build(),
        machine.build(here=None),
    )
    assert machine.searches == 1
    assert machine.warnings == []
    recipes = [row.engine.manifest.recipe for row in (tuned, again, later, elsewhere) if row.engine]
    *here, there = [each.key for each in recipes]
    assert len(set(here)) == 1
    assert there not in here  # where XLA's products attend instead of cuDNN, which plans on the GPU
    assert recipes[0].tuning not in [each.choices for each in (tuned_on(H100), UNTUNED, TUNES_NOTHING)]
    assert recipes[0].host == {"name": H100.name}
    builds = [job for job in machine.jobs if isinstance(job, BuildJob)]
    assert [job.target.tuning for job in builds] == [str(machine.tuning)] * 2
    assert tuned.engine is not None
    assert not tuned.engine.manifest.untuned


@pytest.mark.parametrize(
    ("retimed", "same"), [(choices(nanos=2000), True), (choices(algorithm=8), False), (choices() * 2, False)]
)
def test_the_same_choices_made_twice_are_one_engine(machine: Machine, retimed: bytes, same: bool) -> None:
    first = machine.build(tune=True)
    machine.store.remove(machine.tuning)
    machine.tuned[AUTOTUNED] = retimed
    second = machine.build(tune=True)
    assert machine.searches == 2
    assert first.engine is not None
    assert second.engine is not None
    assert (second.engine.key == first.engine.key) == same
    assert second.built != same


def test_what_another_card_of_the_kind_has_timed_is_told_of_and_not_used(machine: Machine) -> None:
    pcie = replace(H100, name="NVIDIA H100 PCIe")
    machine.build(tune=True, here=pcie)
    row = machine.build()
    difference = f"were timed on {pcie.name}, and this is {H100.name}: not used"
    assert machine.warnings == [
        f"tuning data {machine.tuning} {difference}; `build --tune` times anew, for this one"
    ]
    assert row.engine is not None
    assert row.engine.manifest.recipe.tuning == "device"
    assert row.engine.manifest.timed_on == H100.name
    elsewhere = machine.build(here=None)
    assert str(elsewhere.reason).endswith(f"timed on {pcie.name}")
    assert machine.build(tune=True).engine is not None
    assert machine.searches == 2
    assert len(machine.warnings) == 1


def test_without_tuning_data_kernels_are_timed_by_the_build_or_not_at_all(machine: Machine) -> None:
    here, elsewhere = machine.build(), machine.build(here=None)
    recipes = [row.engine.manifest.recipe.tuning for row in (here, elsewhere) if row.engine]
    assert recipes == ["device", "none"]


DAMAGES = [
    (lambda folder: [path.unlink() for path in folder.iterdir()], "its manifest cannot be read"),
    (
        lambda folder: (folder / AUTOTUNED).write_bytes(b""),
        f"{AUTOTUNED} has 0 of its {len(choices())} bytes",
    ),
    (lambda folder: spoil(folder / AUTOTUNED), f"{AUTOTUNED} is not as it was written"),
    (edit_manifest, "its manifest is not as it was written"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES)
@pytest.mark.parametrize("here", [H100, None])
def test_damaged_tuning_data_are_refused_until_they_are_made_anew(
    machine: Machine, damage: Any, words: str, here: Device | None
) -> None:
    machine.build(tune=True)
    damage(machine.tuning)
    row = machine.build(here=here)
    assert row.engine is None
    assert row.status == "build_failed"
    cure = "`build --tune` where there is a h100, or remove that folder"
    assert str(row.reason).startswith(f"tuning data {machine.tuning} are damaged: {words}")
    assert str(row.reason).endswith(f"; {cure}")
    assert machine.build(tune=True, here=None).reason == row.reason
    assert machine.build(tune=True).engine is not None
    (warning,) = machine.warnings
    assert warning.startswith(f"{machine.tuning} is damaged: {words}")
    assert machine.searches == 2
    assert machine.build(here=here).engine is not None


@pytest.mark.parametrize(
    ("tuned", "refusal", "words"),
    [
        ({}, None, "xla timed nothing"),
        ({AUTOTUNED: b"version: 3"}, "XLA timed no kernels", "XLA timed no kernels"),
    ],
)
def test_where_nothing_was_timed_nothing_is_kept_and_the_engine_is_built(
    machine: Machine, tuned: dict[str, bytes], refusal: str | None, words: str
) -> None:
    machine.tuned, machine.refusal = tuned, refusal
    row = machine.build(tune=True)
    assert row.engine is not None
    assert row.engine.manifest.recipe.tuning == "device"
    assert machine.warnings == [f"--tune kept nothing for xla for h100, batch 1: {words}"]
    assert machine.store.tuning_folders() == []


def test_two_that_tune_at_once_search_once(machine: Machine) -> None:
    rows: list[Row] = []
    threads = [threading.Thread(target=lambda: rows.append(machine.build(tune=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [row.status for row in rows] == ["ok"] * 3
    assert machine.searches == 1
    assert sorted(row.built for row in rows) == [False, False, True]


def test_who_waits_says_for_whom_and_ends_when_told(machine: Machine) -> None:
    builder = machine.builder(tune=False)
    (task,) = builder.progress.bar.tasks
    ends: list[BaseException] = []

    def fill() -> None:
        try:
            builder.fill_one(order())
        except KeyboardInterrupt as end:
            ends.append(end)

    with machine.store.locked(order().recipe(tuned_on(H100)), pytest.fail):
        thread = threading.Thread(target=fill)
        thread.start()
        deadline = time.monotonic() + 10
        while task.description == "starting" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert task.description == "waiting for another build of xla for h100, batch 1"
        builder.stop.set()
        thread.join(10)
        assert len(ends) == 1
    assert machine.jobs == []


def test_tuning_data_are_listed_verified_and_pruned(machine: Machine) -> None:
    machine.build(tune=True)
    other = put(machine.store, recipe("xla", "a100"), kind=TUNING_DATA)
    entry = next(each for each in listed(machine.store) if each.folder == machine.tuning)
    assert entry.manifest is not None
    assert entry.manifest.note == f"tuning data, timed on {H100.name}"
    assert [verify(each).fault for each in listed(machine.store, [entry.key])] == [None]
    assert len(listed(machine.store, tuning=False)) == 1
    spoil(machine.tuning / AUTOTUNED)
    os.utime(other.folder, (0, 0))
    assert [each.fault for each in map(verify, listed(machine.store)) if each.fault] == [
        f"{AUTOTUNED} is not as it was written"
    ]
    removed = {folder: reason.split(" for ")[0] for folder, reason in prune(machine.store, 30, pytest.fail)}
    assert removed == {machine.tuning: f"{AUTOTUNED} is not as it was written", other.folder: "not used"}


def test_tuning_data_that_are_read_count_as_used(machine: Machine) -> None:
    machine.build(tune=True)
    os.utime(machine.tuning, (0, 0))
    machine.build(here=None)
    assert prune(machine.store, 30, pytest.fail) == []


def test_tuning_data_in_anothers_place_are_damage(machine: Machine) -> None:
    machine.build(tune=True)
    foreign = machine.store.folder(replace(order().data_recipe(), dtype="float16"), TUNING_DATA)
    machine.tuning.rename(foreign)
    (fault,) = (each.fault for each in listed(machine.store) if each.folder == foreign)
    assert "place of another" in str(fault)


def test_backends_that_time_nothing_are_named_with_the_option_that_does() -> None:
    def ordered(name: str, here: Device | None = H100, **options: str) -> Order:
        return replace(order(here), named=(name, options), aim=aim("h100", "float32", here))

    assert tell_untimed([ordered("xla"), ordered("tvm", tune="8")]) is None
    assert tell_untimed([ordered("iree", None), ordered("iree", None), ordered("xla", None)]) == (
        "--tune times nothing by iree for h100"
    )
    assert tell_untimed([ordered("tvm"), ordered("compile")]) == (
        "--tune times nothing by tvm for h100 (tvm[tune=N] does), compile for h100 (each build of it does)"
    )
    refused = replace(ordered("iree"), answer=Answer(None, "missing", "it is not installed"))
    assert tell_untimed([refused]) is None
