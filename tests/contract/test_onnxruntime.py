"""What engines of `onnxruntime` promise beyond the contract: no copies, weights outside, threads as told."""

import gc
import sys
import time
import types
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest

from backends import registry
from backends.contract import Artefact, Target
from models.rope import rope_tables
from tests.contract.reference import FAMILIES, reference_logits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from backends.onnxruntime import devices  # noqa: E402
from backends.onnxruntime.engine import OnnxEngine, Programs  # noqa: E402
from backends.onnxruntime.export import ATTENTIONS, export  # noqa: E402
from backends.onnxruntime.imported import import_programs  # noqa: E402
from tests.contract.onnxruntime_ways import SHAPES, TOKENS, WAYS, OpenFamily, build, load  # noqa: E402


def run(engine: OnnxEngine, prompt: int, steps: int) -> None:
    engine.stage(TOKENS[:, :prompt])
    engine.prefill()
    for _ in range(steps):
        engine.decode()


def largest_error(engine: OnnxEngine, expected: np.ndarray) -> float:
    """Compare a prefill, forced steps after it, and steps after a rewind over a poisoned cache."""
    run(engine, 8, 0)
    errors = [np.abs(engine.logits() - expected[:, 7]).max()]
    for start in (8, 3):
        engine.rewind(start)
        engine.poison(start)
        for position in range(start, start + 3):
            engine.feed(TOKENS[:, position])
            engine.decode()
            errors.append(np.abs(engine.logits() - expected[:, position]).max())
    return float(max(errors) / np.abs(expected).max())


# The contract suite has what is imported in every family.
CASES = [(name, family) for name in WAYS for family in FAMILIES if "import" not in name or family == "llama"]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_every_way_equals_the_reference(open_family: OpenFamily, name: str, family: str) -> None:
    weights = open_family(family, "float32")
    engine = load(weights, name)
    assert largest_error(engine, reference_logits(weights, TOKENS)) < 1e-5
    engine.close()


@pytest.mark.parametrize("name", WAYS[1:])
def test_every_way_chooses_the_same_tokens(open_family: OpenFamily, name: str) -> None:
    one, other = load(open_family("llama", "float32")), load(open_family("llama", "float32"), name)
    for engine in (one, other):
        run(engine, 4, 8)
    np.testing.assert_allclose(one.logits(), other.logits(), atol=1e-4)


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_the_graph_for_16_bits_equals_the_reference(
    open_family: OpenFamily, attention: str, family: str
) -> None:
    """It is for GPUs; the CPU provider runs it by way of casts, so it is refused there, and tested there."""
    weights = open_family(family, "float16")
    model = export(weights.config, SHAPES, "float16", attention).SerializeToString()
    cos, sin = rope_tables(weights.config, SHAPES.capacity)
    programs = Programs(model, dict.fromkeys(SHAPES.prompts, model), {"cos": cos, "sin": sin})
    target = Target("cpu", "float16", "any")
    engine = OnnxEngine(Artefact(weights.config, SHAPES, target, {}, "common", "", programs), weights)
    assert largest_error(engine, reference_logits(weights, TOKENS)) < 5e-3
    engine.close()


