"""Time `eager` and `compile` against transformers with a static cache: the same weights, shapes and process.

Samples alternate between the four contestants, so that a busy machine disturbs all alike. Logits are
compared first. Exits with 1 if ours is slower than its counterpart by more than the noise: the whole
95 % interval of the ratio of medians lies above 1.

    python scripts/versus_transformers.py --model tiny --dtype float32 --prompt 128 --context 256
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from backends import registry  # noqa: E402 (the project need not be installed)
from backends.contract import Engine, Shapes, Target  # noqa: E402
from models.checkpoint import Weights, open_checkpoint  # noqa: E402
from models.config import is_preset  # noqa: E402
from models.weights import write_preset  # noqa: E402
from workbench.machine import describe, resolve_device  # noqa: E402

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.04}
"""Largest difference of logits between the two implementations, as a share of their root mean square."""

PAIRS = (("eager", "transformers"), ("compile", "transformers compiled"))


Runner = Any
"""What is timed: an engine of ours, or whatever takes the same calls."""


class Transformers:
    """The transformers model with a static cache, eager or compiled as its own `generate` would."""

    def __init__(self, folder: Path, dtype: str, shapes: Shapes, device: str, compiled: bool) -> None:
        from transformers import AutoModelForCausalLM, StaticCache
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        self.device = torch.device(device)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
        self.model = model.eval().to(self.device)
        self.cache = StaticCache(config=self.model.config, max_cache_len=shapes.capacity)
        config = self.model.config
        with torch.inference_mode():
            self.cache.early_initialization(
                shapes.batch,
                config.num_key_value_heads,
                config.head_dim,
                getattr(torch, dtype),
                self.device,
            )
        self.forward: Callable[..., Any] = self.model
        if compiled:
            self.forward = torch.compile(self.model, mode="reduce-overhead", fullgraph=True, dynamic=False)

    def stage(self, tokens: np.ndarray) -> None:
        """Take tokens [B, T]."""
        self.tokens = torch.from_numpy(tokens).long().to(self.device)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        self.rewind(0)
        self._run(self.tokens)

    def decode(self) -> None:
        """Run one step from the greedy token."""
        self._run(self.next_token[:, None])

    @torch.inference_mode()
    def _run(self, tokens: torch.Tensor) -> None:
        output = self.forward(input_ids=tokens, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.last = output.logits[:, -1]
        self.next_token = self.last.argmax(-1)

    def rewind(self, length: int) -> None:
        """Set the length of every layer's cache."""
        with torch.inference_mode():
            for layer in self.cache.layers:
                layer.cumulative_length.fill_(length)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V]."""
        logits: np.ndarray = self.last.float().cpu().numpy().copy()
        return logits

    def sync(self) -> None:
        """Return when the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ours(name: str, weights: Weights, shapes: Shapes, device: str) -> Engine:
    """Build one of our backends for this machine."""
    backend = registry.find(name)
    target = Target(device, weights.dtype, describe(device).architecture)
    return backend.load(backend.build(weights.config, shapes, target, {}), weights)


def check_logits(runners: dict[str, Runner], tokens: np.ndarray, dtype: str) -> None:
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


def report(phase: str, samples: dict[str, np.ndarray]) -> bool:
    """Print medians and ratios of one phase; returns whether ours is slower by more than the noise."""
    for name, values in samples.items():
        low, high = np.percentile(values, (25, 75))
        spread = f"quartiles {low * 1e3:.3f} .. {high * 1e3:.3f}"
        print(f"{phase:8} {name:22} {np.median(values) * 1e3:9.3f} ms   {spread}")
    slower = False
    for mine in [name for name in ("eager", "compile") if name in samples]:
        for theirs in [name for name in samples if name.startswith("transformers")]:
            ratio, low, high = ratio_interval(samples[mine], samples[theirs])
            verdict = "slower" if low > 1 else "faster" if high < 1 else "equal"
            print(f"{phase:8} {mine} / {theirs}: {ratio:.3f} ({low:.3f} .. {high:.3f}) {verdict}")
            slower |= (mine, theirs) in PAIRS and low > 1
    return slower


def main() -> int:
    """Compare at the shapes asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
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
    parser.add_argument("--eager-only", action="store_true", help="leave out whatever is compiled")
    arguments = parser.parse_args()
    device = resolve_device(arguments.device)
    capacity = max(arguments.prompt + 4, arguments.context + arguments.steps)
    shapes = Shapes(arguments.batch, tuple(sorted({arguments.prompt, arguments.context})), capacity)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(arguments.model)
        if is_preset(arguments.model):
            folder = Path(scratch) / arguments.model
            write_preset(arguments.model, arguments.dtype, folder)
        weights = open_checkpoint(folder, arguments.dtype)
        runners: dict[str, Runner] = {
            "eager": ours("eager", weights, shapes, device),
            "transformers": Transformers(folder, arguments.dtype, shapes, device, compiled=False),
        }
        if not arguments.eager_only:
            runners |= {
                "compile": ours("compile", weights, shapes, device),
                "transformers compiled": Transformers(folder, arguments.dtype, shapes, device, compiled=True),
            }
        return compare(runners, weights, shapes, arguments)


def compare(
    runners: dict[str, Runner], weights: Weights, shapes: Shapes, arguments: argparse.Namespace
) -> int:
    """Check the logits, time both phases, print; returns the exit status."""
    rng = np.random.default_rng(0)
    vocabulary, longest = weights.config.vocab_size, max(shapes.prompts)
    tokens = rng.integers(0, vocabulary, (shapes.batch, longest), dtype=np.int32)
    prompt, context = tokens[:, : arguments.prompt], tokens[:, : arguments.context]
    check_logits(runners, prompt, arguments.dtype)
    prefills = {name: partial(time_prefill, runner, prompt) for name, runner in runners.items()}
    slower = report("prefill", interleave(prefills, arguments.samples))
    for runner in runners.values():
        runner.stage(context)
        runner.prefill()
    decodes = {
        name: partial(time_decode, runner, arguments.context, arguments.steps)
        for name, runner in runners.items()
    }
    slower |= report("decode", interleave(decodes, arguments.samples))
    return int(slower)


if __name__ == "__main__":
    sys.exit(main())
