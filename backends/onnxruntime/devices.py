"""Where ONNX Runtime works: how sessions are opened on a CPU or a GPU, and memory they use in place."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, helper
from onnxruntime import InferenceSession, OrtValue, RunOptions, SessionOptions

from backends.contract import POISON, Unsupported, ordinal
from backends.cuda_tools import succeed

Array = npt.NDArray[Any]

REFUSALS = ("NOT_IMPLEMENTED", "fallback to CPU EP")
"""What the runtime says where a provider has no kernel for a node."""


class Buffer(Protocol):
    """A tensor at a fixed address."""

    value: OrtValue
    """What is bound to a session's inputs and outputs."""
    shape: tuple[int, ...]

    def write(self, array: npt.ArrayLike) -> None:
        """Overwrite everything with an array that broadcasts to the shape."""

    def read(self) -> Array:
        """Return a copy on the host."""

    def poison(self, length: int) -> None:
        """Overwrite positions >= length of a cache [B, K, C, Dh]."""


class Device(Protocol):
    """A CPU or a GPU."""

    def open(self, model: bytes, weights: Mapping[str, Array]) -> InferenceSession:
        """Open a session that copies the weights; raises Unsupported where a kernel is missing."""

    def buffer(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Buffer:
        """Allocate a tensor."""

    def run_options(self, binding: int) -> RunOptions | None:
        """Return how to run with one of an engine's bindings, by its number."""

    def sync(self) -> None:
        """Return when the device is idle."""

    def stream(self) -> int | None:
        """Return the CUDA stream that sessions work on."""

    def close(self) -> None:
        """Free what sessions worked with; none may be left."""


class Cpu:
    """The provider that is always there, with as many threads as the process is given."""

    def open(self, model: bytes, weights: Mapping[str, Array]) -> InferenceSession:
        """Open a session; it packs its copy of the weights as its products want them."""
        options = SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", 0))  # 0: all cores
        return open_session(model, weights, options, ["CPUExecutionProvider"])

    def buffer(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Buffer:
        """Allocate zeros."""
        return HostBuffer(shape, dtype)

    def run_options(self, binding: int) -> RunOptions | None:  # noqa: ARG002
        """Return None: there is nothing to say."""
        return None

    def sync(self) -> None:
        """Return at once: a run returns when it is done."""

    def stream(self) -> int | None:
        """Return None."""
        return None

    def close(self) -> None:
        """Do nothing: sessions take their threads with them."""


class Gpu:
    """The provider for CUDA, on its own stream; a binding that is captured is so when it first runs."""

    def __init__(self, index: int, capture: bool) -> None:
        from cuda.bindings import runtime

        self._index, self._capture, self._cuda = index, capture, runtime
        self._succeed(runtime.cudaSetDevice(index))
        # A stream that CUDA's default one waits for, so that copies are in order with the sessions' work.
        self._stream = int(self._succeed(runtime.cudaStreamCreate()))

    def open(self, model: bytes, weights: Mapping[str, Array]) -> InferenceSession:
        """Open a session; every node has to run on the GPU, or no graph could be captured."""
        options = SessionOptions()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        settings = {
            "device_id": str(self._index),
            "user_compute_stream": str(self._stream),
            "enable_cuda_graph": str(int(self._capture)),
            "use_tf32": "0",  # float32 is to mean float32
            "arena_extend_strategy": "kSameAsRequested",  # doubling would hide what an engine needs
        }
        return open_session(model, weights, options, [("CUDAExecutionProvider", settings)])

    def buffer(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Buffer:
        """Allocate memory that holds anything."""
        return GpuBuffer(shape, np.dtype(dtype), self)

    def run_options(self, binding: int) -> RunOptions | None:
        """Name the binding's graph, if there is one, and do not wait for the GPU after each run."""
        options = RunOptions()
        if self._capture:
            options.add_run_config_entry("gpu_graph_id", str(binding))
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    def sync(self) -> None:
        """Wait for the stream."""
        self._succeed(self._cuda.cudaStreamSynchronize(self._stream))

    def stream(self) -> int | None:
        """Return the stream's handle."""
        return self._stream

    def close(self) -> None:
        """Destroy the stream."""
        self._succeed(self._cuda.cudaStreamDestroy(self._stream))

    def allocate(self, shape: Sequence[int], dtype: np.dtype[Any]) -> OrtValue:
        """Allocate a tensor of the runtime."""
        element_type = helper.np_dtype_to_tensor_dtype(dtype)
        return OrtValue.ortvalue_from_shape_and_type(shape, element_type, "cuda", self._index)

    def copy_in(self, address: int, pitch: int, rows: Array) -> None:
        """Copy rows [N, width] to the GPU, each to `pitch` bytes after the one before."""
        rows = np.ascontiguousarray(rows)
        width, kind = rows[0].nbytes, self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        source = rows.ctypes.data
        self._succeed(self._cuda.cudaMemcpy2D(address, pitch, source, width, width, len(rows), kind))

    def _succeed(self, answer: tuple[Any, ...]) -> Any:
        return succeed(self._cuda, answer)


class HostBuffer:
    """Memory of numpy, which the runtime shares."""

    def __init__(self, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        self._array = np.zeros(shape, dtype)
        self.shape = self._array.shape
        self.value = OrtValue.ortvalue_from_numpy(self._array)

    def write(self, array: npt.ArrayLike) -> None:
        """Overwrite everything."""
        self._array[...] = array

    def read(self) -> Array:
        """Return a copy."""
        return self._array.copy()

    def poison(self, length: int) -> None:
        """Overwrite positions >= length."""
        self._array[:, :, length:] = POISON


class GpuBuffer:
    """Memory of one GPU."""

    def __init__(self, shape: Sequence[int], dtype: np.dtype[Any], gpu: Gpu) -> None:
        self.shape, self._dtype, self._gpu = tuple(shape), dtype, gpu
        self.value = gpu.allocate(shape, dtype)

    def write(self, array: npt.ArrayLike) -> None:
        """Overwrite everything."""
        row = np.broadcast_to(np.asarray(array, self._dtype), self.shape).reshape(1, -1)
        self._gpu.copy_in(self.value.data_ptr(), row.nbytes, row)

    def read(self) -> Array:
        """Return a copy on the host, once the sessions' work is done."""
        self._gpu.sync()
        host: Array = self.value.numpy()
        return host

    def poison(self, length: int) -> None:
        """Overwrite positions >= length."""
        batch, heads, capacity, head_dim = self.shape
        row_bytes = head_dim * self._dtype.itemsize
        rows = np.full((batch * heads, (capacity - length) * head_dim), POISON, self._dtype)
        if rows.size:
            self._gpu.copy_in(self.value.data_ptr() + length * row_bytes, capacity * row_bytes, rows)


def open_device(name: str, capture: bool) -> Device:
    """Open `cpu` or `cuda:N`, there with or without CUDA graphs."""
    return Cpu() if name == "cpu" else Gpu(ordinal(name), capture)


def open_session(
    model: bytes, weights: Mapping[str, Array], options: SessionOptions, providers: Sequence[Any]
) -> InferenceSession:
    """Open a model with its inputs called like weights filled once and for all; raises Unsupported.

    As inputs of every run they could not be packed, which costs a CPU up to a third of its speed.
    """
    proto = ModelProto.FromString(model)
    filled = [each for each in proto.graph.input if each.name in weights]
    for each in filled:
        proto.graph.input.remove(each)
        proto.graph.initializer.append(promise(each.name, weights[each.name]))
    names = [each.name for each in filled]
    options.add_external_initializers(names, [share(weights[name]) for name in names])
    try:
        return InferenceSession(proto.SerializeToString(), options, providers=providers)
    except Exception as error:  # the runtime's errors have no base of their own
        if any(words in str(error) for words in REFUSALS):
            raise Unsupported(str(error)) from error
        raise


def promise(name: str, array: Array) -> TensorProto:
    """Describe a tensor whose values the session is given beside the model."""
    element_type = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=element_type, dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="beside the model")
    return tensor


def share(array: Array) -> OrtValue:
    """Lend an array to the runtime, which knows numpy's bfloat16 by its bits only."""
    if array.dtype == "bfloat16":
        return OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), TensorProto.BFLOAT16)
    return OrtValue.ortvalue_from_numpy(array)
