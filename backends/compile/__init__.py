"""torch.compile: TorchDynamo traces the definition, Inductor generates the kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from backends.contract import Artefact, Engine, MadeFor, Option, Probe, Shapes, Target, Unsupported
from backends.torch_probe import probe_torch
from backends.variables import set_variables
from models.checkpoint import Weights
from models.config import DecoderConfig

TUNED = "tuned"
MODES = (TUNED, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
TUNED_DECODE: dict[str, bool | int] = {
    "coordinate_descent_tuning": True,  # also lowers a product with one row to a reduction, and tunes that
    "coordinate_descent_search_radius": 2,  # by single steps it may stop a quarter short of the best blocks
    "triton.cooperative_reductions": True,  # a norm of one row would otherwise leave all but one SM idle
    # The residual stream and each gate are stored instead of computed anew by all who read them: then all
    # layers run the same few kernels, and a product does not repeat an activation for each of its rows.
    "realize_reads_threshold": 1,
    "realize_opcount_threshold": 8,
    "combo_kernels": True,  # what turns q, turns k into the cache and puts v there is one launch
    "bundle_triton_into_fx_graph_cache": False,  # what it keeps is from before the search: `keep_searched`
}
"""Inductor's settings for decode on a GPU, of those tried (compile_settings.txt in results/). Prefill
is fastest with none: its products go to the vendor library, and max-autotune finds nothing better."""
SEARCHES: dict[str, dict[str, bool]] = {"steps": {}, "all": {"coordinate_descent_check_all_directions": True}}
"""How coordinate descent goes on: one field at a time, or all fields at once where that finds no better."""
SEARCHED = (
    "the kernels of {} were chosen by timing them in a build that all processes share: another build may end "
    "an eighth faster or slower, which no interval here shows; --again builds anew"
)
ATTENTIONS = ("auto", "flex", "masked", "products")
SCOPES = ("auto", "layer", "step")


@dataclass(frozen=True)
class Plan:
    """How the two programs are compiled and launched."""

    attention: str
    """How decode attends: `flex`, `masked` or `products`."""
    mode: str | None
    """torch.compile's mode; None: the settings below."""
    decode: Mapping[str, Any]
    """Inductor's settings for the decode program."""
    replay: bool
    """Whether prefill and decode are each captured as one CUDA graph by us."""
    by_layer: bool
    """Whether a layer is one program, run for every layer, or all of a step is."""

    @property
    def provenance(self) -> str:
        """Name every public setting that differs from plain torch.compile."""
        parts = [f"attention={self.attention}", *(str(name) for name in self.decode)]
        parts += [f"mode={self.mode}"] if self.mode else []
        parts += ["one CUDA graph a step"] if self.replay else []
        parts += ["one program for all layers"] if self.by_layer else []
        return f"configured: {', '.join(parts)}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Say of what the compiler chose by timing that it may choose otherwise the next time."""
        if self.mode and self.mode.startswith("max-autotune"):
            return (SEARCHED.format("prefill and decode"),)
        return (SEARCHED.format("decode"),) if self.decode else ()


def choose(options: Mapping[str, str], device: str) -> Plan:
    """Settle what the options leave open; raises Unsupported for what the device has not."""
    on_gpu = device.startswith("cuda")
    attention = options.get("attention", ATTENTIONS[0])
    if attention == "auto":
        attention = "flex" if on_gpu else "masked"
    elif attention == "flex" and not on_gpu:
        raise Unsupported(
            f"flex attention's decode kernel is for GPUs, not for {device}: use attention=masked"
        )
    mode = options.get("mode", MODES[0])
    replay = mode == TUNED and on_gpu
    scope = options.get("scope", SCOPES[0])
    if scope == "layer" and mode in ("reduce-overhead", "max-autotune"):
        raise Unsupported(f"mode={mode} makes a CUDA graph of each program: use scope=step with it")
    by_layer = replay if scope == "auto" else scope == "layer"
    if not replay:
        return Plan(attention, None if mode == TUNED else mode, {}, False, by_layer)
    return Plan(attention, None, TUNED_DECODE | SEARCHES[options.get("search", "steps")], True, by_layer)


