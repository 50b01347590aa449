"""What `onnxruntime` builds for whom, what it refuses, and what it says of it."""

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.contract import POISON, Target, Unsupported
from tests.contract.reference import FAMILIES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from backends.onnxruntime.devices import Gpu, GpuBuffer, HostBuffer  # noqa: E402 (the runtime may be missing)
from tests.contract.onnxruntime_ways import SHAPES, WAYS, OpenFamily, build  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_the_cpu_has_no_kernels_for_is_unsupported(open_family: OpenFamily, dtype: str) -> None:
    with pytest.raises(Unsupported, match=f"no product in {dtype}"):
        build(open_family("llama", dtype))


def test_an_import_brings_its_own_attention(open_family: OpenFamily) -> None:
    with pytest.raises(Unsupported, match="leave out attention="):
        build(open_family("llama", "float32"), "onnxruntime[import=torch,attention=standard]")


def test_an_import_says_what_it_needs(open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    weights = open_family("llama", "float32")
    with pytest.raises(Unsupported, match="needs onnxscript"):
        registry.find("onnxruntime").build(
            weights.config, SHAPES, Target("cpu", "float32", "any"), {"import": "torch"}
        )


def test_an_import_chooses_tokens_in_float32(open_family: OpenFamily) -> None:
    """No provider has an ArgMax of bfloat16."""
    config = open_family("llama", "bfloat16").config
    target = Target("cuda:0", "bfloat16", "sm_90")
    built = registry.find("onnxruntime").build(config, SHAPES, target, {"import": "torch"})
    for model in model_bytes(built.payload):
        graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(model)).graph
        types = {each.name: each.type.tensor_type.elem_type for each in graph.value_info}
        (chooses,) = (node for node in graph.node if node.op_type == "ArgMax")
        assert types[chooses.input[0]] == onnx.TensorProto.FLOAT


def model_bytes(programs: Any) -> list[bytes]:
    return [programs.decode, *programs.prefills.values()]


def test_an_artefact_says_how_the_model_got_there(open_family: OpenFamily) -> None:
    artefacts = [build(open_family("llama", "float32"), name) for name in WAYS]
    assert [each.definition for each in artefacts] == ["common", "common", "imported"]
    assert [each.provenance for each in artefacts] == [
        "configured: attention=group-query",
        "stock",
        "stock",
    ]


@pytest.mark.parametrize(
    ("device", "dtype", "attention"),
    [
        ("cpu", "float32", "group-query"),
        ("cuda:0", "bfloat16", "group-query"),
        ("cuda:0", "float32", "standard"),
    ],
)
def test_attention_is_what_the_device_has_kernels_for(device: str, dtype: str, attention: str) -> None:
    target = Target(device, dtype, "any")
    artefact = registry.find("onnxruntime").build(FAMILIES["llama"], SHAPES, target, {})
    operators = {node.op_type for node in onnx.ModelProto.FromString(artefact.payload.decode).graph.node}
    assert ("GroupQueryAttention" in operators) == (attention == "group-query")


@pytest.mark.parametrize("package", ["onnxruntime", "onnx"])
def test_a_missing_package_is_a_reason_not_an_error(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    probe = registry.find("onnxruntime").probe()
    assert probe.reason == f"{package} is not installed"
    assert probe.install
    assert not probe.devices


def test_a_model_is_written_without_the_runtime() -> None:
    code = "import sys, backends.onnxruntime.export; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


class FakeCuda:
    """The copies of CUDA's runtime, on the host."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1)

    def cudaMemcpy2D(self, target: int, pitch: int, source: int, *rest: Any) -> tuple[int]:
        source_pitch, width, rows, _ = rest
        for row in range(rows):
            ctypes.memmove(target + row * pitch, source + row * source_pitch, width)
        return (0,)


@pytest.mark.parametrize("length", [0, 3, 24])
def test_memory_of_a_gpu_is_written_as_that_of_the_host(monkeypatch: pytest.MonkeyPatch, length: int) -> None:
    gpu = Gpu.__new__(Gpu)
    gpu._cuda = FakeCuda()
    shape, values = (2, 3, 24, 4), np.random.default_rng(0).random((2, 3, 24, 4), np.float32)
    host = HostBuffer(shape, np.float32)
    memory = HostBuffer(shape, np.float32)
    monkeypatch.setattr(gpu, "allocate", lambda *_: memory.value)
    buffer = GpuBuffer(shape, np.dtype(np.float32), gpu)
    for each in (host, buffer):
        each.write(values)
        each.poison(length)
    np.testing.assert_array_equal(memory.read(), host.read())
    assert (memory.read()[:, :, length:] == POISON).all()
