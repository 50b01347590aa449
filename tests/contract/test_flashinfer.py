"""FlashInfer's planning, pages and operations, on a CPU with a stand-in for the library.

The contract suite runs the library itself where there is a GPU.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends import compile as compiled
from backends import registry
from backends.contract import POISON, Artefact, Probe, Shapes, Target, Unsupported
from backends.flashinfer import ATTENTIONS
from backends.flashinfer.kernels import padded_head, prefill_kernel, set_target
from models.checkpoint import Weights, open_checkpoint
from models.errors import UserError
from tests.contract.reference import FAMILIES, LLAMA, reference_logits, write_checkpoint

torch = pytest.importorskip("torch")

from backends import torch_engine  # noqa: E402 (torch may be missing)
from tests.contract import stand_in_flashinfer  # noqa: E402

ROTATE = stand_in_flashinfer.apply_rope_with_cos_sin_cache_inplace
SHAPES = Shapes(batch=2, prompts=(4, 20), capacity=40)
TOKENS = np.random.default_rng(8).integers(0, 160, (2, 40), dtype=np.int32)
OpenFamily = Callable[[str, str], Weights]


def with_sms(count: int) -> SimpleNamespace:
    """Describe a device of so many SMs."""
    return SimpleNamespace(multi_processor_count=count)


@pytest.fixture
def engine_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Return a function that loads the engine, each graph replaced by the step it is captured from."""
    for name in own_modules():  # they may have met the library itself
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flashinfer", stand_in_flashinfer)
    event = SimpleNamespace(synchronize=lambda: None, record=lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda: event)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: with_sms(132))
    attention = importlib.import_module("backends.flashinfer.attention")
    engine = importlib.import_module("backends.flashinfer.engine")

    def host(self: object, *values: int) -> Any:
        return torch.tensor(values, dtype=torch.int32)

    monkeypatch.setattr(attention.Planned, "host", host)
    monkeypatch.setattr(engine, "WORKSPACE_BYTES", 1)
    for module in (engine, torch_engine):
        monkeypatch.setattr(module, "Replay", lambda state, step, pool: step)

    def make(weights: Weights, plan: object = None, attention: str = "paged") -> Any:
        target, options = Target("cpu", weights.dtype, "sm_90"), {"attention": attention}
        artefact = Artefact(weights.config, SHAPES, target, options, "common", "stock", payload=plan)
        return engine.FlashInferEngine(artefact, weights)

    yield make
    for name in own_modules():
        del sys.modules[name]


def own_modules() -> list[str]:
    return [name for name in sys.modules if name.startswith("backends.flashinfer.")]


def check(engine: Any, weights: Weights) -> None:
    expected = reference_logits(weights, TOKENS)

    def error(position: int) -> float:
        wanted = expected[:, position]
        return float(np.sqrt(np.mean((engine.logits() - wanted) ** 2) / np.mean(wanted**2)))

    for length in (20, 4):
        engine.poison(0)
        engine.stage(TOKENS[:, :length])
        engine.prefill()
        assert error(length - 1) < 1e-5
    for start in (4, 0, 17, 4):
        engine.rewind(start)
        engine.poison(start)
        for position in range(start, 38):
            engine.feed(TOKENS[:, position])
            engine.decode()
            assert error(position) < 1e-5, (start, position)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", list(FAMILIES))
def test_prefill_and_decode_equal_the_reference(
    engine_of: Callable[..., Any], open_family: OpenFamily, family: str, attention: str
) -> None:
    weights = open_family(family, "float32")
    engine = engine_of(weights, attention=attention)
    check(engine, weights)
    engine.close()


