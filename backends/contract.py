"""What a backend is: `Backend` builds an artefact and loads it as an `Engine`; the harness drives the engine.

This file imports no framework, and neither may the top of any backend's module: a backend imports
its framework inside `probe`, `build` and `load`, so that listing backends stays cheap everywhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from models.checkpoint import Weights
from models.config import DecoderConfig

POISON = 1024.0
"""What `Engine.poison` writes to every element of K and V: large, finite, and exact in every dtype."""
ANY_NUMBER = ("N",)
"""The values of an option that takes a whole number."""

SOURCES = ("definition", "torch")
"""The values of an option that says where the model comes from."""

MadeFor = Literal["kind", "architecture", "card"]
"""What of a device some code depends on: whether it is a GPU, its architecture, or which card it is.

One processor differs from another as two cards do, for code that depends on more than the kind.
"""


def ordinal(device: str) -> int:
    """Return N of `cuda:N`, 0 of `cuda`."""
    return int(device.partition(":")[2] or 0)


class Unsupported(Exception):
    """Say that a backend cannot do this work, with the compiler's own reason; raised by `build` or `load`."""


@dataclass(frozen=True)
class Shapes:
    """The fixed shapes one engine is built for."""

    batch: int
    """Sequences, B."""
    prompts: tuple[int, ...]
    """Every T that `stage` may bring, ascending."""
    capacity: int
    """Positions in the cache: no step writes at `capacity` or beyond."""


@dataclass(frozen=True)
class Target:
    """The device an engine is built for; `build` may run where that device is not."""

    device: str
    """`cpu` or `cuda:N`."""
    dtype: str
    """Stored dtype of weights, cache and activations: `float32`, `bfloat16` or `float16`."""
    architecture: str
    """`sm_90`, `sm_80`, ... for a GPU; the machine's name (`x86_64`) for a CPU."""
    card: str | None = None
    """Which GPU it is, `h100` for instance, where it is not in this machine; None: the device is here."""
    tuning: str | None = None
    """A folder with what `Tuner.tune` found for this work on such a device; None: nothing is known."""

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")


@dataclass(frozen=True)
class Option:
    """One option a backend takes in brackets after its name."""

    help: str
    values: tuple[str, ...] = ()
    """The values it may have; empty for a switch that takes none. The first value is the default.
    `ANY_NUMBER` stands for all whole numbers from 1 on, and has no default.
    """


@dataclass(frozen=True)
class Probe:
    """What a backend can do in this environment."""

    reason: str | None = None
    """Why it is not usable; None if it is."""
    install: str | None = None
    """The command that would make it usable."""
    versions: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    """Device kinds it can run on here: `cpu`, `cuda`."""
    dtypes: tuple[str, ...] = ()
    in_process: bool = True
    """Whether its engines run in the worker. Others answer whole requests: their decode is timed by slope."""

    @property
    def usable(self) -> bool:
        """Whether an engine can be built and run here."""
        return self.reason is None


@dataclass(frozen=True)
class Artefact:
    """What `build` made: enough for `load`, here or in a later process."""

    config: DecoderConfig
    shapes: Shapes
    target: Target
    options: Mapping[str, str]
    definition: str
    """`common` (traced from models/decoder.py), `own` or `imported`."""
    provenance: str
    """`stock`, `configured: NAME, ...` (public settings) or `patched: NAME, ...` (of ours)."""
    payload: Any = None
    """Whatever the backend needs to load it."""
    warnings: tuple[str, ...] = ()
    """What readers of every row of it should know."""
    untuned: bool = False
    """Whether it lacks the choices among kernels that a build on the device itself would have timed."""


