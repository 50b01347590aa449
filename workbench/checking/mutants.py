"""The six faults that the gate knows by name: what each does to one model, written once as plain data.

A plain bound on the error misses such faults on random weights: an engine that never attends to its newest
token is hardly further from the truth than bfloat16 rounding. Computing what the faulty engine would say,
and projecting an engine's error onto that, does not miss them.

Each fault exists in two phases. In a prefill it holds at every position. In a decode it holds in the forced
steps alone, behind keys and values that a right prefill left.
"""

from dataclasses import dataclass

from models.config import DecoderConfig

PAGE = 16
"""Positions in the page that goes stale: the size most paged caches use."""


@dataclass(frozen=True)
class Mutant:
    """One fault, as the differences it makes."""

    name: str
    last_key: int = 0
    """The query at position p sees keys up to p + last_key, but one at least; beyond the cached is poison."""
    query_turn: int = 0
    """Positions that rope turns queries too far."""
    decode_key_turn: int = 0
    """Positions that rope turns a decoded key too far. In a prefill only the query turns: attention sees
    differences of positions, so a turn of both would be no fault."""
    stale_page: bool = False
    """Whether the page of the newest cached position holds keys and values of an earlier sequence."""
    head_shift: int = 0
    """How many heads further on each group of query heads finds its KV head."""
    skips_layer: bool = False
    """Whether the middle layer is left out."""


NO_FAULT = Mutant("no fault")
MUTANTS = (
    Mutant("newest key dropped", last_key=-1),
    Mutant("one key too many", last_key=1),
    Mutant("one page stale", stale_page=True),
    Mutant("rope off by one", query_turn=1, decode_key_turn=1),
    Mutant("KV heads permuted", head_shift=1),
    Mutant("one layer skipped", skips_layer=True),
)
ALIKE_IN_DECODE = {"one key too many": " or a page never written"}
"""What else looks like a fault in decode: poison is the same wherever it is read."""


def mutants_of(config: DecoderConfig) -> tuple[Mutant, ...]:
    """List the faults this model can have: with one KV head there is nothing to permute."""
    return tuple(mutant for mutant in MUTANTS if config.kv_heads > 1 or not mutant.head_shift)


def stale_page(length: int) -> range:
    """Name the positions of the page that holds the newest of `length` cached positions."""
    return range((length - 1) // PAGE * PAGE, length)


def skipped_layer(layers: int) -> int:
    """Choose the middle one of `layers` layers."""
    return layers // 2
