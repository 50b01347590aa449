"""Options that a device has not are refused before a worker is started for them, as a build refuses them."""

import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from backends import registry
from backends.contract import Probe, Refuser, Shapes, Target, Unsupported
from models.config import PRESETS
from workbench.building.work import tell_choice, tune_backend
from workbench.comparing.contestants import Contestant
from workbench.events import Events
from workbench.job import TuneJob

ROOT = Path(__file__).resolve().parents[2]
CPU = Target("cpu", "float32", "x86_64")
HALF_CPU = Target("cpu", "float16", "x86_64")
GPU = Target("cuda:0", "bfloat16", "sm_90")
SECOND_GPU = Target("cuda:1", "bfloat16", "sm_80")
SHAPES = Shapes(1, (4,), 24)

REFUSED = [
    ("eager[graph]", CPU, "captures a CUDA graph"),
    ("compile[attention=flex]", CPU, "attention=masked"),
    ("compile[stock,scope=layer]", GPU, "compile[stock] has no settings"),
    ("iree[graph]", CPU, "launches CUDA graphs"),
    ("onnxruntime", HALF_CPU, "no product in float16"),
    ("onnxruntime[import=torch,attention=standard]", CPU, "leave out attention="),
    ("xla[attention=cudnn]", CPU, "is a kernel for GPUs"),
    ("xla[import=torch,attention=products]", GPU, "leave out attention="),
    ("tvm[library=cublas]", CPU, "leave it out"),
    ("flashinfer", CPU, "for NVIDIA GPUs"),
    ("flashinfer[attention=xqa]", SECOND_GPU, "XQA is not for sm_80"),
    ("trtllm", SECOND_GPU, "set CUDA_VISIBLE_DEVICES"),
]
"""A row, the target, and words of the refusal."""


@pytest.mark.parametrize(("row", "target", "words"), REFUSED)
def test_a_refusal_is_known_without_a_build_and_is_the_builds_own(
    row: str, target: Target, words: str
) -> None:
    name, options = registry.parse(row)
    backend = registry.find(name)
    refusal = tell_choice(backend, target, options)["refusal"]
    assert words in refusal
    with pytest.raises(Unsupported) as raised:
        backend.build(PRESETS["tiny"], SHAPES, target, options)
    assert str(raised.value) == refusal


@pytest.mark.parametrize("name", registry.names())
def test_no_backend_refuses_its_defaults_where_it_runs(name: str) -> None:
    target = GPU if name in ("flashinfer", "handwritten", "trtllm") else CPU
    assert tell_choice(registry.find(name), target, {})["refusal"] is None


def test_what_is_refused_cannot_take_part() -> None:
    probe = Probe(devices=("cpu",), dtypes=("float32",))
    refused = Contestant("eager", {"graph": ""}, "python", probe, refusal="no graphs here")
    assert refused.obstacle("cpu", "float32") == ("unsupported", "no graphs here")
    missing = Contestant("eager", {"graph": ""}, "python", Probe(reason="no torch"), refusal="no graphs here")
    assert missing.obstacle("cpu", "float32") == ("missing", "no torch")


def test_options_are_checked_without_any_framework() -> None:
    names = [name for name in registry.names() if isinstance(registry.find(name), Refuser)]
    assert "eager" in names
    code = f"""
import sys
from backends import registry
from backends.contract import Target
from workbench.building.work import tell_refusal
for name in {names}:
    for target in (Target("cpu", "float32", "x86_64"), Target("cuda:0", "bfloat16", "sm_90")):
        tell_refusal(registry.find(name), target, {{}})
assert not set(sys.modules) & {{"torch", "jax", "tvm", "iree", "onnxruntime", "onnx", "flashinfer"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_nothing_is_timed_for_options_that_a_build_would_refuse(tmp_path: Path) -> None:
    options = {"import": "torch", "attention": "products"}
    job = TuneJob("xla", options, PRESETS["tiny"], SHAPES, GPU, str(tmp_path))
    with pytest.raises(Unsupported, match="leave out attention="):
        tune_backend(job, cast(Events, None))  # no stage is entered
