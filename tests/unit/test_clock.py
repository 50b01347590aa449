"""The wait for a GPU, and where what it waits by is missing."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from backends.contract import Unsupported
from workbench.clock import Clock


def test_a_gpu_without_cuda_bindings_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.delitem(sys.modules, "cuda.bindings", raising=False)
    with pytest.raises(Unsupported, match=r"pip install 'cuda-bindings.*the backend's environment"):
        Clock("cuda:0")


def test_a_cpu_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda", None)
    assert Clock("cpu").now() <= Clock("cpu").now()


class Runtime:
    """A CUDA runtime that writes down which device is waited for."""

    cudaError_t = SimpleNamespace(cudaSuccess=SimpleNamespace(name="cudaSuccess"))

    def __init__(self) -> None:
        self.device = 0
        self.waited: list[int] = []
        self.status = self.cudaError_t.cudaSuccess

    def cudaSetDevice(self, device: int) -> tuple[object]:
        self.device = device
        return (self.status,)

    def cudaDeviceSynchronize(self) -> tuple[object]:
        self.waited.append(self.device)
        return (self.status,)


def test_a_gpu_is_waited_for_after_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setitem(sys.modules, "cuda", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=runtime))
    before: list[int] = []
    engine: Any = SimpleNamespace(sync=lambda: before.append(len(runtime.waited)))
    clock = Clock("cuda:1")
    clock.fence(engine)
    clock.fence(engine)
    assert (before, runtime.waited) == ([0, 1], [1, 1])
    runtime.status = SimpleNamespace(name="cudaErrorIllegalAddress")
    with pytest.raises(RuntimeError, match="cudaErrorIllegalAddress"):
        clock.fence(engine)
