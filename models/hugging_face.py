"""Hugging Face config.json, read into a `DecoderConfig` and written from one.

A missing key means what it means to transformers, so that both read the same model from one file.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.config import DecoderConfig, RopeScaling
from models.errors import UserError, one_line

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Family to the architecture that transformers names."""


def hf_config(config: DecoderConfig, dtype: str) -> dict[str, Any]:
    """Return config.json values that transformers 4 and 5 read back into the same model."""
    values: dict[str, Any] = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "torch_dtype": dtype,
    }
    if config.rope_scaling:
        values["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": config.rope_scaling.factor,
            "low_freq_factor": config.rope_scaling.low_frequency_factor,
            "high_freq_factor": config.rope_scaling.high_frequency_factor,
            "original_max_position_embeddings": config.rope_scaling.original_positions,
        }
    if config.family == "mistral":
        values["sliding_window"] = None  # transformers takes 4096 where it is absent
    return values


# What transformers assumes of a key that config.json leaves out: a 7B llama, and how each family differs.
_SHARED = {
    "vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
_QWEN = {
    **_SHARED, "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
    "max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _SHARED,
    "mistral": {
        **_SHARED, "intermediate_size": 14_336, "num_key_value_heads": 8,
        "max_position_embeddings": 131_072, "sliding_window": 4096,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
}  # fmt: skip
UNQUANTIZED = "use the checkpoint that is not quantized"
"""What to do about weights that we cannot read yet."""
_QUANTIZED = ("hf_quant_config.json", "quant_config.json", "quantize_config.json")
"""What ModelOpt, AutoAWQ and AutoGPTQ leave beside a config.json that does not say so."""
_QUANTIZATIONS = ("quantization_config", "compression_config")
_LAYER_TYPES = ("full_attention", "sliding_attention")
_ROPE_THETA = 10_000.0
_MAX_SIZE = 2**31 - 1
_MAX_LAYERS = 10_000


def read_config(folder: Path) -> DecoderConfig:
    """Read the config.json of a Hugging Face folder; raises UserError naming what is not supported."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{folder} has no config.json: give a Hugging Face checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): save or download it again") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no JSON object: save or download it again")
    for name in _QUANTIZED:
        if (folder / name).exists():
            raise UserError(f"{folder} has a {name}: quantization is not supported yet: {UNQUANTIZED}")
    try:
        return _Reader(values).config()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Reader:
    """Reads one config.json; every complaint names the key."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.family = self._family()
        self.defaults = _DEFAULTS[self.family]

    def config(self) -> DecoderConfig:
        """Check and translate every key that shapes the model."""
        self._refuse_foreign()
        hidden, heads = self.size("hidden_size"), self.size("num_attention_heads")
        kv_heads = heads if self.get("num_key_value_heads") is None else self.size("num_key_value_heads")
        if heads % kv_heads:
            raise UserError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
        head_dim = hidden // heads if self.get("head_dim") is None else self.size("head_dim")
        if head_dim < 2 or head_dim % 2:
            raise UserError(f"head_dim {head_dim} is not supported: rope needs an even head size")
        layers = self.size("num_hidden_layers", _MAX_LAYERS)
        theta, scaling = self._rope()
        return DecoderConfig(
            family=self.family,
            vocab_size=self.size("vocab_size"),
            hidden_size=hidden,
            intermediate_size=self.size("intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            max_positions=min(self.size("max_position_embeddings"), self._window(layers) or _MAX_SIZE),
            norm_eps=self.number("rms_norm_eps", self.get("rms_norm_eps")),
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=self.family == "qwen2",
            qk_norm=self.family == "qwen3",
            tied_embeddings=self.flag("tie_word_embeddings"),
        )

    def get(self, key: str) -> Any:
        """Return the value of `key`, or what transformers assumes where it is absent."""
        return self.values.get(key, self.defaults.get(key))

    def size(self, key: str, largest: int = _MAX_SIZE) -> int:
        """Return a whole number of at least 1."""
        return self._whole(key, self.get(key), largest)

    def number(self, key: str, value: Any) -> float:
        """Return a finite number above 0."""
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
        if not usable:
            raise UserError(f"{key} is {_show(value)}, not a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """Return true or false; null and absent are false."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise UserError(f"{key} is {_show(value)}, not true or false")
        return bool(value)

    def _whole(self, key: str, value: Any, largest: int = _MAX_SIZE, smallest: int = 1) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not smallest <= value <= largest:
            raise UserError(f"{key} is {_show(value)}, not a whole number from {smallest} to {largest}")
        return value

    def _family(self) -> str:
        """Name the family as transformers does, by model_type; the architecture must be the causal LM."""
        kind, named = self.values.get("model_type"), self.values.get("architectures")
        architecture = named[0] if isinstance(named, list) and named else None
        matches = (
            family
            for family, causal in ARCHITECTURES.items()
            if kind == family or (kind is None and architecture == causal)
        )
        family = next(matches, None)
        if family is None or architecture not in (None, ARCHITECTURES[family]):
            shown = architecture if architecture is not None else kind
            raise UserError(
                f"architecture {_show(shown)} is not supported: those are {', '.join(ARCHITECTURES.values())}"
            )
        return family

    def _refuse_foreign(self) -> None:
        """Refuse by name what would make this another model than the definition computes."""
        for key in _QUANTIZATIONS:
            if self.get(key) is not None:
                method = _quantization(self.values[key])
                raise UserError(f"{key} ({method}) is not supported yet: {UNQUANTIZED}")
        for key in ("dtype", "torch_dtype"):
            value = self.get(key)
            if str(value or "").removeprefix("torch.").startswith(("float8", "int", "uint")):
                raise UserError(f"{key} {_show(value)} is quantized, not supported yet: {UNQUANTIZED}")
        activation = self.values.get("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            raise UserError(f"hidden_act {_show(activation)} is not supported: only silu is")
        biased = ("mlp_bias",) if self.family == "qwen2" else ("attention_bias", "mlp_bias")
        for key in biased:
            if self.flag(key):
                raise UserError(f"{key} is not supported for {self.family}")
        for key in ("num_experts", "num_local_experts", "n_routed_experts"):
            if self.get(key):
                raise UserError(f"{key} is not supported: only dense models are")

    def _rope(self) -> tuple[float, RopeScaling | None]:
        """Read rope from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
        rope = self.get("rope_scaling") or self.get("rope_parameters") or {}
        if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
            raise UserError(f"rope_parameters {_show(rope)} are not supported: one flat set is")
        partial = rope.get("partial_rotary_factor", self.get("partial_rotary_factor"))
        if partial not in (None, 1, 1.0):
            raise UserError(f"partial_rotary_factor {_show(partial)} is not supported: only 1 is")
        theta = self.number("rope_theta", rope.get("rope_theta", self.values.get("rope_theta", _ROPE_THETA)))
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind == "default":
            return theta, None
        if kind != "llama3":
            raise UserError(f"rope type {_show(kind)} is not supported: only default and llama3 are")
        factor, low, high = (
            self.number(key, rope.get(key)) for key in ("factor", "low_freq_factor", "high_freq_factor")
        )
        if high <= low:
            raise UserError(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
        key = "original_max_position_embeddings"
        original = self.values.get(key, rope.get(key, self.get("max_position_embeddings")))
        return theta, RopeScaling(factor, low, high, self._whole(key, original))

    def _window(self, layers: int) -> int | None:
        """Return the sliding window if any layer has one: up to it, windowed and full attention are equal."""
        window = self.get("sliding_window")
        if self.family == "llama" or window is None:
            return None
        if self.family == "mistral":
            return self.size("sliding_window")
        if not self.flag("use_sliding_window"):
            return None
        return self.size("sliding_window") if self._windowed(layers) else None

    def _windowed(self, layers: int) -> bool:
        """Tell whether any layer uses the window, by `layer_types` or else by `max_window_layers`."""
        kinds, full = self.get("layer_types"), self.get("max_window_layers")
        if kinds is None:
            return self._whole("max_window_layers", full, smallest=0) < layers
        if not isinstance(kinds, list) or any(kind not in _LAYER_TYPES for kind in kinds):
            raise UserError(f"layer_types {_show(kinds)} are not supported: {' and '.join(_LAYER_TYPES)} are")
        return "sliding_attention" in kinds


def _quantization(config: Any) -> str:
    """Name a quantization as its configuration does: `fp8`, `awq, 4 bits`, `modelopt, FP8`."""
    values = config if isinstance(config, dict) else {}
    bits = values.get("bits", values.get("w_bit"))
    named = [str(values[key]) for key in ("quant_method", "quant_algo") if values.get(key)]
    text = ", ".join([*named, *([f"{bits} bits"] if bits else [])])
    return " ".join(text.split())[:60] or "of an unnamed kind"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
