"""The proof of the models: what transformers saves, opened by us and run by `eager`, gives its logits.

Each family is built by transformers itself with random weights (norms and biases too, which it would
leave at 1 and 0) and saved by it. Prefill and 16 cached decode steps must agree in float32.
"""

import inspect
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from backends import registry  # noqa: E402
from backends.contract import Shapes, Target  # noqa: E402
from models.checkpoint import open_checkpoint  # noqa: E402
from models.rope import inverse_frequencies  # noqa: E402
from models.weights import write_preset  # noqa: E402

BATCH, PROMPT, STEPS = 2, 13, 16
TOLERANCE = 1e-4

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip
SMALL = {
    "vocab_size": 131, "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
SEVEN_TO_ONE = {"num_attention_heads": 14, "num_key_value_heads": 2, "hidden_size": 112}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2": ("Llama", {"num_key_value_heads": 4}),
    "llama-2-one-kv-head": ("Llama", {"num_key_value_heads": 1, "vocab_size": 97}),
    "llama-odd-head": ("Llama", {"head_dim": 40, "rms_norm_eps": 1e-2}),
    "llama-3.1": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-3.2-tied": ("Llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "mistral-inside-window": ("Mistral", {"sliding_window": 64}),
    "qwen2": ("Qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen2-seven-to-one": ("Qwen2", {**SEVEN_TO_ONE, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-seven-to-one": ("Qwen3", {**SEVEN_TO_ONE, "head_dim": 24, "tie_word_embeddings": True}),
}


def random_model(family: str, changes: dict[str, Any]) -> Any:
    """Build a transformers model whose every parameter is random, norm weights and biases included."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.5)
            else:
                # Large enough that attention is far from uniform: a wrong position or key is seen.
                parameter.normal_(std=2.0 / parameter.shape[1] ** 0.5)
    return model


def sequences(vocab: int) -> np.ndarray:
    """Return tokens [BATCH, PROMPT + STEPS], different for each sequence."""
    return np.random.default_rng(1).integers(0, vocab, (BATCH, PROMPT + STEPS), dtype=np.int32)


def logits_of_transformers(model: Any, tokens: np.ndarray) -> list[np.ndarray]:
    """Run its own prefill and cached decode steps; returns the last position's logits of each."""
    ids = torch.from_numpy(tokens).long()
    cache = transformers.DynamicCache(config=model.config)
    # Called `past_key_values` before transformers 5.24.
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    inputs = [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    with torch.inference_mode():
        steps = [model(step, **{name: cache}, use_cache=True).logits[:, -1] for step in inputs]
    assert cache.get_seq_length() == PROMPT + STEPS
    return [step.float().numpy() for step in steps]


def logits_of_ours(folder: Path, tokens: np.ndarray) -> list[np.ndarray]:
    """Run the checkpoint through `eager` by the engine contract alone."""
    weights = open_checkpoint(folder, "float32")
    backend = registry.find("eager")
    shapes = Shapes(BATCH, prompts=(PROMPT,), capacity=PROMPT + STEPS)
    target = Target("cpu", "float32", platform.machine())
    engine = backend.load(backend.build(weights.config, shapes, target, {}), weights)
    try:
        engine.stage(tokens[:, :PROMPT])
        engine.prefill()
        steps = [engine.logits()]
        for position in range(PROMPT, PROMPT + STEPS):
            engine.feed(tokens[:, position])
            engine.decode()
            steps.append(engine.logits())
    finally:
        engine.close()
    return steps


def assert_same_logits(model: Any, folder: Path) -> None:
    tokens = sequences(model.config.vocab_size)
    expected, ours = logits_of_transformers(model, tokens), logits_of_ours(folder, tokens)
    scale = np.std(expected[0])
    assert scale > 0.5, "logits too small for the comparison to mean anything"
    for step, (right, got) in enumerate(zip(expected, ours, strict=True)):
        error = np.abs(right - got).max()
        where = "prefill" if step == 0 else f"decode step {step}"
        assert error < TOLERANCE, f"{where}: logits differ by {error:.2g}"
        assert error < TOLERANCE * scale, f"{where}: logits differ by {error / scale:.2g} of their scale"


@pytest.mark.parametrize("case", CASES)
def test_saved_model_gives_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    model.save_pretrained(tmp_path)
    assert_same_logits(model, tmp_path)


def test_sharded_checkpoint_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    model = random_model("Qwen2", SEVEN_TO_ONE)
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("case", ["llama-2", "llama-3.1", "qwen2", "qwen3"])
def test_old_style_config_gives_the_logits_of_transformers(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    rope = values.pop("rope_parameters")
    values["rope_theta"] = rope.pop("rope_theta")
    values["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    path.write_text(json.dumps(values))
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == model.config.rope_parameters
    assert_same_logits(model, tmp_path)


def test_preset_folder_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    write_preset("tiny", "float32", tmp_path / "tiny")
    model, loading = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "tiny", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert_same_logits(model.eval(), tmp_path / "tiny")


@pytest.mark.parametrize("case", ["llama-2", "llama-3.1", "qwen3"])
def test_inverse_frequencies_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    model = random_model(*CASES[case])
    model.save_pretrained(tmp_path)
    ours = inverse_frequencies(open_checkpoint(tmp_path, "float32").config)
    expected = model.model.rotary_emb.inv_freq.numpy()
    np.testing.assert_array_max_ulp(ours, expected, maxulp=4)


@pytest.mark.parametrize(
    "fault",
    ["model.norm.weight", "layers.1.self_attn.q_norm.weight", "layers.2.self_attn.k_norm.weight",
     "layers.0.post_attention_layernorm.weight", "layers.1.input_layernorm.weight"],
)  # fmt: skip
def test_comparison_sees_one_norm_left_out(fault: str, tmp_path: Path) -> None:
    model = random_model(*CASES["qwen3"])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        next(value for name, value in model.named_parameters() if name.endswith(fault)).fill_(1)
    with pytest.raises(AssertionError, match="logits differ"):
        assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("projection", ["q_proj", "k_proj", "v_proj"])
def test_comparison_sees_one_bias_left_out(projection: str, tmp_path: Path) -> None:
    model = random_model(*CASES["qwen2"])
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        getattr(model.model.layers[1].self_attn, projection).bias.zero_()
    with pytest.raises(AssertionError, match="logits differ"):
        assert_same_logits(model, tmp_path)
