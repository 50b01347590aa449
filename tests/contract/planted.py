"""Engines with one fault each, made as real bugs are: none of this is shared with the mutants."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from backends.contract import Artefact, Shapes, Target
from backends.eager import lower_eager
from backends.torch_engine import State, Steps, TorchEngine, prefill_step, sliced_step
from backends.torch_ops import Cache, Prefill, SlicedDecode, fold_heads, rotate
from models.checkpoint import Weights
from models.decoder import forward

PAGE = 16


def masked_prefill(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attend with q [B, T, H, Dh], k and v [B, K, S, Dh] under a boolean mask [T, S]."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2).flatten(2)


class MaskOffPrefill(Prefill):
    """Draws the causal diagonal one off."""

    diagonal = 0

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        super().attend_cached(q, k, v, keys, values)
        mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril(self.diagonal)
        mask[0, 0] = True
        return masked_prefill(q, k.transpose(1, 2), v.transpose(1, 2), mask)


class DroppingPrefill(MaskOffPrefill):
    diagonal = -1


class PeekingPrefill(MaskOffPrefill):
    diagonal = 1


class LengthOffDecode(SlicedDecode):
    """Hands the attention a length that is one off."""

    excess = 0

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        super().attend_cached(q, k, v, keys, values)
        end = self.position + 1 + self.excess
        out = F.scaled_dot_product_attention(
            fold_heads(q, keys.shape[1]), keys[:, :, :end], values[:, :, :end]
        )
        return out.reshape(q.shape[0], 1, -1)


class DroppingDecode(LengthOffDecode):
    excess = -1


class PeekingDecode(LengthOffDecode):
    excess = 1


class EdgeDecode(LengthOffDecode):
    """Drops the newest key only where it starts a new page."""

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        self.excess = -1 if self.position % PAGE == 0 else 0
        return super().attend_cached(q, k, v, keys, values)


class UnwrittenPrefill(Prefill):
    """Attends rightly but does not write its last page, which decode then reads."""

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        page = slice((q.shape[1] - 1) // PAGE * PAGE, q.shape[1])
        before = keys[:, :, page].clone(), values[:, :, page].clone()
        out = super().attend_cached(q, k, v, keys, values)
        keys[:, :, page], values[:, :, page] = before
        return out


class StalePrefill(UnwrittenPrefill):
    """Attends through the cache, too."""

    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        super().attend_cached(q, k, v, keys, values)
        length = q.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
        return masked_prefill(q, keys[:, :, :length], values[:, :, :length], mask)


class TurnedPrefill(Prefill):
    """Rotates queries by the next position's angle."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, q_norm: Tensor | None, k_norm: Tensor | None
    ) -> Tensor:
        cos, sin = self.cos[1:2], self.sin[1:2]  # one position more, after the right turn
        return super().attend(rotate(q, cos, sin), k, v, layer, q_norm, k_norm)


class PermutedPrefill(Prefill):
    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        super().attend_cached(q, k, v, keys, values)
        mask = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril()
        order = next_heads(k.shape[2])
        return masked_prefill(q, k[:, :, order].transpose(1, 2), v[:, :, order].transpose(1, 2), mask)


