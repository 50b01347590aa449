"""What the options of `iree` settle before a compiler is asked for anything."""

import pytest

from backends.contract import Target, Unsupported
from backends.iree import OPTIMISED, TILED_ROWS, choose

CPU = Target("cpu", "float32", "x86_64")
HALF_CPU = Target("cpu", "bfloat16", "x86_64")
AMPERE = Target("cuda:0", "bfloat16", "sm_80")
HOPPER = Target("cuda:0", "bfloat16", "sm_90")


def test_only_bfloat16_on_a_cpu_is_tiled_by_itself() -> None:
    assert choose({}, HALF_CPU).tiled_rows == TILED_ROWS
    for target in (CPU, AMPERE, Target("cpu", "float16", "x86_64")):
        assert choose({}, target).tiled_rows is None
    assert choose({"tiling": "off"}, HALF_CPU).tiled_rows is None
    assert choose({"tiling": "on"}, CPU).tiled_rows == 0


def test_provenance_names_what_was_set() -> None:
    assert choose({}, CPU).provenance == f"configured: {OPTIMISED}"
    assert "tiled from 32 rows" in choose({}, HALF_CPU).provenance
    assert "CUDA graphs" in choose({"graph": ""}, AMPERE).provenance
    assert choose({"stock": ""}, CPU).provenance == "stock"


def test_a_gpu_that_iree_does_not_know_runs_the_newest_ptx_and_says_so() -> None:
    assert "--iree-cuda-target=sm_80" in choose({}, AMPERE).target
    assert "PTX" not in choose({}, AMPERE).provenance
    assert "--iree-cuda-target=sm_89" in choose({}, HOPPER).target
    assert choose({}, HOPPER).provenance.endswith("by PTX sm_89")
    assert choose({"stock": ""}, HOPPER).provenance == "stock: by PTX sm_89"


@pytest.mark.parametrize(
    ("options", "target", "said"),
    [
        ({"graph": ""}, CPU, "CUDA graphs, which cpu has not"),
        ({"tiling": "on"}, AMPERE, "kernels on a CPU"),
        ({"stock": "", "tiling": "on"}, CPU, "leave out the other options"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, str], target: Target, said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        choose(options, target)
