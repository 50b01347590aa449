"""One sweep over the weights that computes golden, every mutant and torch's own error together; needs torch.

A *stream* is a run of positions of the gate's tokens: from 0 (golden, prefills) or the forced steps behind
golden's keys and values (decodes). Streams lie side by side in a *pack*, so that norms and products run once
for all of them. Packs go through a layer one after the other and weights are widened one layer at a time, so
memory holds a layer, one pack's temporaries and every pack's hidden states.

R rows, T positions, D hidden size, H query heads, K key/value heads, Dh head size, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from backends.contract import POISON, Shapes
from backends.torch_engine import to_torch
from models.checkpoint import Weights
from models.errors import UserError
from workbench.arithmetic import Model, attend, attend_plainly
from workbench.checks import DISTINCT_ROWS, FORCED_STEPS, gate_tokens
from workbench.golden import Golden, Progress
from workbench.mutants import NO_FAULT, Mutant, skipped_layer, stale_page

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ALL_COLUMNS = 8192
"""Vocabularies up to here keep mutants at every column."""
SOME_COLUMNS = 4096
"""Columns that larger vocabularies keep: the projection needs inner products only."""
PREFILL_TOKENS = 4096
"""Tokens of one faulty prefill: of a longer prompt fewer rows are computed, as all six cost six goldens."""
CHUNK_POSITIONS = 64
"""Positions whose logits are computed at a time."""
FLOAT32_FLOOR = 2.0**-18
"""Least error, relative to the logits, that float32 rows are measured by: golden rounds in float32 itself,
and a plain loop over products rounds several times more than torch's blocked one. TF32 is far beyond it."""


@dataclass(frozen=True)
class Stream:
    """Tokens [R, T] at positions start to start + T, computed with one fault behind right positions."""

    mutant: Mutant
    tokens: Tensor
    start: int = 0

    @property
    def positions(self) -> range:
        """Name the positions."""
        return range(self.start, self.start + self.tokens.shape[1])


class Pack:
    """Streams side by side: hidden states [R, T, D], and the positions rope turns queries and keys to."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        self.tokens = torch.cat([stream.tokens for stream in streams], dim=1)
        ends = np.cumsum([len(stream.positions) for stream in streams]).tolist()
        self.spans = [slice(end - len(each.positions), end) for each, end in zip(streams, ends, strict=True)]
        queries = [np.asarray(each.positions) + each.mutant.query_turn for each in streams]
        keys = [
            np.asarray(each.positions) + (each.mutant.decode_key_turn if each.start else 0)
            for each in streams
        ]
        device = self.tokens.device
        self.query_positions = torch.from_numpy(np.concatenate(queries)).to(device)
        self.key_positions = torch.from_numpy(np.concatenate(keys)).to(device)
        self.hidden = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[Stream, slice]]:
        return zip(self.streams, self.spans, strict=True)


@dataclass(frozen=True)
class Cached:
    """One layer's right keys and values [R, T, K, Dh] of the tokens and of the decoy."""

    keys: Tensor
    values: Tensor
    decoy_keys: Tensor
    decoy_values: Tensor


def attend_stream(stream: Stream, q: Tensor, k: Tensor, v: Tensor, cached: Cached) -> Tensor:
    """Attend with one stream's fault; returns [R, T, H * Dh]."""
    fault, start, rows = stream.mutant, stream.start, len(q)
    keys = torch.cat((cached.keys[:rows, :start], k), dim=1)
    values = torch.cat((cached.values[:rows, :start], v), dim=1)
    if fault.stale_page:
        stale = stale_page(start or len(stream.positions))
        page = slice(stale.start, stale.stop)
        keys[:, page], values[:, page] = cached.decoy_keys[:rows, page], cached.decoy_values[:rows, page]
    if fault.head_shift:
        keys, values = keys.roll(-fault.head_shift, 2), values.roll(-fault.head_shift, 2)
    last_key = fault.last_key
    if start and last_key > 0:  # what follows a step's own key is not there yet: poison, whatever the step
        poison = torch.full_like(keys[:, :last_key], POISON)
        keys, values = torch.cat((poison, keys), dim=1), torch.cat((poison, values), dim=1)
    return attend(q, keys, values, [max(position + last_key, 0) + 1 for position in stream.positions])


@dataclass(frozen=True)
class Ends:
    """What follows the layers, as stored: the last norm's weight [D] and the head [V, D]."""

    norm: Tensor
    head: Tensor


