"""The record: one frozen, versioned row of results, and the key that says when two rows are the same work.

SI units are in the field names; a number that could not exist is None. The history of `SCHEMA`:
1: first version.
2: `fits`, `no_kernels`, and `timer_check` of a process; `kernels` may be there.
3: `least_work`.
4: `engine`, `parts`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from workbench.caches import digest
from workbench.job import Json
from workbench.plan import PHASES

SCHEMA = 4
READ_SCHEMAS = (1, 2, 3, 4)

OK = "ok"
UNSTABLE = "unstable"
TIMED = (OK, UNSTABLE)
"""The only statuses that carry times."""
STATUSES = (
    OK,
    UNSTABLE,
    "unsupported",
    "missing",
    "build_failed",
    "oom",
    "timeout",
    "crashed",
    "wrong",
    "implausible",
)
UNSAVED = "this row could not be saved: no later command finds it"
"""Warning of a row that is in the output of its call alone."""
UNFINISHED = "this row could not be saved: the same command goes on from its processes, which could"
"""Warning of one whose side files are there."""


@dataclass(frozen=True)
class Time:
    """Seconds for one prefill (drained) or one decode step (chained, or by slope)."""

    median: float
    """Median of the processes' medians."""
    low: float
    """Lower end of the 95 % interval of the median, by two-level bootstrap."""
    high: float
    """Upper end of that interval."""
    p50: float
    """Percentile of all samples pooled."""
    p95: float
    """Percentile of all samples pooled."""


@dataclass(frozen=True)
class ProcessRun:
    """What one worker process measured, in the order it happened."""

    samples_s: tuple[float, ...]
    enqueue_s: tuple[float, ...] = ()
    """Host time of each drained sample until the call returned; empty for chained ones."""
    clocks: Json = field(default_factory=dict)
    """What the parent saw of the device, as `workbench.device.conditions` sums it up, and `stages_s`:
    seconds that the process had spent in each stage when it handed the row over, and `first_sample_s`, those
    from its start to the first sample of any row."""
    timer_check: Json | None = None
    """`events_s` and `drained_s`: samples of the same prefills by CUDA events and by the drained clock."""


@dataclass(frozen=True)
class Record:
    """One finished row."""

    run: str
    """Identifies the `compare` call."""
    created: str
    """When the row was finished, ISO 8601 in UTC."""
    workbench: str
    """Version of this project, and after the plus of the code that numbers depend on."""
    backend: str
    options: dict[str, str]
    definition: str | None
    """`common`, `own` or `imported`; None if the backend never came so far."""
    provenance: str | None
    """`stock`, `configured: NAME, ...` or `patched: NAME, ...`."""
    model: str
    """Preset's name or checkpoint folder's name."""
    weights: str
    """Checksum over every element of every tensor as loaded, names, order and layout included."""
    phase: str
    """`prefill` or `decode`."""
    batch: int
    prompt: int | None
    """Tokens a sequence of a prefill; None for decode."""
    context: int | None
    """Cached positions before the first timed decode step; None for prefill."""
    steps: int | None
    """Decode steps that a sample is the mean of; None for prefill."""
    dtype: str
    device: str
    gpu: Json
    """What `machine.Device.identity` says; a CPU has a name, threads and the machine's `uuid`, hashed."""
    status: str
    reason: str | None
    clock: str
    """`drained`, `chained` or `slope`."""
    protocol: Json
    """What was held equal: gate, stop rule, processes; `slope` has the steps of its two runs."""
    time_s: Time | None = None
    processes: tuple[ProcessRun, ...] = ()
    enqueue_s: float | None = None
    """Median host time of a drained sample until the call returned."""
    tokens_per_s: float | None = None
    limit_share: float | None = None
    """Least time the ceilings allow over the median time; None where it says nothing (see warnings)."""
    ceilings: Json = field(default_factory=dict)
    least_work: Json = field(default_factory=dict)
    """`bytes` and `flops` that one prefill or decode step takes at least, as `models.work` counts them."""
    build_s: Json = field(default_factory=dict)
    """`cold` and `warm`: from `build()` to the first synchronised token of every shape. `cold_measured` is
    there if an earlier comparison built cold, and says when. `cached` alone: the same with an engine that was
    built ahead, so from opening it on."""
    engine: Json = field(default_factory=dict)
    """Of one that was built ahead: `key`, `target`, `code`, `untuned`, when it was `built` and `build_s`."""
    load_s: float | None = None
    peak_bytes: Json = field(default_factory=dict)
    """`total`, `weights`, `cache`, `rest`."""
    fits: Json = field(default_factory=dict)
    """By that memory: how many cached `tokens` the device holds, the largest `context` at this batch and the
    largest `batch` at this context; empty for a prefill, or where it is unknown."""
    error_ratio: float | None = None
    """Worst error of the checked logits over that of torch in the same dtype."""
    kernels: Json | None = None
    """Of one prefill or decode step, traced apart: `busy_s`, `gaps_s`, `span_s`, `launches`, `enqueue_s` and
    `wall_s` untraced, `shares` by origin, and `kernels` by name; see `workbench.device.kernels`."""
    no_kernels: str | None = None
    """Why they could not be traced; None too where nobody tried."""
    parts: Json = field(default_factory=dict)
    """Of an engine that plans: `plan_s` on the host and `run_s` on the device for one prefill or step,
    measured apart; the processes' medians."""
    warnings: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def name(self) -> str:
        """The backend with its options, as typed: `compile[mode=max-autotune]`."""
        return backend_name(self.backend, self.options)

    @property
    def tokens_a_call(self) -> int:
        """Tokens of one prefill or one decode step, of all sequences."""
        return self.batch * (self.prompt or 1)

    @property
    def untuned(self) -> bool:
        """Whether its engine was built without the choices that a build on the device would have timed."""
        return bool(self.engine.get("untuned"))

    @property
    def timed(self) -> bool:
        """Whether the row carries a time."""
        return self.status in TIMED


