"""The gate sees through whole requests: a right engine passes, and planted faults are caught."""

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np

from backends.contract import Shapes
from backends.eager import Eager
from backends.trtllm.engine import RequestEngine, Rows
from tests.contract.planted import FAULTS, Fault, Planted, artefact_of
from tests.contract.test_gate_planted import Case, make_case
from workbench.checking.checks import capacity_for
from workbench.checking.judgement import Verdict
from workbench.gate import verify

SHAPES = Shapes(1, (24,), capacity_for(24, 0))
LENGTHS = (5,)
ANY_LENGTH = replace(SHAPES, prompts=tuple(range(1, SHAPES.capacity + 1)))
BY_ERROR = (("one key too many", "decode"), ("one page stale", "prefill"))
"""Read what lies in the cache, which is another sequence here: the error tells of them, if no name does."""
BY_REWINDING = ("one page stale", "decode")
"""Loses its page when it is rewound, which no request does."""
EVERY = [(fault, phase) for fault in FAULTS for phase in ("prefill", "decode")]
EVERY = [(fault, phase) for fault, phase in EVERY if (fault.name, phase) != BY_REWINDING]


class OfEngine:
    """Takes requests for an engine in this process: their tokens forced, the logits of the last returned."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, prompts: Rows, count: int) -> Rows:
        chosen = [self.step(np.array(prompts, np.int32), first=True).argmax(axis=1)]
        chosen += [self.step(chosen[-1]).argmax(axis=1) for _ in range(count - 1)]
        answer: Rows = np.stack(chosen, 1).tolist()
        return answer

    def logits(self, prompts: Rows, forced: Rows, count: int) -> np.ndarray:
        assert all(len(tokens) == count - 1 for tokens in forced)
        logits = self.step(np.array(prompts, np.int32), first=True)
        for tokens in np.array(forced, np.int32).T:
            logits = self.step(tokens)
        return logits

    def step(self, tokens: np.ndarray, first: bool = False) -> np.ndarray:
        if first:
            self.engine.stage(tokens)
            self.engine.prefill()
        else:
            self.engine.feed(tokens)
            self.engine.decode()
        logits: np.ndarray = self.engine.logits()
        return logits

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return make_case(folder, "tiny", ("cpu", "float32"), SHAPES, lengths=LENGTHS)


def check(case: Case, inner: Any) -> Verdict:
    engine = RequestEngine(SHAPES, case.weights.config.vocab_size, lambda: OfEngine(inner))
    try:
        return verify(engine, case.golden, SHAPES.batch)
    finally:
        engine.close()


def test_a_right_engine_passes(tiny: Case) -> None:
    inner = Eager().load(artefact_of(tiny.weights, ANY_LENGTH), tiny.weights)
    verdict = check(tiny, inner)
    assert verdict.passed, verdict
    assert verdict.error_ratio is not None
    assert verdict.error_ratio < 1.5


@pytest.mark.parametrize(("fault", "phase"), EVERY, ids=[f"{fault.name}, {phase}" for fault, phase in EVERY])
def test_a_planted_fault_is_caught(tiny: Case, fault: Fault, phase: str) -> None:
    verdict = check(tiny, Planted(tiny.weights, ANY_LENGTH, fault, (phase,)))
    assert not verdict.passed
    told = (fault.name, "error ") if (fault.name, phase) in BY_ERROR else (fault.name,)
    assert str(verdict.reason).startswith(told)
