"""On a GPU: what engines of torch run is traced kernel by kernel, and CUDA events bear the clock out."""

from collections.abc import Callable
from statistics import median

import numpy as np
import pytest

from backends import registry
from backends.contract import Shapes
from models.checkpoint import Weights
from tests.contract.conftest import Contestant
from workbench.clock import Clock
from workbench.device import cupti
from workbench.device.kernels import summarise
from workbench.findings import PASSES, position, run_drained, time_host
from workbench.job import RowJob
from workbench.timer_check import PREFILLS, CudaEvents, check_timer

DEVICE = "cuda:0"
SHAPES = Shapes(batch=2, prompts=(8,), capacity=32)
TOKENS = np.random.default_rng(7).integers(0, 160, (2, 8), dtype=np.int32)
ROWS = (RowJob("prefill", "prefill", 8, None), RowJob("decode", "decode", 8, 16))
OpenFamily = Callable[[str, str], Weights]


@pytest.fixture(scope="module", params=["eager", "eager[graph]", "compile"])
def contestant(request: pytest.FixtureRequest) -> Contestant:
    name, options = registry.parse(request.param)
    backend = registry.find(name)
    probe = backend.probe()
    if "cuda" not in probe.devices:
        pytest.skip(f"{name}: {probe.reason or 'it has no GPU here'}")
    return Contestant(backend, options, DEVICE, "bfloat16")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.phase)
def test_kernels_of_a_prefill_and_of_a_step_are_traced(
    contestant: Contestant, row: RowJob, open_family: OpenFamily
) -> None:
    if cupti.missing():
        pytest.skip(str(cupti.missing()))
    engine, clock = contestant.engine(open_family("llama", "bfloat16"), SHAPES), Clock(DEVICE)
    work = position(engine, row, TOKENS)
    for _ in range(PASSES):  # compilers and their graphs warm up
        host = time_host(work, engine, clock)
    work.prepare()
    clock.fence(engine)
    traced = cupti.Tracer().trace(lambda: run_drained(work, engine, clock))
    found = summarise(traced, work.steps, host)
    layers = open_family("llama", "bfloat16").config.layers
    assert found["launches"] >= 4 * layers, "a graph is told by its kernels, not as one launch"
    assert 0 < found["busy_s"] <= found["span_s"]
    assert found["gaps_s"] == pytest.approx(found["span_s"] - found["busy_s"])
    assert 0 < found["enqueue_s"] <= found["wall_s"]
    assert sum(found["shares"].values()) == pytest.approx(1.0)
    assert found["shares"]["vendor"] > 0 or found["shares"]["generated"] > 0
    assert not any(row["name"].startswith("_Z") for row in found["kernels"])
    engine.close()


def test_events_and_the_drained_clock_see_the_same_prefills(
    contestant: Contestant, open_family: OpenFamily
) -> None:
    engine, clock = contestant.engine(open_family("llama", "bfloat16"), SHAPES), Clock(DEVICE)
    stream = engine.stream()
    assert stream is not None
    stamps = CudaEvents(stream)
    check_timer(engine, clock, stamps, TOKENS)  # compilers and their graphs warm up
    check = check_timer(engine, clock, stamps, TOKENS)
    assert len(check["events_s"]) == len(check["drained_s"]) == PREFILLS
    # So small a prefill is mostly launch and wait: 2 % is for those over a millisecond.
    assert 0.3 < median(check["events_s"]) / median(check["drained_s"]) < 1.02
    engine.close()
