"""What the options of `tvm` settle, before anything of the framework is imported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backends.contract import SOURCES, Target, Unsupported

LIBRARIES = ("none", "cublas")
CPU_KERNELS = ("RowProduct", "Elementwise", "rms_norm", "attend", "finish")
"""Schedules and TIR of ours on a CPU."""
GPU_KERNELS = (
    "skinny_product",
    "tensor_core_product",
    "prefill_attention",
    "decode_attention",
    "rotate_and_write",
    "add_rms_norm",
    "swiglu",
    "keep_logits",
    "choose_token",
)
"""TIR of ours on a GPU."""


@dataclass(frozen=True)
class Plan:
    """How the model is lowered and compiled."""

    stock: bool
    """Whether TVM's default pipeline compiles Relax's own operators, for TVM's own name of the device."""
    provenance: str
    library: bool = False
    """Whether the products of a prefill are NVIDIA's."""
    imported: bool = False
    """Whether a torch.export graph is compiled instead of the definition."""
    trials: int = 0
    """How many schedules of products MetaSchedule times."""
    untuned: bool = False
    """Whether it cannot, as the device is elsewhere, and nobody has there."""


def choose(options: Mapping[str, str], target: Target) -> Plan:
    """Settle what the options leave open; raises Unsupported for what the device has not."""
    library = options.get("library", LIBRARIES[0]) != LIBRARIES[0]
    imported = options.get("import", SOURCES[0]) != SOURCES[0]
    if imported or "stock" in options:
        if len(options) > 1:
            name = "import=torch" if imported else "stock"
            raise Unsupported(f"tvm[{name}] has no settings: leave out the other options")
        return Plan(stock=True, provenance="stock", imported=imported)
    if library and not target.on_gpu:
        raise Unsupported(f"library=cublas is for products on a GPU, not on {target.device}: leave it out")
    if library and target.dtype == "float32":
        raise Unsupported("library=cublas is for products in 16 bits: leave it out in float32")
    trials = int(options.get("tune", 0))
    untuned = trials > 0 and target.card is not None and target.tuning is None
    named = [*(GPU_KERNELS if target.on_gpu else CPU_KERNELS)]
    named += ["cuBLAS for prefill"] if library else []
    named += [f"{trials} trials of MetaSchedule"] if trials and not untuned else []
    return Plan(False, f"patched: {', '.join(named)}", library, trials=trials, untuned=untuned)
