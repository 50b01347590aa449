"""Time engines of ours beside other programs of the same model: same weights, shapes and process.

Samples alternate between all contestants, so that a busy machine disturbs all alike; logits are compared
before anything is timed. What the scripts `versus_*.py` have in common.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from backends import registry  # noqa: E402 (the project need not be installed)
from backends.contract import Engine, Shapes, Target  # noqa: E402
from models.checkpoint import Weights, open_checkpoint  # noqa: E402
from models.config import is_preset  # noqa: E402
from models.weights import write_preset  # noqa: E402
from workbench.device.machine import describe, resolve_device  # noqa: E402

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04}
"""Largest difference of logits between two implementations, as a share of their root mean square."""


class Runner(Protocol):
    """What is timed: an engine of ours, or a program that takes the same calls."""

    def stage(self, tokens: np.ndarray) -> None:
        """Take tokens [B, T] int32."""

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""

    def decode(self) -> None:
        """Run one step from the greedy token."""

    def rewind(self, length: int) -> None:
        """Let the next step write at `length`."""

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V]."""

    def sync(self) -> None:
        """Return when the device is idle."""


Runners = dict[str, Runner]
Entry = Callable[[Weights, Shapes, str], Runners]
"""Makes the contestants from the weights, the shapes and the device."""


def read_arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every comparison takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a preset or a checkpoint folder")
    parser.add_argument("--dtype", default="float32", choices=TOLERANCE)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument(
        "--context", type=int, default=256, help="cached positions before the first timed step"
    )
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--samples", type=int, default=30)
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    return parser


def compare(enter: Entry, pairs: Sequence[tuple[str, str]], allowed: float, asked: argparse.Namespace) -> int:
    """Compare at the shapes asked for and print; returns the exit status.

    It is 1 if in either phase the first of a pair takes over `allowed` times what the second takes, by more
    than the noise.
    """
    device = resolve_device(asked.device)
    capacity = max(asked.prompt + 4, asked.context + asked.steps)
    shapes = Shapes(asked.batch, tuple(sorted({asked.prompt, asked.context})), capacity)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(asked.model)
        if is_preset(asked.model):
            folder = Path(scratch) / asked.model
            write_preset(asked.model, asked.dtype, folder)
        weights = open_checkpoint(folder, asked.dtype)
        runners = enter(weights, shapes, device)
        tokens = np.random.default_rng(0).integers(
            0, weights.config.vocab_size, (shapes.batch, max(shapes.prompts)), dtype=np.int32
        )
        phases = time_phases(runners, tokens, asked)
    slower = [report(phase, samples, pairs, allowed) for phase, samples in phases.items()]
    return int(any(slower))


def time_phases(
    runners: Runners, tokens: np.ndarray, asked: argparse.Namespace
) -> dict[str, dict[str, np.ndarray]]:
    """Check the logits, then return the samples of each phase by contestant."""
    prompt, context = tokens[:, : asked.prompt], tokens[:, : asked.context]
    check_logits(runners, prompt, asked.dtype)
    prefills = {name: partial(time_prefill, runner, prompt) for name, runner in runners.items()}
    prefill = interleave(prefills, asked.samples)
    for runner in runners.values():
        runner.stage(context)
        runner.prefill()
    decodes = {
        name: partial(time_decode, runner, asked.context, asked.steps) for name, runner in runners.items()
    }
    return {"prefill": prefill, "decode": interleave(decodes, asked.samples)}


def ours(name: str, weights: Weights, shapes: Shapes, device: str) -> Engine:
    """Build one of our backends for this machine."""
    backend_name, options = registry.parse(name)
    backend = registry.find(backend_name)
    target = Target(device, weights.dtype, describe(device).architecture)
    return backend.load(backend.build(weights.config, shapes, target, options), weights)


def check_logits(runners: Runners, tokens: np.ndarray, dtype: str) -> None:
    """Refuse to time implementations that do not agree on prefill and three greedy steps."""
    expected: list[np.ndarray] = []
    for name, runner in runners.items():
        runner.stage(tokens)
        runner.prefill()
        found = [runner.logits()]
        for _ in range(3):
            runner.decode()
            found.append(runner.logits())
        expected = expected or found
        # Greedy texts may part at a near tie, after which logits are of different texts: compare up to there.
        for step, (got, wanted) in enumerate(zip(found, expected, strict=True)):
            error = float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))
            if error > TOLERANCE[dtype]:
                sys.exit(
                    f"{name}: logits of step {step} differ from the others' by {error:.2g}; nothing was timed"
                )
            if (got.argmax(-1) != wanted.argmax(-1)).any():
                break


def time_prefill(runner: Runner, tokens: np.ndarray) -> float:
    """Return the seconds of one prefill."""
    runner.stage(tokens)
    runner.sync()
    start = time.perf_counter()
    runner.prefill()
    runner.sync()
    return time.perf_counter() - start


def time_decode(runner: Runner, context: int, steps: int) -> float:
    """Return the seconds of one decode step, over a chain."""
    runner.rewind(context)
    runner.sync()
    start = time.perf_counter()
    for _ in range(steps):
        runner.decode()
    runner.sync()
    return (time.perf_counter() - start) / steps


def interleave(timers: dict[str, Callable[[], float]], samples: int) -> dict[str, np.ndarray]:
    """Sample the timers in turn; each round starts with another one."""
    taken: dict[str, list[float]] = {name: [] for name in timers}
    names = list(timers)
    for turn in range(samples + 2):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds = timers[name]()
            if turn >= 2:  # the first rounds warm up
                taken[name].append(seconds)
    return {name: np.array(values) for name, values in taken.items()}


def ratio_interval(a: np.ndarray, b: np.ndarray) -> tuple[float, float, float]:
    """Return median(a) / median(b) and its 95 % bootstrap interval, drawing whole rounds."""
    rng = np.random.default_rng(0)
    rounds = rng.integers(0, len(a), (2000, len(a)))
    ratios = np.median(a[rounds], axis=1) / np.median(b[rounds], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(np.median(a) / np.median(b)), float(low), float(high)


def report(
    phase: str, samples: dict[str, np.ndarray], pairs: Sequence[tuple[str, str]], allowed: float
) -> bool:
    """Print medians and the pairs' ratios of one phase; returns whether one is above what is allowed."""
    for name, values in samples.items():
        low, high = np.percentile(values, (25, 75))
        spread = f"quartiles {low * 1e3:.3f} .. {high * 1e3:.3f}"
        print(f"{phase:8} {name:26} {np.median(values) * 1e3:9.3f} ms   {spread}")
    slower = False
    for mine, theirs in pairs:
        ratio, low, high = ratio_interval(samples[mine], samples[theirs])
        verdict = "slower" if low > 1 else "faster" if high < 1 else "equal"
        print(f"{phase:8} {mine} / {theirs}: {ratio:.3f} ({low:.3f} .. {high:.3f}) {verdict}")
        slower |= low > allowed
    return slower
