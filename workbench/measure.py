"""What a worker does with a backend: build, load, check, time, check again, then look into what it timed.

A time exists only if the very engine that was timed gave right logits before and after.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np

from backends import registry
from backends.contract import Artefact, Backend, Engine, Shapes, Target, run_first
from models.checkpoint import Weights, open_checkpoint
from workbench.building.work import open_engine
from workbench.checking.checks import workload_tokens
from workbench.checking.golden import load_golden
from workbench.checking.judgement import EVERYTHING, Verdict
from workbench.clock import Clock
from workbench.device import machine, memory
from workbench.events import Events
from workbench.findings import look
from workbench.gate import verify
from workbench.harness import Progress, Samples, Timer, time_decode, time_prefill, time_slope
from workbench.job import Json, MeasureJob, RowJob, RowResult
from workbench.statistics import half_drift
from workbench.stopping import StopRule, WarmUp

Number = TypeVar("Number", int, float)

STABLE_DRIFT = 0.03
"""A second half whose median differs by more: the machine changed meanwhile."""
NO_SLOPE = "runs of more steps took no longer: noise swallows the slope; take more --steps or a larger model"


@dataclass(frozen=True)
class Bench:
    """What the steps of a job share."""

    job: MeasureJob
    backend: Backend
    weights: Weights
    target: Target
    clock: Clock
    events: Events
    idle_bytes: int | None
    """Memory of this process before the weights; None where the engine's is not this process's."""


@dataclass(frozen=True)
class Built:
    """An engine and what it took to get it."""

    engine: Engine
    facts: RowResult
    """A row's result as far as all rows of the engine share it."""


def measure(job: MeasureJob, events: Events) -> None:
    """Build one engine and measure its rows.

    Raises UserError where the input is at fault, Unsupported where the backend refuses, and whatever else
    went wrong.
    """
    bench = set_up(job, events)
    built = build(bench, job.group.shapes)
    try:
        if measure_rows(bench, built):
            look(job, built.engine, bench.clock, bench.weights.config.vocab_size, events)
    finally:
        built.engine.close()


def check_engine(job: MeasureJob, events: Events) -> Json:
    """Build one engine and check it, without a time; raises as `measure` does."""
    bench = set_up(job, events)
    built = build(bench, job.group.shapes)
    try:
        verdict = check(bench, built.engine)
    finally:
        built.engine.close()
    return {"passed": verdict.passed, "reason": verdict.reason, "error_ratio": verdict.error_ratio}


def set_up(job: MeasureJob, events: Events) -> Bench:
    """Find the backend and open the weights."""
    backend = registry.find(job.backend)
    probe = backend.probe()
    here = job.device == "cpu" and probe.in_process
    return Bench(
        job=job,
        backend=backend,
        weights=open_checkpoint(Path(job.model), job.dtype),
        target=Target(job.device, job.dtype, machine.describe(job.device).architecture),
        clock=Clock(job.device),
        events=events,
        idle_bytes=memory.resident() if here else None,
    )


def measure_rows(bench: Bench, built: Built) -> bool:
    """Check the engine, time every row, check it again and send all rows; returns whether it is right.

    A first check that fails makes every row `wrong` before any is timed, a second one that fails all of them
    after. Until the second check what was timed is unverified, so it does not exist: a process that dies in
    between has measured nothing.
    """
    rows = bench.job.group.rows
    before = check(bench, built.engine)
    if not before.passed:
        for row in rows:
            bench.events.row(wrong(replace(built.facts, key=row.key), before, ""))
        return False
    timed = [time_row(bench, built, row) for row in rows]
    after = check(bench, built.engine)
    for result in timed:
        bench.events.row(verified(result, before, after))
    return after.passed


def verified(result: RowResult, before: Verdict, after: Verdict) -> RowResult:
    """Add to a timed row what the passed check before and the check after it found."""
    if not after.passed:
        return wrong(result, after, "after timing: ")
    return replace(
        result,
        error_ratio=highest(before.error_ratio, after.error_ratio),
        warnings=result.warnings + blind_spots(after),
    )


def build(bench: Bench, shapes: Shapes) -> Built:
    """Build and load an engine; compilers may do their work as late as its first tokens."""
    clock = bench.clock
    memory.reset_peak()
    bench.events.enter("build")
    start = clock.now()
    artefact = obtain(bench, shapes)
    built = clock.now()
    bench.events.enter("load")
    engine = bench.backend.load(artefact, bench.weights)
    clock.fence(engine)
    loaded = clock.now()
    bench.events.enter("build")
    prompts = [tokens(bench, shapes.batch, length) for length in shapes.prompts]
    ready = clock.now()
    run_first(engine, prompts)
    clock.fence(engine)
    end = clock.now()
    facts = RowResult(
        key="",
        status="ok",
        build_s=(built - start) + (end - ready),
        load_s=loaded - built,
        definition=artefact.definition,
        provenance=artefact.provenance,
        peak_bytes=peak_bytes(bench),
        weights=bench.weights.checksum(),
        warnings=artefact.warnings,
    )
    return Built(engine, facts)


