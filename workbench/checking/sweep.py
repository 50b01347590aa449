"""One sweep over the weights that computes golden, every mutant and torch's own error together; needs torch.

A *stream* is a run of positions of the gate's tokens: from 0 (golden, prefills), the forced steps behind
golden's keys and values (decodes), or what a fault reaches of a prefill. Streams lie side by side in a
*pack*, so that norms and products run once for all of them. Packs go through a layer one after the other and
weights are widened one layer at a time, so memory holds a layer, one pack's temporaries and every pack's
hidden states.

R rows, T positions, D hidden size, H query heads, K key/value heads, Dh head size, V vocabulary, N checked
positions, C kept columns.
"""

from collections.abc import Iterable, Iterator
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
from workbench.checking.arithmetic import Model, attend, attend_plainly
from workbench.checking.checks import FORCED_STEPS, gate_rows, workload_tokens
from workbench.checking.golden import Golden, Progress
from workbench.checking.mutants import NO_FAULT, Mutant, skipped_layer
from workbench.checking.streams import Pack, Stream, plan_faulty

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

ALL_COLUMNS = 8192
"""Vocabularies up to here keep mutants at every column."""
SOME_COLUMNS = 4096
"""Columns that larger vocabularies keep: the projection needs inner products only."""
CHUNK_POSITIONS = 64  # whose logits are computed at a time
FLOAT32_FLOOR = 2.0**-18
"""Least error, relative to the logits, that float32 rows are measured by: golden rounds in float32 itself,
and a plain loop over products rounds several times more than torch's blocked one. TF32 is far beyond it."""


@dataclass(frozen=True)
class Cached:
    """One layer's right keys and values: of the tokens [R, T, K, Dh], of the decoy [1, T, K, Dh]."""

    keys: Tensor
    values: Tensor
    decoy_keys: Tensor
    decoy_values: Tensor


def attend_stream(stream: Stream, q: Tensor, k: Tensor, v: Tensor, cached: Cached) -> Tensor:
    """Attend with one stream's fault; returns [R, T, H * Dh]."""
    fault, start, rows, page = stream.mutant, stream.start, stream.rows, stream.page
    keys = torch.cat((cached.keys[rows, :start], k), dim=1)
    values = torch.cat((cached.values[rows, :start], v), dim=1)
    if fault.stale_page:
        keys[:, page], values[:, page] = cached.decoy_keys[:, page], cached.decoy_values[:, page]
    if fault.head_shift:
        keys, values = keys.roll(-fault.head_shift, 2), values.roll(-fault.head_shift, 2)
    last_key = fault.last_key
    if not stream.prompts and last_key > 0:  # what follows a step's own key is not there yet: poison
        poison = torch.full_like(keys[:, :last_key], POISON)
        keys, values = torch.cat((poison, keys), dim=1), torch.cat((poison, values), dim=1)
    return attend(q, keys, values, [max(position + last_key, 0) + 1 for position in stream.positions])


@dataclass(frozen=True)
class Ends:
    """What follows the layers, as stored: the last norm's weight [D] and the head [V, D]."""

    norm: Tensor
    head: Tensor

    def to(self, dtype: torch.dtype) -> "Ends":
        """Return both in another dtype."""
        return Ends(self.norm.to(dtype), self.head.to(dtype))