def compiler_name() -> str:
    """Name the C++ compiler, looking where Inductor does."""
    return os.environ.get("CXX", "g++")


def compiler_release() -> str:
    """Tell the release of the C++ compiler; raises Unsupported."""
    try:
        told = subprocess.run([compiler_name(), "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise Unsupported(f"torch.compile needs a C++ compiler: {compiler_name()} is none") from error
    return told.stdout.partition("\n")[0]


def with_plan(artefact: Artefact) -> Artefact:
    """Add how its options say to compile; raises Unsupported."""
    if "stock" in artefact.options:
        return artefact
    plan = choose(artefact.options, artefact.target.device)
    return replace(artefact, provenance=plan.provenance, payload=plan, warnings=plan.warnings)


class Compile:
    """Compiles prefill for each prompt length, and decode for every step."""

    name = "compile"
    machine_code = True
    made_for: MadeFor = "card"  # which Inductor times its kernels on
    options: Mapping[str, Option] = {
        "stock": Option("plain torch.compile of the eager program: no setting, no CUDA graph"),
        "attention": Option("how decode attends; auto: flex on a GPU, masked on a CPU", ATTENTIONS),
        "mode": Option("torch.compile's mode; tuned: the best settings found for the device", MODES),
        "scope": Option(
            "what one program is of; auto: a layer where a CUDA graph replays the step, else all of it",
            SCOPES,
        ),
        "search": Option("how wide mode=tuned searches for each kernel's blocks on a GPU", tuple(SEARCHES)),
    }

    def probe(self) -> Probe:
        """Tell whether torch and a C++ compiler are there, and for which devices."""
        probe = probe_torch()
        if probe.usable and shutil.which(compiler_name()) is None:
            return replace(
                probe,
                reason=f"torch.compile needs a C++ compiler and {compiler_name()} is not on the path",
                install="apt-get install g++, or set CXX",
            )
        return probe

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse settings that the device has not, or that go without each other; raises Unsupported."""
        if "stock" not in options:
            choose(options, target.device)
        elif len(options) > 1:
            raise Unsupported("compile[stock] has no settings: leave out the other options")

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Note what to compile: torch.compile works in the process that runs the program."""
        self.check_options(target, options)
        return with_plan(Artefact(config, shapes, target, options, definition="common", provenance="stock"))

    def compilers(self, target: Target, options: Mapping[str, str]) -> Mapping[str, str]:  # noqa: ARG002
        """Tell the versions of torch and of what compiles for it; raises Unsupported for a GPU elsewhere."""
        if target.card is not None:
            where = f"build where there is such a GPU ({target.card})"
            raise Unsupported(f"torch.compile times its kernels on the device that it compiles for: {where}")
        found = {"torch": version("torch")} | set_variables(("TORCH", "TRITON_"))
        return found | ({"triton": version("triton")} if target.on_gpu else {"c++": compiler_release()})

    def save(self, artefact: Artefact, folder: Path) -> None:
        """Compile every shape and copy what torch and Triton keep of it."""
        from backends.compile.saved import save_programs

        save_programs(self, artefact, folder)

    def open(self, artefact: Artefact, folder: Path) -> Artefact:
        """Let torch find what was saved when it compiles; raises Unsupported where it would not."""
        from backends.compile.saved import open_programs

        open_programs(artefact, folder)
        return with_plan(artefact)

    def tunes(self, target: Target, options: Mapping[str, str]) -> bool:
        """Tell that Inductor times kernels for a GPU, whatever the options, and for a CPU if asked to."""
        return target.on_gpu or options.get("mode", "").startswith("max-autotune")

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Place the weights; each shape is compiled when it first runs."""
        from backends.compile.lower import lower, lower_stock, place_ahead
        from backends.torch_engine import TorchEngine

        plan = artefact.payload
        place_ahead(weights, artefact.target.device)
        return TorchEngine(artefact, weights, partial(lower, plan=plan) if plan else lower_stock)
