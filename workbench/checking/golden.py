"""What an engine's logits are held against: golden logits, what each fault would add, and torch's own error.

`Golden` is numpy alone, so that a worker of any backend can load it; computing one needs torch.
"""

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import filelock
import numpy as np

from backends.contract import Shapes
from models.checkpoint import Weights
from workbench.checking.checks import check_lengths
from workbench.checking.mutants import Mutant, mutants_of


@dataclass(frozen=True)
class Golden:
    """Everything `gate.verify` needs. R distinct rows, N checked positions, V vocabulary, C columns,
    M mutants, P prompts, L check lengths, S forced steps.
    """

    dtype: str
    """Stored dtype of the engines this is for, and of the torch error in `reference_error`."""
    hidden_size: int
    tokens: np.ndarray
    """int32 [R, reach + S]: what is prefilled and fed, up to the longest of prompts and lengths."""
    decoy: np.ndarray
    """int32 [1, reach]: prefilled by every row before the tokens, so that a page never written holds what is
    wrong. One for all rows: a page left from another row's earlier sequence is then known as stale, too."""
    prompts: np.ndarray
    """int [P], ascending."""
    lengths: np.ndarray
    """int [L], descending."""
    positions: np.ndarray
    """int [N], ascending: where golden logits are kept."""
    logits: np.ndarray
    """float32 [R, N, V]."""
    columns: np.ndarray
    """int [C]: the columns of the vocabulary that the mutants are kept at."""
    mutants: np.ndarray
    """str [M]: names."""
    prefill_shift: np.ndarray
    """float32 [M, P, R, C]: mutant minus golden logits at each prompt's last position; 0 in the rows of long
    prompts that no mutant is computed for, which then show no fault by name but still their error."""
    decode_shift: np.ndarray
    """float32 [M, L, R, S, C]: mutant minus golden logits at the forced steps."""
    reference_error: np.ndarray
    """float32 [R, N]: root mean square over the vocabulary of torch's error in the same dtype."""

    def first_rows(self, rows: int) -> "Golden":
        """Return what a golden of fewer rows holds: sequences are the same whatever the batch."""
        if rows > len(self.tokens):
            raise ValueError(f"a golden of {len(self.tokens)} rows cannot serve {rows}")
        return replace(
            self,
            tokens=self.tokens[:rows],
            logits=self.logits[:rows],
            prefill_shift=self.prefill_shift[:, :, :rows],
            decode_shift=self.decode_shift[:, :, :rows],
            reference_error=self.reference_error[:rows],
        )


Progress = Callable[[int, int], None]
"""Called with steps done and steps in all."""


def compute_golden(
    weights: Weights,
    shapes: Shapes,
    device: str = "cpu",
    seed: int = 0,
    *,
    lengths: tuple[int, ...] | None = None,
    mutants: tuple[Mutant, ...] | None = None,
    progress: Progress | None = None,
) -> Golden:
    """Compute golden and mutants of as many rows as the shapes' batch needs, in float32; needs torch.

    `lengths` and `mutants` replace the check lengths and the faults that the shapes and the model call for.
    """
    import torch

    from workbench.checking.sweep import compute

    if lengths is None:
        lengths = check_lengths(shapes, max(shapes.prompts))
    if mutants is None:
        mutants = mutants_of(weights.config)
    return compute(weights, shapes, torch.device(device), seed, lengths, mutants, progress)


def save_golden(golden: Golden, path: Path) -> None:
    """Write a golden as one .npz file; a reader sees all of it or nothing, even after a power cut."""
    part = path.with_name(f".{path.name}.part")  # one name, so that a killed writer leaves one file at most
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):  # two devices of a kind share a golden
        try:
            with part.open("wb") as file:
                np.savez(file, **{each.name: getattr(golden, each.name) for each in fields(golden)})
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def is_whole(path: Path) -> bool:
    """Tell whether a golden file is there, was written to its end and has every member; reads no values."""
    try:
        with zipfile.ZipFile(path) as stored:  # lists its members at its very end
            members = set(stored.namelist())
    except (OSError, zipfile.BadZipFile):
        return False
    return members == {f"{each.name}.npy" for each in fields(Golden)}


def load_golden(path: Path) -> Golden:
    """Read a golden that `save_golden` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        values = {name: stored[name] for name in stored.files}
    plain = {name: value.item() if value.ndim == 0 else value for name, value in values.items()}
    return Golden(**plain)
