"""See the device from the parent: what it is, who else uses it, how much memory it takes.

Needs no framework and makes no CUDA context: a GPU is seen through NVML only.
"""

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import psutil

from models.errors import UserError
from workbench.store import slug

BUSY_PERCENT = 10.0
"""Use by others above which a measurement is disturbed."""
BUSY_MEMORY_BYTES = 1 << 30
"""Memory of a GPU taken before we start that can only be another program's; drivers hold less."""
LOOK_S = 0.5
"""How long the use by others is watched at a time before a start."""
LOOKS = 6
"""NVML's utilisation is a mean over up to a second that is past: our own last worker is still in it."""


@dataclass(frozen=True)
class Device:
    """What a result must say of the hardware, and what planning needs to know of it."""

    device: str
    """`cpu` or `cuda:N`."""
    name: str
    architecture: str
    """`sm_90`, ... for a GPU; the machine's name (`x86_64`) for a CPU."""
    memory_bytes: int
    threads: int | None = None
    """Threads this process may use, for a CPU."""
    uuid: str | None = None
    driver: str | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    def identity(self) -> dict[str, Any]:
        """Return what a record keeps of the device as its `gpu`."""
        if self.is_gpu:
            return {"name": self.name, "uuid": self.uuid, "driver": self.driver}
        return {"name": self.name, "threads": self.threads, "uuid": self.uuid}


def resolve_device(device: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into `cpu` or `cuda:N`; raises UserError if it is not there."""
    if device == "auto":
        return "cuda:0" if _gpu_names() else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"unknown device {device!r}: give auto, cpu or cuda:N")
    names = _gpu_names()
    if int(index or 0) >= len(names):
        there = ", ".join(["cpu", *(f"cuda:{number} ({name})" for number, name in enumerate(names))])
        raise UserError(f"there is no {device} here: choose one of {there}")
    return f"cuda:{int(index or 0)}"


def describe(device: str) -> Device:
    """Describe a device that `resolve_device` returned."""
    if device == "cpu":
        return Device(
            device=device,
            name=_cpu_name(),
            architecture=platform.machine(),
            memory_bytes=psutil.virtual_memory().total,
            threads=_usable_threads(),
            uuid=_machine_uuid(),
        )
    with _nvml() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(_nvml_index(nvml, device))
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        architecture = f"sm_{major}{minor}"
        return Device(
            device=device,
            name=nvml.nvmlDeviceGetName(handle),
            architecture=architecture,
            memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            uuid=nvml.nvmlDeviceGetUUID(handle),
            driver=nvml.nvmlSystemGetDriverVersion(),
        )


class DeviceLock:
    """Hold a device, so that two measurements never share it; for `with`. Raises UserError if it is busy."""

    def __init__(self, device: Device, folder: Path) -> None:
        self._device = device
        self._path = folder / f"{slug(device.uuid or device.device)}.lock"
        self._holder = self._path.with_suffix(".holder")
        self._lock = filelock.FileLock(self._path, mode=0o666)  # others must be able to ask for it

    def __enter__(self) -> "DeviceLock":
        if not self._path.parent.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.parent.chmod(0o1777)  # as the folder for temporary files itself: anybody may add
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"{self._device.device} ({self._device.name}) is in use by {self._holder_name()}: "
                "wait for it to end, or choose another device"
            ) from None
        self._holder.write_text(json.dumps({"pid": os.getpid()}))
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.unlink(missing_ok=True)
        self._lock.release()

    def _holder_name(self) -> str:
        try:
            return f"another measurement (process {json.loads(self._holder.read_text())['pid']})"
        except (OSError, ValueError, KeyError, TypeError):
            return "another measurement"


class MemorySampler:
    """Sample a GPU's used memory while a worker runs; for `with`. A CPU's is seen by the worker itself."""

    INTERVAL_S = 0.05

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._baseline: int | None = None
        self._peak = 0

    @property
    def peak_bytes(self) -> int | None:
        """Return the highest use less the use before the start; None for a CPU."""
        return None if self._baseline is None else max(0, self._peak - self._baseline)

    def restart(self) -> None:
        """Forget the peak so far, but not the baseline: the next row's begins here."""
        self._peak = 0

    def __enter__(self) -> "MemorySampler":
        if self._device.is_gpu:
            with _nvml() as nvml:
                self._baseline = self._used(nvml)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _used(self, nvml: Any) -> int:
        handle = nvml.nvmlDeviceGetHandleByIndex(_nvml_index(nvml, self._device.device))
        return int(nvml.nvmlDeviceGetMemoryInfo(handle).used)

    def _sample(self) -> None:
        with _nvml() as nvml:
            while not self._stop.wait(self.INTERVAL_S):
                self._peak = max(self._peak, self._used(nvml))


def foreign_work(device: Device) -> tuple[str, ...]:
    """Warn of other programs that use the device now; takes `LOOK_S` seconds on an idle one."""
    return _foreign_gpu_work(device) if device.is_gpu else _foreign_cpu_work()


def _foreign_cpu_work() -> tuple[str, ...]:
    percent = psutil.cpu_percent(LOOK_S)
    if percent <= BUSY_PERCENT:
        return ()
    return (f"other programs use {percent:.0f} % of the CPU: stop them and run again for steadier times",)


def _foreign_gpu_work(device: Device) -> tuple[str, ...]:
    warnings = []
    with _nvml() as nvml:
        handle = nvml.nvmlDeviceGetHandleByIndex(_nvml_index(nvml, device.device))
        for _ in range(LOOKS):
            time.sleep(LOOK_S)
            percent = int(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            if percent <= BUSY_PERCENT:
                break
        used = int(nvml.nvmlDeviceGetMemoryInfo(handle).used)
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


@contextmanager
def _nvml() -> Iterator[Any]:
    """Open NVML; raises NVMLError where there is no driver."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


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


def _nvml_index(nvml: Any, device: str) -> int:
    return _visible(nvml)[int(device.partition(":")[2])]


def _gpu_names() -> list[str]:
    """Name the GPUs that CUDA would show, in its order; none without a driver."""
    import pynvml

    try:
        with _nvml() as nvml:
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in _visible(nvml)]
            return [str(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    except pynvml.NVMLError:
        return []


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "cpu"


def thread_environment(device: Device) -> dict[str, str]:
    """Give every worker on a CPU as many threads as its record says, whatever other variables say."""
    if device.is_gpu:
        return {}
    return {f"{name}_NUM_THREADS": str(device.threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}


def _machine_uuid() -> str:
    """Tell machines with processors of one name apart; systemd wants its identifier shown hashed only."""
    try:
        identifier = Path("/etc/machine-id").read_text().strip()
    except OSError:
        identifier = ""
    return hashlib.sha256((identifier or platform.node()).encode()).hexdigest()[:16]


def _usable_threads() -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(limit)) if limit.isdecimal() and int(limit) else usable


def cpu_cache_bytes() -> int | None:
    """Return the bytes of the largest cache that Linux names for the first CPU; None elsewhere."""
    sizes = [_read_size(path) for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max(sizes, default=None)


def _read_size(path: Path) -> int:
    text = path.read_text().strip()
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