def test_an_import_in_16_bits_gives_the_logits_in_float32(open_family: OpenFamily) -> None:
    """It is for GPUs, like the graphs above, and is tried on the CPU like them."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    weights = open_family("llama", "float16")
    artefact = Artefact(
        weights.config,
        SHAPES,
        Target("cpu", "float16", "any"),
        {},
        "imported",
        "",
        import_programs(weights.config, SHAPES, "float16"),
    )
    engine = OnnxEngine(artefact, weights)
    assert largest_error(engine, reference_logits(weights, TOKENS)) < 5e-3
    engine.close()


@pytest.mark.parametrize("name", WAYS)
def test_every_step_writes_the_cache_where_it_reads_it(open_family: OpenFamily, name: str) -> None:
    engine = load(open_family("llama", "float32"), name)
    before = {name: each.value.data_ptr() for name, each in engine.cache.items()}
    run(engine, 8, 3)
    engine.rewind(5)
    engine.decode()
    for step in (*engine.decodes, engine.prefills[8]):
        outputs = [each.name for each in step.session.get_outputs()]
        written = dict(zip(outputs, step.binding.get_outputs(), strict=True))
        assert {name: written[f"next.{name}"].data_ptr() for name in before} == before
    engine.close()


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_the_cache_is_written_by_operators_that_update_it_in_place(attention: str) -> None:
    graph = export(FAMILIES["llama"], SHAPES, "float32", attention).graph
    writers = {
        out: node for node in graph.node for out in node.output if out.startswith(("next.k", "next.v"))
    }
    assert len(writers) == 2 * FAMILIES["llama"].layers
    for output, node in writers.items():
        assert node.op_type in ("TensorScatter", "GroupQueryAttention")
        assert output.removeprefix("next.") in node.input


def quickest(action: Callable[[], Any]) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


def test_a_step_takes_less_than_a_copy_of_its_cache_would(open_family: OpenFamily) -> None:
    """Addresses alone would not show a copy to and fro; group-query attention reads what is filled only."""
    weights = open_family("llama", "float32")
    shapes = replace(SHAPES, capacity=1 << 16)
    artefact = registry.find("onnxruntime").build(weights.config, shapes, Target("cpu", "float32", "any"), {})
    engine = OnnxEngine(artefact, weights)
    run(engine, 4, 1)
    copies = [each.read() for each in engine.cache.values()]
    cache = [each.copy() for each in copies]

    def copy() -> None:
        for target, source in zip(copies, cache, strict=True):
            np.copyto(target, source)

    assert quickest(engine.decode) < quickest(copy) / 4
    engine.close()


def test_prefill_and_decode_share_a_session(open_family: OpenFamily) -> None:
    """Each session has packed weights of its own."""
    engine = load(open_family("llama", "float32"))
    assert len({id(step.session) for step in (*engine.decodes, *engine.prefills.values())}) == 1
    engine.close()


@pytest.mark.parametrize("name", WAYS)
def test_the_models_hold_no_weight(open_family: OpenFamily, name: str) -> None:
    weights = open_family("qwen2", "float32")
    programs = build(weights, name).payload
    for serialised in (programs.decode, *programs.prefills.values()):
        graph = onnx.ModelProto.FromString(serialised).graph
        assert {each.name for each in weights.layout} <= {each.name for each in graph.input}
        assert max(len(each.raw_data) for each in graph.initializer) < 160 * 64


def test_an_artefact_takes_any_weights(open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = open_family("llama", "float32")
    artefact = build(weights)
    engine = OnnxEngine(artefact, weights)
    arrays = dict(weights.arrays())
    monkeypatch.setattr(weights, "arrays", lambda: iter(arrays.items()))
    arrays["head.weight"] = 2 * arrays["head.weight"]
    doubled = OnnxEngine(artefact, weights)
    run(engine, 4, 1)
    run(doubled, 4, 1)
    np.testing.assert_array_equal(doubled.logits(), 2 * engine.logits())


def test_a_session_needs_the_weights_no_more_once_it_is_open(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_family("llama", "float32")
    arrays = dict(weights.arrays())
    monkeypatch.setattr(weights, "arrays", lambda: iter(arrays.items()))
    engine = load(weights)
    run(engine, 4, 1)
    before = engine.logits()
    for array in arrays.values():
        array[...] = np.nan
    run(engine, 4, 1)
    np.testing.assert_array_equal(engine.logits(), before)


def test_of_equal_logits_the_first_is_chosen(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_family("llama", "float32")
    arrays = dict(weights.arrays())
    arrays["head.weight"][...] = 0.0
    monkeypatch.setattr(weights, "arrays", lambda: iter(arrays.items()))
    engine = load(weights)
    engine.feed(TOKENS[:, 0])
    engine.decode()
    assert not engine.logits().any()
    chosen = engine.turns[engine.turn]["tokens"].read()[:, 0]
    assert not chosen.any()


@pytest.mark.parametrize("threads", ["1", "2"])
def test_as_many_threads_run_as_the_process_is_given(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch, threads: str
) -> None:
    weights = open_family("llama", "float32")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    before = psutil.Process().num_threads()
    engine = load(weights)
    run(engine, 4, 1)
    assert psutil.Process().num_threads() == before + int(threads) - 1
    engine.close()


class CountedCpu(devices.Cpu):
    """Stands in for a GPU, whose stream must outlive the sessions: counts those left when it is closed."""

    def __init__(self) -> None:
        self.opened: list[weakref.ref[Any]] = []
        self.left: list[int] = []

    def open(self, model: bytes, weights: Any) -> Any:
        session = super().open(model, weights)
        self.opened.append(weakref.ref(session))
        return session

    def close(self) -> None:
        self.left.append(sum(each() is not None for each in self.opened))


@pytest.mark.parametrize("name", WAYS)
def test_close_frees_the_cache_and_the_sessions_before_the_device(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    device = CountedCpu()
    monkeypatch.setattr("backends.onnxruntime.engine.open_device", lambda *_, **__: device)
    engine = load(open_family("llama", "float32"), name)
    run(engine, 4, 1)
    cache = weakref.ref(engine.cache["keys.0"])
    gc.disable()  # the stream cannot wait for a collection
    try:
        engine.close()
    finally:
        gc.enable()
    assert cache() is None
    assert device.opened
    assert device.left == [0]


class FakeCuda(types.ModuleType):
    """As much of CUDA's runtime as opening and closing a GPU takes."""

    cudaError_t = types.SimpleNamespace(cudaSuccess=0)

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.streams: set[int] = set()

    def cudaSetDevice(self, index: int) -> tuple[int]:
        return (0,)

    def cudaStreamCreate(self) -> tuple[int, int]:
        self.streams.add(77)
        return 0, 77

    def cudaStreamDestroy(self, stream: int) -> tuple[int]:
        self.streams.remove(stream)
        return (0,)


def test_a_gpu_that_is_closed_leaves_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda", types.ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.ModuleType("cuda.bindings"))
    monkeypatch.setattr(sys.modules["cuda.bindings"], "runtime", cuda, raising=False)
    gpu = devices.open_device("cuda:0", capture=False)
    assert cuda.streams == {gpu.stream()}
    gpu.close()
    assert cuda.streams == set()
