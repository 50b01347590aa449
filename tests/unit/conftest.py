"""A made-up NVML for the tests of what the parent sees of GPUs."""

import sys
import types

import pytest

from workbench.device import watch


class NVMLError(Exception):
    pass


class FakeNvml(types.ModuleType):
    """Two GPUs, the second one busy; what is named in `unsupported` raises, as on cards that lack it."""

    NVMLError = NVMLError
    NVML_SUCCESS = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_FI_DEV_POWER_INSTANT = 186

    def __init__(self, gpus=(("H100", "GPU-aaaa"), ("A100", "GPU-bbbb")), driver=True):
        super().__init__("pynvml")
        self.gpus = gpus
        self.driver = driver
        self.opened = 0
        self.used = [1 << 20, 3 << 30]
        self.busy = [0, 90]
        self.clocks = {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 3201}
        self.instant_mw = 500_400
        self.reasons = 0
        self.unsupported = set()

    def __getattribute__(self, name):
        if name != "unsupported" and name in getattr(self, "unsupported", ()):
            return self._refuse
        return super().__getattribute__(name)

    def _refuse(self, *arguments):
        raise NVMLError("Not Supported")

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

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        return 700_000

    def nvmlDeviceGetEccMode(self, handle):
        return [1, 0]

    def nvmlDeviceGetMaxClockInfo(self, handle, clock):
        return {self.NVML_CLOCK_SM: 1980, self.NVML_CLOCK_MEM: 3201}[clock]

    def nvmlDeviceGetClockInfo(self, handle, clock):
        return self.clocks[clock]

    def nvmlDeviceGetFieldValues(self, handle, fields):
        value = types.SimpleNamespace(uiVal=self.instant_mw)
        return [types.SimpleNamespace(nvmlReturn=self.NVML_SUCCESS, value=value) for _ in fields]

    def nvmlDeviceGetPowerUsage(self, handle):
        return 450_000

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 61

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self.reasons


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(watch, "LOOK_S", 0.01)
    monkeypatch.setattr(watch.Watch, "INTERVAL_S", 0.001)
    yield fake
    assert fake.opened == 0


@pytest.fixture
def no_nvml(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(driver=False))
