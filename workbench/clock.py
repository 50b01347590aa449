"""The one clock: wall time on the host, and the fence that makes it cover the device's work."""

import time
from collections.abc import Callable

from backends.contract import Engine, Unsupported, ordinal
from backends.cuda_tools import succeed


class Clock:
    """Read the time and wait for the device; tests put a fake in its place."""

    def __init__(self, device: str) -> None:
        """Raise Unsupported for a GPU without cuda-bindings."""
        self._wait = wait_for_gpu(device) if device.startswith("cuda") else None

    def now(self) -> float:
        """Return seconds from an arbitrary start; never goes back."""
        return time.perf_counter()

    def fence(self, engine: Engine) -> None:
        """Return when everything given to the engine, and to its device by anybody here, is done."""
        engine.sync()
        if self._wait is not None:
            self._wait()


def wait_for_gpu(device: str) -> Callable[[], None]:
    """Return a wait for `cuda:N` that asks no framework, so that it is the same wait for every backend.

    The wait raises RuntimeError once the device has failed. Raises Unsupported without cuda-bindings.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise Unsupported(
            f"the clock waits for a GPU by cuda-bindings ({error}): pip install 'cuda-bindings>=13,<14' "
            "in the backend's environment"
        ) from error

    succeed(runtime, runtime.cudaSetDevice(ordinal(device)))

    def wait() -> None:
        succeed(runtime, runtime.cudaDeviceSynchronize())

    return wait