def obtain(bench: Bench, shapes: Shapes) -> Artefact:
    """Build, or open what was built ahead; raises Unsupported."""
    job, config = bench.job, bench.weights.config
    if job.engine is None:
        return bench.backend.build(config, shapes, bench.target, job.options)
    return open_engine(bench.backend, Path(job.engine), config, shapes, bench.target, job.options)


def check(bench: Bench, engine: Engine) -> Verdict:
    """Hold the engine's logits against golden and mutants."""

    def beat(done: int, total: int) -> None:  # noqa: ARG001
        bench.events.enter("gate")  # every check has the stage's time limit to itself

    beat(0, 1)
    group = bench.job.group
    return verify(engine, load_golden(Path(group.golden)), group.shapes.batch, beat)


def blind_spots(verdict: Verdict) -> tuple[str, ...]:
    """Warn of faults that rounding hides at some checks."""
    return tuple(
        f"rounding hides the fault '{fault}' at every check: it could not be looked for"
        if EVERYTHING in checks
        else f"rounding hides the fault '{fault}' at {', '.join(checks)}: it was looked for elsewhere only"
        for fault, checks in verdict.blind.items()
    )


def wrong(result: RowResult, verdict: Verdict, when: str) -> RowResult:
    """Turn a row's result into that of an engine which computes something else: without times."""
    return replace(
        result,
        status="wrong",
        reason=f"{when}{verdict.reason}",
        error_ratio=verdict.error_ratio,
        samples_s=(),
        enqueue_s=(),
    )


def time_row(bench: Bench, built: Built, row: RowJob) -> RowResult:
    """Time one row by the clock of its phase; its memory is the peak of the build and of its own samples."""
    memory.reset_peak()  # the memory of the check and of the row before is not this row's
    bench.events.enter("time", row=row.key)
    prompt = tokens(bench, bench.job.group.shapes.batch, row.length)

    def progress(done: int) -> None:
        bench.events.progress(done, row.key)

    samples = take_samples(built.engine, bench.clock, prompt, row, bench.job.budget_s, progress)
    if median(samples.samples_s) <= 0:
        return replace(built.facts, key=row.key, status="implausible", reason=NO_SLOPE)
    drift = half_drift(samples.samples_s)
    unstable = abs(drift) > STABLE_DRIFT
    reason = (
        f"the second half's median differs from the first's by {drift:+.1%}: rerun on an idle, cool machine"
    )
    return replace(
        built.facts,
        key=row.key,
        status="unstable" if unstable else "ok",
        reason=reason if unstable else None,
        samples_s=samples.samples_s,
        enqueue_s=samples.enqueue_s,
        gap_s=samples.gap_s(row.steps or 1) if row.lead is None else None,
        peak_bytes=highest(built.facts.peak_bytes, peak_bytes(bench)),
        warnings=built.facts.warnings + ((samples.doubt,) if samples.doubt else ()),
    )


def take_samples(
    engine: Engine,
    clock: Timer,
    prompt: np.ndarray,
    row: RowJob,
    budget_s: float,
    progress: Progress | None = None,
) -> Samples:
    """Run the harness on one row; prompt [B, row.length] is what is prefilled, or what fills the cache."""
    warm_up, stop = WarmUp(budget_s), StopRule(budget_s)
    if row.phase == "prefill":
        return time_prefill(engine, clock, prompt, warm_up=warm_up, stop=stop, progress=progress)
    if row.steps is None:
        raise ValueError(f"row {row.key}: a decode row needs steps")
    engine.stage(prompt)
    engine.prefill()
    feed = np.ascontiguousarray(prompt[:, -1])
    if row.lead is None:
        timing = partial(time_decode, engine, clock, row.length, row.steps, feed)
    else:
        timing = partial(time_slope, engine, clock, row.length, row.lead, row.steps, feed)
    return timing(warm_up=warm_up, stop=stop, progress=progress)


def tokens(bench: Bench, batch: int, length: int) -> np.ndarray:
    """Draw the workload's tokens int32 [batch, length]."""
    return workload_tokens(bench.weights.config.vocab_size, batch, length, bench.job.seed)


def peak_bytes(bench: Bench) -> int | None:
    """Return the highest memory less what was there before the weights; None where that says nothing."""
    return None if bench.idle_bytes is None else max(0, memory.peak() - bench.idle_bytes)


def highest(one: Number | None, other: Number | None) -> Number | None:
    """Return the larger of two numbers, None if both are unknown."""
    return max((number for number in (one, other) if number is not None), default=None)
