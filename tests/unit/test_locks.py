"""A device is measured by one at a time."""

import multiprocessing

import pytest

from models.errors import UserError
from workbench.locks import DeviceLock
from workbench.machine import describe


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
