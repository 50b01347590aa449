"""Where a report goes."""

import os
from pathlib import Path

import pytest

from models.errors import UserError
from workbench.publish import put


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    link = tmp_path / "latest.md"
    link.symlink_to(tmp_path / "first.md")
    for content in (b"new", b"newer"):
        put(link, content)
        assert link.is_symlink()
        assert (tmp_path / "first.md").read_bytes() == content


def test_what_cannot_be_written_whole_leaves_what_a_link_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "first.md").write_bytes(b"old")
    (tmp_path / "latest.md").symlink_to("first.md")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="nothing was changed"):
        put(tmp_path / "latest.md", b"new")
    assert (tmp_path / "first.md").read_bytes() == b"old"


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    put(pipe, b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert pipe.is_fifo()


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_device_that_is_full_is_a_users_error(tmp_path: Path) -> None:
    link = tmp_path / "full"  # by which the device itself is safe from this test
    link.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot write .*full: No space left on device"):
        put(link, b"content")
    assert link.is_symlink()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for content in (b"old", b"new"):
        put(page, content)
        assert page.read_bytes() == content
    assert list(tmp_path.iterdir()) == [page]
