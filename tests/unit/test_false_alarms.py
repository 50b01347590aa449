"""How often verdicts are wrong, drawn from processes that were really measured.

Each comparison takes ten processes of an A/A run for the noise floor and five others for each side, at
random: what is judged never helped to set its own threshold. A change is planted by scaling one side.

Of a machine that has no A/A run, the processes of its recorded rows stand for one: two or three like
processes a row, each as it lay beside the mean of its own row.
"""

import lzma
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from models.errors import UserError
from workbench import statistics
from workbench.ratios import samples
from workbench.record import OK
from workbench.store import parse_strictly, read_strictly
from workbench.tracking import verdict
from workbench.tracking.verdict import LEAST_CALIBRATION, LEAST_PROCESSES, judge, noise_floor

DATA = Path(__file__).resolve().parents[1] / "data"
RESULTS = Path(__file__).resolve().parents[2] / "results"
RECORDINGS = ("amd-epyc",)
POOLED = ("nvidia-h100-80gb-hbm3", "nvidia-h200")
PHASES = ("prefill", "decode")
PROCESSES = 20
COMPARISONS = 200
FALSE_AT_MOST = 0.02
FOUND_AT_LEAST = 0.95
QUIET = 0.01
"""The noise floor up to which a slow-down of 5 % must be found."""

Processes = list[tuple[float, ...]]


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw a tenth of the bootstrap samples: it moves the ends of intervals by little, and time counts."""
    for module in (statistics, verdict):
        monkeypatch.setattr(module, "DRAWS", 1000)


def recorded(name: str, phase: str) -> list[Processes]:
    """Return the processes of each row of a phase, or those of all rows as if of one."""
    if name in POOLED:
        rows = [row for path in (RESULTS / name).glob("*.jsonl") for row in read_strictly(path)]
        steady = [samples(row) for row in rows if row.phase == phase and row.status == OK]
        found = [[process for row in steady if len(row) > 1 for process in centred(row)]]
    else:
        found = [samples(row) for row in parse_strictly(recording(name), name) if row.phase == phase]
    assert found
    assert all(len(processes) >= PROCESSES for processes in found)
    return found


def recording(name: str) -> bytes:
    return lzma.decompress((DATA / f"{name}.jsonl.xz").read_bytes())


def centred(row: Sequence[Sequence[float]]) -> Processes:
    """Return a row's processes as shares of their mean, by their medians.

    From a mean of n that it helped to make, a process lies sqrt(1 - 1/n) as far as from the true one; that is
    undone, so that few processes a row do not make a machine look quiet.
    """
    medians = [float(np.median(process)) for process in row]
    mean, widen = np.exp(np.mean(np.log(medians))), math.sqrt(len(row) / (len(row) - 1))
    shares = [(median / mean) ** widen / median for median in medians]
    return [tuple(share * sample for sample in process) for process, share in zip(row, shares, strict=True)]


def made(between: float, seed: int, heavy: bool = False) -> Processes:
    """Make up processes that scatter by `between`, like normal values or, heavy-tailed, like Student's t."""
    generator = np.random.default_rng(seed)
    draw = generator.standard_t(3, PROCESSES) if heavy else generator.standard_normal(PROCESSES)
    within = 1 + 0.01 * np.abs(generator.standard_normal((PROCESSES, 50)))
    return [tuple(row) for row in np.exp(between * draw)[:, None] * within]


def verdicts(processes: Processes, factor: float, seed: int = 0) -> Counter[str]:
    """Count the verdicts of comparisons in which the later side takes `factor` times as long."""
    generator = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    for _ in range(COMPARISONS):
        drawn = [processes[index] for index in generator.permutation(len(processes))]
        base, later = drawn[LEAST_CALIBRATION:][:LEAST_PROCESSES], drawn[-LEAST_PROCESSES:]
        slowed = [tuple(factor * sample for sample in process) for process in later]
        found[judge(base, slowed, noise_floor(drawn[:LEAST_CALIBRATION])).kind] += 1
    return found


def false_share(found: Counter[str]) -> float:
    return (found["faster"] + found["slower"]) / found.total()


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", [*RECORDINGS, *POOLED])
def test_like_processes_raise_no_alarm(name: str, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # A noisy machine is given no verdict at all; the rule must hold without that, too.
    monkeypatch.setattr(verdict, "MOST_THRESHOLD", math.inf)
    for processes in recorded(name, phase):
        found = verdicts(processes, 1.0)
        assert false_share(found) <= FALSE_AT_MOST, found


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", [*RECORDINGS, POOLED[0]])  # tests/data/README.md says why not the other
def test_a_planted_slow_down_of_five_percent_is_found(name: str, phase: str) -> None:
    rows = [(noise_floor(processes), processes) for processes in recorded(name, phase)]
    quiet = [processes for floor, processes in rows if floor <= QUIET]
    if not quiet:
        least = min(floor for floor, _ in rows)
        pytest.skip(f"{name} has a noise floor of {least:.0%} in {phase}: 5 % are promised up to {QUIET:.0%}")
    for processes in quiet:
        found = verdicts(processes, 1.05)
        assert found["slower"] >= FOUND_AT_LEAST * COMPARISONS, found


def test_a_pooled_process_lies_as_far_from_the_mean_as_those_it_was_drawn_from() -> None:
    generator = np.random.default_rng(0)
    rows = [[[time] for time in np.exp(generator.normal(0, 0.01, 3))] for _ in range(3000)]
    pooled = [math.log(process[0]) for row in rows for process in centred(row)]
    assert np.std(pooled) == pytest.approx(0.01, rel=0.03)


@pytest.mark.parametrize("heavy", [False, True])
@pytest.mark.parametrize("between", [0.003, 0.02, 0.2])
def test_made_up_processes_raise_no_alarm_either(between: float, heavy: bool) -> None:
    found = verdicts(made(between, 1, heavy), 1.0)
    assert false_share(found) <= FALSE_AT_MOST, found


@pytest.mark.parametrize("noise", [0.03, 0.1])
def test_a_quiet_side_does_not_hide_the_noise_of_the_other(noise: float) -> None:
    generator, found = np.random.default_rng(0), Counter[str]()
    for _ in range(COMPARISONS):
        base, later = (
            [(math.exp(scatter * value),) for value in generator.standard_normal(LEAST_PROCESSES)]
            for scatter in (0.001, noise)
        )
        found[judge(base, later, 0.002).kind] += 1
    assert false_share(found) <= FALSE_AT_MOST, found


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_down_is_found_and_sameness_too_on_a_quiet_machine(seed: int) -> None:
    processes = made(0.004, seed)
    assert noise_floor(processes) <= QUIET
    assert verdicts(processes, 1.05)["slower"] >= FOUND_AT_LEAST * COMPARISONS
    assert verdicts(processes, 1.0)["same"] >= FOUND_AT_LEAST * COMPARISONS


def test_a_recording_cut_short_is_refused() -> None:
    with pytest.raises(UserError, match="cut:1 is no result"):
        parse_strictly(recording("amd-epyc")[:1000], "cut")
