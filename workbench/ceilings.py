"""What a device can do at most: its bandwidth by a large copy or read, its rate by a large product, by torch.

Measured on random-normal data in the row's dtype (a product of zeros draws less power and runs faster), in
bursts as long as a timed sample with a pause between them, so that the device is as warm as when it is timed.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from workbench import machine
from workbench.clock import wait_for_gpu

BURSTS = 8
"""Samples of each ceiling: what their interval is made of."""
PAUSE_S = 0.005
"""Between bursts, like the gap in which the harness stages its next sample."""
CACHE_FACTOR = 8
"""A copy of this many last-level caches comes from memory; the share of work on less says nothing."""
UNKNOWN_CACHE_BYTES = 64 << 20
GPU_COPY_BYTES = 2 << 30
GPU_PRODUCT_SIZE = 8192
CPU_LONGEST_S = 1.2
"""All bursts of one CPU job together: the shares are worth no more waiting there."""


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


def measure_ceilings(device: str, dtype: str, burst_s: float) -> dict[str, Any]:
    """Return all samples of `bandwidth_bytes_per_s` and `flops_per_s`, and `last_level_cache_bytes`."""
    import torch

    on = prepare(torch, device, dtype)
    if device == "cpu":
        burst_s = min(burst_s, CPU_LONGEST_S / (3 * BURSTS))
    with torch.no_grad():
        copied, read = (rates(on, work, burst_s) for work in (copy_work(on), read_work(on)))
        return {
            # Decode mostly reads. A CPU reads faster than it copies: it fetches what it is to overwrite.
            "bandwidth_bytes_per_s": max(copied, read, key=median),
            "flops_per_s": rates(on, product_work(on), burst_s),
            "last_level_cache_bytes": cache_bytes(torch, device),
        }


def prepare(torch: Any, device: str, dtype: str) -> Device:
    """Choose sizes that suit the device."""
    stored = getattr(torch, dtype)
    if device != "cpu":
        return Device(torch, device, stored, wait_for_gpu(device), GPU_COPY_BYTES, GPU_PRODUCT_SIZE)
    cache = cache_bytes(torch, device) or UNKNOWN_CACHE_BYTES
    # Two buffers make up the copy: what is read and what is written.
    return Device(torch, device, stored, _nothing, CACHE_FACTOR * cache // 2, 1024)


def cache_bytes(torch: Any, device: str) -> int | None:
    """Return the bytes of the device's last-level cache; None where it is unknown."""
    if device == "cpu":
        return machine.cpu_cache_bytes()
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def copy_work(on: Device) -> tuple[Callable[[], Any], float]:
    """Return a copy and the bytes that it reads and writes."""
    count = on.copy_bytes // on.dtype.itemsize
    source = on.torch.empty(count, dtype=on.dtype, device=on.name).normal_()
    target = on.torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * count * on.dtype.itemsize


def read_work(on: Device) -> tuple[Callable[[], Any], float]:
    """Return a sum over as much as a copy reads and writes, and the bytes that it reads."""
    count = 2 * on.copy_bytes // on.dtype.itemsize
    source = on.torch.empty(count, dtype=on.dtype, device=on.name).normal_()
    return lambda: source.sum(), float(count * on.dtype.itemsize)


def product_work(on: Device) -> tuple[Callable[[], Any], float]:
    """Return a product of two square matrices and its FLOPs."""
    size = on.product_size
    left, right = (on.torch.randn(size, size, device=on.name).to(on.dtype) for _ in range(2))
    result = on.torch.empty_like(left)
    return lambda: on.torch.mm(left, right.t(), out=result), 2.0 * size**3


def rates(on: Device, work: tuple[Callable[[], Any], float], burst_s: float) -> list[float]:
    """Repeat the work back to back in bursts of about `burst_s`; returns each burst's rate [unit/s]."""
    call, amount = work
    # The second, longer guess counts; the first one meets cold caches and clocks.
    guess = _repeats(burst_s / 4, _burst(on, call, 1))
    count = _repeats(burst_s, _burst(on, call, guess) / guess)
    found = []
    for _ in range(BURSTS):
        time.sleep(PAUSE_S)
        found.append(amount * count / _burst(on, call, count))
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
