"""The database of MetaSchedule's trials, as files that can be read without TVM."""

import json
from collections.abc import Mapping
from math import inf
from pathlib import Path
from statistics import mean

WORKLOADS, TRIALS = "database_workload.json", "database_tuning_record.json"
"""The programs, each a line with its hash, and the trials: which of those lines, a schedule, its seconds."""


def read_database(folder: Path) -> dict[str, bytes]:
    """Return the files of a database by their names."""
    return {name: (folder / name).read_bytes() for name in (WORKLOADS, TRIALS)}


def choose_fastest(database: Mapping[str, bytes]) -> str:
    """Return the schedule of each program that TVM takes from a database: the one that ran fastest."""
    programs = [json.loads(line)[0] for line in database[WORKLOADS].splitlines()]
    fastest = dict.fromkeys(programs, (inf, None))
    for line in database[TRIALS].splitlines():
        index, (schedule, seconds, *_) = json.loads(line)
        if seconds and mean(seconds) < fastest[programs[index]][0]:
            fastest[programs[index]] = mean(seconds), schedule
    return json.dumps({program: schedule for program, (_, schedule) in fastest.items()}, sort_keys=True)
