"""The engine behind `iree`: compiled programs on one queue of a device, and the buffers they all work in."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import iree.runtime as rt
import numpy as np

from backends.contract import POISON, Artefact, ordinal
from models.checkpoint import Weights
from models.layout import NUMPY_DTYPES

ELEMENTS = {
    "float32": rt.HalElementType.FLOAT_32,
    "bfloat16": rt.HalElementType.BFLOAT_16,
    "float16": rt.HalElementType.FLOAT_16,
    "int32": rt.HalElementType.SINT_32,
    "int64": rt.HalElementType.SINT_64,
}
LOGITS, TOKEN, POSITION = 0, 1, 2
"""Places in the state, before the keys and values of each layer."""


@dataclass(frozen=True)
class Interface:
    """How programs are called: they take weights, tables, any tokens [B, T] and the state, and return the
    state anew, of which the cache, at least, is written where it lies.
    """

    function: str
    """Of every module; takes two fences more, and returns before the work is done."""
    tables: Sequence[np.ndarray]
    """Cos and sin of the rope angles."""
    position: np.ndarray
    """A first position, in the type and shape that the programs take."""
    cache: tuple[int, ...]
    """Shape of a layer's keys, and of its values: heads of all sequences in one axis or two, then [C, Dh]."""
    prefill_from: int = 0
    """The place in the state of the first buffer that a prefill takes."""
    decode_from: int = 0
    returned: int = 0
    """How many of the first results are new buffers."""


@dataclass(frozen=True)
class Programs:
    """Compiled modules."""

    interface: Interface
    prefill: Mapping[int, bytes]
    """By prompt length."""
    decode: bytes
    graph: bool = False
    """Whether a GPU is given each program as one CUDA graph."""


