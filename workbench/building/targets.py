"""The devices that engines are built for, by the names users give them."""

import re
from collections.abc import Sequence

from backends.contract import MadeFor, Target
from backends.registry import nearest
from models.errors import UserError
from workbench.device.machine import Device, describe
from workbench.device.nvml import gpu_names

GPUS = {"h100": "sm_90", "h200": "sm_90", "a100": "sm_80", "l40s": "sm_89", "b200": "sm_100"}
"""Compute capabilities; what each compiler makes of one is its own affair."""
TARGETS = (*GPUS, "cpu")
ANY_GPU = "gpu"
PLACES = (*TARGETS, *dict.fromkeys(GPUS.values()), ANY_GPU)
"""All that `name_place` may return."""


def read_targets(text: str) -> tuple[str, ...]:
    """Read `h100,a100` without repetitions; raises UserError with the nearest name."""
    names = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for name in names:
        if name not in TARGETS:
            raise UserError(f"unknown target {name!r}: {nearest(name, TARGETS)}")
    return names


def devices_here() -> list[Device]:
    """Describe the CPU and every GPU of this machine."""
    return [describe("cpu"), *(describe(f"cuda:{index}") for index in range(len(gpu_names())))]


def name_target(device: Device) -> str | None:
    """Return the target that a device is; None for a GPU that is none."""
    if not device.is_gpu:
        return "cpu"
    words = re.split(r"[\s-]", device.name.lower())
    return next((name for name in GPUS if name in words), None)


def find_here(name: str, devices: Sequence[Device]) -> Device | None:
    """Return the device of this machine that a target is."""
    return next((device for device in devices if name_target(device) == name), None)


def aim(name: str, dtype: str, here: Device | None) -> Target:
    """Return what a backend is to build for: the device `here`, or a GPU that is elsewhere."""
    if here is not None:
        return Target(here.device, dtype, here.architecture)
    return Target("cuda:0", dtype, GPUS[name], card=name)


def name_place(name: str, target: Target, made_for: MadeFor) -> str:
    """Name the devices that share what is built for one of them: by itself, its architecture, or all GPUs."""
    if made_for == "card" or not target.on_gpu:
        return name
    return target.architecture if made_for == "architecture" else ANY_GPU
