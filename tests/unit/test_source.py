"""The model of a comparison, where it is kept."""

from pathlib import Path

import pytest
from rich.console import Console

from models.errors import UserError
from models.weights import write_preset
from workbench.comparing.source import foresee
from workbench.progress import Progress


@pytest.mark.parametrize("left", ["config.json", "model-00001-of-00001.safetensors", None])
def test_a_damaged_preset_is_no_checkpoint_of_the_users(
    left: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path))
    kept = tmp_path / "presets" / "tiny-float32"
    write_preset("tiny", "float32", kept)
    for path in kept.iterdir():
        if path.name != left:
            path.unlink()
    with pytest.raises(UserError, match=f"kept in {kept} are damaged: remove that folder") as caught:
        foresee("tiny", "float32", Progress(Console(quiet=True)))
    assert "download" not in str(caught.value)


def test_a_damaged_checkpoint_is_to_be_downloaded_again(tmp_path: Path) -> None:
    write_preset("tiny", "float32", tmp_path / "mine")
    (tmp_path / "mine" / "model-00001-of-00001.safetensors").unlink()
    with pytest.raises(UserError, match="is missing: download or save the checkpoint again"):
        foresee(str(tmp_path / "mine"), "float32", Progress(Console(quiet=True)))
