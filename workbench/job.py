"""What the parent asks of a worker process and what comes back: plain values that survive JSON.

A job goes to the worker as one JSON object on standard input. Events come back as JSON lines on a
pipe of their own: `{"event": "stage", "stage": S}` whenever the work enters a stage with a time limit,
`{"event": "row", "result": RowResult}` for every row once the engine has passed its second check,
`{"event": "progress", "row", "done"}` before the first sample and between samples, once a second at most,
`{"event": "finding", "result": Finding}` for what was looked into after all rows, and last
`{"event": "done", "result": ...}`, or `{"event": "error", "status", "reason"}` if the job failed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from backends.contract import Shapes, Target
from models.config import DecoderConfig, RopeScaling

Json = dict[str, Any]

STAGES = ("start", "load", "build", "gate", "time", "trace")
"""In the order a group passes them; `start` covers the interpreter, imports and opening the weights."""


@dataclass(frozen=True)
class RowJob:
    """One row to time on an engine."""

    key: str
    """Names the row's side file; equal for all repeats of the row."""
    phase: str
    """`prefill` or `decode`."""
    length: int
    """Prompt tokens of a prefill, cached positions before the first timed step of a decode."""
    steps: int | None
    """Decode steps that a sample's value is the mean of."""
    lead: int | None = None
    """Steps of the shorter run of the slope clock; None for the other clocks."""


@dataclass(frozen=True)
class GroupJob:
    """Rows that share one engine: built, gated, timed and gated again together."""

    shapes: Shapes
    golden: str
    """Path of the golden file that the engine's logits are held against."""
    rows: tuple[RowJob, ...]


@dataclass(frozen=True)
class MeasureJob:
    """What one backend does in one process: the weights are loaded once, for one engine and all its rows."""

    backend: str
    options: dict[str, str]
    model: str
    """Checkpoint folder."""
    dtype: str
    device: str
    seed: int
    budget_s: float
    """Time that the samples of one row may take."""
    group: GroupJob
    kernels: bool = False
    """Whether to trace the kernels of each row after all is timed and verified."""
    engine: str | None = None
    """A folder of the engine store to load from; None: build."""
    kind: str = "measure"


@dataclass(frozen=True)
class GoldenJob:
    """Compute the golden logits and mutants of some groups, each into its own file."""

    model: str
    dtype: str
    device: str
    seed: int
    groups: tuple[GroupJob, ...]
    kind: str = "golden"


@dataclass(frozen=True)
class BurstJob:
    """How a ceiling's bursts follow each other: like the timed samples they are compared with."""

    burst_s: float | None
    """How long one lasts; None before anything was timed."""
    pause_s: float
    """How long the device is left alone before each."""
    least: tuple[tuple[int, int], ...]
    """Bytes and FLOPs of one sample of each row, to estimate `burst_s` by where it is None."""


@dataclass(frozen=True)
class CeilingsJob:
    """Measure the bandwidth of a large copy or read, and the rate of a large product."""

    device: str
    dtype: str
    bandwidth: BurstJob
    product: BurstJob
    kind: str = "ceilings"


@dataclass(frozen=True)
class ProbeJob:
    """Ask a backend whether it works in this environment; the result is `contract.Probe` as JSON.

    With a target it has `choices` besides: for each of the job's, which are sets of options, the `versions`
    of what makes an artefact and the `refusal` of a build, as far as the backend tells them.
    """

    backend: str
    target: Target | None = None
    choices: tuple[dict[str, str], ...] = ()
    kind: str = "probe"


@dataclass(frozen=True)
class CompilersJob:
    """Ask a backend what shapes its artefacts; the result has `compilers` for each target in turn, or why
    it builds nothing for it: `status` and `reason`.
    """

    backend: str
    options: dict[str, str]
    targets: tuple[Target, ...]
    kind: str = "compilers"


@dataclass(frozen=True)
class WorkJob:
    """What a backend does ahead of any run, for a target."""

    backend: str
    options: dict[str, str]
    config: DecoderConfig
    shapes: Shapes
    target: Target
    folder: str
    """Where the files go."""


@dataclass(frozen=True)
class BuildJob(WorkJob):
    """Build an artefact and save it into an empty folder; the result has `definition`, `provenance`,
    `untuned` and `build_s`.
    """

    kind: str = "build"


