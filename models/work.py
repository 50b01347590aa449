"""The least work a phase can do, in bytes of memory traffic and floating point operations.

A lower bound, so that a time below it means that somebody did not do the work: each weight crosses
the memory bus once a pass however large the batch, activations never do, and only products count.
"""

from dataclasses import dataclass
from math import prod

from models.config import DecoderConfig
from models.layout import NUMPY_DTYPES, fused_layout

DTYPE_BYTES: dict[str, int] = {name: dtype.itemsize for name, dtype in NUMPY_DTYPES.items()}
"""Bytes of one element of each stored dtype."""


@dataclass(frozen=True)
class Work:
    """Bytes to and from device memory, and floating point operations (a multiply-add is two)."""

    bytes: int
    flops: int


def prefill_work(config: DecoderConfig, dtype: str, batch: int, prompt: int) -> Work:
    """Count one prefill of `prompt` tokens for each of `batch` sequences, from an empty cache.

    Attention is causal: half of the square, and its diagonal. The head is counted for the last
    position of each sequence only. Keys and values are written once.
    """
    tokens = batch * prompt
    traffic = _weight_traffic(config, dtype, tokens) + cache_bytes(config, dtype, batch, prompt)
    pairs = prompt * (prompt + 1) // 2
    return Work(traffic, _product_flops(config, tokens, batch) + _attention_flops(config, batch * pairs))


def decode_work(config: DecoderConfig, dtype: str, batch: int, context: int, steps: int) -> Work:
    """Count `steps` decode steps after `context` cached positions, the cache growing by one a step.

    Step i reads context + i cached positions, writes one, and attends to context + i + 1.
    """
    cached = sum(range(context, context + steps))
    positions = cached + steps  # read and written: as many as attended to, the newest included
    traffic = steps * _weight_traffic(config, dtype, batch) + cache_bytes(config, dtype, batch, positions)
    products = steps * _product_flops(config, batch, batch)
    return Work(traffic, products + _attention_flops(config, batch * positions))


def weight_bytes(config: DecoderConfig, dtype: str) -> int:
    """Return the bytes that all stored weights take; a tied table counts once."""
    return sum(prod(tensor.shape) for tensor in fused_layout(config)) * DTYPE_BYTES[dtype]


def cache_bytes(config: DecoderConfig, dtype: str, batch: int, capacity: int) -> int:
    """Return the bytes of K and V of every layer for `capacity` positions of `batch` sequences."""
    return 2 * config.layers * batch * capacity * config.kv_heads * config.head_dim * DTYPE_BYTES[dtype]


def _weight_traffic(config: DecoderConfig, dtype: str, tokens: int) -> int:
    """Return the bytes of weights one pass reads: of an embedding that is no head, a row for each token."""
    total = weight_bytes(config, dtype)
    if config.tied_embeddings:
        return total
    rows_left = config.vocab_size - min(tokens, config.vocab_size)
    return total - rows_left * config.hidden_size * DTYPE_BYTES[dtype]


def _product_flops(config: DecoderConfig, tokens: int, last: int) -> int:
    """Return the operations of the matrix products: layers for all `tokens`, the head for `last` ones."""
    layers = sum(
        prod(tensor.shape)
        for tensor in fused_layout(config)
        if tensor.name.startswith("layers.") and len(tensor.shape) == 2
    )
    return 2 * tokens * layers + 2 * last * config.vocab_size * config.hidden_size


def _attention_flops(config: DecoderConfig, pairs: int) -> int:
    """Return the operations of scores and weighted values for `pairs` of a query and a key position."""
    return 4 * config.layers * config.heads * config.head_dim * pairs
