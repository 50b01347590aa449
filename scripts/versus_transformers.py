"""Time `eager` and `compile` against transformers with a static cache, plain and compiled.

Exits with 1 if ours is slower than its counterpart by more than the noise: the whole 95 % interval of the
ratio of medians lies above 1.

    python scripts/versus_transformers.py --model tiny --dtype float32 --prompt 128 --context 256
"""

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_by_side import Runners, compare, ours, read_arguments

from backends.contract import Shapes
from models.checkpoint import Weights

PAIRS = (("eager", "transformers"), ("compile", "transformers compiled"))


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
        # Called `past_key_values` before transformers 5.24.
        named = inspect.signature(self.model.forward).parameters
        self.cached = {"cache" if "cache" in named else "past_key_values": self.cache}
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
        output = self.forward(input_ids=tokens, use_cache=True, logits_to_keep=1, **self.cached)
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


def enter(weights: Weights, shapes: Shapes, device: str, compiled: bool) -> Runners:
    """Make the contestants; without `compiled` those that launch each operation from Python."""
    runners: Runners = {
        "eager": ours("eager", weights, shapes, device),
        "transformers": Transformers(weights.folder, weights.dtype, shapes, device, compiled=False),
    }
    if compiled:
        theirs = Transformers(weights.folder, weights.dtype, shapes, device, compiled=True)
        runners |= {"compile": ours("compile", weights, shapes, device), "transformers compiled": theirs}
    return runners


def main() -> int:
    """Compare at the shapes asked for."""
    parser = read_arguments(__doc__)
    parser.add_argument("--eager-only", action="store_true", help="leave out whatever is compiled")
    asked = parser.parse_args()
    pairs = PAIRS[:1] if asked.eager_only else PAIRS
    return compare(lambda *given: enter(*given, compiled=not asked.eager_only), pairs, 1.0, asked)


if __name__ == "__main__":
    sys.exit(main())
