"""The engine behind `tvm`: functions of one compiled library, bound once to the buffers they all work in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import tvm
from tvm import relax

from backends.contract import Artefact
from backends.tvm.compiler import LIBRARY
from backends.tvm.devices import open_device, place
from models.checkpoint import Weights

Tensor = Any  # of TVM's runtime


@dataclass(frozen=True)
class Program:
    """A shared library with the functions `prefill_T`, `decode` and `poison`.

    The first take weights, tables, any tokens [B, T] and the state, which they write where it lies.
    """

    tables: Sequence[np.ndarray]
    """Cos and sin of the rope angles."""
    files: Mapping[str, bytes]
    """The library, and the database of trials that chose among its kernels if there were any."""
    state: Sequence[tuple[tuple[int, ...], str]]
    """Shape and dtype of logits, next token, position, then keys and values of each layer."""
    vendor: bool = False
    """Whether functions call NVIDIA's library."""
    in_place: bool = True
    """Whether functions write the state, or take of it what they read and return all of it anew."""


LOGITS, TOKEN, POSITION = 0, 1, 2
"""Places in the state, before the keys and values of each layer."""


class TvmEngine:
    """One model whose state stays on a device."""

    def __init__(self, artefact: Artefact, weights: Weights) -> None:
        shapes, target = artefact.shapes, artefact.target
        program: Program = artefact.payload
        self.device = device = open_device(target.device)
        if program.vendor:
            from backends.tvm.library import register

            register(device)
        self.machine = relax.VirtualMachine(load_library(program.files[LIBRARY]), device.handle)
        put = partial(place, handle=device.handle)
        placed = weights.once(f"tvm:{target.device}", lambda: [put(array) for _, array in weights.arrays()])
        self.constants = [*placed, *(put(table) for table in program.tables)]
        self.state = [put(np.zeros(shape, np.dtype(dtype))) for shape, dtype in program.state]
        self.staged = {n: put(np.zeros((shapes.batch, n), np.int32)) for n in shapes.prompts}
        self.length = shapes.prompts[0]
        self.prefills = {n: self.bind(f"prefill_{n}", [tokens]) for n, tokens in self.staged.items()}
        self.step = self.bind("decode", [])

    def bind(self, name: str, tokens: list[Tensor]) -> Callable[[], None]:
        """Return a call of a function on the tokens and the engine's buffers."""
        arguments = (*self.constants, *tokens, *self.state)
        self.machine.save_function(name, f"{name}_bound", *arguments, include_return=False)
        return self.device.replayed(self.machine[f"{name}_bound"], self.state[TOKEN : POSITION + 1])

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] to the buffer of that prompt length."""
        self.length = tokens.shape[1]
        self.write(self.staged[self.length], tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        self.prefills[self.length]()

    def decode(self) -> None:
        """Run one step from the device's next token."""
        self.step()

    def rewind(self, length: int) -> None:
        """Set the length; what is cached stays where it is."""
        self.write(self.state[POSITION], np.array([length], np.int64))

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the next token with tokens [B]."""
        self.write(self.state[TOKEN], tokens)

    def write(self, buffer: Tensor, values: np.ndarray) -> None:
        """Copy values over a buffer once the work that may read it is done."""
        self.sync()
        buffer.copyfrom(np.array(values))
        self.sync()

    def poison(self, length: int) -> None:
        """Overwrite the cache at positions >= length."""
        self.machine["poison"](place(np.array([length]), self.device.handle), *self.state[POSITION + 1 :])
        self.sync()

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host."""
        self.sync()
        return np.array(self.state[LOGITS].numpy(), np.float32)

    def sync(self) -> None:
        """Return when the device is idle."""
        self.device.sync()

    def stream(self) -> int | None:
        """Return the CUDA stream that functions run on."""
        return self.device.stream()

    def close(self) -> None:
        """Free the state, the tables and the functions; the weights stay with their `Weights`."""
        self.sync()
        del self.state, self.constants, self.staged, self.prefills, self.step, self.machine


def load_library(code: bytes) -> Any:
    """Load a library; once it is loaded its file is not needed."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / LIBRARY
        path.write_bytes(code)
        return tvm.runtime.load_module(str(path))
