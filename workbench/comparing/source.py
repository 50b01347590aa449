"""The model of a comparison: a preset written once per machine, or a checkpoint folder as it is."""

import json
from dataclasses import dataclass
from pathlib import Path

from models.checkpoint import Weights, open_checkpoint
from models.config import DecoderConfig, find_preset, locate
from models.errors import UserError
from models.hugging_face import read_config
from workbench.caches import cache_root, code_version, digest
from workbench.job import PresetJob
from workbench.process import run
from workbench.progress import Progress
from workbench.store import write_atomically


def read_model(model: str) -> DecoderConfig:
    """Read the form of a preset or of the model in a folder; raises UserError."""
    folder = locate(model)
    return read_config(folder) if folder is not None else find_preset(model)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder that every worker maps."""

    name: str
    """Preset's name or folder's name."""
    folder: Path
    config: DecoderConfig
    checksum: str
    """Of the weights; empty where they are not written yet."""


def prepare(model: str, dtype: str, progress: Progress) -> Source:
    """Find or write the model's folder and its checksum; raises UserError."""
    source = foresee(model, dtype, progress)
    if source.checksum:
        return source
    progress.say(f"writing the weights of {model} in {dtype}, once on this machine")
    job = PresetJob(preset=model, dtype=dtype, folder=str(source.folder))
    outcome = run(job, log=cache_root() / "logs" / "preset.log")
    if not outcome.ok:
        raise UserError(f"cannot write the weights of {model} to {source.folder}: {outcome.reason}")
    return foresee(model, dtype, progress)


def foresee(model: str, dtype: str, progress: Progress) -> Source:
    """Find the model's folder without writing a preset; raises UserError."""
    given = locate(model)
    folder = given if given is not None else cache_root() / "presets" / f"{model}-{dtype}"
    name = model if given is None else given.resolve().name
    if given is None and not folder.is_dir():
        return Source(name, folder, find_preset(model), "")
    try:
        weights = open_checkpoint(folder, dtype)
    except UserError as error:
        if given is not None:
            raise
        what = f"the weights of {model} that are kept in {folder} are damaged"
        raise UserError(f"{what}: remove that folder, and they are written anew") from error
    return Source(name, folder, weights.config, find_checksum(weights, progress))


def find_checksum(weights: Weights, progress: Progress) -> str:
    """Return the checksum of the weights, remembered for as long as no file of the folder changes."""
    files = [*sorted(weights.folder.glob("*.safetensors")), weights.folder / "config.json"]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    parts = {"folder": weights.folder.resolve(), "dtype": weights.dtype, "files": stamps}
    key = digest(parts | {"code": code_version()})
    memory = cache_root() / "checksums" / f"{key}.json"
    try:
        return str(json.loads(memory.read_text())["checksum"])
    except (OSError, ValueError, KeyError):
        pass  # not there yet, or damaged: computed anew
    progress.say(f"reading {weights.folder.name} for its checksum")
    checksum = weights.checksum()
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(memory, json.dumps({"checksum": checksum}).encode())
    return checksum
