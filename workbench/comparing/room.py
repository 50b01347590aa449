"""How much longer a context, or how much larger a batch, a device has room for. Pure."""

from dataclasses import dataclass

from workbench.job import Json
from workbench.plan import MOST_SEQUENCES


@dataclass(frozen=True)
class Room:
    """What a decode row's cache is to fit into, and how it grows."""

    device_bytes: int
    token_bytes: int
    """Of the cache, for one position of one sequence."""
    batch: int
    context: int
    capacity: int
    """Cache positions of a sequence: the context and what timed and checked steps add to it."""
    max_positions: int
    """The model's."""


def largest_fit(room: Room, memory: Json, held_bytes: int) -> Json:
    """Return how many cached `tokens` fit, and with them the largest `context` and the largest `batch`.

    `memory` is a row's as measured (`total`, `weights`, `cache`, `rest`); `held_bytes` was taken before the
    start, by the driver or by others. `rest` (buffers, the framework, its caches) is taken as measured at
    this row's shape. It grows with batch and prompt, so both are estimates, and more likely too large than
    too small. The largest context is at this batch, and no longer than the model has positions; the largest
    batch is at this context, and no more than run at once here. Rounded down; empty where the rest is unknown
    or not even this shape would fit.
    """
    if memory["rest"] is None:
        return {}
    free = room.device_bytes - held_bytes - memory["weights"] - memory["rest"]
    tokens = max(0, free) // room.token_bytes
    if tokens < room.batch * room.capacity:
        return {}
    positions = min(tokens // room.batch, room.max_positions)
    return {
        "tokens": tokens,
        "context": positions - (room.capacity - room.context),
        "batch": min(tokens // room.capacity, MOST_SEQUENCES),
    }
