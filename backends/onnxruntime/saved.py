"""The models of an engine as files that any runtime of ONNX can open."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from backends.onnxruntime.engine import Programs

DECODE, PREFILL, TABLES = "decode.onnx", "prefill-{}.onnx", "tables.npz"


def save_programs(programs: Programs, folder: Path) -> None:
    """Write every model, but a prefill only where it is not the model of decode."""
    (folder / DECODE).write_bytes(programs.decode)
    for length, model in programs.prefills.items():
        if model != programs.decode:
            (folder / PREFILL.format(length)).write_bytes(model)
    np.savez(folder / TABLES, cos=programs.tables["cos"], sin=programs.tables["sin"])


def open_programs(prompts: Sequence[int], folder: Path) -> Programs:
    """Read every model."""
    decode = (folder / DECODE).read_bytes()
    paths = {length: folder / PREFILL.format(length) for length in prompts}
    prefills = {length: path.read_bytes() if path.is_file() else decode for length, path in paths.items()}
    with np.load(folder / TABLES) as tables:
        return Programs(decode, prefills, dict(tables))
