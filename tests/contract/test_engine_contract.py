"""What every engine must do, whatever built it. The suite is frozen: backends change to pass it."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from backends import registry
from backends.contract import Engine, Shapes, Target
from models.checkpoint import Weights
from tests.contract.conftest import GATE_SHAPES, Contestant, forget_programs
from tests.contract.reference import FAMILIES, reference_logits

SHORT, LONG, CAPACITY = 5, 12, 32
SHAPES = Shapes(batch=3, prompts=(SHORT, LONG), capacity=CAPACITY)
TOKENS = np.random.default_rng(3).integers(0, 160, (3, CAPACITY), dtype=np.int32)
OTHER_TOKENS = np.random.default_rng(4).integers(0, 160, (3, CAPACITY), dtype=np.int32)

TOLERANCE = {"float32": 1e-5, "bfloat16": 0.02}
"""Largest error of logits, as a share of their root mean square; a wrong position or key gives far more."""


@pytest.fixture(scope="module")
def weights(contestant: Contestant, open_family: Callable[[str, str], Weights]) -> Weights:
    return open_family("llama", contestant.dtype)


@pytest.fixture(scope="module")
def loaded(contestant: Contestant, weights: Weights) -> Iterator[Engine]:
    engine = contestant.engine(weights, SHAPES)
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded: Engine) -> Engine:
    """Spoil the cache of the module's engine, so that no test lives on what another left there."""
    loaded.rewind(0)
    loaded.poison(0)
    return loaded


@pytest.fixture(scope="module")
def expected(weights: Weights) -> np.ndarray:
    """Logits [B, T, V] of TOKENS at every position."""
    return reference_logits(weights, TOKENS)


def relative_error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)))


