"""What the sweep computes besides golden: streams of positions, one fault each, packed together; needs torch.

R rows, T positions, D hidden size.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from workbench.checking.checks import FORCED_STEPS
from workbench.checking.mutants import Mutant, stale_page

PREFILL_TOKENS = 4096
"""Tokens of one faulty prefill: of a longer prompt fewer rows are computed, as each costs a golden."""


@dataclass(frozen=True)
class Stream:
    """Tokens [R, T] at positions start to start + T, computed with one fault behind right positions."""

    mutant: Mutant
    tokens: Tensor
    start: int = 0
    prompts: tuple[int, ...] = ()
    """Ascending: a prefill's prompts, whose last positions are checked; none for a decode, where all are."""
    first_row: int = 0
    """Which of the gate's rows `tokens` begin with."""

    @property
    def positions(self) -> range:
        """Name the positions."""
        return range(self.start, self.start + self.tokens.shape[1])

    @property
    def checked(self) -> list[int]:
        """Name the positions whose logits are kept."""
        return [prompt - 1 for prompt in self.prompts] or list(self.positions)

    @property
    def rows(self) -> slice:
        """Name the rows."""
        return slice(self.first_row, self.first_row + len(self.tokens))

    @property
    def page(self) -> slice:
        """Name the positions that a stale page would hold."""
        stale = stale_page(self.prompts[-1] if self.prompts else self.start)
        return slice(stale.start, stale.stop)


class Pack:
    """Streams side by side: hidden states [R, T, D], and the positions rope turns queries and keys to."""

    def __init__(self, streams: list[Stream]) -> None:
        self.streams = streams
        self.tokens = torch.cat([stream.tokens for stream in streams], dim=1)
        ends = np.cumsum([len(stream.positions) for stream in streams]).tolist()
        self.spans = [slice(end - len(each.positions), end) for each, end in zip(streams, ends, strict=True)]
        queries = [np.asarray(each.positions) + each.mutant.query_turn for each in streams]
        keys = [
            np.asarray(each.positions) + (0 if each.prompts else each.mutant.decode_key_turn)
            for each in streams
        ]
        device = self.tokens.device
        self.query_positions = torch.from_numpy(np.concatenate(queries)).to(device)
        self.key_positions = torch.from_numpy(np.concatenate(keys)).to(device)
        self.hidden = torch.empty(0)

    def __iter__(self) -> Iterator[tuple[Stream, slice]]:
        return zip(self.streams, self.spans, strict=True)

    @property
    def late(self) -> bool:
        """Whether all is right up to the layer that is skipped, so that only those behind it are computed."""
        return all(stream.mutant.skips_layer for stream in self.streams)


def plan_faulty(
    tokens: Tensor, prompts: tuple[int, ...], lengths: tuple[int, ...], mutants: tuple[Mutant, ...]
) -> list[Pack]:
    """Put decodes in two packs, one of them late, and prefills in packs of their own."""
    decodes = [Stream(each, tokens[:, at : at + FORCED_STEPS], at) for each in mutants for at in lengths]
    parts = [[each for each in decodes if each.mutant.skips_layer is late] for late in (False, True)]
    prefills = [pack for each in mutants for pack in plan_prefills(each, tokens, prompts)]
    return [*(Pack(part) for part in parts if part), *prefills]


def plan_prefills(mutant: Mutant, tokens: Tensor, prompts: tuple[int, ...]) -> list[Pack]:
    """Plan one fault's prefills of the prompts, which ascend, computing nothing that is known.

    What precedes a stale page is right. The start of a longer faulty prefill is that of a shorter one, except
    where positions see what follows them. Of long prompts only some rows are computed.
    """
    rows = {prompt: max(1, min(len(tokens), PREFILL_TOKENS // prompt)) for prompt in prompts}
    packs, done = [], 0
    for at in reversed(prompts):
        if mutant.stale_page:
            page = stale_page(at).start
            packs.append(Pack([Stream(mutant, tokens[: rows[at], page:at], page, (at,))]))
        elif mutant.last_key > 0:
            packs.append(Pack([Stream(mutant, tokens[: rows[at], :at], prompts=(at,))]))
        elif rows[at] > done:
            ended = tuple(prompt for prompt in prompts if prompt <= at)
            packs.append(Pack([Stream(mutant, tokens[done : rows[at], :at], prompts=ended, first_row=done)]))
            done = rows[at]
    return packs
