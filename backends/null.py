"""A backend that computes nothing: what is left in a measurement is the harness's own cost."""

from collections.abc import Mapping

import numpy as np

from backends.contract import Artefact, Engine, Option, Probe, Shapes, Target
from models.checkpoint import Weights
from models.config import DecoderConfig


class Null:
    """Accepts every call of the contract; its logits are zeros."""

    name = "null"
    options: Mapping[str, Option] = {}

    def probe(self) -> Probe:
        """Tell that it works everywhere."""
        return Probe(devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))

    def build(
        self, config: DecoderConfig, shapes: Shapes, target: Target, options: Mapping[str, str]
    ) -> Artefact:
        """Describe the work that will not be done."""
        return Artefact(config, shapes, target, options, definition="own", provenance="stock")

    def load(self, artefact: Artefact, weights: Weights) -> Engine:  # noqa: ARG002 (nothing to place)
        """Return an engine without weights."""
        return NullEngine(artefact)


class NullEngine:
    """Keeps no state at all."""

    def __init__(self, artefact: Artefact) -> None:
        self.logits_shape = (artefact.shapes.batch, artefact.config.vocab_size)

    def stage(self, tokens: np.ndarray) -> None:
        """Ignore tokens [B, T]."""

    def prefill(self) -> None:
        """Return at once."""

    def decode(self) -> None:
        """Return at once."""

    def rewind(self, length: int) -> None:
        """Ignore the length."""

    def feed(self, tokens: np.ndarray) -> None:
        """Ignore tokens [B]."""

    def poison(self, length: int) -> None:
        """Ignore the length."""

    def logits(self) -> np.ndarray:
        """Return zeros [B, V]."""
        return np.zeros(self.logits_shape, np.float32)

    def sync(self) -> None:
        """Return at once."""

    def stream(self) -> int | None:
        """Return None: nothing runs."""
        return None

    def close(self) -> None:
        """Free nothing."""
