"""How long the ceilings' bursts and their pauses last: as long as the samples of the same call. Pure."""

from collections.abc import Sequence
from statistics import median

from models.config import DecoderConfig
from workbench.comparing.entries import Entry
from workbench.comparing.rows import least_work
from workbench.job import BurstJob

FIRST_PAUSE_S = 0.001
"""Before any gap is known: between samples the harness only rewinds and feeds, or stages a prompt."""


def plan_bursts(config: DecoderConfig, dtype: str, entries: Sequence[Entry], phase: str) -> BurstJob:
    """Make bursts like the samples of one phase, or like those of the other where it has no row."""
    plain = [entry for entry in entries if entry.row.lead is None]  # a sample by slope is of two chains
    alike = [entry for entry in plain if entry.row.phase == phase] or plain or entries
    lengths = [
        median(result.samples_s) * (entry.row.steps or 1)
        for entry in alike
        for result in entry.results.values()
    ]
    gaps = [each.gap_s for entry in alike for each in entry.results.values() if each.gap_s is not None]
    works = [(least_work(config, dtype, entry.row), entry.row.steps or 1) for entry in alike]
    return BurstJob(
        burst_s=median(lengths) if lengths else None,
        pause_s=median(gaps) if gaps else FIRST_PAUSE_S,
        least=tuple((steps * work.bytes, steps * work.flops) for work, steps in works),
    )
