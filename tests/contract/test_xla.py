"""What `xla` promises beyond the contract: nothing copied, weights outside, threads and caches as told."""

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.contract import Shapes, Target, Unsupported
from models.checkpoint import Weights
from tests.contract.child import threads_of
from tests.contract.conftest import build_once

jax = pytest.importorskip("jax")

from backends.xla.engine import XlaEngine  # noqa: E402 (jax may be missing)

SHAPES = Shapes(batch=2, prompts=(4, 8), capacity=23)
TOKENS = np.random.default_rng(5).integers(0, 160, (2, 24), dtype=np.int32)
OpenFamily = Callable[[str, str], Weights]
DTYPES = ("float32", "bfloat16", "float16")


def load(weights: Weights, name: str = "xla") -> XlaEngine:
    backend, options = registry.parse(name)
    found = registry.find(backend)
    artefact = build_once(found, weights.config, SHAPES, Target("cpu", weights.dtype, "any"), options)
    engine = found.load(artefact, weights)
    assert isinstance(engine, XlaEngine)
    return engine


def addresses(engine: XlaEngine) -> list[int]:
    return [each.unsafe_buffer_pointer() for each in (*engine.state.keys, *engine.state.values)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_call_leaves_the_cache_where_it_is(open_family: OpenFamily, dtype: str) -> None:
    engine = load(open_family("llama", dtype))
    before = addresses(engine)
    engine.stage(TOKENS[:, :8])
    engine.prefill()
    for _ in range(3):
        engine.decode()
    engine.rewind(5)
    engine.feed(TOKENS[:, 5])
    engine.poison(5)
    engine.decode()
    engine.sync()
    assert addresses(engine) == before
    engine.close()


def elements(shape: str) -> int:
    return math.prod(int(size) for size in shape.split(","))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])  # float16 is widened first on a CPU, cache and all
def test_a_decode_step_makes_nothing_as_large_as_the_cache(open_family: OpenFamily, dtype: str) -> None:
    """Addresses alone would not show a transposed copy that lives within the step."""
    engine = load(open_family("llama", dtype))
    size = engine.state.keys[0].size
    program = engine.programs.decode.as_text()  # type: ignore[attr-defined]
    body = program[program.index("\nENTRY") :]
    made = re.findall(r"%(\S+) = \w+\[([\d,]+)\]\S* (?!parameter)[\w-]+\(", body)
    large = [name for name, shape in made if elements(shape) == size]
    assert len(large) == 2 * len(engine.state.keys), large
    assert all("dynamic-update-slice" in name for name in large), large
    engine.close()


def test_a_step_leaves_the_whole_state_where_it_is(open_family: OpenFamily) -> None:
    """A step that wrote its logits elsewhere would have a GPU's command buffer updated before it runs."""
    engine = load(open_family("llama", "float32"))

    def places() -> list[int]:
        return [each.unsafe_buffer_pointer() for each in jax.tree.leaves(engine.state)]

    before = places()
    engine.prefill()
    assert places() == before
    engine.decode()
    assert places() == before
    engine.close()


def test_no_program_holds_a_weight(open_family: OpenFamily) -> None:
    engine = load(open_family("llama", "float32"))
    programs = [engine.programs.decode, *engine.programs.prefill.values()]
    for program in programs:
        text = program.as_text()  # type: ignore[attr-defined]
        constants = [elements(shape) for shape in re.findall(r"= \w+\[([\d,]+)\]\S* constant\(", text)]
        assert max(constants, default=0) < min(each.size for each in engine.weights.values())
    engine.close()


def test_engines_share_one_copy_of_the_weights(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    one, other = load(weights), load(weights)
    assert one.weights is other.weights
    one.close()
    other.close()


def test_close_frees_the_cache(open_family: OpenFamily) -> None:
    engine = load(open_family("llama", "float32"))
    cached = engine.state.keys[0]
    engine.close()
    assert cached.is_deleted()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("xla[attention=cudnn]", "kernel for GPUs"),
        ("xla[attention=pallas]", "kernel for GPUs"),
        ("xla[import=torch,attention=products]", "leave out attention="),
    ],
)
def test_what_cannot_be_done_here_is_refused(open_family: OpenFamily, name: str, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        load(open_family("llama", "float32"), name)


def test_an_importer_that_cannot_be_imported_is_named_with_its_reason(
    open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchax", None)
    with pytest.raises(Unsupported, match="import=torch needs torchax"):
        load(open_family("llama", "float32"), "xla[import=torch]")


def run_child(folder: Path, cache: Path, threads: int) -> list[str]:
    """Load an engine in a process of its own; returns its threads' names."""
    return threads_of("xla", folder, threads, {"JAX_COMPILATION_CACHE_DIR": str(cache)})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_a_worker_has_the_threads_it_is_given_and_its_second_start_compiles_nothing(
    open_family: OpenFamily, tmp_path: Path
) -> None:
    folder = open_family("llama", "float32").folder
    threads = {count: run_child(folder, tmp_path / "jax", count).count("tf_XLAEigen") for count in (1, 3)}
    assert threads == {1: 1, 3: 3}
    compiled = {path.name for path in (tmp_path / "jax").glob("*-cache")}
    assert any(name.startswith("jit_decode_step") for name in compiled)
    run_child(folder, tmp_path / "jax", 3)
    assert {path.name for path in (tmp_path / "jax").glob("*-cache")} == compiled
