"""What the parent says of a device: a real CPU, and GPUs as a made-up NVML reports them."""

from pathlib import Path

import pytest

from models.errors import UserError
from workbench.device import machine
from workbench.device.machine import describe, resolve_device


def test_a_machine_without_a_driver_has_a_cpu(no_nvml):
    assert resolve_device("auto") == "cpu"
    with pytest.raises(UserError, match=r"there is no cuda:0 here: choose one of cpu$"):
        resolve_device("cuda:0")


def test_the_first_gpu_is_taken_by_itself(nvml):
    assert resolve_device("auto") == "cuda:0"
    assert resolve_device("cuda") == "cuda:0"
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device("cpu") == "cpu"


def test_a_gpu_that_is_not_there_is_answered_by_those_that_are(nvml):
    with pytest.raises(
        UserError, match=r"there is no cuda:2 here: choose one of cpu, cuda:0 \(H100\), cuda:1 \(A100\)"
    ):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "mps"])
def test_no_device_at_all_is_refused(nvml, device):
    if device == "cuda:":
        assert resolve_device(device) == "cuda:0"
        return
    with pytest.raises(UserError, match="give auto, cpu or cuda:N"):
        resolve_device(device)


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ("1", ["A100"]),
        ("1,0", ["A100", "H100"]),
        ("GPU-bb", ["A100"]),
        ("", []),
        ("0,7,1", ["H100"]),
        ("-1", []),
    ],
)
def test_gpus_are_counted_as_cuda_would_show_them(nvml, monkeypatch, shown, names):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert [describe(f"cuda:{index}").name for index in range(len(names))] == names
    assert resolve_device("auto") == ("cuda:0" if names else "cpu")


def test_a_gpu_is_described(nvml):
    device = describe("cuda:0")
    assert device.identity() == {
        "name": "H100",
        "uuid": "GPU-aaaa",
        "driver": "580.1",
        "memory_bytes": 80 << 30,
        "power_limit_w": 700,
        "ecc": True,
        "max_sm_mhz": 1980,
        "max_memory_mhz": 3201,
    }
    assert device.architecture == "sm_90"
    assert device.is_gpu


def test_what_a_card_does_not_tell_is_none_and_raises_nothing(nvml):
    nvml.unsupported = {
        "nvmlDeviceGetMemoryInfo",
        "nvmlDeviceGetEnforcedPowerLimit",
        "nvmlDeviceGetEccMode",
        "nvmlDeviceGetMaxClockInfo",
    }
    facts = describe("cuda:0").identity()
    assert {name for name, value in facts.items() if value is not None} == {"name", "uuid", "driver"}


def test_the_cpu_is_described():
    device = describe("cpu")
    assert device.identity() == {"name": device.name, "threads": device.threads, "uuid": device.uuid}
    assert len(device.uuid or "") == 16
    assert device == describe("cpu")
    assert device.name.strip()
    assert device.threads >= 1
    assert device.memory_bytes > 1 << 28
    cache = machine.cpu_cache_bytes()
    assert cache is None or 1 << 18 <= cache <= 1 << 34
    assert not device.is_gpu


def add_cache(root: Path, cpu: int, index: int, level: int, size: str, shared: str) -> None:
    folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
    folder.mkdir(parents=True)
    for name, text in {"level": str(level), "size": size, "shared_cpu_list": shared}.items():
        (folder / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("usable", "megabytes"),
    [({0}, 32), ({0, 1}, 32), ({1, 2}, 64), ({0, 1, 2, 3, 4, 5}, 64 + 16), ({6}, None)],
)
def test_every_last_level_cache_that_we_may_use_counts_once(tmp_path, monkeypatch, usable, megabytes):
    for cpu in range(6):
        add_cache(tmp_path, cpu, 0, 1, "32K", str(cpu))
        add_cache(tmp_path, cpu, 2, 2, "64M", str(cpu))  # however large, it is not the last
        size = "16M" if cpu >= 4 else "32768K"
        add_cache(tmp_path, cpu, 3, 3, size, ("0-1", "2-3", "4-5")[cpu // 2])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: usable)
    assert machine.cpu_cache_bytes(tmp_path) == (megabytes and megabytes << 20)


def test_a_cpu_without_a_third_level_has_a_second(tmp_path, monkeypatch):
    for cpu in range(2):
        add_cache(tmp_path, cpu, 0, 1, "64K", str(cpu))
        add_cache(tmp_path, cpu, 1, 2, "1M", str(cpu))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 1})
    assert machine.cpu_cache_bytes(tmp_path) == 2 << 20


@pytest.mark.parametrize("label", ["flags\t\t", "Features\t"])
def test_processors_of_one_name_are_told_apart_by_their_instructions(tmp_path, label):
    def name(text):
        path = tmp_path / "cpuinfo"
        path.write_text(f"model name\t: EPYC\n{label}: {text}\n")
        return machine.instruction_sets(path)

    assert name("sse avx512f") == name("avx512f sse") != name("sse")
    assert machine.instruction_sets(tmp_path / "absent") == ""
