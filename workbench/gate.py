"""The gate: an engine's logits held against golden and against what each known fault would say; numpy only.

With e an engine's logits, g golden's and m a mutant's, the projection c = <e - g, m - g> / |m - g|^2 is how
much of the mutant's fault the engine has: near 0 for a right engine, near 1 for one with that fault.
It is taken over everything, over each check (a prefill, or 16 forced decode steps at one length), and over
each step and each row of a check, since a fault may show at page edges or in one sequence only.

Dimensions: B rows of the batch, S steps of a check (1 for a prefill), M mutants, V vocabulary, C columns.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.contract import Engine
from workbench.checks import FORCED_STEPS, repeat_rows
from workbench.golden import Golden, Progress
from workbench.mutants import ALIKE_IN_DECODE

Floats = npt.NDArray[np.floating[Any]]

GATE = 1
"""Version of the checks and of the judgement: rows that unlike gates let pass are not compared."""
WRONG_PROJECTION = 0.5
WRONG_RATIO = 3.0
"""Times the error of torch in the same dtype, over a check; right engines have been seen up to 1.1."""
WRONG_CELL_RATIO = 4.0
"""The same for one step of one row, where chance weighs more; right engines have been seen up to 1.4."""
RESOLUTION = 0.04
"""Largest standard error at which a projection is judged: right engines have been seen 5.5 of them from 0."""
POISONED = " into a poisoned cache"
FREEDOM_SHARE = 0.25
"""Share of the hidden size that rounding errors of one step's logits fill, as measured."""
MOST = 0.8
"""Share of an error that a mutant explains if it is the engine's fault and rounding is small beside it."""


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


class NotLogits(Exception):
    """Say that what an engine returned cannot be logits."""


def verify(engine: Engine, golden: Golden, progress: Progress | None = None) -> Verdict:
    """Run every check on an engine and judge it; leaves the engine at any length with any cache."""
    if not (np.isfinite(golden.reference_error) & (golden.reference_error > 0)).all():
        return Verdict(False, "cannot be verified: golden holds no finite error of torch", None)
    checks: list[Check] = []
    again = np.isin(golden.prompts, golden.lengths).sum()
    total = 2 * len(golden.prompts) + int(again) + len(golden.lengths)
    try:
        for check in run_checks(engine, golden):
            checks.append(check)
            if progress:
                progress(len(checks), total)
    except NotLogits as error:
        return Verdict(False, str(error), None)
    return judge(checks, golden)


def run_checks(engine: Engine, golden: Golden) -> Iterator[Check]:
    """Drive an engine through all checks; raises NotLogits."""
    tokens, decoy = repeat_rows(golden.tokens, golden.batch), repeat_rows(golden.decoy, golden.batch)
    lengths = golden.lengths.tolist()
    for prompt in golden.prompts.tolist():
        engine.poison(0)  # whatever the prefill then leaves unwritten shows at once
        yield check_prefill(engine, golden, tokens[:, :prompt], POISONED)
        if prompt in lengths:
            yield check_decode(engine, golden, tokens, prompt, POISONED)
    for prompt in golden.prompts.tolist():
        engine.poison(0)
        engine.stage(decoy[:, :prompt])  # what is not written anew now is another sequence's, as in long use
        engine.prefill()
        yield check_prefill(engine, golden, tokens[:, :prompt])
    for length in lengths:
        engine.rewind(length)
        engine.poison(length)
        yield check_decode(engine, golden, tokens, length)


def check_prefill(engine: Engine, golden: Golden, prompt: npt.NDArray[np.int32], where: str = "") -> Check:
    """Prefill a prompt [B, P] and compare its last position."""
    length = prompt.shape[1]
    engine.stage(prompt)
    engine.prefill()
    shift = golden.prefill_shift[:, golden.prompts.tolist().index(length)]  # [M, R, C]
    return compare(golden, f"prefill of {length}{where}", [engine.logits()], length - 1, shift[:, :, None])


