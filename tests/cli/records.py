"""Records as a folder of results has them, for the tests of `report`."""

import json
from pathlib import Path

from tests.unit.builders import record
from workbench.record import ProcessRun, Record, to_json

H200 = {"name": "NVIDIA H200", "uuid": "GPU-a", "driver": "580.1", "power_limit_w": 700}
HOSTILE = "</script><script>document.title = 'taken'</script>"
"""What a reason must not be taken for."""
CLOCKS = {
    "sm_mhz": {"low": 1500, "median": 1900, "high": 1980, "halves": [1950, 1900]},
    "memory_mhz": {"low": 3201, "median": 3201, "high": 3201, "halves": [3201, 3201]},
    "course": {"at_s": [0.0, 0.5, 1.0], "sm_mhz": [1980, 1900, 1500], "power_w": [500, 690, None]},
}
KERNELS = {
    "busy_s": 0.9,
    "span_s": 1.0,
    "gaps_s": 0.1,
    "launches": 7.0,
    "enqueue_s": 0.2,
    "shares": {"vendor": 0.25, "framework": 0.15, "generated": 0.6},
    "kernels": [{"name": "triton_x", "count": 1.0, "total_s": 0.5, "share": 0.5, "origin": "generated"}],
}
CEILINGS = {
    "bandwidth_bytes_per_s": {"low": 4.0e12, "median": 4.2e12, "high": 4.3e12},
    "flops_per_s": {"low": 6.8e14, "median": 7.1e14, "high": 7.2e14},
}


def write_records(path: Path, *records: Record) -> Path:
    """Write a records file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(to_json(each)) + "\n" for each in records))
    return path


def on_gpu(backend: str, seconds: float, batch: int) -> Record:
    """Return a decode row of a GPU with everything a record can hold."""
    samples = tuple(seconds * (1 + step / 500) for step in range(30))
    return record(
        backend,
        samples,
        batch=batch,
        model="llama-3.2-1b",
        dtype="bfloat16",
        device="cuda:0",
        gpu=H200,
        processes=(ProcessRun(samples, (), CLOCKS), ProcessRun(samples, (), CLOCKS)),
        build_s={"cold": 10 / seconds, "warm": 1.0},
        least_work={"bytes": 10**9, "flops": 10**9 * batch},
        ceilings=CEILINGS,
        limit_share=0.4,
        kernels=KERNELS,
    )


def rich_records() -> list[Record]:
    """Return rows of two devices, three batches and two phases, some of them without a time."""
    prefill = {"phase": "prefill", "prompt": 64, "context": None, "steps": None, "clock": "drained"}
    return [
        record("eager", created="2025-01-01T00:00:00+00:00"),
        record("eager"),
        record("compile", (0.5, 0.51, 0.49), options={"mode": "default"}),
        record("third", status="crashed", reason=HOSTILE),
        record("eager", **prefill),  # type: ignore[arg-type]
        *(on_gpu("eager", 0.002 * batch**0.5, batch) for batch in (1, 8, 32)),
        *(on_gpu("compile", 0.001 * batch**0.6, batch) for batch in (1, 8, 32)),
    ]
