import dataclasses

from folders import QWEN2, QWEN3, SMALL, TIED

from models.layout import fused_layout


def test_layout_is_in_the_canonical_order() -> None:
    assert [tensor.name for tensor in fused_layout(dataclasses.replace(SMALL, layers=1))] == [
        "embed.weight", "layers.0.attention_norm.weight", "layers.0.qkv.weight", "layers.0.o.weight",
        "layers.0.mlp_norm.weight", "layers.0.gate_up.weight", "layers.0.down.weight", "norm.weight",
        "head.weight",
    ]  # fmt: skip


def test_layout_of_biases_qk_norms_and_tied_embeddings() -> None:
    plain = {tensor.name for tensor in fused_layout(SMALL)}
    assert {tensor.name for tensor in fused_layout(QWEN2)} - plain == {
        "layers.0.qkv.bias",
        "layers.1.qkv.bias",
    }
    assert {tensor.name for tensor in fused_layout(QWEN3)} - plain == {
        f"layers.{layer}.{side}_norm.weight" for layer in (0, 1) for side in "qk"
    }
    assert plain - {tensor.name for tensor in fused_layout(TIED)} == {"head.weight"}