def backend_name(backend: str, options: Mapping[str, str]) -> str:
    """Write a backend with its options as a user types it; a switch has the empty string as its value."""
    if not options:
        return backend
    inner = ",".join(key if value == "" else f"{key}={value}" for key, value in sorted(options.items()))
    return f"{backend}[{inner}]"


WORK_FIELDS = (
    "model",
    "weights",
    "phase",
    "batch",
    "prompt",
    "context",
    "steps",
    "dtype",
    "clock",
    "protocol",
)
"""What two rows must share before their times may be compared, besides the device itself."""


def device_identity(record: Record) -> Json:
    """Name the hardware of a record, so that only rows of one kind of device are compared.

    Two cards of one name are one kind if they may run as fast: under the same power limit, with the same
    highest clocks, and with ECC alike. A limit that is unknown is not taken for the same as a known one.
    """
    return device_kind(record.device, record.gpu)


def device_kind(device: str, gpu: Json) -> Json:
    """Name the kind of a device, `cpu` or `cuda:N`, by what `machine.Device.identity` says of it."""
    names = ("name", "threads", "power_limit_w", "ecc", "max_sm_mhz", "max_memory_mhz")
    return {"device": device.split(":")[0], **{name: gpu.get(name) for name in names}}


def row_key(record: Record) -> str:
    """Identify the work, the backend and where it ran; rows of equal key measure the same thing again."""
    parts: Json = {name: getattr(record, name) for name in WORK_FIELDS}
    parts |= {"backend": record.backend, "options": record.options, "versions": record.versions}
    parts |= {"engine": record.engine["key"]} if record.engine else {}
    parts |= {"gpu": record.gpu, "device": record.device.split(":")[0], "workbench": record.workbench}
    return digest(parts)


def method(protocol: Json) -> Json:
    """Return a protocol less its number of processes, which changes the interval, not the time."""
    return {name: value for name, value in protocol.items() if name != "processes"}


def work_of(record: Record) -> Json:
    """Return what two rows must share before their times may be compared, besides the device."""
    work = {name: getattr(record, name) for name in WORK_FIELDS}
    return work | {"protocol": method(record.protocol)}


def to_json(record: Record) -> Json:
    """Turn a record into plain JSON values."""
    return dataclasses.asdict(record)


def from_json(row: Json) -> Record:
    """Read a record of any known schema; raises ValueError for one that is none."""
    schema = row.get("schema")
    if schema not in READ_SCHEMAS:
        raise ValueError(f"unknown schema {schema!r}; this version reads up to {SCHEMA}")
    try:
        values = {**row, "schema": SCHEMA}  # what an older one lacks has a default
        values["time_s"] = Time(**row["time_s"]) if row["time_s"] else None
        values["processes"] = tuple(
            ProcessRun(
                tuple(run["samples_s"]), tuple(run["enqueue_s"]), run["clocks"], run.get("timer_check")
            )
            for run in row["processes"]
        )
        values["warnings"] = tuple(row["warnings"])
        record = Record(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a record: {error}") from error
    if record.status not in STATUSES:
        raise ValueError(f"unknown status {record.status!r}")
    if record.phase not in PHASES:
        raise ValueError(f"unknown phase {record.phase!r}")
    check_numbers(record)
    if record.timed != (record.time_s is not None):
        raise ValueError(f"status {record.status!r} does not go with time_s={record.time_s}")
    return record


def check_numbers(record: Record) -> None:
    """Raise ValueError where a time or a size is none, as JSON from elsewhere may have them."""
    times = [*dataclasses.astuple(record.time_s)] if record.time_s else []
    times += [sample for run in record.processes for sample in run.samples_s]
    if not all(isinstance(value, float | int) and 0 < value < math.inf for value in times):
        raise ValueError("a time is no number of seconds")
    sizes = {name: getattr(record, name) for name in ("batch", "prompt", "context", "steps")}
    for name, value in sizes.items():
        missing = value is None and name != "batch"
        if not missing and (type(value) is not int or value < 1):
            raise ValueError(f"{name} is {value!r}, no whole number above 0")
