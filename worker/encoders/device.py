"""Which device an encoder runs on, and with how many threads."""

from __future__ import annotations

import ctypes
import logging
import os
from dataclasses import dataclass

from registry.errors import FleetError, UsageError
from registry.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A device by its name in settings: `cpu`, `cuda:0`, …"""

    name: str
    #: Why it is not the device one would expect; empty where it is. Travels in each part's notes.
    fallback: str = ""

    @property
    def kind(self) -> str:
        """`cpu` or `cuda`."""
        return self.name.partition(":")[0]

    @property
    def index(self) -> int:
        """Which device of its kind."""
        return int(self.name.partition(":")[2] or 0)


def choose_device(settings: Settings, cuda_devices: int, reason: str) -> Device:
    """The device that settings ask for; unasked, the first CUDA device, else the CPU, which is said.

    Parameters:
        cuda_devices: how many CUDA devices the encoder's library can use.
        reason: why there are none, for the message.

    Raises UsageError for a name that is no device, FleetError where a device asked for is missing.
    """
    asked = settings.device
    kind, _, index = asked.partition(":")
    if kind not in ("", "cpu", "cuda") or (index and not index.isdecimal()):
        raise UsageError(f"V5_DEVICE: {asked!r} is no device; say cpu, cuda or cuda:N, or nothing")
    if kind == "cpu":
        return Device("cpu")
    wanted = int(index or 0)
    if wanted < cuda_devices:
        return Device(f"cuda:{wanted}")
    if asked:
        raise FleetError(
            f"V5_DEVICE asks for {asked}, and CUDA devices here number {cuda_devices} ({reason or 'found'}); "
            "install the [gpu] extra on a machine with that device, or set V5_DEVICE=cpu"
        )
    fallback = f"no CUDA device: {reason}"
    logger.warning("running on the CPU: %s", fallback)
    return Device("cpu", fallback)


def thread_count(settings: Settings) -> int:
    """CPU threads of a forward pass: as set, else the cores this process may use."""
    if settings.threads:
        return settings.threads
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def hardware(device: Device) -> str:
    """What a device calls itself, and its memory; its name in settings where the driver does not say."""
    if device.kind == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"a CPU of {os.cpu_count()} cores, {total / (1 << 30):.0f} GiB"
    name, number, memory = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_size_t()
    try:
        # The driver counts devices by CUDA_VISIBLE_DEVICES, as the encoders' libraries do and nvidia-smi not.
        driver = ctypes.CDLL("libcuda.so.1")
        failed = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(number), device.index)
            or driver.cuDeviceGetName(name, len(name), number)
            or driver.cuDeviceTotalMem_v2(ctypes.byref(memory), number)
        )
    except (OSError, AttributeError):
        return device.name
    return device.name if failed else f"{name.value.decode()}, {memory.value / (1 << 30):.0f} GiB"
