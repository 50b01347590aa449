"""Golden against transformers, and mutants against what is known of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from backends.contract import Shapes  # noqa: E402
from models.checkpoint import Weights, open_checkpoint  # noqa: E402
from models.config import PRESETS, DecoderConfig, RopeScaling  # noqa: E402
from models.errors import UserError  # noqa: E402
from models.weights import write_preset  # noqa: E402
from workbench.checking import arithmetic, streams, sweep  # noqa: E402
from workbench.checking.arithmetic import attend_plainly  # noqa: E402
from workbench.checking.checks import FORCED_STEPS, capacity_for  # noqa: E402
from workbench.checking.golden import Golden, compute_golden  # noqa: E402
from workbench.checking.mutants import MUTANTS, NO_FAULT, Mutant, mutants_of  # noqa: E402

SHAPES = Shapes(2, (20, 40), capacity_for(40, 0))
SMALL = replace(PRESETS["tiny"], layers=2, vocab_size=384)
FAMILIES: dict[str, DecoderConfig] = {
    "llama": replace(SMALL, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 64), tied_embeddings=True),
    "mistral": replace(SMALL, family="mistral", rope_theta=1e6),
    "qwen2": replace(SMALL, family="qwen2", qkv_bias=True, norm_eps=1e-6, heads=6, kv_heads=2, head_dim=32),
    "qwen3": replace(SMALL, family="qwen3", qk_norm=True, norm_eps=1e-6, head_dim=48),
}


def make(
    config: DecoderConfig, folder: Path, monkeypatch: pytest.MonkeyPatch, dtype: str = "float32"
) -> Weights:
    monkeypatch.setitem(PRESETS, "small", config)
    write_preset("small", dtype, folder)
    return open_checkpoint(folder, dtype)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values, dtype=np.float64).mean()))


def hf_logits(folder: Path, golden: Golden, dtype: "torch.dtype") -> np.ndarray:
    """Compute transformers' logits [R, N, V] at the checked positions."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    with torch.inference_mode():
        logits = model(torch.from_numpy(golden.tokens).long()).logits
    return logits[:, golden.positions].double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_golden_is_what_transformers_computes(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = FAMILIES[family]
    if family == "qwen2":
        config = replace(config, hidden_size=192)
    golden = compute_golden(make(config, tmp_path / "m", monkeypatch), SHAPES, mutants=())
    theirs = hf_logits(tmp_path / "m", golden, torch.float32)
    assert rms(golden.logits - theirs) < 3e-6 * rms(theirs)


def test_goldens_error_is_far_below_that_of_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = compute_golden(make(SMALL, tmp_path / "m", monkeypatch, "bfloat16"), SHAPES, mutants=())
    exact = hf_logits(tmp_path / "m", golden, torch.float64)
    assert rms(golden.logits - exact) < 1e-3 * rms(golden.reference_error)
    assert 1e-3 < rms(golden.reference_error) / rms(exact) < 1e-1


def test_a_mutant_without_a_fault_is_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    golden = compute_golden(make(SMALL, tmp_path / "m", monkeypatch), SHAPES, mutants=(NO_FAULT,))
    for shift in (golden.prefill_shift, golden.decode_shift):
        assert np.abs(shift).max() < 1e-5 * rms(golden.logits)


def test_every_mutant_differs_from_golden_and_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    golden = compute_golden(make(SMALL, tmp_path / "m", monkeypatch), SHAPES)
    assert golden.mutants.tolist() == [mutant.name for mutant in MUTANTS]
    for shifts in (golden.prefill_shift, golden.decode_shift):
        flat = shifts.reshape(len(MUTANTS), -1).astype(np.float64)
        sizes = np.sqrt(np.square(flat).sum(1))
        cosines = flat @ flat.T / np.outer(sizes, sizes)
        assert sizes.min() > 1e-2 * np.sqrt(flat.shape[1]) * rms(golden.logits)
        assert np.abs(cosines - np.eye(len(MUTANTS))).max() < 0.7


def test_a_decode_sees_its_fault_in_the_forced_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model with one layer: what is cached comes from embeddings alone, so a prefill's last position that
    misses its newest key is the same as the last step of a decode that does.
    """
    weights = make(replace(SMALL, layers=1), tmp_path / "m", monkeypatch)
    dropped = (Mutant("dropped", last_key=-1),)
    length = SHAPES.prompts[-1] - FORCED_STEPS
    golden = compute_golden(weights, SHAPES, lengths=(length,), mutants=dropped)
    assert np.allclose(golden.decode_shift[0, 0, :, -1], golden.prefill_shift[0, -1], atol=1e-5)


def test_one_kv_head_has_nothing_to_permute():
    names = [mutant.name for mutant in mutants_of(replace(SMALL, kv_heads=1))]
    assert "KV heads permuted" not in names
    assert len(names) == len(MUTANTS) - 1


def test_a_large_vocabulary_keeps_some_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = replace(SMALL, vocab_size=10_000, layers=1)
    golden = compute_golden(make(config, tmp_path / "m", monkeypatch), SHAPES, lengths=(40,))
    assert golden.logits.shape[-1] == 10_000
    assert golden.columns[0] == 0
    assert golden.columns[-1] == 9_999
    assert len(set(golden.columns.tolist())) == golden.decode_shift.shape[-1] == 4096


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = make(SMALL, tmp_path / "m", monkeypatch)
    whole = compute_golden(weights, SHAPES, lengths=(40, 3))
    monkeypatch.setattr(arithmetic, "CHUNK_SCORES", 2 * SMALL.heads * 40 * 7)
    monkeypatch.setattr(arithmetic, "CHUNK_TOKENS", 10)
    cut = compute_golden(weights, SHAPES, lengths=(40, 3))
    assert np.allclose(cut.logits, whole.logits, atol=1e-5)
    assert np.allclose(cut.decode_shift, whole.decode_shift, atol=1e-5)
    assert np.allclose(cut.prefill_shift, whole.prefill_shift, atol=1e-5)


def test_a_long_prompt_computes_mutants_of_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = make(SMALL, tmp_path / "m", monkeypatch)
    whole = compute_golden(weights, SHAPES, lengths=(3,))
    monkeypatch.setattr(streams, "PREFILL_TOKENS", SHAPES.prompts[-1])
    fewer = compute_golden(weights, SHAPES, lengths=(3,))
    assert np.allclose(fewer.prefill_shift[:, 0], whole.prefill_shift[:, 0], atol=1e-5)
    assert np.allclose(fewer.prefill_shift[:, 1, 0], whole.prefill_shift[:, 1, 0], atol=1e-5)
    assert not fewer.prefill_shift[:, 1, 1].any()
    assert np.allclose(fewer.decode_shift, whole.decode_shift, atol=1e-5)


def test_what_is_not_computed_of_a_fault_is_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = make(replace(SMALL, layers=3), tmp_path / "m", monkeypatch)
    shapes = Shapes(3, (10, 24, 40), capacity_for(40, 0))
    monkeypatch.setattr(streams, "PREFILL_TOKENS", 80)  # 3, 3 and 2 rows
    short = compute_golden(weights, shapes, lengths=(40, 3))

    def plan(mutant: Mutant, tokens: "torch.Tensor", prompts: tuple[int, ...]) -> list[streams.Pack]:
        rows = {at: min(len(tokens), 80 // at) for at in prompts}
        return [
            streams.Pack([streams.Stream(mutant, tokens[: rows[at], :at], prompts=(at,))]) for at in prompts
        ]

    monkeypatch.setattr(streams, "plan_prefills", plan)
    whole = compute_golden(weights, shapes, lengths=(40, 3))
    assert short.prefill_shift.any((3,)).tolist() == whole.prefill_shift.any((3,)).tolist()
    assert np.allclose(short.prefill_shift, whole.prefill_shift, atol=1e-5)


def test_rows_of_a_golden_are_the_golden_of_fewer_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = make(SMALL, tmp_path / "m", monkeypatch, "bfloat16")
    four, one = (compute_golden(weights, replace(SHAPES, batch=rows)) for rows in (4, 1))
    sliced = four.first_rows(1)
    assert np.array_equal(sliced.tokens, one.tokens)
    assert np.array_equal(sliced.decoy, one.decoy)
    size = rms(one.logits)
    for name in ("logits", "prefill_shift", "decode_shift"):
        assert np.allclose(getattr(sliced, name), getattr(one, name), atol=1e-5 * size)
    assert np.allclose(sliced.reference_error, one.reference_error, rtol=0.2)


def test_where_torch_overflows_one_rounding_of_golden_is_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    weights = make(SMALL, tmp_path / "m", monkeypatch, "float16")
    usual = compute_golden(weights, SHAPES, mutants=())

    def overflow(q: "torch.Tensor", k: "torch.Tensor", v: "torch.Tensor") -> "torch.Tensor":
        out = attend_plainly(q, k, v)
        out[0] = float("inf")
        return out

    monkeypatch.setattr(sweep, "attend_plainly", overflow)
    golden = compute_golden(weights, SHAPES, mutants=())
    assert np.array_equal(golden.reference_error[1], usual.reference_error[1])
    expected = 2.0**-10 * np.sqrt(np.square(golden.logits[0]).mean(-1))
    assert np.allclose(golden.reference_error[0], expected, rtol=1e-5)
    # No laxer than where torch does not overflow, and not so strict that no right engine passes.
    assert 1 / 3 < np.median(golden.reference_error[0] / usual.reference_error[0]) < 1.5


def test_a_model_that_overflows_float32_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    weights = make(SMALL, tmp_path / "m", monkeypatch)
    run_through = sweep.run_through

    def overflow(*arguments: Any) -> sweep.Ends:
        ends = run_through(*arguments)
        return replace(ends, norm=ends.norm * 1e38)

    monkeypatch.setattr(sweep, "run_through", overflow)
    with pytest.raises(UserError, match="no numbers even in float32"):
        compute_golden(weights, SHAPES, mutants=())
