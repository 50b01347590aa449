"""An engine that can only be asked for whole requests, behind the calls of the contract.

Nothing runs until it is waited for: then one request brings the tokens known so far as its prompt and asks
for as many tokens as there are steps. So a chain of decode steps costs a request's way, a prefill and the
steps, and the slope clock takes the difference of two.

Dimensions: B sequences, L tokens of each that are known, N tokens of an answer, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from backends.contract import Shapes

OTHERS = 0x07E45
"""Seed of the sequences that poison stands for: one that no workload and no decoy is drawn by."""

Tokens = npt.NDArray[np.int32]
Rows = list[list[int]]


class Requests(Protocol):
    """What an engine in another process can be asked for; both calls wait for the answer."""

    def generate(self, prompts: Rows, count: int) -> Sequence[Sequence[int]]:
        """Return the greedy `count` tokens after each prompt, whatever they are."""

    def logits(self, prompts: Rows, forced: Rows, count: int) -> npt.NDArray[np.float32]:
        """Return the logits [B, V] that token `count` after each prompt is chosen by.

        The first of these tokens are not chosen but given, by `forced`.
        """

    def close(self) -> None:
        """End the process."""


class RequestEngine:
    """Keeps what each sequence is made of, and what has been asked of it since."""

    def __init__(self, shapes: Shapes, vocab: int, start: Callable[[], Requests]) -> None:
        self._start = start
        others = np.random.default_rng(OTHERS).integers(0, vocab, (shapes.batch, shapes.capacity))
        self._other: Rows = others.tolist()
        """Sequences that fill the whole cache."""
        self._requests: Requests | None = None
        self._staged: Tokens = np.zeros((shapes.batch, 0), np.int32)
        self._known = self._staged
        """Tokens [B, L] of every filled position before the pending steps."""
        self._fed: Tokens | None = None
        """What the next step is given [B]; None for the engine's own token."""
        self._given: list[Tokens] = []
        """Tokens [B] of the pending steps that were given theirs."""
        self._own = 0
        """Pending steps after those, each with the engine's own token."""
        self._answer: Sequence[Sequence[int]] | None = None
        """Of the request that ran the pending steps: the own tokens they took, and one more."""
        self._unrun = False
        """Whether no request has brought the tokens of the last prefill yet."""

    def stage(self, tokens: np.ndarray) -> None:
        """Keep tokens [B, T] for the next prefill."""
        self._staged = np.array(tokens, np.int32)

    def prefill(self) -> None:
        """Begin anew with the staged tokens; what was begun before is run, as it is to leave its traces."""
        if self._unrun:
            self.sync()
        self._known, self._fed, self._given, self._own = self._staged, None, [], 0
        self._answer, self._unrun = None, True

    def decode(self) -> None:
        """Note one more step."""
        if self._fed is None:
            self._own += 1
        else:
            self._given.append(self._fed)
            self._fed = None
        self._answer = None

    def rewind(self, length: int) -> None:
        """Forget all tokens from position `length` on; raises ValueError if there are not so many."""
        self._settle()
        if length > self._known.shape[1]:
            raise ValueError(f"rewound to {length}, but only {self._known.shape[1]} tokens are known")
        self._known, self._fed, self._unrun = self._known[:, :length], None, False

    def feed(self, tokens: np.ndarray) -> None:
        """Give the next step its tokens [B]."""
        if self._own:
            self._settle()
        self._fed = np.array(tokens, np.int32)

    def poison(self, length: int) -> None:  # noqa: ARG002 (no request reaches the cache itself)
        """Fill the whole cache with other sequences, which a read of anything stale then meets."""
        self._ask().generate(self._other, 1)

    def logits(self) -> np.ndarray:
        """Return the last step's logits [B, V], by a request that takes the same steps one by one."""
        tokens, self._unrun = self._prompt(), False
        split = max(self._known.shape[1], 1)  # no engine takes an empty prompt
        given = tokens[:, split:]
        return self._ask().logits(tokens[:, :split].tolist(), given.tolist(), given.shape[1] + self._own + 1)

    def sync(self) -> None:
        """Run the pending prefill and steps."""
        if self._answer is None and (self._unrun or self._given or self._own):
            self._answer = self._ask().generate(self._prompt().tolist(), self._own + 1)
            self._unrun = False

    def stream(self) -> int | None:
        """Return None: the work runs in another process."""
        return None

    def close(self) -> None:
        """End the engine's process."""
        if self._requests is not None:
            self._requests.close()
            self._requests = None

    def _ask(self) -> Requests:
        if self._requests is None:
            self._requests = self._start()
        return self._requests

    def _prompt(self) -> Tokens:
        """Return the tokens [B, L] that are known, those given to pending steps included."""
        return np.concatenate([self._known, *(tokens[:, None] for tokens in self._given)], axis=1)

    def _settle(self) -> None:
        """Make the pending steps' tokens known; those of the engine's own choice take a request."""
        known, own = self._prompt(), self._own
        if own:
            self.sync()
        if self._answer is not None:
            answer = complete(self._answer, len(known), own + 1)
            known = np.concatenate([known, answer[:, :own]], axis=1)
            self._fed = answer[:, own]
        self._known, self._given, self._own, self._answer = known, [], 0, None


def complete(answer: Sequence[Sequence[int]], sequences: int, count: int) -> Tokens:
    """Return an answer [B, N]; raises RuntimeError unless each sequence has all its tokens."""
    lengths = sorted({len(tokens) for tokens in answer})
    if lengths != [count] or len(answer) != sequences:
        raise RuntimeError(
            f"asked for {count} tokens of each of {sequences} sequences, it answered with {lengths} of "
            f"{len(answer)}: a shorter run would pass for a faster one"
        )
    return np.array(answer, np.int32)
