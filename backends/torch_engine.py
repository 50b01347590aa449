"""The engine that the PyTorch backends share; how a prefill and a decode step run is the backend's own."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.contract import Artefact
from backends.torch_ops import Cache, Prefill, Rope, SlicedDecode, TorchOps
from models.checkpoint import Weights
from models.config import DecoderConfig
from models.decoder import forward


@dataclass
class State:
    """What a step reads and writes on the device: weights, cache, and a few small buffers."""

    config: DecoderConfig
    weights: dict[str, Tensor]
    cache: Cache
    rope: Rope
    token: Tensor
    """Next token of each sequence, int32 [B]."""
    logits: Tensor
    """The last step's, [B, V] in the stored dtype."""
    position: Tensor
    """Where the next decode writes, int64 [1]: `length`, for a program that cannot ask the host."""
    length: int = 0
    """Positions filled, as the host counts them."""

    def seek(self, length: int) -> None:
        """Set the length, on the host and on the device."""
        self.length = length
        self.position.fill_(length)

    def tensors(self) -> list[Tensor]:
        """List everything on the device."""
        buffers = [self.token, self.logits, self.position, self.rope.cos, self.rope.sin]
        return [*self.weights.values(), *self.cache.keys, *self.cache.values, *buffers]


MakeOps = Callable[..., TorchOps]
"""Makes the operations of one step from configuration, cache, rope, and its length or position."""


def prefill_step(state: State, tokens: Tensor, attention: MakeOps = Prefill) -> tuple[Tensor, Tensor]:
    """Run tokens [B, T] from position 0; returns logits [B, V] and next token [B]."""
    ops = attention(state.config, state.cache, state.rope, tokens.shape[1])
    return forward(ops, state.config, state.weights, tokens)


def sliced_step(state: State) -> tuple[Tensor, Tensor]:
    """Run one token at the host's length; returns logits [B, V] and next token [B]."""
    ops = SlicedDecode(state.config, state.cache, state.rope, state.length)
    return forward(ops, state.config, state.weights, state.token[:, None])


def device_step(state: State, attention: MakeOps) -> tuple[Tensor, Tensor]:
    """Run one token at the device's position; returns logits [B, V] and next token [B]."""
    ops = attention(state.config, state.cache, state.rope, state.position)
    return forward(ops, state.config, state.weights, state.token[:, None])


def static_prefill(state: State, tokens: Tensor, attention: MakeOps = Prefill) -> None:
    """Prefill into the state's own buffers, where a program bound to their addresses goes on."""
    logits, token = prefill_step(state, tokens, attention)
    state.logits.copy_(logits)
    state.token.copy_(token)
    state.position.fill_(tokens.shape[1])


def static_decode(state: State, attention: MakeOps) -> None:
    """Decode into the state's own buffers and advance the position: one program, replayed for every step."""
    logits, token = device_step(state, attention)
    state.logits.copy_(logits)
    state.token.copy_(token)
    state.position.add_(1)


class Replay:
    """A step on a state's own buffers, captured as one CUDA graph when it first runs, replayed ever after."""

    WARM_UPS = 3
    """Runs outside the capture, in which programs are compiled and cuBLAS picks kernels and allocates."""

    def __init__(self, state: State, step: Callable[[], None], pool: Any) -> None:
        self._state = state
        self._step = step
        self._pool = pool
        """Shared by an engine's graphs: one runs at a time and leaves nothing there."""
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Run the step."""
        if self._graph is None:
            self._graph = self._capture()
        self._graph.replay()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Capture the step; token and position are afterwards what they were."""
        state = self._state
        token, position = state.token.clone(), state.position.clone()
        side: torch.cuda.Stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(self.WARM_UPS):
                self._step()
                state.token.copy_(token)
                state.position.copy_(position)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._step()
        return graph


class PromptReplay:
    """A prefill, captured and replayed for each prompt length apart: the buffer of each keeps its address."""

    def __init__(self, state: State, prefill: Callable[[Tensor], None], pool: Any) -> None:
        self._state = state
        self._prefill = prefill
        self._pool = pool
        self._replays: dict[int, Replay] = {}

    def __call__(self, tokens: Tensor) -> None:
        """Run the prefill of the tokens [B, T]."""
        length = tokens.shape[1]
        if length not in self._replays:
            self._replays[length] = Replay(self._state, partial(self._prefill, tokens), self._pool)
        self._replays[length]()


