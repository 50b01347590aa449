"""The stand-in's process: requests in on standard input, their tokens out on standard output."""

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from backends.contract import Engine, Shapes, Target
from backends.eager import Eager
from models.checkpoint import open_checkpoint


def start(model: str, dtype: str, max_batch_size: int, max_seq_len: int) -> Engine:
    weights = open_checkpoint(Path(model), dtype)
    eager, shapes = Eager(), Shapes(max_batch_size, tuple(range(1, max_seq_len)), max_seq_len)
    return eager.load(eager.build(weights.config, shapes, Target("cpu", dtype, ""), {}), weights)


def answer(engine: Any, prompts: list[list[int]], parameters: Any) -> list[list[int]]:
    """Generate the tokens of one request a sequence; logits processors see each step, as at the vendor's."""
    each = parameters if isinstance(parameters, list) else [parameters] * len(prompts)
    chosen: list[torch.Tensor] = []
    for step in range(each[0].max_tokens):
        if step:
            engine.feed(chosen[-1].numpy())
            engine.decode()
        else:
            engine.stage(torch.tensor(prompts, dtype=torch.int32).numpy())
            engine.prefill()
        logits = torch.from_numpy(engine.logits())
        for row, of_row in enumerate(each):
            if of_row.logits_processor:
                of_row.logits_processor(0, logits[None, row : row + 1], [prompts[row]], None, None)
        chosen.append(logits.argmax(dim=1).to(torch.int32))
    return torch.stack(chosen, 1).tolist()


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing else that is printed may come between
    torch.set_num_threads(1)  # tensors this small are slower on more
    engine = start(**pickle.load(sys.stdin.buffer))
    reply: Any = None
    while True:
        pickle.dump(reply, answers)
        answers.flush()
        try:
            prompts, parameters = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        reply = answer(engine, prompts, parameters)


if __name__ == "__main__":
    main()
