"""What several commands may be given, written once. Imports next to nothing, like the command line itself."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

FAILED = 1
"""Exit code: a row asked for by name has no time, or is slower than it was."""


USAGE = 2
"""Exit code: the input was wrong, or there is nothing to compare with."""
INTERRUPTED = 130
"""Exit code: stopped from the keyboard."""
INSTALL_TRACK = "install it: pip install 'workbench[track]'"
"""What to do where a library is missing that tracking needs."""


def folder(path: Path | None) -> Path | None:
    """Refuse a file where a folder is asked for; typer adds the option's name."""
    if path is not None and path.is_file():
        raise typer.BadParameter(f"{path} is a file: name a folder, or leave it out for the default")
    return path


class ListFormat(StrEnum):
    """How a list is written to stdout."""

    table = "table"
    json = "json"


WHICH = r"a,b\[option=value]: which backends."
"""Help of `--backends`, escaped: help is read as Rich's markup."""
Listing = Annotated[ListFormat, typer.Option(help="How to write the result.")]
Backends = Annotated[str | None, typer.Option(help=f"{WHICH} Default: every usable one.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A preset, or a folder with config.json and *.safetensors. Default: tiny, on a GPU llama-3.2-1b."
    ),
]
Phases = Annotated[str | None, typer.Option(help="prefill,decode. Default: both.")]
Batch = Annotated[str | None, typer.Option(help="Sequences, a list. Default: 1.")]
Prompt = Annotated[
    str | None, typer.Option(help="Tokens a sequence of a prefill, a list. Default: 64, on a GPU 512.")
]
Context = Annotated[
    str | None, typer.Option(help="Cached positions before a decode, a list. Default: 128, on a GPU 1024.")
]
Steps = Annotated[int | None, typer.Option(help="Decode steps in one sample. Default: 32.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: float32, on a GPU bfloat16.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]
Repeats = Annotated[int | None, typer.Option(help="Processes a row is measured in. Default: 3.")]
Budget = Annotated[
    float | None,
    typer.Option(
        help="Seconds that warming up may take, less its first sample, and then the samples of each row. "
        "Default: 5, on a GPU 4."
    ),
]
Against = Annotated[
    str | None,
    typer.Option(help="Measure anew and judge by earlier rows: a run's id, a .jsonl file or a Git revision."),
]
Baseline = Annotated[
    str | None,
    typer.Option(help="The row others are compared with. Default: eager, else the first that is ok."),
]
Engines = Annotated[
    Path | None,
    typer.Option(
        help="The engine store. Default: a folder of the cache.", show_default=False, callback=folder
    ),
]
Results = Annotated[Path, typer.Option(help="The folder where rows are kept.", callback=folder)]
Python = Annotated[
    list[str], typer.Option(help="BACKEND=PATH: a backend's own Python, or in workbench.toml.")
]
