"""What the gate says of an engine that is right, faulty, imprecise or absurd."""

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.gate.answers import BATCH, LENGTHS, MUTANTS, NOISE, PROMPTS, ROWS, VOCAB, FakeEngine, shift_of
from workbench import gate
from workbench.checking import judgement
from workbench.checking.checks import FORCED_STEPS, repeated_rows
from workbench.checking.golden import Golden
from workbench.gate import verify


def test_an_engine_with_torchs_rounding_passes(golden: Golden):
    verdict = verify(FakeEngine(golden), golden, BATCH)
    assert verdict.passed
    assert verdict.reason is None
    assert verdict.error_ratio == pytest.approx(1.0, abs=0.1)
    assert set(verdict.projections) == set(MUTANTS)
    assert all(abs(value) < 0.05 for value in verdict.projections.values())
    assert verdict.blind == {}


def test_an_engine_without_any_error_passes(golden: Golden):
    verdict = verify(FakeEngine(golden, noise=0.0), golden, BATCH)
    assert verdict.passed
    assert verdict.error_ratio == 0.0
    assert verdict.projections == dict.fromkeys(MUTANTS, 0.0)
    assert verdict.blind == {}


@pytest.mark.parametrize("mutant", range(len(MUTANTS)))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_fault_is_named_with_its_phase_and_length(golden: Golden, mutant: int, phase: str):
    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        return shift_of(golden, mutant, where, length, step, row) if where == phase else 0.0

    verdict = verify(FakeEngine(golden, answer), golden, BATCH)
    assert not verdict.passed
    assert verdict.reason is not None
    assert verdict.reason.startswith(MUTANTS[mutant])
    assert f"({phase} " in verdict.reason
    assert "projection 1.00)" in verdict.reason
    assert verdict.projections[MUTANTS[mutant]] == pytest.approx(1.0, abs=0.05)
    assert verdict.projections[MUTANTS[1 - mutant]] < 0.3


def test_a_fault_at_one_length_alone_is_found_there(golden: Golden):
    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        return shift_of(golden, 0, where, length, step, row) if (where, length) == ("decode", 17) else 0.0

    reason = verify(FakeEngine(golden, answer), golden, BATCH).reason
    assert reason == "newest key dropped (decode at length 17: projection 1.00)"


def test_a_fault_in_one_step_of_one_row_is_found_there(golden: Golden):
    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        hit = (where, length, step, row) == ("decode", 3, 13, 5)
        return shift_of(golden, 0, where, length, step, row) if hit else 0.0

    reason = verify(FakeEngine(golden, answer), golden, BATCH).reason
    assert reason is not None
    assert reason.startswith("newest key dropped (decode at length 3, step 14 of 16, row 5: projection 1.")


def test_a_fault_hidden_under_rounding_is_called_blind_not_wrong(golden: Golden):
    coarse = replace(golden, reference_error=golden.reference_error * 1000)
    verdict = verify(FakeEngine(coarse, noise=1000 * NOISE), coarse, BATCH)
    assert verdict.passed
    assert set(verdict.blind) == set(MUTANTS)
    assert set(verdict.blind[MUTANTS[0]]) >= {"everything", "prefill of 20", "decode at length 3"}
    assert verdict.projections == dict.fromkeys(MUTANTS, 0.0)


@pytest.mark.parametrize(("noise", "passed"), [(2.6, True), (3.4, False)])
def test_an_error_beyond_three_times_torchs_is_wrong(golden: Golden, noise: float, passed: bool):
    verdict = verify(FakeEngine(golden, noise=noise * NOISE), golden, BATCH)
    assert verdict.passed is passed
    assert verdict.error_ratio == pytest.approx(noise, rel=0.1)
    if not passed:
        assert verdict.reason is not None
        assert verdict.reason.startswith("error 3.")
        assert "times that of torch in the same dtype (" in verdict.reason


@pytest.mark.parametrize(("times", "passed"), [(3.6, True), (4.2, False)])
def test_an_error_in_one_row_of_one_step_is_wrong(golden: Golden, times: float, passed: bool):
    wave = times * NOISE * np.sign(np.random.default_rng(2).standard_normal(VOCAB))

    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        return wave if (where, length, step, row) == ("decode", 17, 4, 2) else 0.0

    verdict = verify(FakeEngine(golden, answer), golden, BATCH)
    assert verdict.passed is passed
    assert verdict.error_ratio is not None and verdict.error_ratio < 3
    assert passed or str(verdict.reason).endswith("(decode at length 17, step 5 of 16, row 2)")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_logits_that_are_no_numbers_are_wrong(golden: Golden, value: float):
    def answer(where: str, length: int, step: int, row: int) -> float:
        return value if (where, length, step, row) == ("decode", 3, 0, 0) else 0.0

    verdict = verify(FakeEngine(golden, answer), golden, BATCH)
    assert not verdict.passed
    assert verdict.reason == "NaN, infinite or absurd logits (decode at length 3, position 3)"
    assert verdict.error_ratio is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_error_of_torch_that_bounds_nothing_verifies_nothing(golden: Golden, value: float):
    error = golden.reference_error.copy()
    error[0, 3] = value
    verdict = verify(FakeEngine(golden), replace(golden, reference_error=error), BATCH)
    assert not verdict.passed
    assert verdict.reason is not None
    assert verdict.reason.startswith("cannot be verified: ")


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
@pytest.mark.parametrize("name", ["references", "errors"])
def test_a_ratio_that_is_no_number_is_beyond_every_limit(golden: Golden, name: str, value: float):
    (first, *others) = gate.run_checks(FakeEngine(golden), golden, BATCH)
    broken = getattr(first, name).copy()
    broken[0, 0] = value
    reason = judgement.name_error([*others, replace(first, **{name: broken})])
    if (name, value) == ("errors", 0.0):
        assert reason is None
    else:
        assert reason is not None
        assert first.name in reason
        verdict = judgement.judge([*others, replace(first, **{name: broken})], golden)
        assert not verdict.passed
        assert verdict.error_ratio is None or value == 0.0


