"""What fits into a device, from measured memory."""

import pytest

from workbench.comparing.room import Room, largest_fit
from workbench.plan import MOST_SEQUENCES

GIB = 1 << 30
ROOM = Room(
    device_bytes=80 * GIB, token_bytes=128 << 10, batch=1, context=1024, capacity=1088, max_positions=131_072
)
MEMORY = {"total": 20 * GIB, "weights": 15 * GIB, "cache": 136 << 20, "rest": 4 * GIB}


def test_what_the_weights_and_the_rest_leave_is_for_the_cache():
    found = largest_fit(ROOM, MEMORY, held_bytes=GIB)
    assert found["tokens"] == 60 * GIB // (128 << 10) == 491_520
    assert found["batch"] == 491_520 // 1088
    assert found["context"] == 131_072 - 64  # the model ends before the memory


def test_context_is_at_the_rows_batch():
    found = largest_fit(Room(80 * GIB, 128 << 10, 8, 1024, 1088, 131_072), MEMORY, held_bytes=GIB)
    assert found["context"] == 491_520 // 8 - 64


def test_no_batch_is_named_that_cannot_be_asked_for():
    small = Room(80 * GIB, 16, 1, 1024, 1088, 131_072)
    assert largest_fit(small, MEMORY, 0)["batch"] == MOST_SEQUENCES


def test_it_is_rounded_down():
    tight = {**MEMORY, "rest": 65 * GIB - 1088 * (128 << 10) - 1}
    assert largest_fit(ROOM, tight, 0) == {"tokens": 1088, "context": 1024, "batch": 1}


@pytest.mark.parametrize("rest", [None, 65 * GIB - 1088 * (128 << 10) + 1, 70 * GIB])
def test_nothing_is_said_where_the_rest_is_unknown_or_leaves_too_little(rest):
    assert largest_fit(ROOM, {**MEMORY, "rest": rest}, 0) == {}