@dataclass(frozen=True)
class Steps:
    """How one backend runs the model on a state: both leave logits and next token there."""

    prefill: Callable[[Tensor], None]
    """Takes the staged tokens [B, T]."""
    decode: Callable[[], None]
    """Takes the state's token, at its length or position, whichever this backend reads."""


class TorchEngine:
    """One model with a static cache on a device of torch."""

    def __init__(
        self,
        artefact: Artefact,
        weights: Weights,
        lower: Callable[[State], Steps],
        layout: type[Cache] = Cache,
    ) -> None:
        config, shapes = artefact.config, artefact.shapes
        self.device = torch.device(artefact.target.device)
        dtype: torch.dtype = getattr(torch, artefact.target.dtype)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a graph is replayed on the current device's stream
        with torch.inference_mode():
            self.state = State(
                config=config,
                weights=place(weights, self.device),
                cache=layout.allocate(config, shapes.batch, shapes.capacity, dtype, self.device),
                rope=Rope.tabulate(config, shapes.capacity, self.device),
                token=torch.zeros(shapes.batch, dtype=torch.int32, device=self.device),
                logits=torch.zeros(shapes.batch, config.vocab_size, dtype=dtype, device=self.device),
                position=torch.zeros(1, dtype=torch.int64, device=self.device),
            )
            self.staged = {
                length: torch.zeros(shapes.batch, length, dtype=torch.int32, device=self.device)
                for length in shapes.prompts
            }
            self.tokens = self.staged[shapes.prompts[0]]
            self.steps = lower(self.state)

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] to the buffer of that prompt length."""
        self.tokens = self.staged[tokens.shape[1]]
        copy_in(self.tokens, tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        with torch.inference_mode():
            self.steps.prefill(self.tokens)
        self.state.length = self.tokens.shape[1]

    def decode(self) -> None:
        """Run one step from the device's next token."""
        with torch.inference_mode():
            self.steps.decode()
        self.state.length += 1

    def rewind(self, length: int) -> None:
        """Set the length; what is cached stays where it is."""
        with torch.inference_mode():
            self.state.seek(length)

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the next token with tokens [B]."""
        copy_in(self.state.token, tokens)

    def poison(self, length: int) -> None:
        """Overwrite the cache at positions >= length."""
        with torch.inference_mode():
            self.state.cache.poison(length)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host.

        They are converted where they are: the host's threads would do it in a moment, and then spin beside
        whoever launches the next step, which made a step of the checks on a GPU take 8 ms instead of 1.4.
        """
        host: np.ndarray = self.state.logits.to(torch.float32, copy=True).cpu().numpy()
        return host

    def sync(self) -> None:
        """Return when the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def stream(self) -> int | None:
        """Return torch's current stream, on which kernels are launched and graphs replayed."""
        if self.device.type != "cuda":
            return None
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def close(self) -> None:
        """Free the cache, the buffers and whatever the steps hold; the weights stay with their `Weights`."""
        self.sync()
        del self.steps, self.state, self.staged, self.tokens
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def copy_in(buffer: Tensor, tokens: np.ndarray) -> None:
    """Copy tokens to the device; torch takes no read-only array, hence the copy on the host."""
    with torch.inference_mode():
        buffer.copy_(torch.from_numpy(np.array(tokens, dtype=np.int32)))


def place(weights: Weights, device: torch.device) -> dict[str, Tensor]:
    """Copy every fused tensor to the device, aligned as torch's own allocations are, once for all engines."""
    return weights.once(
        _placed(device),
        lambda: {name: to_torch(array).to(device, copy=True) for name, array in weights.arrays()},
    )


@torch.inference_mode()
def draw(config: DecoderConfig, dtype: str, device: torch.device) -> Weights:
    """Make weights of a model's form on the device alone, for programs that are compiled and answer nobody.

    They are random, since kernels are chosen by timing: with zeros a GPU takes less power and clocks higher.
    """
    weights, stored = Weights(config, dtype, Path(), {}), getattr(torch, dtype)

    def tensor(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=stored, device=device).mul_(shape[-1] ** -0.5)

    weights.once(_placed(device), lambda: {each.name: tensor(each.shape) for each in weights.layout})
    return weights


def _placed(device: torch.device) -> str:
    return f"torch:{device}"


def to_torch(array: np.ndarray) -> Tensor:
    """Share an array's memory; numpy's bfloat16 is a stranger to torch and passes as its bits."""
    if array.dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
