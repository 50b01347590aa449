"""Under which conditions a GPU row was timed: what was seen of the GPU, and what is to say of it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from workbench.job import Json

REASONS = (
    "gpu_idle",
    "application_clocks",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake",
    "display_clocks",
    "board_limit",
    "reliability",
)
"""What NVML's bits say of why a clock is no higher, from the lowest bit on."""
SLOW_DOWNS = {
    "hw_slowdown": "see to its cooling and its power supply",
    "sw_thermal_slowdown": "see to its cooling",
    "hw_thermal_slowdown": "see to its cooling",
    "hw_power_brake": "see to its power supply",
}
"""The bits that make a row unstable, each with what to do: the hardware is not as it should be."""
POWER_CAP = "sw_power_cap"
POWER_CAP_SHARE = 0.1
"""Of the samples: with fewer, the medians of a row hardly know of it."""
CLOCK_FALL = 0.03
"""Of the clock; as much as makes a row's own halves differ."""
HALVES_LEAST = 8
"""Samples below which halves say nothing of a clock."""
COURSE = 16
"""Moments, evenly spread, that are kept of what was seen."""


@dataclass(frozen=True)
class Sighting:
    """A GPU at one moment; what NVML does not tell is None."""

    sm_mhz: int | None
    memory_mhz: int | None
    power_w: float | None
    temperature_c: int | None
    utilisation_percent: int | None
    reasons: int | None
    """NVML's bits of why the clock is no higher."""
    at_s: float = 0.0
    """The moment, in seconds from an arbitrary start."""


def summarise(seen: Sequence[Sighting]) -> Json:
    """Describe what was seen while a row was timed, in order; empty if nothing was.

    `reasons` has the share of the samples with each bit set; `halves` are the medians of the earlier
    and the later half; `course` is what a few moments showed, in seconds from the first.
    """
    if not seen:
        return {}
    return {
        "samples": len(seen),
        "sm_mhz": _spread([each.sm_mhz for each in seen], halves=True),
        "memory_mhz": _spread([each.memory_mhz for each in seen], halves=True),
        "power_w": _spread([each.power_w for each in seen]),
        "temperature_c": _spread([each.temperature_c for each in seen]),
        "utilisation_percent": _spread([each.utilisation_percent for each in seen]),
        "reasons": _reasons([each.reasons for each in seen if each.reasons is not None]),
        "course": _course(seen),
    }


def slow_down(processes: Sequence[Json]) -> str | None:
    """Say why the hardware held back in any process of a row; None if it did not."""
    for name, advice in SLOW_DOWNS.items():
        share = max(_share(process, name) for process in processes) if processes else 0.0
        if share > 0:
            hottest = max((_hottest(process) for process in processes), default=0)
            heat = f", at up to {hottest} degrees Celsius" if hottest else ""
            seen = f"{name} in {share:.{0 if share >= 0.01 else 1}%} of the samples of a process{heat}"
            return f"the GPU held back ({seen}): {advice}, then rerun"
    return None


def advise(processes: Sequence[Json], power_limit_w: int | None) -> tuple[str, ...]:
    """Warn of the power limit and of clocks that fell while a row was timed, each for its worst process."""
    capped = max(processes, key=lambda process: _share(process, POWER_CAP), default={})
    warnings = [_power_line(capped, power_limit_w)] if _share(capped, POWER_CAP) >= POWER_CAP_SHARE else []
    for name, clock in (("SM", "sm_mhz"), ("memory", "memory_mhz")):
        before, after = min((_halves(process, clock) for process in processes), key=_kept, default=(0, 0))
        if _kept((before, after)) < 1 - CLOCK_FALL:
            warnings.append(
                f"the {name} clock fell from {before:.0f} to {after:.0f} MHz while it was timed: "
                "rerun when the GPU is cool"
            )
    return tuple(warnings)


def _power_line(process: Json, limit_w: int | None) -> str:
    limit = f" ({limit_w} W)" if limit_w is not None else ""
    clock = f"; the SM clock's median was {process['sm_mhz']['median']:.0f} MHz" if process["sm_mhz"] else ""
    return (
        f"the power limit{limit} held the clock in {_share(process, POWER_CAP):.0%} of the samples{clock}: "
        "times and ratios are those at this limit; raise it (nvidia-smi -pl) or rerun at a fixed clock "
        "(nvidia-smi -lgc) for others"
    )


def _spread(values: Sequence[float | None], halves: bool = False) -> Json | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    found: Json = {"low": min(known), "median": median(known), "high": max(known)}
    middle = len(known) // 2
    if halves and len(known) >= HALVES_LEAST:
        found["halves"] = [median(known[:middle]), median(known[middle:])]
    return found


def _course(seen: Sequence[Sighting]) -> Json | None:
    if all(each.sm_mhz is None and each.power_w is None for each in seen):
        return None
    count = min(COURSE, len(seen))
    kept = [seen[round(place * (len(seen) - 1) / max(count - 1, 1))] for place in range(count)]
    return {
        "at_s": [round(each.at_s - seen[0].at_s, 2) for each in kept],
        "sm_mhz": [each.sm_mhz for each in kept],
        "power_w": [None if each.power_w is None else round(each.power_w) for each in kept],
    }


def _reasons(bits: Sequence[int]) -> dict[str, float] | None:
    """Return the share of the samples in which each bit is set, if it ever is; None if NVML told nothing."""
    if not bits:
        return None
    named = {name: sum(bool(each >> place & 1) for each in bits) for place, name in enumerate(REASONS)}
    # A bit that was seen is not rounded away: once in a long row is still a slow-down.
    return {name: max(round(count / len(bits), 3), 0.001) for name, count in named.items() if count}


def _share(process: Json, reason: str) -> float:
    return float((process.get("reasons") or {}).get(reason, 0.0))


def _hottest(process: Json) -> int:
    return int((process.get("temperature_c") or {}).get("high", 0))


def _halves(process: Json, clock: str) -> tuple[float, float]:
    before, after = (process.get(clock) or {}).get("halves", (0, 0))
    return before, after


def _kept(halves: tuple[float, float]) -> float:
    """Return the share of a clock that was left later; 1 where it is unknown."""
    before, after = halves
    return after / before if before else 1.0
