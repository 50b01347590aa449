"""What an engine is made of: the store finds it by that. Pure, but for a look at our own code."""

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from backends.contract import Shapes, Target
from workbench.caches import digest, lowering_version
from workbench.device.machine import Device, instruction_sets
from workbench.job import Json
from workbench.record import backend_name

MADE_BY = ("code", "compilers", "tuning")
"""Fields of a recipe that say what makes the engine; the others say what it is for."""
ON_DEVICE, UNTUNED, TUNES_NOTHING = "device", "none", ""


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
    """A name of `targets.TARGETS`."""
    architecture: str
    host: Json
    """Of an engine for a CPU its `name`, `threads` and `instructions`, of one whose kernels were timed on a
    GPU the `name` of that: they suit what was there. Else empty."""
    code: str
    """Names our own code that lowers the model."""
    compilers: dict[str, str]
    """Versions, by package."""
    tuning: str
    """Where the choices among kernels come from that a `Tuner` times: `device`, `none` or a digest of tuning
    data; empty for other backends."""

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
    backend: str,
    options: Mapping[str, str],
    config: Json,
    shapes: Shapes | None,
    target: Target,
    name: str,
    here: Device | None,
    compilers: Mapping[str, str],
    tuning: str,
) -> Recipe:
    """Write down what an engine is for and what makes it.

    `shapes` is None where they change nothing; `name` is the target's, `here` the device of this machine
    that it is.
    """
    return Recipe(
        backend=backend,
        options=dict(options),
        config=config,
        dtype=target.dtype,
        shapes={**dataclasses.asdict(shapes), "prompts": list(shapes.prompts)} if shapes else {},
        target=name,
        architecture=target.architecture,
        host=describe_host(here, tuning),
        code=lowering_version(backend),
        compilers=dict(compilers),
        tuning=tuning,
    )


def describe_host(here: Device | None, tuning: str) -> Json:
    """Name the device here that an engine is adapted to: of one target there are unlike cards."""
    if here is None or (here.is_gpu and tuning != ON_DEVICE):
        return {}
    if here.is_gpu:
        return {"name": here.name}
    return {"name": here.name, "threads": here.threads, "instructions": instruction_sets()}


def digest_folder(folder: Path) -> str:
    """Name what lies in a folder of tuning data."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(path.name.encode() + b"\0" + path.read_bytes())
    return content.hexdigest()[:16]


def tell_difference(built: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Phrase how the versions an engine was built with differ from those here."""
    pairs = {name: (built.get(name), here.get(name)) for name in sorted({*built, *here})}
    return ", ".join(
        f"{name} {one or 'absent'}, where here it is {other or 'absent'}"
        for name, (one, other) in pairs.items()
        if one != other
    )
