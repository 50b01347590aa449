"""The definition by way of torch.export and Relax's importer: what TVM gives a PyTorch user for free."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from tvm import relax

from backends.contract import Shapes, Unsupported
from backends.tvm.engine import POSITION, TOKEN, TvmEngine
from backends.tvm.lowering import add_poison
from models.config import DecoderConfig


def lower_import(config: DecoderConfig, shapes: Shapes, dtype: str) -> Any:
    """Import `prefill_T` for each prompt length and `decode`; raises Unsupported in the importer's words."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise Unsupported(f"import=torch needs {error.name}: pip install torch") from error
    from backends.torch_program import export_decode, export_prefill

    builder = relax.BlockBuilder()
    add_poison(builder, config, shapes, dtype)
    module = builder.finalize()
    programs = {f"prefill_{n}": partial(export_prefill, config, shapes, dtype, n) for n in shapes.prompts}
    for name, export in {**programs, "decode": partial(export_decode, config, shapes, dtype)}.items():
        module[name] = import_program(export()).with_attr("global_symbol", name)
    return relax.transform.Normalize()(module)


def import_program(program: Any) -> Any:
    """Turn a torch.export graph into a function of Relax; raises Unsupported."""
    from tvm.relax.frontend.torch import from_exported_program

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch, at what TVM calls
            return from_exported_program(program)["main"]
    except Exception as error:  # an operator or a type that it does not know
        raise Unsupported(f"Relax's importer refuses the torch.export graph: {error}") from error


class ImportedEngine(TvmEngine):
    """Keeps what each call returns as the state that the next one takes."""

    def bind(self, name: str, tokens: list[Any]) -> Callable[[], None]:
        """Return a call of a function: of a prefill on tokens and cache, else on token, position, cache."""
        first = POSITION + 1 if tokens else TOKEN

        def call() -> None:
            self.state = list(self.machine[name](*self.constants, *tokens, *self.state[first:]))

        return call
