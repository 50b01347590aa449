"""The gate: an engine is driven through every check, its logits held against golden and mutants; numpy only.

`workbench/checking/judgement.py` decides what the sums made here say.

Dimensions: B rows of the batch, S steps of a check (1 for a prefill), M mutants, V vocabulary, C columns.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from backends.contract import Engine
from workbench.checking.checks import FORCED_STEPS, gate_rows, repeated_rows
from workbench.checking.golden import Golden, Progress
from workbench.checking.judgement import POISONED, Check, Floats, Verdict, judge

GATE = 2
"""Version of the checks and of the judgement: rows that unlike gates let pass are not compared."""


class NotLogits(Exception):
    """Say that what an engine returned cannot be logits."""


def verify(engine: Engine, golden: Golden, batch: int, progress: Progress | None = None) -> Verdict:
    """Run every check on an engine of `batch` rows and judge it; leaves it at any length with any cache.

    Raises ValueError if golden has fewer rows than such an engine is checked with.
    """
    golden = golden.first_rows(gate_rows(batch))
    if not (np.isfinite(golden.reference_error) & (golden.reference_error > 0)).all():
        return Verdict(False, "cannot be verified: torch's error with these weights is 0 or not finite", None)
    checks: list[Check] = []
    again = np.isin(golden.prompts, golden.lengths).sum()
    total = 2 * len(golden.prompts) + int(again) + len(golden.lengths)
    try:
        for check in run_checks(engine, golden, batch):
            checks.append(check)
            if progress:
                progress(len(checks), total)
    except NotLogits as error:
        return Verdict(False, str(error), None)
    return judge(checks, golden)


def run_checks(engine: Engine, golden: Golden, batch: int) -> Iterator[Check]:
    """Drive an engine of `batch` rows through all checks; raises NotLogits."""
    tokens, decoy = (rows[repeated_rows(batch, len(rows))] for rows in (golden.tokens, golden.decoy))
    lengths, filled = golden.lengths.tolist(), int(golden.prompts[-1])
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
        known = min(length, filled)
        engine.rewind(known)
        engine.poison(known)
        for position in range(known, length):  # what they leave in the cache is checked by what follows
            force(engine, tokens, position)
        yield check_decode(engine, golden, tokens, length)


def check_prefill(engine: Engine, golden: Golden, prompt: npt.NDArray[np.int32], where: str = "") -> Check:
    """Prefill a prompt [B, P] and compare its last position."""
    batch, length = prompt.shape
    name = f"prefill of {length}{where}"
    engine.stage(prompt)
    engine.prefill()
    shift = golden.prefill_shift[:, golden.prompts.tolist().index(length)]  # [M, R, C]
    return compare(golden, name, [read(engine, golden, batch, name)], length - 1, shift[:, :, None])


def check_decode(
    engine: Engine, golden: Golden, tokens: npt.NDArray[np.int32], length: int, where: str = ""
) -> Check:
    """Force steps from position `length` on, which the engine is at, and compare each."""
    name = f"decode at length {length}{where}"

    def steps() -> Iterator[Floats]:
        force(engine, tokens, length)
        for following in range(length + 1, length + FORCED_STEPS + 1):
            logits = read(engine, golden, len(tokens), name)
            if following < length + FORCED_STEPS:
                force(engine, tokens, following)  # a device is at work while these are compared
            yield logits

    shift = golden.decode_shift[:, golden.lengths.tolist().index(length)]  # [M, R, S, C]
    return compare(golden, name, steps(), length, shift)


def force(engine: Engine, tokens: npt.NDArray[np.int32], position: int) -> None:
    """Launch a step from the token of a position, which the engine is at."""
    engine.feed(tokens[:, position])
    engine.decode()


def read(engine: Engine, golden: Golden, batch: int, name: str) -> Floats:
    """Return an engine's logits [B, V]; raises NotLogits if they have another shape."""
    logits, shape = engine.logits(), (batch, golden.logits.shape[-1])
    if logits.shape != shape:
        raise NotLogits(f"logits of shape {list(logits.shape)}, not {list(shape)} ({name})")
    return logits


def compare(golden: Golden, name: str, steps: Iterable[Floats], position: int, shift: Floats) -> Check:
    """Sum up a check's logits [B, V] of each step from `position` on, with shift [M, R, S, C]."""
    first = int(np.searchsorted(golden.positions, position))
    wide = np.ascontiguousarray(np.moveaxis(shift, 2, 0), np.float64)  # [S, M, R, C]
    dots, noise, errors = [], [], []
    for step, logits in enumerate(steps):
        square, kept = subtract(golden, logits, first + step)
        if not np.isfinite(square).all():
            raise NotLogits(f"NaN, infinite or absurd logits ({name}, position {position + step})")
        errors.append(square)
        dots.append(project_rows(kept, wide[step]))
        noise.append(np.einsum("bc,bc->b", kept, kept))
    squares = np.einsum("smrc,smrc->msr", wide, wide)
    references = np.square(golden.reference_error[:, first : first + len(errors)].T, dtype=np.float64)
    turn = repeated_rows(len(noise[0]), len(golden.tokens))
    return Check(
        name,
        dots=np.stack(dots, 1),
        shifts=squares[..., turn],
        noise=np.stack(noise),
        errors=np.stack(errors),
        references=references[:, turn],
    )


def subtract(golden: Golden, logits: Floats, at: int) -> tuple[Floats, Floats]:
    """Return the mean square [B] of logits [B, V] less golden's at a kept position, and the columns [B, C].

    Row by row, so that what is subtracted stays in a core's cache and nothing of size [B, V] is made.
    """
    turn, vocab = repeated_rows(len(logits), len(golden.tokens)), golden.logits.shape[-1]
    square = np.empty(len(logits), np.float32)
    kept = np.empty((len(logits), len(golden.columns)))
    error = np.empty(vocab, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for row, each in enumerate(logits):
            np.subtract(each, golden.logits[turn[row], at], out=error)
            square[row] = np.dot(error, error) / vocab
            kept[row] = error[golden.columns]
    return square, kept


def project_rows(kept: Floats, shift: Floats) -> Floats:
    """Return <kept, shift> [M, B] for kept [B, C] and shift [M, R, C], each row with the one it repeats."""
    turn = repeated_rows(len(kept), shift.shape[1])
    dots = np.empty((len(shift), len(kept)))
    for row in range(shift.shape[1]):
        dots[:, turn == row] = shift[:, row] @ kept[turn == row].T
    return dots
