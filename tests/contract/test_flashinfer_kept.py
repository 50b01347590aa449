"""FlashInfer's compiled kernels in the engine store, with a stand-in for its build system."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backends import registry
from backends.contract import Artefact, Keeper, Shapes, Target, Unsupported
from backends.flashinfer.kernels import check_xqa
from tests.contract.reference import LLAMA

pytest.importorskip("torch")

H100, A100 = (Target("cuda:0", "bfloat16", each, card=each) for each in ("sm_90", "sm_80"))
SHAPES = Shapes(batch=1, prompts=(4,), capacity=40)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """Stand in for `flashinfer.jit`: a module of kernels is compiled to a file that holds its name."""
    compiled: list[str] = []

    def spec(name: str) -> Any:
        path = tmp_path / "compiled" / name / f"{name}.so"
        return SimpleNamespace(name=name, get_library_path=lambda: path)

    def build(specs: list[Any]) -> None:
        for each in specs:
            path = each.get_library_path()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(each.name)
            compiled.append(each.name)

    def attention(kernel: str, *sizes: object) -> Any:
        return spec(f"prefill_{kernel}_{sizes[4]}")

    def xqa(q: object, kv: object, page: int, head: int, group: int, **settings: object) -> Any:
        assert q == kv == settings.pop("output_dtype")
        assert settings == {"use_sliding_window": False}
        return spec(f"xqa_{page}_{head}_{group}")

    env = SimpleNamespace(FLASHINFER_AOT_DIR=tmp_path / "none")
    modules = SimpleNamespace(_gen_batch_prefill_primary_module=attention, gen_batch_prefill_module=attention)
    parts = {
        "flashinfer": {},
        "flashinfer.jit": {"build_jit_specs": build, "env": env},
        "flashinfer.jit.activation": {"gen_act_and_mul_module": lambda gate: spec(f"{gate}_and_mul")},
        "flashinfer.jit.attention": {"modules": modules},
        "flashinfer.jit.norm": {"gen_norm_module": lambda: spec("norm")},
        "flashinfer.jit.rope": {"gen_rope_module": lambda: spec("rope")},
        "flashinfer.jit.xqa": {"gen_xqa_module": xqa},
    }
    for name, members in parts.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("backends.flashinfer.missing_tool", lambda: None)
    monkeypatch.setattr("backends.flashinfer.toolkit.nvcc_release", lambda: "13.0, V13.0.88")
    for name in ("FLASHINFER_CUDA_ARCH_LIST", "FLASHINFER_USE_CUDA_NORM"):
        monkeypatch.setenv(name, "")  # so that they are afterwards what they were
    return SimpleNamespace(compiled=compiled, env=env)


def build(target: Target, options: dict[str, str] | None = None) -> tuple[Keeper, Artefact]:
    keeper = registry.find("flashinfer")
    assert isinstance(keeper, Keeper)
    assert keeper.machine_code
    return keeper, keeper.build(LLAMA, SHAPES, target, options or {})


@pytest.mark.parametrize(
    ("target", "attention"),
    [(H100, {"prefill_fa2_64.so", "prefill_fa3_64.so"}), (A100, {"prefill_fa2_64.so"})],
)
def test_each_library_is_kept_once(
    library: SimpleNamespace, tmp_path: Path, target: Target, attention: set[str]
) -> None:
    keeper, artefact = build(target)
    kept = tmp_path / "kept"
    kept.mkdir()
    keeper.save(artefact, kept)
    assert {path.name for path in kept.iterdir()} == {"norm.so", "rope.so", "silu_and_mul.so"} | attention


@pytest.mark.parametrize("options", [{}, {"compile": ""}, {"compile": "", "attention": "block-sparse"}])
def test_what_is_opened_is_found_and_nothing_compiled(
    library: SimpleNamespace, tmp_path: Path, options: dict[str, str]
) -> None:
    keeper, artefact = build(H100, options)
    kept = tmp_path / "kept"
    kept.mkdir()
    keeper.save(artefact, kept)
    library.compiled.clear()
    opened = keeper.open(replace(artefact, payload=None), kept)
    assert opened == artefact
    assert library.compiled == []
    for name in ("norm", "prefill_fa3_64"):
        assert (library.env.FLASHINFER_AOT_DIR / name / f"{name}.so").read_text() == name


def test_what_was_compiled_is_offered_as_prebuilt(library: SimpleNamespace) -> None:
    build(H100, {"attention": "xqa"})
    compiled = sorted(set(library.compiled))
    assert "xqa_16_64_2" in compiled
    for name in compiled:
        assert (library.env.FLASHINFER_AOT_DIR / name / f"{name}.so").read_text() == name


def test_an_engine_that_lacks_a_library_is_refused(library: SimpleNamespace, tmp_path: Path) -> None:
    keeper, artefact = build(H100)
    keeper.save(artefact, tmp_path)
    (tmp_path / "rope.so").unlink()
    before = library.env.FLASHINFER_AOT_DIR
    with pytest.raises(Unsupported, match="no library rope"):
        keeper.open(artefact, tmp_path)
    assert before == library.env.FLASHINFER_AOT_DIR


def test_what_decode_attends_by_changes_no_library(library: SimpleNamespace) -> None:
    build(H100)
    paged = sorted(library.compiled)
    library.compiled.clear()
    build(H100, {"attention": "block-sparse"})
    assert sorted(library.compiled) == paged


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({}, "attention=fa2 paged decode, fa3 prefill, rope, norm, gate, one CUDA graph a step"),
        (
            {"attention": "paged", "compile": ""},
            "attention=fa2 paged decode, fa3 prefill, one CUDA graph a step",
        ),
        ({"attention": "xqa"}, "attention=xqa decode, fa3 prefill, rope, norm, gate, one CUDA graph a step"),
        ({"attention": "block-sparse"}, "one CUDA graph a prefill, none of decode"),
        ({"attention": "block-sparse", "compile": ""}, "one CUDA graph a prefill, none of decode"),
    ],
)
def test_provenance_names_kernels_and_graphs(
    library: SimpleNamespace, options: dict[str, str], named: str
) -> None:
    _, artefact = build(H100, options)
    assert named in artefact.provenance
    assert any("chosen by timing" in line for line in artefact.warnings) == ("compile" in options)


def test_xqa_brings_its_own_library(library: SimpleNamespace, tmp_path: Path) -> None:
    keeper, artefact = build(H100, {"attention": "xqa"})
    assert sorted(library.compiled) == ["norm", "prefill_fa3_64", "rope", "silu_and_mul", "xqa_16_64_2"]
    keeper.save(artefact, tmp_path)
    assert (tmp_path / "xqa_16_64_2.so").is_file()  # heads of 16 are padded to 64
    library.compiled.clear()
    keeper.open(artefact, tmp_path)
    assert library.compiled == []


def test_xqa_keeps_the_prefill_that_is_not_fa3(library: SimpleNamespace) -> None:
    build(replace(H100, architecture="sm_100"), {"attention": "xqa"})
    assert {"prefill_fa2_64", "xqa_16_64_2"} <= set(library.compiled)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_110"])
def test_xqa_is_not_for_every_gpu(library: SimpleNamespace, architecture: str) -> None:
    with pytest.raises(Unsupported, match=f"XQA is not for {architecture}: use attention=paged"):
        build(replace(H100, architecture=architecture), {"attention": "xqa"})
    assert library.compiled == []


@pytest.mark.parametrize(("head", "group"), [(64, 64), (128, 64), (256, 32)])
def test_xqa_has_room_for_so_many_heads_of_a_group(head: int, group: int) -> None:
    config = replace(LLAMA, heads=group, kv_heads=1, head_dim=head)
    check_xqa(config, H100)
    with pytest.raises(Unsupported, match=f"query heads of {head} to a key/value head, not {group + 1}"):
        check_xqa(replace(config, heads=group + 1), H100)


def test_no_ninja_is_a_reason(library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.flashinfer.missing_tool", lambda: "ninja")
    with pytest.raises(Unsupported, match="no ninja: pip install ninja"):
        build(H100)
    assert library.compiled == []


def test_no_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from backends import flashinfer

    monkeypatch.setattr(flashinfer, "version", lambda name: "1")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    keeper = registry.find("flashinfer")
    assert isinstance(keeper, Keeper)
    with pytest.raises(Unsupported, match="finds no nvcc"):
        keeper.compilers(H100, {})
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n")
    nvcc.chmod(0o755)
    assert keeper.compilers(H100, {})["nvcc"] == "13.0, V13.0.88"
