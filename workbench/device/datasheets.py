"""What makers promise of their GPUs, by the name NVML gives them: printed beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Datasheet:
    """Rates at the boost clock, from the maker's datasheet."""

    bytes_per_s: float
    """Bandwidth of the memory."""
    flops_per_s: float
    """Dense products of bfloat16 or float16; datasheets often print twice that, for sparse ones."""


DATASHEETS: dict[str, Datasheet] = {
    "NVIDIA A100-SXM4-40GB": Datasheet(1.555e12, 312e12),
    "NVIDIA A100-SXM4-80GB": Datasheet(2.039e12, 312e12),
    "NVIDIA A100 80GB PCIe": Datasheet(1.935e12, 312e12),
    "NVIDIA L4": Datasheet(0.300e12, 121e12),
    "NVIDIA L40S": Datasheet(0.864e12, 362e12),
    "NVIDIA H100 80GB HBM3": Datasheet(3.35e12, 989e12),
    "NVIDIA H100 PCIe": Datasheet(2.0e12, 756e12),
    "NVIDIA H200": Datasheet(4.8e12, 989e12),
    "NVIDIA B200": Datasheet(8.0e12, 2250e12),
}
HALF_DTYPES = ("bfloat16", "float16")


def bandwidth_share(gpu: str, bytes_per_s: float) -> float | None:
    """Return the share of the promised bandwidth; None for an unlisted device."""
    sheet = DATASHEETS.get(gpu)
    return bytes_per_s / sheet.bytes_per_s if sheet else None


def product_share(gpu: str, dtype: str, flops_per_s: float) -> float | None:
    """Return the share of the promised product rate; None for another dtype or an unlisted device."""
    sheet = DATASHEETS.get(gpu)
    return flops_per_s / sheet.flops_per_s if sheet and dtype in HALF_DTYPES else None