def check_decode(
    engine: Engine, golden: Golden, tokens: npt.NDArray[np.int32], length: int, where: str = ""
) -> Check:
    """Force steps from position `length` on, which the engine is at, and compare each."""

    def step(position: int) -> Floats:
        engine.feed(tokens[:, position])
        engine.decode()
        return engine.logits()

    shift = golden.decode_shift[:, golden.lengths.tolist().index(length)]  # [M, R, S, C]
    steps = (step(position) for position in range(length, length + FORCED_STEPS))
    return compare(golden, f"decode at length {length}{where}", steps, length, shift)


def compare(golden: Golden, name: str, steps: Iterable[Floats], position: int, shift: Floats) -> Check:
    """Sum up a check's logits [B, V] of each step from `position` on, with shift [M, R, S, C]."""
    first = int(np.searchsorted(golden.positions, position))
    wide = np.ascontiguousarray(np.moveaxis(shift, 2, 0), np.float64)  # [S, M, R, C]
    dots, noise, errors = [], [], []
    for step, logits in enumerate(steps):
        square, kept = subtract(golden, logits, first + step, name)
        if not np.isfinite(square).all():
            raise NotLogits(f"NaN, infinite or absurd logits ({name}, position {position + step})")
        errors.append(square)
        dots.append(project_rows(kept, wide[step]))
        noise.append(np.einsum("bc,bc->b", kept, kept))
    squares = np.einsum("smrc,smrc->msr", wide, wide)
    references = np.square(golden.reference_error[:, first : first + len(errors)].T, dtype=np.float64)
    turn = np.arange(len(noise[0])) % len(golden.tokens)  # row of golden that each row of the batch repeats
    return Check(
        name,
        dots=np.stack(dots, 1),
        shifts=squares[..., turn],
        noise=np.stack(noise),
        errors=np.stack(errors),
        references=references[:, turn],
    )


def subtract(golden: Golden, logits: Floats, at: int, name: str) -> tuple[Floats, Floats]:
    """Return the mean square [B] of logits [B, V] less golden's at a kept position, and the columns [B, C].

    Row by row, so that what is subtracted stays in a core's cache and nothing of size [B, V] is made.
    """
    rows, vocab = len(golden.tokens), golden.logits.shape[-1]
    if logits.shape != (golden.batch, vocab):
        raise NotLogits(f"logits of shape {list(logits.shape)}, not {[golden.batch, vocab]} ({name})")
    square = np.empty(len(logits), np.float32)
    kept = np.empty((len(logits), len(golden.columns)))
    error = np.empty(vocab, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, each in enumerate(logits):
            np.subtract(each, golden.logits[row % rows, at], out=error)
            square[row] = np.dot(error, error) / vocab
            kept[row] = error[golden.columns]
    return square, kept


def project_rows(kept: Floats, shift: Floats) -> Floats:
    """Return <kept, shift> [M, B] for kept [B, C] and shift [M, R, C], where row b goes with row b % R."""
    rows = shift.shape[1]
    dots = np.empty((len(shift), len(kept)))
    for row in range(min(rows, len(kept))):
        dots[:, row::rows] = shift[:, row] @ kept[row::rows].T
    return dots


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
        unseen = tuple(each.check.name for each in (*whole, *levels[0]) if not each.judged[mutant].all())
        if unseen:
            blind[name] = tuple(dict.fromkeys(unseen))
    ratio = float(np.max([error_ratios(check, (0, 1)).max() for check in checks]))  # NaN if any is
    return Verdict(reason is None, reason, ratio if np.isfinite(ratio) else None, projections, blind)


def pool(checks: list[Check]) -> Check:
    """Add checks up into one of a single step."""

    def add(name: str) -> Floats:
        total: Floats = sum(getattr(check, name).sum(-2, keepdims=True) for check in checks)
        return total

    return Check("everything", add("dots"), add("shifts"), add("noise"), add("errors"), add("references"))


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
