"""NVML: opened for a moment, its GPUs in CUDA's order, and questions that a card may leave unanswered."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from backends.contract import ordinal
from models.errors import UserError


@contextmanager
def opened() -> Iterator[Any]:
    """Open NVML; raises UserError where there is no driver, or where it fails meanwhile."""
    import pynvml

    try:
        pynvml.nvmlInit()
        try:
            yield pynvml
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise UserError(f"NVML does not answer: {error}; see what nvidia-smi says") from error


def ask(nvml: Any, call: str, *arguments: Any) -> Any:
    """Return what NVML answers; None where this card or driver does not support the question."""
    try:
        return getattr(nvml, call)(*arguments)
    except nvml.NVMLError:
        return None


def handle_of(nvml: Any, device: str) -> Any:
    """Return NVML's handle of `cuda:N`."""
    return nvml.nvmlDeviceGetHandleByIndex(_visible(nvml)[ordinal(device)])


def gpu_names() -> list[str]:
    """Name the GPUs that CUDA would show, in its order; none without a driver."""
    try:
        with opened() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in _visible(nvml)]
            return [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    except UserError:
        return []


def used_bytes(nvml: Any, handle: Any) -> int | None:
    """Return the memory that all programs and the driver hold; None where NVML does not tell."""
    memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    return None if memory is None else int(memory.used)


def utilisation_percent(nvml: Any, handle: Any) -> int | None:
    """Return the share of the last second or less in which a kernel ran; None where NVML does not tell."""
    rates = ask(nvml, "nvmlDeviceGetUtilizationRates", handle)
    return None if rates is None else int(rates.gpu)


def power_w(nvml: Any, handle: Any) -> float | None:
    """Return the power drawn now, or where NVML has no such number its mean over a second; None without."""
    fields = ask(nvml, "nvmlDeviceGetFieldValues", handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
    if fields is not None and fields[0].nvmlReturn == nvml.NVML_SUCCESS and fields[0].value.uiVal:
        return float(fields[0].value.uiVal) / 1000
    mean = ask(nvml, "nvmlDeviceGetPowerUsage", handle)
    return None if mean is None else mean / 1000


def _visible(nvml: Any) -> list[int]:
    """Return NVML's index of every GPU in CUDA's order, as far as CUDA_VISIBLE_DEVICES shows them."""
    everything = list(range(nvml.nvmlDeviceGetCount()))
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is None:
        return everything
    uuids = {nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(index)): index for index in everything}
    found = []
    for name in filter(None, (part.strip() for part in shown.split(","))):
        matches = [index for uuid, index in uuids.items() if uuid.startswith(name)]
        if name.isdecimal() and int(name) in everything:
            matches = [int(name)]
        if len(matches) != 1:
            break  # CUDA too stops at the first name it does not know
        found += matches
    return found
