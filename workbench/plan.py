"""What will be measured: the request as typed, checked against the model, cut into rows and engines. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.contract import Shapes
from models.config import DecoderConfig
from models.errors import UserError
from workbench.checking.checks import capacity_for

PHASES = ("prefill", "decode")
DTYPES = ("float32", "bfloat16", "float16")
MINIMUM_STEPS = 32
"""Fewer chained steps would let the fence at the end weigh on the value."""
MOST_SEQUENCES = 65_536
"""Beyond any device: each has tokens of its own, which take time to draw."""
SLOPE_LEAD = 16
"""Steps of the shorter of the two runs of the slope clock: by then an engine has found its pace."""


@dataclass(frozen=True)
class Workload:
    """What to time, for every backend alike."""

    phases: tuple[str, ...]
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int


CPU_DEFAULT = Workload(PHASES, (1,), (64,), (128,), 32)
GPU_DEFAULT = Workload(PHASES, (1,), (512,), (1024,), 32)


@dataclass(frozen=True)
class PlannedRow:
    """One row of the result, for each backend."""

    phase: str
    batch: int
    length: int
    """Prompt tokens of a prefill, cached positions before a decode."""
    steps: int | None
    lead: int | None = None
    """Steps of the slope clock's shorter run, which the longer exceeds by `steps`; None for other clocks."""

    @property
    def prompt(self) -> int | None:
        """Tokens a sequence of a prefill."""
        return self.length if self.phase == "prefill" else None

    @property
    def context(self) -> int | None:
        """Cached positions before the first timed decode step."""
        return self.length if self.phase == "decode" else None

    @property
    def clock(self) -> str:
        """The clock this row is timed by; no two share a table."""
        if self.lead is not None:
            return "slope"
        return "drained" if self.phase == "prefill" else "chained"


@dataclass(frozen=True)
class PlannedGroup:
    """Rows that share one engine."""

    shapes: Shapes
    rows: tuple[PlannedRow, ...]


def plan(
    config: DecoderConfig, workload: Workload, context_option: str = "--context"
) -> tuple[PlannedGroup, ...]:
    """Cut a workload into engines: one for each batch and context, prompts on the smallest that holds them.

    A cache no larger than its context needs keeps backends that read the whole cache comparable with
    those that slice it. Raises UserError where the model or the clock does not allow the workload.
    """
    check(config, workload, context_option)
    groups = []
    for batch in workload.batches:
        contexts = sorted(workload.contexts) if "decode" in workload.phases else []
        prompts = sorted(workload.prompts) if "prefill" in workload.phases else []
        for context in contexts:
            on_this = [prompt for prompt in prompts if prompt <= context]
            prompts = [prompt for prompt in prompts if prompt > context]
            groups.append(decode_group(batch, context, on_this, workload.steps))
        if prompts:
            rows = tuple(PlannedRow("prefill", batch, prompt, None) for prompt in prompts)
            shapes = Shapes(batch, tuple(prompts), capacity_for(prompts[-1], 0))
            groups.append(PlannedGroup(shapes, rows))
    return tuple(groups)


def decode_group(batch: int, context: int, prompts: Sequence[int], steps: int) -> PlannedGroup:
    """Plan one engine that decodes at a context and prefills some shorter prompts."""
    rows = [PlannedRow("prefill", batch, prompt, None) for prompt in prompts]
    rows.append(PlannedRow("decode", batch, context, steps))
    shapes = Shapes(batch, tuple(sorted({*prompts, context})), capacity_for(context, steps))
    return PlannedGroup(shapes, tuple(rows))


def with_slopes(groups: Sequence[PlannedGroup]) -> tuple[PlannedGroup, ...]:
    """Add to each decode row its twin by the slope clock: the same steps at the same positions."""
    return tuple(replace(group, rows=(*group.rows, *slope_rows(group))) for group in groups)


def slope_rows(group: PlannedGroup) -> list[PlannedRow]:
    """Return the twins of a group's decode rows; their runs begin up to `SLOPE_LEAD` positions earlier."""
    return [replace(row, lead=min(SLOPE_LEAD, row.length)) for row in group.rows if row.phase == "decode"]


def check(config: DecoderConfig, workload: Workload, context_option: str) -> None:
    """Refuse what cannot be measured; raises UserError."""
    for name, values in (
        ("--batch", workload.batches),
        ("--prompt", workload.prompts),
        (context_option, workload.contexts),
    ):
        if not values or min(values) < 1:
            raise UserError(f"{name} {','.join(map(str, values))}: every value must be at least 1")
    if max(workload.batches) > MOST_SEQUENCES:
        raise UserError(f"--batch {max(workload.batches)}: at most {MOST_SEQUENCES} sequences run at once")
    if workload.steps < MINIMUM_STEPS:
        raise UserError(f"--steps {workload.steps}: a chained sample needs at least {MINIMUM_STEPS} steps")
    if not workload.phases or not set(workload.phases) <= set(PHASES):
        raise UserError(f"--phases {','.join(workload.phases)}: choose from {', '.join(PHASES)}")
    if "decode" in workload.phases:
        limit(context_option, max(workload.contexts), workload.steps, config)
    if "prefill" in workload.phases:
        limit("--prompt", max(workload.prompts), 0, config)


def limit(option: str, length: int, steps: int, config: DecoderConfig) -> None:
    """Refuse a length whose timed and checked steps would leave the model's positions; raises UserError."""
    needed = capacity_for(length, steps)
    if needed > config.max_positions:
        largest = length - (needed - config.max_positions)
        possible = capacity_for(1, MINIMUM_STEPS if steps else 0) <= config.max_positions
        advice = "take fewer --steps" if possible and steps else "that is too short for any measurement"
        raise UserError(
            f"{option} {length} needs {needed} positions with its decode steps; the model has "
            f"{config.max_positions} (its sliding window, if that is shorter than it was made for): "
            f"{f'use at most {largest}' if largest > 0 else advice}"
        )
