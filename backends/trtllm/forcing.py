"""How the gate sees logits in another process: by a logits processor that travels with each request."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Forcing:
    """Gives the first steps of one request their tokens, and writes one step's logits to a file.

    Steps are counted here: with an overlapped scheduler the tokens that the vendor tells lag behind.
    """

    def __init__(self, tokens: list[int], keep: int, path: str) -> None:
        self.tokens = tokens
        self.keep = keep
        """The step whose logits are kept, from 0."""
        self.path = path
        self.step = 0

    def __call__(
        self,
        req_id: int,  # noqa: ARG002 (the vendor's signature)
        logits: Tensor,
        token_ids: list[list[int]],  # noqa: ARG002
        stream_ptr: int | None,
        client_id: int | None,  # noqa: ARG002
    ) -> None:
        """Take one step's logits [..., V], in place."""
        step, self.step = self.step, self.step + 1
        with on_stream(stream_ptr):
            if step == self.keep:
                last = logits.reshape(-1, logits.shape[-1])[-1]
                np.save(self.path, last.float().cpu().numpy())
            if step < len(self.tokens):
                logits[...] = float("-inf")
                logits[..., self.tokens[step]] = 0.0


def on_stream(pointer: int | None) -> AbstractContextManager[object]:
    """Work on the stream the logits come on; the PyTorch backend has it current already, and names none."""
    if pointer is None:
        return nullcontext()
    import torch

    stream = torch.cuda.ExternalStream(pointer)  # type: ignore[no-untyped-call]
    return torch.cuda.stream(stream)
