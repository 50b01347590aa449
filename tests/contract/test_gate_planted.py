"""Every known fault is caught by its name, at tiny size and at full width; right engines pass."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from backends.contract import Engine, Shapes
from backends.eager import Eager, lower_eager
from models.checkpoint import Weights, open_checkpoint
from models.config import PRESETS
from models.weights import write_preset
from tests.contract.planted import (
    EDGE,
    FAULTS,
    REUSED,
    UNWRITTEN,
    ChainFault,
    Fault,
    Planted,
    RowFault,
    TileFault,
    artefact_of,
)
from workbench.checking import streams
from workbench.checking.checks import capacity_for
from workbench.checking.golden import Golden, compute_golden
from workbench.checking.judgement import Verdict
from workbench.gate import verify

WIDE = "llama-3.2-1b with 2 layers and 16,384 words"
TINY_SHAPES = Shapes(1, (48, 100), capacity_for(100, 32))
WIDE_SHAPES = Shapes(1, (72,), capacity_for(72, 0))
EVERY = [(fault, phase) for fault in FAULTS for phase in ("prefill", "decode")]
EVERY += [(EDGE, "decode"), (REUSED, "prefill"), (UNWRITTEN, "prefill")]
DEVICES = ["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])]
RIGHT = [(device, dtype) for device in DEVICES for dtype in ("float32", "bfloat16")]
NAMES = [f"{fault.name}, {phase}" for fault, phase in EVERY]


@dataclass(frozen=True)
class Case:
    """A model, the shapes its engines have, and its golden."""

    weights: Weights
    shapes: Shapes
    golden: Golden
    device: str


def make_case(
    folder: Path,
    preset: str,
    ways: tuple[str, str],
    shapes: Shapes,
    lengths: tuple[int, ...] | None = None,
    seed: int = 0,
) -> Case:
    device, dtype = ways
    write_preset(preset, dtype, folder, seed)
    weights = open_checkpoint(folder, dtype)
    return Case(weights, shapes, compute_golden(weights, shapes, device, seed, lengths=lengths), device)


@pytest.fixture(scope="module", params=RIGHT, ids="-".join)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("tiny") / "model", "tiny", request.param, TINY_SHAPES)


# In float32 full width takes a CPU minutes and shows what the tiny size does.
@pytest.fixture(scope="module", params=[ways for ways in RIGHT if ways != ("cpu", "float32")], ids="-".join)
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with pytest.MonkeyPatch.context() as patch:
        # As wide as the model but for the words: its head would be two thirds of every step.
        patch.setitem(PRESETS, WIDE, replace(PRESETS["llama-3.2-1b"], layers=2, vocab_size=16_384))
        folder = tmp_path_factory.mktemp("wide") / "model"
        yield make_case(folder, WIDE, request.param, WIDE_SHAPES, lengths=(72, 17))
    for file in folder.iterdir():  # hundreds of megabytes
        file.unlink()


def load_right(case: Case) -> Engine:
    return Eager().load(artefact_of(case.weights, case.shapes, case.device), case.weights)


def check(engine: Engine, case: Case) -> Verdict:
    try:
        return verify(engine, case.golden, case.shapes.batch)
    finally:
        engine.close()


def assert_caught(verdict: Verdict, fault: Fault, phase: str) -> None:
    assert not verdict.passed
    assert verdict.reason is not None
    shows_in = phase if fault in FAULTS else "decode"
    assert verdict.reason.startswith(f"{fault.name}"), verdict
    # A page that a prefill leaves stale is as stale in the decode behind it.
    assert f"({shows_in} " in verdict.reason or (fault.on_reuse and "(decode " in verdict.reason)
    if fault.name in verdict.projections:
        assert verdict.projections[fault.name] == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(("fault", "phase"), EVERY, ids=NAMES)
def test_a_planted_fault_is_named_at_tiny_size(tiny: Case, fault: Fault, phase: str):
    assert_caught(check(Planted(tiny.weights, tiny.shapes, fault, (phase,), tiny.device), tiny), fault, phase)


@pytest.mark.parametrize(("fault", "phase"), EVERY[: 2 * len(FAULTS)], ids=NAMES[: 2 * len(FAULTS)])
def test_a_planted_fault_is_named_at_full_width(wide: Case, fault: Fault, phase: str):
    assert_caught(check(Planted(wide.weights, wide.shapes, fault, (phase,), wide.device), wide), fault, phase)


def assert_right(verdict: Verdict) -> None:
    assert verdict.passed, verdict
    assert verdict.error_ratio is not None
    assert verdict.error_ratio < 1.5
    assert all(abs(projection) < 0.2 for projection in verdict.projections.values()), verdict
    assert "everything" not in {at for places in verdict.blind.values() for at in places}


@pytest.mark.parametrize("ways", RIGHT, ids="-".join)
@pytest.mark.parametrize("seed", range(6))
def test_right_engines_pass_at_tiny_size(tmp_path: Path, ways: tuple[str, str], seed: int):
    case = make_case(tmp_path / "model", "tiny", ways, replace(TINY_SHAPES, batch=1 + seed % 3), seed=seed)
    assert_right(check(load_right(case), case))


def test_a_right_engine_passes_at_full_width(wide: Case):
    assert_right(check(load_right(wide), wide))


def test_a_fault_in_a_long_prompt_is_named_by_the_rows_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streams, "PREFILL_TOKENS", 1)
    case = make_case(
        tmp_path / "model", "tiny", ("cpu", "bfloat16"), replace(TINY_SHAPES, batch=4), lengths=(100, 17)
    )
    assert_right(check(load_right(case), case))
    for fault in FAULTS:
        verdict = check(Planted(case.weights, case.shapes, fault, ("prefill",)), case)
        assert not verdict.passed
        assert verdict.reason is not None
        assert verdict.reason.startswith(fault.name), verdict


def test_a_faulty_row_beyond_the_distinct_ones_is_found(tmp_path: Path):
    case = make_case(tmp_path / "model", "tiny", ("cpu", "bfloat16"), Shapes(6, (20,), capacity_for(20, 0)))
    assert_right(check(load_right(case), case))
    verdict = check(RowFault(case.weights, case.shapes, row=5), case)
    assert not verdict.passed
    assert verdict.reason is not None
    assert verdict.reason.startswith("error ") or "row 5" in verdict.reason


def test_rows_that_are_taken_from_another_tile_are_found(tmp_path: Path):
    case = make_case(tmp_path / "model", "tiny", ("cpu", "bfloat16"), Shapes(8, (20,), capacity_for(20, 0)))
    artefact = artefact_of(case.weights, case.shapes)
    verdict = check(TileFault(artefact, case.weights, lower_eager), case)
    assert not verdict.passed
    assert verdict.reason is not None
    assert re.search(r"^error |row [4-7]", verdict.reason), verdict
    assert_right(check(load_right(case), case))


@pytest.mark.parametrize("steps", [17, 24, 30])
def test_a_chain_that_goes_wrong_late_is_found(tmp_path: Path, steps: int):
    case = make_case(tmp_path / "model", "tiny", ("cpu", "bfloat16"), Shapes(1, (20,), capacity_for(20, 32)))
    verdict = check(ChainFault(case.weights, case.shapes, steps), case)
    assert not verdict.passed
    assert verdict.reason is not None
    assert "decode at length 35" in verdict.reason
