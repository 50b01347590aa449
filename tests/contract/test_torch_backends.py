"""What the PyTorch backends promise beyond the contract: which kernels run, what is copied or compiled."""

import gc
import shutil
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.contract import Artefact, Engine, Shapes, Target, Unsupported
from models.checkpoint import Weights, open_checkpoint
from tests.contract.reference import FAMILIES, reference_logits, write_checkpoint

torch = pytest.importorskip("torch")

from backends.torch_engine import TorchEngine, device_step, sliced_step  # noqa: E402 (torch may be missing)
from backends.torch_ops import Cache, MaskedDecode, Prefill, Rope, TorchOps  # noqa: E402

SHAPES = Shapes(batch=2, prompts=(4, 8), capacity=24)
TOKENS = np.random.default_rng(5).integers(0, 160, (2, 24), dtype=np.int32)
OpenFamily = Callable[[str, str], Weights]


def build(name: str, weights: Weights, shapes: Shapes = SHAPES) -> Artefact:
    backend, options = registry.parse(name)
    target = Target("cpu", weights.dtype, "any")
    return registry.find(backend).build(weights.config, shapes, target, options)


def load(name: str, weights: Weights, shapes: Shapes = SHAPES) -> TorchEngine:
    engine = registry.find(registry.parse(name)[0]).load(build(name, weights, shapes), weights)
    assert isinstance(engine, TorchEngine)
    return engine


def run(engine: Engine, prompt: int, steps: int) -> None:
    engine.stage(TOKENS[:, :prompt])
    engine.prefill()
    for _ in range(steps):
        engine.decode()


def addresses(engine: TorchEngine) -> list[int]:
    return [tensor.data_ptr() for tensor in (*engine.state.cache.keys, *engine.state.cache.values)]


@pytest.fixture(params=["eager", "compile"])
def name(request: pytest.FixtureRequest) -> str:
    reason = registry.find(request.param).probe().reason
    if reason:
        pytest.skip(reason)
    return request.param


def test_steps_copy_no_cache_and_recompile_nothing(name: str, open_family: OpenFamily) -> None:
    counters = torch._dynamo.utils.counters
    engine = load(name, open_family("llama", "float32"))
    run(engine, 4, 2)
    run(engine, 8, 2)
    before, compiled = addresses(engine), counters["stats"]["unique_graphs"]
    for length in (8, 3, 0, 5):
        engine.rewind(length)
        engine.feed(TOKENS[:, length])
        engine.decode()
        engine.decode()
    run(engine, 4, 1)
    assert addresses(engine) == before
    assert counters["stats"]["unique_graphs"] == compiled
    engine.close()


def test_stock_compile_makes_one_program_for_all_lengths(open_family: OpenFamily) -> None:
    reason = registry.find("compile").probe().reason
    if reason:
        pytest.skip(reason)
    counters = torch._dynamo.utils.counters
    engine = load("compile[stock]", open_family("llama", "float32"))
    run(engine, 8, 2)  # the length is a constant first, then a symbol
    compiled = counters["stats"]["unique_graphs"]
    for _ in range(10):
        engine.decode()
    engine.rewind(3)
    engine.decode()
    assert counters["stats"]["unique_graphs"] == compiled
    engine.close()


