"""Compiled programs as files: one a program, written and read by jax's own serialisation.

A file runs with the very jaxlib that wrote it, and reading one can run code: read none of a stranger's.
"""

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.experimental.serialize_executable import deserialize_and_load, serialize

from backends.contract import Artefact
from backends.xla.engine import Interface, Programs, find_device


def save_programs(programs: Programs, folder: Path) -> None:
    """Write every program into a folder."""
    named = {f"prefill-{length}": program for length, program in programs.prefill.items()}
    for name, program in {**named, "decode": programs.decode, "poison": programs.poison}.items():
        (folder / f"{name}.xla").write_bytes(pickle.dumps(serialize(program)))


def open_programs(interface: Interface, artefact: Artefact, folder: Path) -> Programs:
    """Load every program onto the artefact's device."""
    read = partial(read_program, find_device(artefact.target), folder)
    prefills = {length: read(f"prefill-{length}") for length in artefact.shapes.prompts}
    return Programs(interface, prefills, read("decode"), read("poison"))


def read_program(device: jax.Device, folder: Path, name: str) -> Any:
    """Load one program onto a device."""
    payload, inputs, outputs = pickle.loads((folder / f"{name}.xla").read_bytes())
    return deserialize_and_load(payload, inputs, outputs, device.client, [device])
