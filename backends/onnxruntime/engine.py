"""The engine over ONNX Runtime: every buffer is bound once, and a step is one run of a session."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ml_dtypes import bfloat16
from onnxruntime import InferenceSession, IOBinding, RunOptions

from backends.contract import Artefact
from backends.onnxruntime.devices import Buffer, HostBuffer, open_device
from models.checkpoint import Weights

Array = npt.NDArray[Any]
Buffers = Mapping[str, Buffer]

DTYPES: dict[str, npt.DTypeLike] = {
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(bfloat16)": bfloat16,
}
"""What numpy calls the runtime's types."""


@dataclass(frozen=True)
class Programs:
    """The models of an engine, serialised, with the inputs and outputs that `export` describes."""

    decode: bytes
    prefills: Mapping[int, bytes]
    """By prompt length; those equal to others share their session."""
    tables: Mapping[str, Array]
    """The inputs `cos` and `sin`."""


@dataclass(frozen=True)
class Step:
    """A session with all its inputs and outputs bound."""

    session: InferenceSession
    binding: IOBinding
    options: RunOptions | None

    def __call__(self) -> None:
        """Run it."""
        self.session.run_with_iobinding(self.binding, self.options)


class OnnxEngine:
    """One model with a cache that each step reads and writes in place.

    Of tokens and positions there are two buffers each, one to read and one to write in turns: a node may
    write an output before another has read what it would overwrite.
    """

    def __init__(self, artefact: Artefact, weights: Weights) -> None:
        programs: Programs = artefact.payload
        # What torch.onnx writes moves shapes to the host and back, which no graph can hold.
        self.device = open_device(artefact.target.device, capture=artefact.definition != "imported")
        arrays = dict(weights.arrays())
        models = {programs.decode, *programs.prefills.values()}
        sessions = {model: self.device.open(model, arrays) for model in models}
        del arrays  # each session has its own copy
        decode = sessions[programs.decode]
        self.turns = [self._allocate(decode, "tokens", "positions") for _ in range(2)]
        self.turn = 0
        shapes, config = artefact.shapes, artefact.config
        self.output = self.device.buffer((shapes.batch, config.vocab_size), np.float32)
        self.cache = self._allocate(decode, "keys.", "values.")
        self.tables = self._allocate(decode, *programs.tables)
        for name, table in self.tables.items():
            table.write(programs.tables[name])
        self.poison(0)  # fresh memory may hold a NaN, and what is masked has to be finite
        self.bindings = 0
        self.decodes = [self._bind(decode, self.turns[turn], shapes.capacity, 1 - turn) for turn in range(2)]
        self.staged = {length: self._stage(shapes.batch, length) for length in shapes.prompts}
        self.prefills = {
            length: self._bind(sessions[programs.prefills[length]], staged, length, 0)
            for length, staged in self.staged.items()
        }
        self.length = shapes.prompts[0]

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] to the buffer of that prompt length."""
        self.length = tokens.shape[1]
        self.staged[self.length]["tokens"].write(tokens)

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        self.prefills[self.length]()
        self.turn = 0

    def decode(self) -> None:
        """Run one step from the device's next token."""
        self.decodes[self.turn]()
        self.turn = 1 - self.turn

    def rewind(self, length: int) -> None:
        """Set the position of the next step."""
        self.device.sync()
        self.turns[self.turn]["positions"].write(length)

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the next token with tokens [B]."""
        self.device.sync()
        buffer = self.turns[self.turn]["tokens"]
        buffer.write(tokens.reshape(buffer.shape))

    def poison(self, length: int) -> None:
        """Overwrite the cache at positions >= length."""
        self.device.sync()
        for buffer in self.cache.values():
            buffer.poison(length)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host."""
        self.device.sync()
        return self.output.read()

    def sync(self) -> None:
        """Return when the device is idle."""
        self.device.sync()

    def stream(self) -> int | None:
        """Return the stream that the sessions work on."""
        return self.device.stream()

    def close(self) -> None:
        """Free the sessions with their weights, every buffer, and then what they worked on."""
        self.sync()
        del self.decodes, self.prefills, self.turns, self.staged, self.cache, self.tables, self.output
        self.device.close()

    def _allocate(self, session: InferenceSession, *prefixes: str) -> dict[str, Buffer]:
        """Allocate the inputs of a decode step whose names start so; T is 1."""
        return {
            each.name: self.device.buffer(
                [size if isinstance(size, int) else 1 for size in each.shape], DTYPES[each.type]
            )
            for each in session.get_inputs()
            if each.name.startswith(prefixes)
        }

    def _stage(self, batch: int, length: int) -> dict[str, Buffer]:
        """Allocate what a prefill reads; its positions stay as they are."""
        staged = {name: self.device.buffer((batch, length), np.int32) for name in ("tokens", "positions")}
        staged["positions"].write(np.arange(length))
        return staged

    def _bind(self, session: InferenceSession, read: Buffers, total: int, turn: int) -> Step:
        """Bind a session to what it reads, and to the buffers of the turn that it writes."""
        binding = session.io_binding()
        limit = HostBuffer((), np.int32)
        limit.write(total)
        inputs = {**self.cache, **self.tables, **read, "total": limit}
        written = {**self.cache, **self.turns[turn]}
        outputs = {"logits": self.output, **{f"next.{name}": each for name, each in written.items()}}
        for each in session.get_inputs():
            binding.bind_ortvalue_input(each.name, inputs[each.name].value)
        for each in session.get_outputs():
            binding.bind_ortvalue_output(each.name, outputs[each.name].value)
        self.bindings += 1
        return Step(session, binding, self.device.run_options(self.bindings))
