"""The definition by way of torch.export and torchax: what XLA gives a PyTorch user for free."""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

import jax.numpy as jnp
from jax import Array

from backends.contract import Shapes, Unsupported
from backends.jax_ops import Layout, State
from backends.xla.engine import Interface, Lowering, Tensors
from models.config import DecoderConfig
from models.layout import fused_layout
from models.rope import whole_head_tables

LAYOUT = Layout("bkcd", "bkcd")
"""As `torch_program` has the cache."""
Angles = list[Array]
"""Cos and sin, float32 [C, 1, Dh] each: as `torch_ops.Rope` has them."""


def trace_import(config: DecoderConfig, shapes: Shapes, dtype: str) -> Lowering:
    """Import a program for each prompt length and one for decode; raises Unsupported."""
    to_jax = find_importer()
    from backends.torch_program import export_decode, export_prefill

    prefills = {n: to_jax(export_prefill(config, shapes, dtype, n)) for n in shapes.prompts}
    decode_program = to_jax(export_decode(config, shapes, dtype))

    def in_order(weights: Tensors) -> dict[str, Array]:  # jax sorts a dictionary's keys, torch does not
        return {each.name: weights[each.name] for each in fused_layout(config)}

    def prefill(weights: Tensors, angles: Angles, tokens: Array, state: State) -> State:
        run = prefills[tokens.shape[1]]
        return read_state(run(in_order(weights), angles, tokens, state.keys, state.values), config.layers)

    def decode(weights: Tensors, angles: Angles, state: State) -> State:
        _, token, position, keys, values = state
        results = decode_program(in_order(weights), angles, token, position[None], keys, values)
        return read_state(results, config.layers)

    return Lowering(describe_import(config, shapes), prefill, decode)


def describe_import(config: DecoderConfig, shapes: Shapes) -> Interface:
    """Describe programs that take what those of `torch_program` do."""
    return Interface(LAYOUT, partial(tabulate, config, shapes.capacity))


def find_importer() -> Callable[[Any], Callable[..., Sequence[Array]]]:
    """Return what turns an exported program into a function of jax arrays; raises Unsupported."""
    try:
        import torchax
        from torchax.export import exported_program_to_jax

        torchax.default_env()  # registers its operators
    except ModuleNotFoundError as error:
        raise Unsupported(f"import=torch needs {error.name}: pip install torch torchax") from error
    except Exception as error:  # it follows neither torch's nor jax's newest release
        versions = ", ".join(f"{name} {version(name)}" for name in ("torchax", "torch", "jax"))
        raise Unsupported(f"torchax cannot be imported: {error} ({versions})") from error

    def to_jax(program: Any) -> Callable[..., Sequence[Array]]:
        _, states, run = exported_program_to_jax(program, export_raw=True)
        return lambda *inputs: run(states, inputs)

    return to_jax


def tabulate(config: DecoderConfig, capacity: int) -> Angles:
    """Place the model's tables on jax's device."""
    return [jnp.asarray(table) for table in whole_head_tables(config, capacity)]


def read_state(results: Sequence[Array], layers: int) -> State:
    """Sort the program's flat results, which are those of `torch_program.Step`."""
    logits, token, position, *cache = results
    return State(
        logits,
        token.astype(jnp.int32),
        position.astype(jnp.int32).reshape(()),
        list(cache[:layers]),
        list(cache[layers:]),
    )