def test_heads_that_it_rotates_are_rotated_by_it(
    engine_of: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(LLAMA, heads=2, kv_heads=1, head_dim=64)
    write_checkpoint(config, tmp_path)
    weights = open_checkpoint(tmp_path, "float32")
    calls: list[int] = []

    def rotate(*arguments: Any) -> None:
        calls.append(arguments[3])
        ROTATE(*arguments)

    monkeypatch.setattr(stand_in_flashinfer, ROTATE.__name__, rotate)
    engine = engine_of(weights)
    check(engine, weights)
    engine.close()
    assert set(calls) == {64}


@pytest.mark.parametrize(
    ("by_layer", "attention"),
    [(True, "paged"), (False, "paged"), (True, "block-sparse"), (True, "xqa")],
)
def test_compiled_steps_equal_the_reference(
    engine_of: Callable[..., Any], open_family: OpenFamily, by_layer: bool, attention: str
) -> None:
    reason = registry.find("compile").probe().reason
    if reason:
        pytest.skip(reason)
    weights = open_family("llama", "float32")
    engine = engine_of(weights, compiled.Plan("flashinfer", None, {}, False, by_layer), attention)
    check(engine, weights)
    engine.close()


@pytest.mark.parametrize("attention", ["paged", "block-sparse"])
def test_a_plan_is_made_for_each_prompt_and_each_page(
    engine_of: Callable[..., Any], open_family: OpenFamily, attention: str
) -> None:
    engine = engine_of(open_family("llama", "float32"), attention=attention)
    prompt, pages = engine.ragged[4].wrapper, engine.paged.wrapper
    for times in (1, 2):
        engine.stage(TOKENS[:, :4])
        engine.prefill()
        assert (prompt.plans, pages.plans) == (times, 0)
    for position, plans in ((4, 1), (14, 1), (15, 1), (16, 2), (31, 2), (32, 3), (31, 4), (4, 5)):
        engine.rewind(position)
        engine.decode()
        assert pages.plans == plans, position
    engine.close()


@pytest.mark.parametrize(("sms", "whole"), [(4, True), (5, False)])
def test_a_cache_is_split_where_its_heads_leave_an_sm_idle(
    engine_of: Callable[..., Any],
    open_family: OpenFamily,
    monkeypatch: pytest.MonkeyPatch,
    sms: int,
    whole: bool,
) -> None:
    weights = open_family("llama", "float32")
    assert SHAPES.batch * weights.config.kv_heads == 4
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: with_sms(sms))
    engine = engine_of(weights)
    engine.rewind(4)
    engine.decode()
    assert engine.paged.wrapper.whole == whole
    engine.close()


def test_only_what_reads_its_plan_in_place_is_a_graph(
    engine_of: Callable[..., Any], open_family: OpenFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[Any] = []

    def capture(state: object, step: Any, pool: object) -> Any:
        captured.append(step)
        return step

    weights = open_family("llama", "float32")
    engine_of(weights).close()
    monkeypatch.setattr(sys.modules["backends.flashinfer.engine"], "Replay", capture)
    engine_of(weights).close()
    assert len(captured) == 1  # the decode step: a prefill is captured when it first runs
    engine_of(weights, attention="block-sparse").close()
    assert len(captured) == 1
    engine_of(weights, attention="xqa").close()
    assert len(captured) == 2


@pytest.mark.parametrize(("batch", "pages", "used"), [(1, 1, 1), (1, 5, 2), (3, 4, 1), (3, 4, 4)])
def test_the_block_mask_is_each_sequences_own_pages_in_use(
    engine_of: Callable[..., Any], batch: int, pages: int, used: int
) -> None:
    module = importlib.import_module("backends.flashinfer.block_sparse")
    pointers, columns = (x.numpy() for x in module.block_mask(batch, pages, used))
    assert pointers.dtype == columns.dtype == np.int32
    mask = np.zeros((batch, batch * pages), bool)
    for row in range(batch):
        mask[row, columns[pointers[row] : pointers[row + 1]]] = True
    expected = np.kron(np.eye(batch, dtype=bool), np.arange(pages) < used)
    assert np.array_equal(mask, expected)
    assert len(columns) == mask.sum()


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 40])
def test_the_query_that_counts_sees_every_filled_position_and_no_other(
    engine_of: Callable[..., Any], length: int
) -> None:
    """Values that are one-hot by position, and keys all zero, make of each output what its query sees."""
    module = importlib.import_module("backends.flashinfer.block_sparse")
    config = replace(LLAMA, heads=2, kv_heads=1, head_dim=64)
    decode = module.BlockSparseDecode(config, 2, 40, torch.float32, torch.zeros(1))
    decode.plan(length)
    decode.advance(torch.tensor([length - 1]))
    values = torch.eye(48, 64).repeat(2, 1)[:, None].unflatten(0, (6, 16))  # [B * P, PAGE, K, W]
    seen = decode.run(torch.ones(2, 2, 64), torch.zeros_like(values), values)
    assert torch.equal(seen > 0, (torch.arange(64) < length).expand(2, 2, 64))


