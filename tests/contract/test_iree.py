"""What `iree` promises beyond the contract: nothing copied, weights outside, threads and modules as told."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from backends import iree as backend
from backends import registry
from backends.contract import Shapes, Target, Unsupported
from models.checkpoint import Weights
from models.config import PRESETS
from tests.contract.child import threads_of
from tests.contract.conftest import build_once
from tests.contract.reference import FAMILIES, LLAMA, reference_logits

pytest.importorskip("jax")
compiler = pytest.importorskip("iree.compiler")
pytest.importorskip("iree.runtime")

from backends.iree.compiler import run_compiler  # noqa: E402 (iree may be missing)
from backends.iree.engine import IreeEngine  # noqa: E402
from backends.iree.imported import lower_import  # noqa: E402
from backends.iree.ops import IreeDecode, IreeGpuDecode, lower_definition  # noqa: E402

SHAPES = Shapes(batch=2, prompts=(4, 8), capacity=23)
TOKENS = np.random.default_rng(5).integers(0, 160, (2, 24), dtype=np.int32)
OpenFamily = Callable[[str, str], Weights]
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02, "float16": 0.003}


def error_of(engine: IreeEngine, expected: np.ndarray, position: int) -> float:
    """Return the error of an engine's logits at a position, as a share of those expected."""
    return float(np.sqrt(np.mean((engine.logits() - expected[:, position]) ** 2) / np.mean(expected**2)))


def load(weights: Weights, name: str = "iree") -> IreeEngine:
    found, options = registry.parse(name)
    iree = registry.find(found)
    artefact = build_once(iree, weights.config, SHAPES, Target("cpu", weights.dtype, "any"), options)
    engine = iree.load(artefact, weights)
    assert isinstance(engine, IreeEngine)
    return engine


def inspect(program: str) -> str:
    """Return what `iree-compile` will run: the main function with its allocations, copies and waits."""
    plan = backend.choose({}, Target("cpu", "float32", "any"))
    flags = (*plan.target, *plan.flags, backend.CALLS, "--compile-to=stream")
    module = run_compiler(program, flags).decode()
    return module[re.search(r"util\.func public @main\b", module).start() :]  # type: ignore[union-attr]


LOWERINGS: dict[str, Callable[..., tuple[list[str], str]]] = {
    "definition": partial(lower_definition, on_gpu=False),
    "definition for a GPU": partial(lower_definition, on_gpu=True),
    "torch": lower_import,
}


@pytest.fixture(params=LOWERINGS)
def programs(request: pytest.FixtureRequest) -> tuple[list[str], str]:
    """Lower prefills and decode with a cache far larger than everything else."""
    if request.param == "torch":
        pytest.importorskip("iree.turbine.aot")
    backend.prepare()
    prefills, decode = LOWERINGS[request.param](LLAMA, replace(SHAPES, capacity=4096), "float32")
    return prefills, decode


def test_no_program_copies_the_cache_and_decode_asks_the_host_nothing(
    programs: tuple[list[str], str],
) -> None:
    layer = 4 * SHAPES.batch * LLAMA.kv_heads * 4096 * LLAMA.head_dim
    for program in (*programs[0], programs[1]):
        body = inspect(program)
        allocated = [int(size) for size in re.findall(r"resource\.alloca .*?<\w+>\{%c(\d+)", body)]
        assert allocated
        assert max(allocated) < layer / 2
    assert "timepoint.await" not in inspect(programs[1])


def test_a_start_that_goes_by_the_host_would_be_seen() -> None:
    """The form that XLA is given makes IREE fetch the position: what the test above looks for is there."""
    import jax
    import jax.numpy as jnp

    def write(cache: jax.Array, row: jax.Array, position: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice(cache, row, (position, 0))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 8), (1, 8))]
    lowered = jax.jit(write, donate_argnums=0).lower(*shapes, jax.ShapeDtypeStruct((), jnp.int32))
    assert "timepoint.await" in inspect(lowered.as_text())


