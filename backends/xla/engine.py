"""The engine behind `xla`: compiled programs that take a state and return the next in the same buffers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import SingleDeviceSharding
from jax.stages import Compiled

from backends.contract import POISON, Artefact, Shapes, Target, ordinal
from backends.jax_ops import JaxOps, Layout, Rope, State, decode_step, prefill_step
from backends.xla.cards import describe_card
from models.checkpoint import Weights
from models.config import DecoderConfig
from models.layout import fused_layout

Tensors = Mapping[str, Array]
Cache = tuple[list[Array], list[Array]]
"""Keys and values of every layer."""


@dataclass(frozen=True)
class Interface:
    """What programs are given besides weights and tokens."""

    layout: Layout
    """Of the cache."""
    tabulate: Callable[[], Any]
    """Makes the tables of rope angles."""


@dataclass(frozen=True)
class Lowering:
    """The model as two functions that jax can trace."""

    interface: Interface
    prefill: Callable[[Tensors, Any, Array, State], State]
    """Takes weights, angles, tokens [B, T] and the state."""
    decode: Callable[[Tensors, Any, State], State]
    prefill_flags: Mapping[str, bool] = field(default_factory=dict)
    """XLA's, by name, for the programs of a prefill alone."""


@dataclass(frozen=True)
class Programs:
    """What XLA made of a lowering, each bound to its shapes and its device."""

    interface: Interface
    prefill: Mapping[int, Compiled]
    """By prompt length; what they take and return is as `Lowering` has it."""
    decode: Compiled
    poison: Compiled
    """Takes a length [] and the cache; returns the cache."""


def find_device(target: Target) -> jax.Device:
    """Return jax's device for `cpu` or `cuda:N`, or a description of one that is not here."""
    if target.card is not None:
        return describe_card(target.card)
    return jax.devices("cuda" if target.on_gpu else "cpu")[ordinal(target.device)]


def trace_definition(
    config: DecoderConfig,
    shapes: Shapes,
    prefill: type[JaxOps],
    decode: type[JaxOps],
    prefill_flags: Mapping[str, bool],
) -> Lowering:
    """Lower models/decoder.py with these operations."""
    return Lowering(
        Interface(decode.layout, partial(Rope.tabulate, config, shapes.capacity)),
        partial(prefill_step, prefill, config),
        partial(decode_step, decode, config),
        prefill_flags,
    )


def keep_compiled() -> None:
    """Keep every program in the folder JAX_COMPILATION_CACHE_DIR, however small or quickly made."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_programs(
    config: DecoderConfig,
    shapes: Shapes,
    target: Target,
    lowering: Lowering,
    options: Mapping[str, str] | None = None,
) -> Programs:
    """Compile a program for each prompt length and one for every decode step, the whole state donated.

    `options` are XLA's, by the names of its flags.
    """
    keep_compiled()
    batch, capacity, dtype = shapes.batch, shapes.capacity, target.dtype
    interface = lowering.interface
    flags = dict(options or {})
    compile_here = partial(compile_ahead, find_device(target), flags)
    compile_prefill = partial(compile_ahead, find_device(target), {**flags, **lowering.prefill_flags})
    weights = {each.name: jax.ShapeDtypeStruct(each.shape, dtype) for each in fused_layout(config)}
    # A GPU would round float32 operands to TF32.
    precision = "highest" if dtype == "float32" else "default"
    with jax.default_matmul_precision(precision):
        angles = jax.eval_shape(interface.tabulate)
        state = jax.eval_shape(lambda: State.zeros(config, batch, capacity, dtype, interface.layout))
        prefills = {
            length: compile_prefill(
                lowering.prefill, weights, angles, jax.ShapeDtypeStruct((batch, length), jnp.int32), state
            )
            for length in shapes.prompts
        }
        decode = compile_here(lowering.decode, weights, angles, state)
        poison = compile_here(
            partial(overwrite, interface.layout), state.position, (state.keys, state.values)
        )
    return Programs(interface, prefills, decode, poison)


def compile_ahead(
    device: jax.Device, flags: Mapping[str, str | bool], step: Callable[..., Any], *arguments: Any
) -> Compiled:
    """Compile a step for arguments of these shapes on a device; the last one is donated, whole.

    What a step overwrites unread, the last logits for one, would else be dropped and written elsewhere each
    time: a GPU's command buffer would then be updated before every step.
    """
    placed = jax.tree.map(partial(put_shape, SingleDeviceSharding(device)), arguments)
    lowered = jax.jit(step, donate_argnums=len(arguments) - 1, keep_unused=True).lower(*placed)
    return lowered.compile(compiler_options=dict(flags) or None)


def put_shape(sharding: SingleDeviceSharding, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Say where an argument of this shape will lie."""
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def overwrite(layout: Layout, length: Array, cache: Cache) -> Cache:
    """Return keys and values with `POISON` at positions >= length."""

    def spoilt(cached: Array, axes: str) -> Array:
        beyond = lax.broadcasted_iota(jnp.int32, cached.shape, axes.index("c")) >= length
        return jnp.where(beyond, jnp.asarray(POISON, cached.dtype), cached)

    keys, values = cache
    return [spoilt(each, layout.keys) for each in keys], [spoilt(each, layout.values) for each in values]


