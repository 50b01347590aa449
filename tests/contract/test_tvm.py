"""What `tvm` promises beyond the contract: nothing copied, weights outside, threads and libraries as told."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.contract import Shapes, Target, Unsupported
from backends.tvm import Tvm
from backends.tvm.database import TRIALS, WORKLOADS
from backends.tvm.plan import choose
from models.checkpoint import Weights
from tests.contract.child import threads_of
from tests.contract.reference import FAMILIES, LLAMA, reference_logits

tvm = pytest.importorskip("tvm")

from backends.tvm import compiler, tuning  # noqa: E402 (tvm may be missing)
from backends.tvm.compiler import CACHE  # noqa: E402
from backends.tvm.engine import TvmEngine  # noqa: E402
from backends.tvm.lowering import lower_definition  # noqa: E402
from backends.tvm.ops import Decode, Prefill  # noqa: E402
from backends.tvm.pipeline import build_pipeline, fusing_passes  # noqa: E402
from backends.tvm.storage import kept_storage, watch_allocations  # noqa: E402
from backends.tvm.targets import name_target  # noqa: E402
from backends.tvm.tuned_ops import CpuOps, GpuDecode, GpuPrefill  # noqa: E402

SHAPES = Shapes(batch=2, prompts=(8,), capacity=23)
TOKENS = np.random.default_rng(5).integers(0, 160, (2, 24), dtype=np.int32)
CPU = Target("cpu", "float32", "any")
OpenFamily = Callable[[str, str], Weights]


@pytest.fixture(scope="module", autouse=True)
def kept_libraries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compile once what several tests load."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(tmp_path_factory.mktemp("tvm")))
        yield


def load(weights: Weights) -> TvmEngine:
    backend = registry.find("tvm")
    artefact = backend.build(weights.config, SHAPES, replace(CPU, dtype=weights.dtype), {})
    engine = backend.load(artefact, weights)
    assert isinstance(engine, TvmEngine)
    return engine


PHASES = {"stock": (Prefill, Decode), "cpu": (CpuOps, CpuOps), "gpu": (GpuPrefill, GpuDecode)}


@pytest.mark.parametrize("phases", PHASES)
def test_each_function_writes_its_state_where_it_lies(phases: str) -> None:
    """What a function returns of the state is the state's own buffer, through in-place calls alone."""
    module = lower_definition(LLAMA, SHAPES, "bfloat16", *PHASES[phases])
    for name in ("prefill_8", "decode"):
        function = module[name]
        bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        results = list(bindings[function.body.body].fields)
        state = list(function.params)[-len(results) :]
        assert len(results) == 3 + 2 * LLAMA.layers
        assert [written_to(result, bindings) for result in results] == state


def test_tvms_own_passes_for_a_gpu_take_the_stock_functions() -> None:
    """They fuse what they can, and a function that writes its argument is none of it."""
    target = name_target(Target("cuda:0", "bfloat16", "sm_90"), stock=True)
    with target:
        lowered = tvm.relax.get_default_pipeline(target)(
            lower_definition(LLAMA, SHAPES, "bfloat16", Prefill, Decode)
        )
    names = {variable.name_hint for variable in lowered.functions}
    assert {"prefill_8", "decode", "poison", "write_cache", "overwrite"} <= names


def written_to(result: Any, bindings: dict[Any, Any]) -> Any:
    """Follow an output of `call_tir_inplace` to the argument that it is."""
    value, output = bindings[result], 0
    if isinstance(value, tvm.relax.TupleGetItem):
        value, output = bindings[value.tuple_value], value.index
    assert value.op.name == "relax.call_tir_inplace", value
    place = int(value.attrs.inplace_indices[output])
    return value.args[1].fields[place]


def test_a_compiled_step_allocates_less_than_one_layer_of_the_cache() -> None:
    shapes = replace(SHAPES, capacity=4096)
    target = name_target(CPU, stock=False)
    with target:
        module = build_pipeline(target)(lower_definition(LLAMA, shapes, "float32", CpuOps, CpuOps))
    sizes = [int(size) for size in re.findall(r"alloc_storage\(R\.shape\(\[(\d+)\]\)", module.script())]
    assert sizes, "the text names storages otherwise: read their sizes anew"
    assert max(sizes) < 4 * shapes.batch * LLAMA.kv_heads * shapes.capacity * LLAMA.head_dim


