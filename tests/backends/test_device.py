"""Which device is chosen, why, and what is refused with the versions of driver and wheel."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coldstream.backends.device import Machine, choose_device, open_device
from coldstream.errors import DeviceUnavailable

L4_ON_CLOUD_RUN = "535.216.03"


@pytest.mark.parametrize(
    ("driver", "cuda", "runs"),
    [
        (L4_ON_CLOUD_RUN, "13.0", False),
        (L4_ON_CLOUD_RUN, "12.8", True),
        ("580.65.06", "13.0", True),
        ("525.60.13", "12.6", True),
        ("525.60.12", "12.6", False),
        ("470.57.02", "11.8", True),
        ("of unknown version", "13.0", True),
    ],
)
def test_a_driver_is_held_against_the_wheels_cuda(driver: str, cuda: str, runs: bool) -> None:
    machine = Machine(driver, "2.13.0", cuda)
    assert (machine.trouble is None) is runs
    device, reason = choose_device("auto", precision="auto", machine=machine)
    assert device == ("cuda" if runs else "cpu")
    assert driver in reason
    assert cuda in reason


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        (Machine(None, "2.13.0", "13.0"), ("no NVIDIA driver", "CUDA 13.0")),
        (Machine(L4_ON_CLOUD_RUN, "2.13.0", "13.0"), (L4_ON_CLOUD_RUN, "2.13.0", "CUDA 13.0", "580.65.6")),
        (Machine(L4_ON_CLOUD_RUN, "2.13.0+cpu", None), (L4_ON_CLOUD_RUN, "2.13.0+cpu", "without CUDA")),
        (Machine("580.65.06", "2.13.0", "13.0", is_hidden=True), ("CUDA_VISIBLE_DEVICES", "580.65.06", "13.0")),
        (Machine("580.65.06", None, None), ("580.65.06", "torch is not installed", "pip install 'coldstream[torch]'")),
        (Machine(None, None, None), ("no NVIDIA driver", "pip install 'coldstream[torch]'")),
    ],
)
def test_a_gpu_that_was_asked_for_and_cannot_be_had_is_an_error_with_both_versions(
    machine: Machine, why: tuple[str, ...]
) -> None:
    with pytest.raises(DeviceUnavailable) as caught:
        choose_device("cuda", precision="auto", machine=machine)
    assert all(part in str(caught.value) for part in why)
    device, reason = choose_device("auto", precision="auto", machine=machine)
    assert device == "cpu"
    assert all(part in reason for part in why)


@given(
    machine=st.builds(
        Machine,
        st.sampled_from([None, "of unknown version", "450.1", L4_ON_CLOUD_RUN, "580.65.06", "999"]),
        st.just("2.13.0"),
        st.sampled_from([None, "11.8", "12.8", "13.0", "14.1"]),
        is_hidden=st.booleans(),
    ),
    precision=st.sampled_from(["auto", "float32", "bfloat16", "int8"]),
)
def test_what_was_asked_for_is_had_or_refused_and_auto_always_finds_a_device(machine: Machine, precision: str) -> None:
    assert choose_device("cpu", precision=precision, machine=machine)[0] == "cpu"  # type: ignore[arg-type]
    device, reason = choose_device("auto", precision=precision, machine=machine)  # type: ignore[arg-type]
    assert reason
    if device == "cuda":
        assert machine.trouble is None
        assert precision != "int8"
    try:
        assert choose_device("cuda", precision="auto", machine=machine)[0] == "cuda"
    except DeviceUnavailable:
        assert machine.trouble is not None


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Fri Oct 25 22:08:30 UTC 2024\n", "535.216.03"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x)\n", "580.65.06"),
        ("something else", "of unknown version"),
        (None, None),
    ],
)
def test_the_driver_is_read_without_torch(tmp_path: Path, text: str | None, version: str | None) -> None:
    if text is not None:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        (tmp_path / "proc/driver/nvidia/version").write_text(text)
    machine = Machine.of_this_machine(tmp_path, {})
    assert machine.driver == version
    assert (machine.torch, machine.wheel_cuda) == (torch.__version__, torch.version.cuda)
    assert not machine.is_hidden


def test_a_device_file_alone_is_a_driver_too(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidiactl").touch()
    assert Machine.of_this_machine(tmp_path, {}).driver


@pytest.mark.parametrize(("value", "hidden"), [("", True), ("-1", True), ("0", False), ("GPU-1", False)])
def test_gpus_may_be_hidden_by_the_environment(tmp_path: Path, value: str, hidden: bool) -> None:
    assert Machine.of_this_machine(tmp_path, {"CUDA_VISIBLE_DEVICES": value}).is_hidden is hidden


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use CUDA here")
def test_torch_that_cannot_use_what_was_promised_is_an_error_with_both_versions() -> None:
    promised = Machine("580.65.06", "2.13.0", "13.0")
    with pytest.raises(DeviceUnavailable, match=r"580\.65\.06.*13\.0"):
        open_device("cuda", promised)
    assert open_device("cpu", promised) == torch.device("cpu")
