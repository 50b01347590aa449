"""What lies inside the clock and what outside it, on a clock that tests turn by hand."""

import gc
import sys

import numpy as np
import pytest

from workbench.clock import Clock
from workbench.harness import Samples, time_decode, time_prefill, time_slope
from workbench.stopping import StopRule, WarmUp

STAGE, PREFILL, DECODE, DEVICE, REWIND = 100.0, 1.0, 2.0, 50.0, 7.0


class World:
    """An engine and a clock in one: every call takes a known time and is written down."""

    def __init__(self):
        self.time = 0.0
        self.calls = []
        self.pending = 0.0
        self.collecting = set()

    def note(self, call, seconds=0.0, pending=0.0):
        self.calls.append(call)
        self.time += seconds
        self.pending += pending
        self.collecting.add(gc.isenabled())

    def now(self):
        self.calls.append("now")
        return self.time

    def fence(self, engine):
        assert engine is self
        self.note("fence", self.pending)
        self.pending = 0.0

    def stage(self, tokens):
        self.note("stage", STAGE, pending=STAGE)

    def prefill(self):
        self.note("prefill", PREFILL, pending=DEVICE)

    def decode(self):
        self.note("decode", DECODE, pending=DEVICE)

    def rewind(self, length):
        self.note(f"rewind {length}", REWIND)

    def feed(self, tokens):
        self.note("feed", REWIND, pending=REWIND)


def rules(samples, warm=3):
    return {
        "warm_up": WarmUp(1e9, cap=warm),
        "stop": StopRule(1e9, floor=samples, cap=samples),
    }


TOKENS = np.zeros((1, 4), np.int32)


def test_a_prefill_is_timed_from_idle_to_idle_and_staging_is_outside():
    world = World()
    samples = time_prefill(world, world, TOKENS, **rules(12))
    assert samples.samples_s == (PREFILL + DEVICE,) * 12
    assert samples.enqueue_s == (PREFILL,) * 12
    assert world.calls.count("prefill") == 15
    first = world.calls[1 : world.calls.index("prefill") + 4]
    assert first == ["stage", "fence", "now", "prefill", "now", "fence", "now"]


def test_the_gap_is_what_the_harness_takes_before_a_sample():
    world = World()
    assert time_prefill(world, world, TOKENS, **rules(12)).gap_s() == pytest.approx(2 * STAGE)
    world = World()
    assert time_decode(world, world, 9, 32, TOKENS[:, 0], **rules(10)).gap_s(32) == pytest.approx(3 * REWIND)


def test_decode_is_timed_as_a_chain_with_one_wait_and_divided_by_its_steps():
    world = World()
    samples = time_decode(world, world, 9, 32, TOKENS[:, 0], **rules(10))
    assert samples.samples_s == (pytest.approx(DECODE + DEVICE),) * 10
    assert samples.enqueue_s == ()
    chain = ["rewind 9", "feed", "fence", "now", *["decode"] * 32, "fence", "now"]
    assert world.calls[1 : 1 + len(chain)] == chain
    assert world.calls.count("decode") == 13 * 32


def test_both_chains_of_a_slope_begin_on_an_idle_device():
    world = World()
    samples = time_slope(world, world, 9, 4, 32, TOKENS[:, 0], **rules(10))
    assert samples.samples_s == (pytest.approx(DECODE + DEVICE),) * 10
    begin = ["rewind 5", "feed", "fence", "now"]
    chains = [*begin, *["decode"] * 4, "fence", "now", *begin, *["decode"] * 36, "fence", "now"]
    assert world.calls[1 : 1 + len(chains)] == chains


def test_samples_are_kept_to_as_many_digits_as_say_something():
    world = World()
    world.prefill = lambda: world.note("prefill", 1 / 7e5, pending=1.0)
    samples = time_prefill(world, world, TOKENS, **rules(10))
    assert samples.samples_s == (1.0,) * 10
    assert samples.enqueue_s == (1.429e-6,) * 10
    world.prefill = lambda: world.note("prefill", 1 / 7e5)
    assert time_prefill(world, world, TOKENS, **rules(10)).samples_s == (1.42857e-6,) * 10


