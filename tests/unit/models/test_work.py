"""The figures are worked out by hand here, from the published shapes, not by calling the layout."""

import dataclasses

import pytest

from models.config import PRESETS
from models.layout import fused_layout
from models.work import DTYPE_BYTES, Work, cache_bytes, decode_work, prefill_work, weight_bytes

LLAMA_8B, LLAMA_1B = PRESETS["llama-3.1-8b"], PRESETS["llama-3.2-1b"]

# Llama 3.1 8B, parameters:
#   a layer: q, o 2 * 4096 * 4096 = 33,554,432; k, v 2 * 1024 * 4096 = 8,388,608;
#            gate, up, down 3 * 14336 * 4096 = 176,160,768; together 218,103,808, and two norms 2 * 4096
#   32 layers' matrices 6,979,321,856; their norms 262,144; last norm 4,096
#   embedding and head 128,256 * 4096 = 525,336,576 each
LAYERS_8B = 6_979_321_856
NORMS_8B = 262_144 + 4_096
TABLE_8B = 525_336_576
KEYS_AND_VALUES_8B = 2 * 32 * 8 * 128 * 2  # K and V, layers, KV heads, head size, bytes: 131,072 a position


def test_8b_has_its_published_number_of_parameters() -> None:
    assert weight_bytes(LLAMA_8B, "bfloat16") == 2 * 8_030_261_248
    assert LAYERS_8B + NORMS_8B + 2 * TABLE_8B == 8_030_261_248


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [("llama-3.2-1b", 1_235_814_400), ("qwen2.5-7b", 7_615_616_512),
     ("qwen3-8b", 8_190_735_360), ("mistral-7b", 7_248_023_552)],
)  # fmt: skip
def test_presets_have_their_published_number_of_parameters(preset: str, parameters: int) -> None:
    for dtype, size in (("float32", 4), ("float16", 2)):
        assert weight_bytes(PRESETS[preset], dtype) == parameters * size


def test_8b_decode_step_is_15_gigabytes() -> None:
    # Weights but the embedding, one row of it, 1024 cached positions read and one written:
    #   2 * (6,979,321,856 + 266,240 + 525,336,576) = 15,009,849,344
    #   2 * 4096 = 8,192; 1025 * 131,072 = 134,348,800
    work = decode_work(LLAMA_8B, "bfloat16", batch=1, context=1024, steps=1)
    assert work.bytes == 15_009_849_344 + 8_192 + 134_348_800 == 15_144_206_336
    assert abs(work.bytes / 15.13e9 - 1) < 1e-3  # the figure in the design
    # Two operations a weight; scores and values: 4 * 32 layers * 4096 * 1025 positions.
    assert work.flops == 2 * (LAYERS_8B + TABLE_8B) + 4 * 32 * 4096 * 1025 == 15_546_712_064


def test_8b_prefill_of_2048_is_30_teraflop() -> None:
    # Layers 2 * 2048 * 6,979,321,856; head for one position 2 * 525,336,576; attention 4 * 32 * 4096 for
    # each of 2048 * 2049 / 2 pairs of positions.
    work = prefill_work(LLAMA_8B, "bfloat16", batch=1, prompt=2048)
    assert work.flops == 28_587_302_322_176 + 1_050_673_152 + 1_100_048_498_688 == 29_688_401_494_016
    assert abs(work.flops / 29.7e12 - 1) < 1e-3  # the figure in the design
    # Weights but the embedding, 2048 rows of it, 2048 positions written.
    assert work.bytes == 15_009_849_344 + 2048 * 8_192 + 2048 * 131_072 == 15_295_062_016


def test_batch_multiplies_the_cache_and_the_products_but_not_the_weights() -> None:
    one = decode_work(LLAMA_8B, "bfloat16", 1, 1024, 1)
    eight = decode_work(LLAMA_8B, "bfloat16", 8, 1024, 1)
    assert eight.flops == 8 * one.flops
    assert eight.bytes - one.bytes == 7 * (8_192 + 1025 * KEYS_AND_VALUES_8B)


def test_steps_are_summed_as_the_cache_grows() -> None:
    parts = [decode_work(LLAMA_8B, "float16", 3, context, 1) for context in range(100, 164)]
    assert decode_work(LLAMA_8B, "float16", 3, 100, 64) == Work(
        sum(part.bytes for part in parts), sum(part.flops for part in parts)
    )
    assert parts[1].bytes - parts[0].bytes == 3 * KEYS_AND_VALUES_8B
    assert parts[1].flops - parts[0].flops == 3 * 4 * 32 * 4096


def test_tied_table_counts_once() -> None:
    # Llama 3.2 1B: 1,235,814,400 parameters with one table; 2 * 16 * 8 * 64 * 2 bytes a position.
    work = decode_work(LLAMA_1B, "bfloat16", 1, 0, 1)
    assert work.bytes == 2 * 1_235_814_400 + 32_768
    untied = dataclasses.replace(LLAMA_1B, tied_embeddings=False)
    assert decode_work(untied, "bfloat16", 1, 0, 1).bytes == work.bytes + 2 * 2048
    assert decode_work(untied, "bfloat16", 1, 0, 1).flops == work.flops
    assert weight_bytes(untied, "bfloat16") == 2 * 1_235_814_400 + 2 * 128_256 * 2048


def test_embedding_is_read_once_at_most() -> None:
    tiny = PRESETS["tiny"]
    full = weight_bytes(tiny, "float32")
    for batch in (8, 64):  # 8 * 1024 tokens are more than the vocabulary
        written = cache_bytes(tiny, "float32", batch, 1024)
        assert prefill_work(tiny, "float32", batch, 1024).bytes == full + written


def test_prefill_of_one_token_is_a_decode_step_on_an_empty_cache() -> None:
    for config in PRESETS.values():
        assert prefill_work(config, "bfloat16", 4, 1) == decode_work(config, "bfloat16", 4, 0, 1)


def test_biases_and_qk_norms_are_read_but_are_no_products() -> None:
    for field in ("qkv_bias", "qk_norm"):
        plain, more = LLAMA_8B, dataclasses.replace(LLAMA_8B, **{field: True})
        extra = 2 * sum(tensor.shape[0] for tensor in fused_layout(more) if tensor not in fused_layout(plain))
        assert extra == 2 * 32 * {"qkv_bias": 6144, "qk_norm": 256}[field]
        before, after = (decode_work(each, "bfloat16", 1, 10, 1) for each in (plain, more))
        assert (after.bytes - before.bytes, after.flops - before.flops) == (extra, 0)


def test_cache_of_8b() -> None:
    assert cache_bytes(LLAMA_8B, "bfloat16", 1, 1) == KEYS_AND_VALUES_8B
    assert cache_bytes(LLAMA_8B, "float32", 4, 8192) == 2 * 4 * 8192 * KEYS_AND_VALUES_8B


def test_dtype_bytes() -> None:
    assert DTYPE_BYTES == {"float32": 4, "bfloat16": 2, "float16": 2}