class Sweep:
    """Every pack on its way through the layers."""

    def __init__(self, model: Model, tokens: Tensor, decoy: Tensor, faulty: list[Pack]) -> None:
        self.model = model
        self.golden = Pack([Stream(NO_FAULT, tokens), Stream(NO_FAULT, decoy)])
        self.faulty = faulty
        self.reference = Pack([Stream(NO_FAULT, tokens)])
        """The tokens in the stored dtype."""

    def embed(self, table: Tensor) -> None:
        """Look up every pack's tokens in the stored table [V, D]."""
        for pack in (self.golden, *self.faulty):
            pack.hidden = F.embedding(pack.tokens, table).float()
        self.reference.hidden = F.embedding(self.reference.tokens, table)

    def run_layer(self, layer: int, stored: dict[str, Tensor]) -> None:
        """Take every pack through a layer, in place."""
        model, pack = self.model, self.reference
        q, k, v = model.project(pack.hidden, stored, pack.query_positions, pack.key_positions)
        model.finish(pack.hidden, attend_plainly(q, k, v), stored)
        weights = {name: tensor.float() for name, tensor in stored.items()}
        cached: Cached | None = None
        for pack in (self.golden, *self.faulty):  # golden first: the others read its keys and values
            q, k, v = model.project(pack.hidden, weights, pack.query_positions, pack.key_positions)
            if cached is None:
                true, decoy = pack.spans
                cached = Cached(k[:, true], v[:, true], k[:, decoy], v[:, decoy])
            parts = [attend_stream(each, q[:, at], k[:, at], v[:, at], cached) for each, at in pack]
            skipping = layer == skipped_layer(model.config.layers)
            skipped = [at for each, at in pack if skipping and each.mutant.skips_layer]
            before = [pack.hidden[:, at].clone() for at in skipped]
            model.finish(pack.hidden, torch.cat(parts, dim=1), weights)
            for at, hidden in zip(skipped, before, strict=True):
                pack.hidden[:, at] = hidden

    def shifts(self, golden: Floats, positions: Ints, columns: Ints, ends: Ends) -> list[Floats]:
        """Compute each faulty pack's logits [R, T, C] less golden's, at the positions that are checked.

        Rows that were not computed are 0.
        """
        narrow = Ends(ends.norm, ends.head[torch.from_numpy(columns).to(ends.head.device)])
        shifts = []
        for pack in self.faulty:
            first = 0 if pack.streams[0].start else -1  # of a prefill the last position alone is checked
            at = np.concatenate([np.asarray(stream.positions)[first:] for stream in pack.streams])
            true = golden[:, np.searchsorted(positions, at)][..., columns]
            shift, rows = np.zeros_like(true), len(pack.hidden)
            shift[:rows] = compute_logits(self.model, pack.hidden[:, first:], narrow) - true[:rows]
            shifts.append(shift)
        return shifts


def compute_logits(model: Model, hidden: Tensor, ends: Ends) -> Floats:
    """Norm hidden states [R, N, D] and multiply by the head; returns float32 [R, N, V] on the host."""
    norm, head = ends.norm.to(hidden.dtype), ends.head.to(hidden.dtype)
    parts = []
    for first in range(0, hidden.shape[1], CHUNK_POSITIONS):
        x = model.norm(hidden[:, first : first + CHUNK_POSITIONS], norm)
        parts.append(F.linear(x, head).float().cpu().numpy())
    return np.concatenate(parts, axis=1)


