"""What an engine is made of: the store finds it by that. Asks only this machine and our own code."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from backends.contract import MadeFor, Shapes, Target
from workbench.building.targets import name_place
from workbench.caches import digest, lowering_version
from workbench.device.machine import Device, instruction_sets
from workbench.job import Json
from workbench.record import backend_name

MADE_BY = ("code", "compilers", "tuning")
"""Fields of a recipe that say what makes the engine; the others say what it is for."""


@dataclass(frozen=True)
class Tuning:
    """Where the choices among kernels come from that a `Chooser` times."""

    choices: str
    """`device`, `none` or a digest of tuning data; empty where there is nothing to choose."""
    card: str | None = None
    """The name of the device that they were timed on; None: nothing was timed."""


TUNES_NOTHING, UNTUNED = Tuning(""), Tuning("none")


def tuned_on(device: Device) -> Tuning:
    """Say that a build on this device times there what it chooses."""
    return Tuning("device", device.name)


@dataclass(frozen=True)
class Form:
    """What of some work, and of the device it is for, the engines of a backend differ by."""

    backend: str
    options: dict[str, str]
    config: Json
    """Fields of `DecoderConfig`."""
    shapes: Shapes | None
    """None where they change nothing."""
    made_for: MadeFor


@dataclass(frozen=True)
class Recipe:
    """Everything that changes an engine's machine code, and nothing else."""

    backend: str
    options: dict[str, str]
    config: Json
    """Of the model, as `DecoderConfig` has it: an engine takes any weights of that form. Of an engine that
    serves more models, what those have in common."""
    dtype: str
    shapes: Json
    """As `contract.Shapes` has them; empty where the engine serves all."""
    target: str
    """A name of `targets.PLACES`."""
    architecture: str
    """Empty where an engine serves all of a kind."""
    host: Json
    """Of an engine for a CPU its `name`, `threads` and `instructions`, of one whose kernels were timed on a
    GPU the `name` of that: they suit what was there. Else empty."""
    code: str
    """Names our own code that lowers the model."""
    compilers: dict[str, str]
    """Versions, by package."""
    tuning: str
    """As `Tuning.choices` has it."""

    @property
    def key(self) -> str:
        """Name the engine."""
        return digest(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """The backend with its options, as typed."""
        return backend_name(self.backend, self.options)

    @property
    def sizes(self) -> str:
        """Phrase what it is for besides the model."""
        shapes = self.shapes
        return f"b{shapes['batch']} c{shapes['capacity']}" if shapes else "any shapes"

    def work(self) -> Json:
        """Return what the engine is for, without what it is made by."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in MADE_BY}


def make_recipe(
    form: Form,
    target: Target,
    name: str,
    here: Device | None,
    compilers: Mapping[str, str],
    tuning: Tuning,
) -> Recipe:
    """Write down what an engine is for and what makes it.

    `name` is the target's, `here` the device of this machine that it is. What was timed suits one card.
    """
    made_for, shapes = "card" if tuning.card else form.made_for, form.shapes
    return Recipe(
        backend=form.backend,
        options=form.options,
        config=form.config,
        dtype=target.dtype,
        shapes={**dataclasses.asdict(shapes), "prompts": list(shapes.prompts)} if shapes else {},
        target=name_place(name, target, made_for),
        architecture="" if made_for == "kind" else target.architecture,
        host={} if made_for == "kind" else describe_host(here, tuning.card),
        code=lowering_version(form.backend),
        compilers=dict(compilers),
        tuning=tuning.choices,
    )


def describe_host(here: Device | None, card: str | None) -> Json:
    """Name what an engine is adapted to: of one target there are unlike processors, and unlike cards."""
    if here is None or here.is_gpu:
        return {"name": card} if card else {}
    return {"name": here.name, "threads": here.threads, "instructions": instruction_sets()}


def tell_difference(built: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Phrase how the versions an engine was built with differ from those here."""
    pairs = {name: (built.get(name), here.get(name)) for name in sorted({*built, *here})}
    return ", ".join(
        f"{name} {one or 'absent'}, where here it is {other or 'absent'}"
        for name, (one, other) in pairs.items()
        if one != other
    )
