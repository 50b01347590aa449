"""What the handwritten decode step promises beyond the contract, whose batches are larger than its one."""

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from backends import registry
from backends.contract import Engine, Shapes, Target, Unsupported
from models.checkpoint import Weights
from tests.contract.conftest import architecture
from tests.contract.reference import FAMILIES, LLAMA, reference_logits

PROMPT, CAPACITY = 5, 150  # some blocks of the attention kernel, the last not full
TOKENS = np.random.default_rng(6).integers(0, 160, (1, CAPACITY), dtype=np.int32)
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.005}
OpenFamily = Callable[[str, str], Weights]


@pytest.fixture
def load() -> Iterator[Callable[[Weights, int], Engine]]:
    backend = registry.find("handwritten")
    reason = backend.probe().reason
    if reason:
        pytest.skip(f"handwritten: {reason}")
    engines = []

    def load(weights: Weights, capacity: int = CAPACITY) -> Engine:
        target = Target("cuda:0", weights.dtype, architecture("cuda:0"))
        artefact = backend.build(weights.config, Shapes(1, (PROMPT,), capacity), target, {})
        assert artefact.definition == "own"
        engines.append(backend.load(artefact, weights))
        return engines[-1]

    yield load
    for engine in engines:
        engine.close()


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


def check_steps(engine: Engine, expected: np.ndarray, positions: range, tolerance: float) -> None:
    engine.rewind(positions.start)
    engine.poison(positions.start)
    for position in positions:
        engine.feed(TOKENS[:, position])
        engine.decode()
        assert relative_error(engine.logits(), expected[:, position]) < tolerance, position


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_steps_of_one_sequence_equal_the_reference(
    load: Callable[..., Engine], open_family: OpenFamily, family: str, dtype: str
) -> None:
    weights = open_family(family, dtype)
    expected = reference_logits(weights, TOKENS)
    engine = load(weights)
    engine.stage(TOKENS[:, :PROMPT])
    engine.prefill()
    check_steps(engine, expected, range(PROMPT, CAPACITY), TOLERANCE[dtype])
    check_steps(engine, expected, range(70), TOLERANCE[dtype])


def test_a_split_of_several_blocks_equals_the_reference(
    load: Callable[..., Engine], open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_family("llama", "float32")
    step = importlib.import_module("backends.handwritten.step")  # needs Triton, as the fixture made sure
    monkeypatch.setattr(step, "PROGRAMS", 1)
    engine = load(weights)
    check_steps(engine, reference_logits(weights, TOKENS), range(CAPACITY), TOLERANCE["float32"])


def test_the_next_token_is_the_first_of_the_best(
    load: Callable[..., Engine], open_family: OpenFamily
) -> None:
    engine = load(open_family("llama", "bfloat16"))
    engine.stage(TOKENS[:, :PROMPT])
    engine.prefill()
    for _ in range(20):
        engine.decode()
        chosen = engine.state.token.item()  # type: ignore[attr-defined]
        assert chosen == engine.logits().argmax()


def test_a_cpu_is_told_why_not() -> None:
    with pytest.raises(Unsupported, match="NVIDIA GPUs"):
        registry.find("handwritten").build(LLAMA, Shapes(1, (4,), 16), Target("cpu", "float32", "any"), {})


def test_a_missing_torch_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    probe = registry.find("handwritten").probe()
    assert "torch" in (probe.reason or "")
    assert not probe.devices


def test_an_odd_head_is_unsupported_for_one_sequence_only() -> None:
    backend, target = registry.find("handwritten"), Target("cuda:0", "bfloat16", "sm_90")
    odd = replace(LLAMA, head_dim=80)
    with pytest.raises(Unsupported, match="not 80"):
        backend.build(odd, Shapes(1, (4,), 16), target, {})
    assert backend.build(odd, Shapes(2, (4,), 16), target, {}).definition == "common"


def test_larger_batches_say_that_they_are_compile() -> None:
    artefact = registry.find("handwritten").build(
        LLAMA, Shapes(2, (4,), 16), Target("cuda:0", "bfloat16", "sm_90"), {}
    )
    assert artefact.provenance.startswith("configured: ")
    assert "compile's program" in artefact.provenance


@pytest.mark.parametrize("batch", [1, 2])
def test_kernels_that_were_chosen_by_timing_are_warned_of(batch: int) -> None:
    target = Target("cuda:0", "bfloat16", "sm_90")
    artefact = registry.find("handwritten").build(LLAMA, Shapes(batch, (4,), 16), target, {})
    assert bool(artefact.warnings) == (batch > 1)  # one sequence's decode is in no compiler's hands
