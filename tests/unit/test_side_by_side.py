"""Like things side by side: their order, and an end that waits for nobody."""

import threading
import time

import pytest

from workbench.side_by_side import side_by_side


def test_results_come_in_the_order_of_the_items() -> None:
    found = side_by_side(lambda item: time.sleep(0.02 / item) or item, [1, 2, 3], threading.Event())
    assert found == [1, 2, 3]


def test_what_raises_ends_the_others_and_those_that_have_not_begun() -> None:
    stop, begun = threading.Event(), []

    def task(item: int) -> None:
        begun.append(item)
        if item == 0:
            raise KeyboardInterrupt
        assert stop.wait(10), "nobody told it to end"

    with pytest.raises(KeyboardInterrupt):
        side_by_side(task, range(50), stop, workers=2)
    assert len(begun) < 50
