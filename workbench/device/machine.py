"""Who the device is: what a result must say of it, and what planning needs to know.

Needs no framework and makes no CUDA context: a GPU is seen through NVML only.
"""

import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from models.errors import UserError
from workbench.device.nvml import ask, gpu_names, handle_of, opened


@dataclass(frozen=True)
class Device:
    """What a result must say of the hardware, and what planning needs to know of it.

    What NVML does not tell of a GPU is None.
    """

    device: str
    """`cpu` or `cuda:N`."""
    name: str
    architecture: str
    """`sm_90`, ... for a GPU; the machine's name (`x86_64`) for a CPU."""
    memory_bytes: int | None
    threads: int | None = None
    """Threads this process may use, for a CPU."""
    uuid: str | None = None
    driver: str | None = None
    power_limit_w: int | None = None
    """What the driver enforces, by whomever it was set."""
    ecc: bool | None = None
    """Whether memory corrects errors, which costs some of its bandwidth on some cards."""
    max_sm_mhz: int | None = None
    max_memory_mhz: int | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device != "cpu"

    def identity(self) -> dict[str, Any]:
        """Return what a record keeps of the device as its `gpu`."""
        if not self.is_gpu:
            return {"name": self.name, "threads": self.threads, "uuid": self.uuid}
        return {
            "name": self.name,
            "uuid": self.uuid,
            "driver": self.driver,
            "memory_bytes": self.memory_bytes,
            "power_limit_w": self.power_limit_w,
            "ecc": self.ecc,
            "max_sm_mhz": self.max_sm_mhz,
            "max_memory_mhz": self.max_memory_mhz,
        }


def resolve_device(device: str) -> str:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into `cpu` or `cuda:N`; raises UserError if it is not there."""
    if device == "auto":
        return "cuda:0" if gpu_names() else "cpu"
    if device == "cpu":
        return device
    kind, _, index = device.partition(":")
    if kind != "cuda" or not (index or "0").isdecimal():
        raise UserError(f"unknown device {device!r}: give auto, cpu or cuda:N")
    names = gpu_names()
    if int(index or 0) >= len(names):
        there = ", ".join(["cpu", *(f"cuda:{number} ({name})" for number, name in enumerate(names))])
        raise UserError(f"there is no {device} here: choose one of {there}")
    return f"cuda:{int(index or 0)}"


def describe(device: str) -> Device:
    """Describe a device that `resolve_device` returned."""
    if device != "cpu":
        return _describe_gpu(device)
    return Device(
        device=device,
        name=_cpu_name(),
        architecture=platform.machine(),
        memory_bytes=psutil.virtual_memory().total,
        threads=_usable_threads(),
        uuid=_machine_uuid(),
    )


def _describe_gpu(device: str) -> Device:
    with opened() as nvml:
        handle = handle_of(nvml, device)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        memory = ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
        limit_mw = ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
        ecc = ask(nvml, "nvmlDeviceGetEccMode", handle)
        return Device(
            device=device,
            name=nvml.nvmlDeviceGetName(handle),
            architecture=f"sm_{major}{minor}",
            memory_bytes=None if memory is None else int(memory.total),
            uuid=nvml.nvmlDeviceGetUUID(handle),
            driver=nvml.nvmlSystemGetDriverVersion(),
            power_limit_w=None if limit_mw is None else round(limit_mw / 1000),
            ecc=None if ecc is None else bool(ecc[0]),  # the second is what a restart would make it
            max_sm_mhz=ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
            max_memory_mhz=ask(nvml, "nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
        )


CPUINFO = Path("/proc/cpuinfo")


def _cpu_name() -> str:
    return _cpu_fact("model name") or platform.processor() or platform.machine() or "cpu"


def _cpu_fact(*names: str, cpuinfo: Path = CPUINFO) -> str:
    """Return what Linux says of the first CPU under one of these names; empty where it says nothing."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
    except OSError:
        return ""
    return next((value.strip() for name, _, value in lines if name.strip() in names), "")


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


def _usable_cpus() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def instruction_sets(cpuinfo: Path = CPUINFO) -> str:
    """Name in 8 characters what instructions the CPU has: virtual ones share a name. Empty if unknown."""
    words = " ".join(sorted(_cpu_fact("flags", "Features", cpuinfo=cpuinfo).split()))
    return hashlib.sha256(words.encode()).hexdigest()[:8] if words else ""


def _usable_threads() -> int:
    usable = len(_usable_cpus())
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(usable, int(limit)) if limit.isdecimal() and int(limit) else usable


def cpu_cache_bytes(root: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Return the bytes of all last-level caches of the CPUs we may use; None where Linux names none.

    A processor may have several: an EPYC has one for every few cores.
    """
    caches: dict[tuple[int, str], int] = {}
    for cpu in _usable_cpus():
        for size in (root / f"cpu{cpu}" / "cache").glob("index*/size"):
            level, shared = ((size.parent / name).read_text() for name in ("level", "shared_cpu_list"))
            caches[int(level), shared] = _read_size(size)
    last = max((level for level, _ in caches), default=None)
    return sum(size for (level, _), size in caches.items() if level == last) or None


def _read_size(path: Path) -> int:
    text = path.read_text().strip()
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)
