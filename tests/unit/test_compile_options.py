"""What the options of `compile` settle before torch is asked for anything."""

import pytest

from backends.compile import TUNED_DECODE, Compile, choose
from backends.contract import Shapes, Target, Unsupported
from models.config import PRESETS


def test_attention_suits_the_device_unless_it_is_named() -> None:
    assert choose({}, "cuda:0").attention == "flex"
    assert choose({}, "cpu").attention == "masked"
    assert choose({"attention": "products"}, "cuda:0").attention == "products"


def test_flex_attention_is_refused_on_a_cpu() -> None:
    with pytest.raises(Unsupported, match="use attention=masked"):
        choose({"attention": "flex"}, "cpu")


def test_tuned_settings_and_our_own_graphs_are_a_gpus_only() -> None:
    on_gpu, on_cpu = choose({}, "cuda:1"), choose({}, "cpu")
    assert (dict(on_gpu.decode), on_gpu.replay) == (TUNED_DECODE, True)
    assert (dict(on_cpu.decode), on_cpu.replay) == ({}, False)


def test_a_mode_of_torch_takes_the_place_of_our_settings_and_graphs() -> None:
    plan = choose({"mode": "max-autotune"}, "cuda:0")
    assert (plan.mode, dict(plan.decode), plan.replay) == ("max-autotune", {}, False)
    assert plan.provenance == "configured: attention=flex, mode=max-autotune"


def test_a_layer_is_a_program_where_a_graph_of_ours_replays_the_step() -> None:
    assert choose({}, "cuda:0").by_layer
    assert not choose({}, "cpu").by_layer  # each call of a program takes the host time
    assert not choose({"mode": "default"}, "cuda:0").by_layer
    assert not choose({"scope": "step"}, "cuda:0").by_layer
    plan = choose({"scope": "layer"}, "cpu")
    assert plan.by_layer
    assert plan.provenance == "configured: attention=masked, one program for all layers"


def test_graphs_of_torchs_own_want_the_whole_step() -> None:
    with pytest.raises(Unsupported, match="use scope=step"):
        choose({"scope": "layer", "mode": "reduce-overhead"}, "cuda:0")


def test_provenance_names_a_wider_search() -> None:
    assert "coordinate_descent_check_all_directions" in choose({"search": "all"}, "cuda:0").provenance
    assert "check_all_directions" not in choose({}, "cuda:0").provenance


@pytest.mark.parametrize(
    ("device", "options", "searched"),
    [
        ("cuda:0", {}, "of decode"),
        ("cuda:0", {"mode": "default"}, None),
        ("cuda:0", {"mode": "max-autotune"}, "of prefill and decode"),
        ("cpu", {"mode": "max-autotune-no-cudagraphs"}, "of prefill and decode"),
        ("cpu", {}, None),
        ("cuda:0", {"stock": ""}, None),
    ],
)
def test_rows_of_kernels_that_were_searched_for_say_so(
    device: str, options: dict[str, str], searched: str | None
) -> None:
    target = Target(device, "bfloat16", "any")
    warnings = Compile().build(PRESETS["tiny"], Shapes(1, (4,), 32), target, options).warnings
    assert len(warnings) == (searched is not None)
    assert all(f"kernels {searched} were chosen by timing" in line for line in warnings)


@pytest.mark.parametrize(
    ("options", "provenance"), [({"stock": ""}, "stock"), ({}, "configured: attention=masked")]
)
def test_a_record_can_tell_stock_from_configured(options: dict[str, str], provenance: str) -> None:
    target = Target("cpu", "float32", "any")
    artefact = Compile().build(PRESETS["tiny"], Shapes(1, (4,), 32), target, options)
    assert artefact.provenance == provenance


def test_stock_takes_no_other_option() -> None:
    target = Target("cuda:0", "bfloat16", "sm_90")
    with pytest.raises(Unsupported, match="leave out the other options"):
        Compile().build(PRESETS["tiny"], Shapes(1, (4,), 32), target, {"stock": "", "mode": "default"})