def test_every_part_of_the_state_is_written_where_it_lies() -> None:
    backend.prepare()
    prefills, decode = lower_definition(LLAMA, SHAPES, "float32", on_gpu=False)
    for program in (*prefills, decode):
        aliases = re.findall(r"%arg(\d+): \S+ \{tf\.aliasing_output = (\d+)", program)
        results = [int(result) for _, result in aliases]
        assert results == list(range(3 + 2 * LLAMA.layers))
        first = int(aliases[0][0])
        assert [int(argument) for argument, _ in aliases] == [first + result for result in results]


def test_an_imported_prefill_has_no_scatter() -> None:
    """On an NVIDIA GPU IREE puts the values of a whole prompt's where they do not belong."""
    pytest.importorskip("iree.turbine.aot")
    prefills, decode = lower_import(LLAMA, SHAPES, "bfloat16")
    assert len(prefills) == len(SHAPES.prompts)
    for program in prefills:
        assert "aten.scatter" not in program
        assert "aten.slice_scatter" in program
    assert "aten.scatter" in decode


def test_weights_are_arguments(programs: tuple[list[str], str]) -> None:
    for program in (*programs[0], programs[1]):
        assert "tensor<160x64xf32>" in program or "[160,64],f32" in program
        assert 'dense<"0x' not in program
        assert "dense_resource" not in program


def test_a_decode_call_leaves_every_buffer_where_it_is(open_family: OpenFamily) -> None:
    engine = load(open_family("llama", "float32"))
    engine.stage(TOKENS[:, :8])
    before = list(engine.state)
    engine.prefill()
    engine.decode()
    engine.sync()
    assert all(one is other for one, other in zip(engine.state, before, strict=True))
    engine.close()


# The contract suite has the other data types, and what is imported in float32. One way is tried in float16.
WAYS = [(family, "iree", "float16") for family in FAMILIES]
WAYS += [("llama", "iree[tiling=on]", dtype) for dtype in ("float32", "bfloat16")]
WAYS += [("llama", "iree[import=torch]", "bfloat16")]


@pytest.mark.parametrize(("family", "name", "dtype"), WAYS)
def test_every_way_in_gives_the_reference_logits(
    open_family: OpenFamily, family: str, name: str, dtype: str
) -> None:
    if "torch" in name:
        pytest.importorskip("iree.turbine.aot")
    weights = open_family(family, dtype)
    engine, expected = load(weights, name), reference_logits(weights, TOKENS[:, :12])

    def check(position: int) -> None:
        assert error_of(engine, expected, position) < TOLERANCE[dtype], position

    engine.stage(TOKENS[:, :8])
    engine.prefill()
    check(7)
    for start in (8, 3):
        engine.rewind(start)
        engine.poison(start)
        for position in range(start, start + 4):
            engine.feed(TOKENS[:, position])
            engine.decode()
            check(position)
    engine.close()