class XlaEngine:
    """One model whose state goes from program to program without a copy."""

    def __init__(self, artefact: Artefact, weights: Weights) -> None:
        config, shapes, target = artefact.config, artefact.shapes, artefact.target
        self.programs: Programs = artefact.payload
        self.device = find_device(target)
        self.weights = weights.once(f"jax:{self.device}", lambda: place(weights, self.device))
        with jax.default_device(self.device):
            self.angles = self.programs.interface.tabulate()
            self.state = State.zeros(
                config, shapes.batch, shapes.capacity, target.dtype, self.programs.interface.layout
            )
        self.stage(np.zeros((shapes.batch, shapes.prompts[0]), np.int32))

    def put(self, values: np.ndarray | np.int32) -> Array:
        """Copy int32 values to the device: jax may share an array's memory, which the caller may change."""
        placed: Array = jax.device_put(np.array(values, np.int32), self.device)
        return placed

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] to the device."""
        self.tokens = self.put(tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        program = self.programs.prefill[self.tokens.shape[1]]
        self.state = program(self.weights, self.angles, self.tokens, self.state)

    def decode(self) -> None:
        """Run one step from the device's next token."""
        self.state = self.programs.decode(self.weights, self.angles, self.state)

    def rewind(self, length: int) -> None:
        """Set the length; what is cached stays where it is."""
        self.state = self.state._replace(position=self.put(np.int32(length)))

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the next token with tokens [B]."""
        self.state = self.state._replace(token=self.put(tokens))

    def poison(self, length: int) -> None:
        """Overwrite the cache at positions >= length."""
        cache = self.state.keys, self.state.values
        keys, values = self.programs.poison(self.put(np.int32(length)), cache)
        self.state = self.state._replace(keys=keys, values=values)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host."""
        return np.array(self.state.logits, np.float32)

    def sync(self) -> None:
        """Return when the device is idle: a program's results are ready together."""
        jax.block_until_ready((self.state, self.tokens))

    def stream(self) -> int | None:
        """Return None: jax tells nobody its stream."""
        return None

    def close(self) -> None:
        """Free the cache and the buffers; the weights stay with their `Weights`."""
        self.sync()
        for buffer in jax.tree.leaves((self.state, self.angles, self.tokens)):
            buffer.delete()
        del self.state, self.angles, self.tokens


def place(weights: Weights, device: jax.Device) -> dict[str, Array]:
    """Copy every fused tensor to the device once."""
    return {name: jax.device_put(array, device) for name, array in weights.arrays()}
