"""The judgement: whether what the checks found of an engine is rounding or a fault, and which; numpy only.

With e an engine's logits, g golden's and m a mutant's, the projection c = <e - g, m - g> / |m - g|^2 is how
much of the mutant's fault the engine has: near 0 for a right engine, near 1 for one with that fault.
It is taken over everything, over each check (a prefill, or 16 forced decode steps at one length), and over
each step and each row of a check, since a fault may show at page edges or in one sequence only.

Dimensions: B rows of the batch, S steps of a check (1 for a prefill), M mutants.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from workbench.checking.golden import Golden
from workbench.checking.mutants import ALIKE_IN_DECODE

Floats = npt.NDArray[np.floating[Any]]

WRONG_PROJECTION = 0.5
WRONG_RATIO = 3.0
"""Times the error of torch in the same dtype, over a check; right engines have been seen up to 1.3."""
WRONG_CELL_RATIO = 4.0
"""The same for one step of one row, where chance weighs more; right engines have been seen up to 1.4."""
RESOLUTION = 0.04
"""Largest standard error at which a projection is judged: right engines have been seen 5.5 of them from 0."""
FREEDOM_SHARE = 0.25
"""Share of the hidden size that rounding errors of one step's logits fill, as measured."""
MOST = 0.8
"""Share of an error that a mutant explains if it is the engine's fault and rounding is small beside it."""
POISONED = " into a poisoned cache"
EVERYTHING = "everything"
"""What all checks together are called."""


@dataclass(frozen=True)
class Verdict:
    """Whether an engine is right, and how far that could be told."""

    passed: bool
    reason: str | None
    """Why it is wrong, in one line."""
    error_ratio: float | None
    """Worst error of a check over that of torch in the same dtype; None if it is no number."""
    projections: dict[str, float] = field(default_factory=dict)
    """Largest projection on each mutant, wherever it was judged."""
    blind: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By mutant, the checks at which rounding hides it; `everything` if it cannot be told at all."""


@dataclass(frozen=True)
class Check:
    """One check's sums over the vocabulary."""

    name: str
    dots: Floats
    """<e - g, m - g> over the columns that mutants are kept at, [M, S, B]."""
    shifts: Floats
    """|m - g|^2 over the same, [M, S, B]."""
    noise: Floats
    """|e - g|^2 over the same, [S, B]."""
    errors: Floats
    """Mean square of e - g over the vocabulary, [S, B]."""
    references: Floats
    """The same of torch in the engine's dtype, [S, B]."""

    @property
    def poisoned(self) -> bool:
        """Whether positions that the prefill left unwritten hold poison: such a check names a fault last."""
        return self.name.endswith(POISONED)


LEVELS: tuple[tuple[int, ...], ...] = ((0, 1), (1,), (0,), ())
"""Axes of [S, B] that a check is summed over: both, for each step, for each row, neither."""


@dataclass(frozen=True)
class Projected:
    """One check projected on the mutants, summed over some axes: arrays [M, S or 1, B or 1]."""

    check: Check
    axes: tuple[int, ...]
    projections: Floats
    explained: Floats
    """Share of the engine's error that the mutant explains."""
    judged: npt.NDArray[np.bool_]
    """Whether rounding leaves the projection any meaning."""


def project(check: Check, axes: tuple[int, ...], golden: Golden) -> Projected:
    """Project a check on every mutant.

    The standard error is that of a regression: the error that the mutant does not explain, spread over the
    dimensions in which logits can differ. Rows that repeat one another add none.
    """
    steps, rows = check.noise.shape
    freedom = min(golden.hidden_size, len(golden.columns)) * FREEDOM_SHARE
    freedom *= (steps if 0 in axes else 1) * (min(rows, len(golden.tokens)) if 1 in axes else 1)
    over = tuple(axis + 1 for axis in axes)
    dots, shifts = check.dots.sum(over, keepdims=True), check.shifts.sum(over, keepdims=True)
    noise = check.noise.sum(axes, keepdims=True)
    some = shifts > 0  # at position 0 some faults have no effect
    projections = np.divide(dots, shifts, out=np.zeros_like(dots), where=some)
    explained = np.divide(dots * projections, noise, out=np.zeros_like(dots), where=noise > 0)
    variance = np.maximum(noise - dots * projections, 0) / freedom
    return Projected(check, axes, projections, explained, some & (variance <= RESOLUTION**2 * shifts))