@cache
def open_device(name: str, graph: bool) -> rt.HalDevice:
    """Start a device once a process: `cpu` with as many workers as OMP_NUM_THREADS says, or `cuda:N`."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdecimal():
        rt.flags.parse_flags(f"--task_topology_group_count={threads}")
    rt.flags.parse_flags(f"--cuda_use_streams={str(not graph).lower()}")
    return rt.get_device("local-task" if name == "cpu" else f"cuda://{ordinal(name)}", cache=False)


def place(device: rt.HalDevice, array: np.ndarray) -> rt.HalBufferView:
    """Copy an array to the device."""
    bits = np.ascontiguousarray(array).view(f"u{array.itemsize}")  # bfloat16 is a stranger to buffers
    buffer = device.allocator.allocate_buffer_copy(
        memory_type=rt.MemoryType.DEVICE_LOCAL,
        allowed_usage=rt.BufferUsage.DEFAULT,
        device=device,
        buffer=bits,
    )
    return rt.HalBufferView(buffer, array.shape, ELEMENTS[array.dtype.name])


class IreeEngine:
    """One model whose cache stays in the same buffers: every program writes there."""

    def __init__(self, artefact: Artefact, weights: Weights) -> None:
        config, shapes, target = artefact.config, artefact.shapes, artefact.target
        programs: Programs = artefact.payload
        self.device = device = open_device(target.device, programs.graph)
        self.timeline = device.create_semaphore(0)
        self.submitted = 0
        """Calls on the timeline: when call n is done, the semaphore holds n."""
        self.dtype = NUMPY_DTYPES[target.dtype]
        self.interface = programs.interface
        key = f"iree:{target.device}:{programs.graph}"  # each is a device of its own to IREE
        placed = weights.once(key, lambda: [place(device, array) for _, array in weights.arrays()])
        self.constants = [*placed, *(place(device, table) for table in self.interface.tables)]
        self.state = [
            place(device, np.zeros((shapes.batch, config.vocab_size), self.dtype)),
            place(device, np.zeros(shapes.batch, np.int32)),
            place(device, self.interface.position),
            *(place(device, np.zeros(self.interface.cache, self.dtype)) for _ in range(2 * config.layers)),
        ]
        self.context, self.prefills, self.step = load_programs(device, programs)
        self.stage(np.zeros((shapes.batch, shapes.prompts[0]), np.int32))

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] to the device."""
        self.sync()  # a prefill that has not run yet reads the old ones
        self.tokens, self.length = place(self.device, tokens), tokens.shape[1]

    def prefill(self) -> None:
        """Run the staged tokens from position 0."""
        arguments = (*self.constants, self.tokens, *self.state[self.interface.prefill_from :])
        self.call(self.prefills[self.length], arguments)

    def decode(self) -> None:
        """Run one step from the device's next token."""
        self.call(self.step, (*self.constants, *self.state[self.interface.decode_from :]))

    def call(self, function: rt.VmFunction, arguments: Sequence[rt.HalBufferView]) -> None:
        """Submit a program that starts when the one before it is done; the host does not wait."""
        inputs, results = rt.VmVariantList(len(arguments) + 2), rt.VmVariantList(len(self.state))
        for argument in arguments:
            inputs.push_ref(argument)
        for fence in self.turn():
            inputs.push_ref(fence)
        self.context.invoke(function, inputs, results)
        for index in range(self.interface.returned):
            self.state[index] = results.get_as_object(index, rt.HalBufferView)

    def turn(self) -> tuple[rt.HalFence, rt.HalFence]:
        """Take the next place on the timeline; returns what to wait for and what to signal."""
        self.submitted += 1
        before, after = self.submitted - 1, self.submitted
        return rt.HalFence.create_at(self.timeline, before), rt.HalFence.create_at(self.timeline, after)

    def rewind(self, length: int) -> None:
        """Set the length; what is cached stays where it is."""
        self.replace(POSITION, np.full_like(self.interface.position, length))

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the next token with tokens [B]."""
        self.replace(TOKEN, tokens)

    def replace(self, index: int, value: np.ndarray) -> None:
        """Put a new small buffer in the place of one of the state's."""
        self.sync()
        self.state[index] = place(self.device, value)

    def poison(self, length: int) -> None:
        """Fill the cache at positions >= length."""
        *heads, capacity, width = self.interface.cache
        pattern = np.array(POISON, self.dtype).view(f"u{self.dtype.itemsize}")
        row = width * self.dtype.itemsize
        if length >= capacity:
            return
        commands = rt.HalCommandBuffer(self.device)
        for cached in self.state[POSITION + 1 :]:
            for head in range(prod(heads)):
                start, size = (head * capacity + length) * row, (capacity - length) * row
                commands.fill(cached.get_buffer(), pattern, start, size)
        commands.end()
        wait, signal = self.turn()
        self.device.queue_execute(commands, wait, signal)
        self.sync()

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host."""
        self.sync()
        return np.array(rt.DeviceArray(self.device, self.state[LOGITS]).to_host(), np.float32)

    def sync(self) -> None:
        """Return when the device is idle; raises RuntimeError if a call failed."""
        rt.HalFence.create_at(self.timeline, self.submitted).wait()

    def stream(self) -> int | None:
        """Return None: IREE tells nobody its stream."""
        return None

    def close(self) -> None:
        """Free the state, the tables and the programs; the weights stay with their `Weights`."""
        self.sync()
        del self.state, self.constants, self.tokens, self.context, self.prefills, self.step


def load_programs(
    device: rt.HalDevice, programs: Programs
) -> tuple[rt.VmContext, dict[int, rt.VmFunction], rt.VmFunction]:
    """Load every module for the device; returns their context, the prefills by length, and decode."""
    instance = rt.VmInstance()
    modules: list[Any] = [
        rt.VmModule.copy_buffer(instance, code) for code in (*programs.prefill.values(), programs.decode)
    ]
    context = rt.VmContext(instance, [rt.create_hal_module(instance, device), *modules])
    *prefills, step = (module.lookup_function(programs.interface.function) for module in modules)
    return context, dict(zip(programs.prefill, prefills, strict=True)), step
