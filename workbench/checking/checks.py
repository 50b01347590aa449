"""Where an engine's logits are checked, and with which tokens it is fed; pure, so that all agree."""

import numpy as np

from backends.contract import Shapes

FORCED_STEPS = 16
"""Decode steps with given tokens after each rewind: one whole page of 16, so one of them crosses its edge."""
DISTINCT_ROWS = 4
"""Sequences the gate draws: the rows of a batch repeat them, so every row is checked at the cost of 4."""


def check_lengths(shapes: Shapes, filled: int) -> tuple[int, ...]:
    """List the cached lengths at which decode is checked, descending, for a cache of `filled` positions.

    They are `filled`, every prompt, 1 to 17, and page and block edges (16, 32, ...) with their neighbours;
    before these one that forced steps lead to, where a timed chain from `filled` on takes its last steps but
    one, behind which an engine that reads too far meets poison. Descending, since `poison(length)` destroys
    what lies beyond; each leaves room for the forced steps.
    """
    room = shapes.capacity - FORCED_STEPS
    edge, lengths = 16, {filled, *shapes.prompts, *range(1, 18)}
    while edge - 1 <= filled:
        lengths |= {edge - 1, edge, edge + 1}
        edge *= 2
    lengths = {length for length in lengths if 1 <= length <= min(filled, room)}
    if room >= filled + FORCED_STEPS:
        lengths.add(room - 1)
    return tuple(sorted(lengths, reverse=True))


def capacity_for(context: int, steps: int) -> int:
    """Count the cache positions that `steps` timed steps and the checks need after `context` positions.

    The checks want one position beyond their last step, where an engine that reads too far meets poison.
    """
    return context + max(steps, FORCED_STEPS + 1)


def workload_tokens(vocab: int, batch: int, length: int, seed: int) -> np.ndarray:
    """Draw tokens int32 [batch, length], different for each sequence and the same whatever the batch."""
    rows = [np.random.default_rng((seed, row)).integers(0, vocab, length) for row in range(batch)]
    return np.stack(rows).astype(np.int32)


def gate_rows(batch: int) -> int:
    """Count the distinct sequences that an engine of `batch` rows is checked with."""
    return min(batch, DISTINCT_ROWS)


def repeated_rows(batch: int, rows: int) -> np.ndarray:
    """Choose which of the distinct rows each row of a batch repeats, int [batch].

    Row i repeats the sum of i's digits to the base `rows`, modulo `rows`: first all of them in order, then so
    that no two rows are alike whose numbers differ in one digit, as those of two tiles of a kernel do.
    """
    index, turn = np.arange(batch), np.zeros(batch, np.int64)
    while rows > 1 and index.any():
        turn += index % rows
        index //= rows
    return turn % rows
