"""What of a database of trials decides how TVM compiles: the fastest schedule of each program, no time."""

import json

from backends.tvm.database import TRIALS, WORKLOADS, choose_fastest


def database(*trials: tuple[int, str, list[float] | None]) -> dict[str, bytes]:
    lines = [json.dumps([program, [schedule, seconds, {}, []]]) for program, schedule, seconds in trials]
    return {WORKLOADS: b'["one", "IR"]\n["two", "IR"]\n', TRIALS: "\n".join(lines).encode()}


def test_the_fastest_schedule_of_each_program_is_chosen() -> None:
    trials = [(0, "a", [3.0, 1.0]), (1, "b", [1.0]), (0, "c", [1.9, 1.9]), (1, "d", None), (0, "e", [1e10])]
    chosen = choose_fastest(database(*trials))
    assert json.loads(chosen) == {"one": "c", "two": "b"}
    assert json.loads(choose_fastest(database(trials[3]))) == {"one": None, "two": None}


def test_neither_times_nor_slower_trials_change_it() -> None:
    assert choose_fastest(database((1, "b", [1.0]), (0, "a", [1.0]))) == choose_fastest(
        database((0, "a", [2.0]), (0, "c", [4.0]), (1, "b", [0.5]))
    )
