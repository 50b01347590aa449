import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.contract import Shapes
from workbench.checking.checks import (
    DISTINCT_ROWS,
    FORCED_STEPS,
    capacity_for,
    check_lengths,
    gate_rows,
    repeated_rows,
    workload_tokens,
)


def test_lengths_hold_the_context_the_prompts_the_first_seventeen_and_the_edges():
    lengths = check_lengths(Shapes(1, (50, 200), capacity_for(200, 32)), filled=200)
    edges = {31, 32, 33, 63, 64, 65, 127, 128, 129}
    assert set(lengths) == {215, 200, 50} | set(range(1, 18)) | edges


@pytest.mark.parametrize(("steps", "first"), [(0, 200), (31, 200), (32, 215), (512, 695)])
def test_the_last_steps_but_one_of_a_timed_chain_are_checked(steps: int, first: int):
    assert check_lengths(Shapes(1, (200,), capacity_for(200, steps)), filled=200)[0] == first


def test_a_context_just_below_an_edge_keeps_the_neighbours_it_reaches():
    assert check_lengths(Shapes(1, (31,), capacity_for(31, 1)), filled=31)[:2] == (31, 17)


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(1, 6000))
def test_lengths_descend_and_leave_room_for_the_forced_steps(filled: int, steps: int, capacity: int):
    for room in (capacity, capacity_for(filled, steps)):
        lengths = check_lengths(Shapes(1, (filled,), room), filled)
        assert list(lengths) == sorted(set(lengths), reverse=True)
        assert all(length >= 1 and length + FORCED_STEPS <= room for length in lengths)
        assert [length for length in lengths if length > filled] in ([], [room - FORCED_STEPS - 1])
    assert filled in lengths


@pytest.mark.parametrize(("steps", "expected"), [(1, 117), (17, 117), (64, 164)])
def test_capacity_fits_the_timed_steps_and_a_position_beyond_the_checks(steps: int, expected: int):
    assert capacity_for(100, steps) == expected


def test_workload_tokens_differ_by_sequence_and_seed_but_not_by_batch():
    tokens = workload_tokens(1000, 3, 40, seed=7)
    assert tokens.shape == (3, 40)
    assert tokens.dtype == np.int32
    assert tokens.min() >= 0
    assert tokens.max() < 1000
    assert len({row.tobytes() for row in tokens}) == 3
    assert set(workload_tokens(2, 3, 40, seed=7).ravel().tolist()) == {0, 1}
    assert np.array_equal(workload_tokens(1000, 5, 40, seed=7)[:3], tokens)
    assert not np.array_equal(workload_tokens(1000, 3, 40, seed=8), tokens)


def test_batches_beyond_four_repeat_four_sequences():
    tokens = workload_tokens(1000, gate_rows(10), 20, seed=1)
    assert len({row.tobytes() for row in tokens}) == DISTINCT_ROWS
    assert repeated_rows(10, DISTINCT_ROWS).tolist() == [0, 1, 2, 3, 1, 2, 3, 0, 2, 3]
    assert gate_rows(3) == 3
    assert repeated_rows(3, 3).tolist() == [0, 1, 2]
    assert repeated_rows(5, 1).tolist() == [0] * 5


@pytest.mark.parametrize("distance", [2**power for power in range(10)])
def test_rows_of_neighbouring_tiles_repeat_unlike_sequences(distance: int):
    """Else one tile of a batch that read another's rows would go unseen."""
    turn = repeated_rows(2048, DISTINCT_ROWS)
    tiles = turn[: 2 * distance].reshape(2, distance)
    assert (tiles[0] != tiles[1]).all()
    assert np.bincount(turn).tolist() == [512] * 4
