"""What is made of faults that stand out of rounding more or less, in all of a check or in a part of it."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.gate.answers import (
    BATCH,
    LENGTHS,
    MUTANTS,
    PROMPTS,
    SHIFT,
    VOCAB,
    Answer,
    FakeEngine,
    shift_of,
)
from workbench.checking.golden import Golden
from workbench.checking.judgement import POISONED, Verdict
from workbench.gate import verify

DROPPED, TOO_MANY = range(2)
PREFILLS = {f"prefill of {length}" for length in PROMPTS}
DECODES = {f"decode at length {length}" for length in LENGTHS}


def judge_at(golden: Golden, rounding: float, answer: Answer = lambda *_: 0.0) -> Verdict:
    """Judge an engine whose rounding, like torch's, is so many times what the faults change."""
    noise = rounding * SHIFT
    alike = replace(golden, reference_error=np.full_like(golden.reference_error, noise))
    return verify(FakeEngine(alike, answer, noise=noise), alike, BATCH)


def planted(golden: Golden, mutant: int, place: tuple[object, ...], strength: float = 1.0) -> Answer:
    """Return what an engine adds that has a fault at (phase, length, step, row), None for all of them."""

    def answer(*at: object) -> np.ndarray | float:
        hit = all(wanted is None or wanted == found for wanted, found in zip(place, at, strict=True))
        return strength * shift_of(golden, mutant, *at) if hit else 0.0  # type: ignore[arg-type]

    return answer


@pytest.mark.parametrize(("strength", "passed"), [(0.42, True), (0.58, False)])
def test_half_a_fault_is_one_though_the_error_is_within_bounds(golden: Golden, strength: float, passed: bool):
    verdict = judge_at(golden, 0.5, planted(golden, DROPPED, ("decode", None, None, None), strength))
    assert verdict.error_ratio is not None and verdict.error_ratio < 2
    assert verdict.passed is passed
    assert verdict.projections[MUTANTS[DROPPED]] == pytest.approx(strength, abs=0.1)
    assert passed or str(verdict.reason).startswith(f"{MUTANTS[DROPPED]} (decode ")


@pytest.mark.parametrize(
    ("place", "where", "clear", "hidden"),
    [
        (("decode", 17, None, None), "decode at length 17", 2.2, 2.9),
        (("decode", 17, None, 5), "decode at length 17, row 5", 1.1, 1.5),
        (("decode", 17, 4, None), "decode at length 17, step 5 of 16", 0.54, 0.75),
        (("decode", 17, 4, 5), "decode at length 17, step 5 of 16, row 5", 0.26, 0.38),
        (("prefill", 40, None, None), "prefill of 40", 0.54, 0.75),
        (("prefill", 40, None, 5), "prefill of 40, row 5", 0.26, 0.38),
    ],
)
def test_a_fault_is_named_where_it_is_unless_rounding_hides_it(
    golden: Golden, place: tuple[object, ...], where: str, clear: float, hidden: float
):
    verdict = judge_at(golden, clear, planted(golden, DROPPED, place))
    assert str(verdict.reason).startswith(f"{MUTANTS[DROPPED]} ({where}: projection ")
    assert verdict.projections[MUTANTS[DROPPED]] == pytest.approx(1.0, abs=0.2)
    assert verdict.projections[MUTANTS[TOO_MANY]] < 0.3
    assert judge_at(golden, hidden, planted(golden, DROPPED, place)).passed


@pytest.mark.parametrize(
    ("rounding", "blind"),
    [(0.54, set()), (0.75, PREFILLS), (2.2, PREFILLS), (2.9, {"everything"} | PREFILLS | DECODES)],
)
def test_checks_at_which_rounding_hides_faults_are_called_blind(
    golden: Golden, rounding: float, blind: set[str]
):
    found = judge_at(golden, rounding).blind
    for mutant in MUTANTS:
        checks = {name.removesuffix(POISONED) for name in found.get(mutant, ())}
        assert checks == blind


def test_a_fault_that_explains_nearly_all_is_named_before_one_that_explains_some(golden: Golden):
    some = planted(golden, TOO_MANY, ("decode", 17, None, None), 0.6)
    all_of_it = planted(golden, DROPPED, ("decode", 3, None, 5))
    rest = 0.6 * SHIFT * np.random.default_rng(3).standard_normal(VOCAB)

    def answer(phase: str, length: int, step: int, row: int) -> np.ndarray | float:
        besides = rest if (phase, length) == ("decode", 17) else 0.0
        return some(phase, length, step, row) + all_of_it(phase, length, step, row) + besides

    reason = judge_at(golden, 0.05, answer).reason
    assert str(reason).startswith(f"{MUTANTS[DROPPED]} (decode at length 3, row 5: ")


def test_what_reads_beyond_its_keys_may_in_decode_be_a_page_never_written(golden: Golden):
    for phase, name in (
        ("prefill", MUTANTS[TOO_MANY]),
        ("decode", f"{MUTANTS[TOO_MANY]} or a page never written"),
    ):
        reason = judge_at(golden, 0.05, planted(golden, TOO_MANY, (phase, None, None, None))).reason
        assert str(reason).startswith(f"{name} ({phase} ")


def test_poison_names_a_fault_last(golden: Golden):
    class Forgetful(FakeEngine):
        """Looks as if it read too far where there was poison, and as if it dropped a key elsewhere."""

        poisoned = False

        def poison(self, length: int) -> None:
            self.poisoned = length == 0

        def stage(self, tokens: np.ndarray) -> None:
            super().stage(tokens)
            self.poisoned = self.poisoned and not np.array_equal(
                tokens[0], self.golden.decoy[0, : self.staged]
            )

    def answer(phase: str, length: int, step: int, row: int) -> np.ndarray | float:
        return shift_of(golden, TOO_MANY if engine.poisoned else DROPPED, phase, length, step, row)

    engine = Forgetful(golden, answer)
    assert str(verify(engine, golden, BATCH).reason).startswith(f"{MUTANTS[DROPPED]} (")


def test_a_fault_without_effect_at_a_length_is_not_looked_for_there(golden: Golden):
    decode = golden.decode_shift.copy()
    decode[DROPPED, 2] = 0.0  # as where there is no other key to see
    partly = replace(golden, decode_shift=decode)
    verdict = verify(FakeEngine(partly), partly, BATCH)
    assert verdict.passed
    assert verdict.blind == {MUTANTS[DROPPED]: ("decode at length 3",)}
    faulty = verify(FakeEngine(partly, planted(partly, DROPPED, ("decode", 17, None, None))), partly, BATCH)
    assert str(faulty.reason).startswith(f"{MUTANTS[DROPPED]} (decode at length 17: ")


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_a_verdict_does_not_depend_on_how_large_logits_are(golden: Golden, scale: float):
    scaled = replace(
        golden,
        **{
            name: (getattr(golden, name) * scale).astype(np.float32)
            for name in ("logits", "prefill_shift", "decode_shift", "reference_error")
        },
    )
    answer = planted(scaled, DROPPED, ("decode", 17, None, 5))
    found = verify(FakeEngine(scaled, answer, noise=0.01 * scale), scaled, BATCH)
    assert found.reason == f"{MUTANTS[DROPPED]} (decode at length 17, row 5: projection 1.00)"
    assert found.error_ratio == pytest.approx(20 / 6**0.5, rel=0.1)
