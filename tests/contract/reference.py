"""Small random checkpoints of every family, and the plainest way to compute their logits."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from models.checkpoint import Weights
from models.config import DecoderConfig, RopeScaling
from models.hugging_face import hf_config
from models.layout import fused_layout

LLAMA = DecoderConfig(
    "llama", vocab_size=160, hidden_size=64, intermediate_size=96, layers=2, heads=4, kv_heads=2,
    head_dim=16, max_positions=256, norm_eps=1e-5, rope_theta=10_000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 32),
)  # fmt: skip
FAMILIES = {
    "llama": LLAMA,
    "qwen2": replace(LLAMA, family="qwen2", rope_scaling=None, qkv_bias=True, kv_heads=1),
    "qwen3": replace(
        LLAMA, family="qwen3", rope_scaling=None, qk_norm=True, head_dim=32, tied_embeddings=True
    ),
}


def write_checkpoint(config: DecoderConfig, folder: Path) -> None:
    """Write random weights that keep activations near 1, so that all parts show in the logits."""
    rng = np.random.default_rng(7)
    tensors = {}
    for tensor in fused_layout(config):
        for name, shape in tensor.parts:
            noise = rng.standard_normal(shape, dtype=np.float32)
            matrix = len(shape) == 2
            tensors[name] = noise / np.float32(shape[1]) ** 0.5 if matrix else 0.2 * noise
            if name.endswith("norm.weight"):
                tensors[name] += 1.0
    (folder / "config.json").write_text(json.dumps(hf_config(config, "float32")))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reference_logits(weights: Weights, tokens: np.ndarray) -> np.ndarray:
    """Compute the logits at every position the plainest way; shares nothing with models/decoder.py."""
    config = weights.config
    w = {name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.arrays()}
    heads, groups = config.heads, config.heads // config.kv_heads
    batch, length = tokens.shape
    cos, sin = reference_angles(config, length)
    causal = torch.full((length, length), float("-inf")).triu(1)

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * weight

    def rotate(x: torch.Tensor) -> torch.Tensor:
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    x = w["embed.weight"][torch.from_numpy(tokens).long()]
    for layer in range(config.layers):
        p = {name.removeprefix(f"layers.{layer}."): t for name, t in w.items() if f"layers.{layer}." in name}
        qkv = norm(x, p["attention_norm.weight"]) @ p["qkv.weight"].T + p.get("qkv.bias", 0.0)
        qkv = qkv.view(batch, length, -1, config.head_dim).transpose(1, 2)
        q, k, v = qkv.split((heads, config.kv_heads, config.kv_heads), dim=1)
        if config.qk_norm:
            q, k = norm(q, p["q_norm.weight"]), norm(k, p["k_norm.weight"])
        k, v = rotate(k).repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scores = rotate(q) @ k.transpose(2, 3) / config.head_dim**0.5 + causal
        attended = scores.softmax(-1) @ v
        x = x + attended.transpose(1, 2).reshape(batch, length, -1) @ p["o.weight"].T
        gate, up = (norm(x, p["mlp_norm.weight"]) @ p["gate_up.weight"].T).chunk(2, dim=-1)
        x = x + (gate * gate.sigmoid() * up) @ p["down.weight"].T
    head = w["embed.weight" if config.tied_embeddings else "head.weight"]
    return (norm(x, w["norm.weight"]) @ head.T).numpy()


def reference_angles(config: DecoderConfig, length: int) -> Any:
    """Return cos and sin [T, Dh / 2]; llama3 scaling written out as in the model's own release."""
    frequencies = []
    for index in range(0, config.head_dim, 2):
        frequency = config.rope_theta ** (-index / config.head_dim)
        if scaling := config.rope_scaling:
            turns = scaling.original_positions * frequency / (2 * math.pi)
            smooth = (turns - scaling.low_frequency_factor) / (
                scaling.high_frequency_factor - scaling.low_frequency_factor
            )
            smooth = min(max(smooth, 0.0), 1.0)
            frequency *= smooth + (1 - smooth) / scaling.factor
        frequencies.append(frequency)
    angles = torch.arange(length)[:, None] * torch.tensor(frequencies)
    return angles.cos(), angles.sin()