def scopes(weights: Weights, device: torch.device) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (`embed`, `layers.0`, ..., `norm`, `head`; its tensors by their short names)."""

    def scope(item: tuple[str, Array]) -> str:
        return ".".join(item[0].split(".")[: 2 if item[0].startswith("layers.") else 1])

    for name, items in groupby(weights.arrays(), scope):
        yield name, {key.removeprefix(f"{name}."): to_torch(array).to(device) for key, array in items}


def run_through(sweep: Sweep, weights: Weights, device: torch.device, progress: Progress | None) -> Ends:
    """Take the sweep through all layers; returns what follows them."""
    config = weights.config
    kept: dict[str, Tensor] = {}
    for name, tensors in scopes(weights, device):
        if name.startswith("layers."):
            layer = int(name.removeprefix("layers."))
            sweep.run_layer(layer, tensors)
            if progress:
                progress(layer + 1, config.layers)
            continue
        if name == "embed":
            sweep.embed(tensors["weight"])
        if name != "embed" or config.tied_embeddings:
            kept[name] = tensors["weight"]
    return Ends(kept["norm"], kept["embed" if config.tied_embeddings else "head"])


def plan_faulty(
    tokens: Tensor, prompts: tuple[int, ...], lengths: tuple[int, ...], mutants: tuple[Mutant, ...]
) -> list[Pack]:
    """Put all decodes in one pack, by mutant and length; each prefill, by mutant and prompt, in its own."""
    decodes = [Stream(each, tokens[:, at : at + FORCED_STEPS], at) for each in mutants for at in lengths]
    rows = {prompt: max(1, PREFILL_TOKENS // prompt) for prompt in prompts}
    prefills = [Pack([Stream(each, tokens[: rows[at], :at])]) for each in mutants for at in prompts]
    return [*([Pack(decodes)] if decodes else []), *prefills]


def checked_positions(prompts: tuple[int, ...], lengths: tuple[int, ...]) -> Ints:
    """List every position whose logits are checked, ascending."""
    forced = {at + step for at in lengths for step in range(FORCED_STEPS)}
    return np.asarray(sorted(forced | {prompt - 1 for prompt in prompts}))


def kept_columns(vocab: int) -> Ints:
    """Choose the columns of the vocabulary that mutants are kept at: all, or some from first to last."""
    if vocab <= ALL_COLUMNS:
        return np.arange(vocab)
    return np.linspace(0, vocab - 1, SOME_COLUMNS).round().astype(np.int64)


def read_out(sweep: Sweep, positions: Ints, columns: Ints, ends: Ends) -> tuple[Floats, Floats, list[Floats]]:
    """Return golden logits [R, N, V], the root mean square [R, N] of torch's error, and mutants' shifts."""
    at = torch.from_numpy(positions).to(sweep.golden.hidden.device)
    golden = compute_logits(sweep.model, sweep.golden.hidden[:, at], ends)
    reference = sweep.reference.hidden[:, at]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflowed is dealt with below
        error = _rms(compute_logits(sweep.model, reference, ends) - golden)
    error = bounded(error, golden, reference.dtype)
    if reference.dtype == torch.float32:
        error = np.maximum(error, FLOAT32_FLOOR * _rms(golden))
    return golden, error, sweep.shifts(golden, positions, columns, ends)


def bounded(error: Floats, golden: Floats, dtype: torch.dtype) -> Floats:
    """Replace errors [R, N] of torch that are not finite by one rounding of golden logits [R, N, V].

    Where torch itself overflows in the dtype, nothing says what a right engine's error would be, and an
    infinite one would bound nothing. One rounding is the least that any engine in the dtype errs by: one
    that avoids the overflow is judged too strictly rather than not at all. Raises UserError if golden
    overflows too.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        size = _rms(golden)
    if not np.isfinite(size).all():
        raise UserError("the model's logits are no numbers even in float32: its weights are damaged")
    least = (torch.finfo(dtype).eps * size).astype(np.float32)
    return np.where(np.isfinite(error), error, least)


def _rms(logits: Floats) -> Floats:
    squares: Floats = np.square(logits).mean(-1)
    return np.sqrt(squares)


@torch.inference_mode()
def compute(
    weights: Weights,
    shapes: Shapes,
    device: torch.device,
    seed: int,
    lengths: tuple[int, ...],
    mutants: tuple[Mutant, ...],
    progress: Progress | None,
) -> Golden:
    """Compute what `golden.compute_golden` returns."""
    config, prompts = weights.config, shapes.prompts
    torch.backends.cuda.matmul.allow_tf32 = False
    filled, rows = max(prompts), min(shapes.batch, DISTINCT_ROWS)
    tokens = gate_tokens(config.vocab_size, rows, filled + FORCED_STEPS, seed)
    decoy = gate_tokens(config.vocab_size, rows, filled, seed + 1)
    placed = torch.from_numpy(tokens).to(device)
    # One position more than there are tokens: rope off by one turns the last that far.
    model = Model(config, filled + FORCED_STEPS + 1, device)
    faulty = plan_faulty(placed, prompts, lengths, mutants)
    sweep = Sweep(model, placed, torch.from_numpy(decoy).to(device), faulty)
    ends = run_through(sweep, weights, device, progress)

    positions, columns = checked_positions(prompts, lengths), kept_columns(config.vocab_size)
    logits, error, shifts = read_out(sweep, positions, columns, ends)
    decodes = shifts.pop(0) if lengths and mutants else np.empty((rows, 0, len(columns)), np.float32)
    decodes = decodes.reshape(rows, len(mutants), len(lengths), FORCED_STEPS, len(columns))
    prefills = np.reshape(shifts, (len(mutants), len(prompts), rows, len(columns)))
    return Golden(
        dtype=weights.dtype,
        batch=shapes.batch,
        hidden_size=config.hidden_size,
        tokens=tokens,
        decoy=decoy,
        prompts=np.asarray(prompts),
        lengths=np.asarray(lengths, np.int64),
        positions=positions,
        logits=logits,
        columns=columns,
        mutants=np.asarray([mutant.name for mutant in mutants], dtype=np.str_),
        prefill_shift=prefills.astype(np.float32),
        decode_shift=np.ascontiguousarray(np.moveaxis(decodes, 0, 2)),
        reference_error=error,
    )
