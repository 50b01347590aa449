"""The ONNX models that the definition is written as."""

from dataclasses import replace

import pytest

from backends.contract import Shapes
from models.config import PRESETS, DecoderConfig
from models.layout import fused_layout

onnx = pytest.importorskip("onnx")

from backends.onnxruntime.export import ATTENTIONS, export  # noqa: E402 (onnx may be missing)

SHAPES = Shapes(batch=3, prompts=(4, 8), capacity=24)
TINY = PRESETS["tiny"]
MODELS = {
    "plain": TINY,
    "biased": replace(TINY, qkv_bias=True),
    "normed": replace(TINY, qk_norm=True, tied_embeddings=True),
    "llama-3.1-8b": PRESETS["llama-3.1-8b"],
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("attention", list(ATTENTIONS))
@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_models_are_valid_and_hold_no_weight(config: DecoderConfig, attention: str, dtype: str) -> None:
    model = export(config, SHAPES, dtype, attention)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 1 << 20
    inputs = {each.name: each.type.tensor_type for each in model.graph.input}
    for each in fused_layout(config):
        assert tuple(size.dim_value for size in inputs[each.name].shape.dim) == each.shape


@pytest.mark.parametrize("attention", list(ATTENTIONS))
def test_what_a_step_leaves_has_the_shape_of_what_it_takes(attention: str) -> None:
    graph = export(TINY, SHAPES, "float32", attention).graph
    inputs = {each.name: each.type for each in graph.input}
    outputs = {each.name.removeprefix("next."): each.type for each in graph.output}
    assert outputs.keys() - inputs.keys() == {"logits"}
    for name in outputs.keys() & inputs.keys():
        given, left = inputs[name].tensor_type, outputs[name].tensor_type
        assert given.elem_type == left.elem_type
        sizes = [size.dim_value or 1 for size in given.shape.dim]  # T, which is 1 in decode
        assert sizes == [size.dim_value for size in left.shape.dim]


def test_standard_is_what_it_says() -> None:
    domains = {node.domain for node in export(TINY, SHAPES, "float32", "standard").graph.node}
    assert domains == {""}


def test_angles_are_float32_whatever_the_dtype() -> None:
    for attention in ATTENTIONS:
        graph = export(TINY, SHAPES, "bfloat16", attention).graph
        tables = {each.name: each.type.tensor_type.elem_type for each in graph.input}
        assert tables["cos"] == tables["sin"] == onnx.TensorProto.FLOAT
        assert all(
            name.startswith("Cast")
            for node in graph.node
            if node.op_type == "RotaryEmbedding"
            for name in node.input[:1]
        )
