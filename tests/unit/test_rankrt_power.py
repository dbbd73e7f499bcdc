"""What is decided from a device's readings; the lines are in the formats of NVIDIA's tools."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankrt import device_bench
from rankrt.device_bench import device_facts, print_device, time_on_device, warm_up
from rankrt.errors import BackendError
from rankrt.power import (
    Reading,
    energy_joules,
    parse_nvidia_smi,
    parse_tegrastats,
    unsteady,
    watching,
)

ORIN = (
    "11-24-2026 10:11:12 RAM 2448/15523MB (lfb 2x4MB) SWAP 0/7762MB (cached 0MB) "
    "CPU [12%@1190,0%@1190,off,off] EMC_FREQ 3%@3199 GR3D_FREQ 76%@[918,918] NVDEC off "
    "CPU@48.7C SOC2@46.9C tj@48.9C gpu@47.2C VDD_IN 8215mW/7904mW VDD_CPU_GPU_CV 2760mW/2520mW "
    "VDD_SOC 2200mW/2190mW"
)
NANO = (
    "RAM 1903/3964MB (lfb 120x4MB) CPU [25%@1479,8%@1479] EMC_FREQ 0% GR3D_FREQ 12% "
    "PLL@38C CPU@40.5C GPU@38.5C POM_5V_IN 2942/2942 POM_5V_GPU 123/123 POM_5V_CPU 451/451"
)


def test_lines_of_nvidia_smi() -> None:
    assert parse_nvidia_smi("1980, 312.45, 54, 0x0000000000000000\n", 3.0) == Reading(
        3.0, 1980.0, 312.45, 54.0
    )
    capped = parse_nvidia_smi("1410, 398.90, 71, 0x0000000000000024", 0.0)
    assert capped is not None
    assert capped.slowed == ("power cap", "heat (driver)")
    idle = parse_nvidia_smi("345, 9.80, 33, 0x0000000000000003", 0.0)  # idle, clocks set
    assert idle is not None
    assert idle.slowed == ()
    silent = parse_nvidia_smi("[N/A], [Not Supported], 40, [N/A]", 0.0)
    assert silent == Reading(0.0, None, None, 40.0)


@pytest.mark.parametrize("line", ["", "No devices were found", "1, 2, 3", "1, 2, 3, 0xzz"])
def test_what_is_no_line_of_nvidia_smi(line: str) -> None:
    assert parse_nvidia_smi(line, 0.0) is None


def test_lines_of_tegrastats() -> None:
    assert parse_tegrastats(ORIN, 1.0) == Reading(1.0, 918.0, 8.215, 47.2)
    assert parse_tegrastats(NANO, 1.0) == Reading(1.0, None, 2.942, 38.5)  # no clock told
    without_input = ORIN.replace("VDD_IN 8215mW/7904mW ", "")
    summed = parse_tegrastats(without_input, 1.0)
    assert summed is not None
    assert summed.power_w == pytest.approx(2.76 + 2.2)
    assert parse_tegrastats("RAM 1903/3964MB", 1.0) is None


def readings(clocks: Sequence[float | None], slowed: tuple[str, ...] = ()) -> list[Reading]:
    return [Reading(float(k), mhz, 100.0, 50.0, slowed) for k, mhz in enumerate(clocks)]


def test_a_clock_that_moves_or_is_held_back_is_refused() -> None:
    assert unsteady(readings([1980, 1965, 1980, 1980])) is None  # one step of 15 MHz
    assert unsteady(readings([None, None, None])) is None  # a device that does not tell
    assert "moved from 1410 to 1980 MHz" in str(unsteady(readings([1980, 1980, 1410])))
    assert "slowed itself down: power cap" in str(unsteady(readings([1980] * 3, ("power cap",))))
    assert "only 2 readings" in str(unsteady(readings([1980, 1980])))


def test_energy_of_known_powers() -> None:
    ramp = [Reading(float(k), None, 10.0 * k, None) for k in range(5)]
    assert energy_joules(ramp, 0.0, 4.0) == pytest.approx(80.0)
    assert energy_joules(ramp, 1.5, 2.5) == pytest.approx(20.0)
    assert energy_joules(ramp, 4.0, 6.0) == pytest.approx(80.0)  # the last is held
    assert energy_joules([Reading(0.0, 1.0, None, None)], 0.0, 1.0) is None


@given(
    st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0, 700)), min_size=2, max_size=20),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_energy_adds_up_over_time_and_stays_between_its_powers(
    steps: list[tuple[float, float]], a: float, b: float
) -> None:
    at = np.cumsum([step for step, _ in steps])
    told = [Reading(float(t), None, w, None) for t, (_, w) in zip(at, steps, strict=True)]
    low, high = sorted((a * float(at[-1]), b * float(at[-1])))
    middle = (low + high) / 2
    parts = [energy_joules(told, *ends) for ends in ((low, middle), (middle, high), (low, high))]
    first, second, whole = (part or 0.0 for part in parts)
    assert first + second == pytest.approx(whole, abs=1e-6)
    powers = [w for _, w in steps]
    assert min(powers) * (high - low) - 1e-6 <= whole <= max(powers) * (high - low) + 1e-6


class Device:
    """A device whose clock, and so whose times, a test decides; time passes when it works."""

    graph = True

    def __init__(self, monkeypatch: pytest.MonkeyPatch, clocks: Sequence[float]) -> None:
        self.now, self.clocks, self.chunks = 0.0, list(clocks), 0
        self.told: list[Reading] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self._wait)

    def _wait(self, seconds: float) -> None:
        self.now += seconds
        mhz = self.clocks[min(len(self.told), len(self.clocks) - 1)]
        self.told.append(Reading(self.now, mhz, 200.0, 40.0 + self.now))

    def kernel_ms(self, calls: int) -> list[float]:
        self.chunks += 1
        self._wait(0.005 * calls)
        return [5.0] * calls

    def copy_ms(self) -> float:
        return 1.5

    @contextmanager
    def watch(self) -> Iterator[list[Reading]]:
        yield self.told


def test_a_steady_device_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, [1980.0])
    found = time_on_device(device, 32, 1.0, device.watch)
    assert (found.batch, found.graph, found.refused) == (32, True, ())
    assert (found.p50_ms, found.p99_ms, found.copy_ms) == (5.0, 5.0, 1.5)
    assert found.energy_mj == pytest.approx(200.0 * 5.0)  # watts and milliseconds
    assert (found.sm_mhz, found.power_w) == (1980.0, 200.0)
    assert found.before_c is not None
    assert found.after_c is not None
    assert found.before_c < found.after_c
    assert found.runs >= 200


def test_a_run_in_which_the_clock_moved_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = 4  # chunks until steady
    device = Device(monkeypatch, [1980.0] * (warm + 3) + [1400.0] * 10 + [1980.0])
    found = time_on_device(device, 1, 0.5, device.watch)
    assert len(found.refused) == 1
    assert "moved from 1400 to 1980 MHz" in found.refused[0]
    assert found.sm_mhz == 1980.0


def test_a_clock_that_never_rests_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, [1980.0, 1400.0] * 500)
    with pytest.raises(BackendError, match=r"(?s)batch 8: no steady clock in 3 attempts .*lock"):
        time_on_device(device, 8, 0.5, device.watch)


def test_warming_up_ends_on_a_device_that_never_settles(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch, [1980.0])
    faster = iter(range(10_000, 0, -300))
    monkeypatch.setattr(
        Device, "kernel_ms", lambda self, n: (self._wait(0.1), [float(next(faster, 1))] * n)[1]
    )
    warm_up(device)
    assert device.now <= device_bench._WARM_UP_SECONDS + 0.2


def test_what_is_told_of_a_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(monkeypatch, [1980.0])
    found = [time_on_device(device, 32, 0.5, device.watch)]
    print_device(found)
    told = capsys.readouterr().out
    assert "1000.0000   1980   200.0" in told
    assert "as CUDA graphs" in told
    assert device_facts(found)["reason"] is None
    print_device("no tool is here")
    assert capsys.readouterr().out == "device    not timed: no tool is here\n"
    assert device_facts("no tool is here") == {"batches": [], "reason": "no tool is here"}
    print_device([])
    assert capsys.readouterr().out == ""


def test_without_a_tool_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendError, match="neither nvidia-smi nor tegrastats"), watching("0"):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="the tool is a shell script")
def test_a_tool_is_read_while_it_runs_and_stopped(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tool = tmp_path_factory.mktemp("bin") / "nvidia-smi"
    tool.write_text(  # refuses the newer name of the column, as drivers before 535 do
        "#!/bin/sh\n"
        'case "$*" in *clocks_event_reasons*) exit 2;; esac\n'
        'case "$*" in *lms*) while :; do echo "1980, 300.00, 50, 0x0"; sleep 0.01; done;; esac\n'
    )
    tool.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: str(tool) if name == "nvidia-smi" else None)
    with watching("00000000:01:00.0") as told:
        deadline = time.monotonic() + 5.0
        while len(told) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert len(told) >= 3
    assert told[0].sm_mhz == 1980.0
    seen = len(told)
    time.sleep(0.05)
    assert len(told) == seen
