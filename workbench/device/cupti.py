"""Trace what the GPU runs, through NVIDIA's CUPTI; an optional package, and never beside a timed sample."""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

from workbench.device.kernels import Activity

INSTALL = "pip install 'cupti-python==13.0.1'"
BUFFER_BYTES = 8 << 20
"""What CUPTI is given at a time for its records; some 30,000 kernels."""


def missing() -> str | None:
    """Say why kernels cannot be traced in this environment; None if they can."""
    try:
        from cupti import cupti  # noqa: F401 (only whether it is there)
    except ImportError as error:
        return f"cupti-python cannot be imported ({error}): {INSTALL} in the backend's environment"
    return None


class Tracer:
    """Traces calls one after another in this process.

    CUPTI stays attached afterwards: detaching it crashes processes that hold CUDA graphs. It slows launches
    down from the first trace on, so nothing is timed after.
    """

    def __init__(self) -> None:
        """Register with CUPTI; raises ImportError or CUPTI's own errors."""
        from cupti import cupti

        self._cupti = cupti
        kinds = cupti.ActivityKind
        self._kinds = (kinds.CONCURRENT_KERNEL, kinds.MEMCPY, kinds.MEMSET)
        self._found: list[Activity] = []
        cupti.activity_register_callbacks(lambda: (BUFFER_BYTES, 0), self._take)

    def trace(self, run: Callable[[], None]) -> list[Activity]:
        """Return what the GPU ran during `run`, which ends with a wait for the device."""
        self._found = []
        enabled = []
        try:
            for kind in self._kinds:
                self._cupti.activity_enable(kind)
                enabled.append(kind)
            run()
        finally:
            self._cupti.activity_flush_all(1)
            for kind in enabled:
                self._cupti.activity_disable(kind)
        return self._found

    def _take(self, records: list[Any]) -> None:
        # Read here and now: the records lie in a buffer that CUPTI uses again.
        kernel, copy, _ = self._kinds
        for record in records:
            if record.kind == kernel:
                name = demangle(record.name)
            elif record.kind == copy:
                name = f"memcpy_{self._cupti.ActivityMemcpyKind(record.copy_kind).name}"
            else:
                name = "memset"
            if record.end > record.start:  # a forced flush may bring records of what never ended
                self._found.append(Activity(name, record.start, record.end))


@cache
def demangle(name: str) -> str:
    """Write a C++ kernel's name as in its source, by the C++ runtime that CUPTI itself is linked with."""
    if not name.startswith("_Z"):
        return name
    try:
        demangler = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    except (OSError, AttributeError):
        return name
    demangler.restype = ctypes.c_void_p
    found = demangler(name.encode(), None, None, None)
    if not found:
        return name
    text = ctypes.string_at(found).decode(errors="replace")
    free = ctypes.CDLL(None).free
    free.argtypes = (ctypes.c_void_p,)
    free(found)
    return text
