"""The definition by way of torch.export and iree-turbine: what IREE gives a PyTorch user for free."""

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.contract import Shapes, Unsupported
from backends.iree.engine import Interface
from models.config import DecoderConfig
from models.rope import whole_head_tables


def find_importer() -> Callable[[Any], str]:
    """Return what turns an exported program into torch operators that IREE compiles; raises Unsupported."""
    try:
        from iree.turbine import aot
    except ModuleNotFoundError as error:
        raise Unsupported(f"import=torch needs {error.name}: pip install iree-turbine==3.9.0") from error
    except Exception as error:  # it does not follow every release of torch
        raise Unsupported(f"iree-turbine cannot be imported: {error}") from error

    def lower(program: Any) -> str:
        try:
            return str(aot.export(program).mlir_module)
        except Exception as error:  # an operator or a type that it does not know
            raise Unsupported(f"iree-turbine refuses the torch.export graph: {error}") from error

    return lower


def lower_import(config: DecoderConfig, shapes: Shapes, dtype: str) -> tuple[list[str], str]:
    """Return the prefills, in the order of the prompts, and the decode step; raises Unsupported.

    A prefill writes the cache by slices: IREE's code for an NVIDIA GPU (3.13) scatters a whole prompt's
    values to wrong positions, though not its keys, which are rotated before.
    """
    lower = find_importer()
    from backends.torch_program import SlicedPrefill, export_decode, export_prefill

    prefills = [lower(export_prefill(config, shapes, dtype, n, SlicedPrefill)) for n in shapes.prompts]
    return prefills, lower(export_decode(config, shapes, dtype))


def describe_import(config: DecoderConfig, shapes: Shapes) -> Interface:
    """Describe programs that take and return what those of `torch_program` do.

    They write the cache where it lies, and give logits, token and position in new buffers.
    """
    tables = whole_head_tables(config, shapes.capacity)
    cache = (shapes.batch, config.kv_heads, shapes.capacity, config.head_dim)
    start = np.zeros(1, np.int64)
    return Interface("main$async", tables, start, cache, prefill_from=3, decode_from=1, returned=3)