def prefill(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    engine.stage(tokens)
    engine.prefill()
    return engine.logits()


def step(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    engine.feed(tokens)
    engine.decode()
    return engine.logits()


def test_prefill_logits_equal_the_reference(
    contestant: Contestant, engine: Engine, expected: np.ndarray
) -> None:
    for length in (LONG, SHORT, LONG):
        logits = prefill(engine, TOKENS[:, :length])
        assert logits.dtype == np.float32
        assert logits.shape == (3, 160)
        assert relative_error(logits, expected[:, length - 1]) < TOLERANCE[contestant.dtype]


def test_decode_goes_on_from_prefill_up_to_the_capacity(
    contestant: Contestant, engine: Engine, expected: np.ndarray
) -> None:
    prefill(engine, TOKENS[:, :SHORT])
    for position in range(SHORT, CAPACITY):
        logits = step(engine, TOKENS[:, position])
        assert relative_error(logits, expected[:, position]) < TOLERANCE[contestant.dtype], position


def test_decode_steps_equal_a_longer_prefill(contestant: Contestant, engine: Engine) -> None:
    longer = prefill(engine, TOKENS[:, :LONG])
    prefill(engine, TOKENS[:, :SHORT])
    for position in range(SHORT, LONG):
        logits = step(engine, TOKENS[:, position])
    assert relative_error(logits, longer) < TOLERANCE[contestant.dtype]


def test_decode_can_start_from_an_empty_cache(
    contestant: Contestant, engine: Engine, expected: np.ndarray
) -> None:
    for position in range(3):
        logits = step(engine, TOKENS[:, position])
        assert relative_error(logits, expected[:, position]) < TOLERANCE[contestant.dtype]


@pytest.mark.parametrize("length", [0, 1, SHORT, LONG - 1, LONG])
def test_rewound_and_poisoned_steps_equal_the_reference(
    contestant: Contestant, engine: Engine, expected: np.ndarray, length: int
) -> None:
    prefill(engine, TOKENS[:, :LONG])
    engine.rewind(length)
    engine.poison(length)
    for position in range(length, length + 4):
        logits = step(engine, TOKENS[:, position])
        assert relative_error(logits, expected[:, position]) < TOLERANCE[contestant.dtype]


def test_rewind_gives_the_same_logits_again(engine: Engine) -> None:
    prefill(engine, TOKENS[:, :LONG])
    first = [step(engine, TOKENS[:, LONG + i]) for i in range(3)]
    engine.rewind(LONG)
    again = [step(engine, TOKENS[:, LONG + i]) for i in range(3)]
    np.testing.assert_array_equal(first, again)


def test_rewind_forward_again_finds_what_was_cached(
    contestant: Contestant, engine: Engine, expected: np.ndarray
) -> None:
    prefill(engine, TOKENS[:, :LONG])
    engine.rewind(1)
    engine.rewind(LONG)
    logits = step(engine, TOKENS[:, LONG])
    assert relative_error(logits, expected[:, LONG]) < TOLERANCE[contestant.dtype]


def test_poison_reaches_every_position_it_names(contestant: Contestant, engine: Engine) -> None:
    prefill(engine, TOKENS[:, :LONG])
    clean = step(engine, TOKENS[:, LONG])
    engine.rewind(LONG)
    engine.poison(LONG - 1)
    poisoned = step(engine, TOKENS[:, LONG])
    assert np.isfinite(poisoned).all()
    assert relative_error(poisoned, clean) > 10 * TOLERANCE[contestant.dtype]


def test_without_feed_the_next_token_is_the_argmax(contestant: Contestant, engine: Engine) -> None:
    greedy = [prefill(engine, TOKENS[:, :SHORT])]
    for _ in range(6):
        engine.decode()
        greedy.append(engine.logits())
    engine.rewind(SHORT)
    for before, after in itertools.pairwise(greedy):
        best = np.sort(before, axis=-1)
        if (best[:, -1] == best[:, -2]).any():
            break  # a tie: which of the two is taken is the engine's own affair, and the texts part here
        forced = step(engine, before.argmax(-1).astype(np.int32))
        assert relative_error(forced, after) < TOLERANCE[contestant.dtype] / 10


def test_feed_overrides_the_greedy_token(
    contestant: Contestant, engine: Engine, expected: np.ndarray
) -> None:
    greedy = prefill(engine, TOKENS[:, :SHORT]).argmax(-1)
    assert (greedy != TOKENS[:, SHORT]).all(), "choose other tokens: these would be the greedy ones"
    engine.decode()
    unforced = engine.logits()
    engine.rewind(SHORT)
    forced = step(engine, TOKENS[:, SHORT])
    assert relative_error(forced, expected[:, SHORT]) < TOLERANCE[contestant.dtype]
    assert relative_error(unforced, expected[:, SHORT]) > 10 * TOLERANCE[contestant.dtype]


def test_rows_of_a_batch_are_independent(contestant: Contestant, engine: Engine) -> None:
    first = prefill(engine, TOKENS[:, :LONG])
    first_step = step(engine, TOKENS[:, LONG])
    mixed = np.where(np.array([[True], [False], [True]]), TOKENS, OTHER_TOKENS)
    second = prefill(engine, mixed[:, :LONG])
    second_step = step(engine, mixed[:, LONG])
    for before, after in ((first, second), (first_step, second_step)):
        np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=0, atol=1e-5)
        assert relative_error(after[1], before[1]) > 10 * TOLERANCE[contestant.dtype]


def test_logits_once_returned_do_not_change(engine: Engine) -> None:
    held = prefill(engine, TOKENS[:, :LONG])
    copy = held.copy()
    step(engine, TOKENS[:, LONG])
    np.testing.assert_array_equal(held, copy)


def test_staging_alone_changes_nothing(engine: Engine) -> None:
    before = prefill(engine, TOKENS[:, :LONG])
    engine.stage(OTHER_TOKENS[:, :LONG])
    np.testing.assert_array_equal(engine.logits(), before)
    after = step(engine, TOKENS[:, LONG])
    engine.rewind(LONG)
    np.testing.assert_array_equal(step(engine, TOKENS[:, LONG]), after)


def test_read_only_tokens_are_taken(engine: Engine) -> None:
    tokens = TOKENS.copy()
    tokens.flags.writeable = False
    prefill(engine, tokens[:, :SHORT])
    step(engine, tokens[:, SHORT])


def test_two_engines_of_one_process_do_not_meet(
    contestant: Contestant, engine: Engine, weights: Weights
) -> None:
    other = contestant.engine(weights, SHAPES)  # of the same artefact: the programs are the same, too
    mine = prefill(engine, TOKENS[:, :SHORT])
    prefill(other, OTHER_TOKENS[:, :SHORT])
    other.poison(0)
    other.close()
    np.testing.assert_array_equal(engine.logits(), mine)
    before = step(engine, TOKENS[:, SHORT])
    engine.rewind(SHORT)
    np.testing.assert_array_equal(step(engine, TOKENS[:, SHORT]), before)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_every_family_equals_the_reference(
    contestant: Contestant,
    open_family: Callable[[str, str], Weights],
    family: str,
) -> None:
    forget_programs()
    weights = open_family(family, contestant.dtype)
    engine = contestant.engine(weights, GATE_SHAPES)
    (prompt,) = GATE_SHAPES.prompts
    expected = reference_logits(weights, TOKENS[:2, : prompt + 3])
    logits = prefill(engine, TOKENS[:2, :prompt])
    assert relative_error(logits, expected[:, prompt - 1]) < TOLERANCE[contestant.dtype]
    for position in range(prompt, prompt + 3):
        logits = step(engine, TOKENS[:2, position])
        assert relative_error(logits, expected[:, position]) < TOLERANCE[contestant.dtype]
    engine.close()


def test_the_artefact_says_how_the_model_got_there(contestant: Contestant, weights: Weights) -> None:
    artefact = contestant.build(weights.config, SHAPES)
    assert artefact.definition in ("common", "own", "imported")
    assert artefact.provenance.split(":")[0] in ("stock", "configured", "patched")
    assert (artefact.config, artefact.shapes) == (weights.config, SHAPES)
    assert (artefact.target.device, artefact.target.dtype) == (contestant.device, contestant.dtype)
    assert dict(artefact.options) == contestant.options


def test_null_takes_every_call_and_computes_nothing(open_family: Callable[[str, str], Weights]) -> None:
    null = registry.find("null")
    assert null.probe().usable
    weights = open_family("llama", "float32")
    target = Target("cpu", "float32", "any")
    engine = null.load(null.build(weights.config, SHAPES, target, {}), weights)
    assert not prefill(engine, TOKENS[:, :SHORT]).any()
    engine.rewind(2)
    engine.poison(2)
    logits = step(engine, TOKENS[:, 2])
    engine.sync()
    engine.close()
    assert logits.dtype == np.float32
    assert logits.shape == (3, 160)
    assert not logits.any()
