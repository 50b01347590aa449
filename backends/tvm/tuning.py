"""Trials of MetaSchedule: schedules of products, timed on the device against those that our rules choose."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tvm
from tvm import s_tir
from tvm.s_tir import meta_schedule
from tvm.s_tir.analysis import estimate_tir_flops
from tvm.target import Target as TvmTarget

from backends.contract import Unsupported
from backends.tvm.compiler import LIBRARY, compile_module
from backends.tvm.database import read_database
from backends.tvm.pipeline import build_pipeline, fusing_passes, rules_for

ROUND = 16
"""Trials of one product at a time, at most."""


def compile_tuned(
    module: Any, target: TvmTarget, trials: int, known: Mapping[str, bytes] | None
) -> Mapping[str, bytes]:
    """Compile with the best schedules of a database that is known, else of trials now; returns both's files.

    Raises Unsupported.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        if known is None:
            tune_products(module, target, trials, folder)
        for file, content in (known or {}).items():
            (folder / file).write_bytes(content)
        library = compile_module(module, target, build_pipeline(target, folder))
        return {LIBRARY: library, **read_database(folder)}


def tune_products(module: Any, target: TvmTarget, trials: int, folder: Path) -> None:
    """Spend trials on a module's products on the device, which must be here, and keep all in a database.

    Raises Unsupported.
    """
    if find_spec("cloudpickle") is None:  # without it TVM cannot start the processes that it times in
        raise Unsupported("tune= needs cloudpickle: pip install cloudpickle, and xgboost for better guesses")
    with target:
        fused = tvm.transform.Sequential(fusing_passes())(module)
    tasks = find_products(fused, target)
    if not tasks:
        raise Unsupported("tune= finds no product that is TVM's to schedule: leave it out")
    database = meta_schedule.database.JSONDatabase(work_dir=str(folder))
    builder, runner = make_builder(), meta_schedule.runner.LocalRunner()
    enter_own(tasks, database, builder, runner)
    guided = find_spec("xgboost") is not None
    meta_schedule.tune.tune_tasks(
        tasks=[context_of(task, guided) for task in tasks],
        task_weights=[task.weight for task in tasks],
        work_dir=str(folder),
        max_trials_global=trials,
        num_trials_per_iter=min(ROUND, -(-trials // len(tasks))),
        builder=builder,
        runner=runner,
        database=database,
        cost_model="xgb" if guided else "random",
    )


def make_builder() -> Any:
    """Make what builds candidates in other processes, without the intrinsics that MetaSchedule would load.

    Those take each process half a minute, and none is used: our products are no tensor instructions.
    """

    def build(module: Any, target: TvmTarget, _: Any) -> Any:  # local, so that it is sent by value
        plain = s_tir.transform.RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module)
        return tvm.driver.build(plain, target=target)

    return meta_schedule.builder.LocalBuilder(max_workers=threads(), f_build=build)


def find_products(fused: Any, target: TvmTarget) -> list[Any]:
    """List the products that are not scheduled yet, those with the most arithmetic in all first."""
    tasks = meta_schedule.relax_integration.extract_tasks(fused, counted(target))
    found = [task for task in tasks if "matmul" in task.task_name]
    return sorted(found, key=lambda task: -task.weight * estimate_tir_flops(task.dispatched[0]))


def counted(target: TvmTarget) -> TvmTarget:
    """Say how many cores a CPU has, which MetaSchedule wants to know."""
    if target.kind.name != "llvm":
        return target
    return TvmTarget({"kind": "llvm", **target.attrs, "num-cores": threads()})


def threads() -> int:
    """Return as many threads as TVM's own pool has."""
    return int(os.environ["TVM_NUM_THREADS"])


def context_of(task: Any, guided: bool) -> Any:
    """Say how a product is searched: by evolution where a model guides it, which at random is only slow."""
    kind = task.target.kind.name
    space = meta_schedule.space_generator.PostOrderApply(sch_rules=kind, postprocs=kind, mutator_probs=kind)
    return meta_schedule.TuneContext(
        mod=task.dispatched[0],
        target=task.target,
        space_generator=space,
        search_strategy="evolutionary" if guided else "replay-trace",
        task_name=task.task_name,
        num_threads=threads(),
    ).clone()


def enter_own(tasks: Sequence[Any], database: Any, builder: Any, runner: Any) -> None:
    """Time what our pipeline makes of each product, so that trials which are slower are not taken."""
    own = [(task, schedule) for task in tasks if (schedule := schedule_own(task)) is not None]
    inputs = [meta_schedule.builder.BuilderInput(schedule.mod, task.target) for task, schedule in own]
    for (task, schedule), built in zip(own, builder.build(inputs), strict=True):
        (function,) = task.dispatched[0].functions.values()
        arguments = meta_schedule.arg_info.ArgInfo.from_prim_func(function)
        seconds = time_candidate(built, task.target, arguments, runner)
        record = meta_schedule.database.TuningRecord(
            schedule.trace,
            database.commit_workload(task.dispatched[0]),
            seconds,
            task.target,
            arguments,
        )
        database.commit_tuning_record(record)


def time_candidate(built: Any, target: TvmTarget, arguments: Sequence[Any], runner: Any) -> list[float]:
    """Return the seconds of a candidate's runs; raises Unsupported in TVM's words where it has none."""
    error = built.error_msg
    if error is None:
        device = "cuda" if target.kind.name == "cuda" else "cpu"
        asked = meta_schedule.runner.RunnerInput(built.artifact_path, device, arguments)
        timed = runner.run([asked])[0].result()
        if timed.run_secs:
            return list(timed.run_secs)
        error = timed.error_msg
    raise Unsupported(f"tune= cannot run products here: {str(error).strip().splitlines()[-1]}")


def schedule_own(task: Any) -> Any | None:
    """Schedule a product by the first rule that takes it; None where none does."""
    (function,) = task.dispatched[0].functions.values()
    with task.target:
        for rule in rules_for(task.target):
            schedule = rule().apply(function, task.target, False)
            if isinstance(schedule, s_tir.Schedule):
                return schedule
    return None
