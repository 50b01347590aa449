"""What torch.compile made, as it lies in the caches of Inductor and Triton: graphs, kernels, fastest blocks.

Both find things by their content, so a copy serves in any folder, once the paths written in it lead there.
"""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import torch

from backends.contract import Artefact, Backend, Target, Unsupported, run_first
from backends.torch_engine import draw

CACHES, DEVICE = "caches.tar", "device.txt"
FOLDERS = {"inductor": "TORCHINDUCTOR_CACHE_DIR", "triton": "TRITON_CACHE_DIR"}
"""By their names in the copy: the variables that tell torch and Triton where their caches lie."""
GROUP, ROOT = "__grp__", b"[ROOT]"
"""How the names of Triton's lists begin, which hold whole paths, and what a copy has for the cache's own."""


def save_programs(backend: Backend, artefact: Artefact, folder: Path) -> None:
    """Compile every shape of an artefact, with weights that are drawn, and copy this process's caches."""
    keep_kernels_apart()
    target, shapes = artefact.target, artefact.shapes
    engine = backend.load(artefact, draw(artefact.config, target.dtype, torch.device(target.device)))
    run_first(engine, [np.zeros((shapes.batch, length), np.int32) for length in shapes.prompts])
    engine.close()
    with tarfile.open(folder / CACHES, "w") as copy:
        for cache, root in cache_folders().items():
            files = [each for each in root.rglob("*") if each.is_file() and each.suffix != ".lock"]
            for path in sorted(files):
                data = moved(path, os.fsencode(root), ROOT, path.read_bytes())
                entry = tarfile.TarInfo(f"{cache}/{path.relative_to(root)}")
                entry.size = len(data)
                copy.addfile(entry, io.BytesIO(data))
    (folder / DEVICE).write_text(describe_device(target))


def open_programs(artefact: Artefact, folder: Path) -> None:
    """Put the copy into this process's caches; raises Unsupported if torch looks for other things there."""
    made, here = (folder / DEVICE).read_text(), describe_device(artefact.target)
    if made != here:
        raise Unsupported(f"the engine was compiled for {made}, and this is {here}: build it here")
    keep_kernels_apart()
    roots = cache_folders()
    with tarfile.open(folder / CACHES) as copy:
        for entry in copy:
            cache, _, name = entry.name.partition("/")
            root, file = roots[cache], copy.extractfile(entry)
            assert file is not None, "only files were put there"
            put(root / name, moved(root / name, ROOT, os.fsencode(root), file.read()))


def keep_kernels_apart() -> None:
    """Have this process look for kernels in Triton's cache alone, not in bundles beside their graphs.

    What is in a bundle remembers the folder it was made in: there it would look for its fastest blocks, find
    none, time them anew and write them down.
    """
    torch._inductor.config.bundle_triton_into_fx_graph_cache = False


def cache_folders() -> dict[str, Path]:
    """Return where this process's caches lie, by their names in the copy."""
    return {cache: Path(os.environ[variable]) for cache, variable in FOLDERS.items()}


def moved(path: Path, before: bytes, after: bytes, data: bytes) -> bytes:
    """Return what a file is to hold once its cache's folder is another one."""
    return data.replace(before, after) if path.name.startswith(GROUP) else data


def put(path: Path, data: bytes) -> None:
    """Write a file at once, as others may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    unfinished.replace(path)


def describe_device(target: Target) -> str:
    """Name what torch's caches tell devices apart by: a GPU's name and the release of CUDA."""
    if not target.on_gpu:
        return "a CPU"
    return f"{torch.cuda.get_device_name(target.device)} with CUDA {torch.version.cuda}"
