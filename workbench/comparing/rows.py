"""How the results of several processes become one record: times, share of the limit, status. Pure."""

import dataclasses
import statistics as plain
from collections.abc import Sequence

from models.config import DecoderConfig
from models.work import Work, cache_bytes, decode_work, prefill_work, weight_bytes
from workbench import units
from workbench.comparing.builds import ColdBuild
from workbench.comparing.room import Room, largest_fit
from workbench.device.ceilings import CACHE_FACTOR
from workbench.device.conditions import advise, slow_down
from workbench.device.kernels import host_bound
from workbench.device.machine import Device
from workbench.job import Json, RowResult
from workbench.plan import PlannedGroup, PlannedRow
from workbench.record import OK, TIMED, UNSTABLE, ProcessRun, Record
from workbench.statistics import percentile, summarise
from workbench.timer_check import disagreement


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a row besides its own samples."""

    work: Work
    """The least bytes and FLOPs of one prefill, or of one decode step on average."""
    ceilings: Json
    weight_bytes: int
    cache_bytes: int
    build_s: Json
    room: Room | None = None
    """For a decode row on a device whose memory is known."""


def gather(
    config: DecoderConfig,
    dtype: str,
    device: Device,
    group: PlannedGroup,
    row: PlannedRow,
    results: Sequence[RowResult],
    before: ColdBuild | None = None,
) -> Evidence:
    """Gather what is known of a row besides its samples: the least work, ceilings, build times.

    `before` is the cold build whose caches the row's processes started with, if none of them built cold.
    """
    names = ("ceilings_before", "ceilings_after")
    looks = [result.clocks[name] for result in results for name in names if result.clocks.get(name)]
    shapes = group.shapes
    return Evidence(
        work=least_work(config, dtype, row),
        ceilings=summarise_ceilings([look for index, look in enumerate(looks) if look not in looks[:index]]),
        weight_bytes=weight_bytes(config, dtype),
        cache_bytes=cache_bytes(config, dtype, shapes.batch, shapes.capacity),
        build_s=find_builds(results, before),
        room=room_for(config, dtype, device, group, row),
    )


def room_for(
    config: DecoderConfig, dtype: str, device: Device, group: PlannedGroup, row: PlannedRow
) -> Room | None:
    """Describe what a row's cache is to fit into; None for a prefill, or where the memory is unknown."""
    if row.context is None or device.memory_bytes is None:
        return None
    return Room(
        device_bytes=device.memory_bytes,
        token_bytes=cache_bytes(config, dtype, 1, 1),
        batch=row.batch,
        context=row.context,
        capacity=group.shapes.capacity,
        max_positions=config.max_positions,
    )


def find_builds(results: Sequence[RowResult], before: ColdBuild | None) -> Json:
    """Return seconds of a `cold` and a `warm` build; `cold_measured` tells when, if in an earlier call.

    Of an engine that was built ahead there are `cached` seconds alone, of two the less: what its compilers do
    besides is cold in the first process that ever takes it, and in no other.
    """
    builds = {
        cold: [result.build_s for result in results if result.cold is cold and result.build_s is not None]
        for cold in (True, False)
    }
    cached = [each.build_s for each in results if each.cold is None and each.build_s is not None]
    if cached:
        return {"cached": plain.median_low(cached)}
    warm = plain.median(builds[False]) if builds[False] else None
    if builds[True] or before is None:
        return {"cold": plain.median(builds[True]) if builds[True] else None, "warm": warm}
    return {"cold": before.build_s, "warm": warm, "cold_measured": before.measured}


