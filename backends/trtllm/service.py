"""What is called of tensorrt_llm: its LLM is started and asked for tokens.

`tests/data/tensorrt_llm.json` has each name as it is published, and a test binds these calls to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.contract import Shapes
from backends.trtllm.engine import Rows
from backends.trtllm.forcing import Forcing

BLOCK = 32
"""Tokens of a block of the vendor's paged cache, by default."""

Find = Callable[[str, str], Any]
"""Returns something of the vendor's by module and name."""


@dataclass(frozen=True)
class Order:
    """What to start the vendor's LLM with."""

    folder: Path
    """Hugging Face checkpoint."""
    shapes: Shapes
    dtype: str
    cache: Path | None
    """Where built engines are kept."""


def start_pytorch(find: Find, order: Order) -> Any:
    """Start the PyTorch backend: decode steps of the whole batch replay one CUDA graph."""
    graphs = find("tensorrt_llm.llmapi", "CudaGraphConfig")(batch_sizes=[order.shapes.batch])
    llm = find("tensorrt_llm", "LLM")
    return llm(**common(find, order), **limits(order.shapes), cuda_graph_config=graphs)


def start_engine(find: Find, order: Order) -> Any:
    """Build a TensorRT engine of exactly these shapes, or take the one that was kept, and start it."""
    build = find("tensorrt_llm.llmapi", "BuildConfig")(
        **limits(order.shapes), opt_batch_size=order.shapes.batch
    )
    build.plugin_config.gemm_plugin = "auto"  # what the vendor advises for 16 bits
    keep = find("tensorrt_llm.llmapi", "BuildCacheConfig")(cache_root=order.cache) if order.cache else False
    llm = find("tensorrt_llm._tensorrt_engine", "LLM")
    return llm(**common(find, order), **limits(order.shapes), build_config=build, enable_build_cache=keep)


def common(find: Find, order: Order) -> dict[str, Any]:
    """Return what both are started with: the same weights, no tokenizer, nothing reused between requests."""
    shapes = order.shapes
    blocks = -(-(shapes.capacity + 1) // BLOCK) + 1  # and one that the scheduler reserves
    cache = find("tensorrt_llm.llmapi", "KvCacheConfig")(
        enable_block_reuse=False, enable_partial_reuse=False, max_tokens=shapes.batch * blocks * BLOCK
    )
    return {
        "model": str(order.folder),
        "skip_tokenizer_init": True,
        "dtype": order.dtype,
        "kv_cache_config": cache,
    }


def limits(shapes: Shapes) -> dict[str, int]:
    """Return the fixed sizes: all sequences prefill at once, so that they decode together from then on."""
    return {
        "max_batch_size": shapes.batch,
        "max_input_len": shapes.capacity,
        "max_seq_len": shapes.capacity + 1,  # a request's last token is never written to the cache
        "max_num_tokens": shapes.batch * shapes.capacity,
    }


class Service:
    """A started LLM of the vendor's, as `engine.Requests`."""

    def __init__(self, find: Find, llm: Any, vocab: int) -> None:
        self._sampling = find("tensorrt_llm", "SamplingParams")
        self._llm = llm
        self._vocab = vocab

    def generate(self, prompts: Rows, count: int) -> Sequence[Sequence[int]]:
        """Return the greedy `count` tokens after each prompt, end of sequence or not."""
        outputs = self._llm.generate(prompts, self._parameters(count), use_tqdm=False)
        return [output.outputs[0].token_ids for output in outputs]

    def logits(self, prompts: Rows, forced: Rows, count: int) -> npt.NDArray[np.float32]:
        """Return the logits [B, V] of token `count`, kept by a logits processor on its way to the sampler."""
        with TemporaryDirectory() as folder:
            paths = [Path(folder) / f"{row}.npy" for row in range(len(prompts))]
            forcing = [
                Forcing(tokens, count - 1, str(path)) for tokens, path in zip(forced, paths, strict=True)
            ]
            self._llm.generate(prompts, [self._parameters(count, each) for each in forcing], use_tqdm=False)
            missing = [path.stem for path in paths if not path.exists()]
            if missing:
                raise RuntimeError(f"cannot be verified: no logits came of sequences {', '.join(missing)}")
            return np.stack([np.load(path)[: self._vocab] for path in paths])

    def close(self) -> None:
        """End the vendor's processes."""
        self._llm.shutdown()

    def _parameters(self, count: int, forcing: Forcing | None = None) -> Any:
        # Neither temperature nor top_k nor top_p: greedy. No tokenizer is there to look an end token up.
        return self._sampling(
            max_tokens=count,
            end_id=-1,
            pad_id=0,
            ignore_eos=True,
            detokenize=False,
            add_special_tokens=False,
            logits_processor=forcing,
        )
