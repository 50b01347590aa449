"""What a worker looks into once its rows are verified and sent: clock, parts, kernels.

None of it can cost a row: the parent has the times already, and what goes wrong here is but a warning.
"""

import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np

from backends.contract import Engine, Planner
from workbench.checking.checks import workload_tokens
from workbench.device import cupti
from workbench.device.kernels import HostTimes, summarise
from workbench.events import Events, classify
from workbench.harness import Timer
from workbench.job import Finding, MeasureJob, RowJob
from workbench.timer_check import CudaEvents, check_timer

CHAIN = 8
"""Decode steps that are traced at a time."""
PASSES = 5
"""Untraced passes: their median host times count, and as many precede the traced one."""


@dataclass(frozen=True)
class Work:
    """A row's prefill, or a chain of its decode steps, positioned as the timed samples are."""

    row: RowJob
    prompt: np.ndarray
    """[B, row.length]"""
    fill: Callable[[], None]
    """Fills the cache that the steps begin with; nothing for a prefill. Once for any number of chains."""
    prepare: Callable[[], None]
    run: Callable[[], None]
    steps: int


def look(job: MeasureJob, engine: Engine, clock: Timer, vocab: int, events: Events) -> None:
    """Check each prefill's clock, time plans, trace kernels: where the engine and the job allow it."""
    batch, stream = job.group.shapes.batch, engine.stream()
    works = [
        position(engine, row, workload_tokens(vocab, batch, row.length, job.seed))
        for row in job.group.rows
        if row.lead is None  # a slope is of the steps that its twin has
    ]
    if stream is not None:
        for work in works:
            if work.row.phase == "prefill":
                events.enter("trace", work.row.key)
                events.finding(check_clock(work, engine, clock, stream))
    if isinstance(engine, Planner):
        for work in works:
            events.enter("trace", work.row.key)
            events.finding(time_parts(work, engine))
    if job.kernels and works:
        trace_all(works, engine, clock, events)


def position(engine: Engine, row: RowJob, prompt: np.ndarray) -> Work:
    """Say how to prepare and to run a row's work."""
    if row.steps is None:
        return Work(row, prompt, lambda: None, partial(engine.stage, prompt), engine.prefill, 1)
    steps, feed = min(CHAIN, row.steps), np.ascontiguousarray(prompt[:, -1])

    def fill() -> None:
        engine.stage(prompt)
        engine.prefill()

    def prepare() -> None:
        engine.rewind(row.length)
        engine.feed(feed)

    def run() -> None:
        for _ in range(steps):
            engine.decode()

    return Work(row, prompt, fill, prepare, run, steps)


def check_clock(work: Work, engine: Engine, clock: Timer, stream: int) -> Finding:
    """Hold the drained clock against CUDA events on the engine's stream."""
    key = work.row.key
    try:
        return Finding(key, timer_check=check_timer(engine, clock, CudaEvents(stream), work.prompt))
    except Exception as error:
        return Finding(key, warnings=(f"the clock was not checked against CUDA events: {explain(error)}",))


def time_parts(work: Work, planner: Planner) -> Finding:
    """Time plan and run of the positioned work."""
    key = work.row.key
    try:
        work.fill()
        work.prepare()
        return Finding(key, parts=dict(planner.parts(work.row.phase)))
    except Exception as error:
        return Finding(key, warnings=(f"its plan was not timed apart: {explain(error)}",))


def trace_all(works: Sequence[Work], engine: Engine, clock: Timer, events: Events) -> None:
    """Trace every row's kernels; from the first failure on, rows get its reason instead."""
    reason = cupti.missing()
    if reason:
        for work in works:
            events.finding(Finding(work.row.key, no_kernels=reason))
        return
    left = list(works)
    try:
        events.enter("trace", works[0].row.key)
        hosts = [time_host(work, engine, clock) for work in works]  # CUPTI would slow the launches down
        tracer = cupti.Tracer()
        for work, host in zip(works, hosts, strict=True):
            events.enter("trace", work.row.key)
            settle(work, engine, clock)
            work.prepare()
            clock.fence(engine)
            activities = tracer.trace(partial(run_drained, work, engine, clock))
            events.finding(Finding(work.row.key, kernels=summarise(activities, work.steps, host)))
            left.remove(work)
    except Exception as error:
        reason = explain(error)
        for work in left:
            warning = f"its kernels could not be traced: {reason}"
            events.finding(Finding(work.row.key, no_kernels=reason, warnings=(warning,)))


def settle(work: Work, engine: Engine, clock: Timer) -> None:
    """Fill the cache, which holds a GPU's clock down, and run until the clock is what it was in samples."""
    work.fill()
    for _ in range(PASSES):
        work.prepare()
        run_drained(work, engine, clock)


def time_host(work: Work, engine: Engine, clock: Timer) -> HostTimes:
    """Time the calls of one prefill or step as the host sees them: medians of a few passes, once warm."""
    settle(work, engine, clock)
    enqueued, walls = [], []
    for _ in range(PASSES):
        work.prepare()
        clock.fence(engine)
        start = clock.now()
        work.run()
        enqueued.append(clock.now() - start)
        clock.fence(engine)
        walls.append(clock.now() - start)
    return HostTimes(median(enqueued) / work.steps, median(walls) / work.steps)


def run_drained(work: Work, engine: Engine, clock: Timer) -> None:
    """Run the work and wait for the device."""
    work.run()
    clock.fence(engine)


def explain(error: Exception) -> str:
    """Put an exception into one line; the log gets its traceback."""
    traceback.print_exception(error)
    return classify(error, "trace")[1]
