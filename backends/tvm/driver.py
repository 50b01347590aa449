"""A stand-in for CUDA's driver, for TVM compiles for a GPU only where its CUDA runtime can be loaded."""

from __future__ import annotations

import ctypes
from pathlib import Path
from tempfile import TemporaryDirectory

from tvm.libinfo import package_lib_paths
from tvm.support import cc
from tvm_ffi.libinfo import load_lib_ctypes

CALLED = (
    "cuDeviceGetName",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuLaunchKernelEx",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuTensorMapEncodeTiled",
)
"""What the runtime asks of a driver when it is loaded."""
NO_DEVICE = 100
"""CUDA's error for a machine without a GPU, which every function of the stand-in returns."""


def load_runtime_without_driver() -> None:
    """Load TVM's CUDA runtime upon a driver that finds no GPU; raises RuntimeError or OSError.

    Until the process ends it can compile for a GPU, and use none.
    """
    functions = "".join(f'extern "C" int {name}() {{ return {NO_DEVICE}; }}\n' for name in CALLED)
    with TemporaryDirectory() as folder:
        source, library = Path(folder) / "driver.cc", Path(folder) / "libcuda.so.1"
        source.write_text(functions)
        cc.create_shared(str(library), [str(source)], ["-Wl,-soname,libcuda.so.1"])
        ctypes.CDLL(str(library))
        load_lib_ctypes("tvm", "tvm_runtime_cuda", "RTLD_LOCAL", extra_lib_paths=package_lib_paths())
