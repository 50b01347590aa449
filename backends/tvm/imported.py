"""The definition by way of torch.export and Relax's importer: what TVM gives a PyTorch user for free."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tvm
from tvm import relax

from backends.contract import Shapes, Unsupported
from backends.tvm.engine import Interface
from backends.tvm.lowering import add_poison
from models.config import DecoderConfig
from models.rope import rope_tables


def lower_import(config: DecoderConfig, shapes: Shapes, dtype: str) -> Any:
    """Import `prefill_T` for each prompt length and `decode`; raises Unsupported in the importer's words."""
    try:
        from tvm.relax.frontend.torch import from_exported_program

        from backends.torch_program import export_decode, export_prefill
    except ModuleNotFoundError as error:
        raise Unsupported(f"import=torch needs {error.name}: pip install torch") from error
    programs = {f"prefill_{n}": export_prefill(config, shapes, dtype, n) for n in shapes.prompts}
    programs["decode"] = export_decode(config, shapes, dtype)
    builder = relax.BlockBuilder()
    add_poison(builder, config, shapes, dtype)
    module = builder.finalize()
    for name, program in programs.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of torch, at what TVM calls
                imported = from_exported_program(program)["main"]
        except Exception as error:  # an operator or a type that it does not know
            raise Unsupported(f"Relax's importer refuses the torch.export graph: {error}") from error
        module[name] = imported.with_attr("global_symbol", name)
    return tvm.relax.transform.Normalize()(module)


def describe_import(config: DecoderConfig, shapes: Shapes) -> Interface:
    """Describe programs that take and return what those of `torch_program` do, all in new tensors."""
    cos, sin = rope_tables(config, shapes.capacity)
    tables = [np.concatenate(halves, axis=-1)[:, None] for halves in ((cos, cos), (-sin, sin))]
    return Interface(tables, in_place=False, prefill_from=3, decode_from=1)
