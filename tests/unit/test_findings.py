"""What a worker looks into after its rows: in which order, from where, and what a failure costs."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backends.contract import Shapes
from workbench import findings
from workbench.device import cupti
from workbench.device.kernels import Activity
from workbench.findings import CHAIN, PASSES, look
from workbench.job import Finding, GroupJob, MeasureJob, RowJob, RowResult

ROWS = (RowJob("p", "prefill", 4, None), RowJob("d", "decode", 9, 32))


def job(kernels: bool = True, rows: tuple[RowJob, ...] = ROWS) -> MeasureJob:
    group = GroupJob(Shapes(2, (4, 9), 64), "no golden", rows)
    return MeasureJob("any", {}, "model", "float32", "cuda:0", 0, 1.0, group, kernels)


class World:
    """An engine, its clock and the pipe in one: every call is written down, each step takes a second."""

    parts: Any = None  # it plans nothing

    def __init__(self, stream: int | None = None) -> None:
        self.handle = stream
        self.time = 0.0
        self.calls: list[str] = []
        self.found: list[Finding] = []

    def __getattr__(self, name: str) -> Any:
        def note(*values: Any) -> None:
            words = [str(value) if isinstance(value, int) else "" for value in values]
            self.calls.append(" ".join([name, *words]).strip())

        return note

    def now(self) -> float:
        return self.time

    def fence(self, engine: object) -> None:
        assert engine is self
        self.calls.append("fence")

    def stream(self) -> int | None:
        return self.handle

    def decode(self) -> None:
        self.calls.append("decode")
        self.time += 1.0

    def finding(self, finding: Finding) -> None:
        self.found.append(finding)


class Tracer:
    """Stands in for CUPTI: writes down when it attaches, and says that each traced call ran one kernel."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.calls.append("attach")

    def trace(self, run: Any) -> list[Activity]:
        self.world.calls.append("trace begins")
        run()
        self.world.calls.append("trace ends")
        return [Activity("triton_poi_fused_0", 0, 800)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(cupti, "missing", lambda: None)
    monkeypatch.setattr(cupti, "Tracer", lambda: Tracer(found))
    return found


def run(world: World, asked: MeasureJob) -> dict[str, Finding]:
    look(asked, world, world, 100, world)  # type: ignore[arg-type]
    return {finding.key: finding for finding in world.found}


def test_every_row_gets_the_kernels_of_one_prefill_or_step(world: World) -> None:
    found = run(world, job())
    assert found.keys() == {"p", "d"}
    prefill, decode = (found[key].kernels or {} for key in ("p", "d"))
    assert prefill["busy_s"] == pytest.approx(800e-9)
    assert decode["busy_s"] == pytest.approx(100e-9)
    assert decode["enqueue_s"] == decode["wall_s"] == pytest.approx(1.0)


def test_a_chain_is_positioned_as_a_timed_one_and_only_its_steps_are_traced(world: World) -> None:
    run(world, job(rows=ROWS[1:]))
    positioned, steps = ["rewind 9", "feed", "fence"], [*["decode"] * CHAIN, "fence"]
    traced = world.calls[world.calls.index("attach") + 1 : world.calls.index("trace ends") + 1]
    filled = ["enter", "stage", "prefill"]
    assert traced[: len(filled)] == filled
    warm = ["rewind 9", "feed", *steps] * PASSES
    assert traced[len(filled) :] == [*warm, *positioned, "trace begins", *steps, "trace ends"]


def test_a_short_row_is_traced_over_its_own_steps(world: World) -> None:
    run(world, job(rows=(RowJob("d", "decode", 9, 3),)))
    assert world.calls.count("decode") == 3 * (2 * PASSES + PASSES + 1)


def test_host_times_of_all_rows_are_taken_before_cupti_attaches(world: World) -> None:
    run(world, job())
    before = world.calls[: world.calls.index("attach")]
    assert before.count("decode") == 2 * PASSES * CHAIN  # to warm up, and to time
    assert "attach" not in before
    assert world.calls.count("attach") == 1


def test_an_engine_that_plans_is_asked_for_its_parts_at_the_rows_position(world: World) -> None:
    def parts(phase: str) -> dict[str, float]:
        world.calls.append(f"parts {phase}")
        return {"plan_s": 1e-5, "run_s": 2e-3}

    world.parts = parts
    found = run(world, job(kernels=False))
    assert found == {key: Finding(key, parts={"plan_s": 1e-5, "run_s": 2e-3}) for key in ("p", "d")}
    calls = [call for call in world.calls if not call.startswith("enter")]
    assert calls == ["stage", "parts prefill", "stage", "prefill", "rewind 9", "feed", "parts decode"]


def test_a_plan_that_cannot_be_timed_is_a_warning(world: World) -> None:
    def parts(phase: str) -> dict[str, float]:
        raise RuntimeError("no events")

    world.parts = parts
    found = run(world, job(kernels=False))
    assert all("RuntimeError: no events" in finding.warnings[0] for finding in found.values())


def test_a_job_that_asks_for_no_kernels_gets_none(world: World) -> None:
    assert run(world, job(kernels=False)) == {}
    assert "attach" not in world.calls


def test_missing_cupti_is_a_reason_and_no_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupti", None)
    for finding in run(World(), job()).values():
        assert "pip install 'cupti-python==13.0.1'" in (finding.no_kernels or "")
        assert finding.warnings == ()


def test_a_failing_trace_is_a_warning_for_the_rows_that_have_none_yet(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Tracer):
        def trace(self, run: Any) -> list[Activity]:
            if "trace ends" in self.world.calls:
                raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES:\nask the administrator")
            return super().trace(run)

    monkeypatch.setattr(cupti, "Tracer", lambda: Failing(world))
    found = run(world, job())
    assert found["p"].kernels
    assert found["p"].warnings == ()
    assert found["d"].kernels is None
    assert "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES" in found["d"].warnings[0]
    assert "CUPTI_ERROR_INSUFFICIENT_PRIVILEGES" in (found["d"].no_kernels or "")


def test_clock_is_checked_for_prefills_of_an_engine_with_a_stream(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = []
    monkeypatch.setattr(findings, "CudaEvents", lambda stream: streams.append(stream) or world)
    monkeypatch.setattr(findings, "check_timer", lambda *_: {"events_s": [1.0], "drained_s": [1.0]})
    assert run(world, job(kernels=False)) == {}
    world.handle = 0  # the default stream is one like others
    found = run(world, job(kernels=False))
    assert found == {"p": Finding("p", timer_check={"events_s": [1.0], "drained_s": [1.0]})}
    assert streams == [0]


def test_a_failing_check_of_the_clock_is_a_warning_and_kernels_are_traced_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: int) -> None:
        raise RuntimeError("the GPU failed: cudaErrorInvalidResourceHandle")

    monkeypatch.setattr(findings, "CudaEvents", fail)
    world.handle = 7
    run(world, job())
    first, *others = world.found
    assert first.key == "p"
    assert "not checked against CUDA events" in first.warnings[0]
    assert "cudaErrorInvalidResourceHandle" in first.warnings[0]
    assert all(finding.kernels for finding in others)


def test_findings_add_to_a_result_and_take_nothing_away() -> None:
    result = RowResult("p", "ok", samples_s=(1.0,), warnings=("a",))
    checked = Finding("p", timer_check={"events_s": [1.0], "drained_s": [1.0]}).added_to(result)
    both = Finding("p", kernels={"busy_s": 1.0}, warnings=("b",)).added_to(checked)
    assert both.samples_s == (1.0,)
    assert both.warnings == ("a", "b")
    assert both.timer_check == checked.timer_check
    assert both.kernels == {"busy_s": 1.0}


class FakeCupti:
    """CUPTI's activity API as far as it is used: a kernel, a copy and a fill, delivered when flushed."""

    ActivityKind = SimpleNamespace(CONCURRENT_KERNEL=10, MEMCPY=1, MEMSET=2)

    def __init__(self) -> None:
        self.enabled: list[int] = []
        self.calls: list[str] = []

    def activity_register_callbacks(self, requested: Any, completed: Any) -> None:
        size, records = requested()
        assert size > 0
        assert records == 0
        self.completed = completed

    def activity_enable(self, kind: int) -> None:
        self.enabled.append(kind)

    def activity_disable(self, kind: int) -> None:
        self.enabled.remove(kind)

    def activity_flush_all(self, flag: int) -> None:
        self.calls.append("flush")
        self.completed(
            [
                SimpleNamespace(kind=10, name="_ZN2at6native6kernelIfEEvi", start=1, end=5),
                SimpleNamespace(kind=1, copy_kind=8, start=5, end=6),
                SimpleNamespace(kind=2, start=6, end=7),
                SimpleNamespace(kind=10, name="never_ended", start=8, end=0),
            ]
        )

    def ActivityMemcpyKind(self, kind: int) -> SimpleNamespace:
        return SimpleNamespace(name={8: "DTOD"}[kind])


def fake_cupti(monkeypatch: pytest.MonkeyPatch) -> FakeCupti:
    package, fake = ModuleType("cupti"), FakeCupti()
    package.cupti = fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cupti", package)
    return fake


def test_records_are_read_while_tracing_and_nothing_is_left_enabled(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_cupti(monkeypatch)
    assert cupti.missing() is None
    tracer = cupti.Tracer()
    for _ in range(2):
        found = tracer.trace(lambda: fake.calls.append(f"run {sorted(fake.enabled)}"))
        assert found == [
            Activity("void at::native::kernel<float>(int)", 1, 5),
            Activity("memcpy_DTOD", 5, 6),
            Activity("memset", 6, 7),
        ]
        assert fake.enabled == []
    assert fake.calls == ["run [1, 2, 10]", "flush"] * 2


def test_tracing_ends_even_if_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_cupti(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        cupti.Tracer().trace(lambda: 1 // 0)  # type: ignore[arg-type,return-value]
    assert fake.enabled == []
