"""The command line's values, parsed and checked as far as that needs neither model nor device. Pure."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from backends.registry import parse_list
from models.errors import UserError
from workbench.plan import CPU_DEFAULT, DTYPES, GPU_DEFAULT, PHASES, Workload
from workbench.pythons import read_pythons

Named = tuple[str, dict[str, str]]
"""A backend's id with its options."""

REPEATS = 3
MOST_REPEATS = 1000
CPU_BUDGET_S = 5.0
GPU_BUDGET_S = 4.0
"""Time that warming up may take in one process, and the samples of one row after it. What waits for the host
settles in no time: on a GPU most of a comparison would go into such rows."""
MOST_BUDGET_S = 3600.0
"""Beyond any use: more is a slip of the finger."""


@dataclass(frozen=True)
class Request:
    """What to compare; values left out take the device's default."""

    backends: tuple[Named, ...] | None = None
    """None for every usable one."""
    model: str | None = None
    phases: tuple[str, ...] | None = None
    batches: tuple[int, ...] | None = None
    prompts: tuple[int, ...] | None = None
    contexts: tuple[int, ...] | None = None
    steps: int | None = None
    dtype: str | None = None
    device: str = "auto"
    repeats: int | None = None
    budget_s: float | None = None
    baseline: str | None = None
    again: bool = False
    results: Path = Path("results")
    engines: Path | None = None
    """The engine store; None for this user's."""
    pythons: dict[str, str] = field(default_factory=dict)
    """The interpreter of a backend that has an environment of its own."""


@dataclass(frozen=True)
class Settings:
    """A request with the defaults of its device filled in."""

    model: str
    workload: Workload
    dtype: str
    device: str
    repeats: int
    budget_s: float


def usual_budget_s(device: str) -> float:
    """Return the budget where none is given [s]."""
    return CPU_BUDGET_S if device == "cpu" else GPU_BUDGET_S


def settle(request: Request, device: str) -> Settings:
    """Fill in what the request leaves to the device, `cpu` or `cuda:N`; raises UserError."""
    on_cpu = device == "cpu"
    default = CPU_DEFAULT if on_cpu else GPU_DEFAULT
    workload = Workload(
        phases=request.phases or default.phases,
        batches=request.batches or default.batches,
        prompts=request.prompts or default.prompts,
        contexts=request.contexts or default.contexts,
        steps=request.steps if request.steps is not None else default.steps,
    )
    repeats = request.repeats if request.repeats is not None else REPEATS
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: at least one process must measure each row")
    if repeats > MOST_REPEATS:
        raise UserError(f"--repeats {repeats}: at most {MOST_REPEATS} processes measure a row")
    budget_s = request.budget_s if request.budget_s is not None else usual_budget_s(device)
    if not 0 < budget_s < math.inf:
        raise UserError(f"--budget {budget_s:g}: give a finite number of seconds above 0")
    if budget_s > MOST_BUDGET_S:
        raise UserError(f"--budget {budget_s:g}: a row is sampled for at most {MOST_BUDGET_S:g} seconds")
    dtype = request.dtype if request.dtype is not None else ("float32" if on_cpu else "bfloat16")
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype}: choose from {', '.join(DTYPES)}")
    model = request.model if request.model is not None else ("tiny" if on_cpu else "llama-3.2-1b")
    return Settings(model, workload, dtype, device, repeats, budget_s)


def read(
    *,
    backends: str | None,
    model: str | None,
    phases: str | None,
    batch: str | None,
    prompt: str | None,
    context: str | None,
    steps: int | None,
    dtype: str | None,
    device: str,
    repeats: int | None,
    budget_s: float | None,
    again: bool,
    results: Path,
    python: list[str],
    baseline: str | None = None,
    engines: Path | None = None,
) -> Request:
    """Read a request as it was typed; raises UserError for what cannot be read."""
    return Request(
        backends=read_backends(backends),
        model=model,
        phases=read_phases(phases),
        batches=read_integers("--batch", batch),
        prompts=read_integers("--prompt", prompt),
        contexts=read_integers("--context", context),
        steps=steps,
        dtype=dtype,
        device=device,
        repeats=repeats,
        budget_s=budget_s,
        baseline=baseline,
        again=again,
        results=results,
        pythons=read_pythons(python),
        engines=engines,
    )


def read_backends(text: str | None) -> tuple[Named, ...] | None:
    """Read `a,b[option=value]`; raises UserError for what cannot be read or is named twice."""
    if text is None:
        return None
    found = parse_list(text)
    for index, named in enumerate(found):
        if named in found[:index]:
            raise UserError(f"--backends names {named[0]} twice with the same options: keep one")
    return tuple(found)


def read_integers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read `1,8,32` without repetitions, ascending; raises UserError for anything else."""
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise UserError(f"{option} {text!r}: write whole numbers, `1,8,32` for instance") from None


def read_phases(text: str | None) -> tuple[str, ...] | None:
    """Read `prefill,decode`; raises UserError for another phase."""
    if text is None:
        return None
    phases = tuple(part.strip() for part in text.split(","))
    unknown = [phase for phase in phases if phase not in PHASES]
    if unknown:
        raise UserError(f"--phases {text!r}: {unknown[0]!r} is none; choose from {', '.join(PHASES)}")
    return tuple(phase for phase in PHASES if phase in phases)
