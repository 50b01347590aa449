"""An engine that answers whole requests, driven by the calls of the contract, on a model that adds up."""

import numpy as np
import pytest

from backends.contract import Shapes
from backends.trtllm.engine import RequestEngine, Rows
from workbench.checking.checks import workload_tokens
from workbench.harness import time_slope
from workbench.stopping import StopRule, WarmUp

VOCAB = 97
PROMPT = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.int32)


def following(tokens: list[int]) -> int:
    """Return the next token, which every token before it and its place decide."""
    return sum((place + 1) * token for place, token in enumerate(tokens)) % VOCAB


class Model:
    """Answers requests at once, and keeps what it was asked."""

    def __init__(self, short: int = 0) -> None:
        self.asked: list[tuple[Rows, int]] = []
        self.verified: list[tuple[Rows, Rows, int]] = []
        self.short = short
        self.closed = 0

    def generate(self, prompts: Rows, count: int) -> list[list[int]]:
        self.asked.append((prompts, count))
        answers = []
        for prompt in prompts:
            tokens = list(prompt)
            for _ in range(count):
                tokens.append(following(tokens))
            answers.append(tokens[len(prompt) :])
        answers[-1] = answers[-1][: count - self.short]
        return answers

    def logits(self, prompts: Rows, forced: Rows, count: int) -> np.ndarray:
        self.verified.append((prompts, forced, count))
        rows = np.zeros((len(prompts), VOCAB), np.float32)
        for row, (prompt, given) in enumerate(zip(prompts, forced, strict=True)):
            tokens = [*prompt, *given]
            while len(tokens) < len(prompt) + count - 1:
                tokens.append(following(tokens))
            rows[row, following(tokens)] = 1.0
        return rows

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def engine(model: Model) -> RequestEngine:
    return RequestEngine(Shapes(2, (4,), 40), VOCAB, lambda: model)


def chosen(logits: np.ndarray) -> list[int]:
    return [int(token) for token in logits.argmax(axis=1)]


def test_nothing_is_started_before_the_first_request() -> None:
    started = []
    engine = RequestEngine(Shapes(1, (4,), 8), VOCAB, lambda: started.append(1) or Model())
    engine.stage(PROMPT[:1])
    engine.sync()
    engine.prefill()
    engine.close()
    assert not started
    engine.sync()
    assert started == [1]


def test_own_steps_are_one_request_when_they_are_waited_for(engine: RequestEngine, model: Model) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    engine.sync()
    assert model.asked == [(PROMPT.tolist(), 1)]
    for _ in range(3):
        engine.decode()
    assert len(model.asked) == 1
    engine.sync()
    engine.sync()
    # The token that the first step takes is chosen after the prompt, as the last one is after the last step.
    assert model.asked[1:] == [(PROMPT.tolist(), 4)]


def test_prefill_over_another_sequence_runs_that_one_first(engine: RequestEngine, model: Model) -> None:
    decoy = PROMPT + 10
    engine.stage(decoy)
    engine.prefill()
    engine.stage(PROMPT)
    engine.prefill()
    engine.logits()
    assert model.asked == [(decoy.tolist(), 1)]
    assert model.verified == [(PROMPT.tolist(), [[], []], 1)]  # the first to come after it


def test_logits_are_those_of_the_engines_own_tokens(engine: RequestEngine) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    tokens = PROMPT.tolist()
    for _ in range(4):
        assert chosen(engine.logits()) == [following(row) for row in tokens]
        tokens = [[*row, following(row)] for row in tokens]
        engine.decode()
    assert chosen(engine.logits()) == [following(row) for row in tokens]


def test_forced_steps_are_forced_one_by_one_after_the_length_rewound_to(
    engine: RequestEngine, model: Model
) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    engine.rewind(2)
    for count, token in enumerate((10, 11, 12), 1):
        engine.feed(np.array([token, token + 20], np.int32))
        engine.decode()
        forced = [list(range(10, 10 + count)), list(range(30, 30 + count))]
        expected = [following([1, 2, *forced[0]]), following([5, 6, *forced[1]])]
        assert chosen(engine.logits()) == expected
        # Token by token after the length that was rewound to: the last of them by a decode step.
        assert model.verified[-1] == ([[1, 2], [5, 6]], forced, count + 1)
    assert not model.asked


def test_rewinding_forgets_what_lies_beyond_and_keeps_what_was_generated(engine: RequestEngine) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    for _ in range(5):
        engine.decode()
    engine.rewind(6)
    engine.feed(np.array([3, 3], np.int32))
    engine.decode()
    tokens = PROMPT.tolist()
    for _ in range(2):
        tokens = [[*row, following(row)] for row in tokens]
    assert chosen(engine.logits()) == [following([*row, 3]) for row in tokens]
    with pytest.raises(ValueError, match="rewound to 8, but only 7 tokens are known"):
        engine.rewind(8)


def test_poison_is_another_sequence_in_the_whole_cache(engine: RequestEngine, model: Model) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    engine.poison(4)
    ((prompts, count),) = model.asked
    assert (np.array(prompts).shape, count) == ((2, 40), 1)
    for seed in range(4):  # of other tokens than those that are checked and timed
        assert (workload_tokens(VOCAB, 2, 40, seed) != prompts).mean() > 0.9
    engine.logits()
    assert model.verified == [(PROMPT.tolist(), [[], []], 1)]


def test_cache_can_be_filled_from_nothing(engine: RequestEngine, model: Model) -> None:
    engine.rewind(0)
    engine.feed(np.array([3, 4], np.int32))
    engine.decode()
    assert chosen(engine.logits()) == [following([3]), following([4])]
    assert model.verified == [([[3], [4]], [[], []], 1)]


def test_an_answer_of_too_few_tokens_is_no_time() -> None:
    engine = RequestEngine(Shapes(2, (4,), 40), VOCAB, lambda: Model(short=1))
    engine.stage(PROMPT)
    engine.prefill()
    engine.sync()
    with pytest.raises(RuntimeError, match=r"asked for 1 tokens of each of 2 sequences, .* \[0, 1\] of 2"):
        engine.rewind(2)


class Clock:
    """Counts requests as time: a trip of 100, and 1 for each token."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def now(self) -> float:
        return float(sum(100 + count for _, count in self.model.asked))

    def fence(self, engine: RequestEngine) -> None:
        engine.sync()


def test_slope_is_the_time_of_the_steps_that_a_chain_has(engine: RequestEngine, model: Model) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    model.asked.clear()
    rules = {"warm_up": WarmUp(1e9, cap=2), "stop": StopRule(1e9, floor=10, cap=10)}
    samples = time_slope(engine, Clock(model), 4, 2, 32, PROMPT[:, -1], **rules)
    assert samples.samples_s == (1.0,) * 10
    # Each prompt is the first 2 tokens and the one fed, so the first of the steps is in its prefill.
    prompts = [[1, 2, 4], [5, 6, 8]]
    assert model.asked == [(prompts, 2), (prompts, 34)] * 12


def test_closing_ends_the_process_once(engine: RequestEngine, model: Model) -> None:
    engine.stage(PROMPT)
    engine.prefill()
    engine.sync()
    engine.close()
    engine.close()
    assert model.closed == 1