def test_an_option_it_does_not_have_is_refused() -> None:
    backend = registry.find("flashinfer")
    registry.check_options(backend, {"attention": "block-sparse", "compile": ""})
    with pytest.raises(UserError, match="did you mean 'block-sparse'"):
        registry.check_options(backend, {"attention": "blocksparse"})


def test_heads_are_padded_in_the_cache_and_poison_covers_whole_pages(
    engine_of: Callable[..., Any], open_family: OpenFamily
) -> None:
    engine = engine_of(open_family("llama", "float32"))
    keys = engine.state.cache.keys[1]
    assert keys.shape == (2, 3 * 16, 2, 64)  # [B, P * PAGE, K, W]
    engine.stage(TOKENS[:, :20])
    engine.prefill()
    engine.poison(18)
    assert keys[:, :18, :, :16].abs().min() > 0
    assert not keys[:, :18, :, 16:].any()
    assert (keys[:, 18:] == POISON).all()
    engine.close()


def test_what_it_cannot_do_is_unsupported() -> None:
    backend = registry.find("flashinfer")
    with pytest.raises(Unsupported, match="NVIDIA GPUs"):
        backend.build(LLAMA, SHAPES, Target("cpu", "bfloat16", "any"), {})
    with pytest.raises(Unsupported, match="float32"):
        backend.build(LLAMA, SHAPES, Target("cuda:0", "float32", "sm_90"), {})
    with pytest.raises(Unsupported, match="heads of 320"):
        padded_head(replace(LLAMA, head_dim=320))


def test_the_prefill_kernel_is_the_newest_for_the_target() -> None:
    assert [prefill_kernel(f"sm_{number}") for number in (80, 90, 100)] == ["fa2", "fa3", "fa2"]


@pytest.mark.parametrize(("architecture", "listed"), [("sm_80", "8.0"), ("sm_90", "9.0"), ("sm_103", "10.3")])
def test_the_target_is_named_before_the_library_is_imported(
    monkeypatch: pytest.MonkeyPatch, architecture: str, listed: str
) -> None:
    for name in ("FLASHINFER_CUDA_ARCH_LIST", "FLASHINFER_USE_CUDA_NORM"):
        monkeypatch.setenv(name, "")
    set_target(architecture)
    assert os.environ["FLASHINFER_CUDA_ARCH_LIST"] == listed


def test_probe_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry.find("flashinfer")
    module = importlib.import_module("backends.flashinfer")
    monkeypatch.setattr(module, "version", lambda name: "0.7.2.post1")
    monkeypatch.setattr(module, "probe_torch", lambda: Probe(devices=("cpu",)))
    assert "NVIDIA GPUs" in (backend.probe().reason or "")
    monkeypatch.setattr(module, "probe_torch", lambda: Probe(devices=("cpu", "cuda")))
    monkeypatch.setattr(module.shutil, "which", lambda tool: None)
    assert "ninja" in (backend.probe().reason or "")
    monkeypatch.setattr(module.shutil, "which", lambda tool: tool)
    probe = backend.probe()
    assert probe.usable
    assert probe.devices == ("cuda",)
    assert probe.versions["flashinfer"] == "0.7.2.post1"


def test_a_missing_library_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("backends.flashinfer")

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "version", missing)
    probe = registry.find("flashinfer").probe()
    assert "flashinfer" in (probe.reason or "")
    assert "flashinfer-python" in (probe.install or "")
