"""Where TVM's functions run: a CPU, or a GPU on one stream, where each is captured as a CUDA graph."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm

from backends.contract import ordinal
from backends.cuda_tools import succeed
from backends.tvm.storage import kept_storage, watch_allocations

Array = npt.NDArray[Any]
Tensor = Any  # of TVM's runtime


class Device(Protocol):
    """A CPU or a GPU."""

    handle: Any
    """TVM's device."""

    def replayed(self, call: Callable[[], Any], advanced: Sequence[Tensor]) -> Callable[[], None]:
        """Return how to call a bound function ever after; `advanced` are buffers it both reads and writes."""

    def sync(self) -> None:
        """Return when the device is idle."""

    def stream(self) -> int | None:
        """Return the handle of the CUDA stream."""


class Cpu:
    """The host, with TVM's pool of threads."""

    def __init__(self) -> None:
        self.handle = tvm.cpu()

    def replayed(self, call: Callable[[], Any], advanced: Sequence[Tensor]) -> Callable[[], None]:  # noqa: ARG002
        """Return the call itself."""
        return call

    def sync(self) -> None:
        """Return at once: a call returns when it is done."""

    def stream(self) -> int | None:
        """Return None."""
        return None


class Gpu:
    """One GPU with a stream of its own, since CUDA's default stream cannot be captured."""

    WARM_UPS = 2
    """Calls before the capture, in which kernels are loaded and memory is taken from the driver."""

    def __init__(self, index: int) -> None:
        from cuda.bindings import runtime

        self.cuda, self.handle = runtime, tvm.cuda(index)
        succeed(runtime, runtime.cudaSetDevice(index))
        self.created = succeed(runtime, runtime.cudaStreamCreate())
        self.handle.set_raw_stream(int(self.created))
        watch_allocations()

    def replayed(self, call: Callable[[], Any], advanced: Sequence[Tensor]) -> Callable[[], None]:
        """Capture a call as one CUDA graph when it first runs; `advanced` is then what it was before."""
        captured: list[Any] = []

        def run() -> None:
            if not captured:
                captured.extend(self.capture(call, advanced))
            succeed(self.cuda, self.cuda.cudaGraphLaunch(captured[0], self.created))

        return run

    def capture(self, call: Callable[[], Any], advanced: Sequence[Tensor]) -> tuple[Any, list[Any]]:
        """Return an executable graph of one call, and the storage it works in."""
        before = [each.numpy() for each in advanced]
        for _ in range(self.WARM_UPS):
            with kept_storage():  # as for the capture: what a call gives back is not used again in it
                call()
        self.sync()
        for each, value in zip(advanced, before, strict=True):
            each.copyfrom(value)
        self.sync()
        gc.collect()  # memory of an engine that is gone, if freed while capturing, would end the capture
        mode = self.cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        succeed(self.cuda, self.cuda.cudaStreamBeginCapture(self.created, mode))
        with kept_storage() as storage:
            try:
                call()
            finally:
                graph = succeed(self.cuda, self.cuda.cudaStreamEndCapture(self.created))
        return succeed(self.cuda, self.cuda.cudaGraphInstantiate(graph, 0)), storage

    def sync(self) -> None:
        """Wait for the stream, and for copies on CUDA's default one."""
        self.handle.sync()
        succeed(self.cuda, self.cuda.cudaStreamSynchronize(self.created))

    def stream(self) -> int | None:
        """Return the stream's handle."""
        return int(self.created)


def place(array: Array, handle: Any) -> Tensor:
    """Copy an array to a device of TVM, aligned as its functions want it; bfloat16 goes by its bits."""
    tensor = tvm.runtime.empty(array.shape, array.dtype.name, handle)
    bits = f"uint{8 * array.itemsize}"
    tensor._create_view(array.shape, bits).copyfrom(np.ascontiguousarray(array).view(bits))
    return tensor


@cache
def open_device(name: str) -> Device:
    """Open `cpu` or `cuda:N`, once a process."""
    return Cpu() if name == "cpu" else Gpu(ordinal(name))
