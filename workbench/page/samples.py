"""The samples of each row as they came, their distribution, and what the clocks did meanwhile.

Where a page has many rows the drawn samples are thinned out: each stretch keeps its least and its
greatest, so that no spike disappears. The distribution is of every sample, thinned or not.
"""

from collections.abc import Sequence

import numpy as np

from workbench.job import Json
from workbench.page.cards import rounded
from workbench.page.rows import Row
from workbench.record import ProcessRun

DRAWN = 30_000
"""Samples that one page draws at most, or nearly: beyond it each process has fewer."""
LEAST = 40
"""Samples of a process that are drawn however many there are."""
SEEN = ("sm_mhz", "memory_mhz", "power_w", "temperature_c", "course")
"""What of a process' conditions the page shows."""
QUANTILES = 41
"""Points of a distribution's curve, from the least sample to the greatest."""


def share_out(rows: Sequence[Row]) -> int | None:
    """Return how many samples of each process may be drawn; None for all of them."""
    counts = [len(run.samples_s) for row in rows for run in row.record.processes]
    if sum(counts) <= DRAWN:
        return None
    return max(LEAST, DRAWN // len(counts))


def row_samples(row: Row, most: int | None) -> Json:
    """Return what the page draws of one row, in seconds."""
    return {
        "row": row.number,
        "title": row.title,
        "processes": [_process(run, most) for run in row.record.processes if run.samples_s],
    }


def _process(run: ProcessRun, most: int | None) -> Json:
    kept = thin(run.samples_s, most or len(run.samples_s))
    quantiles = np.quantile(run.samples_s, np.linspace(0, 1, QUANTILES))
    found: Json = {
        "samples": [rounded(run.samples_s[index]) for index in kept],
        "quantiles": [rounded(each) for each in quantiles.tolist()],
        "count": len(run.samples_s),
    }
    if len(kept) < len(run.samples_s):
        found["at"] = kept
    clocks = {name: run.clocks[name] for name in SEEN if run.clocks.get(name)}
    return found | ({"clocks": clocks} if clocks else {})


def thin(samples: Sequence[float], most: int) -> list[int]:
    """Choose at most `most` indices in order: the least and the greatest of each stretch of samples."""
    if len(samples) <= most:
        return list(range(len(samples)))
    chosen: set[int] = set()
    for stretch in np.array_split(np.arange(len(samples)), max(1, most // 2)):
        values = [samples[index] for index in stretch]
        chosen |= {int(stretch[int(np.argmin(values))]), int(stretch[int(np.argmax(values))])}
    return sorted(chosen)
