"""What a decoder looks like: `DecoderConfig`, the presets, and which of preset or folder a name means."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from models.errors import UserError


@dataclass(frozen=True)
class RopeScaling:
    """The `llama3` rule that stretches low rope frequencies; see `models.rope`."""

    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_positions: int


@dataclass(frozen=True)
class DecoderConfig:
    """Everything that tells one decoder from another; families are data, not subclasses."""

    family: str
    """`llama`, `mistral`, `qwen2` or `qwen3`."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    """Positions up to which full causal attention is what the model does."""
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False


PRESETS: dict[str, DecoderConfig] = {
    "tiny": DecoderConfig(
        "llama", 1024, 256, 704, 4, heads=8, kv_heads=2, head_dim=32,
        max_positions=2048, norm_eps=1e-5, rope_theta=10_000.0,
    ),
    "llama-50m": DecoderConfig(
        "llama", 32_000, 512, 1408, 12, heads=8, kv_heads=4, head_dim=64,
        max_positions=4096, norm_eps=1e-5, rope_theta=10_000.0, tied_embeddings=True,
    ),
    "llama-3.2-1b": DecoderConfig(
        "llama", 128_256, 2048, 8192, 16, heads=32, kv_heads=8, head_dim=64,
        max_positions=131_072, norm_eps=1e-5, rope_theta=500_000.0,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192), tied_embeddings=True,
    ),
    "llama-3.1-8b": DecoderConfig(
        "llama", 128_256, 4096, 14_336, 32, heads=32, kv_heads=8, head_dim=128,
        max_positions=131_072, norm_eps=1e-5, rope_theta=500_000.0,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    ),
    "qwen2.5-7b": DecoderConfig(
        "qwen2", 152_064, 3584, 18_944, 28, heads=28, kv_heads=4, head_dim=128,
        max_positions=131_072, norm_eps=1e-6, rope_theta=1_000_000.0, qkv_bias=True,
    ),
    "qwen3-8b": DecoderConfig(
        "qwen3", 151_936, 4096, 12_288, 36, heads=32, kv_heads=8, head_dim=128,
        max_positions=40_960, norm_eps=1e-6, rope_theta=1_000_000.0, qk_norm=True,
    ),
    "mistral-7b": DecoderConfig(
        "mistral", 32_768, 4096, 14_336, 32, heads=32, kv_heads=8, head_dim=128,
        max_positions=32_768, norm_eps=1e-5, rope_theta=1_000_000.0,
    ),
}  # fmt: skip
"""Shapes of well-known models, named after them, and two for a CPU: one fits in its cache, one does not.
Their weights are made by `models.weights`."""


def is_preset(name: str) -> bool:
    """Tell whether `name` is a preset."""
    return name in PRESETS


def find_preset(name: str) -> DecoderConfig:
    """Return the preset called `name`; raises UserError with the nearest name."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: {_nearest_preset(name)}")
    return PRESETS[name]


def locate(model: str) -> Path | None:
    """Return the checkpoint folder that `model` names, or None if it is a preset; raises UserError."""
    if is_preset(model):
        return None
    try:
        folder = Path(model).expanduser()
        if (folder / "config.json").is_file():
            return folder
        if folder.is_dir():
            raise UserError(
                f"{folder} has no config.json: a model folder needs config.json and *.safetensors"
            )
        if folder.exists():
            raise UserError(f"{folder} is a file: --model takes a preset or a folder with config.json")
    except (OSError, ValueError, RuntimeError):  # a name that no file system takes, a home that nobody has
        pass
    raise UserError(
        f"no preset and no folder is called {model!r}: {_nearest_preset(model)} "
        "Or give a folder with config.json and *.safetensors"
    )


def _nearest_preset(name: str) -> str:
    # A name that is not a preset's may have been put behind a folder already.
    near = difflib.get_close_matches(Path(name).name.lower(), PRESETS, n=1, cutoff=0.4)
    return f"did you mean {near[0]!r}?" if near else f"the presets are {', '.join(PRESETS)}."
