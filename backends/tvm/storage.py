"""What TVM's functions allocate while they run, kept for CUDA graphs that write it ever after.

A call gives its storage back to a pool of the whole process when it ends, and the pool to whoever asks next:
for the constants of another engine, say, which every replay of a graph captured before would overwrite.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import tvm

ALLOCATE = "vm.builtin.alloc_storage"
"""The function that TVM's virtual machines allocate by; each looks it up once, when it is made."""


@cache
def watch_allocations() -> list[list[Any]]:
    """Make all machines from now on allocate by a function of ours; returns who is told of the storage."""
    told: list[list[Any]] = []
    allocate = tvm.get_global_func(ALLOCATE)

    def allocate_and_tell(*arguments: Any) -> Any:
        storage = allocate(*arguments)
        for each in told:
            each.append(storage)
        return storage

    tvm.register_global_func(ALLOCATE, allocate_and_tell, override=True)
    return told


@contextmanager
def kept_storage() -> Iterator[list[Any]]:
    """Give the list of all that is allocated meanwhile: while it is there, no one else is given that."""
    told, storage = watch_allocations(), list[Any]()
    told.append(storage)
    try:
        yield storage
    finally:
        told.pop()
