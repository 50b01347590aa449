"""Rotary position tables. The rotation is the half-split one of Hugging Face checkpoints:
(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), with x1 the first half of the head and x2 the second.

Rounding follows transformers: exponents, frequencies and angles are float32 values. Powers and
cosines are taken in float64 in between, so that the tables do not depend on a machine's library.
"""

import numpy as np
import numpy.typing as npt

from models.config import DecoderConfig, RopeScaling

Float32Array = npt.NDArray[np.float32]


def inverse_frequencies(config: DecoderConfig) -> Float32Array:
    """Return the angle of one position for each rotated pair, in radians, float32 [Dh/2]."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    power = np.power(config.rope_theta, exponent.astype(np.float64)).astype(np.float32)
    frequencies = (np.float32(1.0) / power).astype(np.float32)
    return _stretch(frequencies, config.rope_scaling) if config.rope_scaling else frequencies


def rope_tables(config: DecoderConfig, positions: int) -> tuple[Float32Array, Float32Array]:
    """Return cos and sin of every position's angles, each float32 [positions, Dh/2]."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * inverse_frequencies(config)[None, :]
    exact = angles.astype(np.float64)
    return np.cos(exact).astype(np.float32), np.sin(exact).astype(np.float32)


def whole_head_tables(config: DecoderConfig, positions: int) -> tuple[Float32Array, Float32Array]:
    """Return cos and sin for x cos + swapped(x) sin, each float32 [positions, 1, Dh]; the sine's first half
    with its minus, and `swapped` the halves of the head the other way round.
    """
    cos, sin = rope_tables(config, positions)
    return np.concatenate((cos, cos), axis=-1)[:, None], np.concatenate((-sin, sin), axis=-1)[:, None]


def _stretch(frequencies: Float32Array, scaling: RopeScaling) -> Float32Array:
    """Divide low frequencies by the factor, keep high ones, and blend between.

    Source: `apply_scaling` in llama_models/llama3/model.py of meta-llama/llama-models (Llama 3.1).
    """
    factor, low, high = (
        np.float32(value)
        for value in (scaling.factor, scaling.low_frequency_factor, scaling.high_frequency_factor)
    )
    turns = np.float32(scaling.original_positions) * frequencies / np.float32(2 * np.pi)
    kept = np.clip((turns - low) / (high - low), 0, 1).astype(np.float32)  # 0: all stretched, 1: none
    blended: Float32Array = (1 - kept) * frequencies / factor + kept * frequencies
    return blended
