"""The gate on engines of every backend: as they are they pass, in every family, and spoilt they do not."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch", reason="golden logits need torch")

from backends.contract import Engine
from models.checkpoint import Weights
from tests.contract.conftest import GATE_SHAPES, Contestant, contestants, forget_programs
from tests.contract.reference import FAMILIES
from workbench.checking.golden import Golden, compute_golden
from workbench.gate import verify

(PROMPT,) = GATE_SHAPES.prompts
OpenFamily = Callable[[str, str], Weights]


def worth_gating(contestant: Contestant | None) -> bool:
    """Leave out options on a CPU: they run in float32, where the contract suite is far stricter."""
    return contestant is None or not contestant.options or contestant.device != "cpu"


@pytest.fixture(scope="module", params=[each for each in contestants() if worth_gating(each.values[0])])
def contestant(request: pytest.FixtureRequest) -> Contestant:
    """Run the test once for each backend, device and data type; on a GPU also for each option."""
    found: Contestant = request.param
    return found


@pytest.fixture(scope="session")
def golden_of(open_family: OpenFamily) -> Callable[[str, str], Golden]:
    """Return a function (family, dtype) -> its golden, computed once."""
    return cache(
        lambda family, dtype: compute_golden(open_family(family, dtype), GATE_SHAPES, lengths=(PROMPT, 17, 3))
    )


class Spoilt:
    """An engine with one fault; what is not spoilt goes to the engine itself."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)


class StepsBack(Spoilt):
    """Rewinds one position too far: the newest token is forgotten and all later ones stand one off."""

    def rewind(self, length: int) -> None:
        self.engine.rewind(max(0, length - 1))


class ForgetsRow(Spoilt):
    """Feeds the second row what is meant for the first."""

    def feed(self, tokens: np.ndarray) -> None:
        self.engine.feed(np.ascontiguousarray(tokens[[0, 0]]))


class SwapsPrompts(Spoilt):
    """Prefills each row with the other's prompt."""

    def stage(self, tokens: np.ndarray) -> None:
        self.engine.stage(np.ascontiguousarray(tokens[::-1]))


def test_an_engine_passes_the_gate(
    contestant: Contestant, open_family: OpenFamily, golden_of: Callable[[str, str], Golden]
) -> None:
    """In every family; with options in one, since the contract suite has them all."""
    for family in ("llama",) if contestant.options else FAMILIES:
        forget_programs()
        engine = contestant.engine(open_family(family, contestant.dtype), GATE_SHAPES)
        verdict = verify(engine, golden_of(family, contestant.dtype), GATE_SHAPES.batch)
        engine.close()
        assert verdict.passed, (family, verdict)
        assert verdict.error_ratio is not None
        assert verdict.error_ratio < 2.0, (family, verdict)
        assert all(abs(projection) < 0.3 for projection in verdict.projections.values()), (family, verdict)


def test_the_gate_refuses_an_engine_that_is_spoilt(
    contestant: Contestant, open_family: OpenFamily, golden_of: Callable[[str, str], Golden]
) -> None:
    engine = contestant.engine(open_family("llama", contestant.dtype), GATE_SHAPES)
    golden = golden_of("llama", contestant.dtype)
    for fault in (StepsBack, ForgetsRow, SwapsPrompts):
        verdict = verify(fault(engine), golden, GATE_SHAPES.batch)  # type: ignore[arg-type]
        assert not verdict.passed, fault
        assert verdict.reason
    engine.close()
