"""A device is measured by one at a time."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from models.errors import UserError
from workbench.device.locks import DeviceLock
from workbench.device.machine import Device, describe

ANNA, BEN, CLEO = 10001, 10002, 10003
"""Users that need no entry anywhere."""
several_users = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become several users")


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder like that for temporary files, which pytest's own, closed to other users, is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o1777)
        yield Path(folder)


def gpu(name: str) -> Device:
    return Device(name, "made up", "sm_90", None, uuid=name)


def enter_as(uid: int, folder: Path, name: str, end: str, answer: Connection) -> None:
    lock = DeviceLock(gpu(name), folder)
    with tempfile.TemporaryDirectory() as spare, DeviceLock(gpu(name), Path(spare)):
        pass  # everything is imported before this Python's files, perhaps root's own, cannot be read
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    os.umask(0o077)
    try:
        lock.__enter__()
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")
        return
    answer.send("held")
    if end == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)
    lock.__exit__()


def lock_as(uid: int, folder: Path, name: str, end: str = "leaves") -> str:
    """Lock a device as another user in a process of its own; returns `held` or why it was not."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=enter_as, args=(uid, folder, name, end, theirs))
    child.start()
    theirs.close()
    outcome: str = ours.recv()
    child.join()
    return outcome


def test_a_device_is_held_by_one_at_a_time(tmp_path):
    device = describe("cpu")
    with DeviceLock(device, tmp_path / "locks"), pytest.raises(UserError, match=r"in use by .*process \d+"):
        DeviceLock(device, tmp_path / "locks").__enter__()
    with DeviceLock(device, tmp_path / "locks"):
        pass


def test_gpus_are_held_apart(nvml, tmp_path):
    with DeviceLock(describe("cuda:0"), tmp_path), DeviceLock(describe("cuda:1"), tmp_path):
        assert {path.name for path in tmp_path.glob("*.lock")} == {"gpu-aaaa.lock", "gpu-bbbb.lock"}


def hold_and_die(folder):
    DeviceLock(describe("cpu"), folder).__enter__()


def test_a_holder_that_died_holds_nothing(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=hold_and_die, args=(tmp_path,))
    child.start()
    child.join()
    assert list(tmp_path.glob("*.holder"))
    with DeviceLock(describe("cpu"), tmp_path):
        pass


@several_users
def test_users_lock_devices_in_any_order(shared):
    folder = shared / "locks"
    assert lock_as(ANNA, folder, "one") == "held"
    assert [lock_as(uid, folder, "two") for uid in (BEN, ANNA, CLEO)] == ["held"] * 3
    with DeviceLock(gpu("two"), folder):
        refusal = lock_as(ANNA, folder, "two")
        assert refusal.startswith(
            f"UserError: two (made up) is in use by another measurement (process {os.getpid()})"
        )
        assert lock_as(ANNA, folder, "one") == "held"


@several_users
def test_what_a_killed_user_left_keeps_nobody_out(shared):
    folder = shared / "locks"
    assert lock_as(ANNA, folder, "one", "is killed") == "held"
    assert [path.stat().st_uid for path in folder.glob("*.holder")] == [ANNA]
    assert lock_as(BEN, folder, "one") == "held"
    assert not list(folder.glob("*.holder"))


@several_users
def test_a_folder_that_others_may_not_write_is_said_to_be_so(shared):
    folder = shared / "locks"
    assert lock_as(ANNA, folder, "one") == "held"
    folder.chmod(0o755)
    assert lock_as(BEN, folder, "one") == "held"
    refusal = lock_as(BEN, folder, "two")
    assert refusal.startswith(
        "UserError: two (made up) cannot be locked, so another measurement could share it"
    )
    assert f"the owner of that folder can `chmod 0777 {folder}`" in refusal


def test_a_folder_that_cannot_be_made_is_a_users_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be locked"):
        DeviceLock(describe("cpu"), tmp_path / "file" / "locks").__enter__()


def test_only_a_folder_of_our_own_making_is_opened_to_all(tmp_path):
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    (tmp_path / "locks").symlink_to(private)
    with DeviceLock(gpu("one"), tmp_path / "locks"):
        assert private.stat().st_mode & 0o777 == 0o700


def test_no_link_leads_the_word_of_the_holder_into_another_file(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "one.holder").symlink_to(tmp_path / "precious")
    with DeviceLock(gpu("one"), tmp_path):
        assert "pid" in (tmp_path / "one.holder").read_text()
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_device_is_held_without_a_word_of_the_holder(tmp_path):
    (tmp_path / "one.holder").mkdir()
    with DeviceLock(gpu("one"), tmp_path), pytest.raises(UserError, match="in use by another measurement:"):
        DeviceLock(gpu("one"), tmp_path).__enter__()
    with DeviceLock(gpu("one"), tmp_path):
        pass