class Sweep:
    """Every pack on its way through the layers."""

    def __init__(self, model: Model, tokens: Tensor, decoy: Tensor, faulty: list[Pack]) -> None:
        self.model = model
        self.golden = Pack([Stream(NO_FAULT, tokens)])
        self.decoy = Pack([Stream(NO_FAULT, decoy)])
        self.faulty = faulty
        self.reference = Pack([Stream(NO_FAULT, tokens)])
        """The tokens in the stored dtype."""

    def embed(self, table: Tensor) -> None:
        """Look up every pack's tokens in the stored table [V, D]."""
        for pack in (self.golden, self.decoy, *self.faulty):
            if not pack.late:
                pack.hidden = F.embedding(pack.tokens, table).float()
        self.reference.hidden = F.embedding(self.reference.tokens, table)

    def run_layer(self, layer: int, stored: dict[str, Tensor]) -> None:
        """Take every pack through a layer, in place."""
        model, pack = self.model, self.reference
        skipped = skipped_layer(model.config.layers)
        q, k, v = model.project(pack.hidden, stored, pack.query_positions, pack.key_positions)
        model.finish(pack.hidden, attend_plainly(q, k, v), stored)
        weights = {name: tensor.float() for name, tensor in stored.items()}
        if layer == skipped:
            self.branch_off()
        cached = Cached(*self.run_right(self.golden, weights), *self.run_right(self.decoy, weights))
        for pack in self.faulty:
            if pack.late and layer <= skipped:
                continue
            q, k, v = model.project(pack.hidden, weights, pack.query_positions, pack.key_positions)
            parts = [attend_stream(each, q[:, at], k[:, at], v[:, at], cached) for each, at in pack]
            model.finish(pack.hidden, torch.cat(parts, dim=1), weights)

    def run_right(self, pack: Pack, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Take a pack without a fault, from position 0, through a layer; returns its keys and values."""
        q, k, v = self.model.project(pack.hidden, weights, pack.query_positions, pack.key_positions)
        attended = attend(q, k, v, [position + 1 for position in range(q.shape[1])])
        self.model.finish(pack.hidden, attended, weights)
        return k, v

    def branch_off(self) -> None:
        """Begin the packs that skip this layer with golden's hidden states: all was right so far."""
        for pack in self.faulty:
            if pack.late:
                right = [
                    self.golden.hidden[each.rows, each.start : each.positions.stop] for each in pack.streams
                ]
                pack.hidden = torch.cat(right, dim=1)


def find_logits(model: Model, hidden: Tensor, ends: Ends) -> Tensor:
    """Norm hidden states [R, N, D] and multiply by the head, of the same dtype; returns float32 [R, N, V]."""
    return F.linear(model.norm(hidden, ends.norm), ends.head).float()


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


def checked_positions(prompts: tuple[int, ...], lengths: tuple[int, ...]) -> Ints:
    """List every position whose logits are checked, ascending."""
    forced = {at + step for at in lengths for step in range(FORCED_STEPS)}
    return np.asarray(sorted(forced | {prompt - 1 for prompt in prompts}))


def kept_columns(vocab: int) -> Ints:
    """Choose the columns of the vocabulary that mutants are kept at: all, or some from first to last."""
    if vocab <= ALL_COLUMNS:
        return np.arange(vocab)
    return np.linspace(0, vocab - 1, SOME_COLUMNS).round().astype(np.int64)


def read_golden(sweep: Sweep, positions: Ints, ends: Ends) -> tuple[Floats, Floats]:
    """Return golden logits [R, N, V] and the root mean square [R, N] of torch's error.

    Raises UserError if golden logits are not finite.
    """
    golden, reference = sweep.golden.hidden, sweep.reference.hidden
    wide, stored = (ends.to(each.dtype) for each in (golden, reference))
    placed = torch.from_numpy(positions).to(golden.device)
    logits = np.empty((len(golden), len(positions), len(ends.head)), np.float32)
    errors, sizes = [], []
    for first in range(0, len(positions), CHUNK_POSITIONS):
        at = placed[first : first + CHUNK_POSITIONS]
        true = find_logits(sweep.model, golden[:, at], wide)
        errors.append(_rms(find_logits(sweep.model, reference[:, at], stored) - true))
        sizes.append(_rms(true))
        logits[:, first : first + CHUNK_POSITIONS] = true.cpu().numpy()
    error, size = (torch.cat(each, dim=1).cpu().numpy() for each in (errors, sizes))
    error = bounded(error, size, reference.dtype)
    if reference.dtype == torch.float32:
        error = np.maximum(error, FLOAT32_FLOOR * size)
    return logits, error


def read_faulty(
    sweep: Sweep, golden: Floats, positions: Ints, columns: Ints, ends: Ends
) -> Iterator[tuple[Stream, Floats]]:
    """Yield each faulty stream with its logits [R, checked, C] less golden's [R, N, C]."""
    at = torch.from_numpy(columns).to(ends.head.device)
    narrow = Ends(ends.norm, ends.head[at]).to(torch.float32)
    for pack in sweep.faulty:
        for stream, span in pack:
            checked = np.asarray(stream.checked)
            hidden = pack.hidden[:, span][:, torch.from_numpy(checked - stream.start).to(at.device)]
            faulty = find_logits(sweep.model, hidden, narrow).cpu().numpy()
            yield stream, faulty - golden[stream.rows, np.searchsorted(positions, checked)]


def gather(
    faults: Iterable[tuple[Stream, Floats]],
    mutants: tuple[Mutant, ...],
    prompts: tuple[int, ...],
    lengths: tuple[int, ...],
    rows: int,
    columns: int,
) -> tuple[Floats, Floats]:
    """Arrange what streams shift as `Golden.prefill_shift` and `Golden.decode_shift` have it."""
    prefills = np.zeros((len(mutants), len(prompts), rows, columns), np.float32)
    decodes = np.zeros((len(mutants), len(lengths), rows, FORCED_STEPS, columns), np.float32)
    for stream, shift in faults:
        mutant = mutants.index(stream.mutant)
        if not stream.prompts:
            decodes[mutant, lengths.index(stream.start)] = shift
        for index, prompt in enumerate(stream.prompts):
            prefills[mutant, prompts.index(prompt), stream.rows] = shift[:, index]
    return prefills, decodes


def bounded(error: Floats, size: Floats, dtype: torch.dtype) -> Floats:
    """Replace errors [R, N] of torch that are not finite by one rounding of golden logits of a size [R, N].

    Where torch itself overflows in the dtype, nothing says what a right engine's error would be, and an
    infinite one would bound nothing. One rounding is the least that any engine in the dtype errs by: one
    that avoids the overflow is judged too strictly rather than not at all. Raises UserError if golden
    overflows too.
    """
    if not np.isfinite(size).all():
        raise UserError("the model's logits are no numbers even in float32: its weights are damaged")
    least = (torch.finfo(dtype).eps * size).astype(np.float32)
    return np.where(np.isfinite(error), error, least)


def _rms(logits: Tensor) -> Tensor:
    return logits.square().mean(-1).sqrt()


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
    reach, rows = max((*prompts, *lengths)), gate_rows(shapes.batch)
    tokens = workload_tokens(config.vocab_size, rows, reach + FORCED_STEPS, seed)
    decoy = workload_tokens(config.vocab_size, 1, reach, seed + 1)
    placed = torch.from_numpy(tokens).to(device)
    # One position more than there are tokens: rope off by one turns the last that far.
    model = Model(config, reach + FORCED_STEPS + 1, device)
    faulty = plan_faulty(placed, prompts, lengths, mutants)
    sweep = Sweep(model, placed, torch.from_numpy(decoy).to(device), faulty)
    ends = run_through(sweep, weights, device, progress)

    positions, columns = checked_positions(prompts, lengths), kept_columns(config.vocab_size)
    logits, error = read_golden(sweep, positions, ends)
    faults = read_faulty(sweep, logits[..., columns], positions, columns, ends)
    prefills, decodes = gather(faults, mutants, prompts, lengths, rows, len(columns))
    return Golden(
        dtype=weights.dtype,
        hidden_size=config.hidden_size,
        tokens=tokens,
        decoy=decoy,
        prompts=np.asarray(prompts),
        lengths=np.asarray(lengths, np.int64),
        positions=positions,
        logits=logits,
        columns=columns,
        mutants=np.asarray([mutant.name for mutant in mutants], dtype=np.str_),
        prefill_shift=prefills,
        decode_shift=decodes,
        reference_error=error,
    )