def test_a_decode_call_leaves_every_buffer_where_it_is(open_family: OpenFamily) -> None:
    engine = load(open_family("llama", "float32"))
    before = [each.data_ptr() for each in engine.state]
    engine.stage(TOKENS[:, :8])
    engine.prefill()
    first = engine.state[3].numpy()
    engine.decode()
    assert [each.data_ptr() for each in engine.state] == before
    changed = (engine.state[3].numpy() != first).any(axis=(0, 1, 3))  # [C], of the first layer's keys
    assert changed.nonzero()[0].tolist() == [8]
    engine.close()


def test_storage_of_a_call_that_is_kept_goes_to_no_other(open_family: OpenFamily) -> None:
    """A captured graph writes its storage ever after; the constants of a later engine must not be there."""
    watch_allocations()  # before the machine is made, as a GPU does
    engine = load(open_family("llama", "float32"))
    engine.stage(TOKENS[:, :8])
    engine.prefill()
    with kept_storage() as first:
        engine.decode()
    with kept_storage() as second:
        engine.decode()
    assert addresses(first)
    assert not addresses(first) & addresses(second)
    free = addresses(first)
    first.clear()
    with kept_storage() as third:
        engine.decode()
    assert free & addresses(third), "the pool hands nothing out again, so this test shows nothing"
    engine.close()


def addresses(storages: list[Any]) -> set[int]:
    """Return where storages lie."""
    view = tvm.get_global_func("vm.builtin.alloc_tensor")
    return {view(each, 0, [1], tvm.DataType("uint8")).data_ptr() for each in storages}


@pytest.mark.parametrize("family", FAMILIES)
def test_float16_gives_the_reference_logits(open_family: OpenFamily, family: str) -> None:
    weights = open_family(family, "float16")  # the contract suite has the other two data types
    assert_reference_logits(load(weights), weights, TOKENS[:, :12], prompt=8)


def assert_reference_logits(engine: TvmEngine, weights: Weights, tokens: np.ndarray, prompt: int) -> None:
    """Prefill, then decode the other tokens, with what lies beyond each poisoned."""
    expected = reference_logits(weights, tokens)
    engine.stage(tokens[:, :prompt])
    engine.prefill()
    for position in range(prompt, tokens.shape[1] + 1):
        error = np.sqrt(np.mean((engine.logits() - expected[:, position - 1]) ** 2) / np.mean(expected**2))
        assert error < 0.003, position
        if position < tokens.shape[1]:
            engine.poison(position)
            engine.feed(tokens[:, position])
            engine.decode()
    engine.close()