class PermutedDecode(SlicedDecode):
    def attend_cached(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        super().attend_cached(q, k, v, keys, values)
        order, end = next_heads(keys.shape[1]), self.position + 1
        out = F.scaled_dot_product_attention(
            fold_heads(q, keys.shape[1]), keys[:, order, :end], values[:, order, :end]
        )
        return out.reshape(q.shape[0], 1, -1)


def next_heads(kv_heads: int) -> list[int]:
    return [*range(1, kv_heads), 0]


@dataclass(frozen=True)
class Fault:
    """How each phase goes wrong."""

    name: str
    """As the gate should name it."""
    prefill: Callable[[State, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[State], tuple[Tensor, Tensor]]
    on_reuse: bool = False
    """Whether only a prefill after another goes wrong, as when a page's old content is taken for good."""


def prefill_with(ops: type[Prefill]) -> Callable[[State, Tensor], tuple[Tensor, Tensor]]:
    def step(state: State, tokens: Tensor) -> tuple[Tensor, Tensor]:
        made = ops(state.config, state.cache, state.rope, tokens.shape[1])
        return forward(made, state.config, state.weights, tokens)

    return step


def decode_with(ops: type[SlicedDecode]) -> Callable[[State], tuple[Tensor, Tensor]]:
    def step(state: State) -> tuple[Tensor, Tensor]:
        made = ops(state.config, state.cache, state.rope, state.length)
        return forward(made, state.config, state.weights, state.token[:, None])

    return step


def without_middle(state: State) -> State:
    """Forget a layer: its weights, its cache, and that it ever was there."""
    gone = state.config.layers // 2
    kept = [layer for layer in range(state.config.layers) if layer != gone]
    weights = {name: value for name, value in state.weights.items() if not name.startswith("layers.")}
    for new, old in enumerate(kept):
        prefix = f"layers.{old}."
        names = [name for name in state.weights if name.startswith(prefix)]
        weights |= {f"layers.{new}.{name.removeprefix(prefix)}": state.weights[name] for name in names}
    cache = Cache([state.cache.keys[layer] for layer in kept], [state.cache.values[layer] for layer in kept])
    return replace(state, config=replace(state.config, layers=len(kept)), weights=weights, cache=cache)


def turned_decode(state: State) -> tuple[Tensor, Tensor]:
    """Rotate the new query and key by the next position's angle."""
    ops = SlicedDecode(state.config, state.cache, state.rope, state.length)
    ops.cos, ops.sin = (
        table[state.length + 1 : state.length + 2] for table in (state.rope.cos, state.rope.sin)
    )
    return forward(ops, state.config, state.weights, state.token[:, None])


FAULTS: tuple[Fault, ...] = (
    Fault("newest key dropped", prefill_with(DroppingPrefill), decode_with(DroppingDecode)),
    Fault("one key too many", prefill_with(PeekingPrefill), decode_with(PeekingDecode)),
    Fault("one page stale", prefill_with(StalePrefill), sliced_step, on_reuse=True),
    Fault("rope off by one", prefill_with(TurnedPrefill), turned_decode),
    Fault("KV heads permuted", prefill_with(PermutedPrefill), decode_with(PermutedDecode)),
    Fault(
        "one layer skipped",
        lambda state, tokens: prefill_step(without_middle(state), tokens),
        lambda state: sliced_step(without_middle(state)),
    ),
)
EDGE = Fault("newest key dropped", prefill_step, decode_with(EdgeDecode))
REUSED = Fault("one page stale", prefill_with(UnwrittenPrefill), sliced_step, on_reuse=True)
UNWRITTEN = Fault("one key too many or a page never written", prefill_with(UnwrittenPrefill), sliced_step)


class Planted(TorchEngine):
    """The eager engine with one fault, in its prefill or in its decode."""

    def __init__(
        self,
        weights: Weights,
        shapes: Shapes,
        fault: Fault,
        phases: tuple[str, ...],
        device: str = "cpu",
    ) -> None:
        self.loses_page = fault.name == "one page stale" and "decode" in phases
        self.used = False
        """Whether there was a prefill since the cache was cleared."""
        decode = fault.decode if "decode" in phases else sliced_step

        def lower(state: State) -> Steps:
            def run_prefill(tokens: Tensor) -> None:
                faulty = "prefill" in phases and (self.used or not fault.on_reuse)
                state.logits, state.token = (fault.prefill if faulty else prefill_step)(state, tokens)

            def run_decode() -> None:
                state.logits, state.token = decode(state)

            return Steps(run_prefill, run_decode)

        super().__init__(artefact_of(weights, shapes, device), weights, lower)
        self.before: list[Tensor] = []

    @property
    def cached(self) -> list[Tensor]:
        return [*self.state.cache.keys, *self.state.cache.values]

    def prefill(self) -> None:
        self.before = [tensor.clone() for tensor in self.cached]
        super().prefill()
        self.used = True

    def poison(self, length: int) -> None:
        super().poison(length)
        self.used = self.used and length > 0

    def rewind(self, length: int) -> None:
        """Lose the newest page: its table entry leads to what was there before the last prefill."""
        super().rewind(length)
        if self.loses_page:
            page = slice((length - 1) // PAGE * PAGE, length)
            for tensor, before in zip(self.cached, self.before, strict=True):
                with torch.inference_mode():
                    tensor[:, :, page] = before[:, :, page]


class RowFault(TorchEngine):
    """The eager engine that feeds one row the token of the row before: a batch index gone wrong."""

    def __init__(self, weights: Weights, shapes: Shapes, row: int) -> None:
        super().__init__(artefact_of(weights, shapes), weights, lower_eager)
        self.row = row

    def feed(self, tokens: np.ndarray) -> None:
        wrong = tokens.copy()
        wrong[self.row] = wrong[self.row - 1]
        super().feed(wrong)


class TileFault(TorchEngine):
    """The eager engine that gives the rows of the second half of a batch what it computed for the first."""

    def logits(self) -> np.ndarray:
        logits = super().logits()
        half = len(logits) // 2
        return np.concatenate((logits[:half], logits[:half]))


class ChainFault(TorchEngine):
    """The eager engine that does nothing any more some steps after a rewind or a prefill."""

    def __init__(self, weights: Weights, shapes: Shapes, steps: int) -> None:
        super().__init__(artefact_of(weights, shapes), weights, lower_eager)
        self.most, self.left = steps, steps

    def prefill(self) -> None:
        super().prefill()
        self.left = self.most

    def rewind(self, length: int) -> None:
        super().rewind(length)
        self.left = self.most

    def decode(self) -> None:
        if self.left > 0:
            super().decode()
        self.left -= 1


def artefact_of(weights: Weights, shapes: Shapes, device: str = "cpu") -> Artefact:
    target = Target(device, weights.dtype, "x86_64")
    return Artefact(weights.config, shapes, target, {}, "common", "stock")
