import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from workbench import gate, judgement
from workbench.checks import FORCED_STEPS
from workbench.gate import verify
from workbench.golden import Golden, is_whole, load_golden, save_golden
from workbench.packages import ROOT

VOCAB, HIDDEN, ROWS, BATCH = 400, 256, 4, 6
PROMPTS, LENGTHS = (20, 40), (40, 17, 3)
NOISE, SHIFT = 0.01, 0.2
MUTANTS = ("newest key dropped", "one key too many")

Answer = Callable[[str, int, int, int], np.ndarray | float]
"""What an engine adds to golden logits of a row: (phase, length of the check, step, row) -> [V]."""


@pytest.fixture(scope="module")
def golden() -> Golden:
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
        rows = golden.logits[np.arange(self.batch) % ROWS, at]
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
        return golden.prefill_shift[mutant, PROMPTS.index(length), row % ROWS]
    return golden.decode_shift[mutant, LENGTHS.index(length), row % ROWS, step]


def test_an_engine_with_torchs_rounding_passes(golden: Golden):
    verdict = verify(FakeEngine(golden), golden, BATCH)
    assert verdict.passed
    assert verdict.reason is None
    assert verdict.error_ratio == pytest.approx(1.0, abs=0.1)
    assert set(verdict.projections) == set(MUTANTS)
    assert all(abs(value) < 0.05 for value in verdict.projections.values())
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


def test_an_error_in_one_row_of_one_step_is_wrong(golden: Golden):
    wave = 8 * NOISE * np.sign(np.random.default_rng(2).standard_normal(VOCAB))

    def answer(where: str, length: int, step: int, row: int) -> np.ndarray | float:
        return wave if (where, length, step, row) == ("decode", 17, 4, 2) else 0.0

    verdict = verify(FakeEngine(golden, answer), golden, BATCH)
    assert not verdict.passed
    assert verdict.error_ratio is not None and verdict.error_ratio < 3
    assert verdict.reason is not None
    assert verdict.reason.endswith("(decode at length 17, step 5 of 16, row 2)")


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
    batch = np.arange(BATCH) % ROWS
    for name, value in engine.calls:
        if name == "feed":
            position, tokens = value
            assert np.array_equal(tokens, golden.tokens[batch, position])
        if name == "stage":
            wanted = (golden.tokens[batch], golden.decoy[np.zeros_like(batch)])
            assert any(np.array_equal(value, each[:, : value.shape[1]]) for each in wanted)
    names = [name for name, _ in engine.calls]
    rewinds = [index for index, name in enumerate(names) if name == "rewind"]
    assert [engine.calls[index][1] for index in rewinds] == list(LENGTHS)
    assert all(engine.calls[index + 1] == ("poison", engine.calls[index][1]) for index in rewinds)
    assert [done for done, _ in progress] == list(range(1, progress[-1][1] + 1))


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


def test_a_saved_golden_loads_as_it_was(golden: Golden, tmp_path: Path):
    path = tmp_path / "new" / "golden.npz"
    save_golden(golden, path)
    loaded = load_golden(path)
    assert verify(FakeEngine(loaded), loaded, BATCH) == verify(FakeEngine(golden), golden, BATCH)
    assert (loaded.dtype, loaded.hidden_size) == ("bfloat16", HIDDEN)
    assert np.array_equal(loaded.decode_shift, golden.decode_shift)
    assert {each.name for each in path.parent.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_that_cannot_be_written_leaves_the_old_one(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "golden.npz"
    save_golden(golden, path)

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save_golden(replace(golden, hidden_size=1), path)
    assert load_golden(path).hidden_size == HIDDEN
    assert {each.name for each in tmp_path.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_is_on_disk_before_it_has_its_name(
    golden: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path, synced = tmp_path / "golden.npz", []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_size, path.exists())))
    save_golden(golden, path)
    assert synced == [(path.stat().st_size, False)]


def test_what_a_killed_writer_left_is_written_over(golden: Golden, tmp_path: Path):
    path = tmp_path / "new" / "golden.npz"
    save_golden(golden, tmp_path / "source.npz")
    write_and_die = (
        "import os, sys; from pathlib import Path; import numpy; from workbench import golden\n"
        "source, path = map(Path, sys.argv[1:])\n"
        "numpy.savez = lambda file, **_: (file.write(b'half'), file.flush(), os._exit(7))\n"
        "golden.save_golden(golden.load_golden(source), path)\n"
    )
    command = [sys.executable, "-c", write_and_die, str(tmp_path / "source.npz"), str(path)]
    for _ in range(2):
        assert subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 7
        assert len([each for each in path.parent.iterdir() if not each.name.endswith(".lock")]) == 1
        assert not is_whole(path)
    save_golden(golden, path)
    assert is_whole(path)
    assert {each.name for each in path.parent.iterdir()} <= {"golden.npz", ".golden.npz.lock"}


def test_a_golden_that_was_cut_or_lacks_a_member_is_not_whole(golden: Golden, tmp_path: Path):
    path = tmp_path / "golden.npz"
    assert not is_whole(path)
    assert not is_whole(tmp_path)
    save_golden(golden, path)
    assert is_whole(path)
    content = path.read_bytes()
    for end in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:end])
        assert not is_whole(path)
    path.write_bytes(bytes(len(content)))  # a file system that lost the data but kept the length
    assert not is_whole(path)
    np.savez(path, dtype="bfloat16", hidden_size=1)
    assert not is_whole(path)