def test_engines_share_one_copy_of_the_weights(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    one, other = load(weights), load(weights)
    assert one.constants[0] is other.constants[0]
    one.close()
    other.close()


def test_close_frees_all_but_the_weights(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    load(weights).close()  # the weights are there from now on
    engine = load(weights)
    allocator = engine.device.allocator

    def held() -> int:
        counted = allocator.statistics
        return int(counted["device_bytes_allocated"] - counted["device_bytes_freed"])

    cache = 4 * 2 * LLAMA.layers * SHAPES.batch * LLAMA.kv_heads * SHAPES.capacity * LLAMA.head_dim
    before = held()
    engine.close()
    assert before - held() >= cache


CUDA = "cuda" in compiler.query_available_targets()


@pytest.mark.skipif(not CUDA, reason="this iree-compile has no target cuda")
@pytest.mark.parametrize(("architecture", "ptx"), [("sm_80", 80), ("sm_89", 89), ("sm_90", 89)])
@pytest.mark.parametrize("preset", ["tiny", "llama-3.2-1b"])
def test_a_gpu_that_is_not_here_is_built_for(preset: str, architecture: str, ptx: int) -> None:
    config = replace(PRESETS[preset], layers=2)
    target = Target("cuda:0", "bfloat16", architecture)
    artefact = registry.find("iree").build(config, Shapes(1, (64,), 96), target, {})
    for module in (*artefact.payload.prefill.values(), artefact.payload.decode):
        assert set(re.findall(rb"\.target sm_(\w+)", module)) == {str(ptx).encode()}
    assert ("by PTX sm_89" in artefact.provenance) == (architecture == "sm_90")


@pytest.mark.skipif(not CUDA, reason="this iree-compile has no target cuda")
def test_no_thread_of_a_gpu_walks_through_the_cache_alone() -> None:
    """Of a product of few rows the compiler leaves a workgroup's whole tile to a single thread."""
    backend.prepare()
    config = replace(PRESETS["llama-3.2-1b"], layers=1, vocab_size=512)
    plan = backend.choose({}, Target("cuda:0", "bfloat16", "sm_90"))
    flags = (*plan.target, *plan.flags, backend.CALLS, "--compile-to=executable-configurations")
    tiled: dict[bool, list[str]] = {}
    for on_gpu in (True, False):
        program = lower_definition(config, Shapes(1, (64,), 1056), "bfloat16", on_gpu)[1]
        configured = run_compiler(program, flags).decode()
        products = re.findall(r"func\.func @\w*(mat(?:mul|vec)_like\w*)\(.*?pipeline<(\w+)>", configured)
        assert len(products) == 7  # qkv, two of attention, out, gate and up, down, head
        tiled[on_gpu] = [name for name, pipeline in products if pipeline != "VectorDistribute"]
    assert tiled[True] == []
    assert len(tiled[False]) == 2


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_what_a_gpu_is_given_attends_alike(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    weights = open_family("llama", dtype)
    target = Target("cpu", dtype, "any")
    monkeypatch.setattr(IreeDecode, "attend_rows", staticmethod(IreeGpuDecode.attend_rows))
    iree, expected = registry.find("iree"), reference_logits(weights, TOKENS[:, :12])
    engine = iree.load(iree.build(weights.config, SHAPES, target, {}), weights)
    engine.stage(TOKENS[:, :8])
    engine.prefill()
    engine.poison(8)
    for position in range(8, 12):
        engine.feed(TOKENS[:, position])
        engine.decode()
        assert error_of(engine, expected, position) < TOLERANCE[dtype], position
    engine.close()


@pytest.mark.skipif(not CUDA, reason="this iree-compile has no target cuda")
def test_the_compilers_own_words_are_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "NEWEST_CUDA", 90)
    with pytest.raises(Unsupported, match="iree-compile refuses it: missing GPU target"):
        registry.find("iree").build(LLAMA, SHAPES, Target("cuda:0", "float32", "sm_90"), {})


def test_an_importer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "iree.turbine", None)
    with pytest.raises(Unsupported, match=r"import=torch needs iree\.turbine: pip install iree-turbine"):
        registry.find("iree").build(LLAMA, SHAPES, Target("cpu", "float32", "any"), {"import": "torch"})


def run_child(folder: Path, cache: Path, threads: int) -> list[str]:
    """Load an engine in a process of its own; returns its threads' names."""
    return threads_of("iree", folder, threads, {"IREE_CACHE_DIR": str(cache)})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_worker_has_the_threads_it_is_given_and_its_second_start_compiles_nothing(
    open_family: OpenFamily, tmp_path: Path
) -> None:
    folder = open_family("llama", "float32").folder
    for count in (1, 3):
        names = run_child(folder, tmp_path, count)
        assert sum(name.startswith("iree-worker") for name in names) == count
    kept = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    assert all(name.endswith(".vmfb") for name in kept)
    run_child(folder, tmp_path, 3)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == kept
