"""Show that the harness adds less than 1 % to what it times.

Two loops over the same engine take turns, in random order: the harness's own chain of decode steps, and a
bare loop that reads the clock, decodes, waits and reads the clock again. The ratio of their medians over a
few chains is one round. Exits 1 if the interval of the median ratio is not within 1 % of 1.

The bare loop waits by the engine's own `sync()`; the harness by its fence, which on a GPU waits once more.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

from backends import registry
from backends.contract import Engine, Shapes, Target
from models.checkpoint import open_checkpoint
from models.weights import write_preset
from workbench.checking.checks import workload_tokens
from workbench.clock import Clock
from workbench.device import machine
from workbench.harness import time_decode
from workbench.statistics import Interval, median_interval
from workbench.stopping import StopRule, WarmUp

ALLOWED = 0.01
CONTEXT = 64
STEPS = {"null": 20_000}
"""A chain of the null backend's empty calls is made as long as a real sample: the harness's cost is a fixed
one for each chain, and it is a chain that is timed."""
DEFAULT_STEPS = 32
CHAINS = 4
"""Timed in each turn, after one more to warm up."""


def main() -> int:
    """Measure each backend; returns the exit status."""
    parser = argparse.ArgumentParser(description="Show that the harness adds less than 1 % to what it times.")
    parser.add_argument("backends", nargs="*", default=["null", "eager"])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    results = [report(name, arguments.rounds, arguments.device) for name in arguments.backends]
    return 0 if all(results) else 1


def report(name: str, rounds: int, device: str) -> bool:
    """Print one backend's ratio; returns whether it is within what is allowed."""
    steps = STEPS.get(name, DEFAULT_STEPS)
    with tempfile.TemporaryDirectory() as folder:
        engine, feed = load(name, device, steps, Path(folder) / "tiny")
        ratio = overhead(engine, Clock(device), steps, feed, rounds)
    good = ratio.low > 1 - ALLOWED and ratio.high < 1 + ALLOWED
    verdict = "within 1 %" if good else "not shown to be within 1 %"
    print(
        f"{name}: harness / bare loop = {ratio.value:.5f} [{ratio.low:.5f}, {ratio.high:.5f}] "
        f"({rounds} rounds of {steps} steps): {verdict}"
    )
    return good


def load(name: str, device: str, steps: int, folder: Path) -> tuple[Engine, np.ndarray]:
    """Make an engine that is warm and filled, and the tokens [B] its chains begin with."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    write_preset("tiny", dtype, folder)
    weights = open_checkpoint(folder, dtype)
    backend = registry.find(name)
    shapes = Shapes(1, (CONTEXT,), CONTEXT + steps)
    target = Target(device, dtype, machine.describe(device).architecture)
    engine = backend.load(backend.build(weights.config, shapes, target, {}), weights)
    tokens = workload_tokens(weights.config.vocab_size, 1, CONTEXT, seed=0)
    engine.stage(tokens)
    engine.prefill()
    return engine, tokens[:, -1].copy()


def overhead(engine: Engine, clock: Clock, steps: int, feed: np.ndarray, rounds: int) -> Interval:
    """Return the median over rounds of harness time over bare time, and its interval."""
    loops: tuple[Callable[[], float], ...] = (
        lambda: through_harness(engine, clock, steps, feed),
        lambda: bare(engine, clock, steps, feed),
    )
    for loop in loops * 3:
        loop()
    ratios = []
    order = random.Random(0)
    for _ in range(rounds):
        found = {}
        for index in order.sample((0, 1), 2):
            found[index] = loops[index]()
        ratios.append(found[0] / found[1])
    return median_interval([ratios])


def through_harness(engine: Engine, clock: Clock, steps: int, feed: np.ndarray) -> float:
    """Return the median seconds a step that the harness reports."""
    stop = StopRule(budget_s=0.0, floor=CHAINS, cap=CHAINS)
    samples = time_decode(engine, clock, CONTEXT, steps, feed, warm_up=WarmUp(budget_s=0.0), stop=stop)
    return median(samples.samples_s)


def bare(engine: Engine, clock: Clock, steps: int, feed: np.ndarray) -> float:
    """Return the median seconds a step of the least loop that can time a chain."""
    return median([bare_chain(engine, clock, steps, feed) for _ in range(1 + CHAINS)][1:])


def bare_chain(engine: Engine, clock: Clock, steps: int, feed: np.ndarray) -> float:
    """Return the seconds a step of one chain."""
    engine.rewind(CONTEXT)
    engine.feed(feed)
    engine.sync()
    start = clock.now()
    for _ in range(steps):
        engine.decode()
    engine.sync()
    return (clock.now() - start) / steps


if __name__ == "__main__":
    sys.exit(main())