def test_programs_of_layers_are_as_many_whatever_the_layers(tmp_path: Path) -> None:
    reason = registry.find("compile").probe().reason
    if reason:
        pytest.skip(reason)
    write_checkpoint(replace(FAMILIES["qwen3"], layers=4), tmp_path)
    weights = open_checkpoint(tmp_path, "float32")
    counters = torch._dynamo.utils.counters
    counters.clear()
    engine = load("compile[scope=layer]", weights, Shapes(2, (4,), 24))
    run(engine, 4, 1)
    assert counters["stats"]["unique_graphs"] == 6  # first layer, other layers and the rest, of both steps
    expected = reference_logits(weights, TOKENS[:, :6])
    engine.feed(TOKENS[:, 4])
    engine.rewind(4)
    engine.decode()
    engine.feed(TOKENS[:, 5])
    engine.decode()
    np.testing.assert_allclose(engine.logits(), expected[:, 5], rtol=0, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 6
    engine.close()


def test_weights_are_placed_once_for_all_engines(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    first, second = load("eager", weights), load("compile", weights, Shapes(1, (4,), 16))
    assert first.state.weights is second.state.weights
    first.close()
    second.close()


def test_weights_are_arguments_not_constants(name: str, open_family: OpenFamily) -> None:
    engine = load(name, open_family("llama", "float32"))
    run(engine, 4, 1)
    before = engine.logits()
    with torch.inference_mode():
        engine.state.weights["head.weight"].mul_(2.0)
    engine.rewind(4)
    engine.feed(TOKENS[:, 4])
    engine.decode()
    doubled = engine.logits()
    with torch.inference_mode():
        engine.state.weights["head.weight"].mul_(0.5)
    engine.rewind(4)
    engine.feed(TOKENS[:, 4])
    engine.decode()
    np.testing.assert_allclose(doubled, 2 * engine.logits(), rtol=1e-5)
    assert before.shape == doubled.shape
    engine.close()


def test_close_frees_the_cache(name: str, open_family: OpenFamily) -> None:
    engine = load(name, open_family("llama", "float32"))
    run(engine, 4, 1)
    cached = weakref.ref(engine.state.cache.keys[0])
    engine.close()
    gc.collect()
    assert cached() is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_masked_step_equals_the_sliced_one(open_family: OpenFamily, family: str, dtype: str) -> None:
    """`eager[graph]` captures the masked step on a GPU; here it runs uncaptured."""
    engine = load("eager", open_family(family, dtype))
    run(engine, 8, 0)
    engine.poison(8)
    for position in (8, 9, 3):
        engine.rewind(position)
        engine.feed(TOKENS[:, position])
        with torch.inference_mode():
            sliced, _ = sliced_step(engine.state)
            masked, _ = device_step(engine.state, MaskedDecode)
        assert (masked - sliced).abs().max() <= 1e-5 * sliced.abs().max() + (dtype == "bfloat16") * 0.05
    engine.close()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_eager_attends_with_the_flash_kernel(open_family: OpenFamily, dtype: str) -> None:
    engine = load("eager", open_family("llama", dtype))
    with torch.autograd.profiler.profile() as profile:
        run(engine, 8, 1)
    kernels = {event.key for event in profile.key_averages() if "attention_" in event.key}
    assert kernels == {"aten::_scaled_dot_product_flash_attention_for_cpu"}
    engine.close()


def test_bfloat16_norm_and_swiglu_round_once(open_family: OpenFamily) -> None:
    config = FAMILIES["llama"]
    rope = Rope.tabulate(config, 8, torch.device("cpu"))
    cache = Cache.allocate(config, 1, 8, torch.bfloat16, torch.device("cpu"))
    ops: TorchOps = Prefill(config, cache, rope, 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 2 * config.hidden_size, generator=generator).bfloat16()
    weight = torch.rand(2 * config.hidden_size, generator=generator).bfloat16()
    wide = x.double()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + config.norm_eps)
    assert torch.equal(ops.norm(x, weight), (wide * scale * weight.double()).bfloat16())
    gate, up = wide.chunk(2, dim=-1)
    before = x.clone()
    assert torch.equal(ops.swiglu(x), (gate * gate.sigmoid() * up).bfloat16())
    assert torch.equal(x, before), "the input is left alone"


def test_float16_runs(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float16")
    engine = load("eager", weights)
    run(engine, 8, 0)
    expected = reference_logits(weights, TOKENS[:, :8])[:, -1]
    assert np.abs(engine.logits() - expected).max() < 0.02 * np.abs(expected).max()
    engine.close()


def test_a_graph_needs_a_gpu(open_family: OpenFamily) -> None:
    with pytest.raises(Unsupported, match="CUDA graph"):
        build("eager[graph]", open_family("llama", "float32"))


def test_provenance_is_told_truthfully(open_family: OpenFamily) -> None:
    weights = open_family("llama", "float32")
    assert build("eager", weights).provenance == "stock"
    assert build("compile", weights).provenance == "configured: attention=masked"
    assert {build(name, weights).definition for name in ("eager", "compile")} == {"common"}


def test_compile_says_that_a_compiler_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    probe = registry.find("compile").probe()
    assert not probe.usable
    assert "C++ compiler" in (probe.reason or "")
    assert probe.install


@pytest.mark.parametrize("name", ["eager", "compile"])
def test_a_missing_torch_is_a_reason_not_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    probe = registry.find(name).probe()
    assert "torch" in (probe.reason or "")
    assert probe.install == "pip install 'torch>=2.11,<2.14'"
    assert not probe.devices
