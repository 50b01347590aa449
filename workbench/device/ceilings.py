"""What a device can do at most: its bandwidth by a large copy or read, its rate by a large product, by torch.

Measured on random-normal data in the row's dtype (a product of zeros draws less power and runs faster), at
the duty cycle of the timed work: bandwidth in bursts as long as a chain of decode steps, products in bursts
as long as a prefill, each after the pause that the harness makes between samples, so that the device is as
warm, and its power as limited, as when it is timed.
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import psutil

from models.work import Work
from workbench.clock import wait_for_gpu
from workbench.device import machine
from workbench.job import BurstJob, CeilingsJob
from workbench.stopping import WARM_LEAST_S

BURSTS = 8
"""Samples of each ceiling: what their interval is made of."""
GUESS_S = 0.01
"""Length of the run that tells how long one call takes."""
CACHE_FACTOR = 8
"""A copy of this many last-level caches comes from memory; the share of work on less says nothing."""
UNKNOWN_CACHE_BYTES = 64 << 20
BLOCK = 1 << 22
"""Numbers that are drawn; more are copies of them."""
GPU_COPY_BYTES = 2 << 30
GPU_PRODUCT_SIZE = 8192
CPU_LONGEST_S = 1.2
"""All bursts of one CPU job together: the shares are worth no more waiting there."""
GPU_LONGEST_S = 3.2
"""All bursts of one GPU job together, so that a look takes below five seconds with all around it."""
KINDS = 3
"""Copy, read, product."""

Call = tuple[Callable[[], Any], float]
"""Work to repeat, and its amount in bytes or FLOPs."""


@dataclass(frozen=True)
class Device:
    """Where and in what to measure."""

    torch: Any
    name: str
    dtype: Any
    wait: Callable[[], None]
    """Returns when the device is idle."""
    copy_bytes: int
    product_size: int
    warm_s: float
    """How long bursts are repeated before they count, as the harness warms up."""
    longest_s: float
    """How long a burst with its pause may last."""


@dataclass(frozen=True)
class Bursts:
    """How long bursts last and how long the device is left alone before each, in seconds."""

    burst_s: float
    pause_s: float


def measure_ceilings(job: CeilingsJob) -> dict[str, Any]:
    """Return all samples of `bandwidth_bytes_per_s` and `flops_per_s`, how they were taken, and the cache."""
    import torch

    on = prepare(torch, job.device, job.dtype)
    with torch.no_grad():
        works = *memory_works(on), product_work(on)
        copying, reading, multiplying = (first_rate(on, work) for work in works)
        first = Work(bytes=round(reading), flops=round(multiplying))
        memory, products = (bursts(each, first, on.longest_s) for each in (job.bandwidth, job.product))
        copied = rates(on, works[0], copying, memory)
        read = rates(on, works[1], reading, memory)
        return {
            # Decode mostly reads. A CPU reads faster than it copies: it fetches what it is to overwrite.
            "bandwidth_bytes_per_s": max(copied, read, key=median),
            "flops_per_s": rates(on, works[2], multiplying, products),
            "last_level_cache_bytes": cache_bytes(torch, job.device),
            "bursts": {"bandwidth": asdict(memory), "product": asdict(products)},
        }


def bursts(job: BurstJob, rates_per_s: Work, longest_s: float) -> Bursts:
    """Settle how bursts follow each other; what would take too long is shortened at the same duty cycle."""
    estimates = [max(size / rates_per_s.bytes, flops / rates_per_s.flops) for size, flops in job.least]
    burst_s = job.burst_s if job.burst_s is not None else median(estimates)
    scale = min(1.0, longest_s / (burst_s + job.pause_s))
    return Bursts(scale * burst_s, scale * job.pause_s)


def prepare(torch: Any, device: str, dtype: str) -> Device:
    """Choose sizes that suit the device."""
    stored = getattr(torch, dtype)
    if device != "cpu":
        longest = GPU_LONGEST_S / (KINDS * BURSTS)
        wait = wait_for_gpu(device)
        return Device(torch, device, stored, wait, GPU_COPY_BYTES, GPU_PRODUCT_SIZE, WARM_LEAST_S, longest)
    cache = cache_bytes(torch, device) or UNKNOWN_CACHE_BYTES
    longest = CPU_LONGEST_S / (KINDS * BURSTS)
    # What is read and what is written leave half of the free memory, where the caches of a large machine
    # would take it all.
    copied = min(CACHE_FACTOR * cache // 2, psutil.virtual_memory().available // 4)
    return Device(torch, device, stored, _nothing, copied, 1024, 0.0, longest)


def cache_bytes(torch: Any, device: str) -> int | None:
    """Return the bytes of the device's last-level cache; None where it is unknown."""
    if device == "cpu":
        return machine.cpu_cache_bytes()
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def memory_works(on: Device) -> tuple[Call, Call]:
    """Return a copy and the bytes it reads and writes, and a sum over all of these, which reads as many."""
    count = on.copy_bytes // on.dtype.itemsize
    both = fill(on, 2 * count)
    source, target = both[:count], both[count:]
    amount = 2.0 * count * on.dtype.itemsize
    return (lambda: target.copy_(source), amount), (lambda: both.sum(), amount)


def fill(on: Device, count: int) -> Any:
    """Return random-normal numbers, one block again and again: a CPU draws them far slower than it reads."""
    filled = on.torch.empty(count, dtype=on.dtype, device=on.name)
    block = filled[:BLOCK].normal_()
    for start in range(BLOCK, count, BLOCK):
        part = filled[start : start + BLOCK]
        part.copy_(block[: len(part)])
    return filled


def product_work(on: Device) -> Call:
    """Return a product of two square matrices and its FLOPs."""
    size = on.product_size
    left, right = (on.torch.randn(size, size, device=on.name).to(on.dtype) for _ in range(2))
    result = on.torch.empty_like(left)
    return lambda: on.torch.mm(left, right.t(), out=result), 2.0 * size**3


def first_rate(on: Device, work: Call) -> float:
    """Return about how much of the work a second does."""
    call, amount = work
    # The second, longer run counts; the first one meets cold caches.
    count = _repeats(GUESS_S, _burst(on, call, 1))
    return amount * count / _burst(on, call, count)


def rates(on: Device, work: Call, first: float, how: Bursts) -> list[int]:
    """Repeat the work back to back in bursts; returns the rate of each, `first` being a guess [unit/s]."""
    call, amount = work
    count = _repeats(how.burst_s, amount / first)
    end = time.monotonic() + on.warm_s
    while time.monotonic() < end:
        time.sleep(how.pause_s)
        count = _repeats(how.burst_s, _burst(on, call, count) / count)
    found = []
    for _ in range(BURSTS):
        time.sleep(how.pause_s)
        found.append(round(amount * count / _burst(on, call, count)))  # a fraction would only fill records
    return found


def _repeats(seconds: float, one_s: float) -> int:
    return max(1, round(seconds / one_s))


def _burst(on: Device, call: Callable[[], Any], count: int) -> float:
    """Return the seconds of `count` calls, the wait for the last one included."""
    on.wait()
    start = time.perf_counter()
    for _ in range(count):
        call()
    on.wait()
    return time.perf_counter() - start


def _nothing() -> None:
    """Return at once: a CPU's work is done when its call returns."""