def least_work(config: DecoderConfig, dtype: str, row: PlannedRow) -> Work:
    """Return the least work of one prefill, or of one decode step on average over the chained ones."""
    if row.steps is None:
        return prefill_work(config, dtype, row.batch, row.length)
    total = decode_work(config, dtype, row.batch, row.length, row.steps)
    return Work(bytes=total.bytes // row.steps, flops=total.flops // row.steps)


def finish(blank: Record, results: Sequence[RowResult], evidence: Evidence) -> Record:
    """Turn one row's results, a process each, into its record; the first failure decides the status."""
    failed = next((result for result in results if result.status not in TIMED), None)
    last = failed or results[-1]
    memory = split_memory(results, evidence)
    loads = [result.load_s for result in results if result.load_s is not None]
    held = max((result.clocks.get("idle_bytes", 0) for result in results), default=0)
    record = dataclasses.replace(
        blank,
        created=units.moment(),
        status=last.status,
        reason=last.reason,
        definition=last.definition,
        provenance=last.provenance,
        ceilings=evidence.ceilings,
        least_work=dataclasses.asdict(evidence.work),
        build_s=evidence.build_s,
        load_s=plain.median(loads) if loads else None,
        peak_bytes=memory,
        fits=largest_fit(evidence.room, memory, held) if evidence.room else {},
        error_ratio=worst_error(results),
        warnings=tuple(
            dict.fromkeys([*untuned(blank), *(line for result in results for line in result.warnings)])
        ),
    )
    return record if failed else with_times(record, results, evidence)


def untuned(blank: Record) -> list[str]:
    """Warn of an engine whose time says nothing of its compiler."""
    if not blank.untuned:
        return []
    return [
        f"its engine for {blank.engine['target']} was built without the GPU and is untuned, so perhaps far "
        "slower than one built here: --again builds here, and `build --tune` on the GPU serves builds "
        "elsewhere"
    ]


def with_times(record: Record, results: Sequence[RowResult], evidence: Evidence) -> Record:
    """Add what the samples say; a time below the ceilings' own interval makes the row implausible."""
    time = summarise([result.samples_s for result in results])
    share, complaint = limit_share(evidence, time.median)
    processes = tuple(
        ProcessRun(each.samples_s, each.enqueue_s, seen(each), each.timer_check) for each in results
    )
    kernels = next((each.kernels for each in results if each.kernels), None)
    fastest_allowed = least_time(evidence, "high")
    if share is not None and fastest_allowed is not None and time.median < fastest_allowed:
        reason = (
            f"a time of {time.median:.3g} s is {share:.2f} of what the machine's measured ceilings allow: "
            "somebody did not do the work, or the ceilings were disturbed; rerun with --again"
        )
        return dataclasses.replace(record, status="implausible", reason=reason, processes=processes)
    enqueued = [value for result in results for value in result.enqueue_s]
    conditions = [run.clocks for run in processes]
    drift = next((result.reason for result in results if result.status == UNSTABLE), None)
    troubles = [trouble for trouble in (slow_down(conditions), drift) if trouble]
    warnings = record.warnings + advise(conditions, record.gpu.get("power_limit_w"))
    warnings += tuple(line for line in (complaint, *doubts(results, kernels, time.median)) if line)
    return dataclasses.replace(
        record,
        status=UNSTABLE if troubles else OK,
        reason="; ".join(troubles) or None,
        time_s=time,
        processes=processes,
        enqueue_s=plain.median(enqueued) if enqueued else None,
        tokens_per_s=record.tokens_a_call / time.median,
        limit_share=share,
        kernels=kernels,
        no_kernels=next((each.no_kernels for each in results if each.no_kernels), None),
        parts=median_parts([each.parts for each in results if each.parts]),
        warnings=warnings,
    )


def median_parts(parts: Sequence[Json]) -> Json:
    """Return the median of each part over the processes."""
    return {name: plain.median(each[name] for each in parts) for name in (parts[0] if parts else ())}


def doubts(
    results: Sequence[RowResult], kernels: Json | None, call_s: float
) -> tuple[str | None, str | None]:
    """Warn of clocks that disagree and of a GPU that waits for the host."""
    checks = [each.timer_check for each in results if each.timer_check]
    return disagreement(checks), host_bound(kernels, call_s) if kernels else None


def seen(result: RowResult) -> Json:
    """Return what was seen of the device during a process, less the ceilings: the record has them once."""
    return {name: value for name, value in result.clocks.items() if not name.startswith("ceilings")}


def least_time(evidence: Evidence, ceiling: str = "median") -> float | None:
    """Return the least seconds the work can take at the measured ceilings; None where none were measured."""
    bandwidth = evidence.ceilings.get("bandwidth_bytes_per_s")
    rate = evidence.ceilings.get("flops_per_s")
    if not bandwidth or not rate:
        return None
    return float(max(evidence.work.bytes / bandwidth[ceiling], evidence.work.flops / rate[ceiling]))


def limit_share(evidence: Evidence, time_s: float) -> tuple[float | None, str | None]:
    """Return the share of the hardware's limit that a time reaches, or None and why there is none."""
    least = least_time(evidence)
    if least is None:
        return None, "no share of the limit: no ceilings were measured"
    cache = evidence.ceilings.get("last_level_cache_bytes")
    if cache and evidence.work.bytes < CACHE_FACTOR * cache:
        return None, (
            f"no share of the limit: the work moves {units.size(evidence.work.bytes)}, under "
            f"{CACHE_FACTOR} times the cache ({units.size(cache)}), which serves part of it; take a "
            "larger model, batch or context for one"
        )
    return least / time_s, None


def split_memory(results: Sequence[RowResult], evidence: Evidence) -> Json:
    """Split the highest memory seen into weights, cache and rest, in bytes; rest is None if unknown.

    A process that compiles takes memory for that too: those that found their caches warm count, if any did.
    """
    warm = [result for result in results if result.cold is not True and result.peak_bytes is not None]
    peaks = [result.peak_bytes for result in warm or results if result.peak_bytes is not None]
    total = max(peaks, default=None)
    known = evidence.weight_bytes + evidence.cache_bytes
    rest = total - known if total is not None and total >= known else None
    return {
        "total": total,
        "weights": evidence.weight_bytes,
        "cache": evidence.cache_bytes,
        "rest": rest,
    }


def worst_error(results: Sequence[RowResult]) -> float | None:
    """Return the largest error ratio of all processes."""
    return max((each.error_ratio for each in results if each.error_ratio is not None), default=None)


def summarise_ceilings(measured: Sequence[Json]) -> Json:
    """Pool the ceilings measured before and after each round; every sample is kept, in order."""
    caches = [each["last_level_cache_bytes"] for each in measured]
    summary: Json = {"last_level_cache_bytes": caches[0]} if caches else {}
    for name in ("bandwidth_bytes_per_s", "flops_per_s"):
        rounds = [list(each[name]) for each in measured]
        pooled = [value for samples in rounds for value in samples]
        if pooled:
            summary[name] = {
                "median": plain.median(pooled),
                "low": percentile(pooled, 2.5),
                "high": percentile(pooled, 97.5),
                "rounds": rounds,
            }
    bursts = [each["bursts"] for each in measured if "bursts" in each]
    return summary | ({"bursts": bursts} if bursts else {})
