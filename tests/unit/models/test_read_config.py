import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.config import PRESETS, DecoderConfig, RopeScaling, find_preset, is_preset, locate
from models.errors import UserError
from models.hugging_face import hf_config, read_config

LLAMA_3_1 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "hidden_act": "silu", "hidden_size": 4096,
    "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0", "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
"""Llama-3.1-8B's config.json as transformers 4 wrote it."""

QWEN_2_5 = {
    "architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28,
    "model_type": "qwen2", "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 152064,
}  # fmt: skip


def read(folder: Path, values: Any) -> DecoderConfig:
    (folder / "config.json").write_text(json.dumps(values))
    return read_config(folder)


def llama(**changes: Any) -> dict[str, Any]:
    return {**LLAMA_3_1, **changes}


def qwen3(**changes: Any) -> dict[str, Any]:
    base = {**QWEN_2_5, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "head_dim": 128}
    return {**base, **changes}


def mistral(**changes: Any) -> dict[str, Any]:
    base = llama(model_type="mistral", architectures=["MistralForCausalLM"], rope_scaling=None)
    return {**base, **changes}


def test_transformers_4_config_of_llama_is_the_preset(tmp_path: Path) -> None:
    assert read(tmp_path, LLAMA_3_1) == PRESETS["llama-3.1-8b"]


def test_transformers_4_config_of_qwen2_is_the_preset(tmp_path: Path) -> None:
    assert read(tmp_path, QWEN_2_5) == PRESETS["qwen2.5-7b"]


def test_transformers_5_rope_parameters_are_read(tmp_path: Path) -> None:
    values = llama(rope_parameters={**LLAMA_3_1["rope_scaling"], "rope_theta": 500000.0})
    del values["rope_scaling"], values["rope_theta"]
    assert read(tmp_path, values) == PRESETS["llama-3.1-8b"]


def test_rope_theta_beside_rope_parameters_without_one_is_used(tmp_path: Path) -> None:
    values = qwen3(rope_parameters={"rope_type": "default"}, rope_theta=5e6)
    assert read(tmp_path, values).rope_theta == 5e6


def test_old_key_for_the_rope_type(tmp_path: Path) -> None:
    scaling = dict(LLAMA_3_1["rope_scaling"])
    scaling["type"] = scaling.pop("rope_type")
    assert read(tmp_path, llama(rope_scaling=scaling)).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_is_read_back(preset: str, dtype: str, tmp_path: Path) -> None:
    assert read(tmp_path, hf_config(PRESETS[preset], dtype)) == PRESETS[preset]


@pytest.mark.parametrize(
    ("family", "kv_heads", "head_dim", "positions", "layers"),
    [("llama", 32, 128, 2048, 32), ("mistral", 8, 128, 4096, 32),
     ("qwen2", 32, 128, 32768, 32), ("qwen3", 32, 128, 32768, 32)],
)  # fmt: skip
def test_absent_keys_mean_what_they_mean_to_transformers(
    family: str, kv_heads: int, head_dim: int, positions: int, layers: int, tmp_path: Path
) -> None:
    config = read(tmp_path, {"model_type": family})
    assert (config.kv_heads, config.head_dim, config.max_positions, config.layers) == (
        kv_heads, head_dim, positions, layers,
    )  # fmt: skip
    assert (config.rope_theta, config.norm_eps, config.tied_embeddings) == (10_000.0, 1e-6, False)
    assert (config.qkv_bias, config.qk_norm) == (family == "qwen2", family == "qwen3")


def test_null_head_dim_is_hidden_over_heads(tmp_path: Path) -> None:
    assert read(tmp_path, mistral(head_dim=None, hidden_size=2560)).head_dim == 80


def test_head_dim_unlike_hidden_over_heads(tmp_path: Path) -> None:
    assert read(tmp_path, qwen3(hidden_size=1024, num_attention_heads=16)).head_dim == 128


def test_null_kv_heads_are_as_many_as_heads(tmp_path: Path) -> None:
    assert read(tmp_path, mistral(num_key_value_heads=None)).kv_heads == 32


@pytest.mark.parametrize(
    ("values", "positions"),
    [
        (mistral(sliding_window=4096), 4096),
        (mistral(sliding_window=None), 131072),
        (mistral(sliding_window=4096, max_position_embeddings=1024), 1024),
        (qwen3(use_sliding_window=False, sliding_window=4096), 131072),
        (qwen3(use_sliding_window=True, sliding_window=4096, max_window_layers=27), 4096),
        (qwen3(use_sliding_window=True, sliding_window=4096, max_window_layers=28), 131072),
        (qwen3(use_sliding_window=True, sliding_window=4096, max_window_layers=0), 4096),
        (qwen3(use_sliding_window=True, sliding_window=9, layer_types=["full_attention"] * 28), 131072),
        (qwen3(use_sliding_window=True, sliding_window=9, layer_types=["sliding_attention"] * 28), 9),
        (llama(sliding_window=4096), 131072),
    ],
)
def test_active_window_limits_the_positions(values: Any, positions: int, tmp_path: Path) -> None:
    assert read(tmp_path, values).max_positions == positions


