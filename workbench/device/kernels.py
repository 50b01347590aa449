"""What a GPU did in one prefill or one decode step: kernels by name and origin, gaps, launches. Pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from workbench import units
from workbench.harness import kept
from workbench.job import Json

NAMES = 16
"""Kernels that a record names at most; the rest are summed up, so that records stay small."""
SMALL = 0.01
"""Share of the kernels' time below which a record does not name one."""
NAME_LENGTH = 100
"""Characters of a kernel's name that a record keeps."""
SHARE_DIGITS = 5
"""Decimals of a share that a record keeps."""
HOST_BOUND = 1.1
"""Launching that takes so many times the kernels' time is what a GPU waits for; an engine whose calls
return only when the device is done takes a little over 1."""

IDLE_SHARE = 0.1
"""Share of a call, untraced, that its kernels may leave to the host before the first and after the last."""

ORIGINS = VENDOR, FRAMEWORK, GENERATED = "vendor", "framework", "generated"
PATTERNS = (
    (VENDOR, r"flash_(?:fwd|attn)|kernel_mha"),  # wherever they were built into
    (FRAMEWORK, r"^(?:void )?(?:at|c10|at_cuda_detail|cub|thrust|onnxruntime)::|^mem(?:cpy|set)"),
    (FRAMEWORK, r"softmax_warp_forward"),
    (GENERATED, r"^(?:triton|tvm|fused|loop|input|wrapped)_|_fusion|_dispatch_\d"),
    (VENDOR, r"nvjet|cublas|cutlass|cudnn|xmma|^cask|nccl|tensorrt|trtllm|flashinfer"),
    (VENDOR, r"fmha|gemvx|gemv(?:2[NT]|NSP)|gemm(?:SN|k1)|[sdhc]gemm_|splitKreduce"),
)
"""Who wrote a kernel, by its demangled name: the first pattern found decides, a compiler wrote the rest."""


@dataclass(frozen=True)
class Activity:
    """One kernel, copy or fill as the GPU ran it; a CUDA graph's are told one by one."""

    name: str
    """Demangled; `memcpy_DTOD` or the like for a copy, `memset` for a fill."""
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class HostTimes:
    """How long the calls of one prefill or step took the host, untraced."""

    enqueue_s: float
    """Until the last call returned."""
    wall_s: float
    """Until the device was idle."""


def summarise(activities: Sequence[Activity], steps: int, host: HostTimes) -> Json:
    """Sum up what was traced over `steps` steps as a record keeps it, for one step.

    `busy_s` is time in which any kernel ran, `span_s` from the first one's start to the last one's end and
    `gaps_s` their difference. Tracing slows launches down, so gaps are longer than in the timed samples; busy
    time is not touched by it. Raises ValueError if nothing was traced.
    """
    if not activities:
        raise ValueError("no kernel was traced")
    busy = busy_ns(activities)
    span = max(each.end_ns for each in activities) - min(each.start_ns for each in activities)
    kernels = by_name(activities, steps)
    return {
        "busy_s": mean_s(busy, steps),
        "gaps_s": mean_s(span - busy, steps),
        "span_s": mean_s(span, steps),
        "launches": len(activities) / steps,
        "enqueue_s": kept(host.enqueue_s),
        "wall_s": kept(host.wall_s),
        "shares": shares(kernels),
        "kernels": cut(kernels),
    }


def mean_s(total_ns: int, steps: int) -> float:
    """Return the seconds of one step, to as many digits as samples have."""
    return kept(total_ns * 1e-9 / steps)


def busy_ns(activities: Sequence[Activity]) -> int:
    """Measure the union of the kernels' intervals: kernels that overlap are busy once."""
    total = reached = 0
    for each in sorted(activities, key=lambda each: each.start_ns):
        total += max(0, each.end_ns - max(each.start_ns, reached))
        reached = max(reached, each.end_ns)
    return total


def by_name(activities: Sequence[Activity], steps: int) -> list[Json]:
    """Add kernels of one name up, the longest first: seconds and count a step, share of all kernels' time."""
    found: dict[tuple[str, str], list[int]] = {}
    for each in activities:
        found.setdefault((shorten(each.name), origin_of(each.name)), []).append(each.end_ns - each.start_ns)
    whole = sum(map(sum, found.values()))
    rows = [
        {
            "name": name,
            "count": len(times) / steps,
            "total_s": mean_s(sum(times), steps),
            "share": round(sum(times) / whole, SHARE_DIGITS) if whole else 0.0,
            "origin": origin,
        }
        for (name, origin), times in found.items()
    ]
    return sorted(rows, key=lambda row: (-row["total_s"], row["name"]))


def shares(kernels: Sequence[Json]) -> dict[str, float]:
    """Share the kernels' time out among origins."""
    return {
        origin: round(sum(row["share"] for row in kernels if row["origin"] == origin), SHARE_DIGITS)
        for origin in ORIGINS
    }


def cut(kernels: Sequence[Json]) -> list[Json]:
    """Keep the first NAMES kernels that are not SMALL and sum up the others, if there are several."""
    named = [row for row in kernels[:NAMES] if row["share"] >= SMALL]
    rest = kernels[len(named) :]
    if len(rest) < 2:
        return list(kernels)
    others = {name: kept(sum(row[name] for row in rest)) for name in ("count", "total_s", "share")}
    return [*named, {"name": f"{len(rest)} others", **others, "origin": "various"}]


def origin_of(name: str) -> str:
    """Say who wrote a kernel: the vendor's libraries, the framework by hand, or a compiler."""
    plain = name.replace("(anonymous namespace)::", "")
    return next((origin for origin, pattern in PATTERNS if re.search(pattern, plain)), GENERATED)


def shorten(name: str) -> str:
    """Write a demangled kernel without return type, parameters and its arguments' namespaces."""
    name = name.replace("(anonymous namespace)::", "")
    depth, begin, end = 0, 0, len(name)
    for index, character in enumerate(name):
        if character == "(" and depth == 0:
            end = index
            break
        if character == " " and depth == 0:
            begin = index + 1
        depth += (character in "<({[") - (character in ">)}]")
    head, bracket, arguments = name[begin:end].partition("<")
    short = head + bracket + re.sub(r"\b(?:\w+::)+", "", arguments) or name
    return short if len(short) <= NAME_LENGTH else short[: NAME_LENGTH - 3] + "..."


def host_bound(kernels: Json, call_s: float) -> str | None:
    """Warn if the GPU has to wait for the host: launching takes longer than the work, or begins it late.

    `call_s` are the seconds of a prefill or step as it was timed: where the kernels fill them, nobody waits.
    """
    enqueue, busy, wall = kernels["enqueue_s"], kernels["busy_s"], kernels["wall_s"]
    idle = wall - kernels["span_s"]
    if call_s <= HOST_BOUND * busy:
        return None
    if enqueue > HOST_BOUND * busy:
        found = f"launching takes {units.seconds(enqueue)}, the kernels {units.seconds(busy)}"
    elif idle > IDLE_SHARE * wall:
        found = (
            f"{units.seconds(idle)} of {units.seconds(wall)} pass before its first kernel or after its last"
        )
    else:
        return None
    return (
        f"the GPU waits for the host: {found}; a CUDA graph (compile, for decode eager[graph] too) "
        "or a larger batch helps"
    )