def test_a_huge_error_of_torch_is_still_a_bound(golden: Golden):
    huge = replace(golden, reference_error=np.full_like(golden.reference_error, 1e25))
    verdict = verify(FakeEngine(golden), huge, BATCH)  # its square is beyond float32
    assert verdict.passed
    assert verdict.error_ratio == pytest.approx(NOISE / 1e25, rel=0.1)


def test_logits_of_another_shape_are_wrong(golden: Golden):
    class Narrow(FakeEngine):
        def logits(self) -> np.ndarray:
            return super().logits()[:, :-1]

    verdict = verify(Narrow(golden), golden, BATCH)
    assert not verdict.passed
    assert verdict.reason is not None
    assert verdict.reason.startswith(f"logits of shape [{BATCH}, {VOCAB - 1}], not [{BATCH}, {VOCAB}]")


def test_a_golden_without_mutants_still_bounds_the_error(golden: Golden):
    bare = replace(
        golden,
        mutants=golden.mutants[:0],
        prefill_shift=golden.prefill_shift[:0],
        decode_shift=golden.decode_shift[:0],
    )
    assert verify(FakeEngine(bare), bare, BATCH).passed
    assert not verify(FakeEngine(bare, noise=5 * NOISE), bare, BATCH).passed


def test_the_engine_is_driven_as_the_contract_says(golden: Golden):
    engine, progress = FakeEngine(golden), []
    verify(engine, golden, BATCH, lambda done, total: progress.append((done, total)))
    batch, fed = repeated_rows(BATCH, ROWS), []
    for index, (name, value) in enumerate(engine.calls):
        if name == "feed":
            position, tokens = value
            assert np.array_equal(tokens, golden.tokens[batch, position])
            fed.append(position)
        if name == "stage":
            again = engine.calls[index - 1][0] == "stage"  # over what the other sequence left
            assert again or engine.calls[index - 1] == ("poison", 0)
            wanted = (golden.tokens[batch], golden.decoy[np.zeros_like(batch)])
            assert any(np.array_equal(value, each[:, : value.shape[1]]) for each in wanted)
    assert fed == [length + step for length in (40, *LENGTHS) for step in range(FORCED_STEPS)]
    names = [name for name, _ in engine.calls]
    rewinds = [index for index, name in enumerate(names) if name == "rewind"]
    assert [engine.calls[index][1] for index in rewinds] == list(LENGTHS)
    assert all(engine.calls[index + 1] == ("poison", engine.calls[index][1]) for index in rewinds)
    assert [done for done, _ in progress] == list(range(1, progress[-1][1] + 1))


def test_a_length_beyond_every_prompt_is_reached_by_forced_steps(golden: Golden):
    short = replace(golden, prompts=golden.prompts[:1], prefill_shift=golden.prefill_shift[:, :1])
    engine, progress = FakeEngine(short), []
    assert verify(engine, short, BATCH, lambda done, total: progress.append((done, total))).passed
    moves = [(name, value) for name, value in engine.calls if name in ("rewind", "poison") and value]
    assert moves == [(name, known) for known in (20, 17, 3) for name in ("rewind", "poison")]
    fed = [value[0] for name, value in engine.calls if name == "feed"]
    assert fed == [*range(20, 56), *range(17, 33), *range(3, 19)]
    assert progress == [(done, 5) for done in range(1, 6)]


def test_every_prompt_is_prefilled_into_poison_and_over_another_sequence(golden: Golden):
    class Remembering(FakeEngine):
        """Keeps what the cache held before each prefill whose logits are read."""

        held, before = "nothing", "nothing"

        def poison(self, length: int) -> None:
            self.held = "poison" if length == 0 else self.held

        def prefill(self) -> None:
            super().prefill()
            tokens = self.calls[-1][1]
            self.before, self.held = self.held, str(tokens[:, : PROMPTS[0]].tolist())

        def logits(self) -> np.ndarray:
            if self.phase == "prefill":
                seen.append((self.length, self.before))
            return super().logits()

    seen: list[tuple[int, str]] = []
    verify(Remembering(golden), golden, BATCH)
    decoy = str([golden.decoy[0, : PROMPTS[0]].tolist()] * BATCH)
    assert seen == [(prompt, held) for held in ("poison", decoy) for prompt in PROMPTS]


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("mutant", [None, 0])
def test_rows_beyond_those_of_an_engine_change_no_judgement(golden: Golden, batch: int, mutant: int | None):
    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        return 0.0 if mutant is None else shift_of(golden, mutant, where, length, step, row)

    own = golden.first_rows(batch)
    verdicts = [verify(FakeEngine(golden, answer, batch=batch), each, batch) for each in (own, golden)]
    assert verdicts[0] == verdicts[1]
    assert verdicts[0].passed is (mutant is None)


def test_a_golden_of_too_few_rows_is_a_mistake(golden: Golden):
    with pytest.raises(ValueError, match="of 2 rows cannot serve 3"):
        verify(FakeEngine(golden, batch=3), golden.first_rows(2), 3)
