"""The host memory that this process takes, in bytes: now, and at most since its peak was reset."""

import resource
import sys
from pathlib import Path

import psutil


def resident() -> int:
    """Return what is resident now."""
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Let the peak begin anew, where the kernel can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the peak then includes what was before


def peak() -> int:
    """Return what was resident at most."""
    # ru_maxrss would do, but Linux lets a child start with its parent's.
    for line in _status():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status() -> list[str]:
    try:
        return Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return []
