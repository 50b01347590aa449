"""Watch the device from the parent: other programs on it, and a GPU's clocks and memory while a worker runs.

Needs no framework and makes no CUDA context. Who uses a GPU cannot be asked: in a container NVML's list of
processes is empty or counts by the host's numbers. Other programs are therefore seen by what the GPU does
while no worker of ours runs: before each one, and by the memory that is left after it. What they do beside a
worker cannot be told from its own work.
"""

import threading
import time
from contextlib import suppress
from typing import Any

import psutil

from models.errors import UserError
from workbench.device import nvml
from workbench.device.conditions import Sighting, summarise
from workbench.device.machine import Device
from workbench.job import STAGES, Json

BUSY_PERCENT = 10.0
"""Use by others above which a measurement is disturbed."""
BUSY_MEMORY_BYTES = 1 << 30
"""Memory of a GPU taken before we start that can only be another program's; drivers hold less."""
GROWN_BYTES = 256 << 20
"""Memory left when a worker is gone that can only be another program's: an empty CUDA context takes more."""
MAKING = ("start", "load", "build")
"""The stages in which an engine comes to be; their memory counts for each of its rows."""
LOOK_S = 0.5
"""How long the use by others is watched at a time before a start."""
LOOKS = 6
"""NVML's utilisation is a mean over up to a second that is past: our own last worker is still in it."""


class Watch:
    """Sample a GPU while a worker runs; for `with`. A CPU is not: its memory the worker sees itself."""

    INTERVAL_S = 0.05

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._idle: int | None = None
        self._doing = "start"
        self._peaks: dict[str, int] = {}
        self._seen: dict[str, list[Sighting]] = {}

    def enter(self, doing: str) -> None:
        """Take note of what the worker does from now on: a stage, or the row it warms up and times."""
        self._doing = doing

    def begin_samples(self, row: str) -> None:
        """Take note that a row's samples are taken from now on; what was seen before is forgotten.

        It was other work: filling a long context heats a card and holds its clock down as steps do not.
        """
        self._seen[row] = []

    def peak_of(self, row: str) -> int | None:
        """Return the highest use of memory less the use before the start; None for a CPU or if unknown.

        It is that of the engine's making and of the row's timing, but not of the checks.
        """
        if self._idle is None or not self._peaks:
            return None
        return max(0, max(self._peaks.get(doing, 0) for doing in (*MAKING, row)) - self._idle)

    def conditions(self, row: str) -> Json:
        """Return how the GPU was while a row's samples were taken, and the memory held before the start."""
        return summarise(self._seen.get(row, [])) | ({} if self._idle is None else {"idle_bytes": self._idle})

    def left_behind(self) -> tuple[str, ...]:
        """Warn of memory that others have taken since the start; to be asked once the worker is gone."""
        if self._idle is None:
            return ()
        with nvml.opened() as opened:
            handle = nvml.handle_of(opened, self._device.device)
            for look in range(LOOKS):  # the driver may take a moment to give back a killed worker's
                grown = (nvml.used_bytes(opened, handle) or 0) - self._idle
                if grown <= GROWN_BYTES:
                    return ()
                if look < LOOKS - 1:
                    time.sleep(LOOK_S)
        return (
            f"another program took {grown / (1 << 30):.1f} GiB of {self._device.device} during a process, "
            "which counts in the row's memory and may have slowed it: stop it (see nvidia-smi) and run with "
            "--again",
        )

    def __enter__(self) -> "Watch":
        if self._device.is_gpu:
            with nvml.opened() as opened:
                self._idle = nvml.used_bytes(opened, nvml.handle_of(opened, self._device.device))
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _sample(self) -> None:
        # A card that fails is told by the worker, and by the look when it is gone.
        with suppress(UserError), nvml.opened() as opened:
            handle = nvml.handle_of(opened, self._device.device)
            while not self._stop.wait(self.INTERVAL_S):
                doing = self._doing
                used = nvml.used_bytes(opened, handle)
                if used is not None:
                    self._peaks[doing] = max(used, self._peaks.get(doing, 0))
                if doing not in STAGES:
                    self._seen.setdefault(doing, []).append(look_at(opened, handle))


def look_at(opened: Any, handle: Any) -> Sighting:
    """See how a GPU is now."""
    return Sighting(
        sm_mhz=nvml.ask(opened, "nvmlDeviceGetClockInfo", handle, opened.NVML_CLOCK_SM),
        memory_mhz=nvml.ask(opened, "nvmlDeviceGetClockInfo", handle, opened.NVML_CLOCK_MEM),
        power_w=nvml.power_w(opened, handle),
        temperature_c=nvml.ask(opened, "nvmlDeviceGetTemperature", handle, opened.NVML_TEMPERATURE_GPU),
        utilisation_percent=nvml.utilisation_percent(opened, handle),
        reasons=nvml.ask(opened, "nvmlDeviceGetCurrentClocksEventReasons", handle),
        at_s=time.monotonic(),
    )


def foreign_work(device: Device) -> tuple[str, ...]:
    """Warn of other programs that use the device now, or a GPU's host; takes `LOOK_S` on an idle one."""
    psutil.cpu_percent()  # the next call tells of the time since
    if device.is_gpu:
        return _foreign_gpu_work(device) + _foreign_host_work()
    time.sleep(LOOK_S)
    return _foreign_cpu_work(device)


def _foreign_cpu_work(device: Device) -> tuple[str, ...]:
    cores = _busy_cores()
    if 100 * cores <= BUSY_PERCENT * (device.threads or 1):
        return ()
    return (
        f"other programs keep {cores:.1f} cores busy beside the {device.threads} threads measured: stop them "
        "and run again for steadier times",
    )


def _foreign_host_work() -> tuple[str, ...]:
    cores, whole = _busy_cores(), psutil.cpu_count() or 1
    if 100 * cores <= BUSY_PERCENT * whole:
        return ()
    return (
        f"other programs keep {cores:.1f} of the host's {whole} cores busy, which may slow what launches the "
        "GPU's work: stop them and run again",
    )


def _busy_cores() -> float:
    """Return how many cores programs kept busy since this was asked last; we only waited meanwhile."""
    return psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)


def _foreign_gpu_work(device: Device) -> tuple[str, ...]:
    warnings = []
    with nvml.opened() as opened:
        handle = nvml.handle_of(opened, device.device)
        for _ in range(LOOKS):
            time.sleep(LOOK_S)
            percent = nvml.utilisation_percent(opened, handle) or 0
            if percent <= BUSY_PERCENT:
                break
        used = nvml.used_bytes(opened, handle) or 0
    if percent > BUSY_PERCENT:
        warnings.append(
            f"other programs keep {device.device} {percent} % busy: stop them (see nvidia-smi) and run again"
        )
    if used > BUSY_MEMORY_BYTES:
        warnings.append(
            f"other programs hold {used / (1 << 30):.1f} GiB of {device.device}: stop them (see nvidia-smi) "
            "if rows run out of memory or times scatter"
        )
    return tuple(warnings)
