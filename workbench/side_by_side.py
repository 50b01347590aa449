"""Do like things side by side; where one raises, or on Ctrl-C, the others are ended and not waited for."""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    stop: threading.Event,
    workers: int | None = None,
) -> list[Result]:
    """Return the results of a task in the order of its items; `workers` at a time, or as many as cores.

    `stop` is set once the results are not wanted any more: a task that waits looks at it.
    """
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        try:
            return list(pool.map(task, items))
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
