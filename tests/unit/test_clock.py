"""The wait for a GPU, where what it waits by is missing."""

import sys

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
