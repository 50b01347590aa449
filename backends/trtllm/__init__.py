"""TensorRT-LLM: NVIDIA's engine with a definition of its own, in a process of its own.

Written against the published interface of 1.2 and not yet run on hardware by us.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target, Unsupported
from backends.probe_failure import name_cause
from models.checkpoint import Weights
from models.config import DecoderConfig

INSTALL = (
    "sudo apt-get -y install libopenmpi-dev && pip3 install --ignore-installed pip setuptools wheel && "
    "pip3 install tensorrt_llm==1.2.1, in a Python 3.12 of its own: --python trtllm=PATH"
)
"""The vendor's line for Linux; 1.2.1 is the last release with TensorRT engines."""
CACHE = "TRTLLM_CACHE_DIR"
"""Names the folder that built engines are kept in; without it every process builds."""
UNTRIED = "not yet run on hardware by us"
CAVEATS = (
    UNTRIED,
    "its cache is out of reach, so the gate cannot poison it: it leaves another sequence there instead",
    "its build time has the loading of weights in it: the vendor does both in one call",
)


class TensorRtLlm:
    """Starts the vendor's LLM on the very checkpoint folder that the other backends read."""

    name = "trtllm"
    options: Mapping[str, Option] = {
        "pytorch": Option("the PyTorch backend of the LLM API, without an engine step; the default"),
        "engine": Option(
            "a TensorRT engine, built on the GPU it is for; tensorrt_llm 1.2 is the last with them"
        ),
    }

    def probe(self) -> Probe:
        """Tell whether tensorrt_llm is there, by its metadata: importing it takes a while, and prints."""
        try:
            versions = {"tensorrt_llm": version("tensorrt_llm")}
        except PackageNotFoundError:
            reason = f"tensorrt_llm is not installed ({UNTRIED})"
            return Probe(reason=reason, install=INSTALL, in_process=False)
        try:
            import torch
        except Exception as error:  # a torch of another release fails in many ways
            reason = f"torch, which tensorrt_llm needs, cannot be imported: {name_cause(error)}"
            return Probe(reason=reason, install=INSTALL, in_process=False)
        if not torch.cuda.is_available():
            return Probe(reason="tensorrt_llm needs an NVIDIA GPU, and torch sees none", in_process=False)
        versions["torch"] = str(torch.__version__)
        return Probe(versions=versions, devices=("cuda",), dtypes=("bfloat16", "float16"), in_process=False)

    def check_options(self, target: Target, options: Mapping[str, str]) -> None:
        """Refuse two engines in one, and any but the first GPU; raises Unsupported."""
        if len(options) > 1:
            raise Unsupported("trtllm[engine] and trtllm[pytorch] are two engines: name them apart")
        if target.device not in ("cpu", "cuda:0"):
            raise Unsupported(
                f"tensorrt_llm takes the first GPU it sees, not {target.device}: set CUDA_VISIBLE_DEVICES"
            )

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Note what to start: the vendor builds from the weights, so it does so when it is first asked."""
        self.check_options(target, options)
        what = "GEMM plugin" if "engine" in options else "one CUDA graph for the batch"
        provenance = f"configured: {what}, no reuse of cached blocks"
        return Artefact(config, shapes, target, options, "own", provenance, warnings=CAVEATS)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        """Find the vendor's interface; its LLM starts with the first request."""
        from backends.trtllm.engine import RequestEngine
        from backends.trtllm.service import Order, Service, start_engine, start_pytorch

        start = start_engine if "engine" in artefact.options else start_pytorch
        cache = os.environ.get(CACHE)
        order = Order(weights.folder, artefact.shapes, artefact.target.dtype, Path(cache) if cache else None)
        find = self.find
        vocab = artefact.config.vocab_size
        return RequestEngine(artefact.shapes, vocab, lambda: Service(find, start(find, order), vocab))

    def find(self, module: str, name: str) -> object:
        """Import something of the vendor's; raises Unsupported where this release has it no more."""
        from importlib import import_module

        try:
            found: object = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise Unsupported(f"this tensorrt_llm has no {module}.{name}: {error}; {INSTALL}") from error
        return found
