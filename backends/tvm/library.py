"""Products by NVIDIA's library: functions that the compiled code calls by name, on its own stream."""

from __future__ import annotations

from typing import Any

import torch
import tvm_ffi

from backends.tvm.tuned_ops import LIBRARY_PRODUCT


def register(device: Any) -> None:
    """Make the functions known to TVM; `device` is where it runs."""
    stream: Any = torch.cuda.ExternalStream(device.stream(), device=device.handle.index)  # type: ignore[no-untyped-call]

    # x [M, K], weight [N, K], bias [N] or [1] that is not read, the result [M, N]
    def product(x: Any, weight: Any, bias: Any, out: Any) -> None:
        x, weight, bias, out = (torch.utils.dlpack.from_dlpack(each) for each in (x, weight, bias, out))
        with torch.inference_mode(), torch.cuda.stream(stream):
            if bias.shape[0] == out.shape[1]:
                torch.addmm(bias, x, weight.t(), out=out)
            else:
                torch.mm(x, weight.t(), out=out)

    tvm_ffi.register_global_func(LIBRARY_PRODUCT, product, override=True)
