import dataclasses
import math

import numpy as np

from models.config import PRESETS
from models.rope import inverse_frequencies, rope_tables

PLAIN = PRESETS["tiny"]  # theta 10000, head_dim 32
STRETCHED = PRESETS["llama-3.1-8b"]  # theta 500000, head_dim 128, factor 8, low 1, high 4, 8192 positions


def test_frequencies_are_powers_of_theta() -> None:
    frequencies = inverse_frequencies(PLAIN)
    assert frequencies.dtype == np.float32
    assert frequencies.shape == (16,)
    assert frequencies[0] == 1
    np.testing.assert_allclose(frequencies, [10_000 ** (-i / 16) for i in range(16)], rtol=3e-7)


def test_llama3_rule_in_its_three_bands() -> None:
    frequencies = inverse_frequencies(STRETCHED)
    for index, frequency in enumerate(frequencies):
        plain = 500_000 ** (-index / 64)
        wavelength = 2 * math.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192 / 1:
            expected = plain / 8
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 8 + smooth * plain
        assert math.isclose(frequency, expected, rel_tol=1e-6), index
    kept = inverse_frequencies(dataclasses.replace(STRETCHED, rope_scaling=None))
    assert 0 < (frequencies != kept).sum() < 64  # both the kept and the stretched band are there


def test_pinned_llama3_frequencies() -> None:
    # Where the bands of Llama 3.1 begin and end: 2048 < wavelength < 8192 for pairs 29 to 34.
    plain = inverse_frequencies(dataclasses.replace(STRETCHED, rope_scaling=None))
    ratio = plain / inverse_frequencies(STRETCHED)
    assert (ratio[:29] == 1).all()
    assert ((ratio[29:35] > 1) & (ratio[29:35] < 8)).all()
    assert (ratio[35:] == 8).all()


def test_tables_hold_cosine_and_sine_of_position_times_frequency() -> None:
    cos, sin = rope_tables(PLAIN, 100)
    assert cos.shape == sin.shape == (100, 16)
    assert cos.dtype == sin.dtype == np.float32
    assert (cos[0] == 1).all()
    assert (sin[0] == 0).all()
    assert math.isclose(cos[99, 0], math.cos(99), rel_tol=1e-6)
    assert math.isclose(sin[99, 8], math.sin(0.99), rel_tol=1e-6)  # 10000 ** (-8 / 16) = 0.01


def test_tables_do_not_depend_on_how_many_positions_are_asked_for() -> None:
    for long, short in zip(rope_tables(STRETCHED, 64), rope_tables(STRETCHED, 10), strict=True):
        assert (long[:10] == short).all()