def scaled(**changes: Any) -> dict[str, Any]:
    return llama(rope_scaling={**LLAMA_3_1["rope_scaling"], **changes})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (llama(architectures=["MixtralForCausalLM"], model_type="mixtral"), "MixtralForCausalLM"),
        (llama(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification"),
        ({"model_type": "gpt2"}, "gpt2"),
        ({}, "architecture null"),
        (llama(quantization_config={"quant_method": "awq", "bits": 4}), "(awq, 4 bits) is not supported yet"),
        (llama(quantization_config={"quant_method": "awq", "w_bit": 4}), "quantization_config (awq, 4 bits)"),
        (llama(quantization_config={"quant_method": "fp8"}), "quantization_config (fp8) is not"),
        (llama(quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"}), "(modelopt, FP8)"),
        (llama(quantization_config={}), "(of an unnamed kind)"),
        (
            llama(compression_config={"quant_method": "compressed-tensors"}),
            "compression_config (compressed-tensors)",
        ),
        (llama(torch_dtype="float8_e4m3fn"), 'torch_dtype "float8_e4m3fn" is quantized'),
        (llama(hidden_act="gelu"), 'hidden_act "gelu"'),
        (llama(attention_bias=True), "attention_bias"),
        (qwen3(attention_bias=True), "attention_bias"),
        (llama(mlp_bias=True), "mlp_bias"),
        (llama(num_local_experts=8), "num_local_experts"),
        (llama(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
        (scaled(partial_rotary_factor=0.5), "partial_rotary_factor 0.5"),
        (scaled(rope_type="yarn"), 'rope type "yarn"'),
        (scaled(factor=0), "factor is 0"),
        (scaled(factor=None), "factor is null"),
        (scaled(high_freq_factor=1.0), "high_freq_factor 1"),
        (scaled(original_max_position_embeddings=0), "original_max_position_embeddings is 0"),
        (llama(rope_scaling={"full_attention": {"rope_type": "default"}}), "rope_parameters"),
        (llama(rope_scaling="linear"), "rope_parameters"),
        (llama(num_key_value_heads=7), "num_attention_heads 32 is no multiple"),
        (llama(num_key_value_heads=0), "num_key_value_heads is 0"),
        (llama(hidden_size=-4096), "hidden_size is -4096"),
        (llama(vocab_size=1.5), "vocab_size is 1.5"),
        (llama(num_hidden_layers=True), "num_hidden_layers is true"),
        (llama(num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
        (llama(head_dim=127), "head_dim 127"),
        (llama(rms_norm_eps="small"), 'rms_norm_eps is "small"'),
        (llama(rms_norm_eps=float("nan")), "rms_norm_eps is NaN"),
        (llama(rope_theta=float("inf")), "rope_theta is Infinity"),
        (llama(tie_word_embeddings="yes"), 'tie_word_embeddings is "yes"'),
        (mistral(sliding_window=0), "sliding_window is 0"),
        (qwen3(use_sliding_window=True, layer_types=["chunked_attention"]), "chunked_attention"),
        ([1, 2], "no JSON object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read(tmp_path, values)
    assert named in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000, b'{"vocab_size": ' + b"9" * 9999]
)
def test_damaged_json_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read \(.+\): save or download it again$"):
        read_config(tmp_path)


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quant_config.json", "quantize_config.json"])
def test_quantization_that_only_a_file_beside_tells_of_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=f"{name}: quantization is not supported yet"):
        read(tmp_path, llama())


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from(["llama3", "default", "silu", "llama", "mistral", "qwen2", "qwen3", 10**400]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["rope_type", "rope_theta", "factor", "type"]), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip
KEYS = [*LLAMA_3_1, *QWEN_2_5, "rope_parameters", "layer_types", "head_dim", "quantization_config",
        "partial_rotary_factor", "num_experts", "original_max_position_embeddings"]  # fmt: skip


@given(
    base=st.sampled_from([LLAMA_3_1, QWEN_2_5, mistral(), qwen3(use_sliding_window=True), {}]),
    changes=st.dictionaries(st.sampled_from(sorted(set(KEYS))), ANYTHING, max_size=4),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_values_give_a_usable_config_or_a_user_error(base: Any, changes: Any, tmp_path: Path) -> None:
    try:
        config = read(tmp_path, {**base, **changes})
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert config.heads % config.kv_heads == 0
    assert config.head_dim % 2 == 0
    assert min(config.vocab_size, config.hidden_size, config.layers, config.max_positions) >= 1
    assert 0 < config.rope_theta < float("inf")


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_model_name_is_found_or_a_user_error(name: str) -> None:
    try:
        locate(name)
    except UserError as error:
        assert "\n" not in str(error)


def test_preset_is_found_and_needs_no_folder() -> None:
    assert is_preset("tiny")
    assert not is_preset("llama-3.1")
    assert find_preset("tiny") is PRESETS["tiny"]
    assert locate("tiny") is None


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("lama-3.1-8b", "llama-3.1-8b"), ("Tiny", "tiny"), ("qwen3", "qwen3-8b"), ("/here/tinny", "tiny")],
)
def test_unknown_preset_offers_the_nearest(wrong: str, near: str) -> None:
    for ask in (find_preset, locate):
        with pytest.raises(UserError, match=f"did you mean '{near}'"):
            ask(wrong)


def test_model_folder_is_located(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert locate(str(tmp_path)) == tmp_path


def test_folder_without_config_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config\.json: a model folder needs"):
        locate(str(tmp_path))


def test_file_as_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is a file"):
        locate(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("name", ["x" * 10_000, "a\0b", "~nobody-of-that-name/model", ""])
def test_impossible_paths_are_user_errors(name: str) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        locate(name)