def test_engines_share_one_copy_of_the_weights(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    one, other = load(weights), load(weights)
    assert one.constants[0].same_as(other.constants[0])
    one.close()
    other.close()


def test_nothing_is_compiled_for_a_gpu_where_the_library_would_hold_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise RuntimeError("Compilation error:\nno c++")

    monkeypatch.setattr(tvm.runtime, "enabled", lambda _: False)
    monkeypatch.setattr(compiler, "load_runtime_without_driver", fail)
    with pytest.raises(Unsupported, match=r"cannot load its CUDA runtime here: Compilation error: no c\+\+$"):
        compiler.compile_module(None, tvm.target.Target({"kind": "cuda", "arch": "sm_90"}), "default")


def test_options_are_settled_before_anything_is_compiled() -> None:
    gpu = Target("cuda:0", "bfloat16", "sm_90")
    assert choose({"stock": ""}, gpu).provenance == "stock"
    assert choose({}, CPU).provenance.startswith("patched: RowProduct")
    assert choose({"library": "cublas"}, gpu).provenance.endswith("cuBLAS for prefill")
    with pytest.raises(Unsupported, match="for products on a GPU, not on cpu"):
        choose({"library": "cublas"}, CPU)
    with pytest.raises(Unsupported, match="leave it out in float32"):
        choose({"library": "cublas"}, replace(gpu, dtype="float32"))
    assert choose({"import": "torch"}, gpu).provenance == "stock"
    assert choose({"tune": "8"}, gpu).provenance.endswith("8 trials of MetaSchedule")
    untuned = choose({"tune": "8"}, replace(gpu, card="h100"))
    assert untuned.untuned
    assert untuned.provenance == choose({}, gpu).provenance
    cpu = Target("cpu", "float32", "any")
    assert [Tvm().tunes(cpu, each) for each in ({}, {"tune": "8"})] == [False, True]
    for alone in ({"stock": ""}, {"import": "torch"}):
        with pytest.raises(Unsupported, match="leave out the other options"):
            choose({**alone, "library": "cublas"}, gpu)


def plain(value: Any) -> Any:
    """Return a list of TVM's as one of Python's, or a number."""
    return list(value) if hasattr(value, "__len__") else value.value


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_importer_refuses_16_bits_in_its_own_words(dtype: str) -> None:
    """It makes each product float32, whatever torch made, and does not put that into a cache of 16 bits."""
    reason = rf"ScatterElements op requires .* data: T\.{dtype}, updates: T\.float32"
    with pytest.raises(Unsupported, match=rf"Relax's importer refuses the torch\.export graph: {reason}"):
        registry.find("tvm").build(LLAMA, SHAPES, replace(CPU, dtype=dtype), {"import": "torch"})


def test_trials_run_once_and_the_fastest_schedules_are_compiled(
    open_family: OpenFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cloudpickle", reason="TVM starts the processes that it times in with cloudpickle")
    # What TVM defines at this import takes it half a minute, and products in float32 use none of it.
    monkeypatch.setitem(sys.modules, "tvm.s_tir.tensor_intrin", ModuleType("tensor_intrin"))
    weights, shapes = open_family("llama", "float32"), Shapes(batch=1, prompts=(1,), capacity=23)
    backend, options = Tvm(), {"tune": "1"}
    built = backend.build(weights.config, shapes, CPU, options)
    assert built.provenance.endswith("1 trials of MetaSchedule")
    database = {name: built.payload.files[name] for name in (WORKLOADS, TRIALS)}
    for name, content in database.items():
        (tmp_path / name).write_bytes(content)
    products = {"qkv", "o", "gate_up", "down", "head"}  # of one token, in prefill as in decode
    assert database[TRIALS].count(b"\n") == len(products) + 1  # ours, then the trial
    records = tvm.s_tir.meta_schedule.database.JSONDatabase(work_dir=str(tmp_path)).get_all_tuning_records()
    taken = {}
    for record in records:  # the fastest first
        taken.setdefault(record.workload.as_json()[0], record.trace.as_json())
    assert json.loads(backend.choices(tmp_path, CPU, options)) == json.loads(json.dumps(taken, default=plain))
    target = name_target(CPU, stock=False)
    with target:
        passes = [*fusing_passes(), tvm.relax.transform.MetaScheduleApplyDatabase(str(tmp_path))]
        module = lower_definition(LLAMA, shapes, "float32", CpuOps, CpuOps)
        scheduled = tvm.transform.Sequential(passes)(module)
    found = [function for name, function in scheduled.functions.items() if "matmul" in name.name_hint]
    assert [function.attrs["tirx.is_scheduled"] for function in found] == [True] * len(products)

    calls: list[Any] = []  # no trial from here on
    monkeypatch.setattr(tuning, "tune_products", lambda *arguments: calls.append(arguments))
    assert backend.build(weights.config, shapes, CPU, options).payload.files == built.payload.files
    elsewhere = replace(CPU, card="another", tuning=str(tmp_path))
    again = backend.build(weights.config, shapes, elsewhere, options)
    assert {name: again.payload.files[name] for name in database} == database
    assert not again.untuned
    assert_reference_logits(backend.load(built, weights), weights, TOKENS[:1, :4], prompt=1)
    assert not calls
    backend.tune(weights.config, shapes, CPU, options, tmp_path)
    assert calls[0][2:] == (1, tmp_path)
    (tmp_path / TRIALS).write_text("")
    with pytest.raises(Unsupported, match="there is nothing to keep"):
        backend.tune(weights.config, shapes, CPU, options, tmp_path)


def test_a_product_that_cannot_be_timed_is_refused_in_tvms_words() -> None:
    target, failed = tvm.target.Target("llvm"), "An exception occurred\nno space left on device\n"
    built = SimpleNamespace(error_msg=failed, artifact_path=None)
    with pytest.raises(Unsupported, match="tune= cannot run products here: no space left on device"):
        tuning.time_candidate(built, target, [], None)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_worker_has_the_threads_it_is_given_and_its_second_start_compiles_nothing(
    open_family: OpenFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TVM_NUM_THREADS", raising=False)  # which an engine loaded in this process has set
    folder = open_family("llama", "float32").folder
    found = []
    for count, workers in ((1, 0), (3, 3)):  # one thread works itself, more are workers that it waits for
        assert len(threads_of("tvm", folder, count, {CACHE: str(tmp_path)})) == 1 + workers
        found.append({path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()})
    assert len(found[0]) == 1
    assert found[1] == found[0]
