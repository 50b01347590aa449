"""The golden files of a comparison: found where an earlier one left them, else computed by a worker."""

import importlib.metadata
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.contract import Shapes
from models.errors import UserError
from workbench.caches import code_version, digest
from workbench.checking.checks import DISTINCT_ROWS, gate_rows
from workbench.checking.golden import is_whole
from workbench.comparing.builds import builds_root
from workbench.comparing.request import Settings
from workbench.comparing.source import Source
from workbench.device.machine import Device, thread_environment
from workbench.gate import GATE
from workbench.job import GoldenJob, GroupJob
from workbench.plan import PlannedGroup
from workbench.process import Limits, run
from workbench.progress import Progress

SEED = 0
"""Of the tokens."""
Lengths = tuple[tuple[int, ...], int]
"""Prompts and capacity of an engine: what its golden depends on besides the model, whatever its batch."""


@dataclass
class GoldenFiles:
    """The files that the engines of one model are held against, on one device."""

    settings: Settings
    device: Device
    source: Source
    progress: Progress
    logs: Path
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    found: dict[Lengths, Path] = field(init=False, default_factory=dict)
    """Of the groups that `make` has seen."""

    def of(self, group: PlannedGroup) -> Path:
        """Return the file of a group that `make` has seen, and keep it from being pruned meanwhile."""
        path = self.found[lengths_of(group)]
        mark_used(path)
        return path

    def make(self, groups: Sequence[PlannedGroup]) -> None:
        """Compute the golden files that are not there yet; raises UserError where that fails.

        One file serves all batches: it has the rows of the largest, or more if it was there before.
        """
        rows: dict[Lengths, int] = {}
        for group in groups:
            lengths = lengths_of(group)
            rows[lengths] = max(rows.get(lengths, 0), gate_rows(group.shapes.batch))
        missing = []
        for lengths, needed in rows.items():
            paths = [self.path(lengths, count) for count in range(needed, DISTINCT_ROWS + 1)]
            whole = next(filter(is_whole, paths), None)
            self.found[lengths] = whole or paths[0]
            mark_used(self.found[lengths])
            if whole is None:
                missing.append(GroupJob(Shapes(needed, *lengths), str(paths[0]), ()))
        if not missing:
            return
        self.progress.say("computing golden logits and the faults they are told apart from")
        job = GoldenJob(
            model=str(self.source.folder),
            dtype=self.settings.dtype,
            device=self.device.device,
            seed=SEED,
            groups=tuple(missing),
        )
        environment = thread_environment(self.device)
        outcome = run(job, log=self.logs / "golden.log", limits=self.limits, environment=environment)
        if not outcome.ok:
            raise UserError(
                f"nothing can be verified, so nothing is timed: the golden logits failed: {outcome.reason}; "
                "they need torch (see `python -m workbench backends`), disk, and memory for one float32 layer"
            )

    def path(self, lengths: Lengths, rows: int) -> Path:
        """Name a golden file: the same weights, lengths, tokens, torch and kind of device share one."""
        parts = {
            "gate": GATE,
            "code": code_version(),
            "weights": self.source.checksum,
            "dtype": self.settings.dtype,
            "lengths": lengths,
            "rows": rows,
            "seed": SEED,
            "device": self.device.name,
            "torch": torch_version(),
        }
        # In a folder among those of builds, so that it is pruned as they are, and the lock beside it too.
        return builds_root() / f"golden-{digest(parts)}" / "golden.npz"


def lengths_of(group: PlannedGroup) -> Lengths:
    """Return what a group's golden file is chosen by."""
    return group.shapes.prompts, group.shapes.capacity


def mark_used(golden: Path) -> None:
    """Keep a golden from being pruned, by whichever comparison, as one not used for longest."""
    try:
        os.utime(golden.parent)
    except OSError:
        pass  # not computed yet, or gone, which the worker that wants it tells


def torch_version() -> str | None:
    """Return the version of the torch here, which computes golden logits; it is not imported."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None  # the worker says so, where there is something to compute
