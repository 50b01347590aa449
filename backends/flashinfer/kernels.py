"""Which of FlashInfer's kernels the engine runs, and how they are compiled before it does."""

import os
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from backends.contract import Target, Unsupported
from backends.flashinfer.toolkit import completed_toolkit
from models.config import DecoderConfig

PAGE = 16
"""Positions in a page of the cache."""
XQA_ARCHITECTURES = (9, 10, 12)
"""Major numbers of the architectures that XQA runs on."""
XQA_GROUPS = {64: 64, 128: 64, 256: 32}
"""The most query heads to a key/value head that XQA has room for, by the size of the head."""
HEADS = (64, 128, 256)
"""Head sizes that its attention kernels are written for; a smaller head is padded with zeros."""


def padded_head(config: DecoderConfig) -> int:
    """Return the head size that the kernels see; raises Unsupported."""
    for size in HEADS:
        if config.head_dim <= size:
            return size
    raise Unsupported(f"FlashInfer has no attention kernel for heads of {config.head_dim} elements")


def prefill_kernel(architecture: str) -> str:
    """Name the generation of the prefill kernel: FA3 is written for Hopper alone."""
    return "fa3" if architecture == "sm_90" else "fa2"


def set_target(architecture: str) -> None:
    """Tell FlashInfer, before it is imported, what to compile for; its cache lies under that name too."""
    major, minor = divmod(int(architecture.removeprefix("sm_")), 10)
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = f"{major}.{minor}"
    os.environ["FLASHINFER_USE_CUDA_NORM"] = "1"  # the other norm is compiled at its first call


def compile_kernels(config: DecoderConfig, target: Target, decode: str) -> None:
    """Compile every kernel for the target, side by side, into FlashInfer's cache; what is there is kept.

    FlashInfer then takes them as prebuilt. Left to itself it would have each built once more, from another
    folder, where ninja has no notes of what was compiled: everything twice, in every process.
    """
    specs = list_kernels(config, target, decode)
    from flashinfer.jit import build_jit_specs

    with completed_toolkit():
        build_jit_specs(specs)
    offer({spec.name: spec.get_library_path() for spec in specs})


def list_kernels(config: DecoderConfig, target: Target, decode: str) -> list[Any]:
    """List FlashInfer's descriptions of the libraries that the engine loads; raises Unsupported.

    `decode` is how decode attends: `xqa` has a library of its own, all others that of prefill.
    """
    if decode == "xqa":
        check_xqa(config, target)
    set_target(target.architecture)
    import torch
    from flashinfer.jit.activation import gen_act_and_mul_module
    from flashinfer.jit.attention import modules
    from flashinfer.jit.norm import gen_norm_module
    from flashinfer.jit.rope import gen_rope_module

    dtype, index = getattr(torch, target.dtype), torch.int32
    head = padded_head(config)
    # No position encoding, sliding window, soft cap or half-precision reduction.
    attention = (dtype, dtype, dtype, index, head, head, 0, False, False, False)
    specs = [gen_norm_module(), gen_rope_module(), gen_act_and_mul_module("silu")]
    prefill = prefill_kernel(target.architecture)
    if decode != "xqa" or prefill == "fa2":
        specs.append(modules._gen_batch_prefill_primary_module("fa2", *attention))
    if prefill == "fa3":
        specs.append(modules.gen_batch_prefill_module("fa3", *attention))
    if decode == "xqa":
        from flashinfer.jit.xqa import gen_xqa_module

        group = config.heads // config.kv_heads
        specs.append(
            gen_xqa_module(dtype, dtype, PAGE, head, group, use_sliding_window=False, output_dtype=dtype)
        )
    return specs


def check_architecture(target: Target) -> None:
    """Check that XQA is written for the target; raises Unsupported."""
    if int(target.architecture.removeprefix("sm_")) // 10 not in XQA_ARCHITECTURES:
        raise Unsupported(f"FlashInfer's XQA is not for {target.architecture}: use attention=paged")


def check_xqa(config: DecoderConfig, target: Target) -> None:
    """Check that XQA is written for the target and for so many query heads to a group; raises Unsupported."""
    check_architecture(target)
    head, group = padded_head(config), config.heads // config.kv_heads
    if group > XQA_GROUPS[head]:
        reason = f"takes {XQA_GROUPS[head]} query heads of {head} to a key/value head, not {group}"
        raise Unsupported(f"FlashInfer's XQA {reason}: use attention=paged")


def save_kernels(config: DecoderConfig, target: Target, decode: str, folder: Path) -> None:
    """Copy the compiled libraries to a folder."""
    for spec in list_kernels(config, target, decode):
        shutil.copyfile(spec.get_library_path(), folder / f"{spec.name}.so")


def use_kernels(config: DecoderConfig, target: Target, decode: str, folder: Path) -> None:
    """Let FlashInfer take its libraries from where `save_kernels` put them; raises Unsupported."""
    libraries = {spec.name: folder / f"{spec.name}.so" for spec in list_kernels(config, target, decode)}
    for name, library in libraries.items():
        if not library.is_file():
            raise Unsupported(f"the engine has no library {name}: build it anew")
    offer(libraries)


def offer(libraries: Mapping[str, Path]) -> None:
    """Show FlashInfer prebuilt libraries by their names: each is looked for in a folder named like it."""
    from flashinfer.jit import env

    folder = Path(prebuilt().name)
    for name, library in libraries.items():
        place, library = folder / name / f"{name}.so", library.resolve()
        place.parent.mkdir(exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(library)
    env.FLASHINFER_AOT_DIR = folder


@cache
def prebuilt() -> TemporaryDirectory[str]:
    """Make a folder of links for as long as the process: libraries are loaded when first called."""
    return TemporaryDirectory(prefix="flashinfer-")
