"""GPUs that are not here, described for XLA: it compiles for what it is told of one.

`h100` and `a100` are what XLA itself reports on those cards (SXM, 80 GB); of the others the limits are
those of their compute capability in the CUDA programming guide, the rest is from their datasheets.
"""

from dataclasses import dataclass

import jax
from jax.experimental import topologies

from backends.contract import Unsupported


@dataclass(frozen=True)
class Card:
    """What XLA asks of a GPU."""

    name: str
    capability: tuple[int, int]
    extension: str
    """`ACCELERATED_FEATURES` for the instructions of this capability alone, as in `sm_90a`."""
    cores: int
    """Streaming multiprocessors; what follows per core is per each of them."""
    units_per_core: int
    """Float32 units."""
    threads_per_core: int
    shared_bytes_per_core: int
    shared_bytes_per_block: int
    """At most, for a kernel that asks for it."""
    cache_bytes: int
    memory_bytes: int
    bytes_per_s: int
    clock_ghz: float


CARDS = {
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), "NONE", 108, 64, 2048, 167_936, 166_912,
        41_943_040, 85_100_068_864, 2_039_040_000_000, 1.41,
    ),
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), "ACCELERATED_FEATURES", 132, 128, 2048, 233_472, 232_448,
        52_428_800, 84_942_979_072, 3_352_320_000_000, 1.98,
    ),
    "h200": Card(
        "NVIDIA H200", (9, 0), "ACCELERATED_FEATURES", 132, 128, 2048, 233_472, 232_448,
        52_428_800, 141_000_000_000, 4_800_000_000_000, 1.98,
    ),
    "l40s": Card(
        "NVIDIA L40S", (8, 9), "NONE", 142, 128, 1536, 102_400, 101_376,
        100_663_296, 48_000_000_000, 864_000_000_000, 2.52,
    ),
    "b200": Card(
        "NVIDIA B200", (10, 0), "ACCELERATED_FEATURES", 148, 128, 2048, 233_472, 232_448,
        132_120_576, 180_000_000_000, 8_000_000_000_000, 1.965,
    ),
}  # fmt: skip

DESCRIPTION = """
gpu_device_info {{
  cuda_compute_capability {{ major: {card.capability[0]} minor: {card.capability[1]}
    feature_extension: {card.extension} }}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: {card.threads_per_core}
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  core_count: {card.cores}
  fpus_per_core: {card.units_per_core}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: {card.shared_bytes_per_core}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {card.shared_bytes_per_block}
  l2_cache_size: {card.cache_bytes}
  device_memory_size: {card.memory_bytes}
  memory_bandwidth: {card.bytes_per_s}
  clock_rate_ghz: {card.clock_ghz}
  dnn_version: "9.10.0"
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{card.name}"
"""
"""XLA's `GpuTargetConfigProto` in text format; the versions are the oldest that an engine has to run with."""


def describe_card(name: str) -> jax.Device:
    """Return a device of jax that can be compiled for, but not run on; raises Unsupported."""
    if name not in CARDS:
        raise Unsupported(f"no description of {name} for XLA, only of {', '.join(CARDS)}")
    config = DESCRIPTION.format(card=CARDS[name])
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")
    except NotImplementedError as refusal:  # jax has no plugin for CUDA
        raise Unsupported(f"jax cannot compile for a GPU here: {refusal}") from refusal
    device: jax.Device = topology.devices[0]
    return device
