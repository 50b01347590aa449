"""Time prefill and decode: the same pure loop for every backend, with the clock given from outside.

A prefill is timed drained: the device is idle before and after each one. Decode is timed chained: N steps
without a look from the host, one wait at the end. Where one engine of a comparison answers whole requests
only, all are timed by slope besides: two chains of unlike length, and what the longer one takes more.
No sample is dropped; warming up is kept apart.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from backends.contract import Engine
from workbench.stopping import StopRule, WarmUp

Progress = Callable[[int], None]
"""Told the number of samples so far, between two samples and outside the clock."""
Sample = tuple[float, float | None]
"""Seconds of the work, and seconds until the call returned where that is of interest."""
DIGITS = 6
"""Significant digits of the seconds that are kept: no clock or machine repeats a sample to as many."""
ENQUEUE_DIGITS = 4
"""The same of the host's part of a sample, of which no more than the median is ever compared."""


def kept(seconds: float, digits: int = DIGITS) -> float:
    """Round to significant digits, so that records hold what was measured and no more."""
    return float(f"{seconds:.{digits - 1}e}")


class Timer(Protocol):
    """What the loop needs of `workbench.clock.Clock`."""

    def now(self) -> float:
        """Return seconds from an arbitrary start."""

    def fence(self, engine: Engine) -> None:
        """Return when the engine's device is idle."""


@dataclass(frozen=True)
class Samples:
    """Everything that was timed, in order."""

    samples_s: tuple[float, ...]
    """Seconds of each prefill, or of one step of each chain or pair of chains."""
    enqueue_s: tuple[float, ...]
    """Seconds until each prefill returned to the host; empty for decode."""
    elapsed_s: float
    """From the first sample's staging to the last one's end: the samples and the gaps before them."""
    doubt: str | None
    """Why warming up may not have been enough, if it may not."""

    def gap_s(self, steps: int = 1) -> float:
        """Return the mean seconds before a sample of `steps` steps in which the harness prepares it."""
        return max(0.0, self.elapsed_s - steps * sum(self.samples_s)) / len(self.samples_s)


def time_prefill(
    engine: Engine,
    clock: Timer,
    tokens: np.ndarray,
    *,
    warm_up: WarmUp,
    stop: StopRule,
    progress: Progress | None = None,
) -> Samples:
    """Time prefills of tokens [B, T], each drained."""

    def sample() -> Sample:
        engine.stage(tokens)
        clock.fence(engine)
        start = clock.now()
        engine.prefill()
        returned = clock.now()
        clock.fence(engine)
        end = clock.now()
        return end - start, returned - start

    return _collect(sample, clock, warm_up, stop, progress)


def time_decode(
    engine: Engine,
    clock: Timer,
    context: int,
    steps: int,
    feed: np.ndarray,
    *,
    warm_up: WarmUp,
    stop: StopRule,
    progress: Progress | None = None,
) -> Samples:
    """Time chains of decode steps that begin with `feed` [B] at `context` filled positions."""

    def sample() -> Sample:
        engine.rewind(context)
        engine.feed(feed)
        clock.fence(engine)
        start = clock.now()
        _decode(engine, steps)
        clock.fence(engine)
        end = clock.now()
        return (end - start) / steps, None

    return _collect(sample, clock, warm_up, stop, progress)


def time_slope(
    engine: Engine,
    clock: Timer,
    context: int,
    lead: int,
    steps: int,
    feed: np.ndarray,
    *,
    warm_up: WarmUp,
    stop: StopRule,
    progress: Progress | None = None,
) -> Samples:
    """Time the `steps` from `context` filled positions on as (T(lead + steps) - T(lead)) / steps.

    Both chains begin with `feed` [B] at context - lead. What a chain costs whatever its length cancels out: a
    request's way to another process and back, and the prefill in it.
    """

    def chain(count: int) -> float:
        engine.rewind(context - lead)
        engine.feed(feed)
        clock.fence(engine)
        start = clock.now()
        _decode(engine, count)
        clock.fence(engine)
        return clock.now() - start

    def sample() -> Sample:
        short = chain(lead)
        return (chain(lead + steps) - short) / steps, None

    return _collect(sample, clock, warm_up, stop, progress)


def _decode(engine: Engine, steps: int) -> None:
    # A function of its own: within `sample`, where the engine is a captured variable, a step costs 2 ns more.
    for _ in range(steps):
        engine.decode()


def _collect(
    sample: Callable[[], Sample], clock: Timer, warm_up: WarmUp, stop: StopRule, progress: Progress | None
) -> Samples:
    with _no_garbage_collection():
        begin = clock.now()
        while not warm_up.add(sample()[0], clock.now() - begin):
            pass
        if progress is not None:
            progress(0)
        taken: list[Sample] = []
        begin = clock.now()
        elapsed = 0.0
        enough = False
        while not enough:
            taken.append(sample())
            elapsed = clock.now() - begin
            enough = stop.add(taken[-1][0], elapsed)
            if progress is not None:
                progress(len(taken))
    return Samples(
        samples_s=tuple(kept(seconds) for seconds, _ in taken),
        enqueue_s=tuple(kept(enqueue, ENQUEUE_DIGITS) for _, enqueue in taken if enqueue is not None),
        elapsed_s=elapsed,
        doubt=warm_up.doubt,
    )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector, which would hit some samples and not others, out of the loop."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
