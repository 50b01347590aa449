"""What the parent sees while workers run, and of others: GPUs as a made-up NVML reports them."""

import time
import types
from dataclasses import replace

import pytest

from models.errors import UserError
from workbench.device import watch
from workbench.device.machine import describe
from workbench.device.watch import Watch, foreign_work


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.002)
    raise AssertionError("it never came true")


def seen(sampler, row="row", count=5):
    """Wait until some samples of a row are there."""
    wait_for(lambda: len(sampler._seen.get(row, ())) >= count)


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Return a function that sets how many of how many cores others keep busy: none of them at first."""

    def keep_busy(cores, of):
        monkeypatch.setattr(watch.psutil, "cpu_percent", lambda: 100 * cores / of)
        monkeypatch.setattr(watch.psutil, "cpu_count", lambda: of)

    keep_busy(0, of=2)
    return keep_busy


def test_memory_is_the_highest_use_above_the_use_before(nvml):
    with Watch(describe("cuda:0")) as sampler:
        nvml.used[0] = 6 << 30
        wait_for(lambda: sampler.peak_of("row") == (6 << 30) - (1 << 20))
        nvml.used[0] = 2 << 30
        sampler.enter("row")
        seen(sampler)
        assert sampler.peak_of("row") == (6 << 30) - (1 << 20)


def test_memory_of_the_checks_and_of_other_rows_is_not_a_rows(nvml):
    with Watch(describe("cuda:0")) as sampler:
        sampler.enter("gate")
        nvml.used[0] = 6 << 30
        wait_for(lambda: sampler._peaks.get("gate") == 6 << 30)
        sampler.enter("other")
        seen(sampler, "other")
        nvml.used[0] = 3 << 30
        sampler.enter("row")
        seen(sampler)
    assert sampler.peak_of("row") == (3 << 30) - (1 << 20)
    assert sampler.peak_of("other") == (6 << 30) - (1 << 20)


def test_a_row_is_told_the_conditions_of_its_own_timing(nvml):
    with Watch(describe("cuda:0")) as sampler:
        sampler.enter("build")
        time.sleep(0.02)
        sampler.enter("first")
        seen(sampler, "first")
        sampler.enter("gate")
        nvml.clocks[nvml.NVML_CLOCK_SM] = 345
        time.sleep(0.02)
        sampler.enter("second")
        seen(sampler, "second")
    first, second = sampler.conditions("first"), sampler.conditions("second")
    assert first["sm_mhz"]["low"] == first["sm_mhz"]["high"] == 1980
    assert second["sm_mhz"]["high"] == 345
    assert first["power_w"]["median"] == 500.4
    assert first["temperature_c"]["median"] == 61
    assert first["utilisation_percent"]["median"] == 0
    assert first["reasons"] == {}
    assert first["idle_bytes"] == 1 << 20


def test_what_a_row_does_before_its_first_sample_is_not_its_condition(nvml):
    nvml.clocks[nvml.NVML_CLOCK_SM] = 1300
    with Watch(describe("cuda:0")) as sampler:
        sampler.enter("row")
        seen(sampler)
        nvml.clocks[nvml.NVML_CLOCK_SM] = 1980
        sampler.begin_samples("row")
        heated = len(sampler._seen["row"])
        seen(sampler, count=heated + 5)
        nvml.used[0] = 5 << 30
        wait_for(lambda: sampler._peaks["row"] == 5 << 30)
    found = sampler.conditions("row")
    assert found["sm_mhz"]["median"] == 1980
    assert found["samples"] <= len(sampler._seen["row"]) - heated + 1
    assert sampler.peak_of("row") == (5 << 30) - (1 << 20)  # but its memory is


def test_a_row_that_was_never_timed_has_no_conditions(nvml):
    with Watch(describe("cuda:0")) as sampler:
        sampler.enter("build")
        time.sleep(0.02)
    assert sampler.conditions("row") == {"idle_bytes": 1 << 20}


def test_what_a_card_does_not_tell_is_none(nvml):
    nvml.unsupported = {
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetCurrentClocksEventReasons",
    }
    with Watch(describe("cuda:0")) as sampler:
        sampler.enter("row")
        seen(sampler)
    found = sampler.conditions("row")
    assert found.pop("samples") >= 5
    assert found.pop("idle_bytes") == 1 << 20
    assert set(found.values()) == {None}
    assert foreign_work(describe("cuda:0")) == ()


@pytest.mark.parametrize("instant", [0, None])
def test_power_is_the_mean_over_a_second_where_there_is_none_of_the_moment(nvml, instant):
    if instant is None:
        nvml.nvmlDeviceGetFieldValues = lambda handle, fields: [types.SimpleNamespace(nvmlReturn=3)]
    else:
        nvml.instant_mw = instant
    assert watch.look_at(nvml, 0).power_w == 450.0


def test_a_card_that_tells_no_memory_has_no_peak(nvml):
    nvml.unsupported = {"nvmlDeviceGetMemoryInfo"}
    with Watch(describe("cuda:0")) as sampler:
        time.sleep(0.02)
    assert sampler.peak_of("row") is None
    assert sampler.left_behind() == ()


def test_a_cpu_is_not_sampled():
    with Watch(describe("cpu")) as sampler:
        sampler.enter("row")
    assert sampler.peak_of("row") is None
    assert sampler.conditions("row") == {}
    assert sampler.left_behind() == ()


def test_memory_left_when_the_worker_is_gone_is_anothers(nvml):
    with Watch(describe("cuda:0")) as sampler:
        nvml.used[0] = 3 << 30
    (warning,) = sampler.left_behind()
    assert warning.startswith("another program took 3.0 GiB of cuda:0 during a process")
    assert "--again" in warning


def test_memory_that_the_driver_gives_back_late_is_nobodys(nvml):
    answers = iter([3 << 30, 3 << 30, 1 << 20])
    with Watch(describe("cuda:0")) as sampler:
        pass
    nvml.nvmlDeviceGetMemoryInfo = lambda handle: types.SimpleNamespace(used=next(answers))
    assert sampler.left_behind() == ()


def test_others_on_a_gpu_are_warned_of_with_a_next_step(nvml):
    assert foreign_work(describe("cuda:0")) == ()
    busy, memory = foreign_work(describe("cuda:1"))
    assert busy.startswith("other programs keep cuda:1 90 % busy: stop them")
    assert memory.startswith("other programs hold 3.0 GiB of cuda:1: stop them")


@pytest.mark.parametrize(("cores", "count"), [(0.3, 0), (0.5, 1)])
def test_others_on_a_cpu_are_warned_of_by_the_threads_that_are_measured(cpu, cores, count):
    cpu(cores, of=64)
    warnings = foreign_work(replace(describe("cpu"), threads=4))
    assert len(warnings) == count
    assert all("0.5 cores busy beside the 4 threads measured: stop them" in line for line in warnings)


@pytest.mark.parametrize(("cores", "count"), [(3.0, 0), (16.0, 1)])
def test_others_on_the_host_of_a_gpu_are_warned_of(nvml, cpu, cores, count):
    cpu(cores, of=64)
    warnings = foreign_work(describe("cuda:0"))
    assert len(warnings) == count
    assert all("16.0 of the host's 64 cores busy" in line for line in warnings)


def test_a_card_that_fails_while_a_worker_runs_is_one_line(nvml):
    with Watch(describe("cuda:0")) as sampler:
        pass
    nvml.driver = False
    with pytest.raises(UserError, match="NVML does not answer: driver not loaded; see"):
        sampler.left_behind()


def test_a_sampler_that_cannot_start_ends_quietly(nvml):
    sampler = Watch(describe("cuda:0"))
    nvml.unsupported = {"nvmlDeviceGetHandleByIndex"}
    sampler._sample()
    assert sampler.peak_of("row") is None
