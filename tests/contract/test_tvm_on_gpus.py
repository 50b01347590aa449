"""What TVM's code for a GPU must keep to, as far as a machine without one can tell."""

from dataclasses import replace

import pytest

from backends.contract import Shapes, Target
from tests.contract.reference import LLAMA

tvm = pytest.importorskip("tvm")

from backends.tvm.lowering import lower_definition  # noqa: E402 (tvm may be missing)
from backends.tvm.ops import Decode, Prefill  # noqa: E402
from backends.tvm.pipeline import build_pipeline  # noqa: E402
from backends.tvm.targets import name_target  # noqa: E402
from backends.tvm.tuned_ops import GpuDecode, GpuPrefill  # noqa: E402

SHAPES = Shapes(batch=3, prompts=(12,), capacity=32)
PHASES = {"stock": (Prefill, Decode), "ours": (GpuPrefill, GpuDecode)}
HEAD_DIMS = (16, 24)  # 24: no kernel of ours attends


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("phases", PHASES)
def test_no_tensor_of_bools_reaches_a_gpu(phases: str, dtype: str, head_dim: int) -> None:
    """TVM's CUDA reads two neighbours of such a tensor as 16 bits each, though they are 8 in memory."""
    config = replace(LLAMA, head_dim=head_dim)
    target = name_target(Target("cuda:0", dtype, "sm_90"), stock=phases == "stock")
    pipeline = tvm.relax.get_default_pipeline(target) if phases == "stock" else build_pipeline(target)
    with target:
        text = pipeline(lower_definition(config, SHAPES, dtype, *PHASES[phases])).script()
    assert f'"{dtype}"' in text, "the text names data types otherwise"
    assert '"bool"' not in text
