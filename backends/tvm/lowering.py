"""The model as one Relax module: a function for each prompt length and one for every decode step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tvm import relax

from backends.contract import POISON, Shapes
from backends.tvm.ops import RelaxOps, call_inplace, sizes, spoil_cache
from models.config import DecoderConfig
from models.decoder import forward
from models.layout import NUMPY_DTYPES, fused_layout

STATE = ("logits", "token", "position")
"""The first of the buffers that every function returns; keys and values of each layer follow."""


def lower_definition(
    config: DecoderConfig,
    shapes: Shapes,
    dtype: str,
    prefill: type[RelaxOps],
    decode: type[RelaxOps],
) -> Any:
    """Lower models/decoder.py; `prefill_T` and `decode` take weights, cos, sin, any tokens and the state."""
    builder = relax.BlockBuilder()
    for length in shapes.prompts:
        lower_step(builder, f"prefill_{length}", prefill, config, shapes, dtype, length)
    lower_step(builder, "decode", decode, config, shapes, dtype)
    add_poison(builder, config, shapes, dtype)
    return builder.finalize()


def lower_step(
    builder: Any,
    name: str,
    ops: type[RelaxOps],
    config: DecoderConfig,
    shapes: Shapes,
    dtype: str,
    length: int | None = None,
) -> None:
    """Add the function of a prefill of `length` tokens from position 0, or that of a decode step."""
    weights = [variable(each.name, each.shape, dtype) for each in fused_layout(config)]
    rope = [variable(each, (shapes.capacity, config.head_dim // 2), "float32") for each in ("cos", "sin")]
    tokens = [] if length is None else [variable("tokens", (shapes.batch, length), "int32")]
    state = describe_state(config, shapes, dtype)
    parameters = [*weights, *rope, *tokens, *state]
    with builder.function(name, parameters):
        with builder.dataflow():
            _, token, position = state[: len(STATE)]
            keys, values = halve(state[len(STATE) :])
            if length is None:
                start, tokens = position, [builder.emit(relax.op.expand_dims(token, [1]))]
            else:
                start = builder.emit(relax.op.zeros((1,), "int64"))
            made = ops(builder, config, keys, values, (rope[0], rope[1]), start)
            names = (each.name for each in fused_layout(config))
            step = forward(made, config, dict(zip(names, weights, strict=True)), tokens[0])
            finished = made.finish(step, length or 1, state[: len(STATE)])
            output = builder.emit_output(relax.Tuple([*finished, *made.keys, *made.values]))
        builder.emit_func_output(output)


def add_poison(builder: Any, config: DecoderConfig, shapes: Shapes, dtype: str) -> None:
    """Add `poison`, which takes a length int64 [1] and the cache, and writes that."""
    length = variable("length", (1,), "int64")
    cache = describe_state(config, shapes, dtype)[len(STATE) :]
    with builder.function("poison", [length, *cache]):
        with builder.dataflow():
            function = spoil_cache(sizes(cache[0]), dtype)
            row = relax.const(np.full(config.head_dim, POISON, NUMPY_DTYPES[dtype]), dtype)
            spoilt = [call_inplace(builder, function, [each, length, row], [0])[0] for each in cache]
            output = builder.emit_output(relax.Tuple(spoilt))
        builder.emit_func_output(output)


def describe_state(config: DecoderConfig, shapes: Shapes, dtype: str) -> list[Any]:
    """Make a parameter for each buffer of the state."""
    return [variable(*each) for each in state_layout(config, shapes, dtype)]


def state_layout(
    config: DecoderConfig, shapes: Shapes, dtype: str
) -> Iterator[tuple[str, tuple[int, ...], str]]:
    """List name, shape and dtype of logits, next token, position, then keys and values of each layer."""
    yield "logits", (shapes.batch, config.vocab_size), dtype
    yield "token", (shapes.batch,), "int32"
    yield "position", (1,), "int64"
    cached = (shapes.batch, config.kv_heads, shapes.capacity, config.head_dim)
    for name in ("keys", "values"):
        for layer in range(config.layers):
            yield f"{name}_{layer}", cached, dtype


def variable(name: str, shape: Sequence[int], dtype: str) -> Any:
    """Make a parameter."""
    return relax.Var(name.replace(".", "_"), relax.TensorType(shape, dtype))


def halve(cache: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Split the cache into keys and values."""
    return cache[: len(cache) // 2], cache[len(cache) // 2 :]
