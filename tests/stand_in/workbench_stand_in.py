"""A stand-in for TensorRT-LLM: the backend `trtllm` as it is, but for the vendor's library.

Its LLM is a process of ours that computes with `eager` on a CPU and answers whole requests. What it takes
says something of the path to such an engine and back, and nothing of any product.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from backends.contract import Artefact, Engine, Probe
from backends.trtllm import TensorRtLlm
from models.checkpoint import Weights
from tests.published import Json, Published

PROCESS = Path(__file__).with_name("stand_in_process.py")


class StandInLlm:
    """Hands each request to the stand-in process and waits for its answer."""

    def __init__(self, values: Json) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(PROCESS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.ask({name: values[name] for name in ("model", "dtype", "max_batch_size", "max_seq_len")})

    def ask(self, request: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        pickle.dump(request, self.process.stdin)
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def generate(self, inputs: Any, sampling_params: Any, use_tqdm: bool) -> list[Any]:
        answers = self.ask((inputs, sampling_params))
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)]) for tokens in answers]

    def shutdown(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class StandIn(TensorRtLlm):
    """`trtllm` with a stand-in for the vendor's LLM, under a name of its own."""

    name = "stand-in"

    def probe(self) -> Probe:
        return Probe(versions={"stand-in": "1.0"}, devices=("cpu",), dtypes=("float32",), in_process=False)

    def load(self, artefact: Artefact, weights: Weights) -> Engine:
        self.published = Published({"LLM": StandInLlm})
        return super().load(artefact, weights)

    def find(self, module: str, name: str) -> object:
        return self.published.find(module, name)