def test_a_short_gap_is_a_gap_and_none_is_negative():
    assert Samples((0.5, 0.5), (), 1.01, None).gap_s() == pytest.approx(0.005)
    assert Samples((0.5, 0.5), (), 0.999, None).gap_s() == 0.0


def test_every_sample_is_kept_in_order_and_warming_up_is_apart():
    world = World()
    durations = iter([99.0, 98.0, 97.0, *range(1, 11)])
    world.prefill = lambda: world.note("prefill", next(durations))
    samples = time_prefill(world, world, TOKENS, **rules(10))
    assert samples.samples_s == tuple(map(float, range(1, 11)))
    assert samples.doubt is not None


def test_settling_is_reported():
    world = World()
    assert time_prefill(world, world, TOKENS, **rules(10, warm=50)).doubt is None


def test_the_rules_are_told_the_time_that_everything_takes():
    world = World()
    told = []

    class Rule:
        doubt = None

        def add(self, sample_s, elapsed_s):
            told.append((sample_s, elapsed_s))
            return len(told) % 2 == 0

    world.time = 1e3  # a clock starts anywhere
    works = iter([10.0, 20.0, 30.0, 40.0])
    world.prefill = lambda: world.note("prefill", PREFILL, pending=next(works))
    time_prefill(world, world, TOKENS, warm_up=Rule(), stop=Rule())
    outside = STAGE + STAGE + PREFILL
    assert told == [
        (PREFILL + 10, outside + 10),
        (PREFILL + 20, 2 * outside + 30),
        (PREFILL + 30, outside + 30),
        (PREFILL + 40, 2 * outside + 70),
    ]


def test_the_collector_rests_while_timing_and_is_put_back():
    world = World()
    assert gc.isenabled()
    time_prefill(world, world, TOKENS, **rules(10))
    assert world.collecting == {False}
    assert gc.isenabled()
    gc.disable()
    try:
        time_prefill(world, world, TOKENS, **rules(10))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_collector_is_put_back_after_an_error():
    world = World()
    world.prefill = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        time_prefill(world, world, TOKENS, **rules(10))
    assert gc.isenabled()


def test_progress_is_told_between_samples():
    world = World()
    told = []

    def progress(done):
        told.append((done, world.calls[-1]))

    time_prefill(world, world, TOKENS, **rules(10), progress=progress)
    assert [done for done, _ in told] == list(range(11))
    # Called after the sample's last reading and the rule's, before the next staging.
    assert {call for _, call in told} == {"now"}


def test_the_real_clock_goes_forward_and_fences_by_the_engine():
    clock = Clock("cpu")
    calls = []

    class Engine:
        def sync(self):
            calls.append("sync")

    before = clock.now()
    clock.fence(Engine())
    assert clock.now() > before
    assert calls == ["sync"]


class Instructions:
    """An engine and a clock in one: its time is the number of Python's instructions run since it began."""

    def __init__(self):
        self.count = 0

    def now(self):
        return float(self.count)

    def fence(self, engine):
        engine.sync()

    def sync(self): ...

    def rewind(self, length): ...

    def feed(self, tokens): ...

    def decode(self): ...

    def __call__(self, frame, event, argument):
        frame.f_trace_opcodes = True
        self.count += event == "opcode"
        return self

    def during(self, chain, steps):
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return round(steps * chain(self, steps))
        finally:
            sys.settrace(before)


def bare_chain(world, steps):
    """Return the instructions a step of the least loop that can time a chain."""
    start = world.now()
    for _ in range(steps):
        world.decode()
    world.sync()
    return (world.now() - start) / steps


def harness_chain(world, steps):
    return time_decode(world, world, 9, steps, TOKENS[:, 0], **rules(1)).samples_s[0]


def test_a_step_costs_no_instruction_more_than_in_a_bare_loop():
    """Seconds say that on an idle machine only (`scripts/overhead.py`); instructions say it on any."""
    world = Instructions()
    bare, more_bare = (world.during(bare_chain, steps) for steps in (100, 200))
    harness, more_harness = (world.during(harness_chain, steps) for steps in (100, 200))
    assert more_harness - harness == more_bare - bare > 500
    # What is left is the way into the loop and to the fence, once for a whole chain.
    assert 0 <= harness - bare < 50
