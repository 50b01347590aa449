"""One contestant for each backend, option, device and data type, and the models they run."""

import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import pynvml
import pytest

from backends import registry
from backends.contract import Artefact, Backend, Engine, Shapes, Target, Unsupported
from models.checkpoint import Weights, open_checkpoint
from models.config import DecoderConfig
from tests.contract.reference import FAMILIES, write_checkpoint
from workbench.checking.checks import capacity_for

GATE_SHAPES = Shapes(batch=2, prompts=(20,), capacity=capacity_for(20, 0))
"""What the gate tries engines with, and what every family is built for, so that both are built once."""
DTYPES = ("float32", "bfloat16")
OF_TORCH_ITSELF = (
    "`torch.jit:DeprecationWarning",
    "The CUDA Graph is empty:UserWarning",  # how its graph trees warm up
    "TensorFloat32 tensor cores:UserWarning",  # float32 here is to mean float32
    r"\s*Online softmax is disabled:UserWarning",
)
"""Warnings that torch.compile raises inside torch, whatever it compiles."""

OTHER_WAYS = (("import", "torch"), ("attention", "block-sparse"), ("attention", "xqa"))
"""Values of options that lead to an engine's code by a way of their own."""

ARTEFACTS: dict[tuple[object, ...], Artefact] = {}
"""What this session has built so far."""


def pytest_configure(config: pytest.Config) -> None:
    """Pass over what torch says of its own compiler; threads would slow small tensors down."""
    for line in OF_TORCH_ITSELF:
        config.addinivalue_line("filterwarnings", f"ignore:{line}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Keep torch to one thread also where its OpenMP was loaded before that variable was set.

    Two processes of two threads wait for one another on two cores: that takes ten times as long.
    """
    if find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@dataclass(frozen=True)
class Contestant:
    """One way to run the model here."""

    backend: Backend
    options: dict[str, str]
    device: str
    dtype: str

    def build(self, config: DecoderConfig, shapes: Shapes) -> Artefact:
        """Build for this machine; skips with the backend's reason where it cannot."""
        target = Target(self.device, self.dtype, architecture(self.device))
        try:
            return build_once(self.backend, config, shapes, target, self.options)
        except Unsupported as unsupported:
            pytest.skip(str(unsupported))

    def engine(self, weights: Weights, shapes: Shapes) -> Engine:
        """Build and load; skips with the backend's reason where it cannot."""
        artefact = self.build(weights.config, shapes)
        try:
            return self.backend.load(artefact, weights)
        except Unsupported as unsupported:
            pytest.skip(str(unsupported))


def build_once(
    backend: Backend, config: DecoderConfig, shapes: Shapes, target: Target, options: dict[str, str]
) -> Artefact:
    """Build what was not built yet in this session: an artefact is loaded any number of times."""
    key = (backend.name, config, shapes, target, *sorted(options.items()))
    if key not in ARTEFACTS:
        ARTEFACTS[key] = backend.build(config, shapes, target, options)
    return ARTEFACTS[key]


def forget_programs() -> None:
    """Let torch.compile start anew, as in a worker, which has one model: sizes in which it sees two models
    differ become symbols, and compiling with many of those takes minutes.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].compiler.reset()


def architecture(device: str) -> str:
    """Name what a device executes, as `Target` has it."""
    if device == "cpu":
        return platform.machine()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(int(device.partition(":")[2]))
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return f"sm_{major}{minor}"


def takes(backend: Backend, key: str, value: str) -> bool:
    """Tell whether a backend has an option with that value."""
    return key in backend.options and value in backend.options[key].values


def contestants() -> Iterator[Any]:
    """List every backend, bare, with each of its switches and by its other ways, on every device and data
    type it has here.
    """
    for name in registry.names():
        if name == "null":  # computes nothing and has tests of its own
            continue
        backend = registry.find(name)
        probe = backend.probe()
        if not probe.usable:
            yield pytest.param(None, id=name, marks=pytest.mark.skip(reason=f"{name}: {probe.reason}"))
            continue
        variants = [{key: ""} for key, option in backend.options.items() if not option.values]
        variants += [{key: way} for key, way in OTHER_WAYS if takes(backend, key, way)]
        for options in ({}, *variants):
            for kind in probe.devices:
                # An option shows in one data type on a CPU: compiling is most of the suite's time.
                dtypes = DTYPES[:1] if options and kind == "cpu" else DTYPES
                for dtype in (dtype for dtype in dtypes if dtype in probe.dtypes):
                    device = "cuda:0" if kind == "cuda" else kind
                    chosen = (part for pair in options.items() for part in pair if part)
                    label = "-".join([name, *chosen, kind, dtype])
                    yield pytest.param(Contestant(backend, options, device, dtype), id=label)


@pytest.fixture(scope="module", params=list(contestants()))
def contestant(request: pytest.FixtureRequest) -> Contestant:
    """Run the test once for each backend, option, device and data type."""
    return request.param


@pytest.fixture(scope="session")
def open_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Weights]:
    """Return a function (family, dtype) -> its small random checkpoint, opened."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        write_checkpoint(FAMILIES[family], folder)
    return lambda family, dtype: open_checkpoint(folders[family], dtype)
