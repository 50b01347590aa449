"""What the parent says of a device: a real CPU, and GPUs as a made-up NVML reports them."""

import multiprocessing
import sys
import types

import pytest

from models.errors import UserError
from workbench import machine
from workbench.machine import DeviceLock, MemorySampler, describe, foreign_work, resolve_device


class NVMLError(Exception):
    pass


class FakeNvml(types.ModuleType):
    """Two GPUs, the second one busy."""

    NVMLError = NVMLError

    def __init__(self, gpus=(("H100", "GPU-aaaa"), ("A100", "GPU-bbbb")), driver=True):
        super().__init__("pynvml")
        self.gpus = gpus
        self.driver = driver
        self.opened = 0
        self.used = [1 << 20, 3 << 30]
        self.busy = [0, 90]

    def nvmlInit(self):
        if not self.driver:
            raise NVMLError("driver not loaded")
        self.opened += 1

    def nvmlShutdown(self):
        self.opened -= 1

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return self.gpus[handle][0]

    def nvmlDeviceGetUUID(self, handle):
        return self.gpus[handle][1]

    def nvmlSystemGetDriverVersion(self):
        return "580.1"

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return [(9, 0), (8, 0)][handle]

    def nvmlDeviceGetMemoryInfo(self, handle):
        return types.SimpleNamespace(total=80 << 30, used=self.used[handle])

    def nvmlDeviceGetUtilizationRates(self, handle):
        return types.SimpleNamespace(gpu=self.busy[handle])


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "LOOK_S", 0.01)
    yield fake
    assert fake.opened == 0


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))


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
    assert device.identity() == {"name": "H100", "uuid": "GPU-aaaa", "driver": "580.1"}
    assert (device.architecture, device.memory_bytes) == ("sm_90", 80 << 30)
    assert device.is_gpu


def test_the_cpu_is_described():
    device = describe("cpu")
    assert device.identity() == {"name": device.name, "threads": device.threads, "uuid": device.uuid}
    assert len(device.uuid or "") == 16
    assert device == describe("cpu")
    assert device.name.strip()
    assert device.threads >= 1
    assert device.memory_bytes > 1 << 28
    cache = machine.cpu_cache_bytes()
    assert cache is None or 1 << 18 <= cache <= 1 << 31
    assert not device.is_gpu


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


def test_memory_is_the_highest_use_above_the_baseline(nvml, monkeypatch):
    monkeypatch.setattr(MemorySampler, "INTERVAL_S", 0.001)
    with MemorySampler(describe("cuda:0")) as sampler:
        nvml.used[0] = 6 << 30
        wait_for(lambda: sampler.peak_bytes == (6 << 30) - (1 << 20))
        nvml.used[0] = 2 << 30
        wait_for(lambda: sampler.peak_bytes == (6 << 30) - (1 << 20))
        sampler.restart()
        wait_for(lambda: sampler.peak_bytes == (2 << 30) - (1 << 20))


def wait_for(condition):
    import time

    for _ in range(1000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came true")


def test_a_cpu_has_no_memory_to_sample():
    with MemorySampler(describe("cpu")) as sampler:
        pass
    assert sampler.peak_bytes is None


def test_others_on_a_gpu_are_warned_of_with_a_next_step(nvml):
    assert foreign_work(describe("cuda:0")) == ()
    busy, memory = foreign_work(describe("cuda:1"))
    assert busy.startswith("other programs keep cuda:1 90 % busy: stop them")
    assert memory.startswith("other programs hold 3.0 GiB of cuda:1: stop them")


@pytest.mark.parametrize(("percent", "count"), [(3.0, 0), (80.0, 1)])
def test_others_on_a_cpu_are_warned_of(monkeypatch, percent, count):
    monkeypatch.setattr(machine.psutil, "cpu_percent", lambda seconds: percent)
    warnings = foreign_work(describe("cpu"))
    assert len(warnings) == count
    assert all("80 % of the CPU: stop them" in line for line in warnings)
