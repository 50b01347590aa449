"""The machine's own noise: A/A runs that `calibrate` has kept, and the noise floor of a row by them.

They lie under `results/calibration/` as ordinary records, samples and all, so that they travel with the rows
they judge, can be checked by anybody, and need no reader of their own. `compare` never takes them for rows.
"""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from models.errors import UserError
from workbench.comparing.request import Request, usual_budget_s
from workbench.gate import GATE
from workbench.ratios import difference, samples, workload_of
from workbench.record import Record
from workbench.report import row_title
from workbench.stopping import STOPPING
from workbench.tracking.verdict import LEAST_CALIBRATION, noise_floor

CALIBRATION = "calibration"


def calibration_folder(results: Path) -> Path:
    """Name the folder of the A/A runs that go with a results folder."""
    return results / CALIBRATION


def floor_of(record: Record) -> float:
    """Return the noise floor of an A/A row, as a share of its time."""
    return noise_floor(samples(record))


def find_floor(record: Record, calibrated: Sequence[Record], results: Path = Request.results) -> float:
    """Return the noise floor for a row of these results; raises UserError if it has none."""
    floor = known_floor(record, calibrated)
    if floor is None:
        raise UserError(
            f"{lack(record)}, so {row_title(record)} can have no verdict: {advise(record, results)} first"
        )
    return floor


def known_floor(record: Record, calibrated: Sequence[Record]) -> float | None:
    """Return the noise floor for a row: its own on this machine, else the highest of its phase there.

    None if nothing of that phase was calibrated by the same protocol.
    """
    latest = {
        (each.name, each.model, each.dtype, workload_of(each)): each
        for each in calibrated
        if each.timed
        and not each.untuned
        and len(each.processes) >= LEAST_CALIBRATION
        and same_machine(each, record)
    }
    own = latest.get((record.name, record.model, record.dtype, workload_of(record)))
    if own is not None:
        return floor_of(own)
    return max((floor_of(each) for each in latest.values()), default=None)


def lack(record: Record) -> str:
    """Say that a row has no noise floor."""
    return f"{record.gpu.get('name')} has no noise floor for {record.phase} yet"


def advise(record: Record, results: Path) -> str:
    """Say what gives a row of these results a noise floor: A/A runs on its device, beside them."""
    rules = {"gate": GATE, **STOPPING}
    if any(record.protocol.get(name) != rule for name, rule in rules.items()):
        return "it was verified or timed by other rules than today's: measure it anew"
    usual_s = usual_budget_s(record.device)
    budget_s = record.protocol.get("budget_s", usual_s)
    command = f"python -m workbench calibrate --phases {record.phase} --device {record.device}"
    command += f" --budget {budget_s:g}" if budget_s != usual_s else ""
    elsewhere = results.resolve() != Request.results.resolve()
    command += f" --results {shlex.quote(str(results))}" if elsewhere else ""
    return f"run `{command}` there"


def same_machine(calibration: Record, record: Record) -> bool:
    """Whether an A/A row tells of a row's noise: the same phase by the same protocol on the same machine."""
    alike = replace(calibration, **{name: getattr(record, name) for name in WORK})
    return difference(alike, record) is None and calibration.gpu.get("uuid") == record.gpu.get("uuid")


WORK = ("model", "weights", "batch", "prompt", "context", "steps", "dtype")
"""What a row's noise floor may be taken across."""