@dataclass(frozen=True)
class TuneJob(WorkJob):
    """Let a backend time what there is to choose on the device, and write the choices into a folder."""

    kind: str = "tune"


@dataclass(frozen=True)
class PresetJob:
    """Write a preset's weights as a checkpoint folder."""

    preset: str
    dtype: str
    folder: str
    kind: str = "preset"


@dataclass(frozen=True)
class RowResult:
    """What one process measured of one row; the parent keeps it as a side file until the row is finished."""

    key: str
    status: str
    reason: str | None = None
    samples_s: tuple[float, ...] = ()
    enqueue_s: tuple[float, ...] = ()
    gap_s: float | None = None
    """Mean seconds between two samples."""
    build_s: float | None = None
    """From `build()` to the first synchronised token of every shape, less the loading of weights."""
    cold: bool | None = None
    """Whether the compilers' caches were empty before, filled in by the parent; None for an engine that was
    built ahead."""
    load_s: float | None = None
    peak_bytes: int | None = None
    """Host memory at its highest less what it was before the weights, as the worker sees it; a GPU's is
    seen by the parent."""
    error_ratio: float | None = None
    definition: str | None = None
    provenance: str | None = None
    weights: str | None = None
    warnings: tuple[str, ...] = ()
    clocks: Json = field(default_factory=dict)
    """Filled in by the parent: what it saw of the device while the row was timed."""
    kernels: Json | None = None
    """As `workbench.device.kernels` sums them up; the parent adds it from a finding, like the next three."""
    no_kernels: str | None = None
    """Why they could not be traced."""
    timer_check: Json | None = None
    """`events_s` and `drained_s`, samples of the same prefills by both clocks."""
    parts: Json | None = None
    """As `contract.Planner.parts` has them."""


@dataclass(frozen=True)
class Finding:
    """What a worker found out about a row after that was verified and sent."""

    key: str
    kernels: Json | None = None
    no_kernels: str | None = None
    timer_check: Json | None = None
    parts: Json | None = None
    warnings: tuple[str, ...] = ()

    def added_to(self, result: RowResult) -> RowResult:
        """Return the row's result with what was found; it takes nothing away."""
        return dataclasses.replace(
            result,
            kernels=self.kernels or result.kernels,
            no_kernels=self.no_kernels or result.no_kernels,
            timer_check=self.timer_check or result.timer_check,
            parts=self.parts or result.parts,
            warnings=result.warnings + self.warnings,
        )


def to_json(value: Any) -> Json:
    """Turn a job or a result into plain JSON values."""
    return dataclasses.asdict(value)


def read_shapes(row: Json) -> Shapes:
    """Rebuild an engine's shapes from JSON."""
    return Shapes(row["batch"], tuple(row["prompts"]), row["capacity"])


def read_work(row: Json) -> Json:
    """Rebuild the fields that `BuildJob` and `TuneJob` share from JSON."""
    config = dict(row["config"])
    if config["rope_scaling"]:
        config["rope_scaling"] = RopeScaling(**config["rope_scaling"])
    shapes, target = read_shapes(row["shapes"]), Target(**row["target"])
    return {**row, "config": DecoderConfig(**config), "shapes": shapes, "target": target}


def read_group(row: Json) -> GroupJob:
    """Rebuild a group of a job from JSON."""
    return GroupJob(
        shapes=read_shapes(row["shapes"]),
        golden=row["golden"],
        rows=tuple(RowJob(**each) for each in row["rows"]),
    )


def read_ceilings(row: Json) -> CeilingsJob:
    """Rebuild a job for the ceilings from JSON."""
    bursts = {name: BurstJob(**row[name]) for name in ("bandwidth", "product")}
    return CeilingsJob(**{**row, **bursts})


def read_row_result(row: Json) -> RowResult:
    """Rebuild a row's result from JSON; raises TypeError if it is none."""
    values = dict(row)
    for name in ("samples_s", "enqueue_s", "warnings"):
        values[name] = tuple(values.get(name, ()))
    return RowResult(**values)


def read_finding(row: Json) -> Finding:
    """Rebuild a finding from JSON; raises TypeError if it is none."""
    return Finding(**{**row, "warnings": tuple(row.get("warnings", ()))})