class Engine(Protocol):
    """One loaded model with its cache. Calls may return before the device is done, but where noted."""

    def stage(self, tokens: np.ndarray) -> None:
        """Copy tokens [B, T] int32 to the device; T is one of `Shapes.prompts`. Outside every clock."""

    def prefill(self) -> None:
        """Run the staged tokens from position 0; the length becomes T, the next token stays there."""

    def decode(self) -> None:
        """Run one step for every sequence from the device's next token; the cache grows by one."""

    def rewind(self, length: int) -> None:
        """Set the length: the next decode writes at position `length`. Copies and recompiles nothing."""

    def feed(self, tokens: np.ndarray) -> None:
        """Overwrite the device's next token with tokens [B] int32; the compiled step stays the same."""

    def poison(self, length: int) -> None:
        """Write `POISON` to K and V of every layer at positions >= length."""

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V] as float32 on the host; waits for the device. Never timed."""

    def sync(self) -> None:
        """Return when the device is idle."""

    def stream(self) -> int | None:
        """Return the handle of the CUDA stream the work runs on, as `cudaStream_t`; 0 is the default stream.

        None where there is none or it is unknown; times by CUDA events are then not taken.
        """

    def close(self) -> None:
        """Free the device's memory; the engine is not used again."""


def run_first(engine: Engine, prompts: Sequence[np.ndarray]) -> None:
    """Run prompts [B, T] and two steps: compilers may do their work as late as that. Waits for the device."""
    for prompt in prompts:
        engine.stage(prompt)
        engine.prefill()
        engine.sync()
    for _ in range(2):  # a program made for the first length is compiled once more for any other
        engine.decode()
    engine.sync()


@runtime_checkable
class Planner(Protocol):
    """What an engine may have besides, where it plans on the host what it then runs on the device."""

    def parts(self, phase: str) -> Mapping[str, float]:
        """Time the parts of the staged prefill or of the next decode step, as `phase` says.

        `plan_s`: seconds of one plan, until the device has it; `run_s`: seconds of what runs by it.
        """


class Backend(Protocol):
    """A compiler, a runtime or a library that can run the model."""

    name: str
    options: Mapping[str, Option]

    def probe(self) -> Probe:
        """Tell whether the backend works here; cheap, never raises, runs in the backend's own Python."""

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Compile what can be compiled without the weights; raises Unsupported."""

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights and make the engine ready to stage; raises Unsupported."""


@runtime_checkable
class Refuser(Protocol):
    """A backend with options that are not for every device, or not for each other; optional."""

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse what a build refuses for any model; imports no framework. Raises Unsupported."""


@runtime_checkable
class Keeper(Backend, Protocol):
    """A backend whose artefacts outlive their process, so that an engine store can keep them; optional."""

    machine_code: bool
    """Whether they hold machine code or PTX for the target, which is then looked for in their files."""
    made_for: MadeFor
    """What of a target they depend on where nothing is timed: all targets alike in that share an engine."""

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:
        """Tell the version of everything that shapes an artefact for a target; imports no framework.

        Raises Unsupported, or PackageNotFoundError for a package that is not installed.
        """

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Write what `open` needs into an empty folder, as files only."""

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Return the artefact, which has no payload yet, with what was saved; raises Unsupported."""


@runtime_checkable
class Sharer(Protocol):
    """A keeper whose artefacts serve every batch and length, and more models than one; optional."""

    shaped_by: tuple[str, ...]
    """The fields of `DecoderConfig` that its code depends on."""
    idle: tuple[str, ...]
    """The options that change nothing of what it keeps."""


@runtime_checkable
class Chooser(Protocol):
    """A backend whose builds may choose among kernels by timing them on the device; optional."""

    def tunes(self, target: Target, options: Mapping[str, str]) -> bool:
        """Tell whether a build for such a device with these options times anything."""


@runtime_checkable
class Tuner(Chooser, Protocol):
    """One that can keep what it timed on a device for builds elsewhere; optional."""

    def tune(
        self,
        config: DecoderConfig,
        shapes: Shapes,
        target: Target,
        options: Mapping[str, str],
        folder: Path,
    ) -> None:
        """Time what there is to choose on the device, which is here, and write the choices into a folder."""

    def choices(self, folder: Path, target: Target, options: Mapping[str, str]) -> str:
        """Return all that is chosen for a build with such a folder, and nothing of how long anything took.

        Builds with the same choices make the same engine, on the device, where the target has no `card`, and
        elsewhere. Imports no framework.
        """
