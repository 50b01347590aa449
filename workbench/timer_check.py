"""Check the drained clock against CUDA events: another clock, on the very same prefills. Never a replacement.

The GPU stamps events on the engine's own stream. On an idle stream a pair resolves about 0.5 us, while the
drained clock also sees the first launch and the host's way back from its wait: 20 to 120 us. So 2 % can be
asked of prefills longer than a few milliseconds only. What differs is marked all the same, whatever the
cause: in a shorter prefill it is usually launch and wait, in a longer one work on another stream.
"""

from collections.abc import Sequence
from statistics import median
from typing import Protocol

import numpy as np

from backends.contract import Engine
from backends.cuda_tools import succeed
from workbench import units
from workbench.harness import Timer, kept
from workbench.job import Json

PREFILLS = 10
AGREEMENT = 0.02
"""How far the two clocks' medians may lie apart, as a share of the drained one's."""
SHORT_S = 6e-3
"""Prefills under this may differ for the harness's own cost: the 120 us are AGREEMENT of it."""


class Stamps(Protocol):
    """What stamps the beginning and the end of some work as the device sees them."""

    def begin(self) -> None:
        """Stamp what is enqueued next."""

    def end(self) -> None:
        """Stamp what was enqueued last."""

    def seconds(self) -> float:
        """Return the seconds between the two stamps, once the device is idle."""


class CudaEvents:
    """Two CUDA events on a stream; CUDA frees them with the process."""

    def __init__(self, stream: int) -> None:
        """Raise ImportError without cuda-bindings, RuntimeError if CUDA refuses."""
        from cuda.bindings import runtime

        self._runtime = runtime
        self._stream = runtime.cudaStream_t(stream)
        self._first, self._last = (succeed(runtime, runtime.cudaEventCreate()) for _ in range(2))

    def begin(self) -> None:
        """Record the first event."""
        succeed(self._runtime, self._runtime.cudaEventRecord(self._first, self._stream))

    def end(self) -> None:
        """Record the last event."""
        succeed(self._runtime, self._runtime.cudaEventRecord(self._last, self._stream))

    def seconds(self) -> float:
        """Return the seconds between the events; raises RuntimeError while the device is at work."""
        elapsed = self._runtime.cudaEventElapsedTime(self._first, self._last)
        return float(succeed(self._runtime, elapsed)) * 1e-3


def check_timer(engine: Engine, clock: Timer, stamps: Stamps, prompt: np.ndarray) -> Json:
    """Time prefills of prompt [B, T] by both clocks at once; returns the samples of each in seconds."""
    events, drained = [], []
    for _ in range(PREFILLS):
        engine.stage(prompt)
        clock.fence(engine)
        start = clock.now()
        stamps.begin()
        engine.prefill()
        stamps.end()
        clock.fence(engine)
        drained.append(kept(clock.now() - start))
        events.append(kept(stamps.seconds()))
    return {"events_s": events, "drained_s": drained}


def disagreement(checks: Sequence[Json]) -> str | None:
    """Warn if the clocks' medians over all processes lie apart; None if they agree or none was checked."""
    events = [value for check in checks for value in check["events_s"]]
    drained = [value for check in checks for value in check["drained_s"]]
    if not drained or abs(median(events) - median(drained)) <= AGREEMENT * median(drained):
        return None
    advice = (
        "launch and wait weigh that much in so short a prefill: take a longer prompt or a larger batch"
        if median(drained) < SHORT_S
        else "look whether the engine works on another stream than it names"
    )
    figures = f"{units.seconds(median(events))} by CUDA events and {units.seconds(median(drained))} by the"
    return f"a prefill takes {figures} drained clock, over {units.percent(AGREEMENT)} apart; {advice}"
