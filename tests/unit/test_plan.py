"""The plan: which engines a workload needs, and what is refused."""

from dataclasses import replace

import pytest

from models.config import PRESETS
from models.errors import UserError
from workbench.checking.checks import FORCED_STEPS, capacity_for
from workbench.plan import CPU_DEFAULT, MOST_SEQUENCES, PHASES, PlannedRow, Workload, plan

TINY = PRESETS["tiny"]


def workload(**changes: object) -> Workload:
    values = {"phases": PHASES, "batches": (1,), "prompts": (64,), "contexts": (128,), "steps": 32}
    return Workload(**(values | changes))  # type: ignore[arg-type]


def test_default_needs_one_engine_with_both_rows() -> None:
    (group,) = plan(TINY, CPU_DEFAULT)
    assert group.shapes.prompts == (64, 128)
    assert group.shapes.capacity == 128 + 32
    assert group.rows == (PlannedRow("prefill", 1, 64, None), PlannedRow("decode", 1, 128, 32))


def test_each_batch_and_context_has_an_engine_of_its_own() -> None:
    groups = plan(TINY, workload(batches=(1, 8), contexts=(128, 256)))
    assert [(group.shapes.batch, group.shapes.capacity) for group in groups] == [
        (1, 160),
        (1, 288),
        (8, 160),
        (8, 288),
    ]


def test_prompt_goes_to_the_smallest_engine_that_holds_it() -> None:
    groups = plan(TINY, workload(prompts=(64, 200, 300), contexts=(128, 256)))
    assert [group.shapes.prompts for group in groups] == [(64, 128), (200, 256), (300,)]
    (group,) = plan(TINY, workload(prompts=(128,)))
    assert [row.length for row in group.rows] == [128, 128]


def test_every_row_is_planned_once() -> None:
    wanted = workload(batches=(1, 2), prompts=(16, 500), contexts=(64, 256))
    rows = [row for group in plan(TINY, wanted) for row in group.rows]
    assert len(rows) == len(set(rows)) == 2 * (2 + 2)


def test_engine_has_room_for_the_timed_and_the_checked_steps() -> None:
    groups = plan(TINY, workload(steps=48, prompts=(64, 300, 400)))
    assert [group.shapes.capacity for group in groups] == [128 + 48, 400 + FORCED_STEPS + 1]
    for group in groups:
        longest = max(group.shapes.prompts)
        assert group.shapes.capacity >= longest + FORCED_STEPS
        for row in group.rows:
            assert group.shapes.capacity >= row.length + (row.steps or 0)


def test_one_phase_alone_plans_no_row_of_the_other() -> None:
    (prefill,) = plan(TINY, workload(phases=("prefill",)))
    assert [row.phase for row in prefill.rows] == ["prefill"]
    (decode,) = plan(TINY, workload(phases=("decode",)))
    assert [row.phase for row in decode.rows] == ["decode"]
    assert decode.shapes.prompts == (128,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": (0,)}, "--batch 0"),
        ({"prompts": (0, 4)}, "--prompt 0,4"),
        ({"contexts": (-1,)}, "--context -1"),
        ({"steps": 31}, "--steps 31"),
        ({"batches": ()}, "--batch : every value must be at least 1"),
        ({"batches": (1, MOST_SEQUENCES + 1)}, "--batch 65537: at most 65536"),
        ({"phases": ()}, "--phases : choose from"),
        ({"phases": ("prefill", "decod")}, "--phases prefill,decod: choose from"),
        ({"contexts": (128, 2048)}, "--context 2048 needs 2080 positions"),
        ({"prompts": (64, 2049)}, "--prompt 2049 needs 2066 positions"),
        ({"contexts": (TINY.max_positions,)}, "--context 2048 needs 2080 positions"),
        ({"prompts": (TINY.max_positions + 1,)}, "--prompt 2049 needs"),
        ({"contexts": (1,), "steps": 4096}, "take fewer --steps"),
    ],
)
def test_impossible_workloads_are_refused_in_one_line(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(TINY, workload(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_most_sequences_and_a_length_of_no_phase_asked_for_are_allowed() -> None:
    (group,) = plan(TINY, workload(phases=("prefill",), batches=(MOST_SEQUENCES,), contexts=(4096,)))
    assert group.shapes.batch == MOST_SEQUENCES
    (group,) = plan(TINY, workload(phases=("decode",), prompts=(4096,)))
    assert [row.phase for row in group.rows] == ["decode"]


@pytest.mark.parametrize(("positions", "advice"), [(33, "take fewer --steps"), (32, "that is too short")])
def test_fewer_steps_are_advised_where_one_position_leaves_room_for_the_fewest(
    positions: int, advice: str
) -> None:
    with pytest.raises(UserError, match=advice):
        plan(replace(TINY, max_positions=positions), workload(contexts=(1,), phases=("decode",), steps=64))


def test_a_model_too_short_for_any_step_is_not_told_to_take_fewer() -> None:
    with pytest.raises(UserError, match=r"--max-context 128 needs 160 positions.*too short for any"):
        plan(replace(TINY, max_positions=16), workload(contexts=(128,)), "--max-context")


def test_largest_allowed_context_is_named_and_is_allowed() -> None:
    with pytest.raises(UserError, match="use at most 2016"):
        plan(TINY, workload(contexts=(2048,)))
    assert plan(TINY, workload(contexts=(2016,)))[0].shapes.capacity == capacity_for(2016, 32)