def judge(checks: list[Check], golden: Golden) -> Verdict:
    """Decide from all checks whether an engine is right."""
    names = golden.mutants.tolist()
    whole = [project(pool([each for each in checks if not each.poisoned]), (0, 1), golden)]
    levels = [[project(check, axes, golden) for check in checks] for axes in LEVELS]
    settled = [[each for each in level if not each.check.poisoned] for level in levels]
    reason = name_fault([*settled, whole, *levels], names) or name_error(checks)
    projections, blind = {}, {}
    for mutant, name in enumerate(names):
        values = (
            each.projections[mutant][each.judged[mutant]] for level in (whole, *levels) for each in level
        )
        projections[name] = max((float(value.max()) for value in values if value.size), default=0.0)
        unseen = [each.check.name for each in levels[0] if not each.judged[mutant].all()]
        if not any(each.judged[mutant].any() for level in (whole, *levels) for each in level):
            unseen.insert(0, EVERYTHING)
        if unseen:
            blind[name] = tuple(dict.fromkeys(unseen))
    ratio = float(np.max([error_ratios(check, (0, 1)).max() for check in checks]))  # NaN if any is
    return Verdict(reason is None, reason, ratio if np.isfinite(ratio) else None, projections, blind)


def pool(checks: list[Check]) -> Check:
    """Add checks up into one of a single step."""

    def add(name: str) -> Floats:
        total: Floats = sum(getattr(check, name).sum(-2, keepdims=True) for check in checks)
        return total

    return Check(EVERYTHING, add("dots"), add("shifts"), add("noise"), add("errors"), add("references"))


def name_fault(levels: list[list[Projected]], names: list[str]) -> str | None:
    """Name the mutant that explains most, at the coarsest level where one explains nearly all, else some."""
    for least in (MOST, 0.0):
        for level in levels:
            explained = [
                np.where(each.judged & (each.projections > WRONG_PROJECTION), each.explained, 0.0)
                for each in level
            ]
            worst = int(np.argmax([each.max(initial=0.0) for each in explained]))
            if explained[worst].max(initial=0.0) > least:
                return describe_fault(level[worst], explained[worst], names)
    return None


def describe_fault(found: Projected, explained: Floats, names: list[str]) -> str:
    """Say which mutant explains most of what was found, and where."""
    mutant, step, row = np.unravel_index(int(explained.argmax()), explained.shape)
    name, value = names[mutant], found.projections[mutant, step, row]
    where = locate(found.check, found.axes, int(step), int(row))
    alike = ALIKE_IN_DECODE.get(name, "") if "decode" in where else ""
    return f"{name}{alike} ({where}: projection {value:.2f})"


def error_ratios(check: Check, axes: tuple[int, ...]) -> Floats:
    """Return an engine's error over that of torch in the same dtype, [S or 1, B or 1]; NaN: none."""
    errors, references = (each.sum(axes, keepdims=True) for each in (check.errors, check.references))
    known = np.isfinite(references) & (references > 0)
    ratios: Floats = np.sqrt(np.divide(errors, references, out=np.full_like(references, np.nan), where=known))
    return ratios


def name_error(checks: list[Check]) -> str | None:
    """Tell where the error is beyond what rounding in the dtype explains."""
    for axes, limit in (((0, 1), WRONG_RATIO), ((), WRONG_CELL_RATIO)):
        ratios = [error_ratios(check, axes) for check in checks]
        worst = int(np.argmax([each.max() for each in ratios]))
        step, row = np.unravel_index(int(ratios[worst].argmax()), ratios[worst].shape)
        value = float(ratios[worst][step, row])
        if not value <= limit:  # NaN is within no limit
            where = locate(checks[worst], axes, int(step), int(row))
            return f"error {value:.3g} times that of torch in the same dtype ({where})"
    return None


def locate(check: Check, axes: tuple[int, ...], step: int, row: int) -> str:
    """Say where in a check something was found."""
    steps, rows = check.noise.shape
    where = check.name
    if 0 not in axes and steps > 1:
        where += f", step {step + 1} of {steps}"
    if 1 not in axes and rows > 1:
        where += f", row {row}"
    return where
