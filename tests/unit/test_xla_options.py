"""What the options of `xla` settle before jax is asked for anything."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends import xla
from backends.contract import Shapes, Target, Unsupported
from backends.xla import AUTOTUNED, Xla, choose_attention, prepare
from models.config import PRESETS

CPU = Target("cpu", "float32", "x86_64")
GPU = Target("cuda:0", "bfloat16", "sm_90")
RESULTS = """version: 3
results {
  device: "CUDA: 9.0"
  hlo: "{\\n  ROOT dot\\n}"
  result {
    gemm {
      algorithm: 7
    }
    run_time {
      nanos: 21504
    }
  }
  version: 23
}
"""


def test_attention_suits_device_and_data_type() -> None:
    assert choose_attention("auto", GPU) == "cudnn"
    assert choose_attention("auto", Target("cuda:0", "float32", "sm_90")) == "products"
    assert choose_attention("auto", CPU) == "products"
    assert choose_attention("pallas", GPU) == "pallas"


def test_what_is_planned_on_the_gpu_is_not_built_elsewhere() -> None:
    elsewhere = replace(GPU, card="h100")
    assert choose_attention("auto", elsewhere) == "products"
    assert choose_attention("products", elsewhere) == "products"
    with pytest.raises(Unsupported, match="planned on the GPU itself"):
        choose_attention("cudnn", elsewhere)


@pytest.mark.parametrize("kernel", ["cudnn", "pallas"])
def test_a_kernel_for_gpus_is_refused_on_a_cpu(kernel: str) -> None:
    with pytest.raises(Unsupported, match=f"attention={kernel} is a kernel for GPUs, not for cpu"):
        choose_attention(kernel, CPU)


def test_cudnn_is_refused_in_float32() -> None:
    with pytest.raises(Unsupported, match="16 bits, not float32"):
        choose_attention("cudnn", Target("cuda:0", "float32", "sm_90"))


def test_jax_starts_with_the_threads_given_and_without_preallocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    for name in ("NPROC", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.delenv(name, raising=False)
    prepare()
    assert os.environ["NPROC"] == "3"
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("NPROC", "5")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "true")
    prepare()
    assert os.environ["NPROC"] == "5"
    assert os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] == "true"


@pytest.mark.parametrize(("kept", "timed"), [(None, False), ("version: 3\n", False), (RESULTS, True)])
def test_what_xla_did_not_time_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: str | None, timed: bool
) -> None:
    def compile_all(*arguments: Any) -> None:
        if kept is not None:
            Path(arguments[-1]["xla_gpu_dump_autotune_results_to"]).write_text(kept)

    monkeypatch.setattr(xla, "compile_all", compile_all)
    work = (PRESETS["tiny"], Shapes(1, (4,), 23), GPU, {}, tmp_path)
    if timed:
        Xla().tune(*work)
        assert (tmp_path / AUTOTUNED).read_text() == kept
    else:
        with pytest.raises(Unsupported, match="there is nothing to keep"):
            Xla().tune(*work)


def test_how_long_a_kernel_ran_is_no_choice(tmp_path: Path) -> None:
    found = []
    for results in (
        RESULTS,
        RESULTS.replace("21504", "22016"),
        RESULTS.replace("algorithm: 7", "algorithm: 8"),
    ):
        (tmp_path / AUTOTUNED).write_text(results)
        found.append(Xla().choices(tmp_path, GPU, {}))
    assert found[0] == found[1] != found[2]
    assert found[0].endswith("\n" + RESULTS.replace("    run_time {\n      nanos: 21504\n    }\n", ""))


def test_how_to_attend_is_chosen_with_the_kernels(tmp_path: Path) -> None:
    (tmp_path / AUTOTUNED).write_text(RESULTS)
    here, elsewhere = (replace(GPU, dtype="bfloat16", card=card) for card in (None, "h100"))
    found = {
        Xla().choices(tmp_path, target, options)
        for target in (here, elsewhere)
        for options in ({}, {"attention": "products"}, {"import": "torch"})
    }
    assert {each.partition("\n")[0] for each in found} == {"cudnn", "products", ""}
