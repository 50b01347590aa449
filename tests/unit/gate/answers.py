"""A golden of random numbers, and an engine that answers it with whatever a test adds."""

from collections.abc import Callable

import numpy as np

from workbench.checking.checks import FORCED_STEPS, repeated_rows
from workbench.checking.golden import Golden

VOCAB, HIDDEN, ROWS, BATCH = 400, 256, 4, 6
PROMPTS, LENGTHS = (20, 40), (40, 17, 3)
NOISE, SHIFT = 0.01, 0.2
MUTANTS = ("newest key dropped", "one key too many")

Answer = Callable[[str, int, int, int], np.ndarray | float]
"""What an engine adds to golden logits of a row: (phase, length of the check, step, row) -> [V]."""


def make_golden() -> Golden:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    forced = {length + step for length in LENGTHS for step in range(FORCED_STEPS)}
    positions = np.asarray(sorted(forced | {prompt - 1 for prompt in PROMPTS}))
    return Golden(
        dtype="bfloat16",
        hidden_size=HIDDEN,
        tokens=rng.integers(0, VOCAB, (ROWS, 40 + FORCED_STEPS)).astype(np.int32),
        decoy=rng.integers(0, VOCAB, (1, 40)).astype(np.int32),
        prompts=np.asarray(PROMPTS),
        lengths=np.asarray(LENGTHS),
        positions=positions,
        logits=normal(ROWS, len(positions), VOCAB),
        columns=np.arange(VOCAB),
        mutants=np.asarray(MUTANTS),
        prefill_shift=SHIFT * normal(len(MUTANTS), len(PROMPTS), ROWS, VOCAB),
        decode_shift=SHIFT * normal(len(MUTANTS), len(LENGTHS), ROWS, FORCED_STEPS, VOCAB),
        reference_error=np.full((ROWS, len(positions)), NOISE, np.float32),
    )


class FakeEngine:
    """Answers golden logits plus rounding noise plus whatever a test adds."""

    def __init__(
        self, golden: Golden, answer: Answer = lambda *_: 0.0, noise: float = NOISE, batch: int = BATCH
    ) -> None:
        self.golden, self.answer, self.noise, self.batch = golden, answer, noise, batch
        self.rng = np.random.default_rng(1)
        self.phase, self.length, self.start = "prefill", 0, 0
        self.calls: list[tuple[str, object]] = []

    def stage(self, tokens: np.ndarray) -> None:
        self.calls.append(("stage", tokens))
        self.staged = tokens.shape[1]

    def prefill(self) -> None:
        self.phase, self.length, self.start = "prefill", self.staged, self.staged

    def feed(self, tokens: np.ndarray) -> None:
        self.calls.append(("feed", (self.length, tokens)))

    def decode(self) -> None:
        self.phase = "decode"
        self.length += 1

    def rewind(self, length: int) -> None:
        self.calls.append(("rewind", length))
        self.length = self.start = length

    def poison(self, length: int) -> None:
        self.calls.append(("poison", length))

    def logits(self) -> np.ndarray:
        golden = self.golden
        at = int(np.searchsorted(golden.positions, self.length - 1))
        rows = golden.logits[repeated_rows(self.batch, ROWS), at]
        step = self.length - 1 - self.start
        added = [
            self.answer(self.phase, self.start, step, row) + np.zeros(VOCAB) for row in range(self.batch)
        ]
        noise = self.noise * self.rng.standard_normal(rows.shape)
        return (rows + noise + np.stack(added)).astype(np.float32)

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def shift_of(golden: Golden, mutant: int, phase: str, length: int, step: int, row: int) -> np.ndarray:
    if phase == "prefill":
        return golden.prefill_shift[mutant, PROMPTS.index(length), repeated_rows(BATCH, ROWS)[row]]
    return golden.decode_shift[mutant, LENGTHS.index(length), repeated_rows(BATCH, ROWS)[row], step]
